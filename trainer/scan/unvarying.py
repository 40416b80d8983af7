"""Columns that say the same in every row of every day: no damage, for they never were otherwise, but nothing is to be learned from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field

from trainer.scan.states import ColumnState
from trainer.schema.health import Notice

_LEAST_ROWS = 200  # of the whole log: in fewer a rare value may not have come up


@dataclass
class Unvarying:
    """Columns that have held one value, or only nulls, on all days so far.

    Attributes:
        rows: Column -> its rows.
        values: Column -> its only value, as text; None: null in every row.
        varied: Columns that hold more.
        listed: Columns of lists and vectors: their state is of lengths and identities, so only that they are null is told of them.
        days: First and last day that was added, and their number.
    """

    rows: dict[str, int] = field(default_factory=dict)
    values: dict[str, str | None] = field(default_factory=dict)
    varied: set[str] = field(default_factory=set)
    listed: Set[str] = frozenset()
    days: list[str] = field(default_factory=list)

    def add(self, day: str, columns: Mapping[str, ColumnState], accused: Collection[str]) -> None:
        """Adds a healthy day.

        Args:
            day: Business day.
            columns: Monitored source column -> its state.
            accused: Columns in which something was found: what damage left says nothing about the column.
        """
        self.days.append(day)
        for name, state in columns.items():
            if name in accused or name in self.varied or not state.rows:
                continue
            held, value = _only_value(state)
            if not held or (name in self.listed and state.valid) or self.values.setdefault(name, value) != value:
                self.varied.add(name)
            self.rows[name] = self.rows.get(name, 0) + state.rows

    def notices(self) -> list[Notice]:
        """Returns a notice a column, of the last day; each is told once, however many days there are."""
        same = {name: value for name, value in sorted(self.values.items()) if name not in self.varied and self.rows[name] >= _LEAST_ROWS}
        return [self._notice(name, value) for name, value in same.items()]

    def _notice(self, name: str, value: str | None) -> Notice:
        held = "is null" if value is None else f"is {value!r}"
        span = f"{self.days[0]} to {self.days[-1]}" if len(self.days) > 1 else self.days[0]
        return Notice(
            kind="null_spike" if value is None else "constant", day=self.days[-1],
            what=f"{name} {held} in all {self.rows[name]:,} rows ({span})",
            evidence="never otherwise, so no damage, but nothing can be learned from it: map another column, or leave it out",
        )  # fmt: skip


def _only_value(state: ColumnState) -> tuple[bool, str | None]:
    """Returns whether all cells are alike, and their value; a column that is null here and there tells by that."""
    if not state.valid:
        return True, None
    value = next(iter(state.top), None)
    return state.nulls == 0 and value is not None and state.top[value] == state.rows, value
