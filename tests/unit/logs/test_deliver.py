"""Nothing is decoded that scan has not verified: the hash of the bytes in memory stands for every check that scan made."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.errors import DataError
from trainer.logs import deliver
from trainer.logs.conform import conform
from trainer.logs.deliver import delivered
from trainer.schema.health import DayHealth, FileHealth
from trainer.schema.logs import ActionSpec, ColumnSpec, LogSpec, TimeSpec

DAY = DayHealth(status="ok", files=[])
TYPES = {"user": "integer", "item": "text", "t": "integer", "click": "integer", "x": "real"}
ROWS = 400


@pytest.fixture
def table():
    rng = np.random.default_rng(1)
    columns = {"user": rng.integers(0, 9, ROWS), "item": rng.choice(["a", "bc", "ü"], ROWS), "t": np.arange(ROWS)}
    return pa.table(columns | {"click": rng.integers(0, 2, ROWS).astype(np.int8), "x": rng.normal(size=ROWS)})


def written(root, table):
    """Writes a log of one file; returns its specification and what scan says of the file."""
    pq.write_table(table, root / "f.parquet", row_group_size=100, write_page_checksum=True)
    time = TimeSpec(column="t")
    spec = LogSpec(
        name="x", root=str(root), user="user", item="item", event_time=time, known_at=time, features={"x": ColumnSpec(kind="numeric")},
        actions={"click": ActionSpec(expression="click")},
    )  # fmt: skip
    data = (root / "f.parquet").read_bytes()
    return spec, FileHealth(path="f.parquet", sha256=hashlib.sha256(data).hexdigest(), rows=ROWS, bytes=len(data))


def test_the_file_that_scan_has_seen_is_delivered_whole(tmp_path, table):
    found = delivered(*written(tmp_path, table), DAY, TYPES)
    assert found.column_names == list(TYPES) and found["click"].type == pa.int64()
    assert all(found[name].to_pylist() == table[name].to_pylist() for name in TYPES)


def test_no_bit_may_change_anywhere_in_the_file_and_no_changed_byte_is_decoded(tmp_path, table, monkeypatch):
    spec, file = written(tmp_path, table)
    path, decoded = tmp_path / "f.parquet", []
    monkeypatch.setattr(deliver, "healthy_rows", lambda *arguments: decoded.append(arguments))
    sound, rng = path.read_bytes(), np.random.default_rng(2)
    for place in [0, len(sound) - 1, len(sound) - 5, *rng.integers(len(sound), size=60).tolist()]:  # pages, headers, footer, magic
        data = bytearray(sound)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(DataError, match="changed after it was scanned"):
            delivered(spec, file, DAY, TYPES)
    assert not decoded


def test_values_come_from_the_bytes_that_were_hashed(tmp_path, table, monkeypatch):
    """A file that is replaced between hash and decoding cannot slip in."""
    spec, file = written(tmp_path, table)
    healthy_rows = deliver.healthy_rows

    def replaced(*arguments):
        (tmp_path / "f.parquet").write_bytes(b"another file")
        return healthy_rows(*arguments)

    monkeypatch.setattr(deliver, "healthy_rows", replaced)
    assert delivered(spec, file, DAY, TYPES)["x"].to_pylist() == table["x"].to_pylist()


def test_what_needs_no_cast_is_not_copied(table):
    conformed, _ = conform(table, TYPES)
    for name in ("user", "item", "t", "x"):
        assert conformed[name].chunk(0).buffers()[1].address == table[name].chunk(0).buffers()[1].address, name


@pytest.mark.parametrize("parts", [[slice(0, 3)], [slice(2, 7)], [slice(5, 5)], [slice(4, 9), slice(0, 4)], []])
def test_slices_and_chunks_conform_like_whole_columns(table, parts):
    chunks = [table.slice(part.start, part.stop - part.start) for part in parts]
    given = pa.concat_tables(chunks) if chunks else table.schema.empty_table()
    conformed, findings = conform(given, TYPES)
    assert conformed.to_pylist() == given.to_pylist() and not findings


def test_bytes_that_are_no_text_are_null_in_a_slice_too():
    cells = pa.array([b"a", b"\xff", b"b", b"\xc3\xbc"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, cells.buffers())
    conformed, [finding] = conform(pa.table({"x": text.slice(1, 3)}), {"x": "text"})
    assert conformed["x"].to_pylist() == [None, "b", "ü"] and (finding.kind, finding.rows) == ("invalid_text", 1)
