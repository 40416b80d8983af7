from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.config import ExportConfig
from trainer.export import compare
from trainer.export.drift import centred_cosine, mean_shift_sd


@pytest.fixture
def judged(source, write, tmp_path: Path):
    """Compares an export of 500 users with a changed copy; returns check path -> outcome."""

    def run(change, space_id: str = "space-1", severity: str | None = None, **fields) -> dict[str, str]:
        config = ExportConfig(max_zero_share=1.0, **fields)
        made = source(users=500, items=50)
        write(made, tmp_path / "old", config)
        ids, vectors_MD = made.users
        made.users = change(ids, vectors_MD.copy())
        write(made, tmp_path / "new", config, space_id=space_id)
        checks = compare(tmp_path / "old", tmp_path / "new")
        assert {check.family for check in checks} == {"embeddings"}
        assert severity is None or {c.severity for c in checks if c.name != "embedding_space"} == {severity}
        return {f"{check.name}/{check.slice}": check.outcome for check in checks}

    return run


def failed(outcomes: dict[str, str]) -> set[str]:
    return {name for name, outcome in outcomes.items() if outcome == "fail"}


def rotate(ids: pa.Array, x_MD: np.ndarray):
    basis_DD = np.linalg.qr(np.random.default_rng(5).normal(size=(x_MD.shape[1],) * 2))[0]
    return ids, (x_MD @ basis_DD).astype(np.float32)


def zero_fifth(ids: pa.Array, x_MD: np.ndarray):
    x_MD[::5] = 0
    return ids, x_MD


CHANGES = {
    "same": (lambda ids, x: (ids, x), set()),
    "reordered": (lambda ids, x: (ids.take(pa.array(np.arange(len(x))[::-1])), x[::-1].copy()), set()),
    "small noise": (lambda ids, x: (ids, x + np.float32(0.05) * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)), set()),
    "rotated": (rotate, {"embedding_centred_cosine/entity=user"}),
    "shifted": (lambda ids, x: (ids, x + np.float32(0.3)), {"embedding_mean_shift/entity=user"}),
    "scaled": (lambda ids, x: (ids, x * np.float32(1.3)), {"embedding_norm/entity=user"}),
    "shuffled": (lambda ids, x: (ids, np.random.default_rng(2).permutation(x)), {"embedding_centred_cosine/entity=user"}),
    "zero rows": (zero_fifth, {"embedding_zero_rows/entity=user", "embedding_centred_cosine/entity=user", "embedding_norm/entity=user"}),
    "half lost": (lambda ids, x: (ids[:250], x[:250]), {"embedding_coverage/entity=user"}),
    "other ids": (lambda ids, x: (pa.array([f"u{i}" for i in range(len(x))]), x), {"embedding_coverage/entity=user"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_accident_is_named_and_nothing_else(judged, name: str):
    change, expected = CHANGES[name]
    assert failed(judged(change, severity="warn")) == expected


def test_a_new_space_informs_instead_of_warning(judged):
    outcomes = judged(rotate, space_id="space-2", severity="info")
    assert {"embedding_space/all", "embedding_centred_cosine/entity=user"} == failed(outcomes)


def test_another_width_and_a_missing_entity(source, write, tmp_path: Path):
    write(source(dim=8), tmp_path / "old")
    write(source(dim=9), tmp_path / "new")
    checks = {c.name: c for c in compare(tmp_path / "old", tmp_path / "new") if c.slice == "entity=user"}
    assert (checks["embedding_dim"].outcome, checks["embedding_dim"].severity) == ("fail", "block")
    write(source(dim=8), tmp_path / "new", ExportConfig(entities=["item"]))
    assert "embedding_coverage/all/entity=user" in {c.path for c in compare(tmp_path / "old", tmp_path / "new") if c.outcome == "fail"}


def test_too_few_in_common_is_not_testable(judged):
    outcomes = judged(lambda ids, x: (ids[:20], x[:20]))
    assert outcomes["embedding_drift/entity=user"] == "not_testable"


def test_both_sides_sample_the_same_entities(judged, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer.export.drift.MAX_ENTITIES", 150)
    assert failed(judged(lambda ids, x: (ids.take(pa.array(np.arange(len(x))[::-1])), x[::-1].copy()))) == set()
    assert "embedding_centred_cosine/entity=user" in failed(judged(rotate))


def test_a_common_mean_hides_nothing():
    generator = np.random.default_rng(0)
    old_ED = generator.normal(size=(1000, 8))
    new_ED = generator.normal(size=(1000, 8))
    far_old_ED, far_new_ED = old_ED + 100, new_ED + 100
    norm_E = np.linalg.norm(far_old_ED, axis=1) * np.linalg.norm(far_new_ED, axis=1)
    assert np.mean(np.sum(far_old_ED * far_new_ED, axis=1) / norm_E) > 0.999
    assert abs(centred_cosine(far_old_ED, far_new_ED)) < 0.05
    assert centred_cosine(old_ED, 3 * old_ED + 7) == pytest.approx(1)


def test_a_constant_dimension_does_not_divide_by_zero():
    old_ED = np.random.default_rng(0).normal(size=(100, 2)) * [1, 0]
    assert mean_shift_sd(old_ED, old_ED) == 0
    assert np.isfinite(mean_shift_sd(old_ED, old_ED + 1))
    assert np.isfinite(mean_shift_sd(np.zeros((5, 2)), np.zeros((5, 2))))
