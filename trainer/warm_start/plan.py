"""The transfer plan: what happens to every tensor of both sides. Pure: reads names, shapes, axes and keys, never weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from trainer.errors import CheckpointError, ConfigError, nearest
from trainer.schema.hashed import HashedVocabulary
from trainer.schema.transfer import FAMILIES, Rules, TensorFate, TransferPlan
from trainer.warm_start.names import Origins, Renames, layer_of, origins
from trainer.warm_start.places import KEYED, STREAMS, Pair, Place, is_keyed
from trainer.warm_start.side import Side

BLOCKS = ("blocks.", "rotary.")  # what two architectures may both have, and mean something else by
_FOLDED = {  # table of a removed feature -> what every input meets instead, and what must not
    "context.categorical.": (("context.gap", 1),),
    "embedding.item_features.": (("embedding.item.weight", 1),),
    "embedding.token_features.": (("embedding.gap", 1), ("embedding.bos", -1)),
}


def plan(source: Side, target: Side, rules: Rules | None = None) -> TransferPlan:
    """Plans the transfer.

    Args:
        source: Production.
        target: The challenger, freshly initialised.
        rules: What a person decides; by default new ids start as OOV and nothing inexact is allowed.

    Returns:
        Exactly one fate a tensor of either side. What cannot keep production's outputs is `refused`, with the reason;
        `apply` will not run such a plan.

    Raises:
        ConfigError: If a rename rule is unused or makes two tensors one, a place of an added layer is impossible, new ids are to
            start as neighbours and items have no feature, or a vocabulary is named that the challenger does not have.
        CheckpointError: If a tensor does not have the size of its keys.
    """
    rules = rules or Rules()
    _check_starts(source, target, rules)
    renames = Renames(rules.rename)
    found = origins(source, target, renames, rules.insert_at)
    fates = [_fate(name, source, target, found, renames, rules) for name in target.shapes]
    used = {fate.source for fate in fates}
    fates += [_left(name, found.left.get(name, ""), source, target, rules) for name in source.shapes if name not in used]
    renames.refuse_unused()
    fates = list(_folded(fates))
    inexact = list(dict.fromkeys(_inexact(fates, source, target, rules)))
    return TransferPlan(
        source=source.sha256,
        rules=rules,
        fates=fates,
        elements=_elements(fates, [fate.shape for fate in fates]),
        source_elements=_elements(*zip(*((fate, source.shapes[fate.source]) for fate in fates if fate.source), strict=True)),
        coverage=_coverage(fates, source),
        exact=not inexact,
        inexact=inexact,
    )


def _check_starts(source: Side, target: Side, rules: Rules) -> None:
    """Raises if new ids can have no neighbours, for all of them would start as OOV without a word, or a choice is nobody's."""
    items = target.items[0] if target.items else "item"
    for name, start in rules.new_ids_by.items():
        if name not in target.vocabularies:
            raise ConfigError(
                "the challenger has no such vocabulary", where="warm_start.new_ids_by", got=name, remedy=nearest(name, target.vocabularies)
            )
        if isinstance(target.vocabularies[name], HashedVocabulary):
            raise ConfigError("a hashed vocabulary has no new ids", where="warm_start.new_ids_by", got=name, remedy="leave it out")
        if start == "neighbours" and name != items:
            raise ConfigError(
                "only items have features by which new ids find neighbours", where=f"warm_start.new_ids_by.{name}", got=start,
                expected=f"{items}: neighbours",
            )  # fmt: skip
    if rules.start_of(items) != "neighbours":
        return
    known, asked = ({*side.items[1].column_names} - {"item"} if side.items else set() for side in (source, target))
    if not known & asked:
        raise ConfigError(
            "new ids cannot start as their neighbours: no feature of items is known to both sides",
            where="warm_start.new_ids",
            got=f"production knows {', '.join(sorted(known)) or 'none'}, the challenger {', '.join(sorted(asked)) or 'none'}",
            remedy="warm_start.new_ids=oov",
        )


def pair(fate: TensorFate, source: Side, target: Side, rules: Rules) -> Pair:
    """Returns both sides of a fate's tensor: what `apply` and `carry_moments` take the places of entries from."""
    name = fate.target or ""
    return Pair(source, target, fate.source or fate.copy_of or "", name, Renames(rules.rename), _start(name, target, rules))


def _start(name: str, target: Side, rules: Rules) -> str:
    axis = next(iter(target.axes[name]), "")
    hashed = isinstance(target.vocabularies.get(axis.removeprefix("vocab:")), HashedVocabulary)
    return "oov" if hashed else rules.start_of(axis)  # what production did with the ids of an empty bucket: it knew none of them


def refused(transfer: TransferPlan) -> None:
    """Raises if a plan refuses a tensor, or too little of production arrives.

    Raises:
        CheckpointError: Naming the first refused tensor and why, or the family of tensors that falls short.
    """
    wrong = [fate for fate in transfer.fates if fate.fate == "refused"]
    if wrong:
        count = f"{len(wrong)} tensor{'s' * (len(wrong) > 1)}"
        raise CheckpointError(
            f"the warm start is refused: {count} cannot be carried over",
            where=wrong[0].target or wrong[0].source,
            got=wrong[0].reason,
            remedy="name what was renamed in warm_start.rename, change the model so that it extends production's, allow a measured "
            "difference with warm_start.approximate=true, learn from production's scores with distill=production, or start with "
            "warm_start=none",
        )
    for family, got in transfer.coverage.items():
        wanted = transfer.rules.coverage.get(family, 0.0)
        if got < wanted and not transfer.rules.approximate:
            raise CheckpointError(
                f"the warm start is refused: too little of production's {family} arrives",
                where=f"family {family}: {_lost(transfer, family)}",
                got=f"{got:.4f} of its elements, rows weighted by traffic",
                expected=f"at least {wanted:g} (warm_start.coverage.{family})",
                remedy="name what was renamed in warm_start.rename, lower the threshold if the loss is meant, or set "
                "warm_start.approximate=true",
            )


def _lost(transfer: TransferPlan, family: str) -> str:
    names = [fate.source for fate in transfer.fates if fate.family == family and fate.source and fate.carried < 1]
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fate(name: str, source: Side, target: Side, found: Origins, renames: Renames, rules: Rules) -> TensorFate:
    blank = TensorFate(
        target=name, source=None, fate="initialised", shape=list(target.shapes[name]), family=family(name, target.axes[name])
    )
    origin = found.source.get(name)
    other = source.architecture != target.architecture and name.startswith(BLOCKS)
    if other:
        reason = f"blocks of {source.architecture} mean something else"
        return replace(blank, reason=reason) if rules.approximate else replace(blank, fate="refused", source=origin, reason=reason)
    stacked = rules.insert == "stack" and name in found.inserted and name in found.template
    like = origin or found.template.get(name, "")
    if origin is None and not stacked:
        return _fresh(blank, source, target, found, rules)
    both = Pair(source, target, like, name, renames, _start(name, target, rules))
    why = _mismatch(both, found) or both.refusal()
    if why and not rules.approximate:
        return replace(blank, source=origin, fate="refused", reason=why)
    if not _same_axes(both) or (both.match is not None and both.match.stranger):
        return replace(blank, reason=f"fresh: {why}")
    return _carried(blank, both, stacked, why or (both.match.reason if both.match is not None else ""))


def _carried(blank: TensorFate, both: Pair, stacked: bool, reason: str) -> TensorFate:
    """A tensor that takes entries from production: one dimension at a time."""
    places = both.places()
    axes = both.axes
    moves = [place.move(axis) for axis, place in zip(axes, places, strict=True) if place.moves]
    dtypes = (both.source.dtypes[both.old], both.target.dtypes[both.new])
    if moves and any(not is_keyed(move.axis) and move.dropped for move in moves):
        fate = "shrunk"
    elif any(not is_keyed(move.axis) for move in moves):
        fate = "grown"
    elif any(place.pool is not None for place in places):
        fate = "merged"
    elif moves:
        fate = "row-remapped"
    else:
        fate = "renamed" if both.old != both.new and not stacked else "cast" if dtypes[0] != dtypes[1] else "copied"
    return replace(
        blank,
        source=None if stacked else both.old,
        copy_of=both.old if stacked else None,
        fate=fate,
        moves=moves,
        dtype="" if dtypes[0] == dtypes[1] else f"{dtypes[0]} -> {dtypes[1]}",
        reason=f"a second copy of {both.old}" if stacked else reason,
        carried=0.0 if stacked else float(np.prod([_arrives(axis, place) for axis, place in zip(axes, places, strict=True)])),
    )


def _arrives(axis: str, place: Place) -> float:
    if axis.startswith("vocab:"):
        return place.coverage
    return float(place.arrived().mean()) if place.size else 1.0


def _mismatch(both: Pair, found: Origins) -> str | None:
    """Returns why the tensor's function differs although its shape may not, or None."""
    source, target = both.source, both.target
    if not _same_axes(both):
        return f"its dimensions mean {', '.join(both.axes)}, in production {', '.join(source.axes[both.old])}"
    if not source.dtypes[both.old].startswith(("float", "bfloat")) and source.dtypes[both.old] != target.dtypes[both.new]:
        return f"production stores {source.dtypes[both.old]}: a quantised export is no training checkpoint"
    for option, value in source.options.items():
        if both.new.startswith((*BLOCKS, "norm.", "embedding.bos")) and target.options.get(option) != value:
            return f"{option} is {target.options.get(option)}, in production {value}: the same weights compute something else"
    new, old = layer_of(both.new), layer_of(both.old)
    if new and old and new[0] == "blocks" and new[1] < target.normed_layers:
        if both.new in found.inserted:
            return "an added layer that hands on the normalised stream cannot be the identity"
        if old[1] >= source.normed_layers:
            return "this layer hands on the normalised stream, in production it does not"
    elif new and old and new[0] == "blocks" and both.new not in found.inserted and old[1] < source.normed_layers:
        return "this layer handed on the normalised stream in production"
    return None


def _same_axes(both: Pair) -> bool:
    """Whether each dimension means the same, also where a vocabulary was renamed."""
    old = [
        f"vocab:{both.renames(axis[6:], both.target.vocabularies)}" if axis.startswith("vocab:") else axis
        for axis in both.source.axes[both.old]
    ]
    return old == list(both.axes)


def _fresh(blank: TensorFate, source: Side, target: Side, found: Origins, rules: Rules) -> TensorFate:
    """A tensor that production does not have: part of an added layer, a new feature's table, or something else new."""
    name, axes = blank.target or "", target.axes[blank.target or ""]
    zero = writes_stream(name, target)
    if name in found.inserted:
        layer = layer_of(name)
        if layer and layer[0] == "blocks" and layer[1] < target.normed_layers and not rules.approximate:
            return replace(blank, fate="refused", reason="an added layer that hands on the normalised stream cannot be the identity")
        reason = "output of an added layer: zero, so it adds nothing yet" if zero else "inner part of an added layer"
        return replace(blank, fate="inserted as identity", reason=reason, like=found.template.get(name))
    if axes and axes[0].startswith("vocab:"):
        return replace(blank, reason="zero: table of a new feature, so old outputs stay")
    if axes[:1] == ("position",):
        reason = f"zero, but only the last {target.shapes[name][0]} tokens of a history are read, production read all"
        return replace(blank, reason=reason) if rules.approximate else replace(blank, fate="refused", reason=reason)
    if name.endswith(".bias") and name.removesuffix("bias") + "weight" in source.shapes:
        return replace(blank, reason="zero: adds nothing yet")
    if name == "context.stand_in":
        return replace(blank, reason="zero: what is missing is replaced as before")
    if "output" in axes and not name.endswith(".bias"):
        return replace(blank, reason="zero: new heads start at their base rates")
    return replace(blank, reason="fresh: production has no such tensor")


def starts_zero(fate: TensorFate, target: Side) -> bool:
    """Whether a tensor without a source must be zero for old outputs to stay."""
    if fate.fate == "inserted as identity":
        return writes_stream(fate.target or "", target)
    return fate.reason.startswith("zero")


def writes_stream(name: str, side: Side) -> bool:
    """Tells whether a weight of a layer (or its bias) writes into a residual stream: [stream, inner width]."""
    axes = side.axes.get(name.removesuffix("bias") + "weight" if name.endswith(".bias") else name, ())
    return len(axes) == 2 and axes[0] in STREAMS and not is_keyed(axes[1])


def _left(name: str, reason: str, source: Side, target: Side, rules: Rules) -> TensorFate:
    axes = source.axes[name]
    fate = TensorFate(target=None, source=name, fate="dropped", shape=list(source.shapes[name]), family=family(name, axes), reason=reason)
    if "feature:" in name:
        return replace(fate, reason="the feature was removed")
    if fate.family == "heads" or rules.approximate:
        return replace(fate, reason=reason or "replaced by a fresh tensor")
    return replace(fate, fate="refused")  # however small it is: a bias is no share of a trunk, and its function is lost all the same


def _folded(fates: Sequence[TensorFate]) -> Iterator[TensorFate]:
    """Adds the mean row of a removed feature's table to what every input meets instead."""
    folds: dict[str, list[str]] = {}
    for fate in fates:
        if fate.fate == "dropped" and fate.family == "tables":
            for prefix, receivers in _FOLDED.items():
                if str(fate.source).startswith(prefix):
                    for receiver, sign in receivers:
                        folds.setdefault(receiver, []).append(("" if sign > 0 else "-") + str(fate.source))
    for fate in fates:
        if fate.source in folds and fate.target:
            kind = "merged" if fate.fate == "copied" else fate.fate
            yield replace(fate, fate=kind, folds=folds[fate.source], reason=fate.reason or "with the mean row of a removed feature")
        else:
            yield fate


def _inexact(fates: Sequence[TensorFate], source: Side, target: Side, rules: Rules) -> Iterator[str]:
    """Yields why old outputs may change."""
    started = bool(source.keys["output"]) or "context.output" not in target.shapes  # without outputs there is nothing to keep
    for fate in fates:
        if fate.fate in ("dropped", "refused"):
            if fate.family != "heads":
                yield f"{fate.source or fate.target}: {fate.reason}"
            continue
        if fate.fate == "initialised" and not fate.reason.startswith("zero:") and (started or fate.family == "trunk"):
            yield f"{fate.target}: {fate.reason}"
        if fate.copy_of:
            yield f"stacked layers: {fate.target} starts as a copy of {fate.copy_of}"
        elif fate.source and fate.reason and not fate.folds:
            yield f"{fate.target}: {fate.reason}"
        for move in fate.moves:
            if move.dropped and move.axis.startswith("vocab:"):
                rows = "buckets" if isinstance(source.vocabularies.get(move.axis[6:]), HashedVocabulary) else "ids"
                yield f"{move.dropped} {rows} of {move.axis[6:]} lose their row; the others have {move.coverage:.1%} of its traffic"
            elif move.dropped and move.axis in KEYED and move.axis != "output":
                yield f"{move.dropped} of {move.axis} removed"
            if move.new and move.axis.startswith("vocab:") and move.fill != "bucket" and (move.fill != "oov" or rules.noise > 0):
                yield f"new ids of {move.axis[6:]} start as {move.fill}{' with noise' * (rules.noise > 0)}, production served them as OOV"
    if (rules.shrink, rules.perturb) != (1.0, 0.0):
        yield f"matrices are {rules.shrink:g} x production + {rules.perturb:g} x fresh"


def family(name: str, axes: Sequence[str]) -> str:
    """Returns the family of a tensor, for coverage: tables, heads, context or trunk."""
    if any(axis.startswith("vocab:") for axis in axes):
        return "tables"
    if "output" in axes:
        return "heads"
    return "context" if name.startswith("context.") else "trunk"


def _elements(fates: Sequence[TensorFate], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for fate, shape in zip(fates, shapes, strict=True):
        counts[fate.fate] += int(np.prod(shape))
    return dict(counts)


def _coverage(fates: Sequence[TensorFate], source: Side) -> dict[str, float]:
    """Share of production's elements that arrive, by family; a family that production does not have is not there."""
    had: Counter[str] = Counter()
    arrived = dict.fromkeys(FAMILIES, 0.0)
    for fate in fates:
        if fate.source:
            size = int(np.prod(source.shapes[fate.source]))
            had[fate.family] += size
            arrived[fate.family] += size * fate.carried
    return {name: arrived[name] / had[name] for name in FAMILIES if had[name]}
