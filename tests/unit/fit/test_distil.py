"""A teacher says what it has to say, row by row, and is refused where it has nothing to say."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from tests import small
from trainer.config import DistillConfig
from trainer.data import ShardStore
from trainer.data.shards import ShardKey
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.fit.distil import Teacher

LOGGED = DistillConfig(source="logged")


def spec(**logged):
    actions = {name: SimpleNamespace(expression=name) for name in ("click", "like", "watch")}
    return SimpleNamespace(logged_scores=logged, actions=actions)


def teacher(*actions, **logged):
    return Teacher(LOGGED, spec(**logged), small.inputs(actions=actions), None)


def scores(taught, **columns):
    examples = pa.table({f"logged_{name}": pa.array(values, pa.float64()) for name, values in columns.items()})
    return taught.scores(examples, None, 0)


def test_logged_scores_are_read_by_action_and_nulls_are_silence():
    taught = teacher("like", "click", click="p_click")
    assert taught.left_out == {"like": "no logged score is declared"}
    got = scores(taught, click=[0.25, None, 1.0])
    assert np.array_equal(got, np.array([[np.nan, 0.25], [np.nan, np.nan], [np.nan, 1.0]], np.float32), equal_nan=True)
    assert np.isnan(scores(taught, other=[1.0, 2.0])).all(), "a partition from before the column was logged"


@pytest.mark.parametrize(("action", "bad"), [("click", 1.5), ("click", -0.1), ("watch", -3.0), ("click", np.inf)])
def test_a_stray_score_is_silence_and_a_column_of_them_is_refused(action, bad):
    taught = teacher(action, **{action: "p"})
    got = scores(taught, **{action: [0.5] * 200 + [bad]})
    assert np.isnan(got[-1, 0]) and np.isfinite(got[:-1]).all()
    if np.isfinite(bad):
        with pytest.raises(DataError, match="are not what their action's kind says") as error:
            scores(taught, **{action: [0.5] * 20 + [bad]})
        assert error.value.where == f"data.logged_scores.{action}" and f"{bad:g}" in error.value.got


def test_a_teacher_that_is_silent_on_every_row_is_refused(tmp_path):
    encoder = small.encoder()
    taught = Teacher(LOGGED, spec(click="p_click"), encoder.inputs, None)
    shard = encoder.encode(*small.tables(), 100 * small.HOUR)
    store, key = ShardStore(tmp_path), ShardKey("2026-01-01", 0)
    for value in (np.nan, 0.5):
        teacher_NA = np.full((len(shard.row_N), 2), value, np.float32)
        store.write(key, replace(shard, teacher_NA=teacher_NA))
        if np.isnan(value):
            with pytest.raises(DataError, match="no training row has a score") as error:
                taught.report(store, [key])
            assert error.value.where == "logged scores"
    assert taught.report(store, [key])["scored"] == {"click": len(shard.row_N), "like": len(shard.row_N)}, "what was written last is read"


def test_a_teacher_without_a_say_is_refused():
    with pytest.raises(ConfigError, match="declares no scores"):
        teacher("click")
    with pytest.raises(ConfigError, match="shares no action") as error:
        teacher("like", click="p_click")
    assert "like: no logged score is declared" in error.value.got
    with pytest.raises(CheckpointError, match="no production that could teach"):
        Teacher(DistillConfig(source="production"), spec(), small.inputs(), None)


def test_a_live_teacher_is_left_out_where_it_learned_something_else():
    inputs = small.inputs(actions=("click", "like", "watch"))
    labels = {"click": "click", "like": "liked > 1"}
    manifest = SimpleNamespace(inputs=small.inputs(actions=("click", "like")), labels=labels)
    scorer = SimpleNamespace(
        bundle=SimpleNamespace(manifest=manifest, sha256="0" * 64),
        score=lambda *_: SimpleNamespace(score_N={"click": np.array([0.1, 0.2]), "like": np.array([0.3, 0.4])}),
    )
    taught = Teacher(DistillConfig(source="production"), spec(), inputs, scorer)
    assert taught.left_out == {"like": "production learned it with another definition", "watch": "production does not predict it"}
    got = taught.scores(pa.table({"user": [1, 2]}), None, 0)
    assert got[:, 0] == pytest.approx([0.1, 0.2]) and np.isnan(got[:, 1:]).all()
