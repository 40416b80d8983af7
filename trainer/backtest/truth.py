"""True probabilities of judged rows, known of a simulated log only: a loss against them has no luck of outcomes in it.

The log loss of a score q, expected over an outcome that happens with probability p, is ``-p log q - (1 - p) log(1 - q)``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import ConfigError, DataError, nearest
from trainer.schema.simulation import BINARY_ACTIONS, EVENTS_FOLDER, PART_FILE, TRUTH_FOLDER
from trainer.schema.time import add_days, days_between

TRUE = "true_"
_REQUEST = ["user_id", "item_id", "request_time_ms"]  # no item stands twice in a slate


def with_truth(rows: pa.Table, folder: Path, days: Sequence[str], actions: Collection[str]) -> pa.Table:
    """Adds the true probability of every action to judged rows.

    Args:
        rows: user, item and time (of the request) of each row.
        folder: What `trainer.simulate` wrote.
        days: Business days of the rows.
        actions: Judged actions.

    Returns:
        The rows, in their order, with float64 columns ``true_<action>``.

    Raises:
        ConfigError: If the simulation knows no probability of an action.
        DataError: If a file cannot be read, or a row is none of the simulation's.
    """
    for name in actions:
        if name not in BINARY_ACTIONS:
            raise ConfigError(
                "a simulation knows no probability of this action", where="truth", got=name, remedy=nearest(name, BINARY_ACTIONS)
            )  # fmt: skip
    asked = {name: rows[column].cast(pa.int64()) for name, column in zip(_REQUEST, ("user", "item", "time"), strict=True)}
    known = _known(folder, days, list(actions))
    known = known.append_column("known", pa.repeat(True, len(known)))
    joined = pa.table({**asked, "place": np.arange(len(rows))}).join(known, _REQUEST, join_type="left outer").sort_by("place")
    unknown = joined["known"].null_count
    if unknown or len(joined) != len(rows):
        raise DataError(
            "judged rows are none of the simulation's", where=folder, got=f"{unknown} of {len(rows)} rows have no truth",
            remedy="truth= names the folder that the log in data.root was simulated into",
        )  # fmt: skip
    for name in actions:
        rows = rows.append_column(TRUE + name, joined[name].cast(pa.float64()))
    return rows


def _known(folder: Path, days: Sequence[str], actions: list[str]) -> pa.Table:
    """Reads the truth of some days and of the nights around them: a slate that is asked for before midnight is seen after it."""
    parts = []
    for day in days_between(add_days(min(days), -1), add_days(max(days), 1)):
        files = [folder / kind / f"dt={day}" / PART_FILE for kind in (EVENTS_FOLDER, TRUTH_FOLDER)]
        if day not in days and not all(file.exists() for file in files):
            continue  # before the first day of the log, or after its last
        try:
            events, truth = (pq.read_table(file, page_checksum_verification=True) for file in files)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError("cannot read what was simulated", where=folder, got=str(error)) from error
        asked = events.select(["event_id", *_REQUEST]).group_by([*_REQUEST, "event_id"]).aggregate([])  # delivered twice, happened once
        parts.append(truth.select(["event_id", *actions]).join(asked, "event_id", join_type="inner").drop_columns("event_id"))
    return pa.concat_tables(parts)
