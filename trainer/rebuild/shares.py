"""The first half of the entity pass: rows go to the buckets of their shared keys, so that each bucket later reads its own rows only.

A shared counter is one that no user bucket can compute alone: of an item, an author, everything.

    shares/day=D/<entity>.arrows        events:  key (uint64), user bucket, request_time, event_time, known_at, labels, what is counted
    shares/day=D/<entity>.drawn.arrows  sampled negatives of a click-only log, which ask and do not count:  key, bucket, request_time

A file has one row group an entity bucket; within it rows stand by user bucket, then in the order of `targets.target_rows`.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.rebuild.context import Context
from trainer.rebuild.counters import all_primitives
from trainer.rebuild.entities import columns_needed, entity_label, entity_rows, is_user_keyed
from trainer.rebuild.events import read_events
from trainer.rebuild.kernels import Primitive
from trainer.rebuild.negatives import negatives_path
from trainer.rebuild.store import Record, finish
from trainer.rebuild.work import read_work, write_work

ASK = ["key", "bucket", "request_time"]


def shared_primitives(context: Context) -> dict[tuple[str, ...], list[Primitive]]:
    """Returns the primitives of the entity pass, by entity; empty if all counters are keyed by the user."""
    shared = [primitive for primitive in all_primitives(context.counters.values()) if not is_user_keyed(primitive.entity)]
    return {entity: list(members) for entity, members in groupby(shared, key=lambda primitive: primitive.entity)}


def write_shares(context: Context, day: str, key: str) -> Record:
    """Shares out the events of a source day."""
    entities = shared_primitives(context)
    columns = [*columns_needed(p for members in entities.values() for p in members), "request_time"]
    parts = [read_events(context, day, bucket, columns) for bucket in range(context.user_buckets)]
    events = _by_user_bucket(parts)
    return _written(context, day, key, {entity: entity_rows(events, entity, members) for entity, members in entities.items()}, drawn=False)


def write_drawn_shares(context: Context, day: str, key: str) -> Record:
    """Shares out the requests for features of a day's sampled negatives."""
    entities = shared_primitives(context)
    columns = [*columns_needed(Primitive(entity, 0, "events") for entity in entities), "request_time"]
    drawn = _by_user_bucket([read_work(negatives_path(context.folder, day, b), columns) for b in range(context.user_buckets)])
    return _written(context, day, key, {entity: entity_rows(drawn, entity, []).select(ASK) for entity in entities}, drawn=True)


def read_share(context: Context, day: str, entity: tuple[str, ...], bucket: int, *, drawn: bool = False) -> pa.Table:
    """Reads the rows of a source day that lie in one entity bucket."""
    return read_work(_path(context.folder, day, entity, drawn), group=bucket)


def share_order(part_N: np.ndarray, parts: int) -> np.ndarray:
    """Returns the order that puts rows by part and keeps theirs within a part: int64 [N]."""
    return np.argsort(part_N.astype(np.uint16 if parts <= 1 << 16 else np.int64), kind="stable")  # radix sort where it fits


def entity_bucket(key_N: np.ndarray, buckets: int) -> np.ndarray:
    """Returns the entity bucket of each key."""
    return (key_N % np.uint64(buckets)).astype(np.int64)


def _by_user_bucket(parts: list[pa.Table]) -> pa.Table:
    bucket_N = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    return pa.concat_tables(parts, promote_options="permissive").append_column("bucket", pa.array(bucket_N)).combine_chunks()


def _written(context: Context, day: str, key: str, tables: dict[tuple[str, ...], pa.Table], drawn: bool) -> Record:
    files = {}
    for entity, table in tables.items():
        part_N = entity_bucket(table["key"].to_numpy(), context.entity_buckets)
        table = table.take(pa.array(share_order(part_N, context.entity_buckets)))
        path = _path(context.folder, day, entity, drawn)
        files[str(path.relative_to(context.folder))] = write_work(path, table, np.bincount(part_N, minlength=context.entity_buckets))
    return finish(context.folder, record_name(day, drawn), Record(key, files))


def record_name(day: str, drawn: bool) -> str:
    """Returns the name of the record of a day's shares."""
    return f"shares/{day}{'.drawn' if drawn else ''}"


def _path(root: Path, day: str, entity: tuple[str, ...], drawn: bool) -> Path:
    return root / "shares" / f"day={day}" / f"{entity_label(entity)}{'.drawn' if drawn else ''}.arrows"
