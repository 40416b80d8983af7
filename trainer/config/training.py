"""Configuration of training: model, optimizer, schedule, warm start, fit."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import ConfigError
from trainer.schema.validate import choice, positive


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
