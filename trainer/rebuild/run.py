"""The stage: ingest days, run the entity pass, build examples and tails, count ids, audit, write the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import RebuildConfig
from trainer.errors import DataError
from trainer.rebuild import answers, parity, plan, shares
from trainer.rebuild.answers import write_answers
from trainer.rebuild.audit import audit
from trainer.rebuild.context import Context
from trainer.rebuild.coverage import day_share
from trainer.rebuild.engines import Task, engine_of
from trainer.rebuild.events import ingest, mark_repeats
from trainer.rebuild.plan import SourceDays
from trainer.rebuild.pool import Pool
from trainer.rebuild.shares import shared_primitives
from trainer.rebuild.store import Record, finished, owned
from trainer.rebuild.tails import TailPlan, final_record_name, item_features, token_features, write_tails
from trainer.rebuild.targets import categorical_names, numeric_names, write_examples, write_negatives
from trainer.rebuild.vocabularies import build, count_ids, vocabulary_columns
from trainer.schema.examples import (
    ExamplesManifest,
    FeatureMatch,
    PartitionRecord,
    examples_path,
    final_tail_path,
    tail_path,
    vocabulary_path,
    write_manifest,
)
from trainer.schema.features import FeatureSpec
from trainer.schema.health import HealthMap
from trainer.schema.logs import LogSpec, whole_name
from trainer.schema.time import add_days


def rebuild(
    spec: LogSpec,
    features: FeatureSpec,
    health: HealthMap,
    days: list[str],
    config: RebuildConfig,
    max_history: int,
    as_of_ms: int,
    vocabulary_days: list[str],
) -> ExamplesManifest:
    """Rebuilds examples of past days as they were known then.

    Args:
        spec: The log.
        features: Declared features.
        health: The scan of the log; its other healthy days are read as far as windows and histories reach.
        days: Days whose examples are wanted; refused ones are left out.
        config: Folder, sizes, workers.
        max_history: L, tokens that a tail keeps.
        as_of_ms: Knowledge cut-off (ms): what was known or ripe later does not exist.
        vocabulary_days: Training days, whose ids make the vocabularies.

    Returns:
        The manifest, which has also been written, last of all files.

    Raises:
        ConfigError: If a declared feature or side table does not fit the log.
        DataError: If no day is left, a file changed since the scan, the disk refuses, or the audit finds a wrong feature.
    """
    context = Context(
        spec, features, config.root, config.user_buckets, config.entity_buckets, config.compression, max_history, as_of_ms,
        config.coverage_floor,
    )  # fmt: skip
    parity.check_names(context, {**numeric_names(context), **dict.fromkeys(categorical_names(context))})
    wanted = _wanted(health, days)
    with owned(context.folder), Pool(engine_of(config.engine, config.workers)) as pool:
        source = ingest_days(context, health, wanted[-1], pool)
        repeats = repeats_of_days(context, source, pool)
        examples = _examples(context, source, wanted, pool)
        tails, finals = _tails(context, source, wanted, pool)
        _vocabularies(context, [day for day in vocabulary_days if day in wanted], pool)
    reach = {day: plan.sources_of(context, source, [day]).carry_in for day in wanted}
    audit(context, wanted, reach, source.scanned, config.audit_rows)
    manifest = ExamplesManifest(
        declarations_sha256=context.declarations_sha256,
        user_buckets=context.user_buckets,
        max_history=max_history,
        numeric=numeric_names(context),
        categorical={name: whole_name(name) for name in categorical_names(context)},
        item_features=item_features(spec),
        token_features=token_features(spec),
        source_days={day: plan.content_hash(day, health.days[day]) for day in source.days},
        partitions=[_partition(context, day, bucket, examples, tails) for day in wanted for bucket in range(context.user_buckets)],
        duplicates={day: int(repeats[day]["repeats"]) for day in wanted},
        other_labels={day: int(repeats[day].get("other_labels", 0)) for day in wanted},
        late={day: health.days[day].late for day in wanted},
        negatives={day: sum(int(examples[day, b].facts["negatives"]) for b in range(context.user_buckets)) for day in wanted},
        matches=_matches(context, wanted, examples),
        final_tail_day=_final_day(source),
        final_tails=[_only_hash(context, tail, final_tail_path(context.folder, _final_day(source), b)) for b, tail in enumerate(finals)],
    )
    write_manifest(context.folder, manifest)
    return manifest


def _wanted(health: HealthMap, days: Sequence[str]) -> list[str]:
    unknown = [day for day in days if day not in health.days]
    if unknown:
        raise DataError("a day was not scanned", got=unknown[0], remedy="scan the days before rebuilding them")
    wanted = [day for day in sorted(set(days)) if health.days[day].status != "refused"]
    if not wanted:
        raise DataError("no day is left to rebuild", got=", ".join(days) or "no days", remedy="see in scan.json why days are refused")
    return wanted


def ingest_days(context: Context, health: HealthMap, last: str, pool: Pool) -> SourceDays:
    """Ingests the healthy days up to the last wanted one, skipping what is done."""
    days = [day for day in sorted(health.days) if day <= last and health.days[day].status != "refused"]
    beside = plan.beside_hash(context)
    keys = {day: plan.ingest_key(context, day, health.days[day], health.types, beside) for day in days}
    done = {day: finished(context.folder, f"events/{day}", keys[day]) for day in days}
    pending = [day for day in days if done[day] is None]
    tasks = [Task(ingest, (context, day, health.days[day], health.types, keys[day]), health.days[day].rows) for day in pending]
    records = dict(zip(pending, pool.run("events", tasks), strict=True))
    ingested = {day: done[day] or records[day] for day in days}
    shares = [day_share(context.spec, day, health.days[day]) for day in sorted(health.days) if day <= last]
    return SourceDays(days, ingested, plan.events_keys(context, days, ingested), shares)


def repeats_of_days(context: Context, source: SourceDays, pool: Pool) -> dict[str, Mapping[str, Any]]:
    """Marks repeated deliveries; returns what `mark_repeats` counted, by day."""
    keys, tasks, pending = {}, [], []
    counts: dict[str, Mapping[str, Any]] = {}
    for day in source.days:
        earlier = plan.overlapping(day, source.days, source.ingested)
        keys[day] = context.log_key("repeats", source.ingested[day].key, [source.ingested[other].key for other in earlier])
        record = finished(context.folder, f"repeats/{day}", keys[day])
        if record is None:
            pending.append(day)
            tasks.append(Task(mark_repeats, (context, day, earlier, keys[day]), source.rows([day])))
        else:
            counts[day] = record.facts
    for day, record in zip(pending, pool.run("repeats", tasks), strict=True):
        counts[day] = record.facts
    return counts


def _examples(context: Context, source: SourceDays, wanted: Sequence[str], pool: Pool) -> dict[tuple[str, int], Record]:
    """Builds the examples, and first what they read; skips what is done."""
    keys = {day: plan.examples_key(context, source, day) for day in wanted}
    done = {(d, b): finished(context.folder, f"examples/{d}.{b:02d}", keys[d]) for d in wanted for b in range(context.user_buckets)}
    found = {place: record for place, record in done.items() if record is not None}
    pending = [day for day in wanted if any(done[day, bucket] is None for bucket in range(context.user_buckets))]
    _negatives(context, source, pending, pool)
    _entities(context, source, pending, pool)
    tasks, places = [], []
    for bucket in range(context.user_buckets):
        for run in _runs(context, source, [day for day in wanted if done[day, bucket] is None], context.user_buckets):
            arguments = (context, bucket, run, plan.sources_of(context, source, run), {day: keys[day] for day in run})
            tasks.append(Task(write_examples, arguments, source.rows(run) // context.user_buckets))
            places.append([(day, bucket) for day in run])
    for place, records in zip(places, pool.run("examples", tasks), strict=True):
        found |= dict(zip(place, records, strict=True))
    return found


def _negatives(context: Context, source: SourceDays, days: Sequence[str], pool: Pool) -> None:
    """Draws the negatives of some days, if the log is one of clicks only."""
    if not context.spec.negatives:
        return
    keys = {day: plan.negatives_key(context, source, day) for day in days}
    tasks = []
    for bucket in range(context.user_buckets):
        pending = [day for day in days if finished(context.folder, f"negatives/{day}.{bucket:02d}", keys[day]) is None]
        for run in _runs(context, source, pending, context.user_buckets):
            arguments = (context, bucket, run, plan.sources_of(context, source, run).pool, {day: keys[day] for day in run})
            tasks.append(Task(write_negatives, arguments, source.rows(run) // context.user_buckets))
    pool.run("negatives", tasks)


def _entities(context: Context, source: SourceDays, days: Sequence[str], pool: Pool) -> None:
    """Runs the entity pass for some days: their rows and those in reach go to entity buckets, and each of these answers."""
    if not shared_primitives(context):
        return
    keys = {day: plan.answers_key(context, source, day) for day in days}
    runs: list[tuple[int, list[str]]] = []
    for bucket in range(context.entity_buckets):
        pending = [day for day in days if finished(context.folder, answers.record_name(day, bucket), keys[day]) is None]
        runs += [(bucket, run) for run in _runs(context, source, pending, context.entity_buckets)]
    reach = {tuple(run): plan.sources_of(context, source, run).carry_in for _, run in runs}
    events = sorted({day for reached in reach.values() for day in reached})
    drawn = sorted({day for run in reach for day in run}) if context.spec.negatives else []
    tasks = []
    for function, shared in ((shares.write_shares, events), (shares.write_drawn_shares, drawn)):
        for day in shared:
            key = plan.share_key(context, source, day, drawn=shared is drawn)
            if finished(context.folder, shares.record_name(day, drawn=shared is drawn), key) is None:
                tasks.append(Task(function, (context, day, key), source.rows([day])))
    pool.run("entities", tasks)
    tasks = []
    for bucket, run in runs:
        arguments = (context, bucket, run, reach[tuple(run)], {day: keys[day] for day in run})
        tasks.append(Task(write_answers, arguments, source.rows(run) // context.entity_buckets))
    pool.run("answers", tasks)


def _runs(context: Context, source: SourceDays, days: list[str], buckets: int) -> list[list[str]]:
    """Groups days into runs for tasks of one of so many buckets; a run does not reach over a day that is not asked for."""
    negatives = context.spec.negatives
    rows = {day: source.rows([day]) * (1 + (negatives.per_positive if negatives else 0)) for day in days}
    return plan.runs_of(days, source.days, rows, buckets)


def _tails(context: Context, source: SourceDays, wanted: Sequence[str], pool: Pool) -> tuple[dict[tuple[str, int], Record], list[Record]]:
    """Writes the tails of the wanted days and the final ones; walks on from the latest full tail that is on disk."""
    chain = plan.tail_keys(context, source)
    keys = {day: context.key("tail", chain[day], source.keys[day]) for day in wanted}
    final_day, final_key = _final_day(source), plan.final_tail_key(source, chain)
    found: dict[tuple[str, int], Record] = {}
    finals: dict[int, Record] = {}
    tasks, places = [], []
    for bucket in range(context.user_buckets):
        done = {day: finished(context.folder, f"tails/{day}.{bucket:02d}", keys[day]) for day in wanted}
        found |= {(day, bucket): record for day, record in done.items() if record is not None}
        final = finished(context.folder, final_record_name(final_day, bucket), final_key)
        pending = [day for day in wanted if done[day] is None]
        if final is not None and not pending:
            finals[bucket] = final
            continue
        start, on_disk = _walk(context, source, chain, bucket, pending)
        walked = [day for day in source.days if day >= start]
        task = TailPlan(start if on_disk else None, walked, {day: keys[day] for day in pending}, final_day, final_key)
        tasks.append(Task(write_tails, (context, bucket, task), source.rows(task.source_days) // context.user_buckets))
        places.append((bucket, pending))
    for (bucket, pending), records in zip(places, pool.run("tails", tasks), strict=True):
        found |= {(day, bucket): record for day, record in zip(pending, records[:-1], strict=True)}
        finals[bucket] = records[-1]
    return found, [finals[bucket] for bucket in range(context.user_buckets)]


def _walk(context: Context, source: SourceDays, chain: dict[str, str], bucket: int, pending: Sequence[str]) -> tuple[str, bool]:
    """Returns the source day to start from, and whether its full tail is on disk (else start from the prior history)."""
    first = pending[0] if pending else source.days[-1]
    for day in reversed([day for day in source.days if day <= first]):
        if finished(context.folder, final_record_name(day, bucket), chain[day]) is not None:
            return day, True
    return source.days[0], False


def _vocabularies(context: Context, days: Sequence[str], pool: Pool) -> None:
    """Counts ids over the training days and writes every vocabulary."""
    if not days:
        raise DataError("no training day is left", remedy="vocabularies need at least one day that is not refused and not held out")
    names = categorical_names(context)
    tasks = [Task(count_ids, (context.folder, day, context.user_buckets, names)) for day in days]
    counts = pool.run("vocabularies", tasks)
    for name in vocabulary_columns(names):
        build(name, days, [count[name] for count in counts]).write(vocabulary_path(context.folder, name))


def _matches(context: Context, wanted: Sequence[str], examples: dict[tuple[str, int], Record]) -> dict[str, dict[str, FeatureMatch]]:
    days = {day: parity.total([examples[day, bucket].facts["matches"] for bucket in range(context.user_buckets)]) for day in wanted}
    return {name: {day: found[name] for day, found in days.items()} for name in context.spec.logged_features}


def _partition(
    context: Context, day: str, bucket: int, examples: dict[tuple[str, int], Record], tails: dict[tuple[str, int], Record]
) -> PartitionRecord:
    record, tail = examples[day, bucket], tails[day, bucket]
    return PartitionRecord(
        day=day, bucket=bucket, key=context.key(record.key, tail.key), rows=int(record.facts["rows"]), events=int(record.facts["events"]),
        examples_sha256=_only_hash(context, record, examples_path(context.folder, day, bucket)),
        tail_sha256=_only_hash(context, tail, tail_path(context.folder, day, bucket)),
    )  # fmt: skip


def _only_hash(context: Context, record: Record, path: Path) -> str:
    return record.files[str(path.relative_to(context.folder))]


def _final_day(source: SourceDays) -> str:
    return add_days(source.days[-1], 1)
