"""Optimizer state moves by name and row, and new rows start safely (reference/warm-start.md, A18, section 5)."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests import small, warm
from trainer.errors import CheckpointError
from trainer.schema.vocabulary import Vocabulary
from trainer.warm_start import Side, carry_moments, plan
from trainer.warm_start.moments import STATES

TABLE = "embedding.item.weight"


def counted(encoder, counts, days):
    """The encoder with another traffic: `counts` by item key, all first seen on `days[0]` and last on `days[1]`."""
    keys = pa.array(list(counts))
    seen = [pa.array([day] * len(keys)) for day in days]
    vocabulary = Vocabulary("item", keys, np.array(list(counts.values())), *seen)
    return dataclasses.replace(encoder, vocabularies={**encoder.vocabularies, "item": vocabulary})


def test_moments_move_by_name_and_row():
    old = small.encoder()
    new = warm.reordered(old, add=range(900, 910))
    source, target = warm.build(old), warm.fresh(new, layers=3)
    sides = warm.sides(old, source, new, target)
    moments = warm.random_moments(source)
    carried = carry_moments(plan(*sides), *sides, moments)
    assert set(carried) == {name for name, _ in target.named_parameters()}
    rows_old, rows_new = (side.vocabularies["item"].lookup(pa.array([120, 131, 105])) for side in sides)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(carried[TABLE][key][rows_new], moments[f"{TABLE}/{key}"][rows_old])
    assert float(carried[TABLE]["step"]) == 5000
    fresh = sides[1].vocabularies["item"].lookup(pa.array(list(range(900, 910))))
    assert (carried[TABLE]["exp_avg"][fresh] == 0).all() and (carried[TABLE]["exp_avg_sq"][fresh] > 0).all()
    added = carried["blocks.2.up.weight"]  # as the layer it resembles, without a direction
    assert (added["exp_avg"] == 0).all()
    assert torch.allclose(added["exp_avg_sq"], moments["blocks.0.up.weight/exp_avg_sq"].mean()) and float(added["step"]) == 5000


def test_the_order_of_parameters_in_the_optimizer_plays_no_part():
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder, ffn_dim=48)
    sides = warm.sides(encoder, source, encoder, target)
    moments = warm.random_moments(source)
    swapped = dict(reversed(moments.items()))
    one, two = (carry_moments(plan(*sides), *sides, values) for values in (moments, swapped))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name][key], two[name][key]) for name in one for key in one[name])


def test_scaled_and_repeated_parameters_scale_their_moments_as_gradients():
    """The carried moments of a grown ranker are those that its own gradients would have left."""
    encoder = small.encoder()
    source = warm.build(encoder).double()
    target = warm.fresh(encoder, dim=64, like=source).double()  # sqrt(16 / 64) = 1/2
    the_plan, sides = warm.transfer(encoder, source, encoder, target)
    gradients = []
    for ranker in (source, target):
        from models.losses import ranker_loss

        batch = warm.batch_of(encoder)
        ranker_loss(ranker(batch), batch, ranker.shape).total.backward()
        gradients.append({name: p.grad for name, p in ranker.named_parameters()})
    moments = {f"{name}/exp_avg": grad for name, grad in gradients[0].items()} | {
        f"{name}/exp_avg_sq": grad**2 for name, grad in gradients[0].items()
    }
    carried = carry_moments(the_plan, *sides, moments)
    for fate in the_plan.fates:
        if fate.source in gradients[0]:
            kept = tuple(slice(0, size) for size in source.state_dict()[fate.source].shape)
            grad = gradients[1][fate.target][kept]
            assert torch.allclose(carried[fate.target]["exp_avg"][kept], grad, rtol=1e-6, atol=1e-12), fate.target
            assert torch.allclose(carried[fate.target]["exp_avg_sq"][kept], grad**2, rtol=1e-6, atol=1e-15), fate.target
    gain = carried["norm.gain"]["exp_avg"][:16]
    assert torch.allclose(gain, 2 * gradients[0]["norm.gain"], rtol=1e-6)


def test_new_rows_start_with_the_second_moment_of_rows_that_are_met_as_often():
    counts = {key: 2 ** (key - 100) for key in range(100, 110)}
    old = counted(small.encoder(items=range(100, 110)), counts, ("2026-01-01", "2026-01-10"))
    new = counted(old, {**counts, 500: 70, 501: 3, 502: 90_000}, ("2026-01-01", "2026-01-10"))
    source, target = warm.build(old), warm.fresh(new)
    sides = warm.sides(old, source, new, target)
    second = torch.rand(12, 16)
    state = carry_moments(
        plan(*sides), *sides, {f"{TABLE}/exp_avg_sq": second, f"{TABLE}/sum": second[:, 0], f"{TABLE}/last": torch.arange(12.0)}
    )
    got = state[TABLE]
    # 70 events in ten days are 7 a day, as the 64 of item 106 are 6.4 (octave 2); 3 are 0.3 (octave -2), as the 4 of item 102
    assert torch.allclose(got["exp_avg_sq"][12], second[2 + 6]) and torch.allclose(got["exp_avg_sq"][13], second[2 + 2])
    assert torch.allclose(got["exp_avg_sq"][14], second[2 + 9]), "more often than any old row: as the most frequent ones"
    assert torch.equal(got["sum"][12:], got["exp_avg_sq"][12:, 0]) and torch.equal(got["sum"][:12], second[:, 0])
    assert torch.equal(got["last"][:12], torch.arange(12.0)) and (got["last"][12:] == 0).all(), "never touched"


def test_new_rows_of_adagrad_may_start_without_a_past_and_old_ones_keep_theirs():
    old, new = small.encoder(items=range(100, 110)), small.encoder(items=[500, *range(100, 110), 501])
    sides = warm.sides(old, warm.build(old), new, warm.fresh(new))
    total = torch.rand(12) + 1
    got = carry_moments(plan(*sides), *sides, {f"{TABLE}/sum": total, f"{TABLE}/last": torch.ones(12)}, new_rows="none")[TABLE]
    assert torch.equal(got["sum"], torch.cat([total[:2], torch.zeros(1), total[2:], torch.zeros(1)]))


def adam(gradient_TN, first, second, step, beta2):
    """Returns the size of each update in units of the learning rate, float64 [T, N] (Kingma & Ba 2015)."""
    beta1, updates = 0.9, []
    for number, gradient in enumerate(gradient_TN, start=1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        t = step + number
        updates.append((first / (1 - beta1**t)) / (np.sqrt(second / (1 - beta2**t)) + 1e-12))
    return np.array(updates)


@pytest.mark.parametrize("beta2", [0.99, 0.999])
@pytest.mark.parametrize("drift", [1.0, 0.3], ids=["steady", "noisy"])
def test_a_new_row_never_moves_further_than_an_old_one_that_is_met_as_often(beta2, drift):
    """200 steps of Adam on old rows and on new ones with the same gradients: carried moments against zero ones."""
    rng = np.random.default_rng(0)
    rows, width, past = 64, 16, 20_000 if beta2 == 0.999 else 4_000
    noise = np.sqrt(1 - drift**2)

    def gradients(steps):
        return drift + noise * rng.standard_normal((steps, rows, width))

    first, second = np.zeros((rows, width)), np.zeros((rows, width))
    for gradient in gradients(past):
        first, second = 0.9 * first + 0.1 * gradient, beta2 * second + (1 - beta2) * gradient**2
    encoder = small.encoder(items=range(rows))
    old = counted(encoder, dict.fromkeys(range(rows), 100), ("2026-01-01", "2026-01-10"))
    new = counted(encoder, dict.fromkeys(range(2 * rows), 100), ("2026-01-01", "2026-01-10"))
    sides = warm.sides(old, warm.build(old), new, warm.fresh(new))
    pad = np.zeros((2, width))
    moments = {
        f"{TABLE}/exp_avg": torch.from_numpy(np.vstack([pad, first])),
        f"{TABLE}/exp_avg_sq": torch.from_numpy(np.vstack([pad, second])),
    }
    state = {key: value.numpy() for key, value in carry_moments(plan(*sides), *sides, moments)[TABLE].items()}
    ahead = gradients(200)
    mean = {
        name: np.sqrt((adam(ahead, *start, past, beta2) ** 2).mean((1, 2)))
        for name, start in {
            "old": (first, second),
            "new": (state["exp_avg"][2 + rows :], state["exp_avg_sq"][2 + rows :]),
            "zero": (np.zeros_like(first), np.zeros_like(first)),
        }.items()
    }
    assert (mean["new"] / mean["old"]).max() <= 1.1
    assert mean["new"][0] <= 1.1, "the first update is no larger than the learning rate"
    expected = {0.99: 2.0, 0.999: 6.0}[beta2]
    if drift == 1.0:
        assert expected < (mean["zero"] / mean["old"]).max() < expected + 1, "what zero moments under a large step do"


def test_state_that_nobody_can_move_is_refused():
    encoder = small.encoder()
    sides = warm.sides(encoder, warm.build(encoder), encoder, warm.fresh(encoder))
    with pytest.raises(CheckpointError, match="cannot be moved"):
        carry_moments(plan(*sides), *sides, {"norm.gain/momentum_buffer": torch.zeros(16)})
    with pytest.raises(CheckpointError, match="another shape") as error:
        carry_moments(plan(*sides), *sides, {"norm.gain/exp_avg": torch.zeros(17)})
    assert error.value.where == "norm.gain/exp_avg"
    assert set(STATES) == {"exp_avg", "exp_avg_sq", "sum", "last", "step"}


def test_a_side_that_is_no_ranker_of_ours_can_be_described_by_hand():
    encoder = small.encoder()
    side = Side.of(warm.build(encoder), encoder.vocabularies)
    assert plan(side, dataclasses.replace(side)).exact
