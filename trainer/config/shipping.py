"""Configuration of what leaves the run: embeddings, the downstream model, releases, tracking."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.errors import ConfigError
from trainer.schema.serving import FORMATS
from trainer.schema.time import parse_day
from trainer.schema.validate import choice, positive


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Embeddings for consumers.

    Attributes:
        enabled: Whether the stage runs.
        entities: ``user`` and/or ``item``.
        wide: Whether feature vectors, one float32 column a dimension, are written beside the serving vectors.
        layout: Column of the serving vectors: ``list`` (fixed-size lists, read by everything) or ``packed`` (their bytes, faster).
        delta: Whether vectors that changed since the live export are written apart, with the ids that are no more.
        as_of: Past days whose features are exported as they would have been on that day (`trainer.export.as_of`).
        as_of_in_sample: Whether a day that all weights at hand have seen is written, marked, instead of refused.
        on_drift: When no rigid map brings vectors back to the live space: ``new_space`` or ``refuse``.
        shard_rows: Rows a shard.
        min_coverage: Smallest share of the holdout's rows whose entity must have a vector; below it the export is refused.
        max_zero_share: Largest share of all-zero vectors; above it the export is refused.
    """

    enabled: bool = True
    entities: list[str] = field(default_factory=lambda: ["user", "item"])
    wide: bool = True
    layout: str = "list"
    delta: bool = False
    as_of: list[str] = field(default_factory=list)
    as_of_in_sample: bool = False
    on_drift: str = "new_space"
    shard_rows: int = 200_000
    min_coverage: float = 0.2
    max_zero_share: float = 0.01

    def __post_init__(self) -> None:
        positive("export.shard_rows", self.shard_rows)
        choice("export.layout", self.layout, ("list", "packed"))
        choice("export.on_drift", self.on_drift, ("new_space", "refuse"))
        for day in self.as_of:
            parse_day(day)
        for entity in self.entities:
            choice("export.entities", entity, ("user", "item"))
        if self.as_of and len(set(self.entities)) < 2:
            raise ConfigError(
                "features of past days hold both vectors",
                where="export.entities",
                got=self.entities,
                expected="[user, item] with export.as_of",
            )


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """A feature table of the team that owns the final model.

    Attributes:
        path: Parquet file, or a folder of them.
        on: Join key: columns that the table and the rows share, of ``user``, ``item``, ``request``, ``time``.
        columns: Features; null takes every other column.
        known_at: Column with the instant (ms) from which a row held: each request reads the newest row known before it. Without it a
            key comes once.
    """

    path: str
    on: list[str]
    columns: list[str] | None = None
    known_at: str | None = None

    def __post_init__(self) -> None:
        if not self.on:
            raise ConfigError(
                "a feature table without a join key", where="downstream.tables", got=self.path, expected="on: [user] or the like"
            )
        for name in self.on:
            choice("downstream.tables.on", name, ("user", "item", "request", "time"))


@dataclass(frozen=True, kw_only=True)
class DownstreamConfig:
    """The final ranking model behind the embeddings.

    Attributes:
        enabled: Whether a final model is trained with and without the exported features (needs the extra ``downstream``).
        library: ``lightgbm`` or ``catboost``.
        objective: ``binary`` predicts the action; ``ranking`` orders the rows of a request (or of a user's day) by it.
        action: Binary action it predicts; null takes the first gated one.
        tables: The team's own feature tables, joined to the rows of both arms.
        ablation: Whether a model with the scalars alone and one with the vectors alone are trained too.
        live: The model that is live now, where the registry does not have it: it is replayed, frozen, on the new features before they
            are released, and no final model is sealed. Null takes the one that was sealed with the live release.
        trees: Boosting rounds.
        leaves: Leaves a tree.
        learning_rate: Shrinkage.
        max_rows: Training rows at most (the newest).
        threads: Threads of the library. One, because its threads wait by spinning: on a machine that others use, two were four
            times slower than one. The result does not depend on it.
    """

    enabled: bool = True
    library: str = "lightgbm"
    objective: str = "binary"
    action: str | None = None
    tables: list[FeatureTable] = field(default_factory=list)
    ablation: bool = True
    live: str | None = None
    trees: int = 150
    leaves: int = 31
    learning_rate: float = 0.05
    max_rows: int = 300_000
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("trees", "learning_rate", "max_rows", "threads"):
            positive(f"downstream.{name}", getattr(self, name))
        choice("downstream.library", self.library, ("lightgbm", "catboost"))
        choice("downstream.objective", self.objective, ("binary", "ranking"))
        if self.leaves < 2:
            raise ConfigError("a tree needs two leaves", where="downstream.leaves", got=self.leaves)


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The serving artefact: the ranker as a graph for other runtimes, written into the release.

    Attributes:
        enabled: Whether it is written and judged. Off by default: tracing and converting take about a minute.
        format: ``torch_export`` and/or ``onnx`` (needs the extra ``onnx``).
        tolerance: Largest difference from the ranker's scores on the edge set (of the largest score, where that is above one).
        latency_budget: Relative rise of a request's p50 and p95 against production's that is tolerated.
        size_budget: Relative rise of a file's size against production's that is tolerated.
        candidates: Candidates of the timed request, which has a full history.
        requests: Timed requests a block; both models take turns.
    """

    enabled: bool = False
    format: list[str] = field(default_factory=lambda: [*FORMATS])
    tolerance: float = 1e-5
    latency_budget: float = 0.1
    size_budget: float = 0.1
    candidates: int = 100
    requests: int = 40

    def __post_init__(self) -> None:
        for name in ("tolerance", "latency_budget", "size_budget", "candidates", "requests"):
            positive(f"serving.{name}", getattr(self, name))
        for word in self.format:
            choice("serving.format", word, FORMATS)
        if not self.format:
            raise ConfigError("an artefact without a format", where="serving.format", got="[]", remedy="serving.enabled=false")


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
        absorb: After PROMOTE, train a copy of the judged trunk on the holdout too and serve it, if it stays close to the judged
            copy on the holdout's rows; the judged trunk stays the parent of the next run.
        absorb_mean: Largest shift of an action's mean logit (log of the expectation for counts and durations).
        absorb_quantile: Largest shift of any of its percentiles 1 to 99.
        absorb_ratio: Largest distance of predicted / observed from 1, unless the judged copy's is larger.
        absorb_traffic: Largest relative change of the traffic above production's quantiles .5, .9 and .99.
    """

    auto: bool = True
    absorb: bool = False
    absorb_mean: float = 0.1
    absorb_quantile: float = 0.3
    absorb_ratio: float = 0.05
    absorb_traffic: float = 0.2

    def __post_init__(self) -> None:
        for name in ("absorb_mean", "absorb_quantile", "absorb_ratio", "absorb_traffic"):
            positive(f"release.{name}", getattr(self, name))
        if self.absorb and not self.auto:
            raise ConfigError(
                "nothing is absorbed where PROMOTE is not carried out", where="release.absorb", remedy="release.auto=true, or drop it"
            )


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
