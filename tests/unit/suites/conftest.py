"""A finished run of the main job made by hand: predictions, examples and a challenger whose scores are a feature times a number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from trainer.config import RegistryConfig, SuiteRunConfig
from trainer.errors import DataError
from trainer.gate import judge
from trainer.schema.examples import ExamplesManifest, PartitionRecord, examples_path, tail_path, write_manifest
from trainer.schema.hashing import sha256_file
from trainer.schema.plain import as_plain
from trainer.schema.policy import GatePolicy, RuleSet
from trainer.suites import Model

DAY = "2026-03-28"
CONF = Path(__file__).resolve().parents[3] / "conf"
POLICY = GatePolicy(**yaml.safe_load((CONF / "gate" / "refresh.yaml").read_text()))
COUNTRIES = ("DE", "FR", "TR")


def model(feature: str = "feature_truth", scale: float = 1.0, country: str | None = None, trained: tuple[str, ...] = ()) -> Model:
    """A model that reads one feature of the examples, times `scale` (in one country)."""

    def score(examples: pa.Table, tail: pa.Table, until_ms: int) -> dict[str, np.ndarray]:
        if feature not in examples.column_names:
            raise DataError("a feature is missing", where="examples", got=feature)
        assert set(examples["user"].to_pylist()) == set(tail["user"].to_pylist()), "every user comes with a history"
        here_N = np.ones(len(examples), bool) if country is None else np.asarray(examples["feature_country"].to_pylist()) == country
        return {"click": np.clip(np.where(here_N, scale, 1.0) * examples[feature].to_numpy(), 0, 1)}

    return Model(score, dict.fromkeys(trained, "hash"))


def write_run(folder: Path, challenger: Model, rows: int = 30_000, users: int = 3_000, seed: int = 0) -> Path:
    """Writes the examples of one day in two buckets, and what a run that judged them leaves behind."""
    rng = np.random.default_rng(seed)
    user_N = np.sort(rng.integers(0, users, rows))
    truth_N = 1 / (1 + np.exp(2.0 - rng.normal(0, 1, rows)))
    examples = pa.table({
        "user": user_N, "item": rng.integers(0, 500, rows), "request_time": 1_774_000_000_000 + np.arange(rows),
        "feature_truth": truth_N, "feature_country": rng.choice(COUNTRIES, rows, p=[0.5, 0.3, 0.2]),
    })  # fmt: skip
    tail = pa.table({"user": np.unique(user_N)})
    records, read = [], []
    for bucket in range(2):
        parts = [table.filter(pa.array(table["user"].to_numpy() % 2 == bucket)) for table in (examples, tail)]
        hashes = []
        for part, place in zip(parts, (examples_path, tail_path), strict=True):
            path = place(folder / "examples", DAY, bucket)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(part, path)
            hashes.append(sha256_file(path))
        records.append(PartitionRecord(
            day=DAY, bucket=bucket, key="k", rows=len(parts[0]), events=0, examples_sha256=hashes[0], tail_sha256=hashes[1]
        ))  # fmt: skip
        read.append(parts)
    write_manifest(folder / "examples", ExamplesManifest(
        declarations_sha256="", user_buckets=2, max_history=4, numeric={}, categorical={}, item_features=[], token_features=[],
        source_days={DAY: "hash"}, partitions=records,
    ))  # fmt: skip
    _judge(folder / "run", challenger, read, rng)
    return folder / "run"


def _judge(run_dir: Path, challenger: Model, read: list[list[pa.Table]], rng: np.random.Generator) -> None:
    everything = pa.concat_tables([part[0] for part in read])
    scores = {name: np.concatenate([one.score(*part, 0)["click"] for part in read]) for name, one in (("c", challenger), ("p", model()))}
    label_N = (rng.random(len(everything)) < everything["feature_truth"].to_numpy()).astype(float)
    table = pa.table({
        "user": everything["user"], "item": everything["item"], "time": everything["request_time"],
        "country": everything["feature_country"],
        "label_click": label_N, "production_click": scores["p"], "challenger_click": scores["c"],
        "value_production": scores["p"], "value_challenger": scores["c"],
    })  # fmt: skip
    order_N = np.argsort(table["user"].to_numpy(), kind="stable")
    run_dir.mkdir()
    table = table.take(pa.array(order_N))
    pq.write_table(table, run_dir / "predictions.parquet", write_page_checksum=True)
    np.save(run_dir / "holdout_order.npy", order_N)
    (run_dir / "summary.json").write_text(json.dumps({"data": {"holdout": [DAY]}}))
    (run_dir / "config.yaml").write_text(yaml.safe_dump({
        "as_of": DAY, "seed": 0, "data": {"timezone": "UTC", "actions": {"click": {"weight": 1.0}}}, "value": {"weights": None},
        "rebuild": {"root": str(run_dir.parent / "examples")}, "gate": as_plain(POLICY), "rules": as_plain(RuleSet()),
    }))  # fmt: skip
    (run_dir / "challenger").mkdir()
    (run_dir / "challenger" / "manifest.json").write_text("{}")
    (run_dir / "verdict.json").write_text(json.dumps(as_plain(judge(table, POLICY, RuleSet(), value_weights={"click": 1.0}))))


@pytest.fixture(scope="session")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A challenger equal to production."""
    return write_run(tmp_path_factory.mktemp("good"), model())


@pytest.fixture(scope="session")
def bad_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A challenger that shouts in Turkey."""
    return write_run(tmp_path_factory.mktemp("bad"), model(scale=1.5, country="TR"))


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., SuiteRunConfig]:
    """A command on the suites of one registry."""

    def make(action: str, **settings) -> SuiteRunConfig:
        return SuiteRunConfig(registry=RegistryConfig(root=str(tmp_path / "registry")), action=action, **settings)

    return make
