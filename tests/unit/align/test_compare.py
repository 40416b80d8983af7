"""Every accident has one name; every rigid change is found and taken back, as a frozen consumer sees it."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from trainer.align import IDENTITY, ROTATION, SHIFT, Pairs, compare, nearest, pair, read_table, run
from trainer.align.accidents import accidents
from trainer.align.agreement import effective_rank, neighbour_overlap
from trainer.align.tables import open_table, sampled
from trainer.config import CompareRunConfig
from trainer.errors import ConfigError, DataError
from trainer.stages.comparing import compare_tables

ENTITIES, DIM = 4000, 16


def vectors(seed: int = 0) -> np.ndarray:
    """Anisotropic vectors with a dominating common mean, as rankers make them."""
    generator = np.random.default_rng(seed)
    low_rank = generator.normal(size=(ENTITIES, 5)) @ generator.normal(size=(5, DIM))
    return low_rank + 0.6 * generator.normal(size=(ENTITIES, DIM)) + 3 * generator.normal(size=DIM)


def orthogonal(seed: int = 1) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))[0]


def mirrored(x: np.ndarray) -> np.ndarray:
    return x * np.where(np.arange(DIM) == 3, -1, 1)


def swapped(x: np.ndarray) -> np.ndarray:
    return x[:, np.r_[0, 2, 1, 3:DIM]]


def noisy(share: float):
    return lambda x: x + share * x.std(axis=0) * np.random.default_rng(2).normal(size=x.shape)


def zeroed(share: float):
    return lambda x: x * (np.random.default_rng(3).random((ENTITIES, 1)) >= share)


def shuffled(rows: int):
    def change(x: np.ndarray) -> np.ndarray:
        chosen = np.random.default_rng(4).choice(ENTITIES, rows, replace=False)
        x = x.copy()
        x[chosen] = x[np.roll(chosen, 1)]
        return x

    return change


RIGID = {
    "rotated": (lambda x: x @ orthogonal(), "rotated"),
    "rotated and shifted": (lambda x: x @ orthogonal() + 7, "rotated"),
    "mirrored": (mirrored, "rotated"),
    "two dimensions swapped": (swapped, "rotated"),
    "shifted": (lambda x: x + np.linspace(-2, 2, DIM), "shifted"),
}
ACCIDENTS = {
    "all ids shuffled": (shuffled(ENTITIES), "embedding_ids"),
    "one id in forty shuffled": (shuffled(ENTITIES // 40), "embedding_ids"),
    "shuffled and rotated rows": (lambda x: shuffled(ENTITIES // 10)(x @ orthogonal()), "embedding_ids"),
    "scaled": (lambda x: 1.3 * x, "embedding_scale"),
    "scaled and rotated": (lambda x: 0.7 * x @ orthogonal(), "embedding_scale"),
    "normalised": (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True), "embedding_normalised"),
    "zero rows": (zeroed(0.1), "embedding_zero_rows"),
    "one not finite": (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 17, np.nan, x), "embedding_finite"),
    "collapsed": (lambda x: np.where(np.arange(ENTITIES)[:, None] % 10 == 0, x[:1], x), "embedding_duplicates"),
    "another width": (lambda x: x[:, :-1], "embedding_dim"),
}


def judged(change, seed: int = 0):
    old = vectors(seed)
    return compare(Pairs(old, change(old), np.arange(ENTITIES) % 2 == 0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("change", "outcome"), RIGID.values(), ids=RIGID)
def test_rigid_changes_are_named_and_taken_back(change, outcome: str, seed: int):
    found = judged(change, seed)
    assert found.outcome == outcome
    np.testing.assert_allclose(found.alignment.apply(change(vectors(seed))), vectors(seed), atol=1e-9)


@pytest.mark.parametrize(("change", "outcome"), RIGID.values(), ids=RIGID)
def test_normalised_vectors_that_move_as_a_whole_have_lost_nothing(change, outcome: str):
    old = vectors(0) - vectors(0).mean(axis=0)
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    assert compare(Pairs(old, change(old), np.arange(ENTITIES) % 2 == 0)).outcome == outcome
    longer = np.random.default_rng(5).lognormal(0, 0.02, (ENTITIES, 1))
    found = compare(Pairs(old, longer * change(old), np.arange(ENTITIES) % 2 == 0))
    assert "embedding_normalised" in {check.name for check in found.checks if check.outcome == "fail"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("change", "name"), ACCIDENTS.values(), ids=ACCIDENTS)
def test_every_accident_has_its_name_and_no_repair(change, name: str, seed: int):
    found = judged(change, seed)
    assert found.outcome == "broken"
    named = {check.name for check in found.checks if check.outcome == "fail" and check.severity == "block"}
    assert named == {name}
    assert found.alignment.method == "identity"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda x: x, "same"),
        (noisy(0.05), "same"),
        (noisy(0.6), "drifted"),
        (lambda x: noisy(0.6)(x @ orthogonal()), "drifted"),
        (lambda x: noisy(0.1)(x @ orthogonal()), "rotated"),
        (lambda x: vectors(99), "drifted"),
        (lambda x: np.where(np.arange(DIM) == 5, x.mean(0) + x.std(0) * np.random.default_rng(6).normal(size=x.shape), x), "drifted"),
    ],
    ids=["same", "retrained a little", "60 % noise", "60 % noise, rotated", "10 % noise, rotated", "another model", "one dimension lost"],
)
def test_what_was_learned(change, outcome: str, seed: int):
    assert judged(change, seed).outcome == outcome


@pytest.mark.parametrize(
    ("change", "method"),
    [
        (lambda x: x, IDENTITY), (lambda x: x + np.linspace(-2, 2, DIM), SHIFT), (lambda x: x @ orthogonal() + 1, ROTATION),
        (lambda x: noisy(0.6)(x @ orthogonal()), ROTATION), (lambda x: noisy(0.6)(x) + 3, SHIFT),
    ],
    ids=["same", "shifted", "rotated", "learned anew and rotated", "learned anew and shifted"],
)  # fmt: skip
def test_the_nearest_map_is_found_where_nothing_can_be_repaired(change, method: str):
    old = vectors()
    new, half_E = change(old), np.arange(ENTITIES) % 2 == 0
    found = nearest(Pairs(old, new, half_E))
    left = np.square(found.apply(new) - old)[~half_E].sum()
    assert left <= min(np.square(new - old)[~half_E].sum(), np.square(new - new.mean(0) + old.mean(0) - old)[~half_E].sum()) * 1.001
    if method == IDENTITY:
        assert found.method == IDENTITY
    if method == ROTATION:
        assert found.method == ROTATION
        assert left < 0.6**2 * 1.1 * np.square(old - old.mean(0))[~half_E].sum()


def test_a_rotation_needs_anchors_and_says_so():
    old = vectors()[:62]
    found = compare(Pairs(old, old @ orthogonal(), np.arange(62) % 4 == 0))
    assert found.outcome == "drifted"
    assert "16 anchors, 32 are needed" in found.sentence
    few = compare(Pairs(old[:20], old[:20], np.arange(20) % 2 == 0))
    assert few.outcome == "broken"
    assert "only 20 entities" in few.sentence


def test_rare_entities_are_judged_apart():
    old = vectors()
    bucket_E = (np.arange(ENTITIES) % 10 == 0).astype(int)
    new = np.where(bucket_E[:, None] == 1, noisy(0.9)(old), old)
    checks = {c.slice: c.outcome for c in compare(Pairs(old, new, np.arange(ENTITIES) % 3 == 0, bucket_E=bucket_E)).checks}
    assert (checks["rows=1-9"], checks["rows=10-99"]) == ("pass", "fail")


def write(path, ids, x: np.ndarray, layout: str = "list") -> None:
    x = np.ascontiguousarray(x, np.float32)
    flat = pa.array(x.reshape(-1))
    if layout == "list":
        columns = {"id": ids, "vector": pa.FixedSizeListArray.from_arrays(flat, x.shape[1])}
    elif layout == "variable":
        columns = {"item": ids, "embedding": pa.ListArray.from_arrays(np.arange(0, x.size + 1, x.shape[1]), flat)}
    elif layout == "binary":
        width = 4 * x.shape[1]
        columns = {"id": ids, "vector": pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(x), [None, pa.py_buffer(x.tobytes())])}
    else:
        columns = {"id": ids, "count": pa.array(np.ones(len(x))), **{f"e{d:03d}": pa.array(x[:, d]) for d in range(x.shape[1])}}
    pq.write_table(pa.table(columns), path)


def boosters():
    lightgbm = pytest.importorskip("lightgbm")
    catboost = pytest.importorskip("catboost")
    yield "lightgbm", lightgbm.LGBMClassifier(n_estimators=60, num_leaves=15, n_jobs=1, verbose=-1, random_state=0)
    yield (
        "catboost",
        catboost.CatBoostClassifier(iterations=60, depth=4, thread_count=1, verbose=False, allow_writing_files=False),
    )


@pytest.mark.parametrize("change", [c for c, _ in RIGID.values()], ids=RIGID)
def test_a_frozen_consumer_gets_its_accuracy_back(tmp_path, change):
    old = vectors().astype(np.float32)
    generator = np.random.default_rng(7)
    signal = (old - old.mean(0)) @ generator.normal(size=DIM) / 4 + np.abs(old[:, 3] - old[:, 3].mean())
    label = generator.random(ENTITIES) < 1 / (1 + np.exp(-signal))
    ids = pa.array([f"i{n}" for n in range(ENTITIES)])
    order = generator.permutation(ENTITIES)
    write(tmp_path / "old.parquet", ids, old)
    write(tmp_path / "new.parquet", ids.take(pa.array(order)), change(old)[order])
    run(CompareRunConfig(old=str(tmp_path / "old.parquet"), new=str(tmp_path / "new.parquet"), run_dir=str(tmp_path / "out")))
    repaired = read_table(tmp_path / "out" / "aligned.parquet").vectors_MD[np.argsort(order)]
    for name, model in boosters():
        model.fit(old[:2000], label[:2000])
        before, hurt, after = (roc_auc_score(label[2000:], model.predict_proba(x[2000:])[:, 1]) for x in (old, change(old), repaired))
        assert hurt < before - 0.005, name
        assert after == pytest.approx(before, abs=5e-5), name


def test_the_answer_on_disk(tmp_path):
    ids = pa.array(np.arange(ENTITIES))
    write(tmp_path / "old.parquet", ids, vectors(), "binary")
    write(tmp_path / "new.parquet", ids, vectors() @ orthogonal(), "wide")
    config = CompareRunConfig(old=str(tmp_path / "old.parquet"), new=str(tmp_path / "new.parquet"), run_dir=str(tmp_path / "out"))
    run(config)
    answer = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert answer["outcome"] == "rotated"
    assert {"name", "outcome", "sentence", "severity"} <= set(answer["checks"][0])
    stored = json.loads((tmp_path / "out" / "alignment.json").read_text())
    moved = (vectors() @ orthogonal() - stored["source_mean"]) @ np.array(stored["rotation"]) + stored["target_mean"]
    np.testing.assert_allclose(moved, vectors(), atol=1e-4)
    write(tmp_path / "new.parquet", ids, 2 * vectors(), "variable")
    run(config)
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["outcome"] == "broken"
    assert not (tmp_path / "out" / "aligned.parquet").exists(), "a repair of an earlier comparison must not be left behind"


@pytest.mark.parametrize("repair", ["old.parquet", "x/../old.parquet", "exports/user/new.parquet"])
def test_a_repair_never_takes_the_place_of_what_it_was_made_from(tmp_path, repair: str):
    with pytest.raises(ConfigError, match="would replace what they were made from"):
        CompareRunConfig(
            old=str(tmp_path / "old.parquet"), new=str(tmp_path / "exports"), run_dir=str(tmp_path / "out"), repair=str(tmp_path / repair)
        )


@pytest.mark.parametrize("run_dir", ["exports", "exports/user", "old.parquet", "x/../exports/out"])
def test_an_answer_is_never_written_among_what_is_compared(tmp_path, run_dir: str):
    with pytest.raises(ConfigError, match="run_dir"):
        CompareRunConfig(old=str(tmp_path / "old.parquet"), new=str(tmp_path / "exports"), run_dir=str(tmp_path / run_dir))
    with pytest.raises(ConfigError, match="run_dir"):
        CompareRunConfig(old=str(tmp_path / "exports"), new=str(tmp_path / "old.parquet"), run_dir=str(tmp_path / run_dir))
    CompareRunConfig(old=str(tmp_path / "exports"), new=str(tmp_path / "old.parquet"), run_dir=str(tmp_path / "exports-compared"))


@pytest.mark.parametrize("kind", ["lightgbm", "catboost"])
def test_the_live_model_says_what_a_rotation_costs_and_that_the_repair_costs_nothing(tmp_path, kind: str):
    old = vectors().astype(np.float32)
    generator = np.random.default_rng(7)
    age = generator.normal(size=ENTITIES)
    label = generator.random(ENTITIES) < 1 / (1 + np.exp(-(old - old.mean(0)) @ generator.normal(size=DIM) / 4 - age))
    ids = pa.array([f"i{n}" for n in range(ENTITIES)])
    model = dict(boosters())[kind].fit(pa_frame(old, age), label)
    path = tmp_path / {"lightgbm": "live.txt", "catboost": "live.cbm"}[kind]
    (model.booster_ if kind == "lightgbm" else model).save_model(str(path))
    write(tmp_path / "old.parquet", ids, old)
    write(tmp_path / "new.parquet", ids.take(pa.array(np.arange(ENTITIES)[::-1])), (old @ orthogonal())[::-1])
    pq.write_table(pa.table({"id": ids, "age": age, "label": label}), tmp_path / "rows.parquet")
    places = {name: str(tmp_path / f"{name}.parquet") for name in ("old", "new", "rows")}
    places |= {"run_dir": str(tmp_path / "out"), "downstream": str(path), "repair": str(tmp_path / "x" / "repaired.parquet")}
    config = CompareRunConfig(**places)
    checks = {(c.name, c.slice): c for c in compare_tables(config).checks}
    assert checks["replay_auc", "vectors=new"].outcome == "fail"
    assert checks["replay_auc", "vectors=new"].estimate > 0.01
    assert checks["replay_auc", "vectors=repaired"].outcome == "pass"
    assert abs(checks["replay_auc", "vectors=repaired"].estimate) < 5e-5
    repaired = read_table(tmp_path / "x" / "repaired.parquet")
    np.testing.assert_allclose(repaired.vectors_MD[::-1], old, atol=1e-4)
    assert not (tmp_path / "out" / "aligned.parquet").exists()
    wrong = [({"age": None}, "other features"), ({"label": None}, "lack a column"), ({"id": np.arange(ENTITIES)}, "another type")]
    for changed, words in wrong:
        columns = {"id": ids, "age": age, "label": label} | changed
        pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), tmp_path / "rows.parquet")
        with pytest.raises((ConfigError, DataError), match=words):
            compare_tables(config)


def pa_frame(x: np.ndarray, age: np.ndarray):
    """Coordinates and an own feature under their names, as both libraries take them."""
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"age": age, **{f"e{d:03d}": x[:, d] for d in range(DIM)}})


def test_settings_without_effect_are_refused():
    places = {"old": "a", "new": "b", "run_dir": "c"}
    for settings in ({"rows": "r"}, {"downstream": "m"}, {"repair": "b"}):
        with pytest.raises(ConfigError):
            CompareRunConfig(**places, **settings)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64()])
def test_vectors_of_other_precisions(tmp_path, kind: pa.DataType):
    ids, x = pa.array(np.arange(ENTITIES)), vectors()
    write(tmp_path / "old.parquet", ids, x)
    values = pa.array(x.reshape(-1).astype(kind.to_pandas_dtype()))
    pq.write_table(pa.table({"id": ids, "vector": pa.FixedSizeListArray.from_arrays(values, DIM)}), tmp_path / "new.parquet")
    run(CompareRunConfig(old=str(tmp_path / "old.parquet"), new=str(tmp_path / "new.parquet"), run_dir=str(tmp_path / "out")))
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["outcome"] == "same"


@pytest.mark.parametrize(("rows", "dim"), [(0, 4), (1, 4), (2, 1), (300, 1)])
def test_tiny_tables_get_an_answer_or_one_clear_error(tmp_path, rows: int, dim: int):
    ids, x = pa.array(np.arange(rows)), np.random.default_rng(0).normal(size=(rows, dim))
    for name in ("old", "new"):
        write(tmp_path / f"{name}.parquet", ids, x)
    config = CompareRunConfig(old=str(tmp_path / "old.parquet"), new=str(tmp_path / "new.parquet"), run_dir=str(tmp_path / "out"))
    if not rows:
        with pytest.raises(DataError):
            run(config)
        return
    run(config)
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["outcome"] == ("same" if rows > 60 else "broken")


def test_ids_that_only_some_have(tmp_path):
    x = vectors()
    write(tmp_path / "old.parquet", pa.array(np.arange(ENTITIES)), x)
    for gone, outcome in ((4, "same"), (ENTITIES // 2, "broken")):
        write(tmp_path / "new.parquet", pa.array(np.arange(gone, ENTITIES + 50)), np.concatenate([x[gone:], x[:50] + 1]))
        run(CompareRunConfig(old=str(tmp_path / "old.parquet"), new=str(tmp_path / "new.parquet"), run_dir=str(tmp_path / "out")))
        assert json.loads((tmp_path / "out" / "compare.json").read_text())["outcome"] == outcome, gone


def test_tables_that_cannot_be_compared(tmp_path):
    ids, x = pa.array(np.arange(200)), vectors()[:200]
    write(tmp_path / "good.parquet", ids, x)
    good = read_table(tmp_path / "good.parquet")
    for made, words in [
        ({"id": pa.array([1, 1]), "vector": pa.array([[1.0], [2.0]])}, "comes more than once"),
        ({"id": pa.array([1, None]), "vector": pa.array([[1.0], [2.0]])}, "an id is null"),
        ({"id": pa.array([1, 2]), "vector": pa.array([[1.0], [2.0, 3.0]])}, "differ in width"),
        ({"id": pa.array([1, 2]), "vector": pa.array([[1], [2]])}, "not floating point"),
        ({"id": pa.array([1, 2]), "count": pa.array([1, 2])}, "no vector column"),
        ({"weight": pa.array([1.0, 2.0])}, "no id column"),
    ]:
        pq.write_table(pa.table(made), tmp_path / "bad.parquet")
        with pytest.raises(DataError, match=words):
            read_table(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="no table of vectors"):
        read_table(tmp_path / "absent.parquet")
    for entity in ("item", "user"):
        (tmp_path / "export" / entity).mkdir(parents=True)
        write(tmp_path / "export" / entity / "part-0.parquet", pa.array(np.arange(200)), x)
    with pytest.raises(DataError, match=r"entity=item \(item, user\)"):
        read_table(tmp_path / "export")
    write(tmp_path / "other.parquet", pa.array(np.arange(1000, 1200)), x)
    with pytest.raises(DataError, match="no id is in both"):
        pair(good, read_table(tmp_path / "other.parquet"))
    write(tmp_path / "text.parquet", pa.array([str(n) for n in range(200)]), x)
    with pytest.raises(DataError, match="different types"):
        pair(good, read_table(tmp_path / "text.parquet"))


def test_large_tables_are_sampled_and_repaired_whole(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer.align.tables.MAX_ENTITIES", 500)
    monkeypatch.setattr("trainer.align.tables._BLOCK_BYTES", 1 << 14)
    ids, x, turned = pa.array(np.arange(ENTITIES)), vectors().astype(np.float32), (vectors() @ orthogonal()).astype(np.float32)
    (tmp_path / "old").mkdir()
    for number, half in enumerate((slice(0, 700), slice(700, None))):
        write(tmp_path / "old" / f"{number}.parquet", ids[half], x[half], "binary")
    write(tmp_path / "new.parquet", ids[::-1], turned[::-1], "wide")
    config = CompareRunConfig(old=str(tmp_path / "old"), new=str(tmp_path / "new.parquet"), run_dir=str(tmp_path / "out"))
    found = run(config)
    assert (found.outcome, found.alignment.anchors) == ("rotated", 250)
    aligned = read_table(tmp_path / "out" / "aligned.parquet")
    assert aligned.ids.to_pylist() == list(range(ENTITIES))[::-1]
    np.testing.assert_allclose(aligned.vectors_MD[::-1], x, atol=1e-4)


def test_a_vector_that_is_not_finite_is_found_though_it_is_not_drawn(tmp_path, monkeypatch: pytest.MonkeyPatch):
    ids, x = pa.array(np.arange(ENTITIES)), vectors()
    write(tmp_path / "old.parquet", ids, x)
    monkeypatch.setattr("trainer.align.tables.MAX_ENTITIES", 500)
    drawn = set(sampled(*[open_table(tmp_path / "old.parquet")] * 2)[0].ids.to_pylist())
    x[next(n for n in range(ENTITIES) if n not in drawn), 2] = np.nan
    write(tmp_path / "new.parquet", ids, x)
    found = run(CompareRunConfig(old=str(tmp_path / "old.parquet"), new=str(tmp_path / "new.parquet"), run_dir=str(tmp_path / "out")))
    assert found.outcome == "broken"
    assert [check.name for check in found.checks if check.outcome == "fail" and check.severity == "block"] == ["embedding_finite"]


def test_the_draw_is_the_wanted_entities_and_no_others(tmp_path):
    ids, x = pa.array(np.random.default_rng(0).permutation(ENTITIES)), vectors().astype(np.float32)
    write(tmp_path / "t.parquet", ids, x)
    table = open_table(tmp_path / "t.parquet")
    hash_M = table.hashes()
    for wanted in (hash_M[:0], hash_M[:1], hash_M[7:900], hash_M, np.array([0, 2**64 - 1], np.uint64)):
        rows = np.flatnonzero(np.isin(hash_M, wanted))
        drawn = table.read(np.sort(wanted))
        assert drawn.ids.to_pylist() == ids.take(pa.array(rows)).to_pylist()
        np.testing.assert_array_equal(drawn.vectors_MD, x[rows])


@pytest.mark.parametrize(("rows", "outcome"), [(0, "same"), (1000, "broken"), (20_000, "broken")])
def test_exchanged_vectors_are_found_though_few_of_their_owners_are_drawn(
    tmp_path, monkeypatch: pytest.MonkeyPatch, rows: int, outcome: str
):
    monkeypatch.setattr("trainer.align.tables.MAX_ENTITIES", 2000)
    generator = np.random.default_rng(3)
    x = generator.normal(size=(20_000, DIM)).astype(np.float32)
    chosen, new = generator.choice(len(x), rows, replace=False), x.copy()
    new[chosen] = x[np.roll(chosen, 1)]
    for name, values in (("old", x), ("new", new)):
        write(tmp_path / f"{name}.parquet", pa.array(np.arange(len(x))), values)
    found = run(CompareRunConfig(old=str(tmp_path / "old.parquet"), new=str(tmp_path / "new.parquet"), run_dir=str(tmp_path / "out")))
    answer = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (answer["outcome"], answer["entities"], answer["drawn"]) == (outcome, 2000, 0.1)
    exchanged = next(check for check in found.checks if check.name == "embedding_ids")
    assert exchanged.estimate == pytest.approx(rows / len(x), rel=0.4)
    neighbours = next(check for check in found.checks if check.name == "embedding_neighbours")
    assert neighbours.n == 500
    assert "of 500 drawn entities" in neighbours.sentence


def test_duplicates_are_rows_with_equal_values_whatever_their_sign_of_zero():
    x = vectors()
    x[:, 0] = 0.0
    x[1::2] = x[::2]
    new = x.copy()
    new[1::2, 0] = -0.0
    assert duplicates(x, new) == 0
    new[1::2] += np.arange(ENTITIES // 2)[:, None] + 1.0
    assert duplicates(x, new) == -0.5
    assert duplicates(new, x) == 0.5
    other = vectors()
    other[1::2] = other[::2, ::-1]  # the same values in another order
    assert duplicates(vectors(), other) == 0


def duplicates(old: np.ndarray, new: np.ndarray) -> float | None:
    return next(check.estimate for check in accidents(old, new, 0.0, "all") if check.name == "embedding_duplicates")


def test_the_effective_rank_is_that_of_the_singular_values():
    x = vectors()
    value = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = value / value.sum()
    assert effective_rank(x) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)
    assert effective_rank(x.astype(np.float32)) == pytest.approx(effective_rank(x), rel=1e-5)
    assert effective_rank(np.repeat(x[:, :1], DIM, axis=1)) == pytest.approx(1, abs=1e-3)


def test_neighbours_are_those_of_all_queries_at_once(monkeypatch: pytest.MonkeyPatch):
    old, new = vectors()[:300], noisy(0.5)(vectors())[:300]

    def near(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(0)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        similarity = x @ x.T
        np.fill_diagonal(similarity, -np.inf)
        return np.argsort(-similarity, axis=1)[:150, :10]

    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near(old), near(new), strict=True)])
    assert 0.1 < expected < 0.9
    assert neighbour_overlap(old, new, queries=150) == pytest.approx(expected)
    monkeypatch.setattr("trainer.align.agreement.CANDIDATES", 200)
    assert neighbour_overlap(old, new, queries=150) == neighbour_overlap(old[:200], new[:200], queries=150) != pytest.approx(expected)


def test_files_of_one_table_have_to_agree(tmp_path):
    ids, x = pa.array(np.arange(100)), vectors()[:100]
    (tmp_path / "t").mkdir()
    write(tmp_path / "t" / "0.parquet", ids, x)
    for case, words in (
        ("width", "differ in width"),
        ("repeat", "comes more than once"),
        ("column", "no such column"),
        ("id", "different types"),
    ):
        others = pa.array(np.arange(50, 150) if case == "repeat" else np.arange(100, 200))
        others = others.cast(pa.string()) if case == "id" else others
        write(tmp_path / "t" / "1.parquet", others, x[:, :2] if case == "width" else x, "variable" if case == "column" else "list")
        with pytest.raises(DataError, match=words):
            read_table(tmp_path / "t")


def test_memory_is_bounded_by_the_draw(tmp_path):
    """Two tables of 400,000 vectors, a repair written: less than one of the tables on top of what a tenth of them takes."""
    peaks = []
    for rows in (40_000, 400_000):
        ids, folder = pa.array(np.arange(rows)), tmp_path / str(rows)
        folder.mkdir()
        x = np.random.default_rng(0).normal(size=(rows, 64)).astype(np.float32)
        write(folder / "old.parquet", ids, x)
        write(folder / "new.parquet", ids, x + 3)
        code = (
            "import trainer.align.tables as t; from trainer.align import run; from trainer.config import CompareRunConfig\n"
            "t.MAX_ENTITIES = 5000; files = {name: f'{name}.parquet' for name in ('old', 'new')}\n"
            "run(CompareRunConfig(run_dir='out', **files))\n"
            "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=folder)
        peaks.append(int(done.stdout.splitlines()[-1]))
        assert (folder / "out" / "aligned.parquet").exists()
    assert peaks[1] - peaks[0] < 60, f"{peaks} MB; a table has {400_000 * 64 * 4 >> 20} MB"
