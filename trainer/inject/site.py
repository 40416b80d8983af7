"""Where damage is done: one day of a copied log, with the means to read, rewrite and vouch for its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from trainer.errors import ConfigError, nearest
from trainer.logs.decode import carries_checksums, open_parquet, read_csv
from trainer.logs.layout import day_folder, discover_days, log_folder
from trainer.logs.roles import FEATURE, LABEL, REQUIRED, source_columns
from trainer.schema.files import write_text
from trainer.schema.injection import FaultSettings, Planted
from trainer.schema.logs import LogSpec
from trainer.schema.time import add_days

Edit = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Site:
    """A day to damage.

    Attributes:
        kind: Kind of damage, for messages and records.
        spec: The log; its root is the copy.
        day: Business day.
        settings: How.
        rng: Luck of this piece of damage.
    """

    kind: str
    spec: LogSpec
    day: str
    settings: FaultSettings
    rng: np.random.Generator

    @cached_property
    def files(self) -> list[str]:
        """Data files of the day, as paths below the root."""
        files = day_folder(self.spec, self.day).files
        if not files:
            raise self.refusal("the day has no file", self.day)
        return files

    @cached_property
    def file(self) -> str:
        """The file that is damaged where one is enough."""
        return self.files[int(self.rng.integers(len(self.files)))]

    @cached_property
    def roles(self) -> dict[str, str]:
        return source_columns(self.spec)

    @cached_property
    def schema(self) -> pa.Schema:
        return self.read(self.files[0]).schema

    def refusal(self, what: str, got: object, remedy: str | None = None) -> ConfigError:
        """Returns the error for damage that this log cannot suffer."""
        return ConfigError(f"{self.kind}: {what}", where=f"faults.{self.kind}", got=got, remedy=remedy)

    def read(self, path: str) -> pa.Table:
        """Reads a file as it lies there."""
        place = Path(self.spec.root) / path
        return read_csv(place.read_bytes()) if self.spec.layout.format == "csv" else pq.ParquetFile(place).read()

    def day_table(self, offset: int) -> pa.Table | None:
        """Reads the whole day `offset` days away; None if the log has no such day."""
        other = add_days(self.day, offset)
        if other not in discover_days(self.spec):
            return None
        tables = [self.read(path) for path in day_folder(self.spec, other).files]
        return pa.concat_tables(tables, promote_options="permissive") if tables else None

    def column(self, fits: Callable[[pa.DataType], bool], roles: Collection[str] = (REQUIRED, FEATURE)) -> str:
        """Returns the column to damage: the one asked for, or one that fits, by luck.

        Raises:
            ConfigError: If there is none.
        """
        candidates = [name for name in self.schema.names if self.roles.get(name) in roles and fits(self.schema.field(name).type)]
        wanted = self.settings.feature
        if wanted is not None:
            if wanted not in self.schema.names:
                raise self.refusal("no such column", wanted, nearest(wanted, self.schema.names))
            return wanted
        if not candidates:
            raise self.refusal("the log has no column that this could damage", ", ".join(self.schema.names), "name one: faults.*.feature")
        return candidates[int(self.rng.integers(len(candidates)))]

    def label(self) -> tuple[str, str]:
        """Returns a binary action that the gate judges, and its source column.

        Raises:
            ConfigError: If no such action is a plain column.
        """
        plain = {
            action.expression: name
            for name, action in self.spec.actions.items()
            if action.kind == "binary" and self.roles.get(action.expression) == LABEL
        }
        if self.settings.feature in plain:
            return plain[self.settings.feature], self.settings.feature
        gated = [column for column, name in plain.items() if self.spec.actions[name].gated] or list(plain)
        if not gated:
            raise self.refusal("no binary action is a plain column", ", ".join(self.spec.actions))
        return plain[gated[0]], gated[0]

    def hit(self, rows: int, share: float) -> np.ndarray:
        """Draws which rows are hit: bool [N]; the share asked for, or the kind's own."""
        share = share if self.settings.share is None else self.settings.share
        return np.ones(rows, bool) if share >= 1 else self.rng.random(rows) < share

    def planted(self, **facts: Any) -> Planted:
        """Returns the record of what was done here."""
        return Planted(kind=self.kind, day=self.day, **facts)

    def rewrite(self, path: str, table: pa.Table, **options: Any) -> None:
        """Writes a file as its pipeline would have: same codec, row groups and checksums; the manifest vouches for it."""
        place = Path(self.spec.root) / path
        if self.spec.layout.format == "csv":
            pyarrow.csv.write_csv(table, place)
        else:
            pq.write_table(table, place, **{**_writer_options(place), **options})
        self.vouch()

    def vouch(self) -> None:
        """Writes the day's manifest anew, if the layout declares one: what is on disk now is what the pipeline delivered."""
        if self.spec.layout.manifest is None:
            return
        folder = log_folder(self.spec) / f"{self.spec.layout.partition}={self.day}"
        entries = {}
        for path in day_folder(self.spec, self.day).files:
            place = Path(self.spec.root) / path
            data = place.read_bytes()
            rows = len(read_csv(data)) if self.spec.layout.format == "csv" else pq.read_metadata(place).num_rows
            entries[str(place.relative_to(folder))] = {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows, "bytes": len(data)}
        write_text(folder / self.spec.layout.manifest, json.dumps({"files": entries}, indent=2) + "\n")

    def need_manifest(self) -> None:
        """Makes sure that a manifest vouches for the day.

        Raises:
            ConfigError: If the layout declares none: then nothing could tell.
        """
        if self.spec.layout.manifest is None:
            raise self.refusal("needs a manifest", "data.layout.manifest=null", "set data.layout.manifest, say to _MANIFEST.json")
        folder = log_folder(self.spec) / f"{self.spec.layout.partition}={self.day}"
        if not (folder / self.spec.layout.manifest).exists():
            self.vouch()

    def need_parquet(self) -> None:
        """Checks that the log is Parquet.

        Raises:
            ConfigError: If it is not.
        """
        if self.spec.layout.format != "parquet":
            raise self.refusal("only Parquet has pages and footers", self.spec.layout.format)

    def need_checksums(self, path: str, **options: Any) -> None:
        """Rewrites a file with page checksums, unless it has them and no other option is asked for."""
        self.need_parquet()
        data = (Path(self.spec.root) / path).read_bytes()
        if options or not carries_checksums(data, open_parquet(data)):
            self.rewrite(path, self.read(path), write_page_checksum=True, **options)

    def edit(self, change: Callable[[pa.Table], tuple[pa.Table, int]]) -> list[tuple[str, int]]:
        """Applies a change to every file of the day; returns (file, cells or rows changed) of those that changed."""
        done = []
        for path in self.files:
            before = self.read(path)
            after, count = change(before)
            if after is not before:
                self.rewrite(path, after)
                done.append((path, count))
        return done


def set_cells(table: pa.Table, name: str, values_N: np.ndarray | pa.Array, hit_N: np.ndarray) -> tuple[pa.Table, int]:
    """Replaces some cells of a column, which keeps its type; returns the table and how many cells differ from before."""
    before = table[name].combine_chunks()
    before = before.dictionary_decode() if pa.types.is_dictionary(before.type) else before
    fresh = values_N if isinstance(values_N, pa.Array) else pa.array(values_N)
    fresh = fresh.cast(before.type, safe=False)
    indices = np.where(hit_N, np.arange(len(table)) + len(table), np.arange(len(table)))
    after = pa.concat_arrays([before, fresh]).take(pa.array(indices))
    same = pc.or_(pc.fill_null(pc.equal(before, after), False), pc.and_(pc.is_null(before), pc.is_null(after)))
    changed = len(table) - int(pc.sum(same).as_py() or 0)
    return table.set_column(table.schema.get_field_index(name), pa.field(name, before.type), after), changed


def swap_in(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """Replaces a column by one of another type."""
    return table.set_column(table.schema.get_field_index(name), name, column)


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """Returns a column as float64 [N], NaN where null."""
    return np.asarray(table[name].cast(pa.float64(), safe=False).fill_null(np.nan), np.float64)


def is_number(kind: pa.DataType) -> bool:
    """Tells integers and reals."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _writer_options(place: Path) -> dict[str, Any]:
    data = place.read_bytes()
    file = open_parquet(data)
    metadata = file.metadata
    if not metadata.num_row_groups:
        return {"write_page_checksum": True}
    group = metadata.row_group(0)
    return {
        "write_page_checksum": carries_checksums(data, file),
        "compression": group.column(0).compression if group.column(0).compression != "UNCOMPRESSED" else "none",
        "row_group_size": max(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)) or None,
        "store_schema": b"ARROW:schema" in (metadata.metadata or {}),
    }
