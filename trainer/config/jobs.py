"""One dataclass a script: everything that it needs."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.inputs import RebuildConfig, ScanConfig
from trainer.config.judging import EvaluationConfig, ValueConfig
from trainer.config.shipping import DownstreamConfig, ExportConfig, RegistryConfig, ReleaseConfig, TrackingConfig
from trainer.config.training import FitConfig, ModelConfig, NextItemConfig, OptimizerConfig, ScheduleConfig, WarmStartConfig
from trainer.schema.features import FeatureSpec
from trainer.schema.logs import LogSpec
from trainer.schema.policy import GatePolicy, RuleSet
from trainer.schema.simulation import SimulationSpec
from trainer.schema.time import parse_day
from trainer.schema.validate import choice


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

    def __post_init__(self) -> None:
        if self.as_of is not None:
            parse_day(self.as_of)


@dataclass(frozen=True, kw_only=True)
class GateRunConfig:
    """`scripts/gate.py`: judges any `predictions.parquet` (`conf/judge.yaml`)."""

    predictions: str
    run_dir: str
    seed: int = 0
    gate: GatePolicy
    rules: RuleSet


@dataclass(frozen=True, kw_only=True)
class ScanRunConfig:
    """`scripts/scan.py`: judges any log directory (`conf/inspect.yaml`)."""

    run_dir: str
    as_of: str | None = None
    data: LogSpec
    scan: ScanConfig


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """`scripts/simulate.py`: writes a simulated log (`conf/simulate.yaml`)."""

    out: str
    simulation: SimulationSpec


@dataclass(frozen=True, kw_only=True)
class ReleaseRunConfig:
    """`scripts/release.py` (`conf/operate.yaml`).

    Attributes:
        action: promote, rollback, freeze, unfreeze or status.
        version: Version to promote, or to roll back to.
        reason: Recorded with a freeze or an override.
        override: Promote although the verdict is not PROMOTE; needs a reason, and is recorded.
    """

    registry: RegistryConfig
    action: str
    version: str | None = None
    reason: str | None = None
    override: bool = False

    def __post_init__(self) -> None:
        choice("action", self.action, ("promote", "rollback", "freeze", "unfreeze", "status"))
