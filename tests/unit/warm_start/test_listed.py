"""Lists and vectors come, go and are renamed like any feature: one table a list, one number after the other of a vector."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests import small, warm
from trainer.data import Encoder, take
from trainer.fit.begin import renamed_inputs
from trainer.warm_start.measure import measure_removed
from trainer.warm_start.names import Renames

both = pytest.mark.parametrize("architecture", warm.ARCHITECTURES)
KEYS = ["a", "b", "c", "d"]


def listed(name="tags", vector="taste", **changes):
    """An encoder with a list in context, items and tokens, and a vector of two numbers."""
    base = small.encoder(numeric=("rate", f"{vector}[0]", f"{vector}[1]") if vector else ("rate",))
    slots = {f"{name}[{place}]": name for place in range(3)} if name else {}
    inputs = dataclasses.replace(
        base.inputs, categorical={**base.inputs.categorical, **slots}, token_features={**base.inputs.token_features, **slots},
        item_features={**base.inputs.item_features, **slots},
    )  # fmt: skip
    return Encoder(dataclasses.replace(inputs, **changes), {**base.vocabularies, **({name: small.vocabulary(name, KEYS)} if name else {})})


def batch_of(encoder):
    rng = np.random.default_rng(3)
    tables = []
    for table in small.tables():
        for place in range(3):
            values = pa.array([[*KEYS, None][code] for code in rng.integers(0, 5, len(table))], pa.string())
            for name in ("tags", "topics"):
                table = table.append_column(f"feature_{name}[{place}]", values)
        for place in range(2):
            number = pa.array(rng.normal(size=len(table)), mask=rng.random(len(table)) < 0.2)
            for name in ("taste", "mood"):
                table = table.append_column(f"feature_{name}[{place}]", number)
        tables.append(table)
    shard = encoder.encode(*tables, warm.LATE)
    return take(shard, np.arange(shard.units))


def outputs(encoder, ranker):
    with torch.inference_mode():
        return ranker(batch_of(encoder)).output_NO


@both
def test_a_new_list_and_a_new_vector_change_nothing_at_first_and_learn(architecture):
    old, new = listed(name=None, vector=None), listed()
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    the_plan, _ = warm.transfer(old, source, new, target)
    assert the_plan.exact, the_plan.inexact
    assert (outputs(new, target) - outputs(old, source)).abs().max() <= 1e-10
    target(batch_of(new)).output_NO.sum().backward()
    tables = {name: p.grad for name, p in target.named_parameters() if "feature:tags" in name}
    assert len(tables) == 3 and all(grad.abs().max() > 0 and not grad[0].any() for grad in tables.values())


@both
def test_a_renamed_list_and_vector_keep_their_weights(architecture):
    old, new = listed(), listed("topics", "mood")
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    rules = {"tags": "topics", "taste": "mood"}
    the_plan, _ = warm.transfer(old, source, new, target, rename=rules)
    assert the_plan.exact, the_plan.inexact
    assert (outputs(new, target) - outputs(old, source)).abs().max() <= 1e-10
    known = {*(entry.name for entry in new.inputs.numeric), *new.inputs.categorical}
    renamed = renamed_inputs(old.inputs, known, rules)
    assert list(renamed.categorical) == list(new.inputs.categorical) and renamed.numeric == new.inputs.numeric
    assert Renames(rules)("tags[2]", known) == "topics[2]" and Renames(rules)("tags[9]", known) == "tags[9]"


@both
def test_what_a_removed_list_or_vector_costs_is_measured_as_one_feature(architecture):
    old, new = listed(), listed(name=None, vector=None)
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    with torch.no_grad():
        source.state_dict()["context.numeric"][1:] += 1.0
    the_plan, sides = warm.transfer(old, source, new, target, coverage={})
    measured = measure_removed(source, [batch_of(old)], *sides, the_plan)
    assert set(measured) == {"tags", "taste"}
    assert measured["tags"]["mean_change"] > 1e-4 and measured["taste"]["mean_change"] > 1e-4
    unknown = measure_removed(source, [batch_of(old)], *sides, the_plan, absent={"tags[0]", "tags[1]", "taste[0]", "taste[1]"})
    assert unknown["tags"]["mean_change"] is None and unknown["taste"]["mean_change"] is None
