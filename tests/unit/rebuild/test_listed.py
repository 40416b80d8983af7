"""Lists and vectors in examples: of the log and of side tables, the same bytes however the work is cut."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.errors import ConfigError
from trainer.schema.examples import FEATURE, read_tail
from trainer.schema.features import FeatureSpec
from trainer.schema.logs import ColumnSpec, SideTableSpec
from trainer.schema.vocabulary import Vocabulary

TAGS, TASTE = ColumnSpec(kind="list", width=2, token=True), ColumnSpec(kind="vector", width=3)
ITEMS = {"author": ColumnSpec(), "genres": ColumnSpec(kind="list", width=3), "content": ColumnSpec(kind="vector", width=2, maximum=9)}


@pytest.fixture
def log(lab, tmp_path):
    """Tags hang on the row's minute, taste on the user; genres and content on the item, one of each damaged."""
    root = tmp_path / "log"
    for day in lab.write_log(root, days=3, rows=150):
        path = root / f"dt={day}" / "part-0.parquet"
        table = pq.read_table(path, partitioning=None)
        minute = (table["ts"].to_numpy() // 60).tolist()
        user = table["uid"].to_numpy(zero_copy_only=False)
        tags = pa.array([None if m % 11 == 0 else [m % 5, m % 3, m % 5][: m % 4] for m in minute], pa.list_(pa.int32()))
        taste = pa.array(
            [[0.5, 1.0] if m % 13 == 0 else [float(m % 7), -1.0, 0.0 if np.isnan(u) else u] for m, u in zip(minute, user, strict=True)]
        )
        pq.write_table(table.append_column("tags", tags).append_column("taste", taste), path, write_page_checksum=True)
    items = pq.read_table(root / "items.parquet")
    number = [int(name[1:]) for name in items["iid"].to_pylist()]
    genres = [str([f"g{n % 4}", f"g{n % 3}"]).replace("'", '"') if n % 5 else "g1|g2" for n in number]
    content = [[float(n % 12), 1.0] for n in number]
    pq.write_table(items.append_column("genres", pa.array(genres)).append_column("content", pa.array(content)), root / "items.parquet")
    side = {"items": SideTableSpec(path="items.parquet", entity="item", key="iid", static=True, columns=ITEMS)}
    return lab.spec(root, features={"tab": ColumnSpec(token=True), "tags": TAGS, "taste": TASTE}, side_tables=side)


def parts(table, name, width):
    return list(zip(*(table[f"{FEATURE}{name}[{place}]"].to_pylist() for place in range(width)), strict=True))


def filled(values, width):
    return tuple([*values, *[None] * width][:width])


def test_examples_hold_what_a_plain_reading_of_the_log_says(lab, log, tmp_path):
    manifest = lab.build(log, tmp_path / "out", features=FeatureSpec())
    assert [name for name in manifest.numeric if "[" in name] == ["taste[0]", "taste[1]", "taste[2]", "content[0]", "content[1]"]
    assert manifest.item_features == ["author", "genres[0]", "genres[1]", "genres[2]"]
    assert manifest.token_features == ["tab", "tags[0]", "tags[1]"]
    assert {manifest.categorical[name] for name in manifest.item_features[1:]} == {"genres"}
    seen = 0
    for day in sorted({record.day for record in manifest.partitions}):
        table = lab.rows_of(tmp_path / "out", manifest, day)
        minute, item = (table["event_time"].to_numpy() // 60_000).tolist(), [int(name[1:]) for name in table["item"].to_pylist()]
        tags, genres = parts(table, "tags", 2), parts(table, "genres", 3)
        taste, content = parts(table, "taste", 3), parts(table, "content", 2)
        for place, (m, n) in enumerate(zip(minute, item, strict=True)):
            first = [] if m % 11 == 0 else list(dict.fromkeys([m % 5, m % 3, m % 5][: m % 4]))[:2]
            assert tags[place] == filled(sorted(first), 2)
            assert (taste[place][0] is None) == (m % 13 == 0) and (taste[place][0] in (None, m % 7))
            known = n % 7 != 0  # the side table lacks the others
            assert genres[place] == (filled(sorted({f"g{n % 4}", f"g{n % 3}"}), 3) if known and n % 5 else (None,) * 3)
            assert content[place] == ((float(n % 12), 1.0) if known and n % 12 <= 9 else (None, None))
            seen += 1
    assert seen > 300


def test_a_vocabulary_counts_the_values_of_all_places_and_tails_carry_them(lab, log, tmp_path):
    root = tmp_path / "out"
    manifest = lab.build(log, root, features=FeatureSpec())
    vocabulary = Vocabulary.read(root / "vocabularies" / "tags.parquet")
    days = sorted({record.day for record in manifest.partitions})
    tables = [lab.rows_of(root, manifest, day) for day in days]
    values = [tag for table in tables for row in parts(table, "tags", 2) for tag in row if tag is not None]
    assert dict(zip(vocabulary.keys.to_pylist(), vocabulary.count_V.tolist(), strict=True)) == {
        tag: values.count(tag) for tag in set(values)
    }
    assert not (root / "vocabularies" / "tags[0].parquet").exists()
    tail = pa.concat_tables([read_tail(root, manifest, days[-1], bucket) for bucket in range(manifest.user_buckets)])
    assert set(parts(tail, "tags", 2)) <= {filled(sorted(pair), 2) for pair in [(a, b) for a in range(5) for b in range(3)]} | {
        filled([one], 2) for one in range(5)} | {(None, None)}  # fmt: skip
    assert any(row[1] is not None for row in parts(tail, "tags", 2)) and any(row[0] for row in parts(tail, "genres", 3))


def test_the_same_bytes_in_two_processes(lab, log, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.rebuild.engines.ROWS_A_WORKER", 0)
    assert lab.build(log, tmp_path / "one") == lab.build(log, tmp_path / "two", workers=2)
    assert lab.bytes_of(tmp_path / "one") == lab.bytes_of(tmp_path / "two")


def test_a_side_tables_column_that_fits_nowhere_is_an_error_of_configuration(lab, log, tmp_path):
    columns = {**ITEMS, "content": ColumnSpec(kind="vector", width=5)}
    side = {"items": SideTableSpec(path="items.parquet", entity="item", key="iid", static=True, columns=columns)}
    with pytest.raises(ConfigError, match="not what is declared") as error:
        lab.build(lab.spec(tmp_path / "log", features=dict(log.features), side_tables=side), tmp_path / "out")
    assert "vectors of 5 numbers" in str(error.value.got) and "2 values" in str(error.value.got)
