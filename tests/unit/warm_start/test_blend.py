"""Shrink-perturb and merges (reference/warm-start.md, A19, A20)."""

import pytest
import torch

from tests import small, warm
from trainer.errors import CheckpointError
from trainer.warm_start import merge

both = pytest.mark.parametrize("architecture", warm.ARCHITECTURES)


@both
def test_shrink_and_perturb_meet_both_ends(architecture):
    encoder = small.encoder()
    source = warm.build(encoder, name=architecture)
    initial = {name: tensor.clone() for name, tensor in warm.fresh(encoder, name=architecture).state_dict().items()}
    results = {}
    for shrink, perturb in ((1.0, 0.0), (0.0, 1.0), (0.4, 0.1)):
        target = warm.fresh(encoder, name=architecture)
        the_plan, _ = warm.transfer(encoder, source, encoder, target, shrink=shrink, perturb=perturb, approximate=True)
        assert the_plan.exact == (shrink == 1.0)
        results[shrink] = target.state_dict()
    old, axes = source.state_dict(), source.axes()
    assert all(torch.equal(tensor, old[name]) for name, tensor in results[1.0].items())
    matrices = [
        name for name in old if len(axes[name]) == 2 and not axes[name][0].startswith(("vocab:", "fixed", "numeric", "history_action"))
    ]
    assert len(matrices) > 10
    for name in old:
        if name in matrices:
            assert torch.equal(results[0.0][name], initial[name])
            assert torch.allclose(results[0.4][name], 0.4 * old[name] + 0.1 * initial[name])
        else:  # embeddings, gains, biases
            assert torch.equal(results[0.0][name], old[name]) and torch.equal(results[0.4][name], old[name])


@both
def test_a_merge_meets_both_ends_and_leaves_new_rows_alone(architecture):
    old = small.encoder()
    new = warm.reordered(old, add=range(900, 905))
    source, target = warm.build(old, name=architecture), warm.fresh(new, name=architecture, layers=3, ffn_dim=48)
    the_plan, sides = warm.transfer(old, source, new, target)
    began = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    ended = {name: tensor + 1 for name, tensor in began.items()}  # every entry moves, also rows that a batch would not hold
    full = merge(began, ended, 1.0, the_plan, *sides, the_plan.source)
    assert all(torch.equal(full[name], ended[name]) for name in ended)
    none = merge(began, ended, 0.0, the_plan, *sides, the_plan.source)
    part = merge(began, ended, 0.25, the_plan, *sides, the_plan.source)
    added = [row for row, key in enumerate(new.vocabularies["item"].keys.to_pylist(), start=2) if key >= 900]
    for name in began:
        table = name == "embedding.item.weight"
        if name.startswith("blocks.2."):
            assert torch.equal(none[name], ended[name])
        elif table:
            assert torch.equal(none[name][added], ended[name][added])
            kept = [row for row in range(len(began[name])) if row not in added]
            assert torch.equal(none[name][kept], began[name][kept])
        else:
            assert torch.equal(none[name], began[name])
            assert torch.allclose(part[name], 0.75 * began[name] + 0.25 * ended[name], atol=1e-6)


def test_a_merge_of_strangers_is_refused():
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder)
    the_plan, sides = warm.transfer(encoder, source, encoder, target)
    state = target.state_dict()
    with pytest.raises(CheckpointError, match="different ancestors"):
        merge(state, state, 0.5, the_plan, *sides, "another bundle")
