"""Suites: permanent validation sets that lie beside the registry and outlive every model.

    root/<product>/suites/<name>/suite.json                `Suite`, written last: a folder without it is no suite
    root/<product>/suites/<name>/rows.parquet              golden rows: labels, slice columns and the scores of the day they were
                                                           taken, as `trainer.schema.predictions`, and `POSITION`
    root/<product>/suites/<name>/part-00/examples.parquet  every row of the users concerned (`trainer.schema.examples`) ...
    root/<product>/suites/<name>/part-00/tail.parquet      ... and their history from before that day: what scoring needs

Golden rows keep their features, so that any later model can be scored on them whatever became of the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from trainer.errors import ConfigError
from trainer.schema.expression import parse
from trainer.schema.time import parse_day
from trainer.schema.validate import choice

SUITE_VERSION = 1

SUITES = "suites"
RECORD = "suite.json"
ROWS = "rows.parquet"
POSITION = "position"  # of a golden row in the parts' examples, one after the other

SLICE = "slice"  # an expression over the columns of each run's predictions
GOLDEN = "golden"  # stored rows
FAILURE = "failure"  # stored rows on which a challenger once failed a check
KINDS = (SLICE, GOLDEN, FAILURE)

SHARE = "share_"  # traffic over one threshold
METRICS = ("auc", "gauc", "ne", "rank_correlation", "deviance", "ndcg", "calibration", "ecce")

FAMILY = "suite"  # of the checks


@dataclass(frozen=True, kw_only=True)
class SuiteSource:
    """Where golden rows come from.

    Attributes:
        as_of: Cut-off day of the run they were taken from.
        known_until_ms: Knowledge cut-off of that run; their labels are what was known then.
        days: Day of the rows -> content hash of the day, as bundles list what they were trained on.
        rows: Judged rows.
        users: Users behind them.
        challenger: Hash of the challenger of that run.
        failed: Path of the check it failed (`KINDS` failure), else null.
        found: That check's sentence.
    """

    as_of: str
    known_until_ms: int
    days: dict[str, str]
    rows: int
    users: int
    challenger: str
    failed: str | None = None
    found: str = ""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One validation set and what a model must not do on it.

    Attributes:
        version: Version of this schema.
        name: Name, also of its folder.
        kind: One of `KINDS`.
        metric: Name of the gate's check: one of `METRICS`, or ``share_<name>``.
        action: Action that is judged, or ``value``.
        margin: Tolerated harm against production, in the check's unit.
        reason: Why the set exists.
        note: What whoever meets a failure should know.
        author: Who added it.
        added: Day on which it was added, as given; no clock is read.
        where: Rows of a slice: an expression over the columns of the predictions.
        at_least: The threshold of a ``share_`` metric, on production's scale of the day.
        source: Where golden rows come from; null for a slice.
        files: File of the suite's folder -> sha256.
    """

    version: int = SUITE_VERSION
    name: str
    kind: str
    metric: str
    action: str
    margin: float
    reason: str
    note: str = ""
    author: str = ""
    added: str
    where: str | None = None
    at_least: float | None = None
    source: SuiteSource | None = None
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice("kind", self.kind, KINDS)
        if not self.metric.startswith(SHARE):
            choice("check", self.metric, METRICS)
        if not (self.margin > 0 and math.isfinite(self.margin)):
            raise ConfigError("a suite tolerates some harm", where="margin", got=self.margin, expected="a positive number")
        if not self.reason.strip():
            raise ConfigError("a suite needs a reason", where="reason", remedy="say why the set exists: whoever meets a failure will ask")
        if self.where is not None:
            parse(self.where)
        elif self.kind == SLICE:
            raise ConfigError("a slice needs an expression", where="where", expected="for example: country == 'TR' and new_user")
        if (self.source is None) != (self.kind == SLICE):
            raise ConfigError("golden rows have a source, slices have none", where="source", got=f"kind {self.kind}")
        if self.metric.startswith(SHARE) != (self.at_least is not None):
            raise ConfigError("a share needs its threshold, and nothing else has one", where="at_least", got=self.at_least)
        parse_day(self.added)

    @property
    def title(self) -> str:
        """Name, reason and note in one phrase: what a person needs who never heard of the suite."""
        return f"suite {self.name} ({self.reason}{f'; {self.note}' if self.note else ''})"


@dataclass(frozen=True, kw_only=True)
class SuiteCase:
    """A suite ready to be judged in one run.

    Attributes:
        name: Its name.
        suite: What it demands; null if that cannot be read, which `problem` explains.
        table: Golden rows with both models' scores, as `trainer.schema.predictions`; null for a slice.
        remark: What to bear in mind, say that production was trained on these rows.
        problem: Why it cannot be judged: the check fails, because nobody can say that the model passes.
        skipped: Why it is not judged here: the check is not applicable.
    """

    name: str
    suite: Suite | None = None
    table: pa.Table | None = None
    remark: str = ""
    problem: str | None = None
    skipped: str | None = None


def trained_on(source: SuiteSource, trained: Mapping[str, str]) -> bool:
    """Tells whether a model whose bundle lists `trained` (day -> content hash) has seen one of the golden rows' days.

    A day counts by its name: a repaired day has another hash, but mostly the same rows.
    """
    return bool(set(source.days) & set(trained))
