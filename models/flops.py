"""What training costs, counted from shapes: the floating-point operations of matrix products that serve a real row.

Forward: ``2 x elements of a weight x rows it is applied to``, and for attention ``4 x inner width x visible (row, row) pairs``
a block (scores, then the weighted sum). Backward takes twice that: one product for each of the two factors. So training a
batch costs three times its forward pass. Lookups, norms, activations and the optimizer (linear in the parameters it touches)
are left out, and padding is not counted: the number is a property of the model and the data, not of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from models.batch import Batch
from models.ranker import Ranker

TRAINING = 3  # forward, and twice as much backward
_BEFORE_ATTENTION = ("query", "key", "value")  # in the last block, all other products concern only rows that a target reads


@dataclass(frozen=True)
class Work:
    """What there is to compute, counted in data; the work of two batches is the sum of their works.

    Attributes:
        tokens: History tokens.
        sequences: Sequences, each with a row in front of its tokens.
        targets: Targets.
        pairs: Pairs (row, row of its sequence that is not behind it).
        target_pairs: Pairs (target, row that it may read, or itself).
    """

    tokens: int = 0
    sequences: int = 0
    targets: int = 0
    pairs: int = 0
    target_pairs: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def work_of(batch: Batch) -> Work:
    """Counts a batch; lengths and positions are read, never values."""
    length_S = batch.offsets_S1.diff() + 1  # with BOS
    return Work(
        tokens=batch.tokens,
        sequences=batch.sequences,
        targets=batch.targets,
        pairs=int((length_S * (length_S + 1) // 2).sum()),
        target_pairs=int((batch.target_position_N + 2).sum()),  # its tokens, BOS and itself
    )


def forward_flops(ranker: Ranker, work: Batch | Work, candidates: int = 0, steps: int = 1) -> int:
    """Counts the forward pass of a ranker.

    Args:
        ranker: Any ranker; its weights are told apart by name and by the axes they declare.
        work: A batch, or what there is to compute in many.
        candidates: Items that every target's state is compared with (a softmax over the next item); 0 scores the targets themselves.
        steps: Batches that `work` is made of: the vectors of the candidates are computed once in each.

    Returns:
        Floating-point operations.
    """
    work = work if isinstance(work, Work) else work_of(work)
    shape, targets = ranker.shape, work.targets
    rows, read, pairs = work.tokens + work.sequences, targets, work.pairs
    if shape.architecture == "hstu" and not candidates:  # every target is a row of the trunk too
        rows, read, pairs = rows + targets, 2 * targets, pairs + work.target_pairs
    last = f"blocks.{shape.layers - 1}."
    total = 4 * shape.layers * shape.heads * shape.head_dim * pairs + 2 * shape.dim * candidates * targets
    axes = ranker.axes()
    for name, parameter in ranker.named_parameters():
        if parameter.ndim != 2 or any(axis == "fixed" or axis.startswith("vocab:") for axis in axes[name]):
            continue  # tables are looked up, vectors are added
        if name.startswith("embedding."):
            applied = work.tokens
        elif name.startswith("blocks."):
            all_rows = not name.startswith(last) or name.split(".")[2] in _BEFORE_ATTENTION
            applied = rows if all_rows else read
        else:
            applied = candidates * steps if candidates else targets
        total += 2 * parameter.numel() * applied
    return total


def training_flops(ranker: Ranker, work: Batch | Work, candidates: int = 0, steps: int = 1) -> int:
    """Counts training steps: forward and backward (`forward_flops`)."""
    return TRAINING * forward_flops(ranker, work, candidates, steps)
