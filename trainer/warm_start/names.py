"""Which tensor of production becomes which tensor of the challenger: rename rules and places of layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainer.errors import ConfigError
from trainer.schema.logs import whole_name
from trainer.warm_start.side import Side

_BLOCK = re.compile(r"^((?:.*\.)?(?:blocks|layers))\.(\d+)\.(.+)$")
_FEATURE = re.compile(r"(?<=feature:)[^.]+")


def layer_of(name: str) -> tuple[str, int, str] | None:
    """Splits a tensor of a stack of layers into (stack, place, rest)."""
    match = _BLOCK.match(name)
    return (match[1], int(match[2]), match[3]) if match else None


@dataclass
class Renames:
    """Rename rules at work; remembers which of them renamed something.

    Attributes:
        rules: Glob in production -> name in the challenger.
        used: Rules that matched.
    """

    rules: Mapping[str, str]
    used: set[str] = field(default_factory=set)

    def __call__(self, name: str, known: Iterable[str]) -> str:
        """Returns the challenger's name of something that production calls `name`.

        A rule counts only if the challenger knows the new name. A key of two parts (``watch/mu``) is renamed by its first, a part of a
        list or vector (``tags[0]``) with all of it.
        """
        first, slash, rest = name.partition("/")
        listed = whole_name(name)
        for rule, replacement in self.rules.items():
            for whole, tail in ((name, ""), (first, slash + rest), (listed, name.removeprefix(listed))):
                renamed = _substituted(rule, replacement, whole)
                if renamed is not None and renamed + tail in known:
                    self.used.add(rule)
                    return renamed + tail
        return name

    def tensor(self, name: str, known: Iterable[str]) -> str:
        """Returns the challenger's name of a tensor: by its whole name, else by the feature that it belongs to."""
        renamed = self(name, known)
        feature = _FEATURE.search(name)
        if renamed != name or feature is None:
            return renamed
        key = feature[0].replace("%2E", ".").replace("%25", "%")
        for rule, replacement in self.rules.items():
            new = _substituted(rule, replacement, key)
            if new is not None and (moved := _FEATURE.sub(new.replace("%", "%25").replace(".", "%2E"), name, count=1)) in known:
                self.used.add(rule)
                return moved
        return name

    def refuse_unused(self) -> None:
        """Raises if a rule renamed nothing: a typo would silently leave a tensor behind.

        Raises:
            ConfigError: Naming the rule.
        """
        for rule in self.rules:
            if rule not in self.used:
                raise ConfigError(
                    "a rename rule is unused: production has no such name, or the challenger does not have the new one",
                    where="warm_start.rename",
                    got=f"{rule}: {self.rules[rule]}",
                    remedy="warm_start.dry_run=true lists the names of both sides",
                )


def _substituted(rule: str, replacement: str, name: str) -> str | None:
    """Applies one rule; what its stars matched fills the stars of the replacement."""
    match = re.fullmatch("(.*)".join(map(re.escape, rule.split("*"))), name)
    if match is None:
        return None
    parts = replacement.split("*")
    if len(parts) - 1 > len(match.groups()):
        raise ConfigError("a rename has more stars than its pattern", where="warm_start.rename", got=f"{rule}: {replacement}")
    return "".join(part + (match[index + 1] if index < len(parts) - 1 else "") for index, part in enumerate(parts))


@dataclass(frozen=True)
class Origins:
    """Where each tensor of the challenger comes from.

    Attributes:
        source: Tensor of the challenger -> tensor of production, one to one.
        inserted: Tensors of added layers.
        template: Tensor of an added layer -> its like in production, if any: what a stacked layer copies, and whose second
            moments an inserted one starts with.
        left: Tensors of production without a place -> why.
    """

    source: dict[str, str]
    inserted: set[str]
    template: dict[str, str]
    left: dict[str, str]


def origins(source: Side, target: Side, renames: Renames, insert_at: Mapping[str, list[int]]) -> Origins:
    """Matches the tensors of both sides by name, through rename rules and places of layers.

    Raises:
        ConfigError: If two tensors would get one name, or a place of an added layer is impossible.
    """
    renamed: dict[str, str] = {}
    for name in source.shapes:
        new = renames.tensor(name, target.shapes)
        if new in renamed:
            raise ConfigError(
                "two tensors of production would become one", where="warm_start.rename", got=f"{renamed[new]} and {name}", expected=new
            )
        renamed[new] = name
    places = {stack: _places(stack, *counts, insert_at) for stack, counts in _stacks(renamed, target).items()}
    _refuse_unknown(insert_at, places)
    found: dict[str, str] = {}
    inserted: set[str] = set()
    template: dict[str, str] = {}
    for name in target.shapes:
        layer = layer_of(name)
        if layer is None:
            if name in renamed:
                found[name] = renamed[name]
            continue
        stack, place, rest = layer
        before, copied = places[stack][place]
        wanted = f"{stack}.{before if before >= 0 else copied}.{rest}"
        if before < 0:
            inserted.add(name)
        if wanted in renamed:
            (found if before >= 0 else template)[name] = renamed[wanted]
    used = set(found.values())
    return Origins(found, inserted, template, {name: _why_left(name, renamed, places) for name in source.shapes if name not in used})


def _stacks(renamed: Iterable[str], target: Side) -> dict[str, tuple[int, int]]:
    """Returns the stacks of layers -> (layers of production, layers of the challenger)."""
    counts: dict[str, list[int]] = {}
    for side, names in enumerate((renamed, target.shapes)):
        for stack, place, _ in filter(None, map(layer_of, names)):
            count = counts.setdefault(stack, [0, 0])
            count[side] = max(count[side], place + 1)
    return {stack: (before, after) for stack, (before, after) in counts.items()}


def _places(stack: str, before: int, after: int, insert_at: Mapping[str, list[int]]) -> list[tuple[int, int]]:
    """Returns, for each layer of the challenger, (layer of production or -1, layer of production that a stacked copy takes)."""
    new = insert_at.get(stack, list(range(before, after)))
    if stack in insert_at and (len(new) != after - before or len(set(new)) != len(new) or any(not 0 <= place < after for place in new)):
        raise ConfigError(
            "places of added layers do not fit",
            where=f"warm_start.insert_at.{stack}",
            got=new,
            expected=f"{max(after - before, 0)} different places from 0 to {after - 1}",
        )
    old, added, result = 0, 0, []
    for place in range(after):
        if place in new:
            result.append((-1, added % max(before, 1)))  # G_stack's order: the trained stack once more (Du et al. 2024, arXiv 2405.15319)
            added += 1
        else:
            result.append((old, old))
            old += 1
    return result


def _refuse_unknown(insert_at: Mapping[str, list[int]], places: Mapping[str, object]) -> None:
    for stack in insert_at:
        if stack not in places:
            raise ConfigError(
                "there is no such stack of layers", where="warm_start.insert_at", got=stack, expected=" or ".join(sorted(places)) or "none"
            )


def _why_left(name: str, renamed: Mapping[str, str], places: Mapping[str, list[tuple[int, int]]]) -> str:
    new = next(new for new, old in renamed.items() if old == name)
    layer = layer_of(new)
    if layer and layer[0] in places and layer[1] >= len(places[layer[0]]):
        return f"the challenger has only {len(places[layer[0]])} {layer[0]}"
    return "the challenger has no such tensor"
