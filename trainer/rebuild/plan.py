"""Which tasks a rebuild consists of, what each depends on, and which are already done.

A key is a hash of all that a task reads, named by the keys of what it reads; so a repaired day changes exactly the keys of
what depends on it, and a rebuild that was killed finds the tasks it had finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from trainer.errors import DataError
from trainer.logs.calendar import local_day
from trainer.rebuild.context import Context
from trainer.rebuild.coverage import DayShare
from trainer.rebuild.store import Record
from trainer.rebuild.targets import Sources
from trainer.schema.hashing import sha256_file, sha256_json
from trainer.schema.health import DayHealth
from trainer.schema.plain import as_plain
from trainer.schema.time import day_start_ms

RUN_ROWS = 1_000_000  # rows of one bucket in a run of days, carry-in not counted; about 0.5 KB of memory a row


@dataclass(frozen=True)
class SourceDays:
    """The ingested days: their keys and the spans of their times.

    Attributes:
        days: Healthy days in order.
        ingested: Day -> record of its ingestion.
        keys: Day -> key of its events as a reader at this cut-off sees them.
        scanned: What scan left of each day up to the last wanted one, refused days included.
    """

    days: list[str]
    ingested: Mapping[str, Record]
    keys: Mapping[str, str]
    scanned: list[DayShare]

    def rows(self, days: Sequence[str]) -> int:
        """Returns the number of rows of some days."""
        return sum(int(self.ingested[day].facts["rows"]) for day in days)


def content_hash(day: str, health: DayHealth) -> str:
    """Returns the hash of a day's contents after quarantine: files and what of them is used. Names of folders do not count."""
    used = [file for file in health.files if not file.quarantined]
    files = [[file.path.rsplit("/", 1)[-1], file.sha256, sorted(file.masked), sorted(file.dropped_groups)] for file in used]
    rules = [[as_plain(rule) for rule in health.rules]] if health.rules else []
    return sha256_json([day, files, sorted(health.masked_columns), *rules])


def ingest_key(context: Context, day: str, health: DayHealth, types: Mapping[str, str], beside: Sequence[str]) -> str:
    """Returns the key of a day's ingestion; counters do not matter to it."""
    return context.log_key("events", content_hash(day, health), types, beside)


def beside_hash(context: Context) -> list[str]:
    """Returns the hashes of the files beside the log that ingestion reads: side tables.

    Raises:
        DataError: If one is absent.
    """
    paths = [table.path for table in context.spec.side_tables.values()]
    return [_hash_beside(Path(context.spec.root) / path) for path in paths]


def prior_hash(context: Context) -> str:
    """Returns the hash of the prior history, or an empty string."""
    prior = context.spec.prior_history
    return _hash_beside(Path(context.spec.root) / prior.path) if prior else ""


def overlapping(day: str, days: Sequence[str], ingested: Mapping[str, Record]) -> list[str]:
    """Returns earlier days in which an event of `day` may already have been delivered: their event times overlap."""
    facts = ingested[day].facts
    return [
        other
        for other in days
        if other < day
        and ingested[other].facts["last_event"] >= facts["first_event"]
        and ingested[other].facts["first_event"] <= facts["last_event"]
    ]


def events_keys(context: Context, days: Sequence[str], ingested: Mapping[str, Record]) -> dict[str, str]:
    """Returns the key of each day's events as seen at the cut-off; a cut-off after the last row ripened makes no difference."""
    return {
        day: sha256_json(
            [
                ingested[day].key,
                [ingested[other].key for other in overlapping(day, days, ingested)],
                min(context.as_of_ms, int(ingested[day].facts["last_ripe"])),
            ]
        )
        for day in days
    }


def sources_of(context: Context, source: SourceDays, run: Sequence[str]) -> Sources:
    """Returns what the rows of a run of days read."""
    zone = context.spec.timezone
    first_request = min(int(source.ingested[day].facts["first_request"]) for day in run)
    first = day_start_ms(local_day(first_request, zone), zone)
    upto = [day for day in source.days if day <= run[-1]]
    reach = first - context.max_window_ms
    return Sources(
        carry_in=[day for day in upto if source.ingested[day].facts["last_event"] >= reach or day in run],
        since=local_day(first_request, zone),
        # A candidate enters when it becomes known, however long ago it happened, so the pool reaches back by knowledge.
        pool=[day for day in upto if int(source.ingested[day].facts["last_ripe"]) >= first - context.negatives_window_ms],
        scanned=[share for share in source.scanned if share.day <= run[-1]],
    )


def negatives_key(context: Context, source: SourceDays, day: str) -> str:
    """Returns the key of the negatives drawn for one day; counters do not matter to it."""
    pool = sources_of(context, source, [day]).pool
    return context.log_key("negatives", day, [source.keys[other] for other in sorted({*pool, day})])


def share_key(context: Context, source: SourceDays, day: str, drawn: bool) -> str:
    """Returns the key of what the entity pass reads of one day: its events, or its negatives."""
    return context.key("shares", day, context.entity_buckets, negatives_key(context, source, day) if drawn else source.keys[day])


def answers_key(context: Context, source: SourceDays, day: str) -> str:
    """Returns the key of the answers to the rows of one day."""
    return context.key("answers", context.entity_buckets, *_inputs(context, source, day))


def examples_key(context: Context, source: SourceDays, day: str) -> str:
    """Returns the key of the examples of one day; the same for every bucket, whose number is in the record's name."""
    return context.key("examples", *_inputs(context, source, day), context.coverage_floor, _reached_days(context, source, day))


def _inputs(context: Context, source: SourceDays, day: str) -> list[object]:
    """Returns the keys of all that the counters of one day's rows read."""
    events = [source.keys[other] for other in sources_of(context, source, [day]).carry_in]
    return [day, events, *([negatives_key(context, source, day)] if context.spec.negatives else [])]


def tail_keys(context: Context, source: SourceDays) -> dict[str, str]:
    """Returns the key of the full tail at the beginning of every source day: a chain over all events before it."""
    key = context.key("tails", context.max_history, prior_hash(context), beside_hash(context))
    keys = {}
    for day in source.days:
        keys[day] = key
        key = sha256_json([key, day, source.keys[day]])
    return keys


def final_tail_key(source: SourceDays, keys: Mapping[str, str]) -> str:
    """Returns the key of the full tail after the last source day."""
    last = source.days[-1]
    return sha256_json([keys[last], last, source.keys[last]])


def runs_of(days: Sequence[str], order: Sequence[str], rows: Mapping[str, int], buckets: int) -> list[list[str]]:
    """Groups days that follow each other in `order` into runs of at most `RUN_ROWS` rows a bucket.

    One task handles a run, so that what the windows carry in is read once a run, not once a day.
    """
    if not days:
        return []
    position = {day: index for index, day in enumerate(order)}
    ordered = sorted(days, key=position.__getitem__)
    runs, held = [[ordered[0]]], rows.get(ordered[0], 0)
    for before, day in pairwise(ordered):
        size = rows.get(day, 0)
        if position[day] != position[before] + 1 or held + size > RUN_ROWS * buckets:
            runs.append([])
            held = 0
        runs[-1].append(day)
        held += size
    return runs


def _reached_days(context: Context, source: SourceDays, day: str) -> list[object]:
    """Returns what coverage can see: the health of the days in reach, and where the log begins if that is in reach too."""
    zone, sources = context.spec.timezone, sources_of(context, source, [day])
    reach = local_day(day_start_ms(sources.since, zone) - context.max_window_ms, zone)
    return [max(reach, sources.scanned[0].day), *(as_plain(share) for share in sources.scanned if share.day >= reach)]


def _hash_beside(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError("cannot read a table beside the log", where=path, got=str(error), remedy="check data.root and the path") from error
