"""When production would have seen an event: the declared serving freshness, applied to histories and counters alike."""

from __future__ import annotations

import numpy as np

from trainer.errors import ConfigError
from trainer.logs.calendar import BusinessDays
from trainer.schema.logs import LogSpec
from trainer.schema.time import DAY_MS, parse_duration


def ripe(event_time_N: np.ndarray, known_at_N: np.ndarray, maturity_ms: int) -> np.ndarray:
    """Returns when an event's outcome may first be read: known, ripe, and strictly after the event. int64 ms [N]."""
    return np.maximum(known_at_N, event_time_N + max(maturity_ms, 1))


def served(time_N: np.ndarray, spec: LogSpec) -> np.ndarray:
    """Returns the first instant at which serving sees what became available at `time_N`.

    ``realtime`` adds the delay. ``snapshot`` waits for the first snapshot at or after the instant, then the delay. Snapshots
    lie whole periods after local midnight, and at every local midnight; a period of several days keeps every n-th midnight.

    Raises:
        ConfigError: If the period neither divides a day nor is a whole number of days.
    """
    delay = parse_duration(spec.serving.delay, "data.serving.delay")
    if spec.serving.mode == "realtime" or not len(time_N):
        return time_N + delay
    period = parse_duration(spec.serving.period, "data.serving.period")
    if period % DAY_MS and DAY_MS % period:
        raise ConfigError(
            "a snapshot period divides a day or is whole days",
            where="data.serving.period",
            got=spec.serving.period,
            expected="for example 6h, 1d",
        )
    reach = max(period, DAY_MS)
    days = BusinessDays.covering(np.array([time_N.min(), time_N.max() + reach + DAY_MS]), spec.timezone)
    index_N = days.index(time_N)
    start_N, next_N = days.starts_D[index_N], days.starts_D[index_N + 1]
    if period >= DAY_MS:
        every = period // DAY_MS
        midnights_M = days.starts_D[(np.arange(len(days.starts_D)) + days.ordinal) % every == 0]
        return midnights_M[np.searchsorted(midnights_M, time_N, side="left")] + delay
    return np.minimum(start_N - (start_N - time_N) // period * period, next_N) + delay
