"""Gradient-boosted trees behind one small interface."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from trainer.downstream.features import Features
from trainer.errors import ConfigError

OBJECTIVES = {"binary": "binary", "count": "poisson", "duration": "regression"}  # each predicts an expectation

_PATIENCE = 20  # rounds without progress before boosting stops

# The library's defaults learn authors and tags by heart. On a public short-video log these took NE from .876 to .867 for clicks, and
# from .870 to .809 for likes, on the days after training.
_CATEGORICAL = {"cat_smooth": 100.0, "cat_l2": 50.0, "max_cat_threshold": 16}


class Model(Protocol):
    """A fitted model."""

    trees: int

    def predict(self, features: Features) -> np.ndarray:
        """Returns float64 [N]: a probability (binary) or an expectation."""
        ...

    def importance(self) -> dict[str, float]:
        """Returns the total gain of each feature."""
        ...


class Booster(Protocol):
    """A library for gradient-boosted trees with its parameters."""

    def fit(self, features: Features, label_N: np.ndarray, weight_N: np.ndarray, stop_N: np.ndarray | None = None) -> Model:
        """Fits a model.

        Args:
            features: [N, F].
            label_N: Outcomes, none missing.
            weight_N: Row weights.
            stop_N: Rows that decide when to stop instead of being learned from; None boosts all rounds.
        """
        ...


def library() -> ModuleType:
    """Returns LightGBM.

    Raises:
        ConfigError: If it is not installed, or its own libraries are missing; it is never skipped in silence.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise ConfigError(
            "LightGBM is not installed", where="downstream", got=error,
            remedy='pip install "rewarm[downstream]", or switch it off: downstream.enabled=false, evaluation.lightgbm=false',
        ) from error  # fmt: skip
    except OSError as error:
        raise ConfigError("LightGBM cannot be loaded", where="downstream", got=error, remedy="install OpenMP (libgomp1)") from error
    return lightgbm


@dataclass(frozen=True)
class LightGBM:
    """LightGBM; the same data and parameters give the same model, whatever the number of threads.

    Attributes:
        trees: Boosting rounds at most.
        leaves: Leaves a tree.
        learning_rate: Shrinkage.
        threads: Threads.
        seed: Seed.
        kind: Kind of the action: binary, count or duration.
    """

    trees: int
    leaves: int
    learning_rate: float
    threads: int
    seed: int
    kind: str = "binary"

    def fit(self, features: Features, label_N: np.ndarray, weight_N: np.ndarray, stop_N: np.ndarray | None = None) -> Model:
        """Fits a model; see `Booster.fit`."""
        lightgbm = library()
        learn_N = np.ones(len(label_N), bool) if stop_N is None else ~stop_N
        train = self._data(lightgbm, features, label_N, weight_N, learn_N, None)
        valid, callbacks = [], []
        if stop_N is not None:
            valid = [self._data(lightgbm, features, label_N, weight_N, stop_N, train)]
            callbacks = [lightgbm.early_stopping(_PATIENCE, verbose=False)]
        fitted = lightgbm.train(self._parameters(), train, num_boost_round=self.trees, valid_sets=valid, callbacks=callbacks)
        return _LightGBMModel(fitted, features.names, self.threads)

    def _parameters(self) -> dict[str, Any]:
        return {
            "objective": OBJECTIVES[self.kind], "num_leaves": self.leaves, "learning_rate": self.learning_rate, "seed": self.seed,
            "num_threads": self.threads, "deterministic": True, "force_row_wise": True, "feature_fraction": 0.7, "bagging_fraction": 0.8,
            "bagging_freq": 1, "min_data_in_leaf": 50, "lambda_l2": 1.0, "verbosity": -1, **_CATEGORICAL,
        }  # fmt: skip

    @staticmethod
    def _data(
        lightgbm: ModuleType, features: Features, label_N: np.ndarray, weight_N: np.ndarray, keep_N: np.ndarray, reference: object | None
    ) -> object:
        # Features go by position: LightGBM refuses some characters in names that columns of a log may have.
        return lightgbm.Dataset(
            features.values_NF[keep_N], label=label_N[keep_N], weight=weight_N[keep_N], reference=reference,
            feature_name=[f"f{index}" for index in range(len(features.names))], categorical_feature=features.categorical,
        )  # fmt: skip


class _LightGBMModel:
    def __init__(self, fitted: Any, names: list[str], threads: int) -> None:
        self._fitted, self._names, self._threads = fitted, names, threads
        self.trees = int(fitted.best_iteration if fitted.best_iteration > 0 else fitted.current_iteration())

    def predict(self, features: Features) -> np.ndarray:
        if features.names != self._names:
            raise ConfigError("a model is asked for other features than it was trained on", got=features.names, expected=self._names)
        return np.asarray(self._fitted.predict(features.values_NF, num_iteration=self.trees, num_threads=self._threads), np.float64)

    def importance(self) -> dict[str, float]:
        gain_F = self._fitted.feature_importance("gain", iteration=self.trees)
        return dict(zip(self._names, gain_F.tolist(), strict=True))
