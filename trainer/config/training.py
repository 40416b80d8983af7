"""Configuration of training: model, optimizer, schedule, warm start, fit."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from trainer.errors import ConfigError
from trainer.schema.hash_function import MOST_ROWS, MOST_SEED, HashFunction
from trainer.schema.transfer import COVERAGE, Rules
from trainer.schema.validate import choice, positive

_NOT_OF_THE_SHAPE = ("name", "max_history", "user_id", "hashed", "hash_seed")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the ranker; see `models.ranker.RankerShape`.

    Attributes:
        name: Architecture.
        max_history: L, events before the day that a user's history keeps.
        user_id: Whether the user id itself is a context feature (an embedding per user).
        hashed: Vocabulary (``user`` with `user_id`, or a categorical feature) -> rows: its ids find a row by a hash instead of
            owning one, so its table never grows and no id is unknown (`trainer.schema.hashed`). Not the items: they are what is
            ranked, exported and listed by id.
        hash_seed: Seed of those hashes. The bundle records both; a change moves every id.
        stand_ins: Whether a missing number is stood in for by a learned linear function of the others: as many weights as pairs
            of numeric features.
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
    hashed: dict[str, int] = field(default_factory=dict)
    hash_seed: int = 0
    norm: str = "rms"
    norm_eps: float = 1e-6
    final_norm_eps: float | None = None
    activation: str = "gelu"
    biases: bool = False
    rotary: bool = True
    positions: int = 0
    padding: int | None = None
    normed_layers: int = 0
    stand_ins: bool = True

    def __post_init__(self) -> None:
        choice("model.name", self.name, ("sasrec", "hstu"))
        choice("model.norm", self.norm, ("rms", "layer"))
        choice("model.activation", self.activation, ("gelu", "relu"))
        for name in ("dim", "layers", "heads", "head_dim", "ffn_dim", "context_dim", "max_history"):
            positive(f"model.{name}", getattr(self, name))
        if self.rotary and self.head_dim % 2:
            raise ConfigError("rotary positions need an even head width", where="model.head_dim", got=self.head_dim)
        self._check_hashed()

    def _check_hashed(self) -> None:
        for name, rows in self.hashed.items():
            if not 1 <= rows <= MOST_ROWS:
                raise ConfigError("a number of rows is impossible", where=f"model.hashed.{name}", got=rows, expected=f"1 to {MOST_ROWS}")
        if "item" in self.hashed:
            raise ConfigError(
                "items cannot be hashed: two in one row would get one score and one exported vector, and the catalogue, which export and "
                "the gate read, is a list of ids all the same", where="model.hashed", got="item",
                remedy="hash the vocabularies beside it; warm_start.retire_after_days bounds the items",
            )  # fmt: skip
        if "user" in self.hashed and not self.user_id:
            raise ConfigError(
                "there is no table of users to hash", where="model.hashed.user", got="model.user_id=false", remedy="model.user_id=true"
            )
        if not 0 <= self.hash_seed <= MOST_SEED or (self.hash_seed and not self.hashed):
            raise ConfigError(
                "a seed of hashes is a number from 0, and without a hashed vocabulary it has no effect", where="model.hash_seed",
                got=self.hash_seed, remedy="model.hashed={<vocabulary>: <rows>}",
            )  # fmt: skip

    def hash_of(self, vocabulary: str) -> HashFunction | None:
        """Returns the hash of a vocabulary, None for one that lists its ids."""
        rows = self.hashed.get(vocabulary)
        return None if rows is None else HashFunction(rows=rows, seed=self.hash_seed)

    def shape_values(self) -> dict[str, Any]:
        """Returns the fields of `models.ranker.RankerShape` that a configuration decides, apart from the architecture."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_OF_THE_SHAPE}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with groups: matrices decay, norms and biases do not; embedding tables are updated row by row, only where touched.

    Attributes:
        name: ``adamw``.
        lr: Learning rate of everything but embeddings.
        tables: How embedding tables learn: ``adamw`` (two moments an entry) or ``rowwise_adagrad`` (one accumulator a row).
        embedding_lr: Learning rate of embedding tables.
        table_decay: Frequency-aware decay of table rows: a touched row loses ``min(1, table_decay x steps since its last touch)``
            of itself (AdamAR); 0 is off.
        weight_decay: Decoupled decay of matrices.
        beta1: First moment.
        beta2: Second moment.
        clip_norm: Global gradient norm.
    """

    name: str = "adamw"
    lr: float = 1e-3
    tables: str = "adamw"
    table_decay: float = 0.0
    embedding_lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        choice("optimizer.name", self.name, ("adamw",))
        positive("optimizer.lr", self.lr)
        positive("optimizer.embedding_lr", self.embedding_lr)
        choice("optimizer.tables", self.tables, ("adamw", "rowwise_adagrad"))
        if not 0 <= self.table_decay < 1:
            raise ConfigError("a decay a step lies in [0, 1)", where="optimizer.table_decay", got=self.table_decay)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate schedule: linear warm-up, then a trunk at a constant rate, which is the parent of the next run.

    Attributes:
        warmup_steps: Steps of a cold run's warm-up.
        rewarm_steps: Steps of a warm run's re-warm-up.
        warm_factor: Factor on the learning rate of a warm run: a night adds to years of training, it does not replace them.
        fresh_factor: The same for entries outside the tables that production did not have (added layers, heads and widths, another
            trunk): nothing was learned there that a large step could lose. At least `warm_factor`; null takes that.
        serving: What is served: ``ema`` (the trunk's average, `fit.ema_decay`), ``annealed`` (a copy that leaves the trunk before
            the end and is annealed on the same batches) or ``trunk``.
        anneal_share: Last share of the steps that the annealed copy makes beside the trunk: what it costs, in steps.
        anneal_to: Factor at the very end; the copy's rate falls linearly to it.
    """

    warmup_steps: int = 50
    rewarm_steps: int = 20
    warm_factor: float = 0.3
    fresh_factor: float | None = None
    serving: str = "ema"
    anneal_share: float = 0.0
    anneal_to: float = 0.1

    def __post_init__(self) -> None:
        choice("schedule.serving", self.serving, ("ema", "annealed", "trunk"))
        if self.fresh_factor is not None and not self.warm_factor <= self.fresh_factor:
            raise ConfigError(
                "what production never trained learns no slower than what it did", where="schedule.fresh_factor", got=self.fresh_factor,
                expected=f"{self.warm_factor:g} (schedule.warm_factor) or more",
            )  # fmt: skip
        if not 0 <= self.anneal_share < 1:
            raise ConfigError("a share lies in [0, 1)", where="schedule.anneal_share", got=self.anneal_share)
        if (self.anneal_share > 0) != (self.serving == "annealed"):
            raise ConfigError(
                "the trunk keeps its rate; only a served copy is annealed",
                where="schedule.anneal_share",
                got=f"{self.anneal_share} with schedule.serving={self.serving}",
                remedy="schedule=anneal, or schedule.serving=annealed with an anneal_share above 0",
            )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learning from a teacher's scores through a head that is trained and not served (`models.heads.TeacherHead`).

    Teacher and challenger may share nothing but the names of their actions.

    Attributes:
        source: ``none``, ``production`` (the live bundle scores every training row) or ``logged`` (the scores that production
            logged; it need not be a bundle; rows without one are left out).
        weight: Weight of the teacher's loss beside the labels'.
        decay_to: Share of `weight` that is left at the last step; it falls linearly.
        stop_gradient: Whether the head only listens: it tells how well the teacher can be read and teaches nothing.
    """

    source: str = "none"
    weight: float = 1.0
    decay_to: float = 1.0
    stop_gradient: bool = False

    def __post_init__(self) -> None:
        choice("distill.source", self.source, ("none", "production", "logged"))
        positive("distill.weight", self.weight)
        if not 0 <= self.decay_to <= 1:
            raise ConfigError("a share lies in [0, 1]", where="distill.decay_to", got=self.decay_to)
        if self.source == "none" and (self.weight, self.decay_to, self.stop_gradient) != (1.0, 1.0, False):
            raise ConfigError(
                "without a teacher these settings have no effect",
                where="distill",
                got=f"weight {self.weight}, decay_to {self.decay_to}, stop_gradient {self.stop_gradient}",
                remedy="distill=production or distill=logged",
            )

    def weight_at(self, step: int, steps: int) -> float:
        """Returns the weight at `step` (from 0) of `steps`."""
        return self.weight * (1 + (self.decay_to - 1) * step / max(steps - 1, 1))


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Where the challenger's weights come from.

    Attributes:
        source: ``production`` (the registry's live bundle, cold if there is none) or ``none``.
        dry_run: Print the transfer plan and stop.
        new_ids: Initial rows of ids that production did not know: ``oov`` (what production did with them), ``neighbours`` (mean of
            known items with the same features, by traffic), ``mean`` or ``zero``.
        new_ids_by: Vocabulary -> the same choice for its ids alone (``{author: mean}``); a hashed one has no new ids.
        new_id_noise: Standard deviation of noise on new rows, as a share (0 to 1) of the trained rows' deviation.
        rename: Glob in production -> name in the challenger, for tensors and for the keys of heads, features and vocabularies
            (``click: click@feed``). A rule that renames nothing is refused.
        insert: What added layers start as: ``identity`` or ``stack`` (copies of trained layers; needs `approximate`).
        insert_at: Stack of layers (``blocks``, ``context.layers``) -> places of the added ones; by default they come last.
        shrink: Factor on production's matrices outside the tables; needs `approximate` unless 1.
        perturb: Factor on the fresh initialisation added to them; needs `approximate` unless 0.
        merge_alpha: Share of the trained weights in what is served; the rest is where the run began (WiSE-FT). Needs
            `approximate` unless 1.
        coverage: Family of tensors (tables, trunk, heads, context) -> share of production's elements that must arrive, rows
            weighted by traffic; otherwise the warm start is refused.
        optimizer: ``carry`` (moments by name and row) or ``reset``.
        new_rows: Moments of new ids' rows: ``as_met`` (those of rows met as often: they move no further than these) or ``none``
            (only with ``optimizer.tables=rowwise_adagrad``: they learn at the rate of a first encounter).
        retire_after_days: Ids not seen for so long lose their row; 0 keeps all. Rows of hashed vocabularies are nobody's alone and stay.
        approximate: Whether what cannot keep production's outputs is allowed (another architecture, narrower or fewer layers, the
            options above); the difference is measured and reported instead.
        replay_share: Share of training targets drawn again from days production has already trained on.
        replay_tables: What replayed targets do to embedding tables, which overfit in a second pass: ``frozen`` (nothing),
            ``decayed`` (train them, and rows decay by `replay_decay` as `optimizer.table_decay` says) or ``train``. Under ``train``
            they share every batch with new ones, and rows that only they know are forgotten least; the others need steps of
            their own.
        replay_decay: Frequency-aware decay on replayed targets.
    """

    source: str = "production"
    dry_run: bool = False
    new_ids: str = "oov"
    new_ids_by: dict[str, str] = field(default_factory=dict)
    new_id_noise: float = 0.0
    rename: dict[str, str] = field(default_factory=dict)
    insert: str = "identity"
    insert_at: dict[str, list[int]] = field(default_factory=dict)
    shrink: float = 1.0
    perturb: float = 0.0
    merge_alpha: float = 1.0
    coverage: dict[str, float] = field(default_factory=lambda: dict(COVERAGE))
    optimizer: str = "carry"
    new_rows: str = "as_met"
    retire_after_days: int = 0
    approximate: bool = False
    replay_share: float = 0.0
    replay_tables: str = "frozen"
    replay_decay: float = 0.0

    def __post_init__(self) -> None:
        choice("warm_start.source", self.source, ("production", "none"))
        Rules(
            new_ids=self.new_ids,
            new_ids_by=self.new_ids_by,
            noise=self.new_id_noise,
            rename=self.rename,
            insert=self.insert,
            insert_at=self.insert_at,
            approximate=self.approximate,
            shrink=self.shrink,
            perturb=self.perturb,
            coverage=self.coverage,
        )
        if not 0 <= self.merge_alpha <= 1 or (self.merge_alpha < 1 and not self.approximate):
            raise ConfigError(
                "a share of the trained weights lies in [0, 1], and one below 1 must be asked for twice",
                where="warm_start.merge_alpha",
                got=self.merge_alpha,
                remedy="add warm_start.approximate=true",
            )
        choice("warm_start.optimizer", self.optimizer, ("carry", "reset"))
        choice("warm_start.new_rows", self.new_rows, ("as_met", "none"))
        if self.new_rows == "none" and self.optimizer == "reset":
            raise ConfigError(
                "without moments all rows start alike", where="warm_start.new_rows", got="none with warm_start.optimizer=reset",
                remedy="leave one of the two out",
            )  # fmt: skip
        choice("warm_start.replay_tables", self.replay_tables, ("frozen", "decayed", "train"))
        if not 0 <= self.replay_share < 1:
            raise ConfigError("a share lies in [0, 1)", where="warm_start.replay_share", got=self.replay_share)
        if not 0 <= self.replay_decay < 1 or (self.replay_decay > 0) != (self.replay_tables == "decayed"):
            raise ConfigError(
                "replayed targets decay rows only where they are told to",
                where="warm_start.replay_decay",
                got=f"{self.replay_decay} with warm_start.replay_tables={self.replay_tables}",
                expected="replay_tables=decayed with a replay_decay above 0 and below 1, or neither",
            )

    def of_same_shape(self) -> WarmStartConfig:
        """Returns the settings for production's own shape: nothing to place, stack, shrink or average."""
        return replace(self, insert="identity", insert_at={}, shrink=1.0, perturb=0.0, merge_alpha=1.0)


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
        workers: Loader threads a rank; 0 loads between the steps, -1 chooses (`trainer.machine.share`: 0 on the CPU, up to 2 on a GPU).
        threads: Threads of torch a rank; 0 chooses (the rank's share of the cores that this process may use, by affinity mask and control
            groups, at most 16; at most OMP_NUM_THREADS where that is set).
        checkpoint_steps: Steps between resumable checkpoints.
        max_skipped_steps: Non-finite steps that are skipped before the run stops.
        deterministic: Bit-equal on CUDA too.
        compile: Whether the trunk's blocks go through `torch.compile`, once for all batch sizes; attention has kernels of its own and
            stays outside. Off: on a CPU compiling costs more than a night's steps win.
        checkpoint_activations: Whether a block's inside is computed again on the way back instead of being kept (equal gradients).
        day_weights: Whether days are learned in their order, and the served weights kept at the end of each: `export.as_of` scores a
            past day by the weights that had seen only the days before it.
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
    workers: int = -1
    threads: int = 0
    checkpoint_steps: int = 200
    max_skipped_steps: int = 20
    deterministic: bool = False
    compile: bool = False
    checkpoint_activations: bool = False
    day_weights: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        choice("fit.device", self.device, ("auto", "cpu", "gpu", "ddp"))
        choice("fit.precision", self.precision, ("fp32", "bf16"))
        for name in ("passes", "warm_passes", "batch_targets", "batch_tokens", "checkpoint_steps", "devices"):
            positive(f"fit.{name}", getattr(self, name))
        for name, least in (("workers", -1), ("threads", 0)):
            if getattr(self, name) < least:
                raise ConfigError("too small", where=f"fit.{name}", got=getattr(self, name), expected=f"{least} (chosen) or more")
        if self.day_weights and max(self.passes, self.warm_passes) > 1:
            raise ConfigError("a second pass has seen every day", where="fit.day_weights", got="passes > 1", expected="one pass")


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """What the cost report (`summary.json`, ``cost``) is told about the machine.

    Attributes:
        price_per_hour: Price of the machine, in any currency; null reports no money.
        peak_flops: FLOP/s that one device can do at most; null takes a GPU's bf16 peak from a table, and measures a CPU.
    """

    price_per_hour: float | None = None
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        for name in ("price_per_hour", "peak_flops"):
            if (value := getattr(self, name)) is not None:
                positive(f"cost.{name}", value)


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
        softmax: ``full`` (over the whole catalogue) or ``sampled`` (against `negatives` shared by all rows of a step, corrected for
            how often each is drawn: `models.negatives`).
        negatives: Shared negatives a step of the sampled softmax; 0 under the full one.
    """

    path: str
    user: str = "user_id"
    item: str = "item_id"
    position: str = "seq_pos"
    top_k: int = 10
    validate_every: int = 1
    softmax: str = "full"
    negatives: int = 0

    def __post_init__(self) -> None:
        positive("next_item.top_k", self.top_k)
        positive("next_item.validate_every", self.validate_every)
        choice("next_item.softmax", self.softmax, ("full", "sampled"))
        if (self.negatives > 0) != (self.softmax == "sampled") or self.negatives < 0:
            raise ConfigError(
                "only the sampled softmax has negatives, and it needs some",
                where="next_item.negatives",
                got=f"{self.negatives} with next_item.softmax={self.softmax}",
                expected="a number above 0 with softmax=sampled, or 0 with softmax=full",
            )
