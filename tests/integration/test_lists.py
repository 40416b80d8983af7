"""Two nights of the main job on a log with lists and vectors, in its rows and beside it, some of them damaged on the second day."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.integration.conftest import configure
from trainer import pipeline
from trainer.checkpoint import read_bundle
from trainer.config import ScoreConfig, load
from trainer.errors import DataError
from trainer.schema.examples import FEATURE, read_manifest, read_partition
from trainer.schema.predictions import CHALLENGER
from trainer.schema.serving import FOLDER, read_serving_manifest
from trainer.stages.scoring import score

pytestmark = pytest.mark.integration

DAMAGED, NIGHTS = "2026-03-06", ("2026-03-05", "2026-03-07")
BAD = 25  # damaged cells of each column


def with_lists(table: pa.Table, damaged: bool) -> pa.Table:
    """Tags of the event, in an order that differs from row to row, and the user's topic weights."""
    rng = np.random.default_rng(len(table))
    item, user = table["item_id"].to_numpy(), table["user_id"].to_numpy()
    tags = [rng.permutation([f"t{(one + k * k) % 30}" for k in range(one % 6)]).tolist() for one in item.tolist()]
    taste = [np.cos(one * np.arange(1, 4)).astype(np.float32).tolist() for one in user.tolist()]
    if damaged:
        tags[:BAD] = [["t1", None]] * BAD
        taste[:BAD] = [[0.5] * 2, [0.5] * 4, [0.5, None, 0.5], [], [0.5]] * (BAD // 5)
    return table.append_column("tags", pa.array(tags, pa.list_(pa.string()))).append_column(
        "taste", pa.array(taste, pa.list_(pa.float32()))
    )


@pytest.fixture(scope="module")
def log(simulated, tmp_path_factory):
    root = tmp_path_factory.mktemp("lists") / "log"
    for path in [*Path(simulated, "events").rglob("*.parquet"), *Path(simulated).glob("*.parquet")]:
        place = root / path.relative_to(simulated)
        place.parent.mkdir(parents=True, exist_ok=True)
        table = pq.read_table(path, partitioning=None)
        if path.parent.name.startswith("dt="):
            table = with_lists(table, path.parent.name.endswith(DAMAGED))
        elif path.name == "items.parquet":
            item = table["item_id"].to_numpy()
            table = table.append_column("genres", pa.array([f"[{one % 4}, {4 + one % 3}]" for one in item.tolist()]))
            content = pa.array(np.sin(np.outer(item, [1.0, 2.0, 3.0, 4.0])).astype(np.float32).ravel())
            table = table.append_column("content", pa.FixedSizeListArray.from_arrays(content, 4))
        pq.write_table(table, place, write_page_checksum=True)
    return root


def declared(log, root):
    return [
        "data=simulated", f"data.root={log}", f"registry.root={root / 'registry'}", f"rebuild.root={root / 'rebuild'}",
        "data.layout.manifest=null", "data.features.tags={kind: list, width: 4, token: true}",
        "data.features.taste={kind: vector, width: 3}", "data.side_tables.items.columns.genres={kind: list, width: 2}",
        "data.side_tables.items.columns.content={kind: vector, width: 4}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def nights(log, tmp_path_factory):
    root = tmp_path_factory.mktemp("nights")
    plain = [one for one in declared(log, root) if "genres" not in one and "taste" not in one]
    for night, data in ((NIGHTS[0], plain), (NIGHTS[1], declared(log, root))):
        pipeline.retrain(
            configure(
                *data, f"run_dir={root / night}", f"as_of={night}", "gate.first=promote", "release.auto=true", "model.max_history=512",
                f"serving.enabled={str(night == NIGHTS[1]).lower()}", "serving.format=[torch_export]", "serving.requests=2",
                "serving.candidates=5", "downstream.enabled=true",
            )
        )  # fmt: skip
    return root


def summary(nights, night):
    return json.loads((nights / night / "summary.json").read_text())


def test_the_second_night_grows_by_a_list_and_a_vector_exactly(nights):
    second = summary(nights, NIGHTS[1])
    assert second["status"] == "done"
    transfer = json.loads((nights / NIGHTS[1] / "transfer.json").read_text())
    assert transfer["parity"]["exact"] and transfer["parity"]["max_difference"] <= transfer["parity"]["bound"], transfer["parity"]
    assert {"genres", "taste"} <= set(second["changes"]["features_added"]) and second["changes"]["features_removed"] == []
    assert not any("[" in name for name in second["changes"]["features_added"])
    bundle = read_bundle(nights / NIGHTS[1] / "challenger")
    tables = [name for name in bundle.manifest.axes if "feature:tags" in name]
    assert sorted(tables) == ["context.categorical.tables.feature:tags.weight", "embedding.token_features.tables.feature:tags.weight"]
    assert "embedding.item_features.tables.feature:genres.weight" in bundle.manifest.axes


def test_damaged_cells_are_masked_and_told_by_the_column_and_no_row_is_lost(nights):
    scan = json.loads((nights / NIGHTS[1] / "scan.json").read_text())
    faults = [fault for fault in scan["days"][DAMAGED]["faults"] if fault["kind"] == "list_damage"]
    assert {(fault["feature"], fault["rows"] % BAD) for fault in faults} == {("tags", 0), ("taste", 0)}
    assert scan["days"][DAMAGED]["status"] == "masked"
    assert not any("[" in (fault["feature"] or "") for day in scan["days"].values() for fault in day["faults"])
    manifest = read_manifest(nights / "rebuild")
    rows = pa.concat_tables([read_partition(nights / "rebuild", manifest, DAMAGED, bucket) for bucket in range(manifest.user_buckets)])
    bad = rows[FEATURE + "taste[0]"].null_count
    assert 0 < bad <= BAD * len(faults) and all(rows[FEATURE + f"taste[{place}]"].null_count == bad for place in range(3))
    assert rows[FEATURE + "content[3]"].null_count == 0 and rows[FEATURE + "genres[1]"].null_count == 0


@pytest.fixture(scope="module")
def rows(nights, log):
    """The judged rows as a caller has them: lists and vectors whole, the lists in another order."""
    manifest = read_manifest(nights / "rebuild")
    parts = [read_partition(nights / "rebuild", manifest, NIGHTS[1], bucket) for bucket in range(manifest.user_buckets)]
    table = pa.concat_tables(parts)
    known = {name: table[FEATURE + name] for name in ("tab", "country", "device", "duration")}
    wide = {name: list(zip(*(table[f"{FEATURE}{name}[{place}]"].to_pylist() for place in range(width)), strict=True))
            for name, width in (("tags", 4), ("taste", 3))}  # fmt: skip
    tags = pa.array([[tag for tag in reversed(row) if tag is not None] for row in wide["tags"]], pa.list_(pa.string()))
    taste = pa.array([None if None in row else list(row) for row in wide["taste"]], pa.list_(pa.float32()))
    return pa.table({"user": table["user"], "item": table["item"], "time": table["request_time"], **known, "tags": tags, "taste": taste})


def scored(nights, log, table):
    pq.write_table(table, nights / "rows.parquet")
    data = [f"++{one}" if "." in one.split("=")[0] else one for one in declared(log, nights)]
    values = [f"input={nights / 'rows.parquet'}", f"out={nights / 'scores.parquet'}", *data,
              "++rebuild.user_buckets=2", "++rebuild.workers=1", "++scan.workers=1",
              f"++bundle={nights / NIGHTS[1] / 'challenger'}"]  # fmt: skip
    with initialize_config_module("trainer.conf", version_base="1.3"):
        score(load(ScoreConfig, OmegaConf.to_container(compose("score", values), resolve=True)))
    return pq.read_table(nights / "scores.parquet")


def test_rows_are_scored_as_they_were_judged_whatever_the_order_of_their_lists(nights, log, rows):
    predictions = pq.read_table(nights / NIGHTS[1] / "predictions.parquet")
    keys = [list(zip(t["user"].to_pylist(), t["item"].to_pylist(), t["time"].to_pylist(), strict=True)) for t in (rows, predictions)]
    got = dict(zip(keys[0], scored(nights, log, rows)["score_click"].to_pylist(), strict=True))
    expected = dict(zip(keys[1], predictions[CHALLENGER + "click"].to_pylist(), strict=True))
    assert len(got) == len(expected) > 100
    assert max(abs(got[key] - expected[key]) for key in expected) < 1e-5


def test_rows_with_a_vector_of_another_width_are_refused(nights, log, rows):
    place = rows.column_names.index("taste")
    with pytest.raises(DataError, match="not what is declared") as error:
        scored(nights, log, rows.set_column(place, "taste", pa.array([[0.5] * 2] * len(rows))))
    assert "vectors of 3 numbers" in str(error.value.got)


def test_the_artefact_says_which_column_is_which_value_and_agrees_with_the_ranker(nights):
    checks = json.loads((nights / NIGHTS[1] / "verdict.json").read_text())["checks"]
    assert next(check for check in checks if check["name"] == "serving_parity")["outcome"] == "pass"
    columns = {entry.name: entry.columns for entry in read_serving_manifest(nights / NIGHTS[1] / FOLDER).inputs}
    for name in ("token_features", "categorical"):
        assert [column for column in columns[name] if column.startswith("tags")] == [f"tags[{place}]" for place in range(4)]
    assert columns["item_features"][-2:] == ["genres[0]", "genres[1]"]
    assert {f"content[{place}]" for place in range(4)} <= set(columns["numeric"])
