"""What RecTools 0.19 computes, written again in plain torch over padded windows: an oracle that shares no line with `models`.

Names of the state dict are RecTools' own (`torch_model.*` of a Lightning checkpoint).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLOCK = "torch_model.transformer_layers.transformer_blocks."
TABLE = "torch_model.item_model.item_net_blocks.0.ids_emb.weight"
POSITIONS = "torch_model.pos_encoding_layer.pos_emb.weight"
LAST = "torch_model.transformer_layers.last_layernorm."


def state(items=30, dim=8, layers=2, window=6, seed=0, std=0.5):
    """A random checkpoint's tensors: row 0 of the table is padding, row i + 1 belongs to item i."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, mean=0.0):
        return mean + std * torch.randn(size, generator=generator)

    table = draw(items + 1, dim)
    table[0] = 0
    tensors = {TABLE: table, POSITIONS: draw(window, dim), LAST + "weight": draw(dim, mean=1), LAST + "bias": draw(dim)}
    for layer in range(layers):
        parts = {
            "multi_head_attn.in_proj_weight": draw(3 * dim, dim), "multi_head_attn.in_proj_bias": draw(3 * dim),
            "multi_head_attn.out_proj.weight": draw(dim, dim), "multi_head_attn.out_proj.bias": draw(dim),
            "q_layer_norm.weight": draw(dim, mean=1), "q_layer_norm.bias": draw(dim),
            "ff_layer_norm.weight": draw(dim, mean=1), "ff_layer_norm.bias": draw(dim),
            "feed_forward.ff_linear_1.weight": draw(dim, dim), "feed_forward.ff_linear_1.bias": draw(dim),
            "feed_forward.ff_linear_2.weight": draw(dim, dim), "feed_forward.ff_linear_2.bias": draw(dim),
        }  # fmt: skip
        tensors |= {f"{BLOCK}{layer}.{name}": value for name, value in parts.items()}
    return tensors


def scores(tensors, histories, heads=2, masked=False):
    """Scores of all items [B, items] after each history (items from 0, oldest first): the last row of a left-padded window.

    `masked`: RecTools' use_key_padding_mask; without it every token also attends to the padding.
    """
    window, dim = tensors[POSITIONS].shape
    rows = torch.zeros(len(histories), window, dtype=torch.int64)
    for row, history in zip(rows, histories, strict=True):
        if history := history[-window:]:
            row[-len(history) :] = torch.tensor(history) + 1
    real = (rows != 0)[..., None]
    x = tensors[TABLE][rows] + tensors[POSITIONS].flip(0)
    layers = sum(name.endswith("in_proj_weight") for name in tensors)
    for layer in range(layers):
        part = {name.removeprefix(f"{BLOCK}{layer}."): value for name, value in tensors.items()}
        x = x * real
        q = F.layer_norm(x, (dim,), part["q_layer_norm.weight"], part["q_layer_norm.bias"])
        x = q + _attention(q, x, part, heads, real[..., 0], masked)
        f = F.layer_norm(x, (dim,), part["ff_layer_norm.weight"], part["ff_layer_norm.bias"])
        inner = F.linear(f, part["feed_forward.ff_linear_1.weight"], part["feed_forward.ff_linear_1.bias"]).relu()
        x = f + F.linear(inner, part["feed_forward.ff_linear_2.weight"], part["feed_forward.ff_linear_2.bias"])
    last = F.layer_norm(x * real, (dim,), tensors[LAST + "weight"], tensors[LAST + "bias"], eps=1e-8)[:, -1]
    return last @ tensors[TABLE][1:].T


def _attention(q, x, part, heads, real, masked):
    weight, bias = part["multi_head_attn.in_proj_weight"].chunk(3), part["multi_head_attn.in_proj_bias"].chunk(3)
    q, k, v = (F.linear(y, w, b).unflatten(-1, (heads, -1)) for y, w, b in zip((q, x, x), weight, bias, strict=True))
    score = torch.einsum("blhe,bmhe->bhlm", q, k) * q.shape[-1] ** -0.5
    length = score.shape[-1]
    hidden = ~torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if masked:
        hidden = (hidden | ~real[:, None, None, :]) & ~torch.eye(length, dtype=torch.bool)
    mixed = torch.einsum("bhlm,bmhe->blhe", score.masked_fill(hidden, -torch.inf).softmax(-1), v).flatten(-2)
    return F.linear(mixed, part["multi_head_attn.out_proj.weight"], part["multi_head_attn.out_proj.bias"])
