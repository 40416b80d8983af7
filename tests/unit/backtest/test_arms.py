"""What an arm trains on and from, and what its settings may touch."""

import dataclasses
from types import SimpleNamespace

import pytest

from tests.integration.conftest import configure_backtest
from trainer.backtest.arms import Arm, arms_of
from trainer.backtest.run import _nights
from trainer.config import ArmConfig
from trainer.days import DayPlan
from trainer.errors import ConfigError

DAYS = ["2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05"]


def bundle(*trained):
    return SimpleNamespace(manifest=SimpleNamespace(trained=dict.fromkeys(trained, "hash")))


def plan(train):
    return DayPlan(as_of="2026-03-06", holdout=["2026-03-06"], train=train, seen=[], refused=[], unripe=[], usable=[*DAYS, "2026-03-06"])


def arm(**declared):
    return Arm("arm", 0, ArmConfig(**declared), None)


def test_only_a_cold_start_is_cut_to_its_window():
    assert arm(start="none", days=2).window(plan(DAYS), None).train == DAYS[-2:]
    assert arm(start="none").window(plan(DAYS), None).train == DAYS
    assert arm().window(plan(DAYS[3:]), bundle(*DAYS[:3])).train == DAYS[3:]


def test_what_goes_on_from_a_window_does_not_reach_behind_it_but_learns_repaired_days():
    own = bundle("2026-03-03", "2026-03-04")
    assert arm(start="none", days=2).window(plan(["2026-03-02", "2026-03-04", "2026-03-05"]), own).train == ["2026-03-04", "2026-03-05"]


@pytest.mark.parametrize(
    ("declared", "first", "later"),
    [
        ({"start": "production"}, ("production", True), ("own", True)),
        ({"start": "production", "then": "again"}, ("production", True), ("production", True)),
        ({"start": "production", "then": "freeze"}, ("production", False), ("own", False)),
        ({"start": "none"}, (None, True), ("own", True)),
        ({"start": "none", "then": "again"}, (None, True), (None, True)),
        ({"start": "none", "then": "freeze"}, (None, True), ("own", False)),
    ],
)
def test_where_each_night_starts(declared, first, later):
    production, own = bundle(DAYS[0]), bundle(DAYS[1])
    names = {id(production): "production", id(own): "own", id(None): None}
    subject = arm(**declared)
    assert (names[id(subject.parent(production))], subject.trains) == first
    subject.bundle = own
    assert (names[id(subject.parent(production))], subject.trains) == later


def test_settings_lie_over_the_configuration_and_nothing_else_changes():
    config = configure_backtest("arms.warm_grown.settings.model.layers=3", "arms.warm_grown.seeds=2", "seed=5")
    arms = {found.label: found for found in arms_of(config)}
    grown = arms["warm_grown-seed6"].config
    assert grown.model == dataclasses.replace(config.model, layers=3) and grown.seed == 6 and "warm_grown-seed5" in arms
    assert grown.optimizer == config.optimizer and grown.data == config.data
    assert next(iter(arms)) == "production_continued-seed5", "the others distil from what it served the night before"


@pytest.mark.parametrize(
    ("override", "where", "told"),
    [
        ("arms.warm_grown.settings.modle.layers=3", "arms.warm_grown.settings", "model, optimizer"),
        ("arms.warm_grown.settings.model.layer=3", "arms.warm_grown.settings.model.layer", "'layers'"),
        ("arms.warm_grown.settings.data.root=/elsewhere", "arms.warm_grown.settings", "model, optimizer"),
    ],
)
def test_settings_that_name_nothing_or_what_all_share_are_refused(override, where, told):
    with pytest.raises(ConfigError) as error:
        arms_of(configure_backtest(override))
    assert error.value.where == where and told in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "baseline=production_continues", "reference=warm_grown", "baseline=scratch_all", "nights=0", "tolerance=0", "behind=-1",
        "arms.warm_grown.start=productoin",
        "arms.warm_grown.reference=scratch", "arms.warm_grown.reference=production_frozen",
        "arms.warm_grown.then=stop", "arms.warm_grown.days=3", "arms.scratch_all.days=-1",
    ],
)  # fmt: skip
def test_an_impossible_backtest_is_refused(override):
    with pytest.raises(ConfigError):
        configure_backtest(override)


@pytest.mark.parametrize(("settings", "found"), [({}, [2, 3, 4]), ({"behind": 1}, [1, 3, 4]), ({"nights": 1, "behind": 2}, [1, 4])])
def test_production_may_be_further_behind(settings, found):
    days = [*DAYS, "2026-03-06"]
    health = SimpleNamespace(days={day: SimpleNamespace(status="ok") for day in days})
    config = SimpleNamespace(**{"nights": 2, "behind": 0, **settings})
    assert _nights(SimpleNamespace(health=health, config=config)) == [days[number] for number in found]
