"""The transfer plan: one fate for every tensor of both sides, computed before any weight moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.errors import ConfigError, nearest
from trainer.schema.hashing import sha256_json
from trainer.schema.plain import as_plain
from trainer.schema.validate import choice

TRANSFER_VERSION = 2

FATES = (
    "copied", "renamed", "cast", "row-remapped", "grown", "shrunk", "inserted as identity", "initialised", "merged", "distilled",
    "dropped", "refused",
)  # fmt: skip
FAMILIES = ("tables", "trunk", "heads", "context")
COVERAGE = {"tables": 0.9, "trunk": 0.99, "heads": 0.5, "context": 0.9}
NEW_IDS = ("oov", "neighbours", "mean", "zero")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a person decides about a transfer; everything else follows from the two models.

    Attributes:
        new_ids: Rows of ids that production did not know: ``oov`` (what production did with them), ``neighbours`` (the mean of
            known items that share their features, weighted by traffic; OOV where there are none), ``mean`` or ``zero``.
        new_ids_by: Vocabulary of the challenger -> the same choice for its ids alone; a hashed one has no new ids.
        noise: Noise on the rows of new ids, as a share (0 to 1) of the trained rows' standard deviation.
        rename: Glob in production -> name in the challenger, for tensors (``items.*``), and for the keys of heads, features and
            vocabularies (``click`` -> ``click@feed``). A rule that renames nothing is refused.
        insert: What added layers start as: ``identity`` (exact) or ``stack`` (copies of trained layers; approximate).
        insert_at: Stack of layers (``blocks``, ``context.layers``) -> places of the new ones in the challenger; by default they
            come last.
        approximate: Whether what cannot be exact is allowed; the difference is then measured instead of refused.
        shrink: Factor on the carried matrices outside the tables (Ash & Adams 2020, arXiv 1910.08475); 1 leaves them.
        perturb: Factor on the fresh initialisation added to them; 0 adds none.
        coverage: Family of tensors -> share of production's elements that must arrive, rows weighted by traffic.
    """

    new_ids: str = "oov"
    new_ids_by: dict[str, str] = field(default_factory=dict)
    noise: float = 0.0
    rename: dict[str, str] = field(default_factory=dict)
    insert: str = "identity"
    insert_at: dict[str, list[int]] = field(default_factory=dict)
    approximate: bool = False
    shrink: float = 1.0
    perturb: float = 0.0
    coverage: dict[str, float] = field(default_factory=lambda: dict(COVERAGE))

    def __post_init__(self) -> None:
        for where, start in {"new_ids": self.new_ids, **{f"new_ids_by.{name}": start for name, start in self.new_ids_by.items()}}.items():
            choice(f"warm_start.{where}", start, NEW_IDS)
        choice("warm_start.insert", self.insert, ("identity", "stack"))
        if not 0 <= self.noise <= 1:
            raise ConfigError(
                "noise on new rows must not exceed what training gave old ones",
                where="warm_start.new_id_noise",
                got=self.noise,
                expected="0 to 1",
            )
        for family, share in self.coverage.items():
            if family not in FAMILIES:
                raise ConfigError("unknown family of tensors", where="warm_start.coverage", got=family, remedy=nearest(family, FAMILIES))
            if not 0 <= share <= 1:
                raise ConfigError("a share lies between 0 and 1", where=f"warm_start.coverage.{family}", got=share)
        for name, opted in (("insert", self.insert == "stack"), ("shrink", self.shrink != 1), ("perturb", self.perturb != 0)):
            if opted and not self.approximate:
                raise ConfigError(
                    "this does not keep production's outputs, so it must be asked for twice",
                    where=f"warm_start.{name}",
                    got=getattr(self, name),
                    remedy="add warm_start.approximate=true; the difference is measured and reported",
                )

    def start_of(self, axis: str) -> str:
        """Returns what new entries of an axis start as, if it is that of a vocabulary."""
        return self.new_ids_by.get(axis.removeprefix("vocab:"), self.new_ids)


@dataclass(frozen=True, kw_only=True)
class AxisMove:
    """How the entries of one dimension move.

    Attributes:
        axis: Name of the axis (`models.ranker.Ranker.axes`).
        kept: Entries that both sides have.
        new: Entries that only the target has.
        dropped: Entries that only the source has.
        coverage: Share of the source's traffic that kept entries carry (1 where the axis has no traffic).
        fill: What new entries hold: ``init`` (the target's own initialisation), ``zero``, ``part`` (some of each), one of
            `NEW_IDS`, ``bucket`` (the row of the hash bucket that they were in) or ``copy`` (LayerNorm: every entry comes back a whole
            number of times).
        scale: Factor on kept entries: sqrt(old width / new width) for the gain of a widened RMSNorm.
    """

    axis: str
    kept: int
    new: int
    dropped: int
    coverage: float = 1.0
    fill: str = "init"
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TensorFate:
    """Fate of one tensor.

    Attributes:
        target: Name in the challenger, or None for a source tensor that goes nowhere.
        source: Name in production, or None for a tensor that starts fresh.
        fate: One of `FATES`.
        shape: Shape in the challenger (or in production, for dropped ones).
        family: One of `FAMILIES`.
        moves: Dimensions whose entries move.
        reason: Why, in a few words.
        dtype: ``bfloat16 -> float32`` where the numbers change their type, else empty.
        copy_of: Source tensor that a stacked layer starts as; the tensor itself has a fate of its own.
        like: Source tensor of the layer that an added one resembles: where its optimizer state starts.
        folds: Tables of removed features whose mean row is added, so that losing them changes as little as possible.
        carried: Share of the source's elements that arrive, rows weighted by traffic.
    """

    target: str | None
    source: str | None
    fate: str
    shape: list[int]
    family: str = "trunk"
    moves: list[AxisMove] = field(default_factory=list)
    reason: str = ""
    dtype: str = ""
    copy_of: str | None = None
    like: str | None = None
    folds: list[str] = field(default_factory=list)
    carried: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """Fates of all tensors, in the challenger's order, dropped ones last.

    Attributes:
        version: Version of this schema.
        source: Hash of production's bundle.
        rules: What was decided.
        fates: One a tensor.
        elements: Fate -> elements of the challenger that have it (dropped ones count production's elements).
        source_elements: Fate -> elements of production that have it.
        coverage: Family -> share of production's elements that arrive, rows weighted by traffic.
        exact: Whether the challenger's outputs equal production's before the first step, for inputs that production knew.
        inexact: Why not, a sentence each.
    """

    version: int = TRANSFER_VERSION
    source: str
    rules: Rules
    fates: list[TensorFate]
    elements: dict[str, int]
    source_elements: dict[str, int]
    coverage: dict[str, float]
    exact: bool
    inexact: list[str] = field(default_factory=list)


def plan_sha256(transfer: TransferPlan) -> str:
    """Returns the plan's hash: same models and rules, same hash, on every machine."""
    values: dict[str, Any] = as_plain(transfer)
    return sha256_json(values)
