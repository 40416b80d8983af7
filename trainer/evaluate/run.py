"""The evaluate stage: every model on the same holdout rows, then metrics with user-clustered intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.config import EvaluationConfig
from trainer.errors import ConfigError, DataError, nearest
from trainer.evaluate.counting import CountingBaseline, ripe_labels
from trainer.evaluate.rescoring import Rescoring
from trainer.evaluate.scorer import ScoredPartition
from trainer.metrics import evaluate_action
from trainer.schema.examples import CARRIED, FEATURE, LOGGED
from trainer.schema.files import write_text
from trainer.schema.logs import LogSpec
from trainer.schema.predictions import (
    CHALLENGER,
    CONTINUED,
    COUNTING,
    LABEL,
    LIGHTGBM,
    PRODUCTION,
    REFERENCE,
    VALUE_CHALLENGER,
    VALUE_PRODUCTION,
    VALUE_REFERENCE,
    WEIGHT,
    unscored,
)

_ARRAYS = ("order", "dot", "user_vectors")  # beside the predictions, in files of their own


class Scorer(Protocol):
    """Anything that scores a partition: a ranker's bundle, or a stand-in."""

    def score(self, examples: pa.Table, tail: pa.Table, known_until_ms: int) -> ScoredPartition:
        """Scores every row."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What the evaluate stage hands over.

    Attributes:
        predictions: Table as `trainer.schema.predictions` describes it.
        report: Content of `eval.json`: model -> action -> metrics, intervals and slices.
        order_N: Row of each prediction in the concatenated holdout partitions.
        dot_N: float32 [N], product of the challenger's user and item vector of each row.
        user_ND: float32 [N, D], the challenger's user vector at each row's request time.
    """

    predictions: pa.Table
    report: dict[str, Any]
    order_N: np.ndarray
    dot_N: np.ndarray
    user_ND: np.ndarray


@dataclass(frozen=True)
class Holdout:
    """Rows that are judged.

    Attributes:
        partitions: Reads (examples, tail) of each partition, in order.
        known_until_ms: Knowledge cut-off.
        known: Entity -> ids that training days had, for the slices new_item and new_user.
    """

    partitions: Sequence[Callable[[], tuple[pa.Table, pa.Table]]]
    known_until_ms: int
    known: dict[str, pa.Array]


def evaluate(
    spec: LogSpec, config: EvaluationConfig, holdout: Holdout, challenger: Scorer, *, production: Scorer | None, counting: CountingBaseline,
    weights: Mapping[str, float], continued: Scorer | None = None, extra: Mapping[str, np.ndarray] | None = None,
    reference: Scorer | None = None, served_as: str | None = None, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """Scores and measures.

    Args:
        spec: The log.
        config: Slices and baselines.
        holdout: The judged rows.
        challenger: The new model.
        production: The live model; None where only its logged scores exist, or nothing.
        counting: Baseline, fitted on the training days.
        weights: Action -> weight in the value function.
        continued: Production trained on the same new days, at a launch.
        extra: LightGBM baseline: action -> scores of the concatenated holdout partitions.
        reference: The frozen release that nightly losses are added up against.
        served_as: What the log calls the live version in `data.serving_version`: its rows are scored again and compared with what
            was logged (`trainer.evaluate.rescoring`); None where nothing is live.
        seed: Seed of the bootstrap.

    Returns:
        Predictions and metrics.
    """
    tables, dots, vectors, start = [], [], [], 0
    rescoring = Rescoring(spec, config, served_as, holdout.known_until_ms) if served_as is not None else None
    for read in holdout.partitions:
        examples, tail = read()
        if not len(examples):
            continue
        scored = challenger.score(examples, tail, holdout.known_until_ms)
        columns = _base_columns(spec, config, examples, holdout)
        columns |= {CHALLENGER + name: score_N for name, score_N in scored.score_N.items()}
        columns |= _production_columns(spec, examples, tail, production, holdout.known_until_ms, rescoring)
        columns |= {COUNTING + name: score_N for name, score_N in counting.predict(examples).items()}
        if continued is not None:
            again = continued.score(examples, tail, holdout.known_until_ms)
            columns |= {CONTINUED + name: score_N for name, score_N in again.score_N.items()}
        if reference is not None:
            frozen = reference.score(examples, tail, holdout.known_until_ms)
            columns |= {REFERENCE + name: score_N for name, score_N in frozen.score_N.items()}
        if extra is not None:
            columns |= {LIGHTGBM + name: score_N[start : start + len(examples)] for name, score_N in extra.items()}
        start += len(examples)
        vectors.append(scored.user_ND)
        tables.append(pa.table(_with_values(columns, weights)))
        dots.append(scored.dot_N)
    if not tables:
        raise DataError("the holdout has no rows", remedy="choose an as_of whose day has data")
    predictions = pa.concat_tables(tables, promote_options="default").combine_chunks()
    order = pc.sort_indices(predictions, [("user", "ascending"), ("time", "ascending"), ("item", "ascending")])
    order_N = np.asarray(order, np.int64)
    predictions = predictions.take(order)
    unscored_N = unscored(predictions)
    compared = predictions if unscored_N.all() else predictions.filter(pa.array(~unscored_N))  # every model on the same rows
    report = measure(compared, spec, config, seed)
    if rescoring is not None and production is not None:
        report["rescoring"] = rescoring.report(production)
    return Evaluation(predictions, report, order_N, *(np.concatenate(blocks)[order_N] for blocks in (dots, vectors)))


def write_evaluation(evaluation: Evaluation, run_dir: Path) -> None:
    """Writes `predictions.parquet` and `eval.json`."""
    pq.write_table(evaluation.predictions, run_dir / "predictions.parquet", compression="zstd", write_page_checksum=True)
    for name, array in zip(_ARRAYS, (evaluation.order_N, evaluation.dot_N, evaluation.user_ND), strict=True):
        np.save(run_dir / f"holdout_{name}.npy", array, allow_pickle=False)
    write_text(run_dir / "eval.json", json.dumps(evaluation.report, indent=1))


def read_evaluation(run_dir: Path) -> Evaluation:
    """Reads what `write_evaluation` wrote."""
    return Evaluation(
        pq.read_table(run_dir / "predictions.parquet", page_checksum_verification=True),
        json.loads((run_dir / "eval.json").read_text()),
        *(np.load(run_dir / f"holdout_{name}.npy", allow_pickle=False) for name in _ARRAYS),
    )


def fit_counting(
    spec: LogSpec, config: EvaluationConfig, partitions: Sequence[Callable[[], pa.Table]], known_until_ms: int
) -> CountingBaseline:
    """Fits the counting baseline on earlier days.

    Raises:
        ConfigError: If an entity is no column of the examples.
    """
    baseline = CountingBaseline(config.counting, {name: action.kind for name, action in spec.actions.items()})
    for read in partitions:
        examples = read()
        for entity in config.counting:
            if entity not in ("user", "item") and FEATURE + entity not in examples.column_names:
                features = [name.removeprefix(FEATURE) for name in examples.column_names if name.startswith(FEATURE)]
                raise ConfigError(
                    "the counting baseline names an unknown entity",
                    where="evaluation.counting",
                    got=entity,
                    remedy=nearest(entity, ["user", "item", *features]),
                )
        baseline.add(examples, ripe_labels(examples, _maturities(spec), known_until_ms))
    return baseline


def measure(predictions: pa.Table, spec: LogSpec, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    """Measures every model on every action, over all given rows and by slice.

    Returns:
        ``{model: {action: {metrics, "intervals", "slices": {column: {value: metrics}}}}}``.
    """
    user_N = _codes(predictions["user"])
    asked = "request" in predictions.column_names and predictions["request"].null_count == 0
    slices = {name: _codes_and_values(predictions[name]) for name in slice_columns(predictions, config)}
    report: dict[str, Any] = {}
    for model, prefix in (
        ("challenger", CHALLENGER),
        ("production", PRODUCTION),
        ("counting", COUNTING),
        ("continued", CONTINUED),
        ("lightgbm", LIGHTGBM),
    ):
        for action in spec.actions:
            if prefix + action not in predictions.column_names:
                continue
            label_N = np.asarray(pc.fill_null(predictions[LABEL + action], np.nan), np.float64)
            score_N = np.asarray(pc.fill_null(predictions[prefix + action], np.nan), np.float64)
            common = {
                "kind": spec.actions[action].kind,
                "weight_N": predictions[WEIGHT].to_numpy(),
                "slate_N": _codes(predictions["request"]) if asked else None,
                "bootstrap": config.bootstrap,
                "seed": seed,
            }
            overall = evaluate_action(label_N, score_N, user_N, **common)[0]
            entry: dict[str, Any] = {**overall.plain(), "intervals": overall.intervals(), "notes": overall.notes, "slices": {}}
            for name, (code_N, values) in slices.items():
                groups = evaluate_action(label_N, score_N, user_N, group_N=code_N, groups=len(values), **{**common, "bootstrap": 0})
                entry["slices"][name] = {
                    value: {**group.plain(), "intervals": group.intervals()}
                    for value, group in zip(values, groups, strict=True)
                    if group.n >= config.slice_rows
                }
            report.setdefault(model, {})[action] = entry
    return report


def slice_columns(predictions: pa.Table, config: EvaluationConfig) -> list[str]:
    """Returns the slice columns of a predictions table."""
    names = [*config.slices, *(["new_item"] if config.new_item else []), *(["new_user"] if config.new_user else [])]
    return [name for name in names if name in predictions.column_names]


def _base_columns(spec: LogSpec, config: EvaluationConfig, examples: pa.Table, holdout: Holdout) -> dict[str, Any]:
    columns: dict[str, Any] = {"user": examples["user"], "item": examples["item"], "time": examples["request_time"]}
    if "request" in examples.column_names:
        columns["request"] = examples["request"]
    columns[WEIGHT] = examples["weight"].to_numpy().astype(np.float64)
    for name in config.slices:
        source = next((prefix + name for prefix in (FEATURE, CARRIED) if prefix + name in examples.column_names), None)
        if source is None:
            features = [column.split("_", 1)[1] for column in examples.column_names if column.startswith((FEATURE, CARRIED))]
            raise ConfigError("a slice names an unknown column", where="evaluation.slices", got=name, remedy=nearest(name, features))
        columns[name] = examples[source]
    for entity, wanted in (("item", config.new_item), ("user", config.new_user)):
        if wanted:
            ids = examples[entity].combine_chunks()
            columns[f"new_{entity}"] = pc.invert(pc.is_in(ids, value_set=holdout.known[entity].cast(ids.type)))
    for name, label_N in ripe_labels(examples, _maturities(spec), holdout.known_until_ms).items():
        columns[LABEL + name] = pa.array(label_N, pa.float64(), from_pandas=True)
    return columns


def _production_columns(
    spec: LogSpec, examples: pa.Table, tail: pa.Table, production: Scorer | None, known_until_ms: int, rescoring: Rescoring | None
) -> dict[str, Any]:
    """Production's scores: from its bundle, else as it logged them."""
    if production is not None:
        scored = production.score(examples, tail, known_until_ms).score_N
        if rescoring is not None:
            rescoring.add(examples, tail, scored)
        return {PRODUCTION + name: score_N for name, score_N in scored.items()}
    logged = [name for name in spec.logged_scores if LOGGED + name in examples.column_names]
    # A log says "no score" by null or by NaN, whichever its writer knew.
    return {PRODUCTION + name: pa.array(np.asarray(pc.fill_null(examples[LOGGED + name], np.nan)), from_pandas=True) for name in logged}


def _with_values(columns: dict[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
    """Adds the value function of each side, over the actions that both sides score."""
    sides = {VALUE_PRODUCTION: PRODUCTION, VALUE_CHALLENGER: CHALLENGER}
    shared = [name for name in weights if CHALLENGER + name in columns and (PRODUCTION + name in columns or not _has(columns, PRODUCTION))]
    if all(REFERENCE + name in columns for name in shared):
        sides[VALUE_REFERENCE] = REFERENCE
    for target, prefix in sides.items():
        if _has(columns, prefix):
            terms = [weights[name] * np.asarray(columns[prefix + name], np.float64) for name in shared]
            value_N = np.sum(terms, 0) if terms else np.zeros(len(columns["time"]))
            logged = any(isinstance(columns[prefix + name], pa.Array) for name in shared)  # where nothing was logged there is no value
            columns[target] = pa.array(value_N, from_pandas=True) if logged else value_N
    return columns


def _has(columns: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in columns)


def _maturities(spec: LogSpec) -> dict[str, int]:
    return {name: action.maturity_ms for name, action in spec.actions.items()}


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.combine_chunks().dictionary_encode().indices)


def _codes_and_values(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Codes 0..G-1 of a slice column and their values as text; null is a value of its own."""
    text = pc.fill_null(column.combine_chunks().cast(pa.string()), "null")
    encoded = text.dictionary_encode()
    return np.asarray(encoded.indices), encoded.dictionary.to_pylist()
