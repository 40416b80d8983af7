"""Decoding of one file's bytes: row group by row group, column by column.

A file is read into memory once; hash and values come from the same bytes, so a file that is replaced meanwhile cannot mix,
and nothing is memory-mapped (a truncated map kills the process). Page checksums are verified once, by scan; whoever reads later
compares the hash of the whole file with that of the bytes that scan has verified, which proves every bit again.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from typing import NoReturn

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from trainer.errors import DataError
from trainer.logs.pages import chunk_span, read_page

DECODE_ERRORS = (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError, UnicodeDecodeError)


def open_parquet(data: bytes | pa.Buffer, *, verified: bool = False) -> pq.ParquetFile:
    """Opens Parquet bytes; reading verifies page checksums.

    Args:
        data: Bytes of the file.
        verified: Whether that was done before, with these very bytes: then reading does not do it again.

    Raises:
        OSError, pyarrow.ArrowInvalid: If the footer is damaged.
    """
    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=not verified)


def read_csv(data: bytes | pa.Buffer) -> pa.Table:
    """Reads CSV with a header line; empty cells are null."""
    return pyarrow.csv.read_csv(
        io.BytesIO(data), convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True, null_values=["", "null", "NULL"])
    )


def read_chunks(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    """Reads columns of one row group; absent columns are absent from the result."""
    return file.read_row_group(group, columns=list(columns), use_threads=False)


def healthy_rows(
    data: bytes | pa.Buffer, layout: str, columns: Iterable[str], masked: Iterable[tuple[int, str]], dropped: Iterable[int]
) -> pa.Table:
    """Reads what scan left: dropped row groups are absent, masked chunks null. Page checksums are not verified again.

    Args:
        data: The very bytes that scan has verified, by their hash.
        layout: ``parquet`` or ``csv``.
        columns: Source columns.
        masked: (row group, column) pairs.
        dropped: Row groups.

    Raises:
        DataError: If bytes that scan could read cannot be read.
    """
    wanted = list(columns)
    try:
        if layout == "csv":
            table = read_csv(data)
            return table.select([name for name in wanted if name in table.column_names])
        file = open_parquet(data, verified=True)
        masks, skip = set(masked), set(dropped)
        if not masks and not skip:
            return file.read(columns=wanted, use_threads=False)  # leaves out columns that are absent
        names = set(file.schema_arrow.names)  # a property that builds the schema each time
        present = [name for name in wanted if name in names]
        groups = [group for group in range(file.num_row_groups) if group not in skip]
        tables = [_with_nulls(file, group, present, masks) for group in groups]
        return pa.concat_tables(tables) if tables else file.schema_arrow.empty_table().select(present)
    except DECODE_ERRORS as error:
        _refuse(error)


def _with_nulls(file: pq.ParquetFile, group: int, columns: list[str], masks: set[tuple[int, str]]) -> pa.Table:
    """Reads a row group; masked chunks are nulls of the column's type."""
    healthy = [name for name in columns if (group, name) not in masks]
    table = read_chunks(file, group, healthy) if healthy else None
    rows = file.metadata.row_group(group).num_rows
    fields = [file.schema_arrow.field(name) for name in columns]
    arrays = [table[field.name] if table is not None and field.name in healthy else pa.nulls(rows, field.type) for field in fields]
    return pa.table(arrays, schema=pa.schema([field.with_nullable(True) for field in fields]))


def _refuse(error: Exception) -> NoReturn:
    raise DataError("a file that scan could read cannot be read", got=str(error), remedy="run the scan again") from error


def carries_checksums(data: bytes, file: pq.ParquetFile, apart: Collection[tuple[int, str]] = ()) -> bool:
    """Tells whether the first page of every column chunk carries a checksum (pyarrow verifies them but does not say).

    Args:
        data: Bytes of the file.
        file: The same, opened.
        apart: (row group, column) of chunks that do not count.
    """
    metadata = file.metadata
    chunks = [
        metadata.row_group(group).column(index)
        for group in range(metadata.num_row_groups)
        for index in range(metadata.num_columns)
        if (group, metadata.schema.column(index).path.split(".")[0]) not in apart
    ]
    return bool(chunks) and all(_has_crc(data, chunk) for chunk in chunks)


def _has_crc(data: bytes, chunk: pq.ColumnChunkMetaData) -> bool:
    try:
        return read_page(data, chunk_span(chunk)[0]).crc is not None
    except ValueError:
        return False
