"""`scripts/suite.py`: add, list, run and remove suites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from trainer.config import SuiteRunConfig
from trainer.errors import ConfigError, RegistryError, nearest
from trainer.gate.suites import settle_suites
from trainer.release import Registry
from trainer.schema.suite import KINDS, SUITES, Suite
from trainer.schema.validate import choice
from trainer.schema.verdict import Check
from trainer.suites.build import build, needed
from trainer.suites.capture import read_run
from trainer.suites.score import Model, collect
from trainer.suites.store import SuiteStore

Models = Callable[[Path, Path | None], Mapping[str, Model]]

_USES = {
    "add": {"name", "kind", "from_run", "where", "check", "margin", "reason", "note", "author", "as_of", "rows"},
    "remove": {"name", "reason"}, "run": {"from_run", "name"}, "list": set(),
}  # fmt: skip


def run(config: SuiteRunConfig, models: Models) -> list[Check]:
    """Carries out one action on the suites of a product and prints what came of it.

    Args:
        config: Registry, action, and what the action needs.
        models: Loads two bundles: the challenger's, and production's or null; called only to score golden rows.

    Returns:
        The checks of ``action=run``; else nothing.

    Raises:
        ConfigError: If the action lacks something, is given something that it would ignore, or the suite could not work.
        DataError: If the run cannot be read or its examples are gone.
        RegistryError: If a suite does not exist or is damaged.
    """
    _check_used(config)
    registry = Registry(Path(config.registry.root), config.registry.product)
    store, console = SuiteStore(registry.folder / SUITES), Console(highlight=False, soft_wrap=True)
    checks: list[Check] = []
    match config.action:
        case "add":
            suite = _add(config, store)
            registry.record_event("suite added", reason=suite.reason, notes={"suite": suite.name})
            console.print(escape(f"Added {suite.title}: {_demand(suite)}."))
        case "remove":
            name, reason = needed(config, "name"), needed(config, "reason")
            store.remove(name)
            registry.record_event("suite removed", reason=reason, notes={"suite": name})
            console.print(escape(f"Removed suite {name}: {reason}."))
        case "run":
            checks = _run(config, registry, store, models)
            console.print(*(escape(f"{check.outcome:<14}{check.sentence}") for check in checks), sep="\n")
        case _:
            console.print(*(escape(text) for text in _listed(store)), f"{len(store.names())} suites", sep="\n")
    return checks


def _add(config: SuiteRunConfig, store: SuiteStore) -> Suite:
    choice("kind", needed(config, "kind"), KINDS)
    run = None if config.from_run is None else read_run(Path(config.from_run))
    return store.add(*build(config, run))


def _run(config: SuiteRunConfig, registry: Registry, store: SuiteStore, models: Models) -> list[Check]:
    """Judges a run's challenger against what is live now."""
    run = read_run(Path(needed(config, "from_run")))
    if config.name is not None and config.name not in store.names():
        raise RegistryError("no such suite", where=store.folder, got=config.name, remedy=nearest(config.name, store.names()))

    def load() -> Mapping[str, Model]:
        live = registry.production_path()
        return models(run.path / "challenger", live / "bundle" if live else None)

    cases = collect(store, load, run.weights, [config.name] if config.name else None)
    return settle_suites(cases, run.predictions, run.policy, run.weights, run.seed)


def _check_used(config: SuiteRunConfig) -> None:
    """Refuses settings that the action would ignore."""
    for setting in dataclasses.fields(config):
        value, idle = getattr(config, setting.name), setting.name not in _USES[config.action] | {"registry", "action"}
        if idle and value != setting.default:
            raise ConfigError(f"action={config.action} does not use this setting", where=setting.name, got=value, remedy="leave it out")


def _demand(suite: Suite) -> str:
    rows = suite.where if suite.source is None else f"{suite.source.rows:,} rows of {suite.source.users:,} users, {suite.source.as_of}"
    return f"{suite.metric} of {suite.action} within {suite.margin:g} of production on {rows}"


def _listed(store: SuiteStore) -> Iterator[str]:
    """Two lines a suite: what it demands, and why and by whom it was added."""
    for name in store.names():
        try:
            suite = store.read(name)
        except RegistryError as error:
            yield f"{name}  damaged: {error.what}"
            continue
        by = ", ".join(word for word in (suite.added, suite.author) if word)
        yield f"{suite.name}  {suite.kind}  {_demand(suite)}\n    {suite.reason}{f'; {suite.note}' if suite.note else ''} ({by})"
