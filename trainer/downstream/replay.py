"""The frozen live model, replayed on new features before they are released.

A gradient-boosted model holds thresholds on raw coordinates. A rotation or a shift of the embeddings costs it its accuracy and its
calibration in silence; replaying it is the only check that sees exactly what production will see.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.downstream import frozen
from trainer.downstream.booster import library
from trainer.downstream.features import check_columns, numbers
from trainer.downstream.table import REQUEST, TIMES, labels_of, ripe, slates_of, weights_of
from trainer.errors import CheckpointError, ConfigError, DataError, nearest
from trainer.metrics import Estimate, Rows, arrange, auc, interval, ndcg, normalised_loss, quotient
from trainer.schema.embeddings import wide_names
from trainer.schema.ids import hash_ids
from trainer.schema.verdict import Check

FAMILY = "downstream"

MEAN_MARGIN = 0.05  # relative change of the mean prediction
NE_MARGIN = 0.005  # relative increase of NE
AUC_MARGIN = 0.002  # loss of AUC
NDCG_MARGIN = 0.005  # loss of NDCG within slates
TOP_K = 10

REPLAY = "replay"
JOINT = "joint"
_WORDS = {
    REPLAY: ("On the new features the", "frozen model"),
    JOINT: ("Against production's model and features, the", "retrained final model"),
}

_THREADS = 1  # predicting is quick, and the library's threads wait by spinning
_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_fixed_size_list)


def replay(model_path: Path, table: pa.Table, columns: Sequence[str], *, before: pa.Table, action: str) -> list[Check]:
    """Scores the same rows by the frozen model on the old and on the new features, and judges the difference.

    Args:
        model_path: LightGBM model in its text format (``.txt``), or CatBoost model (``.cbm``, ``.json``) on numbers.
        table: Rows with the new features: user, label_<action> (null = not ripe), optional weight, and `columns`.
        columns: Numeric and vector columns; spread out they must be the model's features, in any order.
        before: The same rows with the old features.
        action: Action that the model predicts.

    Returns:
        Checks of family ``downstream``: mean prediction and NE (binary models) or NDCG (models that rank), AUC. Each fails where harm
        beyond its margin is shown, passes where such harm is ruled out, and holds in between.

    Raises:
        CheckpointError: If the model file is absent or damaged.
        ConfigError: If features do not match, or the library is not installed.
        DataError: If the two tables do not hold the same rows.
    """
    model = _Frozen.read(model_path)
    check_rows(table, before, action)
    new, old = ripe(table, action), ripe(before, action)
    new_N, old_N = scores_by(model_path, [_matrix(model, side, columns) for side in (new, old)])
    return differences(REPLAY, new, action, new_N, old_N, probabilities=model.objective == "binary")


def differences(kind: str, table: pa.Table, action: str, new_N: np.ndarray, old_N: np.ndarray, *, probabilities: bool) -> list[Check]:
    """Judges what becomes of the final scores of the same rows.

    Args:
        kind: ``replay`` (one model, new features) or ``joint`` (new model and new features); the prefix of the checks.
        table: Rows with a ripe label: user, label_<action>, optional weight.
        action: Action that is predicted.
        new_N: Scores to come.
        old_N: Scores of production.
        probabilities: Whether both are; an order has no mean and no NE, but its NDCG within slates, which decides
            where the rows tell slates.

    Returns:
        Checks ``<kind>_mean``, ``<kind>_ne`` and ``<kind>_auc``, or ``<kind>_ndcg`` and ``<kind>_auc``; see `replay`.
    """
    lead, model = _WORDS[kind]
    label_N = labels_of(table, action)
    rows = arrange(hash_ids(table["user"]), weight_N=weights_of(table))
    lost = auc(old_N, label_N, rows).minus(auc(new_N, label_N, rows))
    checks = [_check(f"{kind}_auc", action, lost, AUC_MARGIN, rows, f"{lead} AUC of the {model} falls by {{:.4f}}")]
    if not probabilities:
        order = _order(kind, table, action, new_N, old_N, rows)
        return [*order, *(dataclasses.replace(check, severity="info") for check in checks)] if order else checks
    moved = quotient(new_N, old_N, rows).log(rows)
    ne_new, ne_old = (normalised_loss("binary", score_N, label_N, rows) for score_N in (new_N, old_N))
    worse = ne_new.minus(ne_old)
    worse = Estimate(worse.value_G / ne_old.value_G, worse.influence_N / ne_old.value_G[rows.group_N])
    return [
        _check(f"{kind}_mean", action, _absolute(moved), MEAN_MARGIN, rows, f"{lead} mean prediction of the {model} moves by {{:.1%}}"),
        _check(f"{kind}_ne", action, worse, NE_MARGIN, rows, f"{lead} NE of the {model} rises by {{:.2%}}"),
        *checks,
    ]


def _order(kind: str, table: pa.Table, action: str, new_N: np.ndarray, old_N: np.ndarray, rows: Rows) -> list[Check]:
    """Judges what a model that ranks is for, the order within a slate; AUC compares rows of different slates as well.

    Returns:
        One check; none where slates cannot be told, or none of them can be ranked wrong.
    """
    if not {REQUEST, *TIMES} & set(table.column_names):
        return []
    (lead, model), label_N, slate_N = _WORDS[kind], labels_of(table, action), slates_of(table)
    lost = ndcg(old_N, label_N, slate_N, rows, TOP_K).minus(ndcg(new_N, label_N, slate_N, rows, TOP_K))
    found = _check(f"{kind}_ndcg", action, lost, NDCG_MARGIN, rows, f"{lead} NDCG@{TOP_K} of the {model} falls by {{:.4f}}")
    return [found] if found.outcome != "not_testable" else []


def features_of(model_path: Path) -> list[str]:
    """Returns the names of the frozen model's features, in its order.

    Raises:
        CheckpointError: If the model file is absent or damaged.
    """
    return _Frozen.read(model_path).feature_names


def used_columns(model_path: Path, table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Returns those of `columns` from which the frozen model takes a feature; a vector counts as a whole, whatever its width.

    Raises:
        CheckpointError: If the model file is absent or damaged.
    """
    wanted = set(features_of(model_path))
    check_columns(table, columns)
    return [name for name in columns if wanted & set(_spread(table.schema.field(name)))]


@dataclass(frozen=True)
class _Frozen:
    """The live model, known by what its file says about itself; only a child process ever loads it (`scores_by`)."""

    path: Path
    objective: str
    feature_names: list[str]

    @classmethod
    def read(cls, path: Path) -> _Frozen:
        return _read_lightgbm(path) if path.suffix == ".txt" else _read_catboost(path)


def scores_by(model_path: Path, matrices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the scores of each matrix by a model that a child process loads, float64 [N].

    Args:
        model_path: ``.txt``, ``.cbm`` or ``.json``.
        matrices: float32 [N, F] in the model's order; CatBoost's categories last, as codes.

    Raises:
        CheckpointError: If the child that loads the model fails or dies.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.npy" for index in range(len(matrices))]
        for path, value_NF in zip(paths, matrices, strict=True):
            np.save(path, value_NF)
        _child(model_path, paths)
        return [np.load(path.with_name(f"{path.name}.scores.npy")) for path in paths]


def _child(model: Path, matrices: Sequence[Path]) -> str:
    """Loads the model in a process of its own and returns what that printed."""
    name = "lightgbm" if model.suffix == ".txt" else "catboost"
    library(name)
    command = [sys.executable, "-P", frozen.__file__, str(model), str(_THREADS), *map(str, matrices)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise CheckpointError(f"{name} cannot use the live downstream model", where=model, got=last, remedy="restore the file")
    return done.stdout


def _read_lightgbm(path: Path) -> _Frozen:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError("cannot read the live downstream model", where=path, got=error) from error
    head = dict(line.split("=", 1) for line in text.split("\nTree=", 1)[0].splitlines() if "=" in line)
    if not text.startswith("tree\n") or "\nend of trees\n" not in text or "feature_names" not in head:
        expected = "text from `tree` to `end of trees`"
        raise CheckpointError("not a whole LightGBM model", where=path, expected=expected, remedy="save it with Booster.save_model")
    return _Frozen(path, (head.get("objective") or "none").split()[0], head["feature_names"].split())


def _read_catboost(path: Path) -> _Frozen:
    if not path.is_file():
        raise CheckpointError("cannot read the live downstream model", where=path, got="no such file", expected=".txt, .cbm or .json")
    about = json.loads(_child(path, []).splitlines()[-1])
    if about["categorical"]:
        raise CheckpointError(
            "the live CatBoost model has categories, whose codes only its own pipeline knows", where=path,
            got=about["names"][about["categorical"][0]], remedy="replay it there, or train it on numbers",
        )  # fmt: skip
    return _Frozen(path, about["objective"], about["names"])


def check_rows(table: pa.Table, before: pa.Table, action: str) -> None:
    """Refuses two tables that do not hold the same rows.

    Raises:
        DataError: If users or labels differ.
    """
    for name in ("user", f"label_{action}"):
        check_columns(table, [name])
        check_columns(before, [name])
        if not table[name].equals(before[name]):
            raise DataError("the old and the new features are not of the same rows", where=name, remedy="join both to one list of rows")


def _matrix(model: _Frozen, table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Returns the columns as the model's feature matrix: spread out, by name, in the model's order."""
    check_columns(table, columns)
    names: list[str] = []
    parts = []
    for name in columns:
        kind = table.schema.field(name).type
        if not any(is_kind(kind) for is_kind in _NUMBERS):
            raise DataError("a feature of the live model is not a number", where=name, got=kind, remedy="code it as the live pipeline does")
        parts.append(numbers(table[name], name))
        names += _spread(table.schema.field(name))
    wanted = model.feature_names
    for name in sorted(set(wanted) ^ set(names)):
        side = "the live model has a feature that the table lacks" if name in wanted else "the live model has no such feature"
        raise ConfigError(side, where=model.path, got=name, remedy=nearest(name, names if name in wanted else wanted))
    return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, [names.index(name) for name in wanted]])


def _spread(field: pa.Field) -> list[str]:
    """Returns the names of a column's features: its own, or one a dimension."""
    return wide_names(field.type.list_size, f"{field.name}_") if pa.types.is_fixed_size_list(field.type) else [field.name]


def _absolute(estimate: Estimate) -> Estimate:
    """Turns a signed change into its size: harm in either direction."""
    sign = -1.0 if estimate.value_G[0] < 0 else 1.0
    return Estimate(sign * estimate.value_G, sign * estimate.influence_N)


def _check(name: str, action: str, harm: Estimate, margin: float, rows: Rows, finding: str) -> Check:
    value, low, high = float(harm.value_G[0]), *(float(end_G[0]) for end_G in interval(harm, rows))
    asked = Check(
        name=name, family=FAMILY, action=action, margin=margin, n=int(rows.n_G[0]), outcome="not_testable",
        sentence="The model behind the embeddings cannot be judged: no ripe rows, one class, or one user whose scores alone differ.",
    )  # fmt: skip
    if not np.isfinite([value, low, high]).all():
        return asked
    outcome = "fail" if low > margin else "pass" if high <= margin else "hold"
    sentence = f"{finding.format(value)} (tolerated: {margin:g}; interval {low:.4f} to {high:.4f})."
    return dataclasses.replace(asked, estimate=value, low=low, high=high, outcome=outcome, sentence=sentence)
