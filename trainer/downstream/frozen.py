"""Scores matrices by a frozen model; run as a program, in a process of its own.

The libraries' parsers trust their input: a damaged file can abort the process (an exception inside an OpenMP region). Here that kills
a child, and the parent reports a damaged file. It imports nothing of trainer, so that it runs wherever its file lies.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

_PROBABILITY = ("Logloss", "CrossEntropy")


def lightgbm(model: str, threads: int, matrices: list[str]) -> None:
    """Reads a LightGBM model and scores each matrix."""
    from lightgbm import Booster

    fitted = Booster(model_file=model)
    for matrix in matrices:
        _write(matrix, fitted.predict(np.load(matrix), num_threads=threads))


def catboost(model: str, threads: int, matrices: list[str]) -> None:
    """Reads a CatBoost model, prints what it is, and scores each matrix."""
    from catboost import CatBoost, FeaturesData

    fitted = CatBoost()
    fitted.load_model(model, format="json" if model.endswith(".json") else "cbm")
    loss = str(fitted.get_all_params().get("loss_function", "none"))
    about = {
        "objective": "binary" if loss in _PROBABILITY else loss,
        "names": [str(name) for name in fitted.feature_names_],
        "categorical": [int(index) for index in fitted.get_cat_feature_indices()],
    }
    print(json.dumps(about))

    def rows(matrix: str) -> object:
        """Returns numbers as they are; codes of categories, which come last, as text."""
        value_NF, first = np.load(matrix), len(about["names"]) - len(about["categorical"])
        if not about["categorical"]:
            return value_NF
        codes_NC = np.nan_to_num(value_NF[:, first:], nan=-1).astype(np.int64).astype("S").astype(object)
        return FeaturesData(np.ascontiguousarray(value_NF[:, :first]) if first else None, codes_NC)

    for matrix in matrices:
        form = "Probability" if loss in _PROBABILITY else "RawFormulaVal"
        score = np.asarray(fitted.predict(rows(matrix), prediction_type=form, thread_count=threads))
        _write(matrix, score[:, 1] if score.ndim == 2 else score)


def _write(matrix: str, score: object) -> None:
    np.save(f"{matrix}.scores.npy", np.asarray(score, np.float64))


def main(model: str, threads: str, *matrices: str) -> None:
    """Reads the model, and for each ``X.npy`` (float32 [N, F]) writes ``X.npy.scores.npy`` (float64 [N])."""
    run = lightgbm if Path(model).suffix == ".txt" else catboost
    run(model, int(threads), list(matrices))


if __name__ == "__main__":
    main(*sys.argv[1:])
