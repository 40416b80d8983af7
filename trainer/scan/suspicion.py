"""What a detector says: this kind of damage, here, and how many rows; what is done about it is decided elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Suspicion:
    """A finding of a detector.

    Attributes:
        kind: Name of the catalogue.
        evidence: What was seen, in a few words and numbers.
        rows: Rows or cells.
        feature: Source column.
        file: Path, where one file of several is meant.
        values: The values themselves, as text, where single cells or rows are meant.
        bounds: Smallest and largest believable value, for the same purpose.
        from_ms: First event time that is meant.
        unsure: Why too little is known to call it a fault; it is then told as a notice and has no consequences.
    """

    kind: str
    evidence: str
    rows: int = 0
    feature: str | None = None
    file: str | None = None
    values: list[str] = field(default_factory=list)
    bounds: tuple[float | None, float | None] | None = None
    from_ms: int | None = None
    unsure: str | None = None

    @property
    def names_cells(self) -> bool:
        """Whether single cells or rows are meant, not the whole column or day."""
        return bool(self.values or self.bounds or self.file) or self.from_ms is not None
