"""`downstream.json`: what the embeddings are worth to the ranking model behind them; `downstream/`: that model, sealed with them.

downstream/model.txt or model.cbm    the library's own file
downstream/model.json                `FinalModel`, written last: whatever encodes rows as it says gets the judged scores
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.schema.verdict import Check

DOWNSTREAM_VERSION = 2

FINAL = "downstream"  # folder of the final model, in a run and in a release
FINAL_VERSION = 1
FINAL_FILE = "model.json"
MODEL_FILES = {"lightgbm": "model.txt", "catboost": "model.cbm"}

OK = "ok"
NOT_TESTABLE = "not_testable"

WITHOUT = "without"
WITH = "with"
SCALARS = "scalars"  # without, and the pair scalars
VECTORS = "vectors"  # without, and the vectors


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its user-clustered 95 per cent interval; ends are null where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One final model, judged on rows of users that it was not trained on.

    Attributes:
        features: Columns of its feature matrix.
        trees: Trees of each fold's model (early stopping decides).
        auc: Area under the ROC curve.
        ne: Normalised entropy; null for a model that ranks.
        ratio: Calibration ratio of the final score, sum p / sum y; null for a model that ranks.
        ndcg: NDCG@10 of the slates, where the rows have them.
    """

    features: int
    trees: list[int]
    auc: Interval
    ne: Interval | None = None
    ratio: Interval | None = None
    ndcg: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class DownstreamReport:
    """The same final model with and without the exported features, on the same rows.

    Attributes:
        version: Version of this schema.
        status: ``ok`` or ``not_testable``.
        reason: Why it is not testable.
        action: Action that the final model predicts.
        rows: Judged rows.
        users: Users they belong to.
        positives: Rows with a positive label.
        library: Library of the models.
        objective: ``binary`` or ``ranking``.
        trained_on: What the models were trained on: ``other users of the judged days``, or the days whose embeddings are as of them.
        arms: ``without`` and ``with``; with ablation also ``scalars`` and ``vectors``.
        lift: Metric -> ``with`` minus ``without``, paired row by row (``ne``: below 0 is better; ``auc``, ``ndcg``: above 0 is better).
        ablation: Arm -> the same differences to ``without``.
        slices: ``<column>=<value>`` -> arm -> calibration ratio of the final score there.
        replay: Checks of the final model that goes out, which the gate judges: the live one, frozen, on the new features against the
            old ones, or a new one beside production's; those of the other one inform.
        final: Which final model is released with these embeddings, in words; or why none is.
        final_sha256: Hash of that model's file; null if none is released.
        importance: Share of the total gain of the 20 most used features of the arm ``with``, largest first.
        seed: Seed of the models.
    """

    version: int = DOWNSTREAM_VERSION
    status: str
    reason: str | None = None
    action: str
    rows: int = 0
    users: int = 0
    positives: int = 0
    library: str = "lightgbm"
    objective: str = "binary"
    trained_on: str = "other users of the judged days"
    arms: dict[str, Arm] = field(default_factory=dict)
    lift: dict[str, Interval] = field(default_factory=dict)
    ablation: dict[str, dict[str, Interval]] = field(default_factory=dict)
    slices: dict[str, dict[str, Interval]] = field(default_factory=dict)
    replay: list[Check] = field(default_factory=list)
    final: str = ""
    final_sha256: str | None = None
    importance: dict[str, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Categories:
    """What a categorical column is coded by.

    Attributes:
        type: ``int64`` or ``string``.
        values: A value's position is its code; any other value is missing (NaN).
    """

    type: str
    values: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FinalModel:
    """`model.json`: the final model that is released with embeddings, and how rows are encoded for it.

    Attributes:
        version: Version of this schema.
        library: ``lightgbm`` or ``catboost``.
        objective: ``binary`` or ``ranking``.
        action: Action that it predicts.
        columns: Column -> ``numeric``, ``categorical`` or ``vector``, in the order of the feature matrix.
        features: Name of each feature of the matrix, vectors spread out.
        categories: Categorical column -> its codes.
        feature_space: Space of the vectors that it was trained on (`EmbeddingManifest.feature_space`).
        sha256: Hash of the model's file.
        days: Days it was trained on, their features as of each.
    """

    version: int = FINAL_VERSION
    library: str
    objective: str
    action: str
    columns: dict[str, str]
    features: list[str]
    categories: dict[str, Categories]
    feature_space: str
    sha256: str
    days: list[str] = field(default_factory=list)
