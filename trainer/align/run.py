"""`scripts/compare_embeddings.py`: any two tables of vectors, before one of them replaces the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from trainer.align.alignment import IDENTITY, Alignment
from trainer.align.compare import Comparison, compare
from trainer.align.tables import VectorFile, open_table, pair, sampled
from trainer.config import CompareRunConfig
from trainer.schema.files import write_text
from trainer.schema.plain import as_plain
from trainer.schema.verdict import Check

COMPARE_VERSION = 1


Replay = Callable[[VectorFile, VectorFile, Comparison], list[Check]]  # old, new, what was found


def run(config: CompareRunConfig, replay: Replay | None = None) -> Comparison:
    """Compares two tables and writes `compare.json`; if a shift or a rotation is all, also the repaired vectors.

    Numbers are of the entities drawn (`MAX_ENTITIES` of the old table: ``entities`` and ``drawn``, their share, in the answer), of
    fewer where a check's ``n`` or sentence says so. That every vector is finite is looked at in all of them; so are repeated ids.

    Args:
        config: The two tables and the folder of the answer.
        replay: Judges the vectors by a live model; its checks join the answer.

    Returns:
        The comparison. `aligned.parquet` (id, vector; or the file of ``repair``) and `alignment.json` are there exactly when the outcome
        is ``shifted`` or ``rotated``.

    Raises:
        DataError: If a table cannot be read or the two have no entity in common.
    """
    old, new = (open_table(Path(path), config.entity, config.id_column) for path in (config.old, config.new))
    pairs = pair(*sampled(old, new))
    found = compare(pairs)
    if replay is not None:
        found = replace(found, checks=[*found.checks, *replay(old, new, found)])
    out = Path(config.run_dir)
    out.mkdir(parents=True, exist_ok=True)
    repaired = Path(config.repair) if config.repair is not None else out / "aligned.parquet"
    for path in (repaired, out / "alignment.json"):  # of an earlier comparison
        path.unlink(missing_ok=True)
    if found.alignment.method != IDENTITY:
        repaired.parent.mkdir(parents=True, exist_ok=True)
        _write_aligned(new, found.alignment, repaired)
        write_text(out / "alignment.json", json.dumps(alignment_values(found.alignment), allow_nan=False) + "\n")
    answer = {
        "version": COMPARE_VERSION, "outcome": found.outcome, "sentence": found.sentence, "alignment": found.alignment.method,
        "old": old.source, "new": new.source, "entities": len(pairs.old_ED), "drawn": pairs.drawn,
        "checks": [as_plain(check) for check in found.checks],
    }  # fmt: skip
    write_text(out / "compare.json", json.dumps(answer, indent=1) + "\n")
    _show(found, out)
    return found


def alignment_values(alignment: Alignment) -> dict[str, object]:
    """Returns an alignment as plain values: ``aligned = (vector - source_mean) @ rotation + target_mean``."""
    return {
        "method": alignment.method,
        "anchors": alignment.anchors,
        "source_mean": alignment.source_mean_D.tolist(),
        "rotation": alignment.rotation_DD.tolist(),
        "target_mean": alignment.target_mean_D.tolist(),
    }


def _write_aligned(table: VectorFile, alignment: Alignment, path: Path) -> None:
    """Writes all vectors of a table, aligned, under a name of their own until they are complete."""
    partial, writer = path.with_name(f".{path.name}.partial"), None
    try:
        for ids, vectors_MD in table.blocks():
            aligned_MD = np.ascontiguousarray(alignment.apply(vectors_MD), np.float32)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(aligned_MD.reshape(-1)), aligned_MD.shape[1])
            batch = pa.record_batch({"id": ids, "vector": flat})
            # No dictionary: hardly two coordinates are equal, and looking for them takes most of the time of writing.
            writer = writer or pq.ParquetWriter(partial, batch.schema, compression="none", use_dictionary=False, write_page_checksum=True)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
            partial.replace(path)
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)


def _show(found: Comparison, out: Path) -> None:
    console = Console()
    console.print(f"[bold]{found.outcome}[/bold]: {found.sentence}")
    table = Table(box=None, pad_edge=False)
    for heading in ("outcome", "check", "finding"):
        table.add_column(heading)
    for check in found.checks:
        table.add_row(check.outcome, check.name if check.slice == "all" else f"{check.name} {check.slice}", check.sentence)
    console.print(table)
    print(out / "compare.json")
