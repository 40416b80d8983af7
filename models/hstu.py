"""hstu: target-aware; every target is a row of the trunk that reads the tokens available to it and itself.

After Zhai et al. 2024 (arXiv 2402.17152): pointwise SiLU attention, gated, with learned biases for distance and time. Two choices
differ: the attention scale is a parameter of each head, and the norm before the gate is taken per head, so that heads can be
added without changing the others.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.arrange import arrange_pairs
from models.attention import PointwiseAttention, Seen
from models.batch import Batch
from models.embedding import ItemTower, TokenEmbedding
from models.heads import ContextNetwork, TwoTowerHead
from models.layers import TABLE_STD, Dropout, Projection, RMSNorm, collect_axes, norm_eps_at, through, together
from models.packing import GAP_BUCKETS, POSITION_BUCKETS, Packing, pack, row_times
from models.ranker import Ranker, RankerShape, Scores

NORMALISER = 64.0  # divides attention sums; a constant, because dividing by the length would forget how much was seen


class HSTU(Ranker):
    """Scores pairs; vectors come from the auxiliary two-tower head, which reads the trunk before any target does.

    Args:
        shape: Shape. Without actions the ranker is a pure next-item model: `states` and `item_vectors` are all there is.
    """

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = TokenEmbedding(shape, targets=bool(shape.actions))
        self.blocks = nn.ModuleList(GatedBlock(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.dim, norm_eps_at(shape, shape.dim), "dim")
        self.items = ItemTower(shape)
        self.auxiliary = TwoTowerHead(shape, bias=True) if shape.actions else None
        self.context = ContextNetwork(shape) if shape.actions else None
        self.shared_dim = shape.context_dim + len(shape.numeric)

    def forward(self, batch: Batch) -> Scores:
        """Scores every target.

        Raises:
            ValueError: If the ranker has no actions, or the batch does not fit the shape.
        """
        packing = pack(batch)
        return self.score(batch, packing, arrange_pairs(packing, seen(batch, packing)))[0]

    def score(self, batch: Batch, packing: Packing, attention: PointwiseAttention) -> tuple[Scores, Tensor]:
        """Scores every target of a batch whose rows are arranged already: the one path of `forward` and of `models.dense`.

        Returns:
            The scores, and the product of user and item vector, [N, 1].

        Raises:
            ValueError: If the ranker has no actions, or the batch does not fit the shape.
        """
        if self.auxiliary is None or self.context is None:
            raise ValueError("this ranker has no actions to score; train it on `states` and `item_vectors`")
        rows, targets = packing.sequence_R.shape[0], batch.target_item_N.shape[0]  # `len` would fix both in an exported graph
        wanted = torch.cat([packing.state_N, torch.arange(rows, rows + targets, device=packing.state_N.device)])
        x_QD = torch.cat([self.embedding.rows(batch, packing), self.embedding.target_rows(batch, packing)])
        state_2ND = self._trunk(x_QD, attention, wanted)
        user_ND, target_ND = state_2ND[:targets], state_2ND[targets:]
        item_ND = self.item_vectors(batch.target_item_N, batch.target_item_features_NI)
        output_NO, shared_NC = self.context(batch, packing, target_ND, item_ND)
        scores = Scores(output_NO, self.auxiliary(user_ND, item_ND), shared_NC, user_ND, item_ND)
        return scores, self.auxiliary.product(user_ND, item_ND)

    def states(self, batch: Batch) -> Tensor:
        """Returns [T + S, D]: the state of every row, in row order (`models.packing`): BOS, then the sequence's tokens."""
        packing = pack(batch)
        return self._states(batch, packing, None)

    def user_vectors(self, batch: Batch) -> Tensor:
        """Returns [N, D]: state after the tokens available to each target; the target's item plays no part."""
        packing = pack(batch)
        return self._states(batch, packing, packing.state_N)

    def item_vectors(self, item_M: Tensor, item_features_MI: Tensor) -> Tensor:
        """Returns [M, D]: vectors of items given by vocabulary row and feature rows."""
        return self.items(self.embedding.items(item_M, item_features_MI))

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Returns the meaning of every dimension in the state dict (`models.ranker.Ranker.axes`)."""
        return collect_axes(self)

    def _states(self, batch: Batch, packing: Packing, wanted: Tensor | None) -> Tensor:
        alone = packing.without_targets()
        return self._trunk(self.embedding.rows(batch, packing), arrange_pairs(alone, _seen_rows(batch, alone)), wanted)

    def _trunk(self, x_QD: Tensor, attention: PointwiseAttention, wanted: Tensor | None) -> Tensor:
        """States of all rows, or of the `wanted` ones: what only feeds other rows is left out of the last block."""
        for block in self.blocks[:-1]:
            x_QD = through(block, x_QD, attention, checkpointed=self.checkpointed)
        return self.norm(through(self.blocks[-1], x_QD, attention, wanted, checkpointed=self.checkpointed))


def _seen_rows(batch: Batch, packing: Packing) -> Seen:
    return Seen(packing.sequence_R, packing.position_R, row_times(batch, packing), packing.position_R + 1)


def seen(batch: Batch, packing: Packing) -> Seen:
    """Says what rows and targets know: rows see up to themselves; a target stands behind, and sees up to, the last token it may read."""
    rows, after_N = _seen_rows(batch, packing), batch.target_position_N + 1
    return Seen(
        torch.cat([rows.sequence_Q, batch.target_sequence_N]),
        torch.cat([rows.position_Q, after_N]),
        torch.cat([rows.time_Q, batch.target_time_N]),
        torch.cat([rows.visible_Q, after_N]),
    )


class GatedBlock(nn.Module):
    """Pre-norm block: ``x + o(norm(attention) * u)`` with u, q, k, v = silu of projections.

    Args:
        shape: Shape of the ranker.
    """

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        dim, inner = shape.dim, shape.heads * shape.head_dim
        self.heads = shape.heads
        self.norm = RMSNorm(dim, norm_eps_at(shape, dim), "dim")
        self.gate, self.query, self.key, self.value = (Projection(dim, inner, ("head", "dim")) for _ in range(4))
        self.dimensions = {"scale": ("heads",), "position_bias": ("fixed", "heads"), "gap_bias": ("fixed", "heads")}
        self.scale = nn.Parameter(torch.full((shape.heads,), shape.head_dim**-0.5))
        self.position_bias = nn.Parameter(torch.zeros(POSITION_BUCKETS, shape.heads))
        self.gap_bias = nn.Parameter(torch.zeros(GAP_BUCKETS, shape.heads))
        self.head_norm = RMSNorm(shape.head_dim, norm_eps_at(shape, shape.head_dim), "head", groups=shape.heads)
        self.out = Projection(inner, dim, ("dim", "head"), std=TABLE_STD / math.sqrt(shape.layers))
        self.dropout = Dropout(shape.dropout)

    def forward(self, x_QD: Tensor, attention: PointwiseAttention, wanted: Tensor | None = None) -> Tensor:
        """Maps asking rows [Q, D] to asking rows [Q, D], or to the `wanted` ones only."""
        seen_QD = self.norm(x_QD)
        qkv_QD = F.silu(together([(project.weight, None) for project in (self.query, self.key, self.value)], seen_QD))
        q_QHE, k_QHE, v_QHE = qkv_QD.unflatten(-1, (3, self.heads, -1)).unbind(1)
        bias_PH = (self.position_bias[:, None] + self.gap_bias).flatten(0, 1)
        attended_QHE = attention.attend(q_QHE * self.scale[:, None], k_QHE, v_QHE, bias_PH) / NORMALISER
        if wanted is not None:
            x_QD, seen_QD, attended_QHE = (x.index_select(0, wanted) for x in (x_QD, seen_QD, attended_QHE))
        gated_QHE = self.head_norm(attended_QHE) * self._by_head(self.gate, seen_QD)
        return x_QD + self.dropout(self.out(gated_QHE.flatten(-2)))

    def _by_head(self, project: nn.Module, x_QD: Tensor) -> Tensor:
        return F.silu(project(x_QD)).unflatten(-1, (self.heads, -1))
