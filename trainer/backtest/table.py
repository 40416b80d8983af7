"""The succession table: gaps on the same rows, with intervals, and compute until an arm is level."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.backtest.holdout import KEYS, arranged, ne_of
from trainer.backtest.measures import Step, compute_until
from trainer.backtest.meter import Point
from trainer.config import BacktestConfig
from trainer.errors import DataError
from trainer.metrics import Estimate, Rows, auc, interval, rank_correlation
from trainer.next_item.run import hardware
from trainer.schema.files import write_text
from trainer.schema.plain import as_plain
from trainer.schema.succession import CURVES_PARQUET, CURVES_SCHEMA, SUCCESSION_JSON, ArmResult, Interval, Succession


@dataclass(frozen=True)
class Night:
    """What one arm and seed did in one night.

    Attributes:
        arm: Name.
        seed: Seed.
        day: Judged day.
        flops: Operations spent in earlier nights.
        seconds: Seconds of training in earlier nights.
        points: Its learning curve; the last point is its end.
        scores: Judged rows with the scores of its end.
    """

    arm: str
    seed: int
    day: str
    flops: int
    seconds: float
    points: list[Point]
    scores: pa.Table


def succession_of(config: BacktestConfig, nights: Sequence[Night]) -> Succession:
    """Compares every arm with the baseline and the reference, on the same rows.

    Raises:
        DataError: If two arms were judged on different rows.
    """
    kinds = {name: config.data.actions[name].kind for name in config.data.gated_actions}
    runs: dict[tuple[str, int], list[Night]] = {}
    for night in nights:
        runs.setdefault((night.arm, night.seed), []).append(night)
    baseline = runs[config.baseline, config.seed]
    references = {name: runs[arm.reference or config.reference, config.seed] for name, arm in config.arms.items()}
    for run in runs.values():
        _check_rows(run, baseline)
    return Succession(
        days=[night.day for night in baseline],
        rows=sum(len(night.scores) for night in baseline),
        baseline=config.baseline,
        reference=config.reference,
        tolerance=config.tolerance,
        arms={name: as_plain(arm) for name, arm in config.arms.items()},
        results=[
            _result(run, baseline, references[run[0].arm], action, kind, config.tolerance)
            for action, kind in kinds.items()
            for run in runs.values()
        ],
        hardware=hardware(config.fit.device),
    )


def _check_rows(run: Sequence[Night], baseline: Sequence[Night]) -> None:
    for ours, theirs in zip(run, baseline, strict=True):
        if ours.day != theirs.day or not ours.scores.select(KEYS).equals(theirs.scores.select(KEYS)):
            raise DataError(
                "two arms were judged on different rows", where=f"{ours.arm}, {ours.day}", got=f"{len(ours.scores)} rows",
                expected=f"the {len(theirs.scores)} rows of {theirs.arm}, {theirs.day}",
                remedy="remove the arm's folder and start again: it was judged on an earlier version of the log",
            )  # fmt: skip


def _result(
    run: Sequence[Night], baseline: Sequence[Night], reference: Sequence[Night], action: str, kind: str, tolerance: float
) -> ArmResult:
    ours, theirs = (pa.concat_tables(night.scores for night in nights) for nights in (run, baseline))
    score_N, label_N, rows = arranged(ours, action)
    ranking = auc(score_N, label_N, rows) if kind == "binary" else rank_correlation(score_N, label_N, rows)
    ne, base = ne_of(ours, action, kind)[0], ne_of(theirs, action, kind)[0]
    last, unit = run[-1], reference[0].points[-1].flops
    return ArmResult(
        arm=last.arm, seed=last.seed, action=action, reference=reference[0].arm,
        nights={night.day: _ends(night, action, kind) for night in run},
        ne=_interval(ne, rows),
        auc=_interval(ranking, rows),
        gap=_interval(ne.log(rows).minus(base.log(rows)), rows, relative=True),
        level=compute_until(steps_of(run, baseline, action, kind), tolerance, tolerance, unit),
        reach=compute_until(steps_of(run, reference, action, kind), 0.0, tolerance, unit),
        flops=last.flops + last.points[-1].flops,
        seconds=last.seconds + last.points[-1].seconds,
    )  # fmt: skip


def _interval(estimate: Estimate, rows: Rows, *, relative: bool = False) -> Interval:
    """Returns an estimate with its interval; `relative` turns a difference of logarithms into a quotient minus 1."""
    low, high = (float(end[0]) for end in interval(estimate, rows))
    values = [float(np.expm1(x)) if relative else x for x in (float(estimate.value_G[0]), low, high)]
    return Interval(**{name: x if np.isfinite(x) else None for name, x in zip(("value", "low", "high"), values, strict=True)})


def _ends(night: Night, action: str, kind: str) -> float:
    return float(ne_of(night.scores, action, kind)[0].value_G[0])


def steps_of(run: Sequence[Night], other: Sequence[Night], action: str, kind: str) -> list[Step]:
    """Returns the judged points of an arm, each with its distance to what another arm ended the same night with."""
    steps = []
    for ours, theirs in zip(run, other, strict=True):
        goal = _ends(theirs, action, kind)
        for point in ours.points:
            last = point is ours.points[-1]
            ne = _ends(ours, action, kind) if last else point.ne.get(action)
            if ne is not None:
                steps.append(Step(ours.flops + point.flops, ours.seconds + point.seconds, ne / goal - 1, last))
    return steps


def curves_of(succession: Succession, nights: Sequence[Night]) -> pa.Table:
    """Returns the curves as `CURVES_SCHEMA` lays them out."""
    ends = {(night.day, result.action): result.nights[night.day] for night in nights for result in succession.results
            if (night.arm, night.seed) == (result.arm, result.seed) and night.arm == succession.baseline}  # fmt: skip
    own = {(result.arm, result.seed, result.action): result.nights for result in succession.results}

    def rows() -> Iterator[dict]:
        for night in nights:
            for point in night.points:
                last = point is night.points[-1]
                for action in dict.fromkeys(result.action for result in succession.results):
                    ne = own[night.arm, night.seed, action][night.day] if last else point.ne.get(action)
                    if ne is not None:
                        yield {
                            "arm": night.arm, "seed": night.seed, "day": night.day, "step": point.step, "last": last,
                            "flops": night.flops + point.flops, "seconds": night.seconds + point.seconds,
                            "action": action, "ne": ne, "gap": ne / ends[night.day, action] - 1,
                        }  # fmt: skip

    return pa.Table.from_pylist(list(rows()), CURVES_SCHEMA)


def write_succession(succession: Succession, curves: pa.Table, folder: Path) -> None:
    """Writes `succession.json` and `succession.parquet`."""
    pq.write_table(curves, folder / CURVES_PARQUET, compression="zstd", write_page_checksum=True)
    write_text(folder / SUCCESSION_JSON, json.dumps(as_plain(succession), indent=1, allow_nan=False))
