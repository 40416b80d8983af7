"""Damage to bytes: what storage, transfer and half-finished jobs do to files after the pipeline has vouched for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.inject.site import Site
from trainer.logs.decode import DECODE_ERRORS, open_parquet
from trainer.logs.layout import log_folder
from trainer.logs.pages import DICTIONARY, Page, chunk_pages, read_struct
from trainer.logs.roles import FEATURE, REQUIRED
from trainer.schema.injection import Planted

_SECTOR = 512
_TRIES = 200
_CLAIMED = 2**31 - 1  # bytes that a bomb's page says it unpacks to: the most that its 32-bit field can say
_ZIGZAG_I32 = 0x15  # Thrift compact: one field further, a 32-bit integer
_NUM_ROWS = 3  # field of parquet-format's FileMetaData


def truncated_file(site: Site) -> list[Planted]:
    """Cuts a file at a random byte."""
    data = _bytes(site)
    kept = int(site.rng.integers(len(data) // 10, len(data) * 9 // 10))
    return _overwrite(site, data[:kept], len(data) - kept, f"cut at byte {kept} of {len(data)}")


def zero_tail(site: Site) -> list[Planted]:
    """Keeps the length and zeroes the end: preallocated, never finished."""
    data = _bytes(site)
    kept = int(site.rng.integers(len(data) // 10, len(data) * 9 // 10))
    return _overwrite(site, data[:kept] + bytes(len(data) - kept), len(data) - kept, f"zeroes from byte {kept}")


def empty_file(site: Site) -> list[Planted]:
    """Leaves nothing, or the four bytes with which a file begins."""
    data = _bytes(site)
    left = b"" if site.rng.random() < 0.5 else data[:4]
    return _overwrite(site, left, len(data) - len(left), f"{len(left)} bytes left")


def bit_flip_page(site: Site) -> list[Planted]:
    """Turns over one bit in a data page of a column whose pages carry checksums."""
    name = site.column(lambda kind: True)
    site.need_checksums(site.file)
    return _damage_page(site, name, lambda page: page.kind != DICTIONARY, _flip)


def bit_flip_no_checksum(site: Site) -> list[Planted]:
    """Turns over one bit in a page without checksum; only the manifest's hash can tell."""
    site.need_parquet()
    site.need_manifest()
    name = site.column(lambda kind: True)
    site.rewrite(site.file, site.read(site.file), write_page_checksum=False)
    return _damage_page(site, name, lambda page: page.kind != DICTIONARY, _flip)


def zeroed_sector(site: Site) -> list[Planted]:
    """Zeroes 512 bytes (or as many as asked for) of the largest feature's pages."""
    site.need_checksums(site.file)
    size = site.settings.bytes or _SECTOR
    data = _bytes(site)
    sizes = {
        name: max(page.size for page in _pages(data, name)) for name in site.schema.names if site.roles.get(name) in (FEATURE, REQUIRED)
    }
    name = site.settings.feature or max(sizes, key=lambda key: (sizes[key], key), default=None) or site.column(lambda kind: True)

    def erase(site: Site, data: bytearray, page: Page) -> int:
        count = min(size, page.size)
        begin = page.body + int(site.rng.integers(page.size - count + 1))
        data[begin : begin + count] = bytes(count)
        return count

    return _damage_page(site, name, lambda page: page.kind != DICTIONARY and page.size >= min(size, 64), erase)


def bad_dictionary_page(site: Site) -> list[Planted]:
    """Turns over one bit in the dictionary of a column."""
    name = site.column(lambda kind: True)
    site.need_checksums(site.file, use_dictionary=[name])
    return _damage_page(site, name, lambda page: page.kind == DICTIONARY, _flip)


def footer_damage(site: Site) -> list[Planted]:
    """Overwrites bytes of the footer until it can no longer be read."""
    site.need_parquet()
    data = _bytes(site)
    length = int.from_bytes(data[-8:-4], "little")
    for _ in range(_TRIES):
        begin = len(data) - 8 - length + int(site.rng.integers(max(length - 16, 1)))
        damaged = data[:begin] + bytes(site.rng.integers(0, 256, 16, np.uint8)) + data[begin + 16 :]
        if not _opens(damaged):
            return _overwrite(site, damaged, 16, f"16 bytes of the footer at {begin}")
    raise site.refusal("no damage to the footer made it unreadable", site.file)


def footer_statistics(site: Site) -> list[Planted]:
    """Changes the number of rows that the footer claims."""
    site.need_parquet()
    data = _bytes(site)
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    values, spans, _ = read_struct(data, begin)
    first, last = spans[_NUM_ROWS]
    claimed = values[_NUM_ROWS] - 1 if values[_NUM_ROWS] > 1 else values[_NUM_ROWS] + 1
    fresh = _varint(claimed * 2, last - first)
    return _overwrite(site, data[:first] + fresh + data[last:], last - first, f"{claimed} instead of {values[_NUM_ROWS]} rows")


def decompression_bomb(site: Site) -> list[Planted]:
    """Makes a page claim that it unpacks to 2 GiB; the bytes of its checksum field make room for the longer number."""
    name = site.column(lambda kind: True)
    site.need_checksums(site.file)

    def patch(site: Site, data: bytearray, page: Page) -> int:
        (first, _), (stored, stored_end), (_, last) = page.spans[2], page.spans[3], page.spans[4]
        size = bytes(data[stored:stored_end])
        claim = _varint(_CLAIMED * 2, last - first - 1 - len(size))
        data[first:last] = claim + bytes([_ZIGZAG_I32]) + size
        data[last] += 0x10  # the next field is now one number further from its predecessor
        return last - first

    return _damage_page(site, name, lambda page: page.kind != DICTIONARY and page.crc is not None, patch)


def unexpected_file(site: Site) -> list[Planted]:
    """Leaves what an unfinished or repeated attempt leaves: a temporary file, and (beside a manifest) a second part."""
    source = Path(site.spec.root) / site.file
    names = [f"{source.name}.tmp"]
    if site.spec.layout.manifest is not None:
        site.need_manifest()
        names.append(f"{source.stem}-attempt2{source.suffix}")
    done = []
    for name in names:
        shutil.copyfile(source, source.with_name(name))
        path = str(source.with_name(name).relative_to(site.spec.root))
        done.append(site.planted(file=path, bytes=source.stat().st_size, note="a copy that nobody announced"))
    return done


def missing_file(site: Site) -> list[Planted]:
    """Deletes a file that the manifest lists."""
    site.need_manifest()
    rows, place = len(site.read(site.file)), Path(site.spec.root) / site.file
    size = place.stat().st_size
    place.unlink()
    return [site.planted(file=site.file, rows=rows, bytes=size, note="deleted")]


def corrupt_manifest(site: Site) -> list[Planted]:
    """Turns over bits of the day's manifest until it is no JSON."""
    site.need_manifest()
    place = log_folder(site.spec) / f"{site.spec.layout.partition}={site.day}" / str(site.spec.layout.manifest)
    data = bytearray(place.read_bytes())
    data[0] ^= 0x40  # the opening brace becomes a semicolon
    _replace(place, bytes(data))
    return [site.planted(file=str(place.relative_to(site.spec.root)), bytes=1, note="the manifest's first byte")]


def _damage_page(site: Site, name: str, fits: Callable[[Page], bool], damage: Callable[[Site, bytearray, Page], int]) -> list[Planted]:
    """Damages one page of a column chunk, chosen by luck, and records the rows of its row group."""
    data = bytearray(_bytes(site))
    metadata = open_parquet(bytes(data)).metadata
    chunks = [(group, chunk) for group in range(metadata.num_row_groups) for chunk in _chunks(metadata, group, name)]
    choices = [(group, page) for group, chunk in chunks for page in chunk_pages(bytes(data), chunk) if fits(page) and page.size]
    if not choices:
        raise site.refusal("the column has no such page", name)
    group, page = choices[int(site.rng.integers(len(choices)))]
    count = damage(site, data, page)
    _replace(Path(site.spec.root) / site.file, bytes(data))
    rows = metadata.row_group(group).num_rows
    return [site.planted(file=site.file, feature=name, rows=rows, bytes=count, note=f"row group {group}, page at byte {page.start}")]


def _flip(site: Site, data: bytearray, page: Page) -> int:
    data[page.body + int(site.rng.integers(page.size))] ^= 1 << int(site.rng.integers(8))
    return 1


def _chunks(metadata: Any, group: int, name: str) -> list[Any]:
    chunks = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == name]


def _pages(data: bytes, name: str) -> list[Page]:
    metadata = open_parquet(data).metadata
    return [
        page for group in range(metadata.num_row_groups) for chunk in _chunks(metadata, group, name) for page in chunk_pages(data, chunk)
    ]


def _varint(number: int, length: int) -> bytes:
    """Encodes a number in exactly `length` bytes; Thrift readers accept the padding."""
    digits = [number >> 7 * place & 0x7F for place in range(length)]
    if number >> 7 * length:
        raise ValueError(f"{number} does not fit into {length} bytes")
    return bytes([digit | 0x80 for digit in digits[:-1]] + digits[-1:])


def _opens(data: bytes) -> bool:
    try:
        open_parquet(data)
    except (*DECODE_ERRORS, pa.ArrowException):
        return False
    return True


def _bytes(site: Site) -> bytes:
    return (Path(site.spec.root) / site.file).read_bytes()


def _overwrite(site: Site, data: bytes, lost: int, note: str) -> list[Planted]:
    _replace(Path(site.spec.root) / site.file, data)
    return [replace(site.planted(file=site.file), bytes=lost, note=note)]


def _replace(place: Path, data: bytes) -> None:
    """Replaces a file as a whole: a link to the same bytes elsewhere must not change."""
    partial = place.with_name(f".{place.name}.damaged")
    partial.write_bytes(data)
    partial.replace(place)
