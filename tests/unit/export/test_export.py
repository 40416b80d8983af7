import errno
import hashlib
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config import ExportConfig
from trainer.errors import ExportError
from trainer.export import lookup, read_embeddings, read_manifest, read_pairs, reread
from trainer.schema.embeddings import VectorBlock, wide_names
from trainer.schema.files import locked

pytestmark = pytest.mark.filterwarnings("error")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_all(folder: Path, entity: str) -> tuple[list, np.ndarray]:
    blocks = list(read_embeddings(folder, entity))
    return [i for block in blocks for i in block.ids.to_pylist()], np.concatenate([block.vectors_MD for block in blocks])


def test_what_is_written_is_read_bit_for_bit(source, write, tmp_path: Path):
    made = source()
    manifest = write(made, tmp_path / "e")
    assert read_manifest(tmp_path / "e") == manifest
    assert manifest.entities == {"user": 100, "item": 40}
    assert [shard.rows for shard in manifest.shards["user"]] == [30, 30, 30, 10]
    for entity, (ids, vectors_MD) in (("user", made.users), ("item", made.items)):
        read_ids, read_MD = read_all(tmp_path / "e", entity)
        assert read_ids == ids.to_pylist()
        assert read_MD.tobytes() == vectors_MD.tobytes()
        norms = np.linalg.norm(vectors_MD.astype(np.float64), axis=1)
        assert manifest.norms[entity] == pytest.approx({"min": norms.min(), "mean": norms.mean(), "max": norms.max()}, rel=1e-6)


def test_the_wide_view_holds_the_same_numbers_in_plain_columns(source, write, tmp_path: Path):
    made = source(dim=5)
    manifest = write(made, tmp_path / "e")
    paths = [tmp_path / "e" / shard.path for shard in manifest.shards["user_wide"]]
    table = pa.concat_tables([pq.read_table(path, page_checksum_verification=True) for path in paths])
    assert table.column_names == ["id", "e000", "e001", "e002", "e003", "e004"]
    assert np.array_equal(np.column_stack([table[name] for name in wide_names(5)]), made.users[1])
    assert all(field.type == pa.float32() for field in table.schema if field.name != "id")
    assert "user_wide" not in write(made, tmp_path / "narrow", ExportConfig(wide=False)).shards


def test_wide_names_have_the_digits_they_need():
    assert wide_names(2, "user_") == ["user_e000", "user_e001"]
    assert wide_names(1001)[-1] == "e1000"


def test_the_same_vectors_give_the_same_bytes_whatever_the_blocks(source, write, tmp_path: Path):
    for name, block in (("a", 7), ("b", 7), ("c", 1), ("d", 1000)):
        write(source(block=block), tmp_path / name)
    first = snapshot(tmp_path / "a")
    assert len(first) == 1 + 2 * (4 + 2) + 2 + 6  # manifest; serving and wide; alignments; references (users 4, items 2)
    assert all(snapshot(tmp_path / name) == first for name in "bcd")


def test_an_export_replaces_the_last_one_and_leaves_nothing_beside_it(source, write, tmp_path: Path):
    write(source(users=200), tmp_path / "e")
    manifest = write(source(users=20), tmp_path / "e")
    files = {path for path in snapshot(tmp_path / "e") if path != "manifest.json"}
    shards = {shard.path for shards in manifest.shards.values() for shard in shards}
    assert files == shards | {"item_alignment.json", "user_alignment.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".e.lock", "e"]


def broken(made, case: str):
    ids, vectors_MD = made.users
    vectors_MD = vectors_MD.copy()
    if case in ("nan", "inf"):
        vectors_MD[[57, 58], 3] = {"nan": np.nan, "inf": -np.inf}[case]
    if case == "zero":
        vectors_MD[[12, 80]] = 0
    if case == "twice":
        ids = pa.array([*ids.to_pylist()[:-2], 33, 36])
    if case == "null":
        ids = pa.array([*ids.to_pylist()[:-1], None])
    if case == "type":
        ids = ids.cast(pa.float64())
    if case == "float64":
        vectors_MD = vectors_MD.astype(np.float64)
    if case == "none":
        ids, vectors_MD = ids[:0], vectors_MD[:0]
    made.users = ids, vectors_MD
    return made


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("nan", ("not finite", "user 171", "2 of")), ("inf", ("not finite", "user 171")), ("zero", ("zero", "user 36", "2 of 100")),
        ("twice", ("several vectors", "user 33", "2 vectors of this one", "2 come more than once")), ("null", ("null", "1 of")),
        ("type", ("wrong type", "double")), ("float64", ("wrong type", "float64")), ("none", ("no user has a vector",)),
    ],
)  # fmt: skip
def test_unusable_vectors_are_refused_and_the_old_export_stays(source, write, tmp_path: Path, case: str, words: tuple[str, ...]):
    write(source(), tmp_path / "e")
    before = snapshot(tmp_path / "e")
    with pytest.raises(ExportError) as error:
        write(broken(source(seed=1), case), tmp_path / "e")
    assert error.value.exit_code == 6
    assert all(word in str(error.value) for word in words), str(error.value)
    assert snapshot(tmp_path / "e") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".e.lock", "e"]


def test_a_repeat_is_found_across_shards_and_string_ids(source, write, tmp_path: Path):
    made = source(items=300)
    made.items = pa.array([*made.items[0].to_pylist()[:-1], "item-0"]), made.items[1]
    with pytest.raises(ExportError, match="item item-0"):
        write(made, tmp_path / "e")


def test_two_ids_that_share_a_hash_are_no_repeat(source, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer.export.write.hash_ids", lambda ids: np.zeros(len(ids), np.uint64))
    assert write(source(), tmp_path / "e").entities["user"] == 100


@pytest.mark.parametrize("width", [7, 9])
def test_a_block_of_another_width_is_refused(source, write, tmp_path: Path, width: int):
    made = source(dim=8)
    made.item_vectors = lambda: iter([VectorBlock(pa.array(["x"]), np.ones((1, width), np.float32))])
    with pytest.raises(ExportError, match="wrong width"):
        write(made, tmp_path / "e")


def test_coverage_is_a_share_of_rows_and_has_a_floor(source, write, tmp_path: Path):
    holdout = {"user": pa.chunked_array([pa.array([0, 0, 0, 1]), pa.array([3])]), "item": pa.array(["item-0", "gone", "gone", "other"])}
    manifest = write(source(), tmp_path / "e", holdout=holdout)
    assert manifest.coverage == {"user": 0.8, "item": 0.25}
    with pytest.raises(ExportError) as error:
        write(source(), tmp_path / "e", ExportConfig(min_coverage=0.5), holdout=holdout)
    for words in ("item without a vector", "item gone with 2 rows", "2 of 3 are missing", "0.250", "export.min_coverage=0"):
        assert words in str(error.value)
    with pytest.raises(ExportError, match="another type"):
        write(source(), tmp_path / "f", holdout={"item": pa.array([1])})
    with pytest.raises(ExportError, match="no vectors"):
        write(source(), tmp_path / "f", holdout={"users": pa.array([1])})


def pairs(rows: int = 50) -> pa.Table:
    generator = np.random.default_rng(0)
    return pa.table(
        {
            "user": pa.array(np.arange(rows)), "item": pa.array([f"item-{row % 5}" for row in range(rows)]),
            "time": pa.array(np.arange(rows) * 1000), "dot": generator.normal(size=rows), "score_click": generator.random(rows),
        }
    )  # fmt: skip


def test_pair_scalars_are_written_beside_the_vectors(source, write, tmp_path: Path):
    manifest = write(source(), tmp_path / "e", pairs=pairs())
    assert manifest.entities["pair"] == 50
    table = read_pairs(tmp_path / "e")
    assert table.select(["user", "item", "time"]).equals(pairs().select(["user", "item", "time"]))
    assert np.array_equal(table["score_click"].to_numpy(), pairs()["score_click"].to_numpy().astype(np.float32))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("dot", None, "missing"), ("strange", 1.0, "unknown"), ("score_click", np.nan, "not finite"), ("score_click", 1e300, "not finite")],
)
def test_pair_scalars_that_are_wrong_are_refused(source, write, tmp_path: Path, column: str, value: float | None, words: str):
    table = pairs()
    if column in table.column_names:
        table = table.drop_columns(column)
    if value is not None:
        table = table.append_column(column, pa.array([0.5] * 49 + [value]))
    with np.errstate(over="ignore"), pytest.raises(ExportError, match=words):
        write(source(), tmp_path / "e", pairs=table)
    assert not (tmp_path / "e").exists()


def test_readers_find_every_kind_of_damage(source, write, tmp_path: Path):
    folder = tmp_path / "e"
    shard = write(source(), folder).shards["user"][1]
    path = folder / shard.path
    content = path.read_bytes()
    for damage in (content[:500] + bytes([content[500] ^ 4]) + content[501:], content[:-3], None):
        path.unlink(missing_ok=True)
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(ExportError, match=path.name):
            list(read_embeddings(folder, "user"))
    with pytest.raises(ExportError, match="not part of this export"):
        list(read_embeddings(folder, "author"))
    manifest = (folder / "manifest.json").read_text()
    for text in ("", "[]", manifest.replace('"dim"', '"dmi"'), manifest.replace("user/part-00000", "../part-00000")):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ExportError):
            read_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ExportError, match="not an export"):
        read_manifest(folder)


def test_lookup_returns_rows_in_the_order_asked_for(source, write, tmp_path: Path):
    made = source()
    write(made, tmp_path / "e")
    found_ND = lookup(tmp_path / "e", "user", pa.chunked_array([[9, 1, None], [9, 0]], pa.int32()))
    assert np.array_equal(found_ND[[0, 3, 4]], made.users[1][[3, 3, 0]])
    assert np.isnan(found_ND[1:3]).all()
    with pytest.raises(ExportError, match="another type"):
        lookup(tmp_path / "e", "item", pa.array([1]))


def test_a_second_writer_is_refused_and_a_full_disk_leaves_the_old_export(source, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(source(), tmp_path / "e")
    before = snapshot(tmp_path / "e")
    with locked(tmp_path / ".e.lock", 0), pytest.raises(ExportError, match="another export"):
        write(source(seed=1), tmp_path / "e")
    real, failures = os.fsync, 0
    for at in range(100):
        calls = iter(range(1000))

        def fsync(handle: int, calls=calls, at=at) -> None:
            if next(calls) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                write(source(seed=1), tmp_path / "e")
            except ExportError as error:
                failures += 1
                assert "free some space" in str(error)
            else:
                break
        assert snapshot(tmp_path / "e") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == [".e.lock", "e"]
    assert failures > 10
    assert snapshot(tmp_path / "e") != before


def test_a_disk_that_takes_no_more_in_the_middle_of_a_shard(source, write, tmp_path: Path):
    folder = tmp_path / "out"
    write(source(), folder / "e")
    before = snapshot(folder / "e")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # a real refusal of a real write, whoever makes it
        try:
            write(source(users=50_000, dim=64), folder / "e", ExportConfig(shard_rows=30_000))
        except ExportError as error:
            (tmp_path / "said").write_text(str(error))
            os._exit(error.exit_code)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
    assert "cannot be written" in (tmp_path / "said").read_text()
    assert "File too large" in (tmp_path / "said").read_text()
    assert snapshot(folder / "e") == before
    assert sorted(path.name for path in folder.iterdir()) == [".e.lock", "e"]


def test_bytes_that_come_back_changed_are_refused(source, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(source(), tmp_path / "e")
    before = snapshot(tmp_path / "e")
    real, read = reread._from_disk, []

    def damaged(cached: int, direct: int | None, into, start: int) -> int:
        count = real(cached, direct, into, start)
        read.append(count)
        if len(read) == at:
            into[count // 2] ^= 1
        return count if len(read) != -at else count - 1

    monkeypatch.setattr(reread, "_from_disk", damaged)
    for at in (1, 4, -2, 99):
        read.clear()
        if at == 99:
            write(source(seed=1), tmp_path / "e")
            break
        with pytest.raises(ExportError, match="differs from what was written"):
            write(source(seed=1), tmp_path / "e")
        assert snapshot(tmp_path / "e") == before
    assert len(read) > 10


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", [1, 4095, reread.WINDOW, reread.WINDOW + 1, 3 * reread.WINDOW - 1])
def test_a_file_is_read_back_whole_with_and_without_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, direct: bool):
    if not direct:
        monkeypatch.setattr(reread, "_open_direct", lambda path: None)
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "f").write_bytes(content)
    assert reread.reread(tmp_path / "f") == (size, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("moment", ["between two shards", "between shards and manifest", "while a shard is read back"])
def test_killed_readers_see_the_old_export(source, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    write(source(), tmp_path / "e")
    before = snapshot(tmp_path / "e")

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        made = source(seed=1)
        if moment == "between two shards":
            made.item_vectors = die
        elif moment == "between shards and manifest":
            monkeypatch.setattr("trainer.export.write._write_manifest", die)
        else:
            monkeypatch.setattr("trainer.export.shards.reread", die)
        write(made, tmp_path / "e")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert snapshot(tmp_path / "e") == before
    assert read_manifest(tmp_path / "e").entities["user"] == 100
    write(source(seed=1), tmp_path / "e")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".e.lock", "e"]


def test_killed_between_the_two_renames_the_next_export_puts_the_old_one_back_first(source, write, tmp_path: Path):
    write(source(), tmp_path / "e")
    before = snapshot(tmp_path / "e")
    (tmp_path / "e").rename(tmp_path / ".e.replaced")
    with pytest.raises(ExportError):
        write(broken(source(), "nan"), tmp_path / "e")
    assert snapshot(tmp_path / "e") == before


def test_a_file_in_the_way_and_nothing_to_export(source, write, tmp_path: Path):
    (tmp_path / "e").write_text("a file")
    with pytest.raises(ExportError, match="is a file"):
        write(source(), tmp_path / "e")
    with pytest.raises(ExportError, match="cannot be written"):
        write(source(), tmp_path / "e" / "below")
    with pytest.raises(ExportError, match="nothing to export"):
        write(source(), tmp_path / "f", ExportConfig(entities=[]))
