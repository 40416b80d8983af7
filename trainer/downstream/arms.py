"""What the exported features are worth to the final model, on rows that nothing behind them was trained on.

Two leaks are shut out. The judged rows are the holdout: the ranker's weights have never seen them, else its score would carry their
labels and the final model would trust it too much. And no final model is judged on what it was trained on: it is trained on earlier
days, whose embeddings were made by weights that had not seen them either, or, where there are none, on the other half of the users.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config import DownstreamConfig
from trainer.downstream.booster import Booster, make_booster
from trainer.downstream.features import VECTOR, Encoder, check_columns, kind_of
from trainer.downstream.final import Fitted
from trainer.downstream.table import REQUEST, labels_of, newest, ripe, slates_of, weights_of
from trainer.errors import ConfigError
from trainer.metrics import Estimate, Rows, arrange, auc, interval, ndcg, normalised_loss, ratio
from trainer.schema.downstream import NOT_TESTABLE, OK, SCALARS, VECTORS, WITH, WITHOUT, Arm, DownstreamReport, Interval
from trainer.schema.ids import hash_ids

DAY = "day"  # of earlier rows
FOLDS = 2
STOP_SHARE = 5  # one user in five of the training half decides when boosting stops

MIN_ROWS = 500
MIN_USERS = 40
MIN_CLASS_ROWS = 25  # of each class, in each half

MIN_SLICE_ROWS = 500

TOP_FEATURES = 20
TOP_K = 10


def lift(
    table: pa.Table,
    action: str,
    feature_columns: Sequence[str],
    embedding_columns: Sequence[str],
    config: DownstreamConfig,
    seed: int,
    *,
    earlier: pa.Table | None = None,
    slices: Sequence[str] = (),
    booster: Booster | None = None,
    keep: Callable[[Fitted], object] | None = None,
) -> DownstreamReport:
    """Compares the final model with and without the exported features.

    Args:
        table: Holdout rows, unseen by the ranker's weights: user, label_<action>, optional weight, and the columns below.
        action: Binary action.
        feature_columns: Features of the arm ``without``.
        embedding_columns: What the arm ``with`` has on top: pair scalars, vectors (fixed-size lists).
        config: Library, objective and size of the model.
        seed: Seed.
        earlier: Rows of earlier days with embeddings as of each day: the models are trained on these and judged on `table`. Without
            them, each half of the holdout's users is judged by models that were trained on the other half.
        slices: Columns of `table` whose values are slices in which the final score's calibration is reported.
        booster: Library; default the configured one.
        keep: Is handed the model of the arm ``with``, if it is one model: with `earlier`. Halves of the holdout have a model each, and
            neither was judged on all rows.

    Returns:
        The report; status ``not_testable`` with the reason where the rows cannot tell.

    Raises:
        ConfigError: If a column is absent or named twice, or the library is not installed.
        DataError: If a label, weight, user or feature cannot be used.
    """
    if not embedding_columns:
        raise ConfigError("no exported features to judge", where="embedding_columns")
    for columns in (["user"], list(feature_columns), [*feature_columns, *embedding_columns]):
        check_columns(table, columns)
    sample = _sample(table, action, config, earlier)
    report = _asked(sample, action, config, seed)
    if reason := _not_testable(sample, report):
        return dataclasses.replace(report, status=NOT_TESTABLE, reason=reason)
    booster = booster or make_booster(config, config.objective, seed)
    extra = _extra_columns(table.schema, embedding_columns, config.ablation)
    arms = {name: _fitted(sample, [*feature_columns, *columns], booster) for name, columns in extra.items()}
    if keep is not None and earlier is not None:
        keep(arms[WITH].final)
    return _judged(report, arms, sample, slices)


def later_scores(
    earlier: pa.Table, judged: pa.Table, action: str, columns: Sequence[str], config: DownstreamConfig, seed: int
) -> np.ndarray:
    """Scores rows by one final model of earlier rows: an arm of `lift`, for whoever pools several judged days.

    Args:
        earlier: Rows to train on; those without a ripe label and all but the newest ``downstream.max_rows`` are left out.
        judged: Rows to score.
        action: Binary action.
        columns: Features.
        config: Library and size of the model.
        seed: Seed.

    Returns:
        float64 [N], a score a row of `judged`, in its order.

    Raises:
        ConfigError: If a column is absent or the library is not installed.
        DataError: If a label, weight, user or feature cannot be used.
    """
    check_columns(judged, columns)
    return _boosted(_sample(earlier, action, config), judged, columns, make_booster(config, config.objective, seed))[0]


@dataclass(frozen=True)
class _Sample:
    """Judged rows and, where they are others, training rows; `stop_N` marks training rows that decide when boosting stops."""

    table: pa.Table
    label_N: np.ndarray
    weight_N: np.ndarray
    user_N: np.ndarray
    slate_N: np.ndarray | None
    earlier: _Sample | None = None

    @property
    def fold_N(self) -> np.ndarray:
        return (self.user_N % np.uint64(FOLDS)).astype(np.int64)

    @property
    def stop_N(self) -> np.ndarray:
        return self.user_N // np.uint64(FOLDS) % np.uint64(STOP_SHARE) == 0

    def where(self, keep_N: np.ndarray) -> _Sample:
        slate_N = None if self.slate_N is None else self.slate_N[keep_N]
        return _Sample(self.table.filter(pa.array(keep_N)), self.label_N[keep_N], self.weight_N[keep_N], self.user_N[keep_N], slate_N)


@dataclass(frozen=True)
class _Arm:
    score_N: np.ndarray
    final: Fitted  # the last fold's
    trees: list[int]
    gain: dict[str, float]


def _sample(table: pa.Table, action: str, config: DownstreamConfig, earlier: pa.Table | None = None) -> _Sample:
    """Takes the newest rows with a ripe label, and those of the earlier days."""
    table = newest(ripe(table, action), config.max_rows)
    slate_N = slates_of(table) if config.objective == "ranking" or REQUEST in table.column_names else None
    before = None if earlier is None else _sample(earlier, action, config)
    return _Sample(table, labels_of(table, action), weights_of(table), hash_ids(table["user"]), slate_N, before)


def _asked(sample: _Sample, action: str, config: DownstreamConfig, seed: int) -> DownstreamReport:
    """The report as far as it is known before any model is trained."""
    return DownstreamReport(
        status=OK, action=action, rows=len(sample.label_N), users=len(np.unique(sample.user_N)), seed=seed, library=config.library,
        positives=int((sample.label_N > 0).sum()), objective=config.objective,
        trained_on="other users of the judged days" if sample.earlier is None else "earlier days, embeddings as of each",
    )  # fmt: skip


def _extra_columns(schema: pa.Schema, embedding_columns: Sequence[str], ablation: bool) -> dict[str, list[str]]:
    """What each arm has on top of the features; the ablation takes scalars and vectors apart where there are both."""
    vectors = [name for name in embedding_columns if kind_of(schema.field(name)) == VECTOR]
    scalars = [name for name in embedding_columns if name not in vectors]
    extra: dict[str, list[str]] = {WITHOUT: [], WITH: list(embedding_columns)}
    if ablation and vectors and scalars:
        extra |= {SCALARS: scalars, VECTORS: vectors}
    return extra


def _not_testable(sample: _Sample, report: DownstreamReport) -> str | None:
    if report.rows < MIN_ROWS:
        return f"{report.rows} rows with a ripe label; {MIN_ROWS} are needed"
    if report.users < MIN_USERS:
        return f"{report.users} users; {MIN_USERS} are needed"
    parts = [sample.label_N[sample.fold_N == fold] for fold in range(FOLDS)]
    if sample.earlier is not None:
        parts = [sample.label_N, sample.earlier.label_N]
    for label_M in parts:
        positives, rows = int((label_M > 0).sum()), len(label_M)
        if min(positives, rows - positives) < MIN_CLASS_ROWS:
            where = "in one half of the users" if sample.earlier is None else "of the earlier or of the judged days"
            return f"{positives} positives among {rows} rows {where}; {MIN_CLASS_ROWS} of each class are needed"
    return None


def _fitted(sample: _Sample, columns: Sequence[str], booster: Booster) -> _Arm:
    """Scores the judged rows by a model of the earlier days, or each half of the users by a model of the other half."""
    score_N = np.full(len(sample.label_N), np.nan)
    trees: list[int] = []
    gain: dict[str, float] = {}
    for fold in range(1 if sample.earlier is not None else FOLDS):
        judged_N = np.ones(len(score_N), bool) if sample.earlier is not None else sample.fold_N == fold
        train = sample.earlier if sample.earlier is not None else sample.where(~judged_N)
        score_N[judged_N], final = _boosted(train, sample.table.filter(pa.array(judged_N)), columns, booster)
        trees.append(final.model.trees)
        for name, value in final.model.importance().items():
            gain[name] = gain.get(name, 0.0) + value
    return _Arm(score_N, final, trees, gain)


def _boosted(train: _Sample, judged: pa.Table, columns: Sequence[str], booster: Booster) -> tuple[np.ndarray, Fitted]:
    """Fits one model; returns its scores of `judged`, and itself."""
    encoder = Encoder.fit(train.table, columns)
    stop_N = train.stop_N if train.stop_N.any() else None
    model = booster.fit(encoder.encode(train.table), train.label_N, train.weight_N, stop_N, train.slate_N)
    features = encoder.encode(judged)
    days = sorted(set(train.table[DAY].to_pylist())) if DAY in train.table.column_names else []
    return model.predict(features), Fitted(model, encoder, features.names, days)


def _judged(report: DownstreamReport, arms: dict[str, _Arm], sample: _Sample, slices: Sequence[str]) -> DownstreamReport:
    rows = arrange(sample.user_N, weight_N=sample.weight_N)
    measured = {name: _metrics(arm.score_N, sample, rows, report.objective) for name, arm in arms.items()}
    lifts = {
        name: {key: _interval(value.minus(measured[WITHOUT][key]), rows) for key, value in values.items() if key != "ratio"}
        for name, values in measured.items()
        if name != WITHOUT
    }
    return dataclasses.replace(
        report,
        arms={
            name: Arm(
                features=len(arm.final.features), trees=arm.trees, **{key: _interval(value, rows) for key, value in measured[name].items()}
            )
            for name, arm in arms.items()
        },
        lift=lifts[WITH],
        ablation={name: lifts[name] for name in (SCALARS, VECTORS) if name in lifts},
        slices={} if report.objective == "ranking" else _by_slice(arms, sample, slices),
        importance=_shares(arms[WITH].gain),
    )


def _metrics(score_N: np.ndarray, sample: _Sample, rows: Rows, objective: str) -> dict[str, Estimate]:
    found = {"auc": auc(score_N, sample.label_N, rows)}
    if objective != "ranking":
        found["ne"] = normalised_loss("binary", score_N, sample.label_N, rows)
        found["ratio"] = ratio(score_N, sample.label_N, rows)
    if sample.slate_N is not None:
        found["ndcg"] = ndcg(score_N, sample.label_N, sample.slate_N, rows, TOP_K)
    return found


def _by_slice(arms: dict[str, _Arm], sample: _Sample, slices: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Calibration of the final score in every slice of at least `MIN_SLICE_ROWS` rows."""
    found: dict[str, dict[str, Interval]] = {}
    for column in slices:
        values = pc.fill_null(sample.table[column].cast(pa.string()), "null").combine_chunks().dictionary_encode()
        code_N = values.indices.to_numpy()
        rows = arrange(sample.user_N, code_N, len(values.dictionary), sample.weight_N)
        measured = {name: ratio(arms[name].score_N, sample.label_N, rows) for name in (WITHOUT, WITH)}
        ends = {name: (estimate.value_G, *interval(estimate, rows)) for name, estimate in measured.items()}
        for code in np.argsort(-rows.n_G, kind="stable"):
            if rows.n_G[code] >= MIN_SLICE_ROWS:
                key = f"{column}={values.dictionary[int(code)].as_py()}"
                found[key] = {name: _ends(*(end_G[code] for end_G in triple)) for name, triple in ends.items()}
    return found


def _interval(estimate: Estimate, rows: Rows) -> Interval:
    low_G, high_G = interval(estimate, rows)
    return _ends(estimate.value_G[0], low_G[0], high_G[0])


def _ends(value: float, low: float, high: float) -> Interval:
    low_or_none, high_or_none = (float(end) if np.isfinite(end) else None for end in (low, high))
    return Interval(value=float(value), low=low_or_none, high=high_or_none)


def _shares(gain: dict[str, float]) -> dict[str, float]:
    total = sum(gain.values()) or 1.0
    ordered = sorted(gain.items(), key=lambda item: (-item[1], item[0]))
    return {name: value / total for name, value in ordered[:TOP_FEATURES]}
