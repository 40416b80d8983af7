"""sasrec: a causal trunk over the history; outputs = bilinear user-item term + context network.

After Kang & McAuley 2018 (arXiv 1808.09781), with pre-norm blocks, rotary positions and several actions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import CausalLayout, Rotary, causal_attention, causal_layout
from models.batch import Batch
from models.embedding import ItemTower, TokenEmbedding
from models.heads import ContextNetwork, TwoTowerHead
from models.layers import TABLE_STD, Dropout, Projection, RMSNorm, collect_axes, norm_eps_at
from models.packing import Packing, pack
from models.ranker import Ranker, RankerShape, Scores


class SASRec(Ranker):
    """The export default: its user and item vectors carry the bilinear term of every output.

    Args:
        shape: Shape. Without actions the ranker is a pure next-item model: `states` and `item_vectors` are all there is.
    """

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = TokenEmbedding(shape, targets=False)
        self.rotary = Rotary(shape.head_dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.dim, norm_eps_at(shape, shape.dim), "dim")
        self.items = ItemTower(shape)
        self.bilinear = TwoTowerHead(shape, bias=False) if shape.actions else None
        self.context = ContextNetwork(shape) if shape.actions else None

    def forward(self, batch: Batch) -> Scores:
        """Scores every target.

        Raises:
            ValueError: If the ranker has no actions, or the batch does not fit the shape.
        """
        if self.bilinear is None or self.context is None:
            raise ValueError("this ranker has no actions to score; train it on `states` and `item_vectors`")
        packing = pack(batch)
        user_ND = self._trunk(batch, packing, packing.state_N)
        item_ND = self.item_vectors(batch.target_item_N, batch.target_item_features_NI)
        return Scores(self.context(batch, packing, user_ND, item_ND) + self.bilinear(user_ND, item_ND))

    def states(self, batch: Batch) -> Tensor:
        """Returns [T + S, D]: the state of every row, in row order (`models.packing`): BOS, then the sequence's tokens."""
        return self._trunk(batch, pack(batch), None)

    def user_vectors(self, batch: Batch) -> Tensor:
        """Returns [N, D]: state after the tokens available to each target."""
        packing = pack(batch)
        return self._trunk(batch, packing, packing.state_N)

    def item_vectors(self, item_M: Tensor, item_features_MI: Tensor) -> Tensor:
        """Returns [M, D]: vectors of items given by vocabulary row and feature rows."""
        return self.items(self.embedding.items(item_M, item_features_MI))

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Returns the meaning of every dimension in the state dict (`models.ranker.Ranker.axes`)."""
        return collect_axes(self)

    def _trunk(self, batch: Batch, packing: Packing, wanted: Tensor | None) -> Tensor:
        """States of all rows, or of the `wanted` ones: what only feeds other rows is left out of the last block."""
        x_RD = self.embedding.rows(batch, packing)
        layout, rotation = causal_layout(packing), self.rotary(packing.position_R)
        for block in self.blocks[:-1]:
            x_RD = block(x_RD, self.rotary, rotation, layout)
        return self.norm(self.blocks[-1](x_RD, self.rotary, rotation, layout, wanted))


class Block(nn.Module):
    """Pre-norm block: ``x + o(attention(norm(x)))``, then ``x + down(gelu(up(norm(x))))``.

    The attention scale is a parameter of each head (it starts at ``head_dim ** -0.5``), so wider heads keep the old scale.

    Args:
        shape: Shape of the ranker.
    """

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        dim, inner = shape.dim, shape.heads * shape.head_dim
        eps, small = norm_eps_at(shape, dim), TABLE_STD / math.sqrt(2 * shape.layers)
        self.heads = shape.heads
        self.attention_norm = RMSNorm(dim, eps, "dim")
        self.query, self.key, self.value = (Projection(dim, inner, ("head", "dim")) for _ in range(3))
        self.dimensions = {"scale": ("heads",)}
        self.scale = nn.Parameter(torch.full((shape.heads,), shape.head_dim**-0.5))
        self.out = Projection(inner, dim, ("dim", "head"), std=small)
        self.ffn_norm = RMSNorm(dim, eps, "dim")
        self.up = Projection(dim, shape.ffn_dim, ("ffn", "dim"))
        self.down = Projection(shape.ffn_dim, dim, ("dim", "ffn"), std=small)
        self.dropout = Dropout(shape.dropout)

    def forward(
        self, x_RD: Tensor, rotary: Rotary, rotation: Tensor, layout: CausalLayout, wanted: Tensor | None = None
    ) -> Tensor:
        """Maps rows [R, D] to rows [R, D], or to the `wanted` rows only."""
        seen_RD = self.attention_norm(x_RD)
        q_RHE, k_RHE, v_RHE = (project(seen_RD).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value))
        q_RHE = rotary.rotate(q_RHE * self.scale[:, None], rotation)
        attended_RD = causal_attention(q_RHE, rotary.rotate(k_RHE, rotation), v_RHE.to(q_RHE.dtype), layout).flatten(-2)
        if wanted is not None:
            x_RD, attended_RD = x_RD.index_select(0, wanted), attended_RD.index_select(0, wanted)
        x_RD = x_RD + self.dropout(self.out(attended_RD))
        return x_RD + self.dropout(self.down(F.gelu(self.up(self.ffn_norm(x_RD)))))
