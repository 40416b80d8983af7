"""`scripts/release.py`: what a person on call does to a registry."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.config import ReleaseRunConfig
from trainer.errors import ConfigError
from trainer.release.registry import Registry, RegistryStatus
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
    console.print(_table(registry.status()))
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
        case _:
            live = registry.aliases().production
            return f"{live} is live." if live else "Nothing is live."


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
    uses = {
        "promote": {"version", "reason", "override"}, "rollback": {"version", "reason"}, "freeze": {"reason"}, "unfreeze": {"reason"},
        "status": set(),
    }[config.action]  # fmt: skip
    given = {"version": config.version is not None, "reason": config.reason is not None, "override": config.override}
    for name in sorted(name for name, value in given.items() if value and name not in uses):
        raise ConfigError(f"action={config.action} does not use this setting", where=name, got=getattr(config, name), remedy="leave it out")


def _table(status: RegistryStatus) -> Table:
    aliases = status.aliases
    title = f"revision {aliases.revision}" + (f", FROZEN: {escape(aliases.frozen)}" if aliases.frozen else "")
    table = Table(title=title, caption=_recent(status), caption_justify="left", title_justify="left")
    for heading in ("version", "as of", "verdict", "parent", "alias"):
        table.add_column(heading)
    pointers = {"production": aliases.production, "previous": aliases.previous, "reference": aliases.reference}
    for state in status.versions:
        names = ", ".join(alias for alias, version in pointers.items() if version == state.id)
        record = state.record
        cells = (record.as_of, record.verdict, record.parent or "") if record else ("", state.problem or "", "")
        table.add_row(*(escape(text) for text in (state.id, *cells, names)), style="bold" if state.id == aliases.production else None)
    return table


def _recent(status: RegistryStatus) -> str:
    lines = []
    for entry in status.history[-_HISTORY_LINES:]:
        words = [entry.at, entry.event, entry.release or entry.as_of or "", entry.verdict or "", entry.reason or ""]
        lines.append(escape("  ".join(word for word in words if word)))
    return "\n".join(lines)
