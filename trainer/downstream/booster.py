"""Gradient-boosted trees behind one small interface: LightGBM and CatBoost, predicting an expectation or ranking slates."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from trainer.config import DownstreamConfig
from trainer.downstream.features import Features
from trainer.errors import ConfigError

LIBRARIES = ("lightgbm", "catboost")

# Each but the last predicts an expectation; ``ranking`` orders the rows of a slate and its scores have no unit.
OBJECTIVES = {"binary": "binary", "count": "poisson", "duration": "regression", "ranking": "lambdarank"}
_CATBOOST = {"binary": "Logloss", "count": "Poisson", "duration": "RMSE", "ranking": "YetiRank"}
_CATBOOST_FORM = {"binary": "Probability", "count": "Exponent", "duration": "RawFormulaVal", "ranking": "RawFormulaVal"}

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

    def save(self, path: Path) -> None:
        """Writes the library's own file, which scores as this model does."""
        ...


class Booster(Protocol):
    """A library for gradient-boosted trees with its parameters."""

    def fit(
        self,
        features: Features,
        label_N: np.ndarray,
        weight_N: np.ndarray,
        stop_N: np.ndarray | None = None,
        slate_N: np.ndarray | None = None,
    ) -> Model:
        """Fits a model.

        Args:
            features: [N, F].
            label_N: Outcomes, none missing.
            weight_N: Row weights.
            stop_N: Rows that decide when to stop instead of being learned from; None boosts all rounds.
            slate_N: Slate of each row, integer codes; needed to rank, unused otherwise.
        """
        ...


def library(name: str = "lightgbm") -> ModuleType:
    """Returns LightGBM or CatBoost.

    Raises:
        ConfigError: If it is not installed, or its own libraries are missing; it is never skipped in silence.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name} is not installed", where="downstream", got=error,
            remedy='pip install "rewarm[downstream]", or switch it off: downstream.enabled=false, evaluation.lightgbm=false',
        ) from error  # fmt: skip
    except OSError as error:
        raise ConfigError(f"{name} cannot be loaded", where="downstream", got=error, remedy="install OpenMP (libgomp1)") from error


def make_booster(config: DownstreamConfig, kind: str, seed: int) -> Booster:
    """Returns the configured library for a kind of action (or ``ranking``)."""
    values = (config.trees, config.leaves, config.learning_rate, config.threads, seed, kind)
    return LightGBM(*values) if config.library == "lightgbm" else CatBoost(*values)


def _by_slate(keep_N: np.ndarray, slate_N: np.ndarray | None, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the rows to use, those of a slate side by side, and each one's slate."""
    row_M = np.flatnonzero(keep_N)
    if kind != "ranking":
        return row_M, None
    if slate_N is None:
        raise ConfigError("rows cannot be ranked without slates", where="downstream.objective", got="ranking", expected="a slate a row")
    row_M = row_M[np.argsort(slate_N[row_M], kind="stable")]
    return row_M, slate_N[row_M]


@dataclass(frozen=True)
class LightGBM:
    """LightGBM; the same data and parameters give the same model, whatever the number of threads.

    Attributes:
        trees: Boosting rounds at most.
        leaves: Leaves a tree.
        learning_rate: Shrinkage.
        threads: Threads.
        seed: Seed.
        kind: Kind of the action, binary, count or duration, or ``ranking``.
    """

    trees: int
    leaves: int
    learning_rate: float
    threads: int
    seed: int
    kind: str = "binary"

    def fit(
        self,
        features: Features,
        label_N: np.ndarray,
        weight_N: np.ndarray,
        stop_N: np.ndarray | None = None,
        slate_N: np.ndarray | None = None,
    ) -> Model:
        """Fits a model; see `Booster.fit`."""
        lightgbm = library()
        learn_N = np.ones(len(label_N), bool) if stop_N is None else ~stop_N
        train = self._data(lightgbm, features, label_N, weight_N, _by_slate(learn_N, slate_N, self.kind), None)
        valid, callbacks = [], []
        if stop_N is not None:
            valid = [self._data(lightgbm, features, label_N, weight_N, _by_slate(stop_N, slate_N, self.kind), train)]
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
        lightgbm: ModuleType,
        features: Features,
        label_N: np.ndarray,
        weight_N: np.ndarray,
        used: tuple[np.ndarray, np.ndarray | None],
        reference: object | None,
    ) -> object:
        row_M, slate_M = used
        # Features go by position: LightGBM refuses some characters in names that columns of a log may have.
        return lightgbm.Dataset(
            features.values_NF[row_M], label=label_N[row_M], weight=weight_N[row_M], reference=reference,
            group=None if slate_M is None else np.unique(slate_M, return_counts=True)[1],
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

    def save(self, path: Path) -> None:
        self._fitted.save_model(path, num_iteration=self.trees)


@dataclass(frozen=True)
class CatBoost:
    """CatBoost with symmetric trees; vectors go in as coordinates, because its own embedding features use none of them.

    Attributes: as `LightGBM`; the depth is the one at which a tree has at least `leaves` leaves.
    """

    trees: int
    leaves: int
    learning_rate: float
    threads: int
    seed: int
    kind: str = "binary"

    def fit(
        self,
        features: Features,
        label_N: np.ndarray,
        weight_N: np.ndarray,
        stop_N: np.ndarray | None = None,
        slate_N: np.ndarray | None = None,
    ) -> Model:
        """Fits a model; see `Booster.fit`.

        Raises:
            ConfigError: If rows of a slate to rank have weights, which CatBoost would not use.
        """
        catboost = library("catboost")
        if self.kind == "ranking" and len(label_N) and not (weight_N == weight_N[0]).all():
            raise ConfigError("CatBoost ranks rows without weights", where="downstream.library", remedy="downstream.library=lightgbm")
        learn_N = np.ones(len(label_N), bool) if stop_N is None else ~stop_N
        train = self._pool(catboost, features, label_N, weight_N, _by_slate(learn_N, slate_N, self.kind))
        stop = None if stop_N is None else self._pool(catboost, features, label_N, weight_N, _by_slate(stop_N, slate_N, self.kind))
        fitted = catboost.CatBoost(
            {
                "loss_function": _CATBOOST[self.kind], "iterations": self.trees, "depth": max(1, (self.leaves - 1).bit_length()),
                "learning_rate": self.learning_rate, "random_seed": self.seed, "thread_count": self.threads,
                "allow_writing_files": False, "verbose": False,
            }
        )  # fmt: skip
        fitted.fit(train, eval_set=stop, early_stopping_rounds=None if stop is None else _PATIENCE)
        return _CatBoostModel(fitted, features, _CATBOOST_FORM[self.kind], self.threads)

    def _pool(
        self,
        catboost: ModuleType,
        features: Features,
        label_N: np.ndarray,
        weight_N: np.ndarray,
        used: tuple[np.ndarray, np.ndarray | None],
    ) -> object:
        row_M, slate_M = used
        weight_M = None if self.kind == "ranking" else weight_N[row_M]
        return catboost.Pool(catboost_data(catboost, features.rows(row_M)), label=label_N[row_M], weight=weight_M, group_id=slate_M)


def catboost_data(catboost: ModuleType, features: Features) -> object:
    """Returns features as CatBoost reads them: numbers as float32, codes of categories as text."""
    plain = [index for index in range(len(features.names)) if index not in set(features.categorical)]
    codes_NC = np.nan_to_num(features.values_NF[:, features.categorical], nan=-1).astype(np.int64).astype("S")
    return catboost.FeaturesData(
        num_feature_data=np.ascontiguousarray(features.values_NF[:, plain]) if plain else None,
        cat_feature_data=codes_NC.astype(object) if features.categorical else None,
    )


class _CatBoostModel:
    def __init__(self, fitted: Any, features: Features, form: str, threads: int) -> None:
        self._fitted, self._form, self._threads = fitted, form, threads
        self._names, self._categorical = features.names, features.categorical
        self.trees = int(fitted.tree_count_)

    def predict(self, features: Features) -> np.ndarray:
        if features.names != self._names:
            raise ConfigError("a model is asked for other features than it was trained on", got=features.names, expected=self._names)
        data = catboost_data(library("catboost"), features)
        score_N = np.asarray(self._fitted.predict(data, prediction_type=self._form, thread_count=self._threads), np.float64)
        return score_N[:, 1] if score_N.ndim == 2 else score_N

    def importance(self) -> dict[str, float]:
        # CatBoost lists numbers first, then categories.
        plain = [name for index, name in enumerate(self._names) if index not in set(self._categorical)]
        order = plain + [self._names[index] for index in self._categorical]
        return dict(zip(order, np.asarray(self._fitted.get_feature_importance(type="PredictionValuesChange")).tolist(), strict=True))

    def save(self, path: Path) -> None:
        self._fitted.save_model(str(path), format="cbm")
