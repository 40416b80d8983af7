"""The fast paths against their dense twins, and the layouts behind them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention import (
    BIAS_ROWS,
    Rotary,
    Seen,
    causal_attention,
    causal_layout,
    dense_causal_attention,
    dense_pointwise_attention,
    pair_layout,
    pointwise_attention,
)
from models.packing import NO_CLOCK, pack, row_times
from models.sasrec import Turn


@st.composite
def runs_of_rows(draw):
    """A sequence's length and the sorted positions of its targets."""
    length = draw(st.integers(0, 90))
    return length, sorted(draw(st.lists(st.integers(0, length), max_size=30)))


lengths_and_targets = st.lists(runs_of_rows(), min_size=1, max_size=8)
ODD = [([0], [[]]), ([0, 0], [[0], []]), ([1], [[1, 1, 0]]), ([15, 16, 17, 31, 64, 65, 200], [[15], [], [3] * 20, [], [], [65], [0]])]


def random_heads(count, seed, heads=2, width=8):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, heads, width, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3)]


def assert_same_with_gradients(fast, dense, inputs):
    torch.testing.assert_close(fast, dense, rtol=0, atol=1e-10)
    direction = torch.randn(fast.shape, dtype=fast.dtype, generator=torch.Generator().manual_seed(1))
    for a, b in zip(torch.autograd.grad(fast, inputs, direction), torch.autograd.grad(dense, inputs, direction), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def check_causal(kit, lengths):
    packing = pack(kit.batch(kit.bare(), lengths, [[] for _ in lengths]))
    q, k, v = random_heads(sum(lengths) + len(lengths), sum(lengths))
    assert_same_with_gradients(causal_attention(q, k, v, causal_layout(packing)), dense_causal_attention(q, k, v, packing), [q, k, v])


def seen_by(batch, packing):
    """Spelled out here once more, so that the ranker's own `Seen` is not its own witness."""
    after_N = batch.target_position_N + 1
    return Seen(
        torch.cat([packing.sequence_R, batch.target_sequence_N]),
        torch.cat([packing.position_R, after_N]),
        torch.cat([row_times(batch, packing), batch.target_time_N]),
        torch.cat([packing.position_R + 1, after_N]),
    )


def check_pointwise(kit, lengths, targets):
    batch = kit.batch(kit.bare(), lengths, targets)
    packing = pack(batch)
    seen = seen_by(batch, packing)
    q, k, v = random_heads(len(seen.time_Q), sum(lengths))
    bias = torch.randn(BIAS_ROWS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    fast = pointwise_attention(q, k, v, bias, pair_layout(packing, seen))
    assert_same_with_gradients(fast, dense_pointwise_attention(q, k, v, bias, packing, seen), [q, k, v, bias])


@settings(max_examples=30, deadline=None)
@given(runs=lengths_and_targets)
def test_causal_attention_equals_its_dense_twin(kit, runs):
    check_causal(kit, [length for length, _ in runs])


@settings(max_examples=30, deadline=None)
@given(runs=lengths_and_targets)
def test_pointwise_attention_equals_its_dense_twin(kit, runs):
    check_pointwise(kit, [length for length, _ in runs], [positions for _, positions in runs])


@pytest.mark.parametrize(("lengths", "targets"), ODD)
def test_odd_lengths_equal_the_dense_twins(kit, lengths, targets):
    check_causal(kit, lengths)
    check_pointwise(kit, lengths, targets)


def test_pairs_without_a_clock_equal_the_dense_twin(kit):
    """Gaps are not even looked at then; one row that knows its time is enough for all to be."""
    for clocked in (False, True):
        batch = kit.batch(kit.bare(), [33, 0, 70], [[33], [0, 0], [5, 70]])
        batch.token_time_T.fill_(NO_CLOCK)
        batch.target_time_N.fill_(NO_CLOCK)
        if clocked:
            batch.token_time_T[40], batch.target_time_N[-1] = 5_000, 90_000
        packing = pack(batch)
        seen = seen_by(batch, packing)
        assert seen.has_clock == clocked
        inputs = [*random_heads(len(seen.time_Q), 3), torch.randn(BIAS_ROWS, 2, dtype=torch.float64, requires_grad=True)]
        fast = pointwise_attention(*inputs, pair_layout(packing, seen))
        assert_same_with_gradients(fast, dense_pointwise_attention(*inputs, packing, seen), inputs)


def test_dense_causal_attention_is_softmax_over_earlier_rows_of_the_own_sequence(kit):
    """The twin itself, against a loop."""
    packing = pack(kit.batch(kit.bare(), [3, 2], [[], []]))
    q, k, v = random_heads(7, 0, heads=1)
    out = dense_causal_attention(q, k, v, packing)
    for row, first in enumerate([0, 0, 0, 0, 4, 4, 4]):
        weight = (k[first : row + 1, 0] @ q[row, 0]).softmax(0)
        torch.testing.assert_close(out[row, 0], weight @ v[first : row + 1, 0])


def test_dense_pointwise_attention_shows_a_target_its_tokens_and_itself(kit):
    """The twin itself, against a loop; rows are BOS, three tokens, BOS, then targets at positions 2 and 0."""
    batch = kit.batch(kit.bare(), [3, 0], [[2], [0]])
    packing = pack(batch)
    seen = seen_by(batch, packing)
    q, k, v = random_heads(7, 0, heads=1)
    out = dense_pointwise_attention(q, k, v, torch.zeros(BIAS_ROWS, 1, dtype=torch.float64), packing, seen)
    visible = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [4], [0, 1, 2, 5], [4, 6]]
    for row, rows in enumerate(visible):
        weight = torch.nn.functional.silu(k[rows, 0] @ q[row, 0])
        torch.testing.assert_close(out[row, 0], weight @ v[rows, 0])


def test_padding_stays_below_a_quarter(kit):
    lengths = list(range(40, 200, 3))
    padded = causal_layout(pack(kit.batch(kit.bare(), lengths, [[] for _ in lengths]))).padded
    assert sum(lengths) < len(padded.index_X) < 1.25 * sum(lengths)
    assert len(padded.shapes) < 14


def test_rotation_depends_on_the_distance_only():
    rotary = Rotary(8).double()
    qkv = torch.randn(1, 3, 1, 8, dtype=torch.float64).expand(2, 3, 1, 8)
    products = []
    for position in (0, 5, 100):
        q, k, v = rotary.rotate(qkv, rotary(torch.tensor([position, position + 3])))
        products.append((q[0] * k[1]).sum())
        torch.testing.assert_close(v, qkv[:, 2])
    torch.testing.assert_close(products[1], products[0])
    torch.testing.assert_close(products[2], products[0])
    still = rotary.rotate(qkv, rotary(torch.tensor([0, 0])))
    torch.testing.assert_close(torch.stack(still, 1), qkv)


def test_rotation_by_complex_numbers_equals_that_by_their_parts():
    """On the CPU, gradients included; positions start anywhere and repeat."""
    rotary, position = Rotary(6).double(), torch.tensor([7, 7, 3, 12])
    qkv = torch.randn(4, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    complex_R1E = rotary(position)
    angle = position[:, None, None] * rotary.frequency
    torch.testing.assert_close(complex_R1E, torch.polar(torch.ones_like(angle), angle))
    fast, parts = (torch.stack(rotary.rotate(qkv, rotation), 1) for rotation in (complex_R1E, torch.view_as_real(complex_R1E)))
    assert_same_with_gradients(fast, parts, [qkv])


def test_rows_rounded_to_bf16_are_rotated_in_fp32_and_rounded_once_more():
    rotary, position = Rotary(8), torch.tensor([3, 900])
    parts = torch.view_as_real(rotary(position))
    qkv = torch.randn(2, 3, 2, 8).bfloat16()
    for mine, exact in zip(rotary.rotate(qkv, parts), rotary.rotate(qkv.float(), parts), strict=True):
        assert mine.dtype == torch.bfloat16 and torch.equal(mine, exact.bfloat16())


def test_attention_of_a_sasrec_block_depends_on_distances_only(kit):
    model = kit.model(kit.bare(), dtype=torch.float64)
    packing = pack(kit.batch(kit.bare(), [5, 9], [[], []]))
    x, layout = torch.randn(16, 16, dtype=torch.float64), causal_layout(packing)
    outs = [model.blocks[0](x, Turn(model.rotary, packing.position_R + shift), layout) for shift in (0, 11)]
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-10)
    unmoved = model.blocks[0](x, Turn(model.rotary, packing.position_R * 0), layout)
    assert not torch.allclose(unmoved, outs[0])


def test_rotary_frequencies_are_saved():
    assert "frequency" in Rotary(8).state_dict()
