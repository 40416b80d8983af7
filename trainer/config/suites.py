"""Configuration of `scripts/suite.py`."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.shipping import RegistryConfig
from trainer.schema.time import parse_day
from trainer.schema.validate import choice, positive


@dataclass(frozen=True, kw_only=True)
class SuiteRunConfig:
    """`scripts/suite.py`: permanent validation sets beside a registry (`conf/suite.yaml`).

    Attributes:
        registry: Root and product; suites lie in ``root/<product>/suites``.
        action: add, list, run or remove.
        name: Name of the suite.
        kind: ``slice``, ``golden`` or ``failure``.
        check: ``metric/action``; of a failure the path that verdict.json lists, ``metric/action/column=value``.
        from_run: Folder of a finished run of the main job: where golden rows come from, or what ``run`` judges.
        where: Expression over the columns of the predictions: the rows of a slice, or which golden rows are taken.
        margin: Tolerated harm in the check's unit; null takes that of the failed check.
        reason: Why the suite exists, or why it is removed.
        note: What whoever meets a failure should know.
        author: Who adds it.
        as_of: Day of the addition; null takes that of the run.
        rows: Golden rows at most; whole users are left out beyond it.
    """

    registry: RegistryConfig
    action: str = "list"
    name: str | None = None
    kind: str | None = None
    check: str | None = None
    from_run: str | None = None
    where: str | None = None
    margin: float | None = None
    reason: str | None = None
    note: str | None = None
    author: str | None = None
    as_of: str | None = None
    rows: int = 100_000

    def __post_init__(self) -> None:
        choice("action", self.action, ("add", "list", "run", "remove"))
        positive("rows", self.rows)
        if self.as_of is not None:
            parse_day(self.as_of)
