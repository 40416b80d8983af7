"""Encodes one examples partition into a shard: rows of embedding tables, standardised numbers, tokens and targets by unit.

A unit is a (user, day): the last L events from before the day plus the day's own events as tokens, and the day's rows as
targets. A unit with far more events than L is cut into several, so that one bot cannot blow up a batch; every target stays
in exactly one unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import DataError
from trainer.schema.examples import FEATURE, LABEL
from trainer.schema.hashed import AnyVocabulary
from trainer.schema.inputs import CLIP, InputSpec, NumericInput
from trainer.schema.logs import is_further_part, whole_names
from trainer.schema.vocabulary import OOV_ROW, PAD_ROW

NO_CLOCK = -1  # event time of tokens from a clockless prior history
DURATION_SCALE_S = 60.0  # a duration of this many seconds enters a token as 1 - 1/e


@dataclass(frozen=True)
class Shard:
    """Arrays of one partition; tokens and targets are grouped by unit.

    Shape suffixes: U units, T tokens, N targets; the others as in `models.batch`.

    Attributes:
        token_offsets_U1: Tokens of unit u are ``[offsets[u], offsets[u+1])``.
        target_offsets_U1: Targets likewise.
        token_*: See `models.batch.Batch`.
        target_*: See `models.batch.Batch`.
        row_N: Row of the target in the partition's examples file.
        teacher_NA: A teacher's scores under distillation, else None; see `models.batch.Batch`.
    """

    token_offsets_U1: np.ndarray
    target_offsets_U1: np.ndarray
    token_item_T: np.ndarray
    token_item_features_TI: np.ndarray
    token_features_TK: np.ndarray
    token_action_TH: np.ndarray
    token_action_known_TH: np.ndarray
    token_time_T: np.ndarray
    target_position_N: np.ndarray
    target_time_N: np.ndarray
    target_item_N: np.ndarray
    target_item_features_NI: np.ndarray
    target_token_features_NK: np.ndarray
    categorical_NC: np.ndarray
    numeric_NF: np.ndarray
    present_NF: np.ndarray
    label_NA: np.ndarray
    known_NA: np.ndarray
    weight_N: np.ndarray
    row_N: np.ndarray
    teacher_NA: np.ndarray | None = None

    @property
    def units(self) -> int:
        return len(self.token_offsets_U1) - 1

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all arrays by name."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}


def transform(values_N: np.ndarray, kind: str) -> np.ndarray:
    """Applies a numeric transform to float64 values; NaN stays NaN.

    Args:
        values_N: Raw values.
        kind: ``none``, ``log`` (sign(x) log1p |x|) or ``logit`` (of a rate clipped to [1e-5, 1 - 1e-5]).
    """
    if kind == "log":
        return np.sign(values_N) * np.log1p(np.abs(values_N))
    if kind == "logit":
        clipped_N = np.clip(values_N, 1e-5, 1 - 1e-5)
        return np.log(clipped_N) - np.log1p(-clipped_N)
    return values_N


def squash_action(values_N: np.ndarray, kind: str) -> np.ndarray:
    """Maps an action's value to [0, 1] for history tokens: binary as is, counts and seconds saturating."""
    if kind == "binary":
        return values_N
    scale = DURATION_SCALE_S if kind == "duration" else 1.0
    return 1.0 - np.exp(-np.maximum(values_N, 0.0) / scale)


@dataclass(frozen=True)
class Encoder:
    """Encodes partitions for one ranker.

    Attributes:
        inputs: The ranker's frozen interface.
        vocabularies: Vocabulary name -> vocabulary.
    """

    inputs: InputSpec
    vocabularies: Mapping[str, AnyVocabulary]

    def encode(self, examples: pa.Table, tail: pa.Table, known_until_ms: int) -> Shard:
        """Encodes one (day, user bucket).

        Args:
            examples: Rows of the partition (`trainer.schema.examples`).
            tail: History tokens from before the day.
            known_until_ms: Knowledge cut-off of the run: labels ripe later are unknown.

        Returns:
            The shard. Targets are ordered by (user, request time, row).

        Raises:
            DataError: If a column that the ranker needs is missing.
        """
        self._require(examples)
        user_N, user_T, tokens = _tokens(examples, tail)
        token_order_T = _order(user_T, tokens)
        user_T, tokens = user_T[token_order_T], tokens.take(pa.array(token_order_T))
        request_N = examples["request_time"].to_numpy()
        row_N = np.lexsort((np.arange(len(user_N)), request_N, user_N))
        user_N, request_N, examples = user_N[row_N], request_N[row_N], examples.take(pa.array(row_N))

        available_T = pc.fill_null(tokens["available"], np.iinfo(np.int64).min).to_numpy()
        first_T, position_N = _positions(user_T, available_T, user_N, request_N)
        token_offsets, target_offsets, position_N, token_index = _units(user_N, first_T, position_N, self.inputs.max_history)
        tokens = tokens.take(pa.array(token_index))
        label_NA, known_NA = self._labels(examples, known_until_ms)
        numeric_NF, present_NF = self._numeric(examples)
        inputs = self.inputs
        return Shard(
            token_offsets_U1=token_offsets,
            target_offsets_U1=target_offsets,
            **self._token_arrays(tokens),
            target_position_N=position_N,
            target_time_N=request_N,
            target_item_N=self._lookup(examples["item"], inputs.item_vocabulary),
            target_item_features_NI=self._rows(examples, inputs.item_features),
            target_token_features_NK=self._rows(examples, inputs.token_features),
            categorical_NC=self._rows(examples, inputs.categorical),
            numeric_NF=numeric_NF,
            present_NF=present_NF,
            label_NA=label_NA,
            known_NA=known_NA,
            weight_N=examples["weight"].to_numpy().astype(np.float32),
            row_N=row_N.astype(np.int64),
        )

    def encode_histories(self, tail: pa.Table, at_ms: int) -> tuple[Shard, pa.Array]:
        """Encodes every user's history at one instant, without a target item: what user vectors are made of.

        Args:
            tail: History tokens of all users of a bucket.
            at_ms: The instant; only tokens available by then count.

        Returns:
            A shard with one target a user, and the users in the order of ``row_N``.
        """
        users = pc.unique(tail["user"].combine_chunks())
        users = users.take(pc.sort_indices(users))
        user_T = np.asarray(pc.index_in(tail["user"].combine_chunks(), value_set=users), np.int64)
        order_T = _order(user_T, tail)
        user_T, tokens = user_T[order_T], tail.take(pa.array(order_T))
        user_N = np.arange(len(users))
        request_N = np.full(len(users), at_ms, np.int64)
        available_T = pc.fill_null(tokens["available"], np.iinfo(np.int64).min).to_numpy()
        first_U1, position_N = _positions(user_T, available_T, user_N, request_N)
        token_offsets, target_offsets, position_N, token_index = _units(user_N, first_U1, position_N, self.inputs.max_history)
        tokens = tokens.take(pa.array(token_index))
        inputs, count = self.inputs, len(users)
        return Shard(
            token_offsets_U1=token_offsets,
            target_offsets_U1=target_offsets,
            **self._token_arrays(tokens),
            target_position_N=position_N,
            target_time_N=request_N,
            target_item_N=np.full(count, OOV_ROW, np.int64),
            target_item_features_NI=_missing(count, inputs.item_features),
            target_token_features_NK=_missing(count, inputs.token_features),
            categorical_NC=_missing(count, inputs.categorical),
            numeric_NF=np.zeros((count, len(inputs.numeric)), np.float32),
            present_NF=np.zeros((count, len(inputs.numeric)), bool),
            label_NA=np.zeros((count, len(inputs.actions)), np.float32),
            known_NA=np.zeros((count, len(inputs.actions)), bool),
            weight_N=np.ones(count, np.float32),
            row_N=user_N.astype(np.int64),
        ), users

    def item_rows(self, items: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Returns vocabulary rows [M] and feature rows [M, I] of an item table (columns item, feature_<name>)."""
        return self._lookup(items["item"], self.inputs.item_vocabulary), self._rows(items, self.inputs.item_features)

    def _require(self, examples: pa.Table) -> None:
        inputs = self.inputs
        names = [*(entry.name for entry in inputs.numeric), *inputs.categorical, *inputs.item_features, *inputs.token_features]
        missing = [name for name in names if _column(name) not in examples.column_names]
        if missing:
            raise DataError(
                "examples lack features that the ranker needs",
                got=", ".join(whole_names(missing)),
                remedy="rebuild with these features declared; a model cannot be scored without its inputs",
            )

    def _lookup(self, column: pa.ChunkedArray, vocabulary: str) -> np.ndarray:
        return self.vocabularies[vocabulary].lookup(column)

    def _rows(self, table: pa.Table, features: dict[str, str]) -> np.ndarray:
        """Returns the rows of some features, [N, F]; the places of a list behind its values are padding."""
        rows = _missing(len(table), features)
        for index, (name, vocabulary) in enumerate(features.items()):
            column = table[_column(name)]
            if not is_further_part(name):
                rows[:, index] = self._lookup(column, vocabulary)
            elif column.null_count < len(column):  # few lists are long
                np.copyto(rows[:, index], self._lookup(column, vocabulary), where=np.asarray(column.is_valid()))
        return rows

    def _numeric(self, examples: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        columns = [standardise(examples[_column(entry.name)], entry) for entry in self.inputs.numeric]
        if not columns:
            return np.zeros((len(examples), 0), np.float32), np.zeros((len(examples), 0), bool)
        values_NF = np.stack(columns, 1)
        present_NF = np.isfinite(values_NF)
        return np.where(present_NF, values_NF, 0.0).astype(np.float32), present_NF

    def _labels(self, examples: pa.Table, known_until_ms: int) -> tuple[np.ndarray, np.ndarray]:
        event_N, known_at_N = examples["event_time"].to_numpy(), examples["known_at"].to_numpy()
        labels, known = [], []
        for action in self.inputs.actions:
            value_N = _floats(examples[LABEL + action.name])
            ripe_N = np.maximum(known_at_N, event_N + action.maturity_ms) <= known_until_ms
            known.append(ripe_N & np.isfinite(value_N))
            labels.append(np.where(known[-1], value_N, 0.0))
        if not labels:  # a next-item ranker predicts no action
            return np.zeros((len(examples), 0), np.float32), np.zeros((len(examples), 0), bool)
        return np.stack(labels, 1).astype(np.float32), np.stack(known, 1)

    def _token_arrays(self, tokens: pa.Table) -> dict[str, np.ndarray]:
        action_TH, action_known_TH = self._actions(tokens)
        return {
            "token_item_T": self._lookup(tokens["item"], self.inputs.item_vocabulary),
            "token_item_features_TI": self._rows(tokens, self.inputs.item_features),
            "token_features_TK": self._rows(tokens, self.inputs.token_features),
            "token_action_TH": action_TH,
            "token_action_known_TH": action_known_TH,
            "token_time_T": pc.fill_null(tokens["event_time"], NO_CLOCK).to_numpy().astype(np.int64),
        }

    def _actions(self, tokens: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        kinds = {action.name: action.kind for action in self.inputs.actions}
        columns = []
        for name in self.inputs.history_actions:
            present = LABEL + name in tokens.column_names
            value_T = _floats(tokens[LABEL + name]) if present else np.full(len(tokens), np.nan)
            columns.append(squash_action(value_T, kinds.get(name, "binary")))
        value_TH = np.stack(columns, 1) if columns else np.zeros((len(tokens), 0))
        known_TH = np.isfinite(value_TH)
        return np.where(known_TH, value_TH, 0.0).astype(np.float32), known_TH


def standardise(column: pa.ChunkedArray, entry: NumericInput) -> np.ndarray:
    """Returns the standardised, clipped feature as float64; NaN where missing or not finite."""
    with np.errstate(invalid="ignore"):
        value_N = (transform(_floats(column), entry.transform) - entry.mean) / entry.std
    return np.clip(np.where(np.isfinite(value_N), value_N, np.nan), -CLIP, CLIP)


def fit_numeric(name: str, kind: str, columns: list[pa.ChunkedArray]) -> NumericInput:
    """Fits mean and deviation of a transformed feature over training partitions (population deviation, at least 1e-6)."""
    values_N = np.concatenate([transform(_floats(column), kind) for column in columns]) if columns else np.zeros(0)
    values_N = values_N[np.isfinite(values_N)]
    if not len(values_N):
        return NumericInput(name=name, transform=kind, mean=0.0, std=1.0)
    std = float(values_N.std())
    return NumericInput(name=name, transform=kind, mean=float(values_N.mean()), std=std if std > 1e-6 else 1.0)


def _missing(count: int, features: Iterable[str]) -> np.ndarray:
    """Returns the rows that stand for features of which nothing is known, [N, F]: of a list, one unknown value."""
    return np.tile(np.array([PAD_ROW if is_further_part(name) else OOV_ROW for name in features], np.int64), (count, 1))


def _column(feature: str) -> str:
    """Feature names map to example columns; the ids themselves can be features too."""
    return feature if feature in ("user", "item") else FEATURE + feature


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """Returns float64 with NaN for nulls."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan), np.float64)


def _tokens(examples: pa.Table, tail: pa.Table) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """Joins tail and day events into tokens of the users that have targets.

    Returns:
        Dense user code of each target, of each token, and the token table (unsorted).
    """
    users = pc.unique(examples["user"].combine_chunks())
    codes = pc.index_in(examples["user"].combine_chunks(), value_set=users)
    events = examples.filter(examples["is_event"]).select([name for name in tail.column_names if name in examples.column_names])
    tokens = pa.concat_tables([tail, events], promote_options="default").combine_chunks()
    token_codes = pc.index_in(tokens["user"].cast(users.type), value_set=users)
    keep = token_codes.is_valid()
    tokens = tokens.filter(keep)
    # Codes follow first appearance; rank them by id so that the order of units does not depend on the file.
    rank_U = np.empty(len(users), np.int64)
    rank_U[np.asarray(pc.sort_indices(users))] = np.arange(len(users))
    user_T = rank_U[np.asarray(token_codes.filter(keep), np.int64)] if len(tokens) else np.zeros(0, np.int64)
    return rank_U[np.asarray(codes, np.int64)], user_T, tokens


def _order(user_T: np.ndarray, tokens: pa.Table) -> np.ndarray:
    """Orders tokens by (user, available, event time, input order); clockless ones come first, in their own order."""
    available_T = pc.fill_null(tokens["available"], np.iinfo(np.int64).min).to_numpy()
    event_T = pc.fill_null(tokens["event_time"], np.iinfo(np.int64).min).to_numpy()
    return np.lexsort((np.arange(len(user_T)), event_T, available_T, user_T))


def _positions(user_T: np.ndarray, available_T: np.ndarray, user_N: np.ndarray, request_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the tokens available to each target: those of its user with ``available <= request time``.

    Returns:
        First token of each user code [U+1] and position of each target [N], both sorted inputs assumed.
    """
    users = int(user_N.max()) + 1 if len(user_N) else 0
    first_U1 = np.searchsorted(user_T, np.arange(users + 1))
    # One merged stable sort replaces a searchsorted per user; tokens come before targets at equal time.
    both_user = np.concatenate([user_T, user_N])
    both_time = np.concatenate([available_T, request_N])
    is_target = np.concatenate([np.zeros(len(user_T), np.int8), np.ones(len(user_N), np.int8)])
    order = np.lexsort((is_target, both_time, both_user))
    tokens_before = np.cumsum(is_target[order] == 0)
    counted = np.empty(len(order), np.int64)
    counted[order] = tokens_before
    return first_U1, counted[len(user_T) :] - first_U1[user_N] if len(user_N) else np.zeros(0, np.int64)


def _units(
    user_N: np.ndarray, first_U1: np.ndarray, position_N: np.ndarray, max_history: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cuts users into units of bounded length.

    A unit takes targets whose positions span at most ``2 * max_history``; its tokens run from `max_history` before its first
    target (or the user's first token) to the last position any of its targets may read.

    Returns:
        Token offsets, target offsets, positions relative to the unit, and the index of each kept token.
    """
    if not len(user_N):
        empty = np.zeros(0, np.int64)
        return np.zeros(1, np.int64), np.zeros(1, np.int64), empty, empty
    starts_user_N = np.r_[True, user_N[1:] != user_N[:-1]]
    first_of_user_N = np.maximum.accumulate(np.where(starts_user_N, np.arange(len(user_N)), 0))
    slot_N = (position_N - position_N[first_of_user_N]) // (2 * max_history)
    starts_unit_N = starts_user_N | np.r_[True, slot_N[1:] != slot_N[:-1]]
    begin_U = np.flatnonzero(starts_unit_N)
    end_U = np.r_[begin_U[1:], len(user_N)]
    base_U = first_U1[user_N[begin_U]]
    low_U = np.maximum(position_N[begin_U] - max_history, 0)
    high_U = position_N[end_U - 1]
    length_U = high_U - low_U
    offsets_U1 = np.r_[0, np.cumsum(length_U)]
    token_index = np.repeat(base_U + low_U - offsets_U1[:-1], length_U) + np.arange(offsets_U1[-1])
    unit_N = np.cumsum(starts_unit_N) - 1
    return offsets_U1, np.r_[begin_U, len(user_N)].astype(np.int64), position_N - low_U[unit_N], token_index


def unknown_share(shard: Shard) -> float:
    """Returns the share of targets whose item the vocabulary does not know."""
    return float((shard.target_item_N == OOV_ROW).mean()) if len(shard.target_item_N) else 0.0
