"""Typed configuration: Hydra composes YAML, this module turns it into dataclasses and refuses what it does not know.

YAML supplies values only; no class names. `load` is the one border: past it, code works with checked dataclasses. Unknown
keys are refused wherever they come from (also ``++typo=1``, which Hydra itself lets pass), with the nearest valid key.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from trainer.errors import ConfigError, nearest
from trainer.schema.features import FeatureSpec
from trainer.schema.logs import LogSpec
from trainer.schema.policy import GatePolicy, RuleSet
from trainer.schema.simulation import SimulationSpec
from trainer.schema.time import parse_day
from trainer.schema.validate import choice, positive

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """Reading and judging the logs.

    Attributes:
        read_deadline_s: A read that takes longer is killed.
        memory_limit_gb: Address space of a reading worker.
        retries: Attempts after a transient error.
        min_rows_share: A day with a smaller share of the median of earlier days is refused.
        max_bad_rows_share: A day that loses a larger share of its rows is refused.
        max_refused_days: More refused days in the last 14 stop the run.
        workers: Processes.
    """

    read_deadline_s: float = 120.0
    memory_limit_gb: float = 8.0
    retries: int = 2
    min_rows_share: float = 0.0
    max_bad_rows_share: float = 0.3
    max_refused_days: int = 14
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class RebuildConfig:
    """Point-in-time rebuild.

    Attributes:
        root: Folder of the examples; content-addressed, so runs may share it, one at a time.
        user_buckets: Partitions of a day by user.
        entity_buckets: Partitions of the entity pass.
        workers: Processes of the local pool.
        engine: ``local``.
        audit_rows: Random rows that the brute-force oracle recomputes after every rebuild; a difference stops the run.
        leak_alarm: Whether a single feature that ranks a label too well stops the run.
        compression: Codec of the examples.
    """

    root: str
    user_buckets: int = 4
    entity_buckets: int = 2
    workers: int = 2
    engine: str = "local"
    audit_rows: int = 32
    leak_alarm: bool = True
    compression: str = "zstd"

    def __post_init__(self) -> None:
        choice("rebuild.engine", self.engine, ("local",))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the ranker; see `models.ranker.RankerShape`.

    Attributes:
        name: Architecture.
        max_history: L, events before the day that a user's history keeps.
        user_id: Whether the user id itself is a context feature (an embedding per user).
    """

    name: str
    dim: int = 64
    layers: int = 2
    heads: int = 2
    head_dim: int = 32
    ffn_dim: int = 256
    context_dim: int = 128
    context_layers: int = 2
    dropout: float = 0.1
    feature_dropout: float = 0.0
    auxiliary_weight: float = 0.2
    max_history: int = 50
    user_id: bool = False

    def __post_init__(self) -> None:
        choice("model.name", self.name, ("sasrec", "hstu"))
        for name in ("dim", "layers", "heads", "head_dim", "ffn_dim", "context_dim", "max_history"):
            positive(f"model.{name}", getattr(self, name))
        if self.head_dim % 2:
            raise ConfigError("rotary positions need an even head width", where="model.head_dim", got=self.head_dim)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with groups: matrices decay, embeddings, norms and biases do not.

    Attributes:
        lr: Learning rate of everything but embeddings.
        embedding_lr: Learning rate of embedding tables.
        weight_decay: Decoupled decay of matrices.
        beta1: First moment.
        beta2: Second moment.
        clip_norm: Global gradient norm.
    """

    name: str = "adamw"
    lr: float = 1e-3
    embedding_lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        choice("optimizer.name", self.name, ("adamw",))
        positive("optimizer.lr", self.lr)
        positive("optimizer.embedding_lr", self.embedding_lr)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate schedule: linear warm-up, constant trunk, optional anneal at the end.

    Attributes:
        warmup_steps: Steps of a cold run's warm-up.
        rewarm_steps: Steps of a warm run's re-warm-up.
        warm_factor: Factor on the learning rate of a warm run: a night adds to years of training, it does not replace them.
        anneal_share: Last share of the steps over which the rate falls linearly to `anneal_to` of its value.
        anneal_to: Factor at the very end.
    """

    warmup_steps: int = 50
    rewarm_steps: int = 20
    warm_factor: float = 0.3
    anneal_share: float = 0.0
    anneal_to: float = 0.1


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Where the challenger's weights come from.

    Attributes:
        source: ``production`` (the registry's live bundle, cold if there is none) or ``none``.
        dry_run: Print the transfer plan and stop.
        new_ids: Initial rows of ids that production did not know: ``oov`` (what production did with them), ``mean`` or ``zero``.
        new_id_noise: Standard deviation of noise on new rows, as a share of the trained rows' deviation.
        optimizer: ``carry`` (moments by name and row) or ``reset``.
        retire_after_days: Ids not seen for so long lose their row; 0 keeps all.
        approximate: Whether an architecture other than production's may start from what both share; the difference is measured.
        replay_share: Share of training targets drawn again from days production has already trained on.
    """

    source: str = "production"
    dry_run: bool = False
    new_ids: str = "oov"
    new_id_noise: float = 0.0
    optimizer: str = "carry"
    retire_after_days: int = 0
    approximate: bool = False
    replay_share: float = 0.0

    def __post_init__(self) -> None:
        choice("warm_start.source", self.source, ("production", "none"))
        choice("warm_start.new_ids", self.new_ids, ("oov", "mean", "zero"))
        choice("warm_start.optimizer", self.optimizer, ("carry", "reset"))


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Training.

    Attributes:
        device: ``auto``, ``cpu``, ``gpu`` or ``ddp``.
        devices: Ranks under ddp.
        precision: ``fp32`` or ``bf16``.
        passes: Passes over the new targets of a cold run; a warm run makes `warm_passes`.
        warm_passes: Passes of a warm run: one, because a second pass overfits embeddings.
        batch_targets: Targets a step and rank aims at.
        batch_tokens: Token budget a step and rank.
        ema_decay: Decay of the averaged weights that are served; 0 serves the trunk.
        workers: Loader processes; 0 loads in the main process.
        threads: Torch threads on CPU; 0 leaves the choice to torch.
        checkpoint_steps: Steps between resumable checkpoints.
        max_skipped_steps: Non-finite steps that are skipped before the run stops.
        deterministic: Bit-equal on CUDA too.
        progress: Whether a progress bar is drawn.
    """

    device: str = "auto"
    devices: int = 1
    precision: str = "fp32"
    passes: int = 1
    warm_passes: int = 1
    batch_targets: int = 512
    batch_tokens: int = 16384
    ema_decay: float = 0.98
    workers: int = 0
    threads: int = 0
    checkpoint_steps: int = 200
    max_skipped_steps: int = 20
    deterministic: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        choice("fit.device", self.device, ("auto", "cpu", "gpu", "ddp"))
        choice("fit.precision", self.precision, ("fp32", "bf16"))
        for name in ("passes", "warm_passes", "batch_targets", "batch_tokens", "checkpoint_steps", "devices"):
            positive(f"fit.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The holdout and what is measured on it.

    Attributes:
        holdout_days: Last days that are judged, never trained on.
        slices: Feature or carried columns that become slice columns of the predictions.
        slice_rows: Smallest slice that is reported.
        new_item: Whether rows whose item no training day knew are marked in a slice column ``new_item``.
        new_user: The same for users.
        counting: Entity (``user``, ``item``, a categorical feature) -> pseudo-count of the counting baseline.
        lightgbm: Whether a LightGBM on the same features and training days stands beside the challenger.
        objective: ``<action>/<metric>`` that is a sweep trial's value.
        bootstrap: Replicates where no influence function exists.
    """

    holdout_days: int = 1
    slices: list[str] = field(default_factory=list)
    slice_rows: int = 100
    new_item: bool = True
    new_user: bool = True
    counting: dict[str, float] = field(default_factory=lambda: {"item": 20.0, "user": 5.0})
    lightgbm: bool = False
    objective: str | None = None
    bootstrap: int = 200

    def __post_init__(self) -> None:
        positive("evaluation.holdout_days", self.holdout_days)


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """The versioned value function: a request is ranked by the weighted sum of expected actions.

    Attributes:
        version: Change it whenever a weight changes.
        weights: Action -> weight; null takes the weights of the log specification.
    """

    version: int = 1
    weights: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Embeddings for consumers.

    Attributes:
        enabled: Whether the stage runs.
        entities: ``user`` and/or ``item``.
        wide: Whether a view with one float32 column a dimension is written beside the vector column.
        shard_rows: Rows a shard.
        min_coverage: Smallest share of the holdout's rows whose entity must have a vector; below it the export is refused.
        max_zero_share: Largest share of all-zero vectors; above it the export is refused.
    """

    enabled: bool = True
    entities: list[str] = field(default_factory=lambda: ["user", "item"])
    wide: bool = True
    shard_rows: int = 200_000
    min_coverage: float = 0.2
    max_zero_share: float = 0.01

    def __post_init__(self) -> None:
        positive("export.shard_rows", self.shard_rows)
        for entity in self.entities:
            choice("export.entities", entity, ("user", "item"))


@dataclass(frozen=True, kw_only=True)
class DownstreamConfig:
    """The final ranking model behind the embeddings.

    Attributes:
        enabled: Whether LightGBM is trained with and without the exported features (needs the extra ``downstream``).
        action: Binary action it predicts; null takes the first gated one.
        trees: Boosting rounds.
        leaves: Leaves a tree.
        learning_rate: Shrinkage.
        max_rows: Training rows at most (the newest).
        threads: Threads of the library. One, because its threads wait by spinning: on a machine that others use, two were four
            times slower than one. The result does not depend on it.
    """

    enabled: bool = True
    action: str | None = None
    trees: int = 150
    leaves: int = 31
    learning_rate: float = 0.05
    max_rows: int = 300_000
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("trees", "learning_rate", "max_rows", "threads"):
            positive(f"downstream.{name}", getattr(self, name))
        if self.leaves < 2:
            raise ConfigError("a tree needs two leaves", where="downstream.leaves", got=self.leaves)


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Where bundles and releases live: ``root/<product>/``."""

    root: str
    product: str = "default"


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """What happens after the verdict.

    Attributes:
        auto: Whether PROMOTE is carried out.
    """

    auto: bool = True


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Experiment tracking mirrors the run; nothing depends on it.

    Attributes:
        name: ``wandb`` or ``none``.
        mode: ``offline`` or ``online``.
        project: Project name.
    """

    name: str = "wandb"
    mode: str = "offline"
    project: str = "rewarm"

    def __post_init__(self) -> None:
        choice("tracking.name", self.name, ("wandb", "none"))
        choice("tracking.mode", self.mode, ("offline", "online", "disabled"))


@dataclass(frozen=True, kw_only=True)
class NextItemConfig:
    """The next-item objective on ordered sequences without a clock, a benchmark of the trunk (`conf/experiment/ml1m.yaml`).

    Attributes:
        path: Parquet file below `data.root`, one row an event.
        user: Column of the user id.
        item: Column of the item id.
        position: Column that orders the events of a user.
        top_k: Length of the judged lists.
        validate_every: Passes between judgements on the validation items; the best judged pass is kept.
    """

    path: str
    user: str = "user_id"
    item: str = "item_id"
    position: str = "seq_pos"
    top_k: int = 10
    validate_every: int = 1

    def __post_init__(self) -> None:
        positive("next_item.top_k", self.top_k)
        positive("next_item.validate_every", self.validate_every)


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


def load(kind: type[T], values: Any, where: str = "") -> T:
    """Builds the dataclass `kind` from a mapping, strictly.

    Args:
        kind: A dataclass.
        values: Mapping with plain values (nested mappings and lists).
        where: Dotted path for messages.

    Returns:
        An instance of `kind`.

    Raises:
        ConfigError: On an unknown key, a missing key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError("expected a mapping", where=where or kind.__name__, got=repr(values))
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in known:
            raise ConfigError("unknown key", where=_join(where, str(key)), got=key, remedy=nearest(str(key), known))
    arguments = {}
    for name, spec in known.items():
        if name in values and values[name] != "???":
            arguments[name] = _convert(hints[name], values[name], _join(where, name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError("missing key", where=_join(where, name), remedy=f"give {_join(where, name)}=...")
    return kind(**arguments)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        return _convert(rest[0], value, where) if len(rest) == 1 else value
    if dataclasses.is_dataclass(hint):
        return load(typing.cast(Any, hint), value, where)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError("expected a list", where=where, got=repr(value))
        return origin(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError("expected a mapping", where=where, got=repr(value))
        return {str(key): _convert(arguments[1], item, _join(where, str(key))) for key, item in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # an unquoted expression or id, say `delay: 0`
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        raise ConfigError("wrong type", where=where, got=repr(value), expected=hint.__name__)
    return value


def resolve_log_spec(values: dict[str, Any], overrides: dict[str, str] | None = None) -> dict[str, Any]:
    """Replaces the groups that describe a log by the user's own specification, if ``data.spec`` names one.

    Args:
        values: The composed configuration as plain mappings.
        overrides: Dotted overrides of the command line; those below `data`, `features` and `evaluation` are applied again.

    Returns:
        A new mapping. The file holds the fields of `LogSpec`; its optional blocks `counters` (point-in-time counters; without
        it they are derived, `features.auto`) and `evaluation` replace the groups of a shipped log. A relative `root` is
        taken from the file's folder; `data.root` on the command line wins.

    Raises:
        ConfigError: If the file is absent or is no YAML mapping.
    """
    data = values.get("data") or {}
    if not data.get("spec"):
        return values
    path = Path(data["spec"])
    own = _read_mapping(path)
    blocks = {"data": own, "evaluation": own.pop("evaluation", {})}
    counters = own.pop("counters", None)
    blocks["features"] = {"auto": True} if counters is None else {"counters": counters}
    own["root"] = str(path.parent / own.get("root", "."))
    own["spec"] = str(path)
    for dotted, text in (overrides or {}).items():
        group, *keys = dotted.split(".")
        if group in blocks and dotted != "data.spec":
            _assign(blocks[group], keys, yaml.safe_load(text))
    return {key: blocks.get(key, value) for key, value in values.items()}


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        own = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("cannot read the log specification", where="data.spec", got=path, expected=str(error)) from error
    if not isinstance(own, dict):
        raise ConfigError("the log specification is not a mapping", where=path, got=type(own).__name__)
    return own


def _assign(target: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        target = target.setdefault(key, {})
    target[keys[-1]] = value
