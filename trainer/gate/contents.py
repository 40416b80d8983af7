"""What slates are made of: the columns that say how popular, long, new an item is, and whose.

A column is declared (`gate.composition: {duration: video_length}`) or found by a usual word in its name; popularity without a column is
counted from the table itself. Every check says which of these it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainer.errors import nearest
from trainer.gate.column import codes, floats, is_flag, is_number
from trainer.gate.slices import slice_candidates
from trainer.metrics.ranking import sort_within
from trainer.schema.policy import GatePolicy

HEAD_SHARE = 0.01  # of the items, the most shown ones
_WORDS = {
    "new_item": ({"new", "cold", "fresh"}, {"item", "video", "content", "is"}),
    "popularity": ({"popularity", "popular"}, None),
    "duration": ({"duration", "length", "runtime"}, None),
    "author": ({"author", "creator", "artist", "publisher", "seller", "uploader"}, None),
    "topic": ({"topic", "category", "genre"}, None),
}  # content -> a word that its column's name has, and words one of which must stand beside it


@dataclass(frozen=True)
class Content:
    """One quantity that is read off the top of the slates.

    Attributes:
        name: Name of the check.
        words: What it is, for the sentence.
        x_N: Averaged over the top; NaN where a row has no value. Null where `code_N` is given.
        code_N: Authors or topics, whose concentration is measured.
    """

    name: str
    words: str
    x_N: np.ndarray | None = None
    code_N: np.ndarray | None = None


def content_columns(table: pa.Table, policy: GatePolicy) -> tuple[dict[str, str], list[str]]:
    """Returns content -> column, and a sentence for each declared column that is missing."""
    candidates = slice_candidates(table)
    found = {}
    for content, (words, beside) in _WORDS.items():
        fits = [name for name in candidates if _fits(name, words, beside) and _typed(table[name], content)]
        if fits:
            found[content] = fits[0]
    found.update(policy.composition)
    missing = {content: name for content, name in found.items() if name not in table.column_names}
    faults = [
        f"gate.composition.{content} names column {name}, which is missing ({nearest(name, candidates)})"
        for content, name in missing.items()
    ]
    return {content: name for content, name in found.items() if content not in missing}, faults


def _fits(name: str, words: set[str], beside: set[str] | None) -> bool:
    parts = set(name.lower().split("_"))
    return bool(parts & words) and (beside is None or bool(parts & beside))


def _typed(column: pa.ChunkedArray, content: str) -> bool:
    number = is_number(column) or is_flag(column)
    if content in ("popularity", "duration"):
        return number
    if content == "new_item":
        return is_flag(column)
    return not pa.types.is_nested(column.type) and not pa.types.is_floating(column.type)


def contents(table: pa.Table, columns: dict[str, str], item_N: np.ndarray | None) -> list[Content]:
    """Returns everything that is read off the top of the slates, in a fixed order.

    Args:
        table: The predictions.
        columns: Content -> column, see `content_columns`.
        item_N: Item codes; null where the table has no items.
    """
    found = [] if "popularity" in columns or item_N is None else [_counted(item_N)]
    if item_N is not None:
        found.append(_head(item_N))
    for content, name in columns.items():
        found += _of_column(content, name, table[name])
    for name in slice_candidates(table):
        if name not in columns.values() and (pa.types.is_floating(table[name].type) or is_flag(table[name])):
            found.append(Content(f"slate_{name}", f"mean of column {name}", floats(table[name], name)))
    return found


def _of_column(content: str, name: str, column: pa.ChunkedArray) -> list[Content]:
    if content in ("author", "topic"):
        return [Content(f"slate_{content}", f"concentration (chance that two rows share their {name})", code_N=codes(column, name)[0])]
    x_N = floats(column, name)
    if content == "popularity" and not is_flag(column):
        return [Content("slate_popularity", f"popularity (percentile of column {name})", _percentile(x_N))]
    made = [Content(f"slate_{content}", f"mean of column {name}", x_N)]
    if content == "duration" and np.isfinite(x_N).any():
        long = float(np.nanquantile(x_N, 0.75))
        long_N = np.where(np.isfinite(x_N), (x_N > long).astype(float), np.nan)
        made.append(Content("slate_long", f"share of rows with {name} above {long:.5g}, the upper quartile,", long_N))
    return made


def _counted(item_N: np.ndarray) -> Content:
    shown_N = np.bincount(item_N)[item_N].astype(float)
    return Content("slate_popularity", "popularity (percentile of the item's rows in this table)", _percentile(shown_N))


def _head(item_N: np.ndarray) -> Content:
    shown_I = np.bincount(item_N)
    head_I = np.zeros(len(shown_I))
    head_I[np.argsort(-shown_I, kind="stable")[: max(1, int(len(shown_I) * HEAD_SHARE))]] = 1.0
    return Content("slate_head_items", "share of the most shown hundredth of the items", head_I[item_N])


def _percentile(x_N: np.ndarray) -> np.ndarray:
    """Midrank of each row among all rows, 0 to 1, so that a margin means the same whatever the unit; NaN stays NaN."""
    known_N = np.isfinite(x_N)
    if not known_N.any():
        return np.full(len(x_N), np.nan)
    ones_N = np.ones(int(known_N.sum()))
    order = sort_within(x_N[known_N], np.zeros(len(ones_N), np.int64), 1)
    rank_N = np.full(len(x_N), np.nan)
    rank_N[known_N] = 1 - order.above(ones_N) / len(ones_N)
    return rank_N
