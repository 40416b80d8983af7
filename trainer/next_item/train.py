"""Trains a ranker on the next item; the pass that is kept is chosen on the validation items."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from models.batch import Batch
from models.negatives import SharedNegatives
from models.packing import pack
from models.ranker import Ranker, RankerShape
from models.softmax import full_softmax, sampled_softmax
from trainer import __version__
from trainer.checkpoint import Bundle, build_ranker, read_bundle, write_bundle
from trainer.config import FitConfig, ModelConfig, RetrainConfig
from trainer.data import BatchModule, BatchPlan, Shard, ShardStore, plan_batches
from trainer.data.shards import ShardKey
from trainer.errors import TrainingError
from trainer.fit.clock import Clock
from trainer.fit.cost import Spent, spent
from trainer.fit.learner import Learner
from trainer.fit.run import RESUME, CursorAndCheckpoint, check_resume
from trainer.fit.schedule import schedule_of
from trainer.fit.share import TakeShare, share_of
from trainer.fit.task import RankingTask
from trainer.fit.train import space_of
from trainer.fit.trunk import TrunkSettings
from trainer.next_item.judge import catalogue, judge, ranker_scorer
from trainer.next_item.sequences import Sequences
from trainer.next_item.units import VALIDATION, training_units
from trainer.next_item.warm import Start, begin, vocabulary_of
from trainer.schema.bundle import BundleManifest
from trainer.schema.features import FeatureSpec
from trainer.schema.files import write_text
from trainer.schema.inputs import next_item_inputs
from trainer.schema.plain import as_plain
from trainer.schema.vocabulary import RESERVED_ROWS

BEST = "best.safetensors"
CURVE = "curve.json"
SPENT = "spent.json"
BUNDLE = "bundle"
_SHARD = ShardKey("train", 0)


@dataclass(frozen=True)
class PassLog:
    """One pass over the training events.

    Attributes:
        number: Passes done, from 1.
        loss: Mean cross-entropy of the pass.
        seconds: Wall time of its steps.
        positions: Targets trained.
        metrics: Metrics on the validation items, None where this pass was not judged.
        best: Whether its weights were the best so far.
    """

    number: int
    loss: float
    seconds: float
    positions: int
    metrics: dict[str, float] | None
    best: bool


@dataclass(frozen=True)
class Fitted:
    """What training left behind.

    Attributes:
        ranker: The ranker of the best judged pass, in eval mode.
        curve: All passes.
        spent: What the training loop spent.
    """

    ranker: Ranker
    curve: list[PassLog]
    spent: Spent

    @property
    def chosen(self) -> PassLog:
        """The pass whose weights are kept."""
        return [entry for entry in self.curve if entry.best][-1]


class NextItemTask(RankingTask):
    """Cross-entropy of the next item over the whole catalogue, or against shared negatives.

    Args:
        ranker: The ranker.
        negatives: Negatives a step; 0 takes the whole catalogue.
        options: Those of `RankingTask`.
    """

    def __init__(self, ranker: Ranker, *, negatives: int = 0, **options: Any) -> None:
        super().__init__(ranker, **options)
        rows = ranker.shape.vocabularies[ranker.shape.item_vocabulary]
        self.negatives = SharedNegatives(rows, RESERVED_ROWS, negatives) if negatives else None

    def losses(self, learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the mean loss of the batch's targets; nobody teaches."""
        ranker = learner.ranker
        if ranker.shape.positions or ranker.shape.padding is not None:  # one window for all of a unit's targets, as its own code trains
            user_ND = ranker.states(batch).index_select(0, pack(batch).state_N)
        else:
            user_ND = ranker.user_vectors(batch)
        if self.negatives is None:
            loss = full_softmax(user_ND, catalogue(ranker), batch.target_item_N - RESERVED_ROWS)
        else:
            loss = self._sampled(ranker, user_ND, batch.target_item_N)
        return loss, loss.new_zeros(())

    def _sampled(self, ranker: Ranker, user_ND: Tensor, target_N: Tensor) -> Tensor:
        assert self.negatives is not None
        negative_M, log_expected_M = self.negatives(target_N)
        certain_N = torch.zeros_like(target_N, dtype=log_expected_M.dtype)  # every row's own target is there
        item_K = torch.cat([target_N, negative_M])
        positive_ND, negative_MD = ranker.item_vectors(item_K, item_K.new_zeros(len(item_K), 0)).tensor_split([len(target_N)])
        return sampled_softmax(user_ND, positive_ND, negative_MD, target_N, negative_M, certain_N, log_expected_M)


class EachPass(Callback):
    """Sums up a pass, judges it on the validation items, and keeps the best weights.

    It must stand before the callback that moves the cursor and saves: a checkpoint at the end of a pass then holds its entry.

    Args:
        ends: Steps after which a pass ends, ascending.
        validate: Metrics of a ranker on the validation items.
        metric: The one that chooses.
        every: Passes between judgements; the last pass is always judged.
        folder: Folder of the best weights.
    """

    def __init__(self, ends: list[int], validate: Callable[[Ranker], dict[str, float]], metric: str, every: int, folder: Path) -> None:
        self.ends = ends
        self.validate = validate
        self.metric = metric
        self.every = every
        self.folder = folder
        self.curve: list[PassLog] = []
        self.loss: float | Tensor = 0.0
        self.positions: int | Tensor = 0
        self.seconds = 0.0
        self.clock = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Starts the clock."""
        self.clock = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Adds a step; judges at the end of a pass. The sums stay on the device until then: no step waits for it."""
        loss = outputs["loss"].double()
        counts = torch.isfinite(loss)  # a step that was skipped has said so already
        self.loss = self.loss + torch.where(counts, loss * batch.targets, 0.0)
        self.positions = self.positions + counts * batch.targets
        ends = trainer.datamodule.cursor + 1 == self.ends[len(self.curve)]  # type: ignore[attr-defined]
        if ends:
            self._read()
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        if ends:
            self._close(task)  # type: ignore[arg-type]
            self.clock = time.perf_counter()

    def _read(self) -> None:
        self.loss, self.positions = float(self.loss), int(self.positions)

    def _close(self, task: NextItemTask) -> None:
        number = len(self.curve) + 1
        judged = number % self.every == 0 or number == len(self.ends)
        metrics = self._judge(task.served) if judged else None
        earlier = [entry.metrics[self.metric] for entry in self.curve if entry.metrics is not None]
        best = metrics is not None and metrics[self.metric] > max(earlier, default=-math.inf)
        if best:
            temporary = self.folder / f".{BEST}.tmp"
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in task.served.state_dict().items()}, temporary)
            temporary.replace(self.folder / BEST)
        self.curve.append(PassLog(number, float(self.loss) / max(int(self.positions), 1), self.seconds, int(self.positions), metrics, best))
        self.loss, self.positions, self.seconds = 0.0, 0, 0.0
        print(line(self.curve[-1], len(self.ends)), flush=True)

    def _judge(self, ranker: Ranker) -> dict[str, float]:
        training = ranker.training
        try:
            return self.validate(ranker.eval())
        finally:
            ranker.train(training)

    def state_dict(self) -> dict[str, Any]:
        """Returns the curve and the open pass."""
        self._read()
        return {"curve": [asdict(entry) for entry in self.curve], "open": [self.loss, self.positions, self.seconds]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the curve and the open pass."""
        self.curve = [PassLog(**entry) for entry in state["curve"]]
        self.loss, self.positions, self.seconds = state["open"]


def line(entry: PassLog, passes: int) -> str:
    """Returns the console line of a pass."""
    rate = entry.positions / max(entry.seconds, 1e-9)
    found = "".join(f"  {name} {value:.4f}" for name, value in (entry.metrics or {}).items() if name != "n")
    return (
        f"  pass {entry.number:>3}/{passes}  loss {entry.loss:.4f}{'  validation' + found if found else ''}"
        f"  {rate:>7,.0f} positions/s  {entry.seconds:.1f} s{'  best' if entry.best else ''}"
    )


def train(
    config: RetrainConfig,
    sequences: Sequences,
    top_k: int,
    every: int,
    folder: Path,
    production: Bundle | None = None,
    observers: Sequence[Callback] = (),
) -> Fitted:
    """Trains a ranker, or goes on where a killed run stopped.

    Args:
        config: Model, optimizer, schedule, fit and seed; ``fit.passes`` is the number of passes.
        sequences: All events; only the training ones are learned from, and the validation items choose the pass.
        top_k: NDCG of lists of this length chooses.
        every: Passes between judgements.
        folder: Folder for shards, checkpoint and weights.
        production: What to start from; its items belong to the catalogue. None starts cold.
        observers: Callbacks that see every step before it is counted.

    Returns:
        The ranker of the best judged pass, also as a bundle below `folder`.

    Raises:
        CheckpointError: If the warm start is refused, or does not reproduce production.
        TrainingError: If training diverges, or a checkpoint belongs to another plan.
    """
    store, model = ShardStore(folder / "shards"), config.model
    store.write(_SHARD, training_units(sequences, model.max_history))
    plan = plan_batches(
        [_SHARD], store.lengths, batch_targets=config.fit.batch_targets, batch_tokens=config.fit.batch_tokens,
        passes=config.fit.passes, seed=config.seed,
    )  # fmt: skip
    taken = share_of(config.fit)
    torch.manual_seed(config.seed)
    ranker = models.build(shape_of(model, sequences.items, production))
    start = Start({}, None)
    if production is not None:
        start = begin(config.warm_start, ranker, sequences, production, model.max_history, config.seed)

    def validate(candidate: Ranker) -> dict[str, float]:
        return judge(ranker_scorer(candidate), sequences, VALIDATION, model.max_history, top_k)

    passes = EachPass(pass_ends(plan, store.read(_SHARD)), validate, f"ndcg@{top_k}", every, folder)
    data, moments = BatchModule(store, plan, taken.workers), start.moments if production else None
    cost = _fit(config, ranker, data, [TakeShare(taken), *observers, passes], folder, moments)
    if len(passes.curve) != len(passes.ends):
        raise TrainingError("training ended early", got=f"{len(passes.curve)} passes", expected=f"{len(passes.ends)} passes")
    (folder / RESUME).unlink(missing_ok=True)
    _write(config, ranker, sequences, start.report, folder, production)
    write_text(folder / CURVE, json.dumps([asdict(entry) for entry in passes.curve], indent=1))
    write_text(folder / SPENT, json.dumps(asdict(cost)))
    return read_fitted(folder)


def read_fitted(folder: Path) -> Fitted:
    """Reads what `train` left in a folder."""
    curve = [PassLog(**entry) for entry in json.loads((folder / CURVE).read_text())]
    return Fitted(build_ranker(read_bundle(folder / BUNDLE)), curve, Spent(**json.loads((folder / SPENT).read_text())))


def _write(
    config: RetrainConfig, ranker: Ranker, sequences: Sequences, report: dict[str, Any] | None, folder: Path, production: Bundle | None
) -> None:
    """Writes the best pass as a bundle. Without moments: those of the last step are not of the best pass."""
    weights, vocabulary = load_file(folder / BEST), vocabulary_of(sequences)
    manifest = BundleManifest(
        code_version=__version__, shape=as_plain(ranker.shape), inputs=next_item_inputs(config.model.max_history),
        features=as_plain(FeatureSpec()), labels={}, value={"version": "", "weights": {}},
        config={"model": as_plain(config.model), "optimizer": as_plain(config.optimizer), "schedule": as_plain(config.schedule)},
        axes={name: list(axes) for name, axes in ranker.axes().items()}, trained={}, seed=config.seed,
        parent=production.sha256 if production else None, space_id=space_of(production.manifest if production else None, ranker.shape),
    )  # fmt: skip
    write_bundle(
        folder / BUNDLE, manifest, trunk=weights, serving=weights, optimizer={}, vocabularies={vocabulary.name: vocabulary},
        items=pa.table({"item": vocabulary.keys}), transfer=report,
    )  # fmt: skip


def shape_of(model: ModelConfig, items: int, production: Bundle | None = None) -> RankerShape:
    """Returns the shape of a pure next-item ranker: items are all it knows.

    A warm start keeps production's norms: at another width RMSNorm has the same function only if eps x dim stays.
    """
    values = model.shape_values()
    if production is not None and production.shape.norm == "rms":
        values["norm_eps"] = production.shape.norm_eps * production.shape.dim / model.dim
    return RankerShape(
        architecture=model.name, actions=(), history_actions=(), vocabularies={"item": items + RESERVED_ROWS}, item_vocabulary="item",
        **values,
    )  # fmt: skip


def pass_ends(plan: BatchPlan, units: Shard) -> list[int]:
    """Returns the steps after which a pass ends: every pass uses every unit exactly once."""
    done = np.cumsum([len(batch.units_B) for batch in plan.batches])
    return [int(step) for step in np.flatnonzero(done % units.units == 0) + 1]


def _fit(
    config: RetrainConfig,
    ranker: Ranker,
    data: BatchModule,
    observers: list[Callback],
    folder: Path,
    carried: dict[str, dict[str, Tensor]] | None,
) -> Spent:
    """Trains; `carried` are the moments of a warm start, None for a cold one. Returns what was spent."""
    resume = folder / RESUME
    negatives = config.next_item.negatives if config.next_item is not None else 0
    task = NextItemTask(
        ranker,
        negatives=negatives,
        action_weights={},
        optimizer=config.optimizer,
        # Annealed: its passes are judged, and the best one is kept.
        schedule=schedule_of(config.schedule, data.plan.steps, warm=carried is not None, anneal=True),
        ema_decay=config.fit.ema_decay,
        seed=config.seed,
        max_skipped_steps=config.fit.max_skipped_steps,
        initial_moments=carried,
    )
    if resume.exists():
        check_resume(resume, task)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # The loader resumes through the data module's cursor, which this warning cannot see.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning calls a function that torch renamed
        clock = Clock()
        behind = [TrunkSettings(config.fit), CursorAndCheckpoint(folder, config.fit.checkpoint_steps), clock.observed]
        trainer = _trainer(config.fit, [clock, *observers, *behind], folder)
        trainer.fit(task, datamodule=data, ckpt_path=str(resume) if resume.exists() else None, weights_only=True)
    candidates = negatives or ranker.shape.vocabularies[ranker.shape.item_vocabulary] - RESERVED_ROWS
    device = trainer.strategy.root_device
    return spent(ranker, data.store, data.plan, clock, device, candidates=candidates, peak=config.cost.peak_flops)


def _trainer(config: FitConfig, callbacks: list[Callback], folder: Path) -> L.Trainer:
    on_gpu = config.device == "gpu" or (config.device == "auto" and torch.cuda.is_available())
    bar = config.progress and os.isatty(2)
    return L.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=1,  # all passes are one plan: its cursor is what a resumed run goes on from
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar,
        callbacks=[*callbacks, *([RichProgressBar()] if bar else [])],
        logger=False,
        deterministic=config.deterministic,
        default_root_dir=folder,
    )
