"""Golden rows out of a run: the judged rows, and everything that scoring them will ever need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from trainer.config import load
from trainer.errors import DataError
from trainer.schema.examples import ExamplesManifest, read_manifest, read_partition, read_tail
from trainer.schema.hashing import sha256_file
from trainer.schema.plain import from_plain
from trainer.schema.policy import GatePolicy, RuleSet
from trainer.schema.predictions import PRODUCTION
from trainer.schema.suite import SuiteSource
from trainer.schema.time import day_end_ms
from trainer.schema.verdict import Verdict
from trainer.suites.store import GoldenRows

_AGAIN = "take golden rows right after the run, before its examples are rebuilt for another day"


@dataclass(frozen=True)
class JudgedRun:
    """What golden rows are taken from.

    Attributes:
        path: The run's folder.
        as_of: Its cut-off day.
        known_until_ms: Its knowledge cut-off.
        holdout: The judged days.
        root: Root of its examples.
        policy: Margins it was judged by.
        rules: Rules it was judged by.
        predictions: The judged table.
        order_N: Row of each prediction in the examples of the holdout, one partition after the other.
        verdict: What was decided, if anything.
        challenger: Hash of the challenger's manifest.
        weights: Action -> weight of the value function.
        seed: Seed of the run.
    """

    path: Path
    as_of: str
    known_until_ms: int
    holdout: list[str]
    root: Path
    policy: GatePolicy
    rules: RuleSet
    predictions: pa.Table
    order_N: np.ndarray
    verdict: Verdict | None
    challenger: str
    weights: dict[str, float]
    seed: int


def read_run(path: Path) -> JudgedRun:
    """Reads a finished run of the main job.

    Raises:
        DataError: If something that the rows need is not there.
    """
    try:
        config: dict[str, Any] = yaml.safe_load((path / "config.yaml").read_text())
        summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
        verdict = path / "verdict.json"
        return JudgedRun(
            path=path,
            as_of=config["as_of"],
            known_until_ms=day_end_ms(config["as_of"], config["data"]["timezone"]),
            holdout=summary["data"]["holdout"],
            root=Path(config["rebuild"]["root"]),
            policy=load(GatePolicy, config["gate"]),
            rules=load(RuleSet, config["rules"]),
            predictions=pq.read_table(path / "predictions.parquet", page_checksum_verification=True),
            order_N=np.load(path / "holdout_order.npy", allow_pickle=False),
            verdict=from_plain(Verdict, json.loads(verdict.read_text())) if verdict.exists() else None,
            challenger=sha256_file(path / "challenger" / "manifest.json"),
            weights=config["value"]["weights"] or {name: action["weight"] for name, action in config["data"]["actions"].items()},
            seed=config["seed"],
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, yaml.YAMLError) as error:
        raise DataError(
            "no golden rows can be taken from this run", where=path, got=f"{type(error).__name__}: {error}",
            expected="the run_dir of a finished run of scripts/retrain.py", remedy=_AGAIN,
        ) from error  # fmt: skip


def whole_users(user_N: np.ndarray, chosen_N: np.ndarray, most: int) -> np.ndarray:
    """Thins chosen rows out by whole users, so that intervals stay those of users; the choice depends on ids alone.

    Args:
        user_N: User of every row, as text.
        chosen_N: Which rows are wanted.
        most: Rows to keep at most, at least one user.

    Returns:
        Which rows are kept.
    """
    users, code_N = np.unique(user_N[chosen_N], return_inverse=True)
    rows_U = np.bincount(code_N, minlength=len(users))
    order_U = sorted(range(len(users)), key=lambda u: hashlib.sha256(str(users[u]).encode()).digest())
    fits = np.cumsum(rows_U[order_U]) <= most
    kept = np.array(order_U)[: max(1, int(fits.sum()))] if len(users) else np.zeros(0, int)
    found_N = chosen_N.copy()
    found_N[chosen_N] = np.isin(code_N, kept)
    return found_N


def capture(run: JudgedRun, chosen_N: np.ndarray) -> tuple[GoldenRows, SuiteSource]:
    """Copies rows with all that scoring needs: every row and the history of their users on those days.

    Args:
        run: The run.
        chosen_N: Judged rows, of the run's predictions.

    Raises:
        DataError: If nothing is chosen, production has no scores, or the examples are not those of the run any more.
    """
    rows = run.predictions.filter(pa.array(chosen_N))
    if not len(rows):
        raise DataError("no row is chosen", where=run.path / "predictions.parquet", remedy="loosen where=...")
    if not any(name.startswith(PRODUCTION) for name in rows.column_names):
        raise DataError(
            "golden rows compare with production, and this run had none", where=run.path, remedy="take them from a run with a live model"
        )
    manifest = read_manifest(run.root)
    parts, position_N = _parts(run, manifest, run.order_N[chosen_N])
    golden = GoldenRows(rows, pa.array(position_N), parts)
    _check_aligned(golden, run.root)
    return golden, SuiteSource(
        as_of=run.as_of, known_until_ms=run.known_until_ms, days={day: manifest.source_days[day] for day in run.holdout},
        rows=len(rows), users=pc.count_distinct(rows["user"]).as_py(), challenger=run.challenger,
    )  # fmt: skip


def _parts(run: JudgedRun, manifest: ExamplesManifest, row_N: np.ndarray) -> tuple[list[tuple[pa.Table, pa.Table]], np.ndarray]:
    """Cuts the users' rows out of each partition; returns where each chosen row lies in what was cut out."""
    parts, position_N, begin, cut = [], np.full(len(row_N), -1), 0, 0
    for examples, tail in _partitions(run, manifest):
        inside_N = (row_N >= begin) & (row_N < begin + len(examples))
        if inside_N.any():
            local_N = row_N[inside_N] - begin
            users = pc.unique(examples["user"].take(pa.array(local_N)))
            kept_M = np.asarray(pc.is_in(examples["user"], value_set=users))
            position_N[inside_N] = cut + (np.cumsum(kept_M) - 1)[local_N]
            parts.append((examples.filter(pa.array(kept_M)), tail.filter(pc.is_in(tail["user"], value_set=users))))
            cut += int(kept_M.sum())
        begin += len(examples)
    if (position_N < 0).any():
        raise DataError("the examples hold fewer rows than the run judged", where=run.root, got=begin, remedy=_AGAIN)
    return parts, position_N


def _partitions(run: JudgedRun, manifest: ExamplesManifest) -> Iterator[tuple[pa.Table, pa.Table]]:
    for day in run.holdout:
        for bucket in range(manifest.user_buckets):
            yield read_partition(run.root, manifest, day, bucket), read_tail(run.root, manifest, day, bucket)


def _check_aligned(golden: GoldenRows, root: Path) -> None:
    """The examples may have been rebuilt since: a row must still be the row that was judged."""
    examples = pa.concat_tables([part[0] for part in golden.parts], promote_options="default").take(golden.position_N)
    for ours, theirs in (("user", "user"), ("item", "item"), ("time", "request_time")):
        if golden.rows[ours].to_pylist() != examples[theirs].to_pylist():
            raise DataError("the examples are not those that the run judged", where=root, got=f"another {ours}", remedy=_AGAIN)
