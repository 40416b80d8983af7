"""What a ranker consumes and produces, frozen at training time and stored in its bundle.

Weights mean nothing without it: feature order, normalisation and output meaning are part of the function.
"""

from __future__ import annotations

from dataclasses import dataclass

INPUTS_VERSION = 1

CLIP = 6.0  # standardised numeric values are clipped to +-CLIP: beyond that a value is garbage, not information


@dataclass(frozen=True, kw_only=True)
class NumericInput:
    """A numeric feature: ``x -> clip((transform(x) - mean) / std)``; null -> a learned missing value.

    Attributes:
        name: Feature name (column ``feature_<name>`` of the examples).
        transform: `none`, `log` (signed log1p) or `logit` (of a rate).
        mean: Mean of the transformed feature over the training days of the model that first had the feature.
        std: Standard deviation over the same rows; never refit on later days, or old weights would change meaning.
    """

    name: str
    transform: str
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Action:
    """An action as the ranker predicts it; `kind` is binary (one logit), count (log rate) or duration (mu, log sigma)."""

    name: str
    kind: str
    base_rate: float
    weight: float
    maturity_ms: int


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The frozen interface between examples and a ranker.

    Attributes:
        actions: Predicted actions, in output order.
        history_actions: Actions that tokens carry as bits.
        numeric: Numeric inputs, in column order.
        categorical: Feature -> vocabulary, in column order; inputs of the target's context.
        item_features: Categorical features of the item: part of every token and of the item vector.
        token_features: Categorical features of the event that tokens carry.
        max_history: L, events before the day.
        item_vocabulary: Name of the item vocabulary.
    """

    version: int = INPUTS_VERSION
    actions: list[Action]
    history_actions: list[str]
    numeric: list[NumericInput]
    categorical: dict[str, str]
    item_features: dict[str, str]
    token_features: dict[str, str]
    max_history: int
    item_vocabulary: str = "item"

    @property
    def vocabularies(self) -> list[str]:
        """Names of all vocabularies the ranker needs, without repeats."""
        names = [self.item_vocabulary, *self.item_features.values(), *self.token_features.values(), *self.categorical.values()]
        return list(dict.fromkeys(names))


def next_item_inputs(max_history: int) -> InputSpec:
    """Returns the interface of a pure next-item ranker: items are all it reads, and it predicts no action."""
    return InputSpec(
        actions=[], history_actions=[], numeric=[], categorical={}, item_features={}, token_features={}, max_history=max_history
    )
