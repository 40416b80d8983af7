"""History of features for the model behind the embeddings: for each past day, what the ranker of that day would have exported.

Two leaks are shut out. Inputs: each row's user vector is the state before its request, from what was known then. Weights: a day is
scored by weights that have seen neither it nor any later day; a day for which there are none is refused, or written as in-sample if
that is asked for in so many words. A final model that is trained on in-sample scores trusts them too much: the scores hold its labels.

Scores are those that were, or would have been, delivered: behind the curves of the release that the weights belong to. Two days whose
scores lay on two scales would teach the final model a jump that no consumer ever saw.

Every past ranker has its own space. Its item vectors, and the user vectors that it and today's ranker give the very same rows, say how
it lies to today's feature space; features come out in that one space, by a rigid map a day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.align import ROTATION, SHIFT, Alignment, Pairs, compare, fit, nearest
from trainer.errors import ExportError
from trainer.schema.embeddings import PAIR_DOT, PAIR_SCORE
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_file

AS_OF = "as_of"  # folder below the export
AS_OF_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class DayScores:
    """A past day under the ranker of its time and under today's, row by row.

    Attributes:
        rows: user, item, time, and what else of the rows the final model needs.
        scores: Action -> float64 [N], the past ranker's, as delivered.
        dot_N: float32 [N], product of the past ranker's vectors.
        user_ND: float32 [N, D], its user vector at each row's request.
        item_ND: float32 [N, D], its item vector.
        now_user_ND: float32 [N, D], today's user vector of the same history, as a feature (aligned).
        now_item_ND: float32 [N, D], today's item vector, as a feature.
        repair: Hash of the curves behind which the scores are delivered; null if there are none.
    """

    rows: pa.Table
    scores: dict[str, np.ndarray]
    dot_N: np.ndarray
    user_ND: np.ndarray
    item_ND: np.ndarray
    now_user_ND: np.ndarray
    now_item_ND: np.ndarray
    repair: str | None = None


@dataclass(frozen=True)
class PastDay:
    """One day and who scores it.

    Attributes:
        day: The day.
        producer: Hash of the bundle (and the day of its weights) that scores it.
        seen_until: Newest day that those weights have seen.
        in_sample: Whether they have seen this day or a later one.
    """

    day: str
    producer: str
    seen_until: str
    in_sample: bool


@dataclass(frozen=True, kw_only=True)
class AsOfRecord:
    """What was written for one day; see `PastDay`. `outcome` is how the past space lay to today's; `repair` as in `DayScores`."""

    day: str
    producer: str
    seen_until: str
    in_sample: bool
    outcome: str
    method: str
    rows: int
    sha256: str
    repair: str | None = None


def choose(days: Sequence[str], available: Sequence[tuple[str, str]], in_sample: bool) -> list[PastDay]:
    """Chooses, for each day, the weights with the newest seen day before it.

    Args:
        days: Days to export.
        available: (seen until, producer) of every set of weights at hand.
        in_sample: Whether a day that all weights have seen is written, marked, instead of refused.

    Raises:
        ExportError: If a day has no weights from before it and `in_sample` is off.
    """
    chosen = []
    for day in sorted(days):
        before = [pair for pair in available if pair[0] < day]
        if before:
            seen, producer = max(before)
            chosen.append(PastDay(day, producer, seen, False))
        elif in_sample and available:
            seen, producer = min(available)
            chosen.append(PastDay(day, producer, seen, True))
        else:
            raise ExportError(
                "all weights at hand have seen this day or a later one: its scores would hold its labels", where=f"export.as_of, {day}",
                got=f"weights until {', '.join(sorted({seen for seen, _ in available})) or 'none'}", expected=f"weights from before {day}",
                remedy="train with fit.day_weights=true, leave the day out, or mark it: export.as_of_in_sample=true",
            )  # fmt: skip
    return chosen


def write_as_of(folder: Path, days: Iterator[tuple[PastDay, DayScores]]) -> list[AsOfRecord]:
    """Writes the days below an export folder, the manifest last; an earlier history there is replaced day by day.

    Returns:
        One record a day.
    """
    out = folder / AS_OF
    out.mkdir(exist_ok=True)
    (out / AS_OF_MANIFEST).unlink(missing_ok=True)
    records = []
    for past, scores in days:
        user, item, outcome = align_day(scores)
        path = out / f"{past.day}.parquet"
        pq.write_table(_table(scores, user, item), path, compression="zstd", write_page_checksum=True)
        records.append(
            AsOfRecord(
                day=past.day, producer=past.producer, seen_until=past.seen_until, in_sample=past.in_sample, outcome=outcome,
                method=item.method, rows=scores.rows.num_rows, sha256=sha256_file(path), repair=scores.repair,
            )
        )  # fmt: skip
    write_text(out / AS_OF_MANIFEST, json.dumps([asdict(record) for record in records], indent=1) + "\n")
    return records


def read_records(folder: Path) -> list[AsOfRecord]:
    """Returns the records of an export's history; none if it has none."""
    path = folder / AS_OF / AS_OF_MANIFEST
    return [AsOfRecord(**record) for record in json.loads(path.read_text())] if path.is_file() else []


def read_as_of(folder: Path) -> pa.Table | None:
    """Returns the history of an export, all days in order; None if it has none.

    Raises:
        ExportError: If a file is missing or was altered.
    """
    tables = []
    for record in read_records(folder):
        file = folder / AS_OF / f"{record.day}.parquet"
        if not file.is_file() or sha256_file(file) != record.sha256:
            raise ExportError("a day of an export's history is missing or was altered", where=file, remedy="export again")
        table = pq.read_table(file)
        table = table.append_column("in_sample", pa.array(np.full(table.num_rows, record.in_sample)))
        tables.append(table.append_column("day", pa.array([record.day] * table.num_rows)))
    return pa.concat_tables(tables, promote_options="default") if tables else None


def leak_free(history: pa.Table | None, before: str) -> pa.Table | None:
    """Returns the rows of a history whose weights had not seen their day; None if there are none.

    Args:
        history: What `read_as_of` returns.
        before: First judged day: a history that reaches it would hold judged rows.
    """
    if history is None:
        return None
    kept = history.filter(pc.and_(pc.invert(history["in_sample"]), pc.less(history["day"], before)))
    return kept if kept.num_rows else None


def align_day(scores: DayScores) -> tuple[Alignment, Alignment, str]:
    """Finds the maps of a past day's user and item vectors onto today's features, and how the spaces lay to each other.

    A past ranker that has learned much since lies in no rigid map's reach (``drifted``): its vectors come as near as one brings them,
    because the final model reads all days side by side.
    """
    _, first_M = np.unique(scores.rows["item"].combine_chunks().dictionary_encode().indices.to_numpy(), return_index=True)
    first_M = first_M[np.isfinite(scores.item_ND[first_M]).all(axis=1) & np.isfinite(scores.now_item_ND[first_M]).all(axis=1)]
    shuffled_M = np.random.default_rng(0).permutation(first_M)
    if scores.item_ND.shape[1] != scores.now_item_ND.shape[1]:
        raise ExportError(
            "a past ranker has vectors of another width than today's", got=scores.item_ND.shape[1], expected=scores.now_item_ND.shape[1],
            remedy="leave its days out of export.as_of",
        )  # fmt: skip
    pairs = Pairs(scores.now_item_ND[shuffled_M], scores.item_ND[shuffled_M], np.arange(len(shuffled_M)) % 2 == 0)
    found = compare(pairs)
    if len(scores.user_ND) < 2 or found.outcome == "broken":
        return found.alignment, found.alignment, found.outcome
    item = nearest(pairs) if found.outcome == "drifted" else found.alignment
    shift = fit(scores.now_user_ND, scores.user_ND, SHIFT)
    user = replace(shift, method=ROTATION, rotation_DD=item.rotation_DD) if item.method == ROTATION else shift
    return user, item, found.outcome


def _table(scores: DayScores, user: Alignment, item: Alignment) -> pa.Table:
    columns = {name: scores.rows[name] for name in scores.rows.column_names}
    columns[PAIR_DOT] = pa.array(scores.dot_N, pa.float32())
    for action, score_N in scores.scores.items():
        columns[PAIR_SCORE + action] = pa.array(score_N.astype(np.float32))
    for name, vectors_ND, alignment in (("user_vector", scores.user_ND, user), ("item_vector", scores.item_ND, item)):
        moved_ND = np.ascontiguousarray(alignment.apply(vectors_ND), np.float32)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(moved_ND.reshape(-1)), moved_ND.shape[1])
    return pa.table(columns)
