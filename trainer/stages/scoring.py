"""`scripts/score.py`: scores any rows with a release, as the release is served: calibration and score map applied."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.checkpoint import Bundle, read_bundle
from trainer.config import ScoreConfig
from trainer.errors import CheckpointError, ConfigError, DataError, nearest
from trainer.logs.conform import conform, declared_type, logical_type
from trainer.logs.normalise import feature_values
from trainer.release import Registry
from trainer.scan import check_budget, discover_days, scan
from trainer.schema.features import FeatureSpec
from trainer.schema.files import sync
from trainer.schema.plain import from_plain
from trainer.schema.time import day_end_ms

SCORE, VALUE, DOT = "score_", "value", "dot"
KEYS = ("user", "item", "time")
_BATCH_ROWS = 65_536


def score(config: ScoreConfig) -> int:
    """Scores the rows of a file and writes them beside their scores, in their order.

    A row reads the history and the counters that were known at its time, whether the log holds that row or not. Rows of a user and
    business day are read together, as in evaluation: the first sees the last L tokens, the later ones those that came since as well.
    Unknown users have an empty history, unknown items the vocabulary's row for such.

    Memory does not grow with the rows. They are read three times (keys, features, all columns), and beside the output lie, until it
    is renamed into place, a copy of their keys and features and 8 bytes a row and score. Features of the log that the
    file does not have are scored as missing, and a line says so.

    Returns:
        The number of rows.

    Raises:
        ConfigError: If a column is missing, or there is no such release.
        CheckpointError: If nothing is live, or the bundle is damaged or predicts no action.
        DataError: If the file or the log cannot be read, a time or an id is null, or the disk refuses.
    """
    bundle, rows = _bundle(config), _Rows(config)
    rows.check()
    if absent := [name for name in config.data.features if name not in rows.schema.names]:
        print(f"{config.input} has no column {', '.join(absent)}: scored as missing")
    out, actions = Path(config.out), [action.name for action in bundle.manifest.inputs.actions]
    with ExitStack() as stack:
        with _writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)))
            score_NC = _reserved(scratch / "scores", len(rows), len(actions) + 1)
        _score(bundle, config, rows, score_NC, scratch / "rows.arrow")
        with _writing(out):
            _write(rows, actions, bundle.manifest.value["weights"], score_NC, scratch / out.name)
            (scratch / out.name).replace(out)
    return len(rows)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            "cannot write the scores", where=out, got=error.strerror or error, remedy="free some space, or choose another out"
        ) from error


def _score(bundle: Bundle, config: ScoreConfig, rows: _Rows, score_NC: np.ndarray, scratch: Path) -> None:
    """Fills in the scores of every action and, last, the dot products."""
    from trainer.evaluate import RankerScorer
    from trainer.rebuild.asked import asked

    days = discover_days(config.data)
    health = scan(config.data, days, config.scan)
    check_budget(health, config.scan)
    scorer, inputs = RankerScorer(bundle), bundle.manifest.inputs
    cut = day_end_ms(days[-1], config.data.timezone)
    features = from_plain(FeatureSpec, bundle.manifest.features)
    parts = asked(
        config.data, features, health, rows, config.rebuild, max_history=inputs.max_history, as_of_ms=cut, scratch=scratch
    )  # fmt: skip
    for part in parts:
        scored = scorer.score(part.examples, part.tail, cut)
        columns = [*(scored.score_N[action.name] for action in inputs.actions), scored.dot_N]
        score_NC[part.row_N] = np.stack(columns, axis=1)


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


class _Rows:
    """The rows of the input, some at a time (`trainer.rebuild.asked.Rows`)."""

    def __init__(self, config: ScoreConfig) -> None:
        self._path = Path(config.input)
        self._declared = config.data.features
        try:
            with pq.ParquetFile(self._path) as file:
                self.schema: pa.Schema = file.schema_arrow
                self._count: int = file.metadata.num_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise self._unreadable(error) from error

    def __len__(self) -> int:
        return self._count

    def check(self) -> None:
        """Reads the keys. Raises a ConfigError or a DataError unless every row has a user, an item and a time."""
        for name in KEYS:
            if name not in self.schema.names:
                raise ConfigError(
                    "the rows lack a column", where=self._path, got=name, remedy=nearest(name, set(self.schema.names) - set(KEYS))
                )
        taken = [name for name in self.schema.names if name.startswith(SCORE) or name in (VALUE, DOT)]
        if taken:
            raise ConfigError("the rows have a column that scoring writes", where=self._path, got=taken[0], remedy="rename it")
        kind = self.schema.field("time").type
        if not (pa.types.is_timestamp(kind) or pa.types.is_integer(kind)):
            raise ConfigError("time is no instant", where=f"{self._path}: time", got=kind, expected="int64 (ms) or a timestamp")
        if not len(self):
            raise DataError("there is no row to score", where=self._path)
        nulls = dict.fromkeys(KEYS, 0)
        for table in self.read(KEYS):
            for name in KEYS:
                nulls[name] += table[name].null_count
        for name, count in nulls.items():
            if count:
                raise DataError("a key is null", where=f"{self._path}: {name}", got=f"{count} of {len(self)} rows")

    def read(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields some columns, or all, in the order of the file."""
        try:
            with pq.ParquetFile(self._path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    if len(batch):
                        yield pa.Table.from_batches([batch])
        except (OSError, pa.ArrowInvalid) as error:
            raise self._unreadable(error) from error

    def times(self) -> Iterator[np.ndarray]:
        """Yields the request times, int64 ms."""
        for table in self.read(["time"]):
            yield _milliseconds(table["time"]).to_numpy()

    def tables(self) -> Iterator[pa.Table]:
        """Yields user, item, request time in ms, and those features of the log that the file has."""
        features = [name for name in self._declared if name in self.schema.names]
        for table in self.read([*KEYS, *(name for name in features if name not in KEYS)]):
            columns = {"user": table["user"], "item": table["item"], "request_time": _milliseconds(table["time"])}
            for name in features:
                columns |= self._parts(table, name) if self._declared[name].is_listed else {name: table[name]}
            yield pa.table(columns)

    def _parts(self, table: pa.Table, name: str) -> dict[str, pa.Array]:
        """Returns the values of a list, or the numbers of a vector, one by one."""
        declared = replace(self._declared[name], expression=None)  # the rows have features by name
        conformed, findings = conform(table.select([name]), {name: declared_type(logical_type(self.schema.field(name).type), declared)})
        parts = feature_values(conformed, name, declared, "UTC", findings)
        if damaged := [finding for finding in findings if finding.action == "mask"]:
            raise DataError("a column of the rows is not what is declared", where=f"{self._path}: {name}", got=damaged[0].evidence)
        return parts

    def _unreadable(self, error: Exception) -> DataError:
        return DataError("cannot read the rows", where=self._path, got=str(error).splitlines()[0])


def _milliseconds(time: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(time.type):
        time = pc.cast(time, pa.timestamp("ms", time.type.tz), safe=False)
    return time.cast(pa.int64())


def _reserved(path: Path, rows: int, columns: int) -> np.ndarray:
    """Returns NaN float64 [N, C] that lie in a file, whose space is taken now: a disk that fills up later could not say so."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, rows * columns * 8)
    values_NC = np.memmap(path, np.float64, "r+", shape=(rows, columns))
    values_NC[:] = np.nan
    return values_NC


def _write(rows: _Rows, actions: Sequence[str], weights: dict[str, float], score_NC: np.ndarray, path: Path) -> None:
    """Writes the rows with their scores, value and dot product."""
    fields = [*rows.schema, *(pa.field(name, pa.float64()) for name in [*(SCORE + name for name in actions), VALUE])]
    schema, start = pa.schema([*fields, pa.field(DOT, pa.float32())], rows.schema.metadata), 0
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in rows.read():
            some_MC = np.array(score_NC[start : start + len(table)])
            value_M = np.zeros(len(table))
            for column, name in enumerate(actions):
                table = table.append_column(SCORE + name, pa.array(some_MC[:, column]))
                value_M += weights.get(name, 0.0) * some_MC[:, column]
            table = table.append_column(VALUE, pa.array(value_M)).append_column(DOT, pa.array(some_MC[:, -1].astype(np.float32)))
            writer.write_table(table.cast(schema))
            start += len(table)
    sync(path)
