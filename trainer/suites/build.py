"""Makes a suite out of what a person asks for, and refuses one that could never do its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.config import SuiteRunConfig
from trainer.errors import ConfigError, nearest
from trainer.gate.suites import examine, measure_suite, rows_of_slice, rows_where, threshold_of
from trainer.schema.suite import FAILURE, METRICS, SHARE, SLICE, Suite, SuiteSource
from trainer.schema.verdict import ALL, Check
from trainer.suites.capture import JudgedRun, capture, whole_users
from trainer.suites.store import GoldenRows


@dataclass(frozen=True)
class _Asked:
    """The check behind a suite: ``metric/action/slice``, the form in which a verdict lists failed checks."""

    metric: str
    action: str
    slice: str

    @classmethod
    def parse(cls, text: str) -> _Asked:
        parts = text.split("/", 2)
        if len(parts) < 2 or not all(parts):
            raise ConfigError(
                "not a check", where="check", got=text, expected="ne/click, or calibration/click/country=TR as in verdict.json"
            )
        return cls(parts[0], parts[1], parts[2] if len(parts) > 2 else ALL)

    @property
    def path(self) -> str:
        return f"{self.metric}/{self.action}/{self.slice}"


def needed(config: SuiteRunConfig, name: str) -> str:
    """Returns a setting that the action cannot do without.

    Raises:
        ConfigError: If it was not given.
    """
    value = getattr(config, name)
    if value is None or not str(value).strip():
        raise ConfigError(f"action={config.action} needs this", where=name, remedy=f"give {name}=...")
    return str(value)


def build(config: SuiteRunConfig, run: JudgedRun | None) -> tuple[Suite, GoldenRows | None]:
    """Makes a suite.

    Args:
        config: What is asked for.
        run: The run named by ``from_run``, if one is.

    Returns:
        The suite, and its golden rows unless it is a slice.

    Raises:
        ConfigError: If something is missing, or the rows cannot tell a harm of the margin from chance, or (of a past failure) the
            challenger that failed would pass.
        DataError: If the run's examples are gone.
    """
    asked = _Asked.parse(needed(config, "check"))
    if config.kind == SLICE:
        return _slice(config, asked, run), None
    if run is None:
        raise ConfigError("golden rows come from a run", where="from_run", remedy="give from_run=RUN_DIR of a run of scripts/retrain.py")
    return _failure(config, asked, run) if config.kind == FAILURE else _golden(config, asked, run)


def _slice(config: SuiteRunConfig, asked: _Asked, run: JudgedRun | None) -> Suite:
    if asked.slice != ALL:
        raise ConfigError(
            "a slice is an expression", where="check", got=asked.path, remedy=f"check={asked.metric}/{asked.action} where=..."
        )
    suite = _suite(config, asked, run, config.margin, None)
    if run is not None:  # a misspelt column or action is found now, not in the night
        measure_suite(suite, run.predictions.filter(rows_where(run.predictions, suite.where or "")), run.policy, run.weights, run.seed)
    return suite


def _golden(config: SuiteRunConfig, asked: _Asked, run: JudgedRun) -> tuple[Suite, GoldenRows]:
    golden, source = _rows(config, asked, run, None)
    suite = _suite(config, asked, run, config.margin, source)
    answer = examine(suite, golden.rows, run.policy, run.weights, run.seed)
    noise = (answer.mde or 0.0) - suite.margin
    if answer.outcome == "not_testable":
        raise ConfigError("these rows can tell nothing", where="where", got=answer.sentence, remedy="choose more rows")
    if noise > suite.margin:
        raise ConfigError(
            "these rows cannot tell a harm of the margin from chance", where="margin", got=f"{suite.margin:.4g}",
            expected=f"{noise:.4g} or more on {source.rows:,} rows", remedy="give a larger margin=..., or choose more rows",
        )  # fmt: skip
    return suite, golden


def _failure(config: SuiteRunConfig, asked: _Asked, run: JudgedRun) -> tuple[Suite, GoldenRows]:
    failing = _failed(asked, [] if run.verdict is None else run.verdict.checks)
    golden, source = _rows(config, asked, run, failing)
    suite = _suite(config, asked, run, config.margin if config.margin is not None else failing.margin, source)
    answer = examine(suite, golden.rows, run.policy, run.weights, run.seed)
    if answer.outcome != "fail":
        raise ConfigError(
            "these rows do not show the failure: the challenger that failed would pass", where="check", got=answer.sentence,
            expected="a failed check", remedy="take more rows (rows=...), leave where= out, or give a smaller margin=...",
        )  # fmt: skip
    return suite, golden


def _failed(asked: _Asked, checks: Sequence[Check]) -> Check:
    known = [check for check in checks if check.outcome == "fail" and (check.name in METRICS or check.name.startswith(SHARE))]
    found = next((check for check in known if check.path == asked.path), None)
    if found is None:
        raise ConfigError(
            "the run did not fail a check of this name that rows can be kept for", where="check", got=asked.path,
            remedy=nearest(asked.path, [check.path for check in known]),
        )  # fmt: skip
    return found


def _rows(config: SuiteRunConfig, asked: _Asked, run: JudgedRun, failing: Check | None) -> tuple[GoldenRows, SuiteSource]:
    chosen_N = rows_of_slice(run.predictions, run.policy, asked.slice)
    if config.where is not None:
        chosen_N &= rows_where(run.predictions, config.where)
    user_N = np.asarray(run.predictions["user"].to_pylist(), str)
    golden, source = capture(run, whole_users(user_N, chosen_N, config.rows))
    return golden, source if failing is None else replace(source, failed=failing.path, found=failing.sentence)


def _suite(config: SuiteRunConfig, asked: _Asked, run: JudgedRun | None, margin: float | None, source: SuiteSource | None) -> Suite:
    added = config.as_of or (run.as_of if run else None)
    if margin is None or added is None:
        lacking = "margin" if margin is None else "as_of"
        raise ConfigError("a suite needs this", where=lacking, remedy=f"give {lacking}=...")
    return Suite(
        name=needed(config, "name"), kind=needed(config, "kind"), metric=asked.metric, action=asked.action, margin=margin,
        reason=needed(config, "reason"), note=config.note or "", author=config.author or "", added=added, where=config.where,
        at_least=_threshold(asked, run), source=source,
    )  # fmt: skip


def _threshold(asked: _Asked, run: JudgedRun | None) -> float | None:
    if not asked.metric.startswith(SHARE):
        return None
    if run is None:
        raise ConfigError("a share needs a run to take its threshold from", where="from_run", remedy="give from_run=RUN_DIR")
    return threshold_of(run.predictions, run.rules, run.policy, asked.metric, asked.action)
