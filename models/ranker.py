"""What every ranker is: a shape, a forward pass to outputs, and axes that say what each parameter's rows mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from models.batch import Batch


@dataclass(frozen=True, kw_only=True)
class ActionShape:
    """An action and the width of its output: binary 1 (logit), count 1 (log rate), duration 2 (mu, log sigma).

    Attributes:
        name: Name of the action.
        kind: binary | count | duration.
        base_rate: Mean label in training: a new head starts there (binary: rate; count: mean; duration: mean of log1p seconds).
    """

    name: str
    kind: str
    base_rate: float

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output columns; these are the keys of the axis ``output``."""
        return (f"{self.name}/mu", f"{self.name}/log_sigma") if self.kind == "duration" else (self.name,)


@dataclass(frozen=True, kw_only=True)
class RankerShape:
    """Plain values from which `models.build` makes a ranker; stored in the bundle's manifest.

    Attributes:
        architecture: ``sasrec`` or ``hstu``.
        actions: Predicted actions in output order.
        history_actions: Names of the actions that tokens carry.
        vocabularies: Vocabulary -> number of rows (row 0 pad, row 1 OOV).
        item_vocabulary: Vocabulary of item ids.
        item_features: Item feature -> vocabulary; a list is several (``tags[0]``, ``tags[1]``, ...) with one.
        token_features: Token feature -> vocabulary.
        categorical: Context feature -> vocabulary.
        numeric: Names of the numeric features.
        dim: Model width D.
        layers: Number of blocks.
        heads: Attention heads.
        head_dim: Width of a head.
        ffn_dim: Width of the feed-forward layer (sasrec).
        context_dim: Width of the context network.
        context_layers: Hidden layers of the context network.
        dropout: Dropout rate.
        feature_dropout: Rate at which whole features are replaced by their missing value in training.
        auxiliary_weight: Weight of the two-tower auxiliary loss (hstu).
        norm_eps: eps of RMSNorm at width `dim`; growth rescales it. LayerNorm takes it as it is.
        norm: Norms of sasrec's trunk: ``rms`` or ``layer``.
        final_norm_eps: eps of the trunk's last norm where it differs from `norm_eps`.
        activation: Of sasrec's feed-forward layers: ``gelu`` or ``relu``.
        biases: Whether the projections of sasrec's blocks have biases.
        rotary: Whether sasrec rotates queries and keys by position.
        positions: Rows of sasrec's learned positions, by distance from the end of what is read; 0 has none.
        padding: None puts a learned row in front of every sequence. A number puts an empty one there, which every token sees as
            often as a window of that many tokens would hold padding beside the sequence (0: never), as in code that pads.
        normed_layers: The first so many blocks of sasrec hand on the normalised stream, as the code published with SASRec does;
            the others are pre-norm.
        stand_ins: Whether a missing number is replaced by a learned linear function of the numbers that are there.
    """

    architecture: str
    actions: tuple[ActionShape, ...]
    history_actions: tuple[str, ...]
    vocabularies: dict[str, int]
    item_vocabulary: str
    item_features: dict[str, str] = field(default_factory=dict)
    token_features: dict[str, str] = field(default_factory=dict)
    categorical: dict[str, str] = field(default_factory=dict)
    numeric: tuple[str, ...] = ()
    dim: int = 64
    layers: int = 2
    heads: int = 2
    head_dim: int = 32
    ffn_dim: int = 256
    context_dim: int = 128
    context_layers: int = 2
    dropout: float = 0.1
    feature_dropout: float = 0.0
    auxiliary_weight: float = 0.2
    norm_eps: float = 1e-6
    norm: str = "rms"
    final_norm_eps: float | None = None
    activation: str = "gelu"
    biases: bool = False
    rotary: bool = True
    positions: int = 0
    padding: int | None = None
    normed_layers: int = 0
    stand_ins: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the O output columns."""
        return tuple(name for action in self.actions for name in action.outputs)


@dataclass
class Scores:
    """Outputs of a forward pass.

    Attributes:
        output_NO: Raw outputs (logit, log rate, mu, log sigma) in the order of `RankerShape.outputs`.
        auxiliary_NO: Outputs of the auxiliary two-tower head, or None.
        shared_NC: All that the served outputs are a linear function of (`Ranker.shared_dim` wide): unserved heads read it too.
        user_ND: The vectors of each target's user and item that the outputs were made of, those of `Ranker.user_vectors` and
            `Ranker.item_vectors`: who wants both need not run the trunk twice.
        item_ND: See `user_ND`.
    """

    output_NO: Tensor
    auxiliary_NO: Tensor | None = None
    shared_NC: Tensor | None = None
    user_ND: Tensor | None = None
    item_ND: Tensor | None = None


class Ranker(nn.Module, ABC):
    """The interface that training, evaluation, export and warm start rely on; no behaviour is inherited.

    Attributes:
        shape: What the ranker was built from.
        shared_dim: Width of `Scores.shared_NC`.
        blocks: Layers of the trunk.
        checkpointed: Whether training keeps only what enters a block and computes its inside again on the way back: memory for
            a third more compute.
    """

    shape: RankerShape
    shared_dim: int
    blocks: nn.ModuleList
    checkpointed: bool = False

    @abstractmethod
    def forward(self, batch: Batch) -> Scores:
        """Scores every target of the batch."""

    @abstractmethod
    def states(self, batch: Batch) -> Tensor:
        """Returns [T + S, D]: the trunk's state after BOS and after every token, in row order (`models.packing`)."""

    @abstractmethod
    def user_vectors(self, batch: Batch) -> Tensor:
        """Returns [N, D]: the user's vector at each target's position (state after the tokens available to it)."""

    @abstractmethod
    def item_vectors(self, item_M: Tensor, item_features_MI: Tensor) -> Tensor:
        """Returns [M, D]; `dot(user, item)` is the bilinear term (or auxiliary score) before per-action scales."""

    @abstractmethod
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Returns, for every parameter and persistent buffer, the meaning of each dimension.

        A dimension is named ``vocab:<vocabulary>`` (rows by id), ``numeric`` (rows by feature name), ``output`` (rows by output
        name), ``history_action`` (rows by action name), or a width: ``dim`` and ``context`` (the residual streams), ``vector`` (the
        item vector, as wide as ``dim``), ``ffn``
        and ``context_ffn`` (inside their layers), ``head`` (heads x head_dim), ``heads`` (one entry a head), ``rotary``
        (head_dim / 2), ``position`` (by distance from the end, so a longer history appends), ``fixed`` (buckets). The transfer
        plan matches keyed axes by key, never by position.
        """
