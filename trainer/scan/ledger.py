"""What scan writes: `scan.json` for people and programs, the quarantine ledger with a row for everything set aside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.schema.files import sync, write_text
from trainer.schema.health import LEDGER_SCHEMA, HealthMap
from trainer.schema.plain import as_plain

_IN_SCAN = ("kind", "feature", "file", "rows", "evidence")


def as_document(health: HealthMap) -> dict[str, Any]:
    """Returns what ``scan.json`` says: the map without its files, and what is only told."""
    days = {
        day: {
            "status": state.status,
            "faults": [{name: getattr(fault, name) for name in _IN_SCAN} for fault in state.faults],
            "masked_columns": state.masked_columns,
            "rows": {name: getattr(state, name) for name in ("rows", "used", "dropped", "duplicates", "late")},
        }
        for day, state in health.days.items()
    }
    notices = [as_plain(notice) for state in health.days.values() for notice in state.notices]
    return {"version": health.version, "days": days, "notices": notices}


def write_scan(health: HealthMap, run_dir: Path) -> None:
    """Writes ``quarantine/ledger.parquet`` and then ``scan.json``; same health, same bytes.

    Args:
        health: The map.
        run_dir: Folder of the run.

    Raises:
        OSError: If the disk refuses; no half-written file is left.
    """
    folder = run_dir / "quarantine"
    folder.mkdir(parents=True, exist_ok=True)
    faults = [fault for state in health.days.values() for fault in state.faults]
    table = pa.table({name: [getattr(fault, name) for fault in faults] for name in LEDGER_SCHEMA.names}, schema=LEDGER_SCHEMA)
    path = folder / "ledger.parquet"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary, write_page_checksum=True)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    write_text(run_dir / "scan.json", json.dumps(as_document(health), indent=1, ensure_ascii=False) + "\n")
