"""Damage to the shape of a file: columns, types, names; what a producer's release does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.inject.site import Site, is_number, numbers, set_cells, swap_in
from trainer.logs.roles import time_columns
from trainer.schema.injection import Planted
from trainer.schema.time import TICKS_PER_MS

_GARBAGE = ("NULL", '{"value": 3}', "n/a", "")
_LONG = 100_000  # elements of a list, characters of a text: no feature value is that long
_INVALID = b"\xff\xfe\x80garbage"


def missing_column(site: Site) -> list[Planted]:
    """Drops a column."""
    name = site.column(lambda kind: True)
    done = site.edit(lambda table: (table.drop_columns([name]), len(table)))
    return _records(site, done, name, "dropped")


def wrong_dtype(site: Site) -> list[Planted]:
    """Writes integers as reals, reals as text: nothing is lost."""
    name = site.column(is_number)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        target = pa.float64() if pa.types.is_integer(table.schema.field(name).type) else pa.string()
        return swap_in(table, name, table[name].combine_chunks().cast(target)), len(table)

    return _records(site, site.edit(change), name, "the same values in another type")


def wrong_dtype_garbage(site: Site) -> list[Planted]:
    """Writes numbers as text, some of which is none."""
    name = site.column(is_number)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        hit_N = site.hit(len(table), 0.02)
        garbage = pa.array([_GARBAGE[index] for index in site.rng.integers(0, len(_GARBAGE), len(table))])
        return swap_in(table, name, pc.if_else(pa.array(hit_N), garbage, table[name].combine_chunks().cast(pa.string()))), int(hit_N.sum())

    return _records(site, site.edit(change), name, "text instead of numbers")


def typed_time(site: Site) -> list[Planted]:
    """Writes the event time as a typed timestamp with a timezone instead of raw ticks, or one in a coarser unit."""
    name = _time_column(site)
    unit = site.spec.event_time.unit

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        column = table[name].combine_chunks()
        if pa.types.is_timestamp(column.type):
            return swap_in(table, name, column.cast(pa.timestamp("ms"), safe=False).cast(pa.timestamp("ms", "UTC"))), len(table)
        tick_N = np.asarray(column.cast(pa.int64()).fill_null(0), np.int64)
        micro_N = (tick_N * 1000 / TICKS_PER_MS[unit]).astype(np.int64) if unit == "s" else tick_N * 1000 // int(TICKS_PER_MS[unit])
        fresh = pa.array(micro_N, mask=~np.asarray(column.is_valid())).cast(pa.timestamp("us", "UTC"))
        return swap_in(table, name, fresh), len(table)

    return _records(site, site.edit(change), name, "a typed timestamp")


def list_damage(site: Site) -> list[Planted]:
    """Writes a scalar column as lists, some empty, some null, one far too long."""
    name = site.column(lambda kind: is_number(kind) or pa.types.is_string(kind))

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        values: list[Any] = [[cell] for cell in table[name].to_pylist()]
        for row in np.flatnonzero(site.hit(len(table), 0.05)):
            values[row] = None if row % 2 else []
        values[0] = table[name].slice(0, 1).to_pylist() * _LONG
        return swap_in(table, name, pa.array(values, pa.list_(table.schema.field(name).type))), len(table)

    return _records(site, site.edit(change), name, "lists instead of values")


def invalid_text(site: Site) -> list[Planted]:
    """Writes bytes that are no UTF-8, and texts of absurd length."""
    name = site.column(lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        hit_N = site.hit(len(table), 0.02)
        cells: list[Any] = [None if cell is None else cell.encode() for cell in table[name].to_pylist()]
        rows = np.flatnonzero(hit_N)
        for place, row in enumerate(rows):
            cells[row] = b"x" * _LONG if place % 16 == 15 else _INVALID
        binary = pa.array(cells, pa.binary())
        text = pa.StringArray.from_buffers(len(binary), binary.buffers()[1], binary.buffers()[2], binary.buffers()[0], binary.null_count)
        return swap_in(table, name, text), len(rows)

    return _records(site, site.edit(change), name, "no UTF-8, or absurdly long")


def schema_drift(site: Site) -> list[Planted]:
    """Adds a column and reverses the order of the others."""

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        wider = table.append_column("added_by_a_release", pa.array(np.zeros(len(table), np.int8)))
        return wider.select(wider.column_names[::-1]), 0

    return [site.planted(file=path, note="a column more, another order") for path, _ in site.edit(change)]


def overflow(site: Site) -> list[Planted]:
    """Writes 1e300 into a real column: it is finite, and infinite as soon as it is narrowed."""
    name = site.column(is_number)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        hit_N = site.hit(len(table), 0.01)
        return swap_in(table, name, pa.array(np.where(hit_N, 1e300, numbers(table, name)), from_pandas=True)), int(hit_N.sum())

    return _records(site, site.edit(change), name, "1e300")


def mixed_version(site: Site) -> list[Planted]:
    """Splits the day into the files of two producers; the old one writes another unit."""
    name = site.column(is_number)
    factor = site.settings.factor or 1000.0
    done = []
    for path in site.files:
        table = site.read(path)
        old_N = site.rng.random(len(table)) < (site.settings.share or 0.5)
        old, _ = set_cells(table, name, numbers(table, name) * factor, np.ones(len(table), bool))
        place = path.rsplit(".", 1)
        second = f"{place[0]}-old.{place[1]}"
        _copy_options(site, path, second)
        site.rewrite(second, old.filter(pa.array(old_N)))
        site.rewrite(path, table.filter(pa.array(~old_N)))
        done.append((second, int(old_N.sum())))
    return _records(site, done, name, f"an old producer writes x{factor:g}")


def _copy_options(site: Site, source: str, target: str) -> None:
    """A new file is written with the options of its neighbour."""
    from pathlib import Path
    from shutil import copyfile

    copyfile(Path(site.spec.root) / source, Path(site.spec.root) / target)


def _time_column(site: Site) -> str:
    columns = time_columns(site.spec.event_time)
    if site.spec.event_time.column is None or not columns:
        raise site.refusal("the event time is an expression", site.spec.event_time.expression)
    return columns[0]


def _records(site: Site, done: list[tuple[str, int]], name: str, note: str) -> list[Planted]:
    return [site.planted(file=path, feature=name, rows=rows, note=note) for path, rows in done]
