"""What a checkpoint of other code is as a ranker of ours, and where each of the ranker's tensors comes from.

model:                                      # trainer.config.ModelConfig: the ranker
  name: sasrec
  dim: 32
rows: {first: 1}                            # source row of the first id; `oov`: source row for unknown ids, if it has one
tensors:                                    # tensor of the ranker: where it comes from; * stands for the same text on both sides
  embedding.item.weight: item_emb.weight
  blocks.*.query.weight: layers.*.in_proj_weight[0/3]     # the first of three equal parts of the first dimension
  embedding.position: pos_emb.weight * 0.5
  blocks.*.scale: = initial                 # what a fresh ranker has there
  embedding.gap: = zero
ignore: ["*.num_batches_tracked"]           # tensors of the checkpoint that are left behind
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch import Tensor

from models.ranker import Ranker
from trainer.config import ModelConfig, load
from trainer.errors import CheckpointError, ConfigError, nearest
from trainer.schema.inputs import InputSpec
from trainer.schema.vocabulary import OOV_ROW, PAD_ROW, RESERVED_ROWS

_SOURCE = re.compile(r"^(?P<name>[^\s\[\]=]+)(?:\[(?P<part>\d+)/(?P<parts>\d+)\])?(?:\s*\*\s+(?P<factor>[-+.\deE]+))?$")
CONSTANTS = ("zero", "one", "initial")


@dataclass(frozen=True, kw_only=True)
class RowMap:
    """Where the rows of a table lie in the checkpoint.

    Attributes:
        first: Row of the vocabulary's first id.
        oov: Row for unknown ids; None if there is none: unknown ids then start as the mean of all.
        after: Rows behind the last id that are left behind (padding, masks).
    """

    first: int = 0
    oov: int | None = None
    after: int = 0


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """See the module's text.

    Attributes:
        model: The ranker.
        tensors: Tensor of the ranker (globs) -> source.
        rows: Rows of the tables.
        ignore: Globs of source tensors that are left behind.
        root: Key of the state dict in a torch file, if it is not the file itself.
        inputs: What the ranker reads and predicts; None for a pure next-item ranker.
        vocabularies: Files of the vocabularies besides the items', by name; relative to the names file.
    """

    model: ModelConfig
    tensors: dict[str, str]
    rows: RowMap = field(default_factory=RowMap)
    ignore: list[str] = field(default_factory=list)
    root: str | None = None
    inputs: InputSpec | None = None
    vocabularies: dict[str, str] = field(default_factory=dict)

    def ignores(self, name: str) -> bool:
        """Tells whether a tensor of the checkpoint is left behind."""
        return _rule(name, self.ignore)[0] is not None


def read_names(file: Path) -> NameMap:
    """Reads a name map.

    Raises:
        ConfigError: If it is no YAML mapping, or a key is unknown.
    """
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("cannot read the names", where=file, got=str(error)) from error
    return load(NameMap, values, "names")


def rename(names: NameMap, source: dict[str, Tensor], ranker: Ranker, where: Path) -> dict[str, Tensor]:
    """Builds the ranker's tensors from a checkpoint's.

    Args:
        names: The map.
        source: The checkpoint's tensors.
        ranker: A fresh ranker of the map's model.
        where: The checkpoint, for messages.

    Returns:
        Every tensor of the ranker, once.

    Raises:
        CheckpointError: If a tensor of either side is left over, a rule is never used, or a shape does not fit. The tensor is named.
    """
    initial, axes = ranker.state_dict(), ranker.axes()
    used_rules: set[str] = set()
    used_tensors: set[str] = set()
    result: dict[str, Tensor] = {}
    for name, fresh in initial.items():
        rule, star = _rule(name, names.tensors)
        if rule is None:
            raise CheckpointError(
                "the names do not say where a tensor comes from", where=name, expected="a rule under `tensors`",
                remedy=f"write `{name}: SOURCE`, or `{name}: = zero`; {nearest(name, source)}",
            )  # fmt: skip
        used_rules.add(rule)
        text = names.tensors[rule].replace("*", star, 1) if "*" in rule else names.tensors[rule]
        if text.startswith("="):
            result[name] = _constant(text.removeprefix("=").strip(), fresh, name)
            continue
        found, value = _source(text, source, name, where)
        used_tensors.add(found)
        if axes[name][0].startswith("vocab:"):
            value = _rows(value, names.rows, len(fresh), f"{where}: {found}")
        if value.shape != fresh.shape:
            raise CheckpointError(
                "a tensor has another shape than the ranker's", where=f"{where}: {found} (for {name})", got=tuple(value.shape),
                expected=tuple(fresh.shape), remedy="correct `model`, or the part that the rule takes",
            )  # fmt: skip
        result[name] = value
    _check_leftover(names, source, used_rules, used_tensors, where)
    return result


def _rule(name: str, rules: Iterable[str]) -> tuple[str | None, str]:
    """Returns the rule for a tensor and what its star stands for; an exact name comes before a glob, a longer glob before a shorter."""
    for rule in sorted(rules, key=lambda text: ("*" in text, -len(text))):
        if (match := re.fullmatch(re.escape(rule).replace(r"\*", "(.+?)", 1), name)) is not None:
            return rule, match.group(1) if match.groups() else ""
    return None, ""


def _constant(text: str, fresh: Tensor, name: str) -> Tensor:
    match = _SOURCE.match(text)
    if match is None or match["name"] not in CONSTANTS or match["parts"]:
        raise CheckpointError("unknown constant", where=f"names: {name}", got=text, remedy=nearest(text, CONSTANTS))
    value = fresh if match["name"] == "initial" else torch.full_like(fresh, float(match["name"] == "one"))
    return value * float(match["factor"] or 1)


def _source(text: str, source: dict[str, Tensor], name: str, where: Path) -> tuple[str, Tensor]:
    match = _SOURCE.match(text)
    if match is None:
        raise CheckpointError(
            "a rule cannot be read", where=f"names: {name}", got=text, expected="NAME, NAME[i/n], NAME * factor or = zero"
        )
    found = match["name"]
    if found not in source:
        raise CheckpointError("the checkpoint has no such tensor", where=f"{where}: {found} (for {name})", remedy=nearest(found, source))
    value = source[found]
    if match["parts"] is not None:
        part, parts = int(match["part"]), int(match["parts"])
        if not 0 <= part < parts or not value.ndim or len(value) % parts:
            raise CheckpointError("a tensor has no such part", where=f"{where}: {found}", got=f"[{part}/{parts}] of {tuple(value.shape)}")
        value = value.chunk(parts)[part]
    return found, value * float(match["factor"]) if match["factor"] else value.clone()


def _rows(value: Tensor, rows: RowMap, wanted: int, where: str) -> Tensor:
    """Lays out a table's rows: padding (zero), unknown ids, then the ids in vocabulary order."""
    ids = wanted - RESERVED_ROWS
    if len(value) != rows.first + ids + rows.after:
        raise CheckpointError(
            "the table and the vocabulary do not belong together", where=where, got=f"{len(value)} rows",
            expected=f"{rows.first} before the first id + {ids} ids + {rows.after} after the last",
            remedy="give the vocabulary that this checkpoint was trained with, in row order; correct `rows`",
        )  # fmt: skip
    table = value.new_zeros(wanted, *value.shape[1:])
    table[RESERVED_ROWS:] = value[rows.first : rows.first + ids]
    table[OOV_ROW] = table[RESERVED_ROWS:].mean(0) if rows.oov is None else value[rows.oov]
    table[PAD_ROW] = 0
    return table


def _check_leftover(names: NameMap, source: dict[str, Tensor], used_rules: set[str], used_tensors: set[str], where: Path) -> None:
    for rule in names.tensors:
        if rule not in used_rules:
            raise CheckpointError("a rule was never used", where=f"names: tensors.{rule}", remedy="correct or remove it")
    ignored = {glob: [name for name in source if _rule(name, [glob])[0]] for glob in names.ignore}
    for glob, matched in ignored.items():
        if not matched:
            raise CheckpointError("a rule was never used", where=f"names: ignore {glob}", remedy="correct or remove it")
    left = sorted(set(source) - used_tensors - {name for matched in ignored.values() for name in matched})
    if left:
        raise CheckpointError(
            "a tensor of the checkpoint goes nowhere", where=f"{where}: {left[0]}", got=f"{len(left)} such tensors",
            remedy="say where it goes under `tensors`; only what has no effect on the scores may be listed under `ignore`",
        )  # fmt: skip
