"""A run as the stages see it: its configuration, folder, registry, and the production it is based on."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from trainer.checkpoint import Bundle, read_bundle
from trainer.config import RetrainConfig
from trainer.days import choose_as_of
from trainer.errors import ConfigError, DataError, ExportError
from trainer.release import Registry
from trainer.run_dir import RunDir
from trainer.scan import discover_days
from trainer.schema.features import CounterSpec, FeatureSpec
from trainer.schema.plain import from_plain
from trainer.schema.time import day_end_ms


@dataclass
class Job:
    """A run as the stages see it.

    Attributes:
        config: The checked configuration; `as_of` is filled in.
        run: The run's folder.
        days: Days of the log up to `as_of`.
        registry: Where releases live.
        revision: Revision of the aliases that this run is based on: promotion compares and swaps on it.
        live: Version that was live when the run started.
        production: Its bundle, verified; None if nothing is live, or what is live predicts no action.
        reference: The frozen release's bundle; None if there is none or it is what is live.
        parent: What the challenger starts from: the live bundle, or None for a cold challenger.
    """

    config: RetrainConfig
    run: RunDir
    days: list[str]
    registry: Registry
    revision: int
    live: str | None
    production: Bundle | None
    reference: Bundle | None
    parent: Bundle | None

    @classmethod
    def open(cls, config: RetrainConfig) -> Job:
        """Opens the run: the registry first, because a broken one must stop us before anything is written."""
        registry = Registry(Path(config.registry.root), config.registry.product)
        aliases = registry.check()
        live = registry.production_path()
        bundle = read_bundle(live / "bundle") if live is not None else None
        frozen = registry.reference_path()
        days = discover_days(config.data)
        as_of = choose_as_of(config.as_of, days, config.data.root)
        config = replace(config, as_of=as_of)
        run = RunDir(config.run_dir, config)
        _claim(Path(config.rebuild.root))
        return cls(
            config=config,
            run=run,
            days=[day for day in days if day <= as_of],
            registry=registry,
            revision=aliases.revision,
            live=aliases.production,
            production=_scored(bundle),
            reference=_scored(read_bundle(frozen / "bundle") if frozen is not None else None),
            parent=bundle if config.warm_start.source == "production" else None,
        )

    @property
    def as_of(self) -> str:
        return self.config.as_of or ""

    @cached_property
    def known_until_ms(self) -> int:
        return day_end_ms(self.as_of, self.config.data.timezone)

    @cached_property
    def features(self) -> FeatureSpec:
        """The declared features, and those that production and the reference need to be scored."""
        joined = self.config.features
        for name, bundle in (("production", self.production), ("the reference", self.reference)):
            if bundle is not None:
                joined = _with_needed(joined, from_plain(FeatureSpec, bundle.manifest.features), name)
        return joined

    @property
    def max_history(self) -> int:
        scored = [bundle.manifest.inputs.max_history for bundle in (self.production, self.reference) if bundle is not None]
        return max(self.config.model.max_history, *scored, 0)


def _scored(bundle: Bundle | None) -> Bundle | None:
    """An imported next-item model predicts no action: the challenger starts from it, and is judged without it."""
    return bundle if bundle is not None and bundle.manifest.inputs.actions else None


_claims: list[int] = []  # lock files stay open until the process ends


def _claim(root: Path) -> None:
    """Keeps a second process off the same examples: vocabularies there belong to one run at a time."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        remedy = "give this user write access to it, or choose another rebuild.root"
        raise ExportError("the folder of the examples cannot be written", where=root, got=error.strerror, remedy=remedy) from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a process lock: this process may open the same root again
    except OSError as error:
        os.close(handle)
        raise DataError(
            "another run is using the same examples",
            where="rebuild.root",
            got=root,
            remedy="wait for it, or give this run a rebuild.root of its own",
        ) from error
    _claims.append(handle)


def _with_needed(declared: FeatureSpec, needed: FeatureSpec, owner: str) -> FeatureSpec:
    return replace(
        declared,
        counters=_joined(declared.counters, needed.counters, owner),
        auto=declared.auto or needed.auto,
        calendar=declared.calendar or needed.calendar,
        coverage=declared.coverage or needed.coverage,
    )


def _joined(declared: dict[str, CounterSpec], needed: dict[str, CounterSpec], owner: str) -> dict[str, CounterSpec]:
    for name, counter in needed.items():
        if name in declared and declared[name] != counter:
            raise ConfigError(
                f"a feature is declared otherwise than in {owner}'s bundle",
                where=f"features.counters.{name}",
                got=declared[name],
                expected=counter,
                remedy=f"a changed definition needs a new name; {owner} is still scored with the old one",
            )
    return {**declared, **{name: counter for name, counter in needed.items() if name not in declared}}
