"""Typed configuration: Hydra composes YAML, `load` turns it into dataclasses and refuses what it does not know.

YAML supplies values only; no class names. Past `load`, code works with checked dataclasses. Unknown keys are refused wherever
they come from (also ``++typo=1``, which Hydra itself lets pass), with the nearest valid key.
"""

from trainer.config.backtest import ArmConfig, BacktestConfig
from trainer.config.diagnosing import DiagnoseRunConfig
from trainer.config.importing import ImportConfig
from trainer.config.injection import InjectConfig
from trainer.config.inputs import RebuildConfig, ScanConfig
from trainer.config.jobs import CompareRunConfig, GateRunConfig, ReleaseRunConfig, RetrainConfig, ScanRunConfig, SimulateConfig
from trainer.config.judging import EvaluationConfig, ValueConfig
from trainer.config.load import load, resolve_log_spec
from trainer.config.scoring import ScoreConfig
from trainer.config.shipping import (
    DownstreamConfig,
    ExportConfig,
    FeatureTable,
    RegistryConfig,
    ReleaseConfig,
    ServingConfig,
    TrackingConfig,
)
from trainer.config.suites import SuiteRunConfig
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

__all__ = [
    "ArmConfig",
    "BacktestConfig",
    "CompareRunConfig",
    "CostConfig",
    "DiagnoseRunConfig",
    "DistillConfig",
    "DownstreamConfig",
    "EvaluationConfig",
    "ExportConfig",
    "FeatureTable",
    "FitConfig",
    "GateRunConfig",
    "ImportConfig",
    "InjectConfig",
    "ModelConfig",
    "NextItemConfig",
    "OptimizerConfig",
    "RebuildConfig",
    "RegistryConfig",
    "ReleaseConfig",
    "ReleaseRunConfig",
    "RetrainConfig",
    "ScanConfig",
    "ScanRunConfig",
    "ScheduleConfig",
    "ScoreConfig",
    "ServingConfig",
    "SimulateConfig",
    "SuiteRunConfig",
    "TrackingConfig",
    "ValueConfig",
    "WarmStartConfig",
    "load",
    "resolve_log_spec",
]
