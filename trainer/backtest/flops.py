"""What training costs, counted from shapes: the floating-point operations of matrix products that serve a real row.

Forward: ``2 x elements of a weight x rows it is applied to``, and for attention ``4 x inner width x visible (row, row) pairs``
a block (scores, then the weighted sum). Backward takes twice that: one product for each of the two factors. So training a
batch costs three times its forward pass. Lookups, norms, activations and the optimizer (linear in the parameters it touches)
are left out, and padding is not counted: the number is a property of the model and the data, not of a kernel.
"""

from __future__ import annotations

from models.batch import Batch
from models.ranker import Ranker

TRAINING = 3  # forward, and twice as much backward
_BEFORE_ATTENTION = ("query", "key", "value")  # in the last block, all other products concern only rows that a target reads


def forward_flops(ranker: Ranker, batch: Batch) -> int:
    """Counts the forward pass of a ranker over a batch.

    Args:
        ranker: Any ranker; its weights are told apart by name and by the axes they declare.
        batch: Lengths and targets are read, never values.

    Returns:
        Floating-point operations.
    """
    shape = ranker.shape
    length_S = batch.offsets_S1.diff() + 1  # with BOS
    rows, targets, read = batch.tokens + batch.sequences, batch.targets, batch.targets
    pairs = int((length_S * (length_S + 1) // 2).sum())
    if shape.architecture == "hstu":  # every target is a row of the trunk too: it reads what it may see, BOS and itself
        rows, read = rows + targets, 2 * targets
        pairs += int((batch.target_position_N + 2).sum())
    last = f"blocks.{shape.layers - 1}."
    total = 4 * shape.layers * shape.heads * shape.head_dim * pairs
    axes = ranker.axes()
    for name, parameter in ranker.named_parameters():
        if parameter.ndim != 2 or any(axis == "fixed" or axis.startswith("vocab:") for axis in axes[name]):
            continue  # tables are looked up, vectors are added
        if name.startswith("embedding."):
            applied = batch.tokens
        elif name.startswith("blocks."):
            all_rows = not name.startswith(last) or name.split(".")[2] in _BEFORE_ATTENTION
            applied = rows if all_rows else read
        else:
            applied = targets
        total += 2 * parameter.numel() * applied
    return total


def training_flops(ranker: Ranker, batch: Batch) -> int:
    """Counts a training step: forward and backward."""
    return TRAINING * forward_flops(ranker, batch)
