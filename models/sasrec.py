"""sasrec: a causal trunk over the history; outputs = bilinear user-item term + context network.

After Kang & McAuley 2018 (arXiv 1808.09781), with pre-norm blocks, rotary positions and several actions. Options of the shape
give the trunk the layout of other SASRec code (LayerNorm, biases, learned positions, visible padding, the normalised stream of the
published code), so that a model trained there can be imported as it is.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.arrange import arrange_causal
from models.attention import CausalAttention, Rotary
from models.batch import Batch
from models.embedding import ItemTower, TokenEmbedding
from models.heads import ContextNetwork, TwoTowerHead
from models.layers import TABLE_STD, Dropout, Projection, collect_axes, through, together, trunk_norm
from models.packing import Packing, pack, unrolled
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
        self.rotary = Rotary(shape.head_dim) if shape.rotary else None
        self.blocks = nn.ModuleList(Block(shape, normed=number < shape.normed_layers) for number in range(shape.layers))
        self.norm = trunk_norm(shape, shape.final_norm_eps)
        self.items = ItemTower(shape)
        self.bilinear = TwoTowerHead(shape, bias=False) if shape.actions else None
        self.context = ContextNetwork(shape) if shape.actions else None
        self.shared_dim = shape.context_dim + len(shape.numeric) + 1

    def forward(self, batch: Batch) -> Scores:
        """Scores every target.

        Raises:
            ValueError: If the ranker has no actions, or the batch does not fit the shape.
        """
        batch = self._ending_at_targets(batch)
        packing = pack(batch)
        return self.score(batch, packing, self._arranged(packing))[0]

    def score(self, batch: Batch, packing: Packing, attention: CausalAttention) -> tuple[Scores, Tensor]:
        """Scores every target of a batch whose rows are arranged already: what `forward` and `models.dense` share.

        Returns:
            The scores, and the product of user and item vector, [N, 1].

        Raises:
            ValueError: If the ranker has no actions, or the batch does not fit the shape.
        """
        if self.bilinear is None or self.context is None:
            raise ValueError("this ranker has no actions to score; train it on `states` and `item_vectors`")
        user_ND = self._trunk(batch, packing, packing.state_N, attention)
        item_ND = self.item_vectors(batch.target_item_N, batch.target_item_features_NI)
        output_NO, shared_NC = self.context(batch, packing, user_ND, item_ND)
        product_N1 = self.bilinear.product(user_ND, item_ND)
        shared_NC = torch.cat([shared_NC, product_N1.to(shared_NC.dtype)], 1)
        output_NO = output_NO + self.bilinear(user_ND, item_ND)
        return Scores(output_NO, shared_NC=shared_NC, user_ND=user_ND, item_ND=item_ND), product_N1

    def states(self, batch: Batch) -> Tensor:
        """Returns [T + S, D]: the state of every row, in row order (`models.packing`): BOS, then the sequence's tokens.

        With learned positions or padding, the window ends with the sequence, so a row knows how many tokens follow it.
        """
        packing = pack(batch)
        return self._trunk(batch, packing, None, self._arranged(packing))

    def user_vectors(self, batch: Batch) -> Tensor:
        """Returns [N, D]: state after the tokens available to each target."""
        batch = self._ending_at_targets(batch)
        packing = pack(batch)
        return self._trunk(batch, packing, packing.state_N, self._arranged(packing))

    def item_vectors(self, item_M: Tensor, item_features_MI: Tensor) -> Tensor:
        """Returns [M, D]: vectors of items given by vocabulary row and feature rows."""
        return self.items(self.embedding.items(item_M, item_features_MI))

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Returns the meaning of every dimension in the state dict (`models.ranker.Ranker.axes`)."""
        return collect_axes(self)

    def _ending_at_targets(self, batch: Batch) -> Batch:
        """A trunk that counts from the end must not learn from it how much a target's future holds: each gets its own end."""
        from_end = self.shape.positions > 0 or self.shape.padding is not None
        return unrolled(batch, self.shape.positions) if from_end else batch

    def _arranged(self, packing: Packing) -> CausalAttention:
        return arrange_causal(packing, self.shape.padding)

    def _trunk(self, batch: Batch, packing: Packing, wanted: Tensor | None, attention: CausalAttention) -> Tensor:
        """States of all rows, or of the `wanted` ones: what only feeds other rows is left out of the last block."""
        x_RD = self.embedding.rows(batch, packing)
        turn = Turn(self.rotary, packing.position_R)
        position_R = packing.position_R
        for block in self.blocks[:-1]:
            x_RD = through(block, self._emptied(x_RD, position_R), turn, attention, checkpointed=self.checkpointed)
        wanted = None if _are_all(wanted, position_R) else wanted
        x_RD = through(self.blocks[-1], self._emptied(x_RD, position_R), turn, attention, wanted, checkpointed=self.checkpointed)
        return self.norm(self._emptied(x_RD, position_R if wanted is None else position_R[wanted]))

    def _emptied(self, x_RD: Tensor, position_R: Tensor) -> Tensor:
        """Empties the front rows where they stand for padding."""
        return x_RD if self.shape.padding is None else x_RD.masked_fill((position_R == 0)[:, None], 0.0)


def _are_all(wanted: Tensor | None, position_R: Tensor) -> bool:
    """Tells whether rows are wanted as they are, as for a next-item softmax; on an accelerator the answer would have to be waited for."""
    if wanted is None or wanted.device.type != "cpu" or torch.compiler.is_exporting() or len(wanted) != len(position_R):
        return wanted is None
    return torch.equal(wanted, torch.arange(len(wanted)))


class Turn:
    """Rotates queries and keys by the position of their rows, or leaves them where the trunk has no rotary positions.

    Args:
        rotary: The ranker's frequencies, or None.
        position_R: int64, position of each row.
    """

    def __init__(self, rotary: Rotary | None, position_R: Tensor) -> None:
        self.rotate = None if rotary is None else partial(rotary.rotate, rotation_R1E=rotary(position_R))

    def __call__(self, qkv_R3HE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes queries, keys and values apart, [R, H, E] each; the first two are turned."""
        if self.rotate is not None:
            return self.rotate(qkv_R3HE)
        q_RHE, k_RHE, v_RHE = qkv_R3HE.unbind(1)
        return q_RHE, k_RHE, v_RHE


class Block(nn.Module):
    """Pre-norm block: ``x + o(attention(norm(x)))``, then ``x + down(act(up(norm(x))))``.

    A `normed` block, as in the code published with the paper, adds to the normalised stream instead of the stream, and its keys
    and values are of the stream itself: ``n = norm(x)``, ``y = n + o(attention(n; x, x))``, ``m = norm(y)``,
    ``m + down(act(up(m)))``. It cannot be the identity, so none can be inserted without changing the function.

    The attention scale is a parameter of each head (it starts at ``head_dim ** -0.5``), so wider heads keep the old scale.

    Args:
        shape: Shape of the ranker.
        normed: Whether the block hands on the normalised stream.
    """

    def __init__(self, shape: RankerShape, *, normed: bool = False) -> None:
        super().__init__()
        dim, inner, bias = shape.dim, shape.heads * shape.head_dim, shape.biases
        small = TABLE_STD / math.sqrt(2 * shape.layers)
        self.heads = shape.heads
        self.normed = normed
        self.attention_norm = trunk_norm(shape)
        self.query, self.key, self.value = (Projection(dim, inner, ("head", "dim"), bias=bias) for _ in range(3))
        self.dimensions = {"scale": ("heads",)}
        self.scale = nn.Parameter(torch.full((shape.heads,), shape.head_dim**-0.5))
        self.out = Projection(inner, dim, ("dim", "head"), std=small, bias=bias)
        self.ffn_norm = trunk_norm(shape)
        self.up = Projection(dim, shape.ffn_dim, ("ffn", "dim"), bias=bias)
        self.down = Projection(shape.ffn_dim, dim, ("dim", "ffn"), std=small, bias=bias)
        self.activation = F.relu if shape.activation == "relu" else F.gelu
        self.dropout = Dropout(shape.dropout)

    def forward(self, x_RD: Tensor, turn: Turn, attention: CausalAttention, wanted: Tensor | None = None) -> Tensor:
        """Maps rows [R, D] to rows [R, D], or to the `wanted` rows only."""
        q_RHE, k_RHE, v_RHE, x_RD = self._apart(x_RD, turn)
        attended_RD = attention.attend(q_RHE, k_RHE, v_RHE).flatten(-2)
        if wanted is not None:
            x_RD, attended_RD = x_RD.index_select(0, wanted), attended_RD.index_select(0, wanted)
        x_RD = self.dropout.add(x_RD, self.out(attended_RD))
        if self.normed:
            x_RD = self.ffn_norm(x_RD)
        inner_RF = self.up(x_RD) if self.normed else self.up(*self.ffn_norm.apart(x_RD))
        return self.dropout.add(x_RD, self.down(self.activation(inner_RF)))

    def _apart(self, x_RD: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns queries (scaled), keys and values, [R, H, E] each, turned where they are to be, and the stream that the block adds to.

        One product makes all three, and what every row is multiplied by (gain, scale) is multiplied into its weights, which are smaller.
        """
        query, key, value = self.query.scaled(self.scale), (self.key.weight, self.key.bias), (self.value.weight, self.value.bias)
        if not self.normed:
            qkv_RD = together([query, key, value], *self.attention_norm.apart(x_RD))
            return *turn(qkv_RD.unflatten(-1, (3, self.heads, -1))), x_RD
        seen_RD = self.attention_norm(x_RD)
        qkv_RD = torch.cat([together([query], seen_RD), together([key, value], x_RD)], -1)
        return *turn(qkv_RD.unflatten(-1, (3, self.heads, -1))), seen_RD
