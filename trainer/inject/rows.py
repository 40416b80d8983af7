"""Damage to rows: repeated, lost, late, misdated, mislabelled; and ids that are not what they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.inject.site import Site, is_number, numbers, set_cells
from trainer.logs.conform import conform, logical_type
from trainer.logs.hashing import hash_ids
from trainer.logs.normalise import instant_ms
from trainer.logs.roles import time_columns
from trainer.schema.injection import Planted
from trainer.schema.time import DAY_MS, HOUR_MS, TICKS_PER_MS, day_start_ms

_FAR_ID, _NEGATIVE_ID = 2**40, -5
_STEPS = (3, 72, 7200, 259_200, 259_200_000)  # days, hours, hours * 100, seconds, milliseconds: three days in some unit


def duplicate_rows(site: Site) -> list[Planted]:
    """Delivers some rows twice."""

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        hit_N = site.hit(len(table), 0.1)
        return table.take(pa.array(np.repeat(np.arange(len(table)), 1 + hit_N))), int(hit_N.sum())

    return _records(site, site.edit(change), None, "delivered twice")


def duplicate_file(site: Site) -> list[Planted]:
    """Delivers a file a second time, under another name."""
    source = Path(site.spec.root) / site.file
    target = source.with_name(f"{source.stem}-replayed{source.suffix}")
    copyfile(source, target)
    site.vouch()
    path = str(target.relative_to(site.spec.root))
    return [site.planted(file=path, rows=len(site.read(path)), note=f"a copy of {source.name}")]


def missing_hours(site: Site) -> list[Planted]:
    """Loses consecutive hours in which the log is busy."""
    hours = site.settings.hours or 3
    start = day_start_ms(site.day, site.spec.timezone)
    counts_H = np.zeros(24, np.int64)
    for path in site.files:
        hour_N = (_event_ms(site, site.read(path)) - start) // HOUR_MS
        counts_H += np.bincount(hour_N[(hour_N >= 0) & (hour_N < 24)], minlength=24)
    busy = [hour for hour in range(25 - hours) if counts_H[hour : hour + hours].sum() >= hours / 24 * counts_H.sum()]
    first = busy[int(site.rng.integers(len(busy)))]

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        hour_N = (_event_ms(site, table) - start) // HOUR_MS
        lost_N = (hour_N >= first) & (hour_N < first + hours)
        return table.filter(pa.array(~lost_N)), int(lost_N.sum())

    return _records(site, site.edit(change), None, f"hours {first} to {first + hours - 1} lost")


def out_of_order(site: Site) -> list[Planted]:
    """Shuffles the rows of the files."""
    return _records(site, site.edit(lambda table: (table.take(pa.array(site.rng.permutation(len(table)))), len(table))), None, "shuffled")


def time_out_of_day(site: Site) -> list[Planted]:
    """Moves some events ten days ahead, and some to 1970."""
    name, ticks = _time_column(site)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        hit_N = site.hit(len(table), 0.005)
        value_N = np.asarray(table[name].cast(pa.int64()).fill_null(0), np.int64)
        far_N = np.where(site.rng.random(len(table)) < 0.5, value_N + int(10 * DAY_MS * ticks), 86_400)
        return set_cells(table, name, far_N, hit_N)

    return _records(site, site.edit(change), name, "ten days ahead, or 1970")


def time_unit(site: Site) -> list[Planted]:
    """Lets one producer write the event time in another unit."""
    name, _ = _time_column(site)
    factor = site.settings.factor or 1000.0

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        value_N = np.asarray(table[name].cast(pa.int64()).fill_null(0), np.int64)
        fresh_N = value_N * int(factor) if factor >= 1 else value_N // round(1 / factor)
        return set_cells(table, name, fresh_N, site.hit(len(table), 0.3))

    return _records(site, site.edit(change), name, f"x{factor:g} for one producer")


def late_rows(site: Site) -> list[Planted]:
    """Lets some rows become known three days later."""
    name, step = _knowledge_step(site)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        value_N = np.asarray(table[name].cast(pa.int64()).fill_null(0), np.int64)
        return set_cells(table, name, value_N + step, site.hit(len(table), 0.1))

    return _records(site, site.edit(change), name, "known three days later")


def label_flip(site: Site) -> list[Planted]:
    """Turns every label of the day over."""
    return _labels(site, 1.0, lambda site, table, label_N: 1 - label_N, "turned over")


def label_noise(site: Site) -> list[Planted]:
    """Turns some labels over."""
    return _labels(site, 0.1, lambda site, table, label_N: 1 - label_N, "turned over")


def labels_all_zero(site: Site) -> list[Planted]:
    """Loses every positive: the join found nothing."""
    return _labels(site, 1.0, lambda site, table, label_N: np.zeros(len(label_N)), "zero")


def unripe_labels(site: Site) -> list[Planted]:
    """Loses the positives of the day's last busy hours: the join ran before they had happened."""
    hours = site.settings.hours or 6
    last = max(int(_event_ms(site, site.read(path)).max()) for path in site.files)
    end = min(day_start_ms(site.day, site.spec.timezone) + DAY_MS, last)

    def cut(site: Site, table: pa.Table, label_N: np.ndarray) -> np.ndarray:
        return np.where(_event_ms(site, table) >= end - hours * HOUR_MS, 0, label_N)

    return _labels(site, 1.0, cut, f"the last {hours} hours have no positive")


def out_of_range_id(site: Site) -> list[Planted]:
    """Adds 2**40 to some ids and makes others negative."""

    def change(table: pa.Table, name: str) -> tuple[pa.Table, int]:
        hit_N = site.hit(len(table), 0.005)
        id_N = np.asarray(table[name].cast(pa.int64()).fill_null(0), np.int64)
        bad = pa.array(np.where(site.rng.random(len(table)) < 0.5, id_N % 2**31 + _FAR_ID, _NEGATIVE_ID))
        mixed = pc.if_else(pa.array(hit_N), bad, pa.array(id_N))
        return table.set_column(table.schema.get_field_index(name), name, mixed), int(hit_N.sum())

    name = site.settings.feature or site.spec.item
    if not pa.types.is_integer(site.schema.field(name).type):
        raise site.refusal("only integers have a range", f"{name}: {site.schema.field(name).type}")
    return _records(site, site.edit(lambda table: change(table, name)), name, "far too large, or negative")


def resalted_ids(site: Site) -> list[Planted]:
    """Hashes the ids of a day with another salt: the same users under other names."""

    def fresh(table: pa.Table, name: str) -> pa.Array:
        kind = table.schema.field(name).type
        hashed_N = hash_ids(pc.add(table[name].cast(pa.int64()), 7_777_777) if pa.types.is_integer(kind) else table[name])
        if not pa.types.is_integer(kind):
            return pa.array([f"{code:016x}" for code in hashed_N.tolist()])
        usual = np.asarray(table[name].cast(pa.int64()).fill_null(0), np.int64)
        return pa.array((hashed_N % np.uint64(max(int(usual.max()) * 8, 1))).astype(np.int64)).cast(pa.int64())

    name = site.settings.feature or site.spec.user

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        return table.set_column(table.schema.get_field_index(name), name, fresh(table, name)), len(table)

    return _records(site, site.edit(change), name, "hashed with another salt")


def id_collapse(site: Site) -> list[Planted]:
    """Gives every row the same id."""
    name = site.settings.feature or site.spec.user

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        zero = np.zeros(len(table)) if is_number(table.schema.field(name).type) else pa.array(["0"] * len(table))
        return set_cells(table, name, zero, site.hit(len(table), 1.0))

    return _records(site, site.edit(change), name, "one id for all")


def bot_user(site: Site) -> list[Planted]:
    """Adds a user who makes up a share of the day: copies of random rows at random times of the day."""
    share = site.settings.share or 0.08
    name, ticks = _time_column(site)
    start = day_start_ms(site.day, site.spec.timezone)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        count = round(len(table) * share / (1 - share))
        copies = table.take(pa.array(site.rng.integers(0, len(table), count)))
        bot = table[site.spec.user].slice(0, 1).to_pylist() * count
        copies, _ = set_cells(copies, site.spec.user, pa.array(bot, table.schema.field(site.spec.user).type), np.ones(count, bool))
        # Just after events that happened, so that the copies lie in the hours in which the log has rows.
        time_N = np.asarray(copies[name].cast(pa.int64()), np.int64) + (site.rng.integers(1, 1000, count) * ticks).astype(np.int64)
        in_day_N = np.maximum(time_N, int(start * ticks))
        copies, _ = set_cells(copies, name, in_day_N, np.ones(count, bool))
        copies = _fresh_event_ids(site, copies)
        joined = pa.concat_tables([table, copies.cast(table.schema)])
        return joined.take(pc.sort_indices(joined, sort_keys=[(name, "ascending")])), count

    return _records(site, site.edit(change), site.spec.user, f"one user makes {share:.0%} of the rows")


def _fresh_event_ids(site: Site, copies: pa.Table) -> pa.Table:
    if site.spec.event_id is None:
        return copies
    kind = copies.schema.field(site.spec.event_id).type
    ids_N = -1 - site.rng.integers(0, 2**62, len(copies))
    fresh = pa.array(ids_N).cast(kind) if pa.types.is_integer(kind) else pa.array([f"bot{number}" for number in ids_N.tolist()], kind)
    return set_cells(copies, site.spec.event_id, fresh, np.ones(len(copies), bool))[0]


def _labels(site: Site, share: float, fresh: Callable[[Site, pa.Table, np.ndarray], np.ndarray], note: str) -> list[Planted]:
    _, name = site.label()

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        label_N = np.nan_to_num(numbers(table, name))
        return set_cells(table, name, fresh(site, table, label_N), site.hit(len(table), share))

    return _records(site, site.edit(change), name, note)


def _event_ms(site: Site, table: pa.Table) -> np.ndarray:
    """Returns the event times of a raw file (ms)."""
    columns = time_columns(site.spec.event_time)
    conformed, _ = conform(table, {name: logical_type(table.schema.field(name).type) for name in columns})
    return instant_ms(conformed, site.spec.event_time, site.spec.timezone).value_N


def _time_column(site: Site) -> tuple[str, float]:
    """Returns the column of the event time and its ticks a millisecond."""
    instant = site.spec.event_time
    if instant.column is None:
        raise site.refusal("the event time is an expression", instant.expression)
    kind = site.schema.field(instant.column).type
    return instant.column, TICKS_PER_MS[kind.unit if pa.types.is_timestamp(kind) else instant.unit]


def _knowledge_step(site: Site) -> tuple[str, int]:
    """Finds a column of `known_at` and what to add to it so that rows are known about three days later.

    Raises:
        ConfigError: If the log has no such column.
    """
    columns = [name for name in time_columns(site.spec.known_at) if name not in time_columns(site.spec.event_time)]
    if not columns:
        raise site.refusal("the log does not say when rows became known", "data.known_at")
    table = site.read(site.file)
    types = {name: logical_type(table.schema.field(name).type) for name in time_columns(site.spec.known_at)}
    before_N = _known_ms(site, conform(table, types)[0])
    for name in sorted(columns):
        for step in _STEPS:
            moved, _ = set_cells(table.select(list(types)), name, numbers(table, name) + step, np.ones(len(table), bool))
            try:
                delay = float(np.median(_known_ms(site, conform(moved, types)[0]) - before_N))
            except ValueError:  # no date
                continue
            if 2.5 * DAY_MS <= delay <= 3.5 * DAY_MS:
                return name, step
    raise site.refusal("no column moves the knowledge time by three days", ", ".join(columns))


def _known_ms(site: Site, table: pa.Table) -> np.ndarray:
    return instant_ms(table, site.spec.known_at, site.spec.timezone).value_N


def _records(site: Site, done: list[tuple[str, int]], name: str | None, note: str) -> list[Planted]:
    return [site.planted(file=path, feature=name, rows=rows, note=note) for path, rows in done]
