"""The transfer plan: one fate for every tensor of both sides, computed before any weight moves."""

from __future__ import annotations

from dataclasses import dataclass, field

TRANSFER_VERSION = 1

FATES = ("copied", "row-remapped", "grown", "inserted as identity", "initialised", "dropped", "refused")


@dataclass(frozen=True, kw_only=True)
class AxisMove:
    """How the entries of one dimension move.

    Attributes:
        axis: Name of the axis (`models.ranker.Ranker.axes`).
        kept: Entries that both sides have.
        new: Entries that only the target has.
        dropped: Entries that only the source has.
        coverage: Share of the source's traffic that kept entries carry (1 where the axis has no traffic).
        fill: What new entries hold: ``init`` (the target's own initialisation), ``zero``, ``oov`` or ``mean``.
    """

    axis: str
    kept: int
    new: int
    dropped: int
    coverage: float = 1.0
    fill: str = "init"


@dataclass(frozen=True, kw_only=True)
class TensorFate:
    """Fate of one tensor.

    Attributes:
        target: Name in the challenger, or None for a source tensor that goes nowhere.
        source: Name in production, or None for a tensor that starts fresh.
        fate: One of `FATES`.
        shape: Shape in the challenger (or in production, for dropped ones).
        moves: Dimensions whose entries move.
        reason: Why, in a few words.
    """

    target: str | None
    source: str | None
    fate: str
    shape: list[int]
    moves: list[AxisMove] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """Fates of all tensors, in the challenger's order, dropped ones last.

    Attributes:
        version: Version of this schema.
        source: Hash of production's bundle.
        fates: One a tensor.
        elements: Fate -> elements of the challenger that have it (dropped ones count production's elements).
        exact: Whether the challenger's outputs equal production's before the first step, for inputs that production knew.
    """

    version: int = TRANSFER_VERSION
    source: str
    fates: list[TensorFate]
    elements: dict[str, int]
    exact: bool
