"""Page headers, read from bytes."""

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.logs.decode import carries_checksums, open_parquet
from trainer.logs.pages import DICTIONARY, chunk_pages, read_page, read_struct


@pytest.fixture(params=["snappy", "zstd", "none", "lz4"])
def written(request, tmp_path):
    rng = np.random.default_rng(0)
    rows = 30_000
    table = pa.table(
        {
            "number": rng.normal(size=rows),
            "count": rng.integers(0, 9, rows),
            "word": rng.choice(["a", "bb", None], rows),
            "list": [[1, 2]] * rows,
        }
    )
    path = tmp_path / "file.parquet"
    pq.write_table(
        table,
        path,
        write_page_checksum=True,
        compression=request.param,
        row_group_size=10_000,
        data_page_size=4_096,
        use_dictionary=["word"],
    )
    return path.read_bytes()


def chunks(data):
    metadata = open_parquet(data).metadata
    return [metadata.row_group(group).column(index) for group in range(metadata.num_row_groups) for index in range(metadata.num_columns)]


def test_every_page_is_found_and_its_checksum_holds(written):
    for chunk in chunks(written):
        pages = list(chunk_pages(written, chunk))
        assert len(pages) > 1 or chunk.path_in_schema in ("count", "word")
        assert [page.kind == DICTIONARY for page in pages] == [
            chunk.dictionary_page_offset is not None and index == 0 for index in range(len(pages))
        ]
        assert all(zlib.crc32(written[page.body : page.body + page.size]) == page.crc & 0xFFFFFFFF for page in pages)
        assert sum(page.unpacked + page.body - page.start for page in pages) == chunk.total_uncompressed_size
        assert pages[-1].body + pages[-1].size == min(page.start for page in pages) + chunk.total_compressed_size


def test_files_without_checksums_are_told_apart(written, tmp_path):
    pq.write_table(open_parquet(written).read(), tmp_path / "plain.parquet")
    plain = (tmp_path / "plain.parquet").read_bytes()
    assert carries_checksums(written, open_parquet(written)) and not carries_checksums(plain, open_parquet(plain))
    assert all(page.crc is None for chunk in chunks(plain) for page in chunk_pages(plain, chunk))


def test_garbage_is_no_page_header():
    with pytest.raises(ValueError, match="no page header"):
        read_page(bytes(100), 10)
    with pytest.raises(ValueError, match="runs out"):
        read_struct(b"\x15\x80", 0)
    for seed in range(300):
        garbage = np.random.default_rng(seed).bytes(64)
        try:
            read_page(garbage, 0)
        except ValueError:
            continue


def test_footers_are_structs_too(written):
    begin = len(written) - 8 - int.from_bytes(written[-8:-4], "little")
    values, spans, end = read_struct(written, begin)
    assert values[3] == 30_000 and begin < spans[3][0] < spans[3][1] < end <= len(written) - 8
