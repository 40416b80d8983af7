"""The smaller parts of the page: what changed, the warm start, embeddings and downstream lift, cost and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.report.artefacts import Artefacts
from trainer.report.numbers import NONE, compact, count, finite, fixed, interval, leaf, percent, seconds, significant, size
from trainer.schema.transfer import FATES

MOST_TENSORS = 400
MOST_FEATURES = 10  # of the downstream model's importances
_TWO_SIDED = ("config", "code_version", "labels", "value")  # kinds of change whose values are [old, new]


@dataclass(frozen=True)
class Fact:
    """A name and its value; `before` where the value changed."""

    name: str
    value: str
    before: str = ""


def changes(run: Artefacts) -> list[Fact]:
    """Returns what changed against the parent, an old and a new value where there are two; kinds without a change are left out."""
    found: list[Fact] = []
    for kind, value in run.summary.changes.items():
        title = kind.replace("_", " ")
        if value in (None, {}, [], ""):
            continue
        if kind in _TWO_SIDED and isinstance(value, Mapping):
            found += [_change(f"{title}: {key}", pair) for key, pair in value.items()]
        else:
            found.append(_change(title, value) if kind in _TWO_SIDED else Fact(title, leaf(value)))
    return found


def _change(name: str, pair: Any) -> Fact:
    two = isinstance(pair, list | tuple) and len(pair) == 2
    return Fact(name, leaf(pair[1]), leaf(pair[0])) if two else Fact(name, leaf(pair))


def facts(mapping: Mapping[str, Any] | None) -> list[Fact]:
    """Returns any mapping as a list of names and values."""
    return [Fact(str(name).replace("_", " "), leaf(value)) for name, value in (mapping or {}).items()]


def cost(mapping: Mapping[str, Any] | None) -> tuple[str, list[Fact]]:
    """Returns what a run cost as a sentence, and everything else that is known as facts.

    Args:
        mapping: `summary.json`, ``cost``.
    """
    known = dict(mapping or {})
    growth = known.pop("growth", None) or {}
    sentences = []
    if known.get("flops") and known.get("flops_per_second"):
        limit = f", {percent(known['mfu'])} of what the machine can do at most" if known.get("mfu") is not None else ""
        sentences.append(
            f"Training took {known['flops'] / 1e12:,.3g} TFLOP at {known['flops_per_second'] / 1e9:,.3g} GFLOP/s{limit}; "
            f"{percent(known.get('data_wait'))} of its time it waited for data."
        )
    if growth:
        price = f" and {growth['money']:,.2f} instead of {known['money']:,.2f} in money" if growth.get("money") is not None else ""
        now, grown, fixed_part = (seconds(value) for value in (known.get("seconds"), growth["seconds"], growth["fixed_seconds"]))
        sentences.append(
            f"With {growth['rows']} times the rows the run would take {grown} instead of {now}{price}: {fixed_part} of it do not grow."
        )
    return " ".join(sentences), facts(known)


@dataclass(frozen=True)
class TransferPart:
    """The warm start.

    Attributes:
        sentence: Whether it was exact, and what was measured.
        fates: (fate, tensors, elements, share of elements in per cent) of each fate that occurs.
        vocabularies: (name, kept, new, dropped, traffic kept).
        tensors: (target, source, fate, shape, moves, reason) of each tensor.
        left_out: Tensors that are not listed.
    """

    sentence: str
    fates: list[tuple[str, str, str, float]]
    vocabularies: list[tuple[str, str, str, str, str]]
    tensors: list[tuple[str, str, str, str, str, str]]
    left_out: int


def transfer(run: Artefacts) -> TransferPart | None:
    """Builds the part; None for a cold run."""
    report = run.transfer
    if not report:
        return None
    fates = [fate for fate in report.get("fates", []) if isinstance(fate, Mapping)]
    elements = report.get("elements") or {}
    total = sum(finite(number) or 0 for number in elements.values()) or 1
    names = [*FATES, *sorted(set(elements) - set(FATES))]
    return TransferPart(
        sentence=parity_sentence(report),
        fates=[
            (name, count(sum(fate.get("fate") == name for fate in fates)), compact(elements[name]), 100 * elements[name] / total)
            for name in names if finite(elements.get(name))
        ],
        vocabularies=[
            (
                _vocabulary(name, rows), count(rows.get("kept")), count(rows.get("new")), count(rows.get("dropped")),
                percent(rows.get("traffic_kept")),
            )
            for name, rows in (report.get("vocabularies") or {}).items()
        ],
        tensors=[_tensor(fate) for fate in fates[:MOST_TENSORS]],
        left_out=max(0, len(fates) - MOST_TENSORS),
    )  # fmt: skip


def _vocabulary(name: str, rows: Mapping[str, Any]) -> str:
    return f"{name} (hashed, {count(rows['hash'].get('rows'))} rows)" if rows.get("hash") else name


def parity_sentence(report: Mapping[str, Any]) -> str:
    """Says what was promised of the warm start and what was measured; continues "The warm start is ..."."""
    parity, taught = report.get("parity") or {}, report.get("distilled")
    if taught and not parity:
        return f"a cold one, taught by {'production' if taught['teacher'] != 'logged scores' else 'the scores that production logged'}."
    promised = "exact by plan" if report.get("exact") else "not exact by plan"
    if not parity:
        return f"{promised}; not measured."
    difference, bound = finite(parity.get("max_difference")), finite(parity.get("bound"))
    within = difference is not None and bound is not None and difference <= bound
    verdict = f"{' within' if within else ', beyond'} the bound {significant(bound, 2)}" if parity.get("exact") else ""
    return (
        f"{promised}; before the first step the outputs differed from production's by at most {significant(difference, 2)} "
        f"(largest output {significant(parity.get('max_output'))}, {count(parity.get('rows'))} probe rows){verdict}."
    )


def _tensor(fate: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    moves = "; ".join(
        f"{move.get('axis')}: {count(move.get('kept'))} kept, {count(move.get('new'))} new ({move.get('fill')}), "
        f"{count(move.get('dropped'))} dropped"
        for move in fate.get("moves") or []
    )
    shape = " × ".join(str(size) for size in fate.get("shape") or []) or "scalar"
    return (
        str(fate.get("target") or NONE),
        str(fate.get("source") or NONE),
        str(fate.get("fate")),
        shape,
        moves,
        str(fate.get("reason") or ""),
    )


@dataclass(frozen=True)
class EmbeddingsPart:
    """Exported vectors.

    Attributes:
        sentence: Space, width, producer.
        entities: (entity, rows, coverage, norm min, mean, max, files, bytes).
    """

    sentence: str
    entities: list[tuple[str, ...]]


def embeddings(run: Artefacts) -> EmbeddingsPart | None:
    """Builds the part; None where nothing was exported."""
    manifest = run.embeddings
    if not manifest:
        return None
    rows = []
    for entity, number in (manifest.get("entities") or {}).items():
        norms = (manifest.get("norms") or {}).get(entity) or {}
        shards: Sequence[Mapping[str, Any]] = (manifest.get("shards") or {}).get(entity) or []
        stored = sum(finite(shard.get("bytes")) or 0 for shard in shards)
        covered = (manifest.get("coverage") or {}).get(entity)
        rows.append((
            str(entity), count(number), percent(covered), *(fixed(norms.get(name), 2) for name in ("min", "mean", "max")),
            count(len(shards)), size(stored),
        ))  # fmt: skip
    sentence = (
        f"{count(manifest.get('dim'))} dimensions, {manifest.get('dtype', 'float32')}, space {manifest.get('space_id') or NONE}: "
        "vectors are interchangeable exactly within a space."
    )
    if manifest.get("repair"):
        sentence += " Scores of the pairs are behind the curves of the repair, as they are delivered."
    return EmbeddingsPart(sentence, rows)


@dataclass(frozen=True)
class StageLine:
    """One stage: its time as a bar, and what it did."""

    name: str
    status: str
    seconds: str
    share: float
    rows: str
    detail: str


def stages(run: Artefacts) -> list[StageLine]:
    """Returns the stages in order, with their share of the time."""
    total = sum(record.seconds for record in run.summary.stages.values()) or 1.0
    return [
        StageLine(name, record.status, seconds(record.seconds), 100 * record.seconds / total, count(record.rows), record.detail)
        for name, record in run.summary.stages.items()
    ]


def slice_table(
    run: Artefacts, metric_sets: Sequence[tuple[str, str]] = (("auc", "AUC"), ("ne", "NE"))
) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Returns for each binary action (slice, rows, then challenger and production of each metric) from ``eval.json``."""
    tables = []
    for action, ours in run.evaluation.get("challenger", {}).items():
        theirs = (run.evaluation.get("production", {}).get(action) or {}).get("slices") or {}
        lines = [
            (f"{column}={value}", count(entry.get("n")), *_both(entry, (theirs.get(column) or {}).get(value) or {}, metric_sets))
            for column, values in (ours.get("slices") or {}).items()
            for value, entry in values.items()
            if any(name in entry for name, _ in metric_sets)
        ]
        if lines:
            tables.append((action, lines))
    return tables


def _both(ours: Mapping[str, Any], theirs: Mapping[str, Any], metric_sets: Sequence[tuple[str, str]]) -> list[str]:
    def cell(entry: Mapping[str, Any], name: str) -> str:
        return f"{fixed(entry.get(name))} {interval((entry.get('intervals') or {}).get(name), fixed)}".strip()

    return [cell(entry, name) for name, _ in metric_sets for entry in (ours, theirs)]


@dataclass(frozen=True)
class DownstreamPart:
    """The model behind the embeddings, with and without them.

    Attributes:
        sentence: What was compared, or why it could not be.
        rows: (metric, without, with, difference, direction).
        importance: (feature, share of the gain in per cent), largest first.
        ablation: (what of the exported features is used, metric, difference to none, direction).
        slices: (slice, predicted / observed without, with) of the final score.
    """

    sentence: str
    rows: list[tuple[str, ...]] = field(default_factory=list)
    importance: list[tuple[str, str, float]] = field(default_factory=list)
    ablation: list[tuple[str, str, str, str]] = field(default_factory=list)
    slices: list[tuple[str, str, str]] = field(default_factory=list)


_LIFTED = (("auc", "AUC", 1), ("ne", "NE", -1), ("ndcg", "NDCG", 1), ("ratio", "predicted / observed", 0))


def downstream(run: Artefacts) -> DownstreamPart | None:
    """Builds the part; None where no downstream model was trained."""
    report = run.downstream
    if not report:
        return None
    if report.get("status") == "not_testable":
        return DownstreamPart(f"Not testable: {report.get('reason') or 'no reason given'}. {report.get('final') or ''}".strip())
    arms, lifts = report.get("arms") or {}, report.get("lift") or {}
    rows = []
    for name, label, better in _LIFTED:
        values = [(arms.get(arm) or {}).get(name) for arm in ("without", "with")]
        if any(values):  # an order has no NE, and rows without slates no NDCG
            lift = lifts.get(name) or {}
            rows.append((label, *map(_with_interval, values), _with_interval(lift, signed=True) if lift else "", _side(lift, better)))
    shares = {str(name): finite(share) or 0.0 for name, share in (report.get("importance") or {}).items()}
    sentence = (
        f"A final model for {report.get('action')}, on {count(report.get('rows'))} rows of {count(report.get('users'))} users "
        f"that it was not trained on, without and with the exported features. {report.get('final') or ''}"
    ).strip()
    importance = [(name, percent(share), 100 * share) for name, share in list(shares.items())[:MOST_FEATURES]]
    ratios = {name: [_with_interval(entry.get(arm)) for arm in ("without", "with")] for name, entry in (report.get("slices") or {}).items()}
    return DownstreamPart(sentence, rows, importance, _ablation(report), [(name, *pair) for name, pair in ratios.items()])  # type: ignore[misc]


def _ablation(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What the parts of the exported features are worth, each alone, and together."""
    parts = report.get("ablation") or {}
    if not parts:
        return []
    words = {"scalars": "scores and dot product alone", "vectors": "vectors alone"}
    alone = {words.get(name, name): lifts for name, lifts in parts.items()} | {"all": report.get("lift") or {}}
    return [
        (word, label, _with_interval(lifts[name], signed=True), _side(lifts[name], better))
        for word, lifts in alone.items()
        for name, label, better in _LIFTED
        if lifts.get(name)
    ]


def _with_interval(entry: Mapping[str, Any] | None, signed: bool = False) -> str:
    if not entry:
        return NONE

    def form(value: Any) -> str:
        return fixed(value, 4, signed)

    return f"{form(entry.get('value'))} {interval([entry.get('low'), entry.get('high')], form)}".strip()


def _side(lift: Mapping[str, Any], better: int) -> str:
    """Whether the interval of a lift excludes 0, and whether that is good."""
    low, high = finite(lift.get("low")), finite(lift.get("high"))
    if low is None or high is None or not better:
        return ""
    if low <= 0 <= high:
        return "even"
    return "better" if (low > 0) == (better > 0) else "worse"


@dataclass(frozen=True)
class RepairPart:
    """What was tried on a challenger that was not promoted as it came.

    Attributes:
        sentence: What was done, or why not.
        verdicts: Title and facts of the judgement before, and after if there was one.
        actions: (action, curve, predicted / observed, NE, why) of each repaired action, before and after.
        mended: (path, before, after, tolerated) of each check that had failed.
    """

    sentence: str
    verdicts: list[tuple[str, list[Fact]]]
    actions: list[tuple[str, str, str, str, str]]
    mended: list[tuple[str, str, str, str]]


def repair(run: Artefacts) -> RepairPart | None:
    """Returns the repair of the verdict; None where none was tried."""
    report = run.verdict.repair if run.verdict else None
    if report is None:
        return None
    groups = (
        (f"As it came, {count(report.fitted_rows + report.judged_rows)} rows", report.before),
        (f"Repaired, {count(report.judged_rows)} rows of other users than the curves were fitted on", report.after),
    )
    verdicts = [(title, _judgement(found)) for title, found in groups if found]
    actions = [
        (name, _curve(entry), _arrow(entry, "ratio", 3), _arrow(entry, "ne", 4), str(entry.get("reason", "")))
        for name, entry in sorted(report.actions.items())
    ]
    mended = [
        (path, *(significant(finite(entry.get(key)), 3) for key in ("before", "after", "margin"))) for path, entry in report.mended.items()
    ]
    return RepairPart(report.sentence, verdicts, actions, mended)  # type: ignore[arg-type]


def _judgement(found: Mapping[str, Any]) -> list[Fact]:
    failed = found.get("failed") or []
    more = f" and {len(failed) - 6:,} more" if len(failed) > 6 else ""
    return [
        Fact("verdict", str(found.get("verdict", NONE))), Fact("because", str(found.get("reason", ""))),
        Fact("failed", (", ".join(failed[:6]) + more) or "nothing"),
    ]  # fmt: skip


def _curve(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('method', '')}, {entry['knots']} knots" if entry.get("knots") else str(entry.get("method", NONE))


def _arrow(entry: Mapping[str, Any], key: str, digits: int) -> str:
    before, after = (fixed(finite((entry.get(when) or {}).get(key)), digits) for when in ("before", "after"))
    return f"{before} → {after}"
