"""Run folders as the pipeline leaves them: seeded predictions, judged by the real gate, measured by the real metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from trainer.gate import judge, write_verdict
from trainer.metrics import evaluate_action
from trainer.schema.plain import as_plain
from trainer.schema.policy import GatePolicy, RuleSet, ThresholdRule
from trainer.schema.summary import StageRecord, Summary
from trainer.schema.time import add_days
from trainer.schema.verdict import Verdict

AS_OF = "2022-05-04"
ACTIONS = {"is_click": "binary", "long_view": "binary", "watch_s": "duration"}
CHANGES = {
    "config": {"model.layers": [1, 2]}, "code_version": ["0.1.0", "0.1.1"], "labels": {}, "features_added": ["author_rate_7d", "tab"],
    "features_removed": [], "days_added": ["2022-05-03"],
}  # fmt: skip
COUNTRIES = ("BR", "CN", "DE", "IN", "US")


@dataclass(frozen=True)
class World:
    """How a fixture differs from a plain promotion.

    Attributes:
        rows: Rows of the holdout.
        skill: How much of the truth the challenger sees; production sees 0.85 of it.
        noise: Standard deviation of what it sees besides; production's is 0.3.
        scale: Factor on the challenger's odds: 1 is calibrated.
        bad_country: Country in which the challenger guesses.
        production: Whether there is a production to compare with.
        names: Prefix of ids, to plant hostile ones.
    """

    rows: int = 12_000
    skill: float = 0.88
    noise: float = 0.1
    scale: float = 1.0
    bad_country: str | None = None
    production: bool = True
    names: dict[str, str] = field(default_factory=dict)


def predictions(world: World, seed: int = 7) -> pa.Table:
    """Users with tastes, items with quality, three actions, and models that see a share of the truth."""
    rng = np.random.default_rng(seed)
    n, users = world.rows, max(world.rows // 14, 2)
    user_N, item_N = rng.integers(0, users, n), (rng.pareto(1.2, n) * 20).astype(int) % 2_000
    taste_U, quality_I = rng.normal(0, 0.7, users), rng.normal(0, 0.9, 2_000)
    truth_N = -1.1 + taste_U[user_N] + quality_I[item_N]
    country_N = np.array(COUNTRIES)[(user_N * 7919) % len(COUNTRIES)]
    country_N = np.array([world.names.get(name, name) for name in country_N.tolist()])
    columns: dict[str, Any] = {
        "user": [f"u{user}" for user in user_N.tolist()], "item": item_N, "time": 1_651_600_000_000 + rng.integers(0, 86_400_000, n),
        "country": country_N, "new_item": rng.random(n) < 0.05, "weight": np.ones(n),
    }  # fmt: skip
    for index, (action, kind) in enumerate(ACTIONS.items()):
        scores = _scores(world, truth_N - 0.8 * index, kind, country_N, rng)
        expected_N = scores.pop("truth")
        label_N = (rng.random(n) < expected_N).astype(float) if kind == "binary" else np.round(rng.exponential(expected_N), 1)
        label_N[rng.random(n) < 0.02] = np.nan
        columns[f"label_{action}"] = pa.array(label_N, from_pandas=True)
        columns |= {f"{model}_{action}": score_N for model, score_N in scores.items()}
    for model in ("production", "challenger"):
        if f"{model}_is_click" in columns:
            columns[f"value_{model}"] = columns[f"{model}_is_click"] + 0.5 * columns[f"{model}_long_view"]
    return pa.table(columns)


def _scores(world: World, truth_N: np.ndarray, kind: str, country_N: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What each model makes of the truth; noise is shrunk away, so that scores are calibrated."""

    def seen(skill: float, noise: float = 0.12) -> np.ndarray:
        center = truth_N.mean()
        return center + skill * (truth_N - center) + rng.normal(0, noise, len(truth_N))

    def out(logit_N: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-logit_N)) if kind == "binary" else np.exp(logit_N + 2.5)

    ours_N = seen(world.skill, world.noise) + math.log(world.scale)
    if world.bad_country:
        ours_N = np.where(country_N == world.bad_country, rng.permutation(ours_N), ours_N)
    models = {"truth": out(truth_N), "challenger": out(ours_N), "counting": out(seen(0.55)), "lightgbm": out(seen(0.75))}
    return models | ({"production": out(seen(0.85, 0.3))} if world.production else {})


def evaluation(table: pa.Table) -> dict[str, Any]:
    """``eval.json`` of a table."""
    user_N = np.unique(table["user"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    country_N, codes_N = np.unique(table["country"].to_numpy(zero_copy_only=False), return_inverse=True)
    report: dict[str, Any] = {}
    for model in ("challenger", "production", "counting", "lightgbm"):
        for action, kind in ACTIONS.items():
            if f"{model}_{action}" not in table.column_names:
                continue
            label_N, score_N = (table[f"{name}_{action}"].to_numpy() for name in ("label", model))
            [overall] = evaluate_action(label_N, score_N, user_N, kind=kind, bootstrap=20)
            groups = evaluate_action(label_N, score_N, user_N, kind=kind, group_N=codes_N, groups=len(country_N), bootstrap=0)
            slices = {str(name): {**group.plain(), "intervals": group.intervals()} for name, group in zip(country_N, groups, strict=True)}
            report.setdefault(model, {})[action] = {
                **overall.plain(), "intervals": overall.intervals(), "notes": overall.notes, "slices": {"country": slices},
            }  # fmt: skip
    return report


def scan(days: int = 28) -> dict[str, Any]:
    """``scan.json`` with a masked feature, a refused day, duplicates and a hostile file name."""
    rng = np.random.default_rng(3)
    found = {}
    for index in range(days):
        day, rows, faults = add_days(AS_OF, index - days + 1), int(rng.integers(15_000, 19_000)), []
        duplicates, late = int(rng.integers(200, 600)), int(rng.integers(50, 200))
        faults.append(
            {"kind": "duplicate_rows", "feature": None, "file": None, "rows": duplicates, "evidence": f"{duplicates} deliveries repeat"}
        )
        status, dropped = "ok", 0
        if index in (5, 6, 19):
            status = "masked"
            faults.append(
                {
                    "kind": "out_of_range",
                    "feature": "duration_ms",
                    "file": "part-0.parquet",
                    "rows": 310,
                    "evidence": "maximum 4e12, allowed 3.6e6",
                }
            )
        if index == 12:
            status = "masked"
            faults.append(
                {
                    "kind": "bit_flip_page",
                    "feature": "tab",
                    "file": "<script>alert(1)</script>.parquet",
                    "rows": 9_000,
                    "evidence": "page CRC differs",
                }
            )
        if index == 16:
            status, dropped = "refused", rows
            faults.append(
                {
                    "kind": "truncated_file",
                    "feature": None,
                    "file": "part-1.parquet",
                    "rows": rows,
                    "evidence": "footer missing, 3 of 4 files",
                }
            )
        counts = {
            "rows": rows,
            "used": rows - dropped - duplicates if not dropped else 0,
            "dropped": dropped,
            "duplicates": 0 if dropped else duplicates,
            "late": late,
        }
        found[day] = {"status": status, "faults": faults, "masked_columns": ["hour"] if index == 19 else [], "rows": counts}
    return {"version": 1, "days": found}


def config() -> dict[str, Any]:
    """``config.yaml``: only what the report looks at, and a little more."""
    actions = {name: {"expression": name, "kind": kind, "gated": name != "watch_s"} for name, kind in ACTIONS.items()}
    features = {name: {"kind": "categorical"} for name in ("tab", "hour", "author", "music", "tag")} | {"duration_ms": {"kind": "numeric"}}
    return {
        "as_of": AS_OF, "data": {"name": "kuairand", "actions": actions, "features": features}, "model": {"name": "sasrec", "dim": 64},
        "optimizer": {"lr": 0.001, "clip_norm": 1.0}, "gate": {"name": "refresh", "confidence": 0.95},
        "registry": {"root": "registry", "product": "feed"},
    }  # fmt: skip


def steps(count: int = 1_200) -> list[dict[str, Any]]:
    """A falling loss with noise, two skipped steps, and a re-warm-up."""
    rng = np.random.default_rng(5)
    lines = []
    for step in range(count):
        bad = step in (350, 351)
        loss = float("nan") if bad else 0.62 + 0.25 * math.exp(-step / 150) + float(rng.normal(0, 0.03))
        norm = float("inf") if bad else float(rng.lognormal(-0.3, 0.5))
        lines.append({"step": step, "loss": loss, "lr": min(1.0, (step + 1) / 60), "grad_norm": norm, "skipped": bad})
    return lines


def transfer() -> dict[str, Any]:
    """``transfer.json`` of a challenger with one layer more."""
    move = {"axis": "vocab:item", "kept": 7_202, "new": 381, "dropped": 0, "coverage": 0.993, "fill": "oov"}
    fates = [
        {
            "target": "item.weight",
            "source": "item.weight",
            "fate": "row-remapped",
            "shape": [7583, 64],
            "moves": [move],
            "reason": "rows by id",
        },
        {
            "target": "blocks.0.attention.qkv.weight",
            "source": "blocks.0.attention.qkv.weight",
            "fate": "copied",
            "shape": [192, 64],
            "moves": [],
            "reason": "",
        },
        {
            "target": "blocks.1.attention.qkv.weight",
            "source": None,
            "fate": "inserted as identity",
            "shape": [192, 64],
            "moves": [],
            "reason": "new layer",
        },
        {"target": None, "source": "heads.old.weight", "fate": "dropped", "shape": [1, 64], "moves": [], "reason": "no such action"},
    ]
    vocabularies = {
        "item": {"kept": 7_202, "new": 381, "dropped": 0, "traffic_kept": 0.993},
        "author": {"kept": 900, "new": 12, "dropped": 3, "traffic_kept": 1.0},
    }
    return {
        "exact": True,
        "source": "9f2c",
        "elements": {"row-remapped": 485_312, "copied": 1_230_000, "inserted as identity": 98_304, "dropped": 64},
        "vocabularies": vocabularies,
        "parity": {"rows": 1_800, "max_difference": 2.1e-6, "max_output": 5.2, "bound": 5.2e-5, "exact": True},
        "fates": fates,
    }


def downstream() -> dict[str, Any]:
    """``downstream.json``."""

    def arm(features: int, auc: float, ne: float) -> dict[str, Any]:
        return {
            "features": features,
            "trees": [120, 133],
            "auc": {"value": auc, "low": auc - 0.004, "high": auc + 0.004},
            "ne": {"value": ne, "low": ne - 0.006, "high": ne + 0.006},
            "ratio": {"value": 1.003, "low": 0.98, "high": 1.02},
        }

    return {
        "version": 1, "status": "ok", "reason": None, "action": "is_click", "rows": 16_000, "users": 2_800, "positives": 5_100,
        "arms": {"without": arm(24, 0.731, 0.869), "with": arm(153, 0.744, 0.851)},
        "lift": {"auc": {"value": 0.013, "low": 0.009, "high": 0.017}, "ne": {"value": -0.018, "low": -0.024, "high": -0.012}},
        "importance": {"dot": 0.31, "item_rate": 0.2, "user_12": 0.04}, "seed": 0, "final": "The live final model stays.",
        "ablation": {
            "scalars": {"auc": {"value": 0.011, "low": 0.007, "high": 0.015}, "ne": {"value": -0.015, "low": -0.021, "high": -0.009}},
            "vectors": {"auc": {"value": 0.001, "low": -0.003, "high": 0.005}, "ne": {"value": 0.002, "low": -0.002, "high": 0.006}},
        },
        "slices": {
            "tab=1": {"without": {"value": 0.96, "low": 0.93, "high": 0.99}, "with": {"value": 1.01, "low": 0.98, "high": 1.04}},
        },
    }  # fmt: skip


def embeddings() -> dict[str, Any]:
    """``embeddings/manifest.json``."""
    shard = {"path": "user/part-00000.parquet", "rows": 27_285, "bytes": 7_100_000, "sha256": "00"}
    return {
        "version": 1, "space_id": "a41c09", "producer": "77aa", "parent": "9f2c", "as_of": AS_OF, "dim": 64, "dtype": "float32",
        "entities": {"user": 27_285, "item": 7_583}, "coverage": {"user": 0.974, "item": 0.993},
        "shards": {"user": [shard], "item": [shard]},
        "norms": {"user": {"min": 0.21, "mean": 1.9, "max": 4.4}, "item": {"min": 0.4, "mean": 1.2, "max": 3.1}},
    }  # fmt: skip


def summary(verdict: Verdict | None, report: dict[str, Any], warm: bool) -> Summary:
    """``summary.json``."""
    stages = {
        "scan": StageRecord(seconds=6.2, rows=480_000, status="kept", detail="28 days, 4 masked, 1 refused"),
        "rebuild": StageRecord(seconds=41.5, rows=462_000, status="done", detail="27 features, 4,739 duplicates removed"),
        "train": StageRecord(seconds=133.0, rows=445_000, status="done", detail="1,200 steps, last loss 0.6180"),
        "evaluate": StageRecord(seconds=12.9, rows=40_000, status="done", detail="NE of is_click: challenger 0.8421"),
    }
    days = list(scan()["days"])
    return Summary(
        verdict=verdict.verdict if verdict else None, as_of=AS_OF, status="done", reason=verdict.reason if verdict else "", stages=stages,
        data={"read": 464_956, "train": days[:-1], "holdout": days[-1:], "seen": [], "refused": [], "unripe": []},
        challenger=report["challenger"], production=report.get("production"),
        changes=CHANGES if warm else {"parent": "none: nothing is live yet"},
        versions={"production": "2022-05-03-1a2b" if warm else None, "challenger": "2022-05-04-9c8d"},
        cost={"seconds": 193.6, "targets_per_second": 3345.2, "parameters": 1_813_616},
        release={"sentence": "sealed and live as 2022-05-04-9c8d"} if verdict and verdict.verdict == "PROMOTE" else None,
    )  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(folder: Path, world: World, *, policy: GatePolicy | None = None, rules: RuleSet | None = None, judged: bool = True) -> Path:
    """Writes the folder of a finished run of the main job, or with ``judged=False`` of training alone."""
    folder.mkdir(parents=True, exist_ok=True)
    table = predictions(world)
    report = evaluation(table)
    verdict = judge(table, policy or GatePolicy(name="refresh"), rules or RuleSet()) if judged else None
    pq.write_table(table, folder / "predictions.parquet")
    if verdict:
        write_verdict(verdict, folder)
        write_json(folder / "downstream.json", downstream())
        write_json(folder / "embeddings" / "manifest.json", embeddings())
    if world.production:
        write_json(folder / "transfer.json", transfer())
    write_json(folder / "eval.json", report)
    write_json(folder / "scan.json", scan())
    write_json(folder / "summary.json", as_plain(summary(verdict, report, world.production)))
    (folder / "config.yaml").write_text(yaml.safe_dump(config(), sort_keys=False))
    (folder / "challenger-fit").mkdir()
    (folder / "challenger-fit" / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps()))
    return folder


def write_gate_run(folder: Path, world: World) -> Path:
    """Writes what ``scripts/gate.py`` leaves: a verdict and the table it was pointed at."""
    folder.mkdir(parents=True, exist_ok=True)
    table = predictions(world)
    pq.write_table(table, folder / "predictions.parquet")
    write_verdict(judge(table, GatePolicy(name="launch", prove_within=1.0), RuleSet()), folder)
    return folder


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "promote": lambda folder: write_run(folder, World(), rules=RuleSet(thresholds={"push": ThresholdRule(score="is_click", at_least=0.4)})),
    "reject": lambda folder: write_run(folder, World(skill=0.6, scale=1.5, bad_country="DE")),
    "first": lambda folder: write_run(folder, World(production=False), policy=GatePolicy(name="refresh", first="promote")),
    "train": lambda folder: write_run(folder, World(), judged=False),
    "gate": lambda folder: write_gate_run(folder, World(skill=0.82)),
}


HOSTILE = "</td></style><script>alert('x')</script>&\"'"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which slices, actions, files, sentences and settings try to break out of the page."""
    folder = write_run(tmp_path_factory.mktemp("hostile") / "run", World(rows=6_000, scale=2.0, names={"DE": HOSTILE}))
    table = pq.read_table(folder / "predictions.parquet")
    pq.write_table(
        table.rename_columns([name.replace("long_view", HOSTILE) for name in table.column_names]), folder / "predictions.parquet"
    )
    for name in ("eval.json", "scan.json", "summary.json", "transfer.json", "downstream.json"):
        content = (folder / name).read_text().replace("long_view", json.dumps(HOSTILE)[1:-1]).replace("item", json.dumps(HOSTILE)[1:-1])
        (folder / name).write_text(content)
    damaged = json.loads((folder / "scan.json").read_text())
    next(iter(damaged["days"].values()))["faults"].append(
        {"kind": HOSTILE, "feature": HOSTILE, "file": "\ud800" + HOSTILE, "rows": 1, "evidence": HOSTILE}
    )
    write_json(folder / "scan.json", damaged)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"name": HOSTILE}, "registry": {"product": HOSTILE}}))
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a variant, rendered by whoever asks first."""
    root = tmp_path_factory.mktemp("runs")
    return {name: write(root / name) for name, write in VARIANTS.items()}
