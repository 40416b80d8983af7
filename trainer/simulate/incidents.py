"""Planted incidents: what goes wrong on declared days, and a record of exactly what was done.

Incidents of a day happen in the order in which they are declared; those that damage rows or values come before the manifest
is taken, those that damage the file after it.

Shape suffixes: B rows of a day's file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.schema.simulation import EVENTS_FOLDER, EVENTS_SCHEMA, FILE_INCIDENTS, PART_FILE, IncidentSpec, PlantedIncident, SimulationSpec
from trainer.simulate.behaviour import local_hour
from trainer.simulate.world import Stream, generator

_MAGIC_BYTES = 4


def damage_rows(spec: SimulationSpec, day: str, table: pa.Table, start_ms: int) -> tuple[pa.Table, list[PlantedIncident]]:
    """Carries out the day's incidents that damage rows or values.

    Args:
        spec: Declares the incidents.
        day: Business day.
        table: Rows of the day's file.
        start_ms: First instant of the day.

    Returns:
        The damaged rows, and what was planted.
    """
    planted = []
    for number, incident in _of_day(spec, day, on_file=False):
        rng = _luck(spec, number)
        table, rows = _damage(rng, incident, table, start_ms)
        planted.append(PlantedIncident(kind=incident.kind, day=day, file=_file(day), feature=incident.feature, rows=rows))
    return table, planted


def damage_file(spec: SimulationSpec, day: str, out: Path) -> list[PlantedIncident]:
    """Carries out the day's incidents that damage the file as it lies on disk.

    Args:
        spec: Declares the incidents.
        day: Business day.
        out: Output folder.

    Returns:
        What was planted.
    """
    path, planted = out / _file(day), []
    # Where the pages lie is read while the footer is still there to say so.
    pages = _pages(path) if any(_of_day(spec, day, on_file=True)) else {}
    for number, incident in _of_day(spec, day, on_file=True):
        data = bytearray(path.read_bytes())
        record = PlantedIncident(kind=incident.kind, day=day, file=_file(day), feature=incident.feature)
        if incident.kind == "truncate_file":
            lost = max(1, round(len(data) * (incident.share or 0.0)))
            del data[len(data) - lost :]
            record = dataclasses.replace(record, bytes=lost)
        else:
            offsets = _flip(_luck(spec, number), data, pages[incident.feature], incident.bits or 1)
            record = dataclasses.replace(record, bytes=len(offsets), offsets=offsets)
        path.write_bytes(data)
        planted.append(record)
    return planted


def _of_day(spec: SimulationSpec, day: str, on_file: bool) -> list[tuple[int, IncidentSpec]]:
    return [
        (number, incident)
        for number, incident in enumerate(spec.incidents)
        if incident.day == day and (incident.kind in FILE_INCIDENTS) == on_file
    ]


def _luck(spec: SimulationSpec, number: int) -> np.random.Generator:
    return generator(spec.seed, Stream.INCIDENTS, number)


def _file(day: str) -> str:
    return f"{EVENTS_FOLDER}/dt={day}/{PART_FILE}"


def _damage(rng: np.random.Generator, incident: IncidentSpec, table: pa.Table, start_ms: int) -> tuple[pa.Table, int]:
    """Returns the damaged rows, and how many rows or cells changed."""
    hit_B = rng.random(len(table)) < (1.0 if incident.share is None else incident.share)
    time_ms_B = table["event_time_ms"].to_numpy()
    match incident.kind:
        case "drop_rows":
            return table.filter(pa.array(~hit_B)), int(hit_B.sum())
        case "missing_hour":
            # Rows of the day before that were delivered again belong to no hour of this day.
            lost_B = (time_ms_B >= start_ms) & (local_hour(time_ms_B, start_ms) == incident.hour)
            return table.filter(pa.array(~lost_B)), int(lost_B.sum())
        case "duplicate_rows":
            row_B = np.repeat(np.arange(len(table)), 1 + hit_B)
            return table.take(row_B), int(hit_B.sum())
    return _damage_values(incident, table, hit_B)


def _damage_values(incident: IncidentSpec, table: pa.Table, hit_B: np.ndarray) -> tuple[pa.Table, int]:
    name = incident.feature or ""
    column, field = table[name].combine_chunks(), EVENTS_SCHEMA.field(name)
    hit = pa.array(hit_B)
    match incident.kind:
        case "zero_feature":
            damaged = pc.if_else(hit, pa.scalar(0, field.type), column)
        case "scale_feature":
            scaled = pc.multiply(pc.cast(column, pa.float64()), pa.scalar(incident.factor, pa.float64()))
            damaged = pc.if_else(hit, pc.cast(scaled, field.type, safe=False), column)
        case "null_feature":
            damaged = pc.if_else(hit, pa.scalar(None, field.type), column)
        case _:
            damaged = pc.if_else(hit, pc.cast(pc.equal(column, 0), field.type), column)
    same = pc.fill_null(pc.equal(column, damaged), False)
    both_null = pc.and_(pc.is_null(column), pc.is_null(damaged))
    changed = int(pc.sum(pc.invert(pc.or_(same, both_null))).as_py() or 0)
    return table.set_column(table.schema.get_field_index(name), field, damaged), changed


def _pages(path: Path) -> dict[str | None, list[tuple[int, int]]]:
    """Returns where the pages of each column lie (start, end), and under None those of all columns."""
    metadata = pq.read_metadata(path)
    pages: dict[str | None, list[tuple[int, int]]] = {None: []}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            span = (start, start + chunk.total_compressed_size)
            pages.setdefault(chunk.path_in_schema, []).append(span)
            pages[None].append(span)
    return pages


def _flip(rng: np.random.Generator, data: bytearray, spans: list[tuple[int, int]], bits: int) -> list[int]:
    """Turns over bits at different bytes within `spans`; returns the bytes' offsets, ascending."""
    bytes_N = np.concatenate([np.arange(start, min(end, len(data))) for start, end in spans])
    offsets = np.sort(rng.choice(bytes_N, min(bits, len(bytes_N)), replace=False)).tolist()
    for offset in offsets:
        data[offset] ^= 1 << int(rng.integers(8))
    return offsets
