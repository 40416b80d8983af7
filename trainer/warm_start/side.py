"""What the planner knows of each model: names, shapes, types, the meaning of every dimension, and keys. Never a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from trainer.schema.hashed import AnyVocabulary
from trainer.warm_start.buckets import Match, match

# Options of a shape that change the function without changing any tensor's shape: both sides must agree on them.
_OPTIONS = ("norm", "final_norm_eps", "activation", "rotary", "padding")


@dataclass(frozen=True)
class Side:
    """One side of a transfer.

    Attributes:
        shapes: Tensor -> shape.
        axes: Tensor -> meaning of each dimension (`models.ranker.Ranker.axes`).
        dtypes: Tensor -> type as stored, such as ``float32`` or ``bfloat16``.
        keys: Keyed axis without a vocabulary (``numeric``, ``output``, ``history_action``) -> its keys in order.
        vocabularies: Vocabulary name -> ids (or their hash) and traffic.
        architecture: Name of the architecture; blocks of different ones share names but no meaning.
        heads: Attention heads.
        dim: Width of the residual stream.
        norm_eps: eps of the norms at width `dim`.
        options: Options of the trunk that no tensor shows.
        normed_layers: First blocks that hand on the normalised stream: none of those can be the identity.
        sha256: Hash of the bundle, empty for a ranker that is not a bundle yet.
        items: Item vocabulary, and the table of its items' features in vocabulary order; None where nobody needs it.
        matched: Vocabulary -> the other side's, and where rows come from in it.
    """

    shapes: Mapping[str, Sequence[int]]
    axes: Mapping[str, Sequence[str]]
    dtypes: Mapping[str, str]
    keys: Mapping[str, Sequence[str]]
    vocabularies: Mapping[str, AnyVocabulary]
    architecture: str
    heads: int
    dim: int
    norm_eps: float
    options: Mapping[str, Any] = field(default_factory=dict)
    normed_layers: int = 0
    sha256: str = ""
    items: tuple[str, pa.Table] | None = None
    matched: dict[str, tuple[AnyVocabulary, Match]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        ranker: Any,
        vocabularies: Mapping[str, AnyVocabulary],
        sha256: str = "",
        *,
        stored: Mapping[str, Any] | None = None,
        items: pa.Table | None = None,
    ) -> Side:
        """Describes a ranker.

        Args:
            ranker: A `models.ranker.Ranker`.
            vocabularies: Ids of its tables, or their hashes.
            sha256: Hash of its bundle.
            stored: Its tensors as stored, where their types may differ from the ranker's.
            items: Its items' features, in vocabulary order (``bundle/items.parquet``).
        """
        shape, state = ranker.shape, ranker.state_dict()
        return cls(
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            axes=ranker.axes(),
            dtypes={name: str((stored or state)[name].dtype).removeprefix("torch.") for name in state},
            keys={"numeric": shape.numeric, "output": shape.outputs, "history_action": shape.history_actions},
            vocabularies=vocabularies,
            architecture=shape.architecture,
            heads=shape.heads,
            dim=shape.dim,
            norm_eps=shape.norm_eps,
            options={name: getattr(shape, name) for name in _OPTIONS},
            normed_layers=shape.normed_layers,
            sha256=sha256,
            items=None if items is None else (shape.item_vocabulary, items),
        )

    def match(self, old: AnyVocabulary, name: str) -> Match:
        """Returns where the rows of a vocabulary come from in production's (`trainer.warm_start.buckets`).

        Matching millions of ids takes seconds, and weights and every moment ask for the same: it is done once, and kept.
        """
        if name not in self.matched or self.matched[name][0] is not old:
            self.matched[name] = (old, match(old, self.vocabularies[name]))
        return self.matched[name][1]

    def layer_normed(self, axis: str) -> bool:
        """Tells whether a LayerNorm runs over an axis: then zeros beside the old entries would move its mean and variance."""
        axis = "dim" if axis == "vector" else axis  # the item vector meets the user vector, so both grow alike
        return any(
            name.endswith(".gain") and tuple(axes) == (axis,) and name.removesuffix("gain") + "bias" in self.axes
            for name, axes in self.axes.items()
        )

    def eps_at(self, width: int, layer_norm: bool) -> float:
        """Returns the eps of a norm, as the models compute it (`models.layers.norm_eps_at`)."""
        return self.norm_eps if layer_norm else self.norm_eps * self.dim / width
