import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.conftest import ROOT, real_log
from trainer.config import RetrainConfig, load
from trainer.errors import ConfigError, DataError
from trainer.next_item import run
from trainer.next_item.judge import judge, ranker_scorer
from trainer.next_item.sequences import read_sequences
from trainer.next_item.train import read_fitted
from trainer.next_item.units import TEST

CYCLE, WALK = 10, 7
SMALL = {
    "model.dim": 16, "model.heads": 1, "model.head_dim": 16, "model.layers": 1, "model.ffn_dim": 32, "model.dropout": 0.0,
    "fit.passes": 12, "fit.batch_targets": 30, "fit.progress": "false", "optimizer.lr": 0.01, "optimizer.embedding_lr": 0.01,
    "schedule.warmup_steps": 5, "next_item.top_k": 1, "next_item.validate_every": 12, "fit.ema_decay": 0.5, "fit.device": "cpu",
}  # fmt: skip


def configured(root, run_dir, **overrides):
    """The shipped experiment, made small."""
    with initialize_config_module("trainer.conf", version_base="1.3"):
        settings = {"data.root": root, "run_dir": run_dir, **SMALL, **overrides}
        composed = compose("retrain", ["experiment=ml1m", *(f"++{key}={value}" for key, value in settings.items())])
    return load(RetrainConfig, OmegaConf.to_container(composed, resolve=True))


def write(folder, users=30, walk=WALK):
    rows = [(user, (user + step) % CYCLE, step) for user in range(users) for step in range(walk)]
    user, item, position = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": user, "item_id": item, "seq_pos": position}), folder / "sasrec_order.parquet")
    return folder


def test_the_summary_says_what_was_found(tmp_path):
    summary = run(configured(write(tmp_path), tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["challenger"]["next_item"] == {"hr@1": 1.0, "ndcg@1": 1.0, "n": 30}
    assert found["baselines"]["popular"]["next_item"]["hr@1"] < 0.6
    assert found["objective"] == summary.objective == found["challenger"]["next_item_validation"]["ndcg@1"]
    assert found["cost"]["seed"] == 0 and found["cost"]["passes"] == 12 and found["cost"]["hardware"]
    assert found["data"]["judged_users"] == 30 and found["verdict"] is None


def test_the_written_weights_repeat_the_written_numbers(tmp_path):
    config = configured(write(tmp_path), tmp_path / "run", **{"fit.passes": 3})
    summary = run(config)
    sequences = read_sequences(tmp_path, config.next_item)
    fitted = read_fitted(tmp_path / "run" / "next_item")
    assert judge(ranker_scorer(fitted.ranker), sequences, TEST, 200, 1) == summary.challenger["next_item"]


def test_a_finished_training_is_kept_and_a_changed_one_is_not(tmp_path):
    write(tmp_path)
    first = run(configured(tmp_path, tmp_path / "run", **{"fit.passes": 2}))
    same = run(configured(tmp_path, tmp_path / "run", **{"fit.passes": 2}))
    other = run(configured(tmp_path, tmp_path / "run", **{"fit.passes": 2, "seed": 1}))
    assert [one.stages["train"].status for one in (first, same, other)] == ["done", "kept", "done"]
    assert same.challenger == first.challenger
    write(tmp_path, users=31)
    assert run(configured(tmp_path, tmp_path / "run", **{"fit.passes": 2, "seed": 1})).stages["train"].status == "done"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"fit.device": "ddp"}, "one device"),
        ({"warm_start.source": "production"}, "no production to start from"),
        ({"warm_start.dry_run": "true"}, "no use for this"),
        ({"warm_start.replay_share": 0.1}, "no use for this"),
        ({"model.hashed.author": 8}, "items alone"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(configured(write(tmp_path), tmp_path / "run", **overrides))


def test_users_with_two_events_cannot_be_judged(tmp_path):
    with pytest.raises(DataError, match="nobody can be judged"):
        run(configured(write(tmp_path, walk=2), tmp_path / "run"))


def test_the_canonical_file_has_the_published_numbers():
    found = read_sequences(real_log("ml-1m"), configured("x", "y").next_item)
    assert (found.users, found.items, found.events, int(found.judged_U.sum())) == (6040, 3416, 999_611, 6040)


def test_the_main_job_refuses_the_benchmark(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "retrain.py", "experiment=ml1m", f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and "scripts/train.py" in done.stderr
    assert not (tmp_path / "run").exists()
