"""`scripts/score.py`: scores any rows with a release, as the release is served: calibration and score map applied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.checkpoint import Bundle, read_bundle
from trainer.config import ScoreConfig
from trainer.errors import CheckpointError, ConfigError, DataError, nearest
from trainer.release import Registry
from trainer.scan import check_budget, discover_days, scan
from trainer.schema.features import FeatureSpec
from trainer.schema.plain import from_plain
from trainer.schema.time import day_end_ms

SCORE, VALUE, DOT = "score_", "value", "dot"


def score(config: ScoreConfig) -> pa.Table:
    """Scores the rows of a file and writes them beside their scores.

    A row reads the history and the counters that were known at its time, whether the log holds that row or not. Rows of a user and
    business day are read together, as in evaluation: the first sees the last L tokens, the later ones those that came since as well.
    Unknown users have an empty history, unknown items the vocabulary's row for such.

    Returns:
        The table that was written.

    Raises:
        ConfigError: If a column is missing, or there is no such release.
        CheckpointError: If nothing is live, or the bundle is damaged or predicts no action.
        DataError: If the file or the log cannot be read, or a time or an id is null.
    """
    from trainer.evaluate import RankerScorer
    from trainer.rebuild.asked import asked

    bundle = _bundle(config)
    table = _read(Path(config.input))
    rows = _asked_rows(table, config)
    days = discover_days(config.data)
    health = scan(config.data, days, config.scan)
    check_budget(health, config.scan)
    scorer = RankerScorer(bundle)
    actions = [action.name for action in bundle.manifest.inputs.actions]
    scores = {name: np.full(len(rows), np.nan) for name in actions}
    dot_N = np.full(len(rows), np.nan, np.float32)
    cut = day_end_ms(days[-1], config.data.timezone)
    features = from_plain(FeatureSpec, bundle.manifest.features)
    history = bundle.manifest.inputs.max_history
    for part in asked(config.data, features, health, rows, config.rebuild, max_history=history, as_of_ms=cut):
        scored = scorer.score(part.examples, part.tail, cut)
        dot_N[part.row_N] = scored.dot_N
        for name in actions:
            scores[name][part.row_N] = scored.score_N[name]
    for name in actions:
        table = table.append_column(SCORE + name, pa.array(scores[name]))
    weights = {name: weight for name, weight in bundle.manifest.value["weights"].items() if name in scores}
    table = table.append_column(VALUE, pa.array(sum((weight * scores[name] for name, weight in weights.items()), np.zeros(len(rows)))))
    table = table.append_column(DOT, pa.array(dot_N))
    _write(table, Path(config.out))
    return table


def _bundle(config: ScoreConfig) -> Bundle:
    if config.bundle is not None:
        bundle = read_bundle(Path(config.bundle))
    else:
        registry = Registry(Path(config.registry.root), config.registry.product)
        known = {path.name: path for path in registry.versions()}
        if config.version is not None and config.version not in known:
            raise ConfigError("no such release", where="version", got=config.version, remedy=nearest(config.version, known))
        folder = registry.production_path() if config.version is None else known[config.version]
        if folder is None:
            raise CheckpointError("nothing is live in this registry", where=registry.folder, remedy="give version=... or bundle=DIR")
        bundle = read_bundle(folder / "bundle")
    if not bundle.manifest.inputs.actions:
        raise CheckpointError("this model predicts no action", where=bundle.path, remedy="score with a release of the main job")
    return bundle


def _read(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError("cannot read the rows", where=path, got=str(error).splitlines()[0]) from error
    for name in ("user", "item", "time"):
        if name not in table.column_names:
            raise ConfigError("the rows lack a column", where=path, got=name, remedy=nearest(name, table.column_names))
        if table[name].null_count:
            raise DataError("a key is null", where=f"{path}: {name}", got=f"{table[name].null_count} of {len(table)} rows")
    taken = [name for name in table.column_names if name.startswith(SCORE) or name in (VALUE, DOT)]
    if taken:
        raise ConfigError("the rows have a column that scoring writes", where=path, got=taken[0], remedy="rename it")
    if not len(table):
        raise DataError("there is no row to score", where=path)
    return table


def _asked_rows(table: pa.Table, config: ScoreConfig) -> pa.Table:
    """User, item, request time in ms, and those features of the log that the file has."""
    time = table["time"]
    if pa.types.is_timestamp(time.type):
        time = pc.cast(time, pa.timestamp("ms", time.type.tz), safe=False).cast(pa.int64())
    if not pa.types.is_integer(time.type):
        raise ConfigError("time is no instant", where=f"{config.input}: time", got=time.type, expected="int64 (ms) or a timestamp")
    features = {name: table[name] for name in config.data.features if name in table.column_names}
    return pa.table({"user": table["user"], "item": table["item"], "request_time": time.cast(pa.int64()), **features})


def _write(table: pa.Table, out: Path) -> None:
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        temporary.replace(out)
    except OSError as error:
        raise DataError(
            "cannot write the scores", where=out, got=error.strerror or error, remedy="free some space, or choose another out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
