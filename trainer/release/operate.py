"""`scripts/release.py`: what a person on call does to a registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.config import ReleaseRunConfig
from trainer.errors import ConfigError
from trainer.release.registry import Registry, RegistryStatus
from trainer.schema.release import HistoryEntry
from trainer.schema.verdict import PROMOTE

_HISTORY_LINES = 15


def run(config: ReleaseRunConfig) -> str:
    """Carries out one action on a registry and prints what the registry looks like then.

    Args:
        config: Registry, action, and what the action needs.

    Returns:
        One sentence: what happened.

    Raises:
        ConfigError: If the action lacks something, or is given something that it would ignore.
        RegistryError: If the registry refuses.
    """
    _check_used(config)
    registry = Registry(Path(config.registry.root), config.registry.product)
    sentence = _act(registry, config)
    console = Console(highlight=False, soft_wrap=True)
    status = registry.status()
    if config.action == "history":
        console.print(_lines([entry for entry in status.history if config.version in (None, entry.release)]))
    else:
        console.print(_table(status))
    console.print(escape(sentence))
    return sentence


def _act(registry: Registry, config: ReleaseRunConfig) -> str:
    match config.action:
        case "promote":
            return _promote(registry, config)
        case "rollback":
            before = registry.aliases().production
            after = registry.rollback(config.version, reason=config.reason)
            return f"Rolled back from {before} to {after.production}."
        case "freeze":
            registry.freeze(config.reason or "")
            return f"Promotions are frozen: {config.reason}."
        case "unfreeze":
            frozen = registry.aliases().frozen
            registry.unfreeze(config.reason)
            return "Promotions were not frozen." if frozen is None else f"Promotions are allowed again (they were frozen: {frozen})."
        case "reference":
            after = registry.refer_to(_needed(config, "version"), reason=config.reason)
            return f"{after.reference} is the reference."
        case "unreference":
            cleared = registry.aliases().reference
            registry.refer_to(None, reason=config.reason)
            return f"{cleared} is no longer the reference: the next release that goes live is." if cleared else "There was no reference."
        case "gc":
            return _retire(registry, config)
        case _:
            live = registry.aliases().production
            return f"{live} is live." if live else "Nothing is live."


def _retire(registry: Registry, config: ReleaseRunConfig) -> str:
    gone = registry.retire(int(_needed(config, "keep")), dry_run=config.dry_run, reason=config.reason)
    if not gone:
        return "Nothing to remove."
    would = "Would remove" if config.dry_run else "Removed"
    return f"{would} {len(gone)}: {', '.join(gone)}." + (" To do it: dry_run=false." if config.dry_run else "")


def _needed(config: ReleaseRunConfig, name: str) -> str:
    value = getattr(config, name)
    if value is None:
        raise ConfigError(f"action={config.action} needs this", where=name, remedy=f"give {name}=...")
    return str(value)


def _promote(registry: Registry, config: ReleaseRunConfig) -> str:
    status = registry.status()
    if config.version is None:
        ready = [state.id for state in status.versions if state.record and state.record.verdict == PROMOTE]
        raise ConfigError("which version?", where="version", expected=f"one of {', '.join(ready) or 'none: nothing is sealed'}")
    before = status.aliases
    after = registry.promote(config.version, before.revision, override=config.override, reason=config.reason)
    if after.revision == before.revision:
        return f"{config.version} is live already."
    return f"{config.version} is live (before: {before.production or 'nothing'})."


def _check_used(config: ReleaseRunConfig) -> None:
    """Refuses settings that the action would ignore."""
    uses: set[str] = {
        "promote": {"version", "reason", "override"}, "rollback": {"version", "reason"}, "freeze": {"reason"}, "unfreeze": {"reason"},
        "reference": {"version", "reason"}, "unreference": {"reason"}, "gc": {"keep", "dry_run", "reason"}, "history": {"version"},
        "status": set(),
    }[config.action]  # fmt: skip
    given = {name: getattr(config, name) is not None for name in ("version", "reason", "keep")}
    given |= {"override": config.override, "dry_run": not config.dry_run}
    for name in sorted(name for name, value in given.items() if value and name not in uses):
        raise ConfigError(f"action={config.action} does not use this setting", where=name, got=getattr(config, name), remedy="leave it out")


def _table(status: RegistryStatus) -> Table:
    aliases = status.aliases
    title = f"revision {aliases.revision}" + (f", FROZEN: {escape(aliases.frozen)}" if aliases.frozen else "")
    table = Table(title=title, caption=_lines(status.history[-_HISTORY_LINES:]), caption_justify="left", title_justify="left")
    for heading in ("version", "as of", "verdict", "parent", "alias"):
        table.add_column(heading)
    pointers = {"production": aliases.production, "previous": aliases.previous, "reference": aliases.reference}
    for state in status.versions:
        names = ", ".join(alias for alias, version in pointers.items() if version == state.id)
        record = state.record
        cells = (record.as_of, record.verdict, record.parent or "") if record else ("", state.problem or "", "")
        table.add_row(*(escape(text) for text in (state.id, *cells, names)), style="bold" if state.id == aliases.production else None)
    return table


def _lines(entries: Sequence[HistoryEntry]) -> str:
    """A line an event, newest last: when, what, which release or day, the verdict, why."""
    return "\n".join(escape("  ".join(word for word in _words(entry) if word)) for entry in entries)


def _words(entry: HistoryEntry) -> tuple[str, ...]:
    notes = ", ".join(f"{name}: {text}" for name, text in sorted(entry.notes.items()))
    return entry.at, entry.event, entry.release or entry.as_of or "", entry.verdict or "", notes, entry.reason or ""
