"""Re-scoring: production's bundle on the rows that production served, against the scores it logged then.

The same weights on the same features give the same scores. Where they do not, what serving saw is not what the log says now: a feature is
computed otherwise, late, or missing on one side. Everything learned from such rows is doubtful, so a mismatch holds the run.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from trainer.config import EvaluationConfig
from trainer.evaluate.scorer import ScoredPartition
from trainer.schema.examples import CARRIED, FEATURE, LOGGED, without_feature
from trainer.schema.logs import LogSpec, whole_names
from trainer.schema.repair import LOG, LOGIT, to_scale
from trainer.schema.time import SECOND_MS, day_start_ms, days_between, timezone
from trainer.schema.verdict import Check

VERSION = CARRIED + "serving_version"
MIN_ROWS = 20
_EXPLAINED_ROWS = 20_000  # a partition as large as this tells which feature it is
_TELLING = 0.2  # least share of the differences that a suspect explains
_ORDERED = 1e-5  # relative distance from which two scores have an order at all


class Scores(Protocol):
    """A model that scores partitions."""

    def score(self, examples: pa.Table, tail: pa.Table, known_until_ms: int) -> ScoredPartition:
        """Scores every row."""
        ...


@dataclass(frozen=True)
class _Served:
    """Rows of one partition that the live version served, with both scores of each action."""

    examples: pa.Table
    tail: pa.Table
    row_M: np.ndarray
    logged: dict[str, np.ndarray]
    again: dict[str, np.ndarray]


@dataclass
class Rescoring:
    """Compares logged with repeated scores, partition by partition.

    Attributes:
        spec: The log: logged scores, serving version.
        config: Tolerance.
        version: What the log calls the live version.
        known_until_ms: Knowledge cut-off.
    """

    spec: LogSpec
    config: EvaluationConfig
    version: str
    known_until_ms: int
    _parts: list[_Served] = field(default_factory=list)

    def add(self, examples: pa.Table, tail: pa.Table, scored: Mapping[str, np.ndarray]) -> None:
        """Takes a partition and what production's bundle says of it."""
        if VERSION not in examples.column_names:
            return
        served = np.array([str(value) == self.version for value in examples[VERSION].to_pylist()], bool)
        names = [name for name in self.spec.logged_scores if LOGGED + name in examples.column_names and name in scored]
        if served.any() and names:
            row_M = np.flatnonzero(served)
            logged = {name: examples[LOGGED + name].to_numpy().astype(np.float64)[row_M] for name in names}
            self._parts.append(_Served(examples, tail, row_M, logged, {name: scored[name][row_M] for name in names}))

    def report(self, production: Scores) -> dict[str, Any]:
        """Returns what `eval.json` publishes.

        Args:
            production: The model, asked again about a few rows where something does not match.

        Returns:
            {version, rows, reason, actions: {action: {n, max_abs, within, rank_agreement}}, days: {day: share of rows beyond the
            tolerance}, suspects: [{feature, explained, absent}]}; ``reason`` says why nothing was compared.
        """
        rows = sum(len(part.row_M) for part in self._parts)
        if rows < MIN_ROWS:
            return {"version": self.version, "rows": rows, "reason": self._why_not(rows), "actions": {}, "days": {}, "suspects": []}
        actions = {name: self._match(name) for name in self._parts[0].logged}
        broken = any(self.mismatch(entry) for entry in actions.values())
        return {
            "version": self.version, "rows": rows, "reason": None, "actions": actions, "days": self._days() if broken else {},
            "suspects": self._suspects(production) if broken else [],
        }  # fmt: skip

    def mismatch(self, entry: Mapping[str, Any]) -> bool:
        """Whether one action's match is beyond the bounds."""
        return entry["n"] > 0 and min(entry["within"], entry["rank_agreement"]) < self.config.rescoring_share

    def _why_not(self, rows: int) -> str:
        if not self.spec.logged_scores:
            return "the log has no scores (data.logged_scores)"
        if not self.spec.serving_version:
            return "the log does not say which version served a row (data.serving_version)"
        return f"{rows:,} judged rows were served as {self.version}, {MIN_ROWS} needed (evaluation.served_as names it otherwise)"

    def _match(self, name: str) -> dict[str, Any]:
        logged_M, again_M = (np.concatenate([part[name] for part in parts]) for parts in self._both())
        known_M = np.isfinite(logged_M)
        logged_M, again_M = logged_M[known_M], again_M[known_M]
        if not len(logged_M):
            return {"n": 0, "max_abs": None, "within": None, "rank_agreement": None}
        slate_M = np.concatenate([_slates(part) + place * (1 << 40) for place, part in enumerate(self._parts)])[known_M]
        difference_M = np.abs(logged_M - again_M)
        return {
            "n": len(logged_M), "max_abs": float(difference_M.max()),
            "within": float((difference_M <= self._tolerance(logged_M)).mean()), "rank_agreement": _agreement(logged_M, again_M, slate_M),
        }  # fmt: skip

    def _both(self) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
        return [part.logged for part in self._parts], [part.again for part in self._parts]

    def _tolerance(self, logged_M: np.ndarray) -> np.ndarray:
        """Absolute for probabilities, relative for expectations above one (seconds)."""
        return self.config.rescoring_tolerance * np.maximum(1.0, np.abs(logged_M))

    def _beyond(self, part: _Served) -> np.ndarray:
        beyond_M = np.zeros(len(part.row_M), bool)
        for name, logged_M in part.logged.items():
            beyond_M |= np.abs(logged_M - part.again[name]) > self._tolerance(logged_M)  # False where nothing was logged
        return beyond_M

    def _days(self) -> dict[str, float]:
        """Share of rows beyond the tolerance, by business day."""
        time_M = np.concatenate([part.examples["request_time"].to_numpy()[part.row_M] for part in self._parts])
        beyond_M = np.concatenate([self._beyond(part) for part in self._parts])
        zone = timezone(self.spec.timezone)
        first, last = (dt.datetime.fromtimestamp(int(end) / SECOND_MS, zone).date().isoformat() for end in (time_M.min(), time_M.max()))
        days = days_between(first, last)
        place_M = np.searchsorted([day_start_ms(day, self.spec.timezone) for day in days], time_M, side="right") - 1
        return {day: float(beyond_M[place_M == place].mean()) for place, day in enumerate(days) if (place_M == place).any()}

    def _suspects(self, production: Scores) -> list[dict[str, Any]]:
        """Features whose influence runs along the differences: scores change alike when a feature is skewed and when it is gone."""
        worst = max(self._parts, key=lambda part: int(self._beyond(part)[:_EXPLAINED_ROWS].sum()))
        found: list[dict[str, Any]] = []
        columns = [name.removeprefix(FEATURE) for name in worst.examples.column_names if name.startswith(FEATURE)]
        for feature in whole_names(columns):
            absent = without_feature(worst.examples, feature)
            without = production.score(absent, worst.tail, self.known_until_ms).score_N
            explained, missing = self._explained(worst, {name: without[name][worst.row_M] for name in worst.logged})
            if explained >= _TELLING:
                found.append({"feature": feature, "explained": explained, "absent": missing})
        return sorted(found, key=lambda entry: (-entry["absent"], -entry["explained"], entry["feature"]))[:3]

    def _explained(self, part: _Served, without: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Largest share of the differences that runs along a feature's effect, and of those that its absence accounts for exactly."""
        explained, missing = 0.0, 0.0
        for name, logged_M in part.logged.items():
            again_M, without_M = part.again[name], without[name]
            known_M = np.isfinite(logged_M)
            scale = LOG if self.spec.actions[name].kind != "binary" else LOGIT
            base_M = to_scale(again_M[known_M], scale)
            gap_M, effect_M = (to_scale(score_M[known_M], scale) - base_M for score_M in (logged_M, without_M))
            power = float(gap_M @ gap_M) * float(effect_M @ effect_M)
            if power > 0:
                explained = max(explained, float(gap_M @ effect_M) ** 2 / power)
            tolerance_M = self._tolerance(logged_M)
            off_M = known_M & (np.abs(logged_M - again_M) > tolerance_M)
            if off_M.any():
                missing = max(missing, float((np.abs(logged_M - without_M) <= tolerance_M)[off_M].mean()))
        return explained, missing


def _slates(part: _Served) -> np.ndarray:
    """Codes of requests, else of users, within the partition."""
    column = part.examples["request" if "request" in part.examples.column_names else "user"]
    return np.asarray(column.combine_chunks().dictionary_encode(null_encoding="encode").indices, np.int64)[part.row_M]


def _agreement(logged_M: np.ndarray, again_M: np.ndarray, slate_M: np.ndarray) -> float:
    """Share of neighbours in a slate's logged order that keep it; 1 where no slate has two scores apart."""
    order_M = np.lexsort((logged_M, slate_M))
    lower_M, upper_M = order_M[:-1], order_M[1:]
    apart_M = (slate_M[lower_M] == slate_M[upper_M]) & (logged_M[upper_M] - logged_M[lower_M] > _ORDERED * np.abs(logged_M[upper_M]))
    if not apart_M.any():
        return 1.0
    return float((again_M[upper_M] > again_M[lower_M])[apart_M].mean())


def rescoring_checks(report: Mapping[str, Any] | None, config: EvaluationConfig) -> list[Check]:
    """Turns what `eval.json` says of the re-scoring into checks: one an action; a mismatch holds."""
    if report is None:
        return []
    if report["reason"] is not None:
        why = f"production's scores were not repeated: {report['reason']}"
        return [Check(name="rescoring", family="data", outcome="not_applicable", severity="info", sentence=why)]
    return [_check(name, entry, report, config) for name, entry in report["actions"].items() if entry["n"]]


def _check(name: str, entry: Mapping[str, Any], report: Mapping[str, Any], config: EvaluationConfig) -> Check:
    share = min(entry["within"], entry["rank_agreement"])
    holds = share < config.rescoring_share
    words = (
        f"{entry['within']:.3%} of {entry['n']:,} logged scores of {name} repeated within {config.rescoring_tolerance:g}, largest "
        f"difference {entry['max_abs']:.3g}, order kept in {entry['rank_agreement']:.3%} of the neighbours"
    )
    return Check(
        name="rescoring", family="data", action=name, estimate=1 - share, margin=1 - config.rescoring_share, n=entry["n"],
        outcome="hold" if holds else "pass", severity="block", sentence=words + (_blame(report) if holds else ""),
    )  # fmt: skip


def _blame(report: Mapping[str, Any]) -> str:
    words = ": what serving saw is not what the log says now (feature skew)"
    suspects = [
        f"{entry['feature']} ({'absent when it was served' if entry['absent'] > 0.5 else format(entry['explained'], '.0%') + ' explained'})"
        for entry in report["suspects"]
    ]
    words += f"; most likely {', '.join(suspects)}" if suspects else "; no single feature explains it"
    days = sorted(report["days"].items(), key=lambda pair: -pair[1])[:3]
    return words + ("; rows off: " + ", ".join(f"{day} {share:.1%}" for day, share in days) if days else "")
