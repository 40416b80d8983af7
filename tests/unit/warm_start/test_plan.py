"""The plan: one fate a tensor, sums that add up, rules that are used, and what is refused (A1, A2, A9, A15, A17, A22)."""

import dataclasses
import json

import pytest
import torch

from tests import small, warm
from trainer.data import Encoder
from trainer.errors import CheckpointError, ConfigError
from trainer.schema.plain import as_plain
from trainer.schema.transfer import FATES
from trainer.warm_start import Rules, Side, apply, plan, plan_sha256

both = pytest.mark.parametrize("architecture", warm.ARCHITECTURES)
OLD = {"actions": ("click", "like"), "numeric": ("rate", "age")}
CASES = {
    "same": ({}, {}, {}),
    "grown": ({}, {"layers": 4, "dim": 24, "heads": 3, "context_dim": 20}, {}),
    "shrunk": ({"actions": ("like", "watch"), "numeric": ("rate",)}, {"layers": 1, "dim": 8}, {"approximate": True}),
    "stacked": ({"numeric": ("age", "rate")}, {"layers": 5}, {"approximate": True, "insert": "stack"}),
    "features": ({"categorical": (), "numeric": ("fresh", "age")}, {"context_layers": 3}, {}),
}


@both
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_both_sides_has_one_fate_and_elements_add_up(architecture, case):
    inputs, shape, rules = CASES[case]
    old, new = small.encoder(**OLD), small.encoder(**{**OLD, **inputs})
    source = warm.build(old, name=architecture)
    target = warm.fresh(new, name=architecture, like=source, **shape)
    the_plan = plan(*warm.sides(old, source, new, target), Rules(**rules))
    assert sorted(fate.target for fate in the_plan.fates if fate.target) == sorted(target.state_dict())
    assert sorted(fate.source for fate in the_plan.fates if fate.source) == sorted(source.state_dict())
    assert all(fate.target or fate.source for fate in the_plan.fates)
    assert {fate.fate for fate in the_plan.fates} <= set(FATES)
    targets = sum(tensor.numel() for tensor in target.state_dict().values())
    left = sum(torch.Size(fate.shape).numel() for fate in the_plan.fates if not fate.target)
    assert sum(the_plan.elements.values()) == targets + left
    assert sum(the_plan.source_elements.values()) == sum(tensor.numel() for tensor in source.state_dict().values())
    for name, state in (("elements", target), ("source_elements", source)):
        side = "target" if name == "elements" else "source"
        by_fate = {fate.fate for fate in the_plan.fates if getattr(fate, side)}
        for kind in by_fate - {"dropped", "refused"}:
            tensors = [
                state.state_dict()[getattr(fate, side)].numel() for fate in the_plan.fates if getattr(fate, side) and fate.fate == kind
            ]
            assert getattr(the_plan, name)[kind] == sum(tensors)


def test_planning_is_pure_and_deterministic():
    encoder = small.encoder()
    new = warm.reordered(encoder, add=[7777])
    plans = [
        plan(*warm.sides(encoder, warm.build(encoder, seed), new, warm.fresh(new, seed + 1)), Rules(coverage={"trunk": 0.5}))
        for seed in (0, 9)
    ]
    assert plan_sha256(plans[0]) == plan_sha256(plans[1])
    json.dumps(as_plain(plans[0]))
    other = plan(*warm.sides(encoder, warm.build(encoder), new, warm.fresh(new)))
    assert plan_sha256(other) != plan_sha256(plans[0])


def test_rows_are_weighted_by_traffic():
    old = small.encoder()
    new = warm.reordered(old, drop=range(100, 110))  # ids 100.. have counts 1, 2, ...
    the_plan = plan(*warm.sides(old, warm.build(old), new, warm.fresh(new)))
    fate = next(fate for fate in the_plan.fates if fate.target == "embedding.item.weight")
    kept = 1 - sum(range(1, 11)) / sum(range(1, 41))
    assert fate.carried == pytest.approx(kept) and fate.moves[0].coverage == pytest.approx(kept)
    assert (fate.moves[0].new, fate.moves[0].dropped) == (0, 10)


@pytest.mark.parametrize(
    ("family", "change"),
    [("tables", {"drop": range(120, 140)}), ("heads", {"actions": ("watch",)}), ("context", {"numeric": ("x", "y", "z")})],
    ids=str,
)
def test_too_little_of_a_family_is_refused_with_what_it_takes(family, change):
    old = small.encoder(**OLD)
    new = warm.reordered(old, **change) if "drop" in change else small.encoder(**{**OLD, **change})
    source, target = warm.build(old), warm.fresh(new)
    sides = warm.sides(old, source, new, target)
    strict = {"coverage": {"tables": 0.9, "heads": 0.9, "context": 0.99}}
    with pytest.raises(CheckpointError, match=f"too little of production's {family} arrives") as error:
        apply(plan(*sides, Rules(**strict)), *sides, source.state_dict(), target.state_dict())
    assert f"family {family}" in error.value.where and f"warm_start.coverage.{family}" in error.value.expected
    assert "warm_start.rename" in error.value.remedy and float(error.value.got.split()[0]) < 0.99
    apply(plan(*sides, Rules(coverage={})), *sides, source.state_dict(), target.state_dict())
    apply(plan(*sides, Rules(**strict, approximate=True)), *sides, source.state_dict(), target.state_dict())


def renamed_side(side, change):
    """The side of a model whose code calls a module otherwise."""
    values = {name: {change(key): value for key, value in getattr(side, name).items()} for name in ("shapes", "axes", "dtypes")}
    return dataclasses.replace(side, **values)


def test_a_renamed_trunk_is_refused_and_named_and_a_rule_carries_it():
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder)
    old, new = warm.sides(encoder, source, encoder, target)
    former = renamed_side(old, lambda name: name.replace("blocks.", "encoder.stack."))
    weights = {name.replace("blocks.", "encoder.stack."): tensor for name, tensor in source.state_dict().items()}
    with pytest.raises(CheckpointError, match="no such tensor") as error:
        apply(plan(former, new), former, new, weights, target.state_dict())
    assert str(error.value.where).startswith("encoder.stack.") and "warm_start.rename" in str(error.value.remedy)
    the_plan = plan(former, new, Rules(rename={"encoder.stack.*": "blocks.*"}))
    assert the_plan.exact and sum(fate.fate == "renamed" for fate in the_plan.fates) == sum("blocks." in name for name in new.shapes)
    result = apply(the_plan, former, new, weights, target.state_dict())
    assert all(torch.equal(tensor, result[name]) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("rule", [{"encoder.*": "blocks.*"}, {"norm.gain": "normal.gain"}, {"click": "klick"}], ids=str)
def test_an_unused_rule_is_refused(rule):
    encoder = small.encoder()
    with pytest.raises(ConfigError, match="unused") as error:
        plan(*warm.sides(encoder, warm.build(encoder), encoder, warm.fresh(encoder)), Rules(rename=rule))
    assert next(iter(rule)) in error.value.got


@pytest.mark.parametrize(
    ("had", "has", "name"),
    [
        ({"biases": True}, {}, "blocks.0.query.bias"),
        ({"positions": 8}, {}, "embedding.position"),
        ({}, {"positions": 2}, "embedding.position"),
    ],
    ids=["biases", "positions", "added positions"],
)
def test_a_small_loss_of_the_trunk_is_no_smaller_a_change_of_the_function(had, has, name):
    """No share of elements tells: biases are below a hundredth of a wide trunk, and added positions cut what is read."""
    encoder = small.encoder()
    source = warm.build(encoder, options=had)
    target = warm.fresh(encoder, options=has)
    with pytest.raises(CheckpointError, match=r"no such tensor|production read all") as error:
        warm.transfer(encoder, source, encoder, target, coverage={})
    assert error.value.where == name
    the_plan, _ = warm.transfer(encoder, source, encoder, target, approximate=True)
    assert not the_plan.exact and any(name in reason for reason in the_plan.inexact)
    assert (warm.outputs(encoder, target) - warm.outputs(encoder, source)).abs().max() > 1e-3
    if has:
        assert not target.state_dict()[name].any()


def test_rules_that_collide_or_have_too_many_stars_are_refused():
    encoder = small.encoder()
    sides = warm.sides(encoder, warm.build(encoder), encoder, warm.fresh(encoder))
    with pytest.raises(ConfigError, match="would become one"):
        plan(*sides, Rules(rename={"blocks.0.norm.gain": "norm.gain", "blocks.0.attention_norm.gain": "norm.gain"}))
    with pytest.raises(ConfigError, match="more stars"):
        plan(*sides, Rules(rename={"blocks.*": "blocks.*.*"}))


@both
def test_heads_and_features_are_renamed_by_key(architecture):
    old = small.encoder(actions=("click", "watch"), numeric=("rate", "age"))
    rename = {"click": "click@feed", "watch": "seen", "rate": "rate_7d", "tab": "surface"}
    vocabularies = {**old.vocabularies, "surface": old.vocabularies["tab"]}
    inputs = dataclasses.replace(
        old.inputs,
        actions=[dataclasses.replace(a, name=rename.get(a.name, a.name)) for a in reversed(old.inputs.actions)],
        history_actions=["seen", "click@feed"],
        numeric=[dataclasses.replace(n, name=rename.get(n.name, n.name)) for n in reversed(old.inputs.numeric)],
        categorical={"surface": "surface"},
        token_features={"surface": "surface"},
    )
    new = Encoder(inputs, vocabularies)
    source, target = warm.build(old, name=architecture), warm.fresh(new, name=architecture)
    the_plan, _ = warm.transfer(old, source, new, target, rename=rename)
    assert the_plan.exact, the_plan.inexact
    one, two = source.state_dict(), target.state_dict()
    order = [target.shape.outputs.index(name) for name in ("click@feed", "seen/mu", "seen/log_sigma")]
    assert torch.equal(two["context.output"][order], one["context.output"]) and torch.equal(two["context.bias"][order], one["context.bias"])
    assert torch.equal(two["context.numeric"].flip(0), one["context.numeric"])
    assert torch.equal(two["context.categorical.tables.feature:surface.weight"], one["context.categorical.tables.feature:tab.weight"])
    assert torch.equal(two["embedding.action_value"].flip(0), one["embedding.action_value"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_are_stated_and_bf16_and_fp16_are_exact(dtype):
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder)
    weights = {name: tensor.to(dtype) for name, tensor in source.state_dict().items()}
    old, new = Side.of(source, encoder.vocabularies, stored=weights), Side.of(target, encoder.vocabularies)
    the_plan = plan(old, new)
    assert {fate.fate for fate in the_plan.fates} == {"cast"}
    assert {fate.dtype for fate in the_plan.fates} == {f"{str(dtype).removeprefix('torch.')} -> float32"}
    result = apply(the_plan, old, new, weights, target.state_dict())
    assert all(result[name].dtype == torch.float32 and torch.equal(result[name], weights[name].float()) for name in weights)


def test_a_quantised_export_is_refused_by_tensor():
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder)
    weights = dict(source.state_dict())
    weights["blocks.0.up.weight"] = weights["blocks.0.up.weight"].to(torch.int8)
    old, new = Side.of(source, encoder.vocabularies, stored=weights), Side.of(target, encoder.vocabularies)
    with pytest.raises(CheckpointError, match="no training checkpoint") as error:
        apply(plan(old, new), old, new, weights, target.state_dict())
    assert error.value.where == "blocks.0.up.weight"


def test_another_architecture_is_refused_or_keeps_what_means_the_same_and_says_that_it_is_not_exact():
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder, name="hstu")
    initial = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match="mean something else"):
        warm.transfer(encoder, source, encoder, target)
    the_plan, _ = warm.transfer(encoder, source, encoder, target, approximate=True)
    assert not the_plan.exact
    weights = target.state_dict()
    assert torch.equal(weights["embedding.item.weight"], source.state_dict()["embedding.item.weight"])
    assert torch.equal(weights["context.output"], source.state_dict()["context.output"])
    assert all(torch.equal(weights[name], initial[name]) for name in weights if name.startswith("blocks."))


def test_what_is_not_exact_must_be_asked_for_twice():
    for rule in ({"insert": "stack"}, {"shrink": 0.4}, {"perturb": 0.1}):
        with pytest.raises(ConfigError, match="asked for twice"):
            Rules(**rule)
        Rules(**rule, approximate=True)


@pytest.mark.parametrize("rule", [{"noise": 1.5}, {"coverage": {"trunks": 1.0}}, {"coverage": {"trunk": 2.0}}, {"new_ids": "kNN"}], ids=str)
def test_impossible_rules_are_refused(rule):
    with pytest.raises(ConfigError):
        Rules(**rule)


def test_stacked_layers_are_copies_and_are_said_not_to_be_exact():
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder, layers=5)
    the_plan, _ = warm.transfer(encoder, source, encoder, target, insert="stack", approximate=True)
    state, old = target.state_dict(), source.state_dict()
    for place, copied in enumerate((0, 1, 0, 1, 0)):
        assert torch.equal(state[f"blocks.{place}.out.weight"], old[f"blocks.{copied}.out.weight"])
    assert not the_plan.exact and any("stacked" in reason for reason in the_plan.inexact)
    assert (warm.outputs(encoder, target) - warm.outputs(encoder, source)).abs().max() > 1e-3


def test_the_report_is_a_table_a_person_reads(capsys):
    from rich.console import Console

    from trainer.fit.begin import transfer_report
    from trainer.warm_start import verify
    from trainer.warm_start.show import show

    old, new = small.encoder(), warm.reordered(small.encoder(), add=range(900, 1000))
    source = warm.build(old)
    target = warm.fresh(new, layers=4, dim=24, like=source)
    the_plan, sides = warm.transfer(old, source, new, target)
    pairs = [(warm.batch_of(old), warm.batch_of(new))]
    show(transfer_report(the_plan, verify(source, target, pairs, True), *sides), Console(width=160))
    shown = capsys.readouterr().out
    for words in ("blocks.{2-3}.up.weight", "inserted as identity", "100 from OOV", "x 0.8165", "exact: outputs differ", "must arrive"):
        assert words in shown, words
