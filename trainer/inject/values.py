"""Damage to values: files that decode, pass every checksum, and lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.inject.site import Site, is_number, numbers, set_cells
from trainer.logs.hashing import hash_ids
from trainer.logs.roles import EXTRA, FEATURE, LABEL, REQUIRED
from trainer.schema.injection import Planted

_NUMERIC_SENTINEL, _LEAK_NOISE = 999.0, 0.02


def swapped_columns(site: Site) -> list[Planted]:
    """Swaps two numeric columns under each other's names."""
    name = site.column(is_number)
    other = site.settings.partner or _partner(site, name)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        both = np.ones(len(table), bool)
        swapped, _ = set_cells(table, name, numbers(table, other), both)
        swapped, _ = set_cells(swapped, other, numbers(table, name), both)
        return swapped, len(table)

    done = site.edit(change)
    return [
        site.planted(file=path, feature=column, rows=rows, note=f"{name} <-> {other}") for path, rows in done for column in (name, other)
    ]


def unit_change(site: Site) -> list[Planted]:
    """Multiplies a column."""
    factor = site.settings.factor or float(site.rng.choice([100.0, 1000.0]))
    return _cells(site, is_number, 1.0, lambda table, name: numbers(table, name) * factor, f"x{factor:g}")


def non_finite(site: Site) -> list[Planted]:
    """Writes NaN and infinities into a real column (an integer one becomes real, as its writer would have made it)."""
    name = site.column(is_number)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        hit_N = site.hit(len(table), 0.05)
        bad_N = np.where(site.rng.random(len(table)) < 0.8, np.nan, np.inf)
        column = pa.array(np.where(hit_N, bad_N, numbers(table, name)))  # NaN, not null
        return table.set_column(table.schema.get_field_index(name), name, column), int(hit_N.sum())

    return [site.planted(file=path, feature=name, rows=rows, note="NaN and infinity") for path, rows in site.edit(change)]


def sentinel_spike(site: Site) -> list[Planted]:
    """Writes one value that stands for nothing into some cells."""
    value = _NUMERIC_SENTINEL if site.settings.value is None else site.settings.value
    return _cells(site, is_number, 0.15, lambda table, name: np.full(len(table), value), f"the value {value:g}")


def zero_filled(site: Site) -> list[Planted]:
    """Writes zero (or the empty text) into a column."""
    return _cells(site, lambda kind: is_number(kind) or pa.types.is_string(kind), 1.0, _zeros, "zero")


def constant(site: Site) -> list[Planted]:
    """Writes one usual value into the whole column: its mean, or its most frequent text."""

    def fill(table: pa.Table, name: str) -> np.ndarray | pa.Array:
        if site.settings.value is not None:
            return np.full(len(table), site.settings.value)
        if is_number(table.schema.field(name).type):
            return np.full(len(table), np.nanmean(numbers(table, name)))
        most = max(pc.value_counts(table[name].drop_null()).to_pylist(), key=lambda entry: (entry["counts"], str(entry["values"])))
        return pa.array([most["values"]] * len(table), table.schema.field(name).type)

    return _cells(site, lambda kind: True, 1.0, fill, "one value")


def stale_copy(site: Site) -> list[Planted]:
    """Copies what each user had the day before; users who were not there get a value of somebody who was."""
    earlier = site.day_table(-1)
    if earlier is None:
        raise site.refusal("there is no day before", site.day)
    past = earlier

    def fill(table: pa.Table, name: str) -> pa.Array:
        user_P, user_N = hash_ids(past[site.spec.user]), hash_ids(table[site.spec.user])
        order_P = np.argsort(user_P, kind="stable")
        first_N = np.searchsorted(user_P[order_P], user_N, side="left")
        count_N = np.searchsorted(user_P[order_P], user_N, side="right") - first_N
        own_N = first_N + (site.rng.random(len(table)) * count_N).astype(np.int64)
        row_N = np.where(count_N > 0, order_P[np.minimum(own_N, len(past) - 1)], site.rng.integers(0, len(past), len(table)))
        return past[name].combine_chunks().take(pa.array(row_N))

    return _cells(site, is_number, 1.0, fill, "yesterday's values by user")


def shuffled_column(site: Site) -> list[Planted]:
    """Permutes a column within its file: right values, wrong rows."""

    def fill(table: pa.Table, name: str) -> pa.Array:
        return table[name].combine_chunks().take(pa.array(site.rng.permutation(len(table))))

    return _cells(site, lambda kind: True, 1.0, fill, "permuted")


def future_leakage(site: Site) -> list[Planted]:
    """Replaces a numeric feature by an aggregate whose window ends a day too late: the user's own mean label of the day."""
    _, label = site.label()

    def fill(table: pa.Table, name: str) -> np.ndarray:
        _, code_N = np.unique(hash_ids(table[site.spec.user]), return_inverse=True)
        mean_N = (np.bincount(code_N, np.nan_to_num(numbers(table, label))) / np.bincount(code_N))[code_N]
        return _scaled(table, name, mean_N + site.rng.normal(0, _LEAK_NOISE, len(table)))

    return _cells(site, is_number, 1.0, fill, f"an aggregate that knows {label}")


def label_leak(site: Site) -> list[Planted]:
    """Replaces a numeric feature by the label and a little noise."""
    _, label = site.label()

    def fill(table: pa.Table, name: str) -> np.ndarray:
        return _scaled(table, name, np.nan_to_num(numbers(table, label)) + site.rng.normal(0, _LEAK_NOISE, len(table)))

    return _cells(site, is_number, 1.0, fill, f"{label} and noise")


def _scaled(table: pa.Table, name: str, value_N: np.ndarray) -> np.ndarray:
    """Gives values the ranks they have and the distribution of a column: a leak that looks like the feature it replaces."""
    usual_N = np.sort(np.nan_to_num(numbers(table, name)))
    return usual_N[np.argsort(np.argsort(value_N))]


def _zeros(table: pa.Table, name: str) -> np.ndarray | pa.Array:
    if is_number(table.schema.field(name).type):
        return np.zeros(len(table))
    return pa.array([""] * len(table))


def _partner(site: Site, name: str) -> str:
    others = [
        other
        for other in site.schema.names
        if other != name
        and site.roles.get(other) in (FEATURE, REQUIRED, EXTRA, LABEL)
        and pa.types.is_floating(site.schema.field(other).type)
    ]
    others = others or [
        other
        for other in site.schema.names
        if other != name and site.roles.get(other) in (FEATURE, REQUIRED, EXTRA) and is_number(site.schema.field(other).type)
    ]
    if not others:
        raise site.refusal("there is no second numeric column", name, "name one: faults.swapped_columns.partner")
    return others[int(site.rng.integers(len(others)))]


def _cells(
    site: Site,
    fits: Callable[[pa.DataType], bool],
    share: float,
    fill: Callable[[pa.Table, str], np.ndarray | pa.Array],
    note: str,
) -> list[Planted]:
    """Replaces cells of one column in every file of the day."""
    name = site.column(fits)

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        return set_cells(table, name, fill(table, name), site.hit(len(table), share))

    return [site.planted(file=path, feature=name, rows=rows, note=note) for path, rows in site.edit(change)]
