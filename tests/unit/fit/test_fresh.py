"""What production never trained may learn faster than what it did: entry by entry, in a tensor that grew."""

import copy

import pytest
import torch

from tests import small, warm
from tests.unit.fit.test_rows import learner_and_batches
from trainer.config import OptimizerConfig, ScheduleConfig
from trainer.errors import ConfigError
from trainer.fit.learner import Optimizers
from trainer.fit.rows import gather
from trainer.fit.schedule import Fresh, fresh_of
from trainer.warm_start.apply import new_entries

TRUNK = "blocks.0.query.weight"


@pytest.mark.parametrize("architecture", warm.ARCHITECTURES)
def test_new_entries_are_what_nothing_of_production_can_reach(architecture):
    encoder = small.encoder()
    source = warm.build(encoder, name=architecture)
    grown = warm.fresh(encoder, name=architecture, like=source, layers=3, dim=24)
    the_plan, sides = warm.transfer(encoder, source, encoder, grown)
    new = new_entries(the_plan, *sides)
    assert all(entries.shape == grown.state_dict()[name].shape for name, entries in new.items())
    assert {name for name in grown.state_dict() if name not in new} == {f.target for f in the_plan.fates if f.family == "tables"}
    other = copy.deepcopy(grown)
    for tensor in source.state_dict().values():  # whatever production holds, new entries are the same
        tensor += 1.0
    the_plan, _ = warm.transfer(encoder, source, encoder, other)
    for name, entries in new.items():
        assert torch.equal(other.state_dict()[name] != grown.state_dict()[name], ~entries), name
    assert new["blocks.2.query.weight"].all() and new[TRUNK].float().mean() == pytest.approx(1 / 3)
    assert not any(entries.any() for entries in new_entries(*_identity(encoder, source)).values())


def _identity(encoder, source):
    the_plan, sides = warm.transfer(encoder, source, encoder, copy.deepcopy(source))
    return the_plan, *sides


def test_one_rate_is_the_default_and_where_nothing_is_new():
    some = {"a": torch.tensor([True, False]), "b": torch.tensor([True]), "c": torch.tensor([False])}
    for config, new in (
        (ScheduleConfig(), some),
        (ScheduleConfig(fresh_factor=0.3), some),
        (ScheduleConfig(fresh_factor=1.0), {"c": some["c"]}),
    ):
        assert fresh_of(config, new) == Fresh()
    found = fresh_of(ScheduleConfig(warm_factor=0.25, fresh_factor=1.0), some)
    assert found.rate == 4 and {name: share.tolist() for name, share in found.shares.items()} == {"a": [1.0, 0.25], "c": [0.25]}
    with pytest.raises(ConfigError, match="no slower") as error:
        ScheduleConfig(fresh_factor=0.2)
    assert error.value.where == "schedule.fresh_factor"


def trained(fresh, factor, steps=3, skip=0.0):
    """Weights after some steps; gradients are the first step's, so that every rate meets the same ones."""
    learner, (batch, *_) = learner_and_batches()
    optimizers = Optimizers(learner, OptimizerConfig(weight_decay=0.1), fresh)
    learner.losses(batch)[0].backward()
    gather(optimizers.by_row)
    for _ in range(steps):
        optimizers.set_rates(factor, 0.0)
        optimizers.step(torch.tensor(skip))
    return {name: weight.detach().clone() for name, weight in learner.ranker.named_parameters()}


def test_fresh_entries_move_at_their_rate_and_carried_ones_and_tables_at_theirs():
    start = trained(None, 0.0)
    tables = learner_and_batches()[0].tables()
    new = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in start.items() if name not in tables}
    new[TRUNK][::2] = True
    new["norm.gain"][:] = True
    new["rotary.frequency"] = torch.zeros(4, dtype=torch.bool)  # a buffer: a plan has a fate for it too
    fresh = fresh_of(ScheduleConfig(warm_factor=0.25, fresh_factor=1.0), new)
    slow, fast, both = trained(None, 0.25, 1), trained(None, 1.0, 1), trained(fresh, 0.25, 1)
    assert not torch.allclose(fast[TRUNK], slow[TRUNK], atol=1e-5) and not torch.equal(fast["norm.gain"], slow["norm.gain"])
    for name, weight in both.items():
        entries = new.get(name, torch.zeros_like(weight, dtype=torch.bool))
        assert torch.allclose(weight, torch.where(entries, fast[name], slow[name]), atol=1e-7), name


def test_a_skipped_step_moves_nothing():
    fresh = Fresh(4.0, {TRUNK: torch.full_like(trained(None, 0.0)[TRUNK], 0.25)})
    still, before = trained(fresh, 1.0, skip=1.0), trained(None, 0.0)
    assert all(torch.equal(still[name], before[name]) for name in before)
