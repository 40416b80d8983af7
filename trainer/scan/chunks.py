"""Column chunks that cannot be read, and what is wrong with them.

Decoding tells that a chunk is damaged, its pages tell how: a failing dictionary, a stretch of zeros where a sector was lost, a
header that claims to unpack to gigabytes (such a chunk is never handed to the decoder).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from trainer.logs.decode import DECODE_ERRORS, read_chunks
from trainer.logs.pages import DICTIONARY, Page, chunk_pages, chunk_span, page_statistics, well_formed

_SLACK = 1 << 16  # bytes by which the sum in the footer may fall short of its pages
_FORMS = {"BOOLEAN": "<?", "INT32": "<i", "INT64": "<q", "FLOAT": "<f", "DOUBLE": "<d", "BYTE_ARRAY": "s"}
_ZEROS = 256  # a run of zeros this long in a damaged page is a lost sector, not a flipped bit


@dataclass(frozen=True)
class ChunkDamage:
    """A column chunk that cannot be read."""

    column: str
    group: int
    kind: str
    rows: int
    bytes: int
    evidence: str


def damaged_chunks(data: bytes, opened: pq.ParquetFile, group: int, columns: list[str]) -> dict[str, ChunkDamage]:
    """Finds the columns of a row group that cannot be read; one read in the healthy case.

    Args:
        data: Bytes of the file.
        opened: The same, opened with checksums verified.
        group: Row group.
        columns: Columns to try.
    """
    found = {name: bomb for name in columns if (bomb := _bomb(data, opened, group, name)) is not None}
    rest = [name for name in columns if name not in found]
    if not _readable(opened, group, rest):
        found |= {name: _diagnosed(data, opened, group, name) for name in rest if not _readable(opened, group, [name])}
    return found


def misfit_chunks(data: bytes, opened: pq.ParquetFile, group: int, columns: list[str]) -> dict[str, ChunkDamage]:
    """Finds chunks whose page headers contradict themselves or the footer: no checksum covers a header.

    Only for a file that is known to have changed and whose pages are all sound: what is found here is where it changed.

    Args:
        data: Bytes of the file.
        opened: The same, opened.
        group: Row group.
        columns: Columns to look at.
    """
    found = {}
    for name in columns:
        if any(_contradicts(data, chunk) for chunk in _chunks(opened, group, name)):
            found[name] = _damage(opened, group, name, "bit_flip_page", "the header of a page contradicts the footer")
    return found


def _contradicts(data: bytes, chunk: Any) -> bool:
    try:
        pages = list(chunk_pages(data, chunk))
        if not all(well_formed(data, page) for page in pages):
            return True
        pages = [page for page in pages if page.kind != DICTIONARY]
        headers = [page_statistics(data, page) for page in pages]
    except ValueError:
        return True
    if any(header[old] != header[new] for header in headers for old, new in ((1, 5), (2, 6)) if old in header and new in header):
        return True
    if len(pages) != 1 or chunk.statistics is None or not headers[0]:
        return False
    said, header, form = chunk.statistics, headers[0], _FORMS.get(chunk.physical_type)
    pairs = [(header.get(3), said.null_count if said.has_null_count else None)]
    if said.has_min_max:
        low, high = _raw(said.min_raw, form), _raw(said.max_raw, form)
        pairs += [(header.get(2), low), (header.get(6), low), (header.get(1), high), (header.get(5), high)]
    return any(mine is not None and theirs is not None and mine != theirs for mine, theirs in pairs)


def _raw(value: Any, form: str | None) -> bytes | None:
    """Returns a physical value in the bytes in which Parquet stores it."""
    if form is None:
        return None
    return value if isinstance(value, bytes) else struct.pack(form, value)


def rows_by_chunks(opened: pq.ParquetFile) -> int:
    """Returns the rows that the column chunks hold, as far as they agree; -1 where they contradict each other."""
    metadata = opened.metadata
    flat = [index for index in range(metadata.num_columns) if metadata.schema.column(index).max_repetition_level == 0]
    rows = 0
    for group in range(metadata.num_row_groups):
        counts = {metadata.row_group(group).num_rows, *(metadata.row_group(group).column(index).num_values for index in flat)}
        if len(counts) > 1:
            return -1
        rows += counts.pop()
    return rows


def _readable(opened: pq.ParquetFile, group: int, columns: list[str]) -> bool:
    try:
        return len(read_chunks(opened, group, columns)) == opened.metadata.row_group(group).num_rows
    except DECODE_ERRORS:
        return False


def _chunks(opened: pq.ParquetFile, group: int, name: str) -> list[Any]:
    metadata = opened.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == name]


def _bomb(data: bytes, opened: pq.ParquetFile, group: int, name: str) -> ChunkDamage | None:
    """Tells whether a page claims to unpack to more than the whole chunk does."""
    for chunk in _chunks(opened, group, name):
        try:
            claimed = max((page.unpacked for page in chunk_pages(data, chunk)), default=0)
        except ValueError:
            continue  # decoding will fail, and say so
        if claimed > chunk.total_uncompressed_size + _SLACK:
            evidence = f"a page claims to unpack to {claimed:,} bytes, the chunk to {chunk.total_uncompressed_size:,}"
            return _damage(opened, group, name, "decompression_bomb", evidence)
    return None


def _diagnosed(data: bytes, opened: pq.ParquetFile, group: int, name: str) -> ChunkDamage:
    for chunk in _chunks(opened, group, name):
        try:
            failing = [page for page in chunk_pages(data, chunk) if _fails(data, page)]
        except ValueError as error:
            begin, end = chunk_span(chunk)
            kind = "zeroed_sector" if bytes(_ZEROS) in data[begin:end] else "bit_flip_page"
            return _damage(opened, group, name, kind, f"no sound page header: {error}")
        if failing:
            page = failing[0]
            body = data[page.body : page.body + page.size]
            kind = (
                "bad_dictionary_page"
                if page.kind == DICTIONARY
                else "zeroed_sector"
                if bytes(min(_ZEROS, page.size)) in body
                else "bit_flip_page"
            )
            return _damage(opened, group, name, kind, f"checksum of the page at byte {page.start} fails")
    return _damage(opened, group, name, "bit_flip_page", "decoding of a page fails")


def _fails(data: bytes, page: Page) -> bool:
    return page.crc is not None and zlib.crc32(data[page.body : page.body + page.size]) != page.crc & 0xFFFFFFFF


def _damage(opened: pq.ParquetFile, group: int, name: str, kind: str, evidence: str) -> ChunkDamage:
    size = sum(chunk.total_compressed_size for chunk in _chunks(opened, group, name))
    return ChunkDamage(name, group, kind, opened.metadata.row_group(group).num_rows, size, evidence)
