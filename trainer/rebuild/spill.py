"""Rows put aside on disk by (business day, user), so that any number of them is worked on a group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.logs.calendar import BusinessDays
from trainer.schema.ids import hash_ids

GROUP_ROWS = 100_000  # about as many are held at a time; the rows of one user and day are never torn apart
ROW = "row"


class Spill:
    """One Arrow file of small batches, each of one group, and where each group's lie.

    A group is a (day, part): parts are hashes of the user, as many a day as keep a group near `GROUP_ROWS`, and each within one user
    bucket of the rebuild.
    """

    def __init__(self, path: Path, schema: pa.Schema, rows_of: Mapping[str, int], buckets: int, zone: str) -> None:
        """Args: the file to write; user, request_time (int64 ms) and other columns; rows a day; user buckets; business time zone."""
        self._path, self._zone, self._buckets = path, zone, buckets
        self._parts = {day: buckets * -(-rows // (buckets * GROUP_ROWS)) for day, rows in rows_of.items()}
        self._schema = schema.append(pa.field(ROW, pa.int64()))
        self._places: dict[tuple[str, int], list[int]] = {}
        self._batches = 0

    def write(self, tables: Iterator[pa.Table]) -> None:
        """Writes rows, which are numbered as they come.

        Raises:
            OSError: If the disk refuses.
        """
        first = 0
        with pa.OSFile(str(self._path), "wb") as sink, pa.ipc.new_file(sink, self._schema) as writer:
            for table in tables:
                self._add(writer, table.append_column(ROW, pa.array(np.arange(first, first + len(table)))))
                first += len(table)

    def _add(self, writer: pa.RecordBatchFileWriter, table: pa.Table) -> None:
        time_N = table["request_time"].to_numpy()
        covering = BusinessDays.covering(time_N, self._zone)
        day_N = covering.index(time_N)
        parts_D = np.array([self._parts.get(day, self._buckets) for day in covering.days], np.uint64)
        part_N = (hash_ids(table["user"]) % parts_D[day_N]).astype(np.int64)
        order_N = np.lexsort((part_N, day_N))  # stable: within a group rows stay as they came
        batch = table.take(pa.array(order_N)).combine_chunks().to_batches()[0]
        day_N, part_N = day_N[order_N], part_N[order_N]
        start_G = np.flatnonzero(np.r_[True, (day_N[1:] != day_N[:-1]) | (part_N[1:] != part_N[:-1])])
        for start, end in zip(start_G, np.r_[start_G[1:], len(batch)], strict=True):
            writer.write_batch(batch.slice(start, end - start))
            self._places.setdefault((covering.days[day_N[start]], int(part_N[start])), []).append(self._batches)
            self._batches += 1

    def groups(self) -> Iterator[tuple[int, str, pa.Table]]:
        """Yields user bucket, day and rows of each group, a bucket after the other; `row` is a row's number."""
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            for day, part in sorted(self._places, key=lambda place: (place[1] % self._buckets, *place)):
                batches = [reader.get_batch(place) for place in self._places[day, part]]
                yield part % self._buckets, day, pa.Table.from_batches(batches).combine_chunks()
