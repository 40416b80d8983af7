"""sasrec's block does what its formula says, in fewer passes; rows that are all wanted are not picked one by one."""

import pytest
import torch
import torch.nn.functional as F

from models.attention import causal_layout, dense_causal_attention
from models.packing import pack
from models.sasrec import Turn


def by_formula(block, x, rotary, packing):
    """The block's docstring, one operation after the other."""

    def by_head(y):
        return y.unflatten(-1, (block.heads, -1))

    def turned(y):
        if rotary is None:
            return y
        angle = packing.position_R[:, None, None] * rotary.frequency
        return torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)).flatten(-2)

    def linear(projection, y):
        return F.linear(y, projection.weight, projection.bias)

    n = block.attention_norm(x)
    read, stream = (x, n) if block.normed else (n, x)
    q, k, v = (by_head(linear(*pair)) for pair in ((block.query, n), (block.key, read), (block.value, read)))
    attended = dense_causal_attention(turned(q * block.scale[:, None]), turned(k), v, packing).flatten(-2)
    y = stream + linear(block.out, attended)
    m = block.ffn_norm(y)
    return (m if block.normed else y) + linear(block.down, block.activation(linear(block.up, m)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"biases": True}, {"norm": "layer", "biases": True}, {"normed_layers": 2, "biases": True, "rotary": False}, {"normed_layers": 2}],
)
def test_a_block_is_its_formula_with_all_gradients(kit, changes):
    shape = kit.bare(**changes)
    model, packing = kit.model(shape, dtype=torch.float64), pack(kit.batch(shape, [7, 0, 18, 3], [[]] * 4))
    block = model.blocks[0]
    with torch.no_grad():
        for parameter in block.parameters():  # gains, scales and biases start where mistakes do not show
            parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    x = torch.randn(len(packing.sequence_R), shape.dim, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]
    fast = block(x, Turn(model.rotary, packing.position_R), causal_layout(packing))
    plain = by_formula(block, x, model.rotary, packing)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    direction = torch.randn_like(fast)
    for mine, theirs in zip(torch.autograd.grad(fast, inputs, direction), torch.autograd.grad(plain, inputs, direction), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("targets", [[[0, 1, 2], [0, 1]], [[0, 2, 1], [0, 1]], [[0, 1, 1], [0, 1]], [[1, 2], [0, 1]]])
def test_user_vectors_are_the_states_of_the_wanted_rows(kit, targets):
    """All rows in their order, in another, one twice, one left out."""
    shape = kit.bare()
    model, batch = kit.model(shape, dtype=torch.float64), kit.batch(shape, [2, 1], targets)
    states = model.states(batch).index_select(0, pack(batch).state_N)
    torch.testing.assert_close(model.user_vectors(batch), states, rtol=0, atol=1e-12)
