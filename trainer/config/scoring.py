"""Configuration of `scripts/score.py`."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.inputs import RebuildConfig, ScanConfig
from trainer.config.shipping import RegistryConfig
from trainer.errors import ConfigError
from trainer.schema.logs import LogSpec


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """`scripts/score.py`: scores any Parquet of (user, item, time) with a release (`conf/score.yaml`).

    Attributes:
        input: The rows: user, item, time (int64 ms or a timestamp); features of the log by their names, as far as they are known;
            any other column is handed through.
        out: The same rows with ``score_<action>``, ``value`` and ``dot``.
        version: A release of the registry; null takes the live one.
        bundle: A bundle's folder instead of a release; one inside a release is scored as released.
        data: The log that histories and counters are read from.
        scan: What may be read of it.
        rebuild: Where rebuilt files lie; that of the main job saves the work.
        registry: Where the releases live.
    """

    input: str
    out: str
    version: str | None = None
    bundle: str | None = None
    data: LogSpec
    scan: ScanConfig
    rebuild: RebuildConfig
    registry: RegistryConfig

    def __post_init__(self) -> None:
        if self.bundle is not None and self.version is not None:
            raise ConfigError("a bundle and a version are two models", where="version", got=self.version, remedy="give one of them")
