import json
from pathlib import Path

import numpy as np
import pytest

from trainer.config import ExportConfig
from trainer.errors import ExportError
from trainer.export import compare_exports, earlier_moves, read_alignment, read_manifest
from trainer.export.read import read_view
from trainer.schema.plain import as_plain
from trainer.schema.verdict import Check, Verdict

DIM = 8


def vectors_of(folder: Path, view: str) -> dict:
    """Id -> vector of a view."""
    found = {}
    for block in read_view(folder, read_manifest(folder), view):
        found |= dict(zip(block.ids.to_pylist(), block.vectors_MD, strict=True))
    return found


def rotation() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0]


@pytest.fixture
def nights(source, write, tmp_path: Path):
    """Writes a live export and a second one aligned to it, both entities changed; returns the folder of the second."""

    def run(change, space_id: str = "space-1", users=lambda x: x, **fields) -> Path:
        made = source(users=900, items=400, dim=DIM)
        write(made, tmp_path / "old", ExportConfig(max_zero_share=1.0))
        made.users = (made.users[0], users(change(made.users[1].copy())).astype(np.float32))
        made.items = (made.items[0], change(made.items[1].copy()).astype(np.float32))
        write(made, tmp_path / "new", ExportConfig(max_zero_share=1.0, **fields), space_id=space_id, live=tmp_path / "old")
        return tmp_path / "new"

    return run


def failed(folder: Path) -> dict[str, str]:
    return {f"{c.name}/{c.slice}": c.severity for c in compare_exports(folder.parent / "old", folder) if c.outcome == "fail"}


def zero_fifth(x_MD: np.ndarray) -> np.ndarray:
    return x_MD * (np.arange(len(x_MD)) % 5 > 0)[:, None]


RIGID = {
    "same": (lambda x: x, "identity"),
    "small noise": (lambda x: x + 0.05 * np.random.default_rng(1).normal(size=x.shape), "identity"),
    "rotated": (lambda x: x @ rotation(), "rotation"),
    "rotated and shifted": (lambda x: x @ rotation() + 2, "rotation"),
    "shifted": (lambda x: x + 1, "shift"),
}


@pytest.mark.parametrize("name", RIGID)
def test_feature_vectors_come_back_and_serving_vectors_stay(nights, name: str):
    change, method = RIGID[name]
    folder = nights(change, space_id="space-2")
    manifest = read_manifest(folder)
    assert (manifest.space_id, manifest.feature_space) == ("space-2", "space-1")
    assert {entity: record.method for entity, record in manifest.alignment.items()} == {"item": method, "user": method}
    for entity in ("item", "user"):
        before, serving, feature = (
            vectors_of(f, v) for f, v in ((folder.parent / "old", entity), (folder, entity), (folder, f"{entity}_wide"))
        )
        assert max(np.abs(feature[key] - before[key]).max() for key in before) < (0.5 if name == "small noise" else 1e-5)
        np.testing.assert_allclose(
            serving[3 if entity == "user" else "item-1"], change(np.stack(list(before.values())))[1], rtol=1e-5, atol=1e-5
        )
        moved = read_alignment(folder, manifest, entity).apply(np.stack(list(serving.values())))
        np.testing.assert_array_equal(moved, np.stack(list(feature.values())))
    assert failed(folder) == {}


def test_users_may_move_on_their_own_without_turning_the_space(nights):
    folder = nights(lambda x: x @ rotation(), users=lambda x: x + 1.5)
    before, feature = vectors_of(folder.parent / "old", "user"), vectors_of(folder, "user_wide")
    assert max(np.abs(feature[key] - before[key]).max() for key in before) < 1e-5
    folder = nights(lambda x: x, users=lambda x: x[:, ::-1])  # only the users' axes: no turn of the space explains that
    assert {entity: record.method for entity, record in read_manifest(folder).alignment.items()} == {"item": "identity", "user": "identity"}


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (zero_fifth, "embedding_zero_rows"),
        (lambda x: 1.3 * x, "embedding_scale"),
        (lambda x: x[np.random.default_rng(2).permutation(len(x))], "embedding_ids"),
    ],
    ids=["zero rows", "scaled", "shuffled"],
)
def test_accidents_of_items_open_a_new_space_and_are_named(nights, change, check: str):
    folder = nights(change)
    manifest = read_manifest(folder)
    assert manifest.alignment["item"].outcome == "broken"
    assert f"{check}/entity=item" in failed(folder)


def test_accidents_within_a_space_block(nights, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer.export.write.feature_space", lambda space_id, found, before: space_id)
    assert failed(nights(lambda x: 1.3 * x))["embedding_scale/entity=item"] == "block"


def sealed(folder: Path, moved: dict[str, float], space: str = "pass") -> Path:
    """A release whose verdict says how far its users had moved."""
    measured = [
        Check(name=name, family="embeddings", slice="entity=user", estimate=value, outcome="fail", severity="warn", sentence="moved")
        for name, value in moved.items()
    ]
    told = Check(name="embedding_space", family="embeddings", outcome=space, severity="warn", sentence="the space")
    folder.mkdir(parents=True)
    verdict = Verdict(verdict="PROMOTE", reason="", policy="refresh", checks=[told, *measured], failed=[])
    (folder / "verdict.json").write_text(json.dumps(as_plain(verdict)))
    return folder


@pytest.mark.parametrize(
    ("change", "name", "at_first"),
    [
        (lambda x: x + 0.5 * np.random.default_rng(1).normal(size=x.shape), "embedding_as_it_is", "info"),
        (lambda x: 1.3 * x, "embedding_scale", "warn"),
    ],
    ids=["moved", "longer"],
)
def test_users_that_move_as_on_the_nights_before_inform_and_others_warn(nights, tmp_path: Path, change, name: str, at_first: str):
    folder = nights(lambda x: x, users=change)

    def users(earlier: dict[str, list[float]] | None = None) -> dict[str, Check]:
        checks = compare_exports(folder.parent / "old", folder, None, earlier)
        return {check.name: check for check in checks if check.slice == "entity=user" and check.outcome == "fail"}

    first = users()
    assert first[name].severity == at_first
    moved = {name: first[name].estimate}
    quiet = [sealed(tmp_path / f"q{night}", {name: moved[name] / 2}) for night in range(3)]
    unusual = users(earlier_moves(quiet))[name]
    assert unusual.severity == "warn" and "More than usual" in unusual.sentence and "3 nights before" in unusual.sentence
    alike = [sealed(tmp_path / f"a{night}", moved) for night in range(4)]
    usual = users(earlier_moves([*quiet, *alike]))[name]
    assert usual.severity == "info" and "As usual" in usual.sentence
    assert first.get("embedding_neighbours", usual).severity == "info"
    across = sealed(tmp_path / "across", moved, space="fail")
    assert earlier_moves([across, tmp_path / "unjudged"]) == {}, "another space has other distances"


def test_items_that_moved_are_excused_by_no_earlier_night(nights):
    folder = nights(lambda x: x + np.random.default_rng(1).normal(size=x.shape))
    plain = [check for check in compare_exports(folder.parent / "old", folder) if check.slice == "entity=item"]
    excused = compare_exports(folder.parent / "old", folder, None, {check.path: [9.0] for check in plain})
    assert plain == [check for check in excused if check.slice == "entity=item"]


def test_what_was_learned_anew_gets_a_new_space_or_is_refused(nights):
    def learned(x: np.ndarray) -> np.ndarray:
        return x + np.random.default_rng(1).normal(size=x.shape)

    folder = nights(learned, space_id="space-2")
    assert read_manifest(folder).feature_space == "space-2"
    assert failed(folder)["embedding_space/all"] == "warn"
    with pytest.raises(ExportError, match="left the live space"):
        nights(learned, space_id="space-3", on_drift="refuse")


def test_errors_do_not_add_up_over_nights(source, write, tmp_path: Path):
    """Each night turns and shifts the space a little and adds noise; items stay on the first night's reference."""
    made = source(users=400, items=600, dim=DIM)
    first = made.items[1].astype(np.float64)
    generator = np.random.default_rng(0)
    write(made, tmp_path / "0")
    turn = np.eye(DIM)
    for night in range(1, 6):
        turn = turn @ np.linalg.qr(np.eye(DIM) + 0.3 * generator.normal(size=(DIM, DIM)))[0]
        made.items = (made.items[0], (first @ turn + night + 0.1 * generator.normal(size=first.shape)).astype(np.float32))
        made.users = (made.users[0], (made.users[1] @ turn).astype(np.float32))
        write(made, tmp_path / str(night), live=tmp_path / str(night - 1), space_id=f"space-{night}")
        manifest = read_manifest(tmp_path / str(night))
        assert manifest.alignment["item"].residual < 0.02
        assert vectors_of(tmp_path / str(night), "item_reference").keys() == vectors_of(tmp_path / "0", "item_reference").keys()
    feature = np.stack(list(vectors_of(tmp_path / "5", "item_wide").values()))
    assert np.abs((feature - first).mean(axis=0)).max() < 0.05
    assert manifest.feature_space == "space-1" or manifest.feature_space == read_manifest(tmp_path / "0").feature_space


def test_a_reference_that_died_out_is_topped_up_with_aligned_vectors(source, write, tmp_path: Path):
    made = source(users=400, items=1000, dim=DIM)
    ids, x = made.items
    made.items = (ids[:600], x[:600])
    write(made, tmp_path / "0")
    made.items = (ids[400:], (x[400:] @ rotation()).astype(np.float32))
    write(made, tmp_path / "1", live=tmp_path / "0")
    reference = vectors_of(tmp_path / "1", "item_reference")
    assert set(reference) == set(ids[400:].to_pylist())
    np.testing.assert_allclose(np.stack([reference[f"item-{n}"] for n in range(400, 1000)]), x[400:], atol=1e-5)


def test_another_width_and_a_missing_entity(source, write, tmp_path: Path):
    write(source(items=80), tmp_path / "old")  # enough items to compare, so that nothing but the missing entity fails
    write(source(items=80, dim=9), tmp_path / "new", live=tmp_path / "old")
    checks = {c.name: c for c in compare_exports(tmp_path / "old", tmp_path / "new") if c.slice == "entity=user"}
    assert (checks["embedding_dim"].outcome, checks["embedding_dim"].severity) == ("fail", "block")
    write(source(items=80), tmp_path / "new", ExportConfig(entities=["item"]))
    gone = {c.path: c.severity for c in compare_exports(tmp_path / "old", tmp_path / "new") if c.outcome == "fail"}
    assert gone == {"embedding_coverage/all/entity=user": "block"}


def test_rare_items_are_told_apart_from_frequent_ones(nights):
    def move_even(x_MD: np.ndarray) -> np.ndarray:
        moved = x_MD + 2 * np.random.default_rng(0).normal(size=x_MD.shape)
        return np.where((np.arange(len(x_MD)) % 2 == 0)[:, None], moved, x_MD)

    def rows(ids) -> np.ndarray:
        return np.array([3 if int(name.removeprefix("item-")) % 2 == 0 else 500 for name in ids.to_pylist()])

    folder = nights(move_even)
    found = {c.slice: c for c in compare_exports(folder.parent / "old", folder, {"item": rows}) if c.name == "embedding_bucket"}
    assert {place: check.outcome for place, check in found.items()} == {"entity=item,rows=1-9": "fail", "entity=item,rows=100-999": "pass"}
    assert {check.severity for check in found.values()} == {"info"}, "rare items move every night"
    assert not [c for c in compare_exports(folder.parent / "old", folder) if c.name == "embedding_bucket"]
