"""One dataclass a script: everything that it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trainer.config.inputs import RebuildConfig, ScanConfig
from trainer.config.judging import EvaluationConfig, ValueConfig
from trainer.config.shipping import DownstreamConfig, ExportConfig, RegistryConfig, ReleaseConfig, ServingConfig, TrackingConfig
from trainer.config.training import (
    CostConfig,
    DistillConfig,
    FitConfig,
    ModelConfig,
    NextItemConfig,
    OptimizerConfig,
    ScheduleConfig,
    WarmStartConfig,
)
from trainer.errors import ConfigError
from trainer.schema.features import FeatureSpec
from trainer.schema.logs import LogSpec
from trainer.schema.policy import GatePolicy, RuleSet
from trainer.schema.simulation import SimulationSpec
from trainer.schema.time import parse_day
from trainer.schema.validate import choice, positive


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Everything the main job needs (`conf/retrain.yaml`)."""

    as_of: str | None = None
    run_dir: str
    seed: int = 0
    data: LogSpec
    features: FeatureSpec
    scan: ScanConfig
    rebuild: RebuildConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    warm_start: WarmStartConfig
    fit: FitConfig
    evaluation: EvaluationConfig
    value: ValueConfig
    rules: RuleSet
    gate: GatePolicy
    export: ExportConfig
    downstream: DownstreamConfig
    registry: RegistryConfig
    release: ReleaseConfig
    tracking: TrackingConfig
    next_item: NextItemConfig | None = None
    distill: DistillConfig = field(default_factory=DistillConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    cost: CostConfig = field(default_factory=CostConfig)

    def __post_init__(self) -> None:
        if self.as_of is not None:
            parse_day(self.as_of)
        if self.warm_start.new_rows == "none" and self.optimizer.tables != "rowwise_adagrad":
            raise ConfigError(
                "rows without moments under a large count of steps overshoot several times over", where="warm_start.new_rows",
                got=f"none with optimizer.tables={self.optimizer.tables}", expected="optimizer.tables=rowwise_adagrad",
                remedy="leave warm_start.new_rows=as_met",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GateRunConfig:
    """`scripts/gate.py`: judges any `predictions.parquet` (`conf/judge.yaml`).

    Attributes:
        predictions: The table.
        run_dir: Where the verdict and the report go.
        seed: Seed of bootstraps.
        suites: Folder of suites, ``registry.root/<product>/suites``; its slices are judged on the table. Null judges none.
        gate: Margins and error rates.
        rules: Rules behind the scores.
    """

    predictions: str
    run_dir: str
    seed: int = 0
    suites: str | None = None
    gate: GatePolicy
    rules: RuleSet


@dataclass(frozen=True, kw_only=True)
class ScanRunConfig:
    """`scripts/scan.py`: judges any log directory (`conf/inspect.yaml`)."""

    run_dir: str
    as_of: str | None = None
    data: LogSpec
    scan: ScanConfig


def _within(path: str, given: str) -> bool:
    """Tells whether a path is a file or folder that was given, or lies in it, however the two are written."""
    return Path(path).resolve().is_relative_to(Path(given).resolve())


@dataclass(frozen=True, kw_only=True)
class CompareRunConfig:
    """`scripts/compare_embeddings.py`: judges any two tables of vectors (`conf/compare.yaml`).

    Attributes:
        old: Parquet file (or folder of files) with the vectors that consumers know.
        new: The same with the vectors that are to replace them.
        run_dir: Where the answer goes; not old or new, nor inside them.
        entity: Subfolder, if both are exports: user or item.
        id_column: Column of the ids; null takes ``id``, else the first integer or string column.
        repair: Where repaired vectors go, if a rigid map repairs them; null takes ``aligned.parquet`` in `run_dir`.
        downstream: Live model behind the vectors (LightGBM ``.txt``, CatBoost ``.cbm`` or ``.json``), replayed on old, new and repaired
            vectors. Its features that `rows` lacks are the vectors' coordinates.
        rows: Parquet file of its rows: the id column, ``label`` (0 or 1), its other features, optional ``user`` (whose rows belong
            together; default the id) and ``weight``.
    """

    old: str
    new: str
    run_dir: str
    entity: str | None = None
    id_column: str | None = None
    repair: str | None = None
    downstream: str | None = None
    rows: str | None = None

    def __post_init__(self) -> None:
        if (self.downstream is None) != (self.rows is None):
            missing, expected = "rows" if self.rows is None else "downstream", "downstream=MODEL rows=FILE, or neither"
            raise ConfigError("a live model is replayed on rows", where=missing, got="null", expected=expected)
        if self.repair is not None and any(_within(self.repair, given) for given in (self.old, self.new)):
            raise ConfigError("the repaired vectors would replace what they were made from", where="repair", got=self.repair)
        if any(_within(self.run_dir, given) for given in (self.old, self.new)):
            raise ConfigError(
                "the answer would be written among the vectors that are compared, where repaired ones are read as part of the table",
                where="run_dir", got=self.run_dir, expected="a folder outside old and new", remedy="give another run_dir",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """`scripts/simulate.py`: writes a simulated log (`conf/simulate.yaml`)."""

    out: str
    simulation: SimulationSpec


@dataclass(frozen=True, kw_only=True)
class ReleaseRunConfig:
    """`scripts/release.py` (`conf/operate.yaml`).

    Attributes:
        action: promote, rollback, freeze, unfreeze, reference, unreference, gc, history or status.
        version: Version to promote, to roll back to, to refer to, or whose history is asked for.
        reason: Recorded with what was done.
        override: Promote although the verdict is not PROMOTE; needs a reason, and is recorded.
        keep: Newest versions that ``gc`` keeps, besides those that an alias points to.
        dry_run: Whether ``gc`` only says what it would remove.
    """

    registry: RegistryConfig
    action: str
    version: str | None = None
    reason: str | None = None
    override: bool = False
    keep: int | None = None
    dry_run: bool = True

    def __post_init__(self) -> None:
        choice("action", self.action, ("promote", "rollback", "freeze", "unfreeze", "reference", "unreference", "gc", "history", "status"))
        if self.keep is not None:
            positive("keep", self.keep)
