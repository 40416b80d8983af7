"""Rankers in plain torch. This package imports nothing of `trainer`; see README.md for how to add a ranker."""

from __future__ import annotations

from dataclasses import fields

from models.ranker import Ranker, RankerShape

TRUNK_OPTIONS = ("norm", "final_norm_eps", "activation", "biases", "rotary", "positions", "padding", "normed_layers")


def build(shape: RankerShape) -> Ranker:
    """Builds a ranker with fresh weights from torch's global generator.

    Args:
        shape: Plain values that describe it.

    Returns:
        The ranker.

    Raises:
        ValueError: If the shape is impossible, or its architecture unknown.
    """
    check(shape)
    match shape.architecture:  # imported here, because the rankers import their parts through this package
        case "sasrec":
            from models.sasrec import SASRec

            return SASRec(shape)
        case "hstu":
            from models.hstu import HSTU

            return HSTU(shape)
        case _:
            raise ValueError(f"unknown architecture {shape.architecture!r}; known: sasrec, hstu")


def check(shape: RankerShape) -> None:
    """Checks the values of a shape.

    Raises:
        ValueError: With the field, what it holds and what would be right.
    """
    for name in ("dim", "layers", "heads", "head_dim", "ffn_dim", "context_dim"):
        if getattr(shape, name) < 1:
            raise ValueError(f"{name} is {getattr(shape, name)}; it must be at least 1")
    if shape.context_layers < 0:
        raise ValueError(f"context_layers is {shape.context_layers}; it must not be negative")
    if shape.rotary and shape.head_dim % 2:
        raise ValueError(f"head_dim is {shape.head_dim}; rotary positions need an even width")
    _check_options(shape)
    for name in ("dropout", "feature_dropout"):
        if not 0 <= getattr(shape, name) < 1:
            raise ValueError(f"{name} is {getattr(shape, name)}; it must be in [0, 1)")
    if not shape.norm_eps > 0:
        raise ValueError(f"norm_eps is {shape.norm_eps}; it must be positive")
    features = [*shape.item_features.items(), *shape.token_features.items(), *shape.categorical.items()]
    for user, vocabulary in [("item", shape.item_vocabulary), *features]:
        if shape.vocabularies.get(vocabulary, 0) < 2:
            raise ValueError(
                f"{user} uses vocabulary {vocabulary!r} with {shape.vocabularies.get(vocabulary, 'no')} rows; it needs at least "
                f"the reserved rows 0 and 1; known vocabularies: {', '.join(sorted(shape.vocabularies))}"
            )
    for name in ("outputs", "history_actions", "numeric"):
        values = getattr(shape, name)
        if len(set(values)) != len(values):
            raise ValueError(f"{name} has repeated names: {', '.join(values)}")


def _check_options(shape: RankerShape) -> None:
    """Checks the options of sasrec's trunk, and that no other architecture is given one."""
    for name, known in (("norm", ("rms", "layer")), ("activation", ("gelu", "relu"))):
        if getattr(shape, name) not in known:
            raise ValueError(f"{name} is {getattr(shape, name)!r}; known: {', '.join(known)}")
    for name in ("positions", "padding", "normed_layers"):
        if (getattr(shape, name) or 0) < 0:
            raise ValueError(f"{name} is {getattr(shape, name)}; it must not be negative")
    if shape.normed_layers > shape.layers:
        raise ValueError(f"normed_layers is {shape.normed_layers}; there are only {shape.layers} layers")
    if shape.final_norm_eps is not None and not (shape.final_norm_eps > 0 and shape.norm == "layer"):
        raise ValueError(f"final_norm_eps is {shape.final_norm_eps}; it must be positive, and norm must be layer")
    for option in fields(shape):
        if option.name in TRUNK_OPTIONS and shape.architecture != "sasrec" and getattr(shape, option.name) != option.default:
            raise ValueError(f"{option.name} is {getattr(shape, option.name)}; only sasrec has this option")
