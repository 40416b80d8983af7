"""A SASRec of RecTools 0.19, as `scripts/export_rectools.py` writes it from inside RecTools' own environment.

    weights.pt       the state dict: tensors only
    items.json       ids in row order, padding left out
    options.json     the settings that the scores depend on
    probe.json       histories and the scores that RecTools gave them

RecTools' own checkpoint is a pickle of objects (`load_from_checkpoint` reads it with weights_only=False); it is never opened here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import ModelConfig
from trainer.errors import CheckpointError
from trainer.importing.names import NameMap, RowMap

WEIGHTS, ITEMS, OPTIONS, PROBE = "weights.pt", "items.json", "options.json", "probe.json"
_ITEMS = "torch_model.item_model.item_net_blocks.0.ids_emb.weight"
_BLOCK = "torch_model.transformer_layers.transformer_blocks.*."
_WANTED = {"layers": "SASRecTransformerLayers", "similarity": "dot", "item_net": ["IdEmbeddingsItemNet"], "use_causal_attn": True}


def read_options(folder: Path) -> dict[str, Any]:
    """Reads the settings of an exported model.

    Raises:
        CheckpointError: If they cannot be read, or say that the model is of a kind that cannot be imported.
    """
    file = folder / OPTIONS
    try:
        options = json.loads(file.read_text())
        for name in ("n_blocks", "n_heads", "n_factors", "session_max_len"):
            if type(options[name]) is not int or options[name] < 1:
                raise ValueError(f"{name} is {options[name]!r}")
        for name in ("use_pos_emb", "use_key_padding_mask", "use_scale_factor"):
            if not isinstance(options[name], bool):
                raise ValueError(f"{name} is {options[name]!r}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            "cannot read an exported RecTools model", where=file, got=str(error),
            remedy="run scripts/export_rectools.py in RecTools' environment, and give the folder that it wrote",
        ) from error  # fmt: skip
    for name, wanted in _WANTED.items():
        if options.get(name) != wanted:
            raise CheckpointError(
                "a RecTools model of this kind cannot be imported", where=f"{file}: {name}", got=options.get(name), expected=wanted
            )
    return options


def names(options: dict[str, Any]) -> NameMap:
    """Returns what an exported model is, and where its tensors go.

    Its blocks are those of the published SASRec code: LayerNorm, ReLU, the normalised stream handed on, learned positions counted
    from the end. Without `use_key_padding_mask` (its default) every token also attends to the padding beside its history, whose keys
    and values are the biases: `RankerShape.padding` counts it.
    """
    dim, heads, window = options["n_factors"], options["n_heads"], options["session_max_len"]
    model = ModelConfig(
        name="sasrec", dim=dim, layers=options["n_blocks"], heads=heads, head_dim=dim // heads, ffn_dim=dim,
        dropout=options.get("dropout_rate", 0.2), max_history=window, norm="layer", norm_eps=1e-5, final_norm_eps=1e-8,
        activation="relu", biases=True, rotary=False, positions=window if options["use_pos_emb"] else 0,
        padding=0 if options["use_key_padding_mask"] else window, normed_layers=options["n_blocks"],
    )  # fmt: skip
    scale = dim**0.5 if options["use_scale_factor"] else 1.0
    tensors = {
        "embedding.item.weight": f"{_ITEMS} * {scale!r}",
        "embedding.*": "= zero",  # gaps and actions: RecTools knows no clock and no labels, so these terms start at nothing
        "items.project.weight": f"= initial * {1 / scale!r}",
        "blocks.*.scale": "= initial",
        "norm.gain": "torch_model.transformer_layers.last_layernorm.weight",
        "norm.bias": "torch_model.transformer_layers.last_layernorm.bias",
        **_block_names(),
    }
    if options["use_pos_emb"]:
        tensors["embedding.position"] = "torch_model.pos_encoding_layer.pos_emb.weight"
    return NameMap(model=model, tensors=tensors, rows=RowMap(first=1))


def _block_names() -> dict[str, str]:
    tensors: dict[str, str] = {}
    for part, name in enumerate(("query", "key", "value")):
        tensors[f"blocks.*.{name}.weight"] = f"{_BLOCK}multi_head_attn.in_proj_weight[{part}/3]"
        tensors[f"blocks.*.{name}.bias"] = f"{_BLOCK}multi_head_attn.in_proj_bias[{part}/3]"
    for ours, theirs in (("out", "multi_head_attn.out_proj"), ("up", "feed_forward.ff_linear_1"), ("down", "feed_forward.ff_linear_2")):
        tensors |= {f"blocks.*.{ours}.{kind}": f"{_BLOCK}{theirs}.{kind}" for kind in ("weight", "bias")}
    for ours, theirs in (("attention_norm", "q_layer_norm"), ("ffn_norm", "ff_layer_norm")):
        tensors |= {f"blocks.*.{ours}.gain": f"{_BLOCK}{theirs}.weight", f"blocks.*.{ours}.bias": f"{_BLOCK}{theirs}.bias"}
    return tensors
