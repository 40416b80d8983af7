"""Page headers of a Parquet column chunk, read from the bytes: what pyarrow verifies but does not tell.

A header is a Thrift struct in the compact protocol: type, uncompressed size, compressed size, optional CRC-32, then the details
of one kind of page (parquet-format, `PageHeader`). Only the first four fields matter here; the rest is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

DATA, DICTIONARY = 0, 2  # parquet-format PageType; 3 is a data page of version 2

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)
_DATA_HEADER, _STATISTICS = 5, 5  # fields of PageHeader and DataPageHeader
_MAX_DEPTH = 8

# The format's structs: field -> types that it may have, or the struct in it.
_Shape: TypeAlias = "dict[int, Any]"
_NUMBER, _LEVELS, _BYTES, _FLAG = (5, 6), (5,), (_BINARY,), (_TRUE, _FALSE)
_LEVEL_ENCODINGS = (3, 4)  # RLE, and BIT_PACKED of old writers
_VALUE_STATISTICS: _Shape = {1: _BYTES, 2: _BYTES, 3: _NUMBER, 4: _NUMBER, 5: _BYTES, 6: _BYTES, 7: _FLAG, 8: _FLAG, 9: _NUMBER}
_PAGE_HEADER: _Shape = {
    1: _NUMBER, 2: _NUMBER, 3: _NUMBER, 4: _NUMBER,
    5: {1: _NUMBER, 2: _NUMBER, 3: _LEVELS, 4: _LEVELS, 5: _VALUE_STATISTICS},
    6: {},
    7: {1: _NUMBER, 2: _NUMBER, 3: _FLAG},
    8: {1: _NUMBER, 2: _NUMBER, 3: _NUMBER, 4: _NUMBER, 5: _NUMBER, 6: _NUMBER, 7: _FLAG, 8: _VALUE_STATISTICS},
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        kind: Parquet's page type (0 data, 2 dictionary, 3 data of version 2).
        start: Offset of the header in the file.
        body: Offset of the page's bytes.
        size: Bytes of the page as stored.
        unpacked: Bytes after decompression, as the header claims.
        crc: CRC-32 of the stored bytes; None where the writer left it out.
        spans: Field number -> (first, past-the-end offset) of the first four values; for whoever wants to damage them.
    """

    kind: int
    start: int
    body: int
    size: int
    unpacked: int
    crc: int | None
    spans: dict[int, tuple[int, int]]


def chunk_span(chunk: Any) -> tuple[int, int]:
    """Returns where a column chunk (pyarrow metadata) begins and ends in its file."""
    dictionary = chunk.dictionary_page_offset
    start = min(dictionary, chunk.data_page_offset) if dictionary else chunk.data_page_offset
    return start, start + chunk.total_compressed_size


def chunk_pages(data: bytes, chunk: Any) -> Iterator[Page]:
    """Yields the pages of a column chunk in order.

    Args:
        data: Bytes of the whole file.
        chunk: pyarrow's metadata of the chunk.

    Raises:
        ValueError: Where the bytes are no page header, or a page reaches out of its chunk.
    """
    offset, end = chunk_span(chunk)
    if not 0 <= offset < end <= len(data):
        raise ValueError(f"a column chunk at bytes {offset} to {end} of {len(data)}")
    while offset < end:
        page = read_page(data, offset)
        if page.size < 0 or page.body + page.size > end:
            raise ValueError(f"a page of {page.size} bytes at {offset} reaches out of its chunk")
        yield page
        offset = page.body + page.size


def read_page(data: bytes, offset: int) -> Page:
    """Reads the page header at `offset`.

    Raises:
        ValueError: If there is none.
    """
    values, spans, end = read_struct(data, offset)
    if not {1, 2, 3} <= values.keys():
        raise ValueError(f"no page header at {offset}")
    return Page(values[1], offset, end, values[3], values[2], values.get(4), spans)


def read_struct(data: bytes, offset: int) -> tuple[dict[int, int], dict[int, tuple[int, int]], int]:
    """Reads the integers of a Thrift struct in the compact protocol and skips everything else.

    Returns:
        Field number -> value, field number -> where the value lies, and the offset behind the struct.

    Raises:
        ValueError: If the bytes are no struct.
    """
    fields, end = _fields(data, offset)
    spans = {field: (begin, after) for field, (kind, begin, after) in fields.items() if kind in _INTEGERS}
    return {field: _signed(_varint(data, begin)[0]) for field, (begin, _) in spans.items()}, spans, end


def page_statistics(data: bytes, page: Page) -> dict[int, bytes | int]:
    """Returns the statistics in the header of a data page by field: 1 and 5 largest value, 2 and 6 smallest, 3 nulls.

    Raises:
        ValueError: If the header is damaged.
    """
    place = page.start
    found: dict[int, bytes | int] = {}
    for field in (_DATA_HEADER, _STATISTICS):
        fields, _ = _fields(data, place)
        if field not in fields:
            return {}
        place = fields[field][1]
    for field, (kind, begin, end) in _fields(data, place)[0].items():
        if kind == _BINARY:
            found[field] = data[_varint(data, begin)[1] : end]
        elif kind in _INTEGERS:
            found[field] = _signed(_varint(data, begin)[0])
    return found


def well_formed(data: bytes, page: Page) -> bool:
    """Tells whether a page header has only the fields of the format, with their types and believable encodings of levels."""
    try:
        return _fits(data, page.start, _PAGE_HEADER)
    except ValueError:
        return False


def _fits(data: bytes, offset: int, shape: _Shape) -> bool:
    return all(_fits_one(data, kind, begin, shape.get(field, ())) for field, (kind, begin, _) in _fields(data, offset)[0].items())


def _fits_one(data: bytes, kind: int, begin: int, wanted: _Shape | tuple[int, ...]) -> bool:
    if isinstance(wanted, dict):
        return kind == _STRUCT and _fits(data, begin, wanted)
    return kind in wanted and (wanted is not _LEVELS or _signed(_varint(data, begin)[0]) in _LEVEL_ENCODINGS)


def _fields(data: bytes, offset: int) -> tuple[dict[int, tuple[int, int, int]], int]:
    """Returns field number -> (type, first, past-the-end offset) of a struct, and the offset behind it."""
    fields: dict[int, tuple[int, int, int]] = {}
    field, place = 0, offset
    try:
        while head := data[place]:
            place, kind = place + 1, head & 0x0F
            if head >> 4:
                field += head >> 4
            else:
                number, place = _varint(data, place)
                field = _signed(number)
            begun, place = place, _skip(data, place, kind, 0)
            fields[field] = (kind, begun, place)
    except IndexError as error:
        raise ValueError(f"a struct at {offset} runs out of the file") from error
    return fields, place + 1


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError(f"an integer without end at {place}")


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


def _skip(data: bytes, place: int, kind: int, depth: int) -> int:
    """Returns the offset behind a value of a Thrift compact type."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested too deep at {place}")
    if kind in (_TRUE, _FALSE):
        return place
    if kind in _INTEGERS:
        return _varint(data, place)[1]
    if kind == _BYTE:
        return place + 1
    if kind == _DOUBLE:
        return place + 8
    if kind == _BINARY:
        size, place = _varint(data, place)
        return place + size
    if kind == _STRUCT:
        return _skip_struct(data, place, depth)
    if kind in (_LIST, _SET):
        head = data[place]
        count, place = (head >> 4, place + 1) if head >> 4 < 15 else _varint(data, place + 1)
        for _ in range(count):
            place = _skip(data, place, head & 0x0F, depth + 1)
        return place
    raise ValueError(f"unknown type {kind} at {place}")


def _skip_struct(data: bytes, place: int, depth: int) -> int:
    while head := data[place]:
        place += 1
        if not head >> 4:
            place = _varint(data, place)[1]
        place = _skip(data, place, head & 0x0F, depth + 1)
    return place + 1
