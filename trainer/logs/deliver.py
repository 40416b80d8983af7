"""What scan left of a file, as rebuild and everybody else reads it: verified, conformed, treated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from trainer.errors import DataError
from trainer.logs.conform import conform
from trainer.logs.decode import healthy_rows
from trainer.logs.roles import source_columns, tick_units
from trainer.logs.treat import treat
from trainer.schema.health import DayHealth, FileHealth
from trainer.schema.logs import LogSpec


def delivered(spec: LogSpec, file: FileHealth, health: DayHealth, types: Mapping[str, str]) -> pa.Table:
    """Reads one file of a day that was not refused.

    Args:
        spec: The log.
        file: The file; not quarantined.
        health: Verdict on its day.
        types: Source column -> logical type.

    Returns:
        Conformed source columns: damaged chunks, masked columns and treated cells are null; rows set aside are absent.

    Raises:
        DataError: If the file cannot be read, or is not what was scanned.
    """
    path = Path(spec.root) / file.path
    try:
        with pa.OSFile(str(path)) as source:  # no memory map: the file may change; and a third of the time of `read_bytes`
            data = source.read_buffer()
    except OSError as error:
        raise DataError("cannot read a file of the log", where=path, got=str(error), remedy="run the scan again") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DataError("a file changed after it was scanned", where=path, remedy="run the scan again")
    columns = [name for name in source_columns(spec) if name not in health.masked_columns]
    raw = healthy_rows(data, spec.layout.format, columns, file.masked, file.dropped_groups)
    conformed, _ = conform(raw, types, tick_units(spec))
    return treat(conformed, spec, health.rules, file.path)[0]
