"""Runs training: builds the Trainer, resumes where a killed run stopped, returns weights and moments by name."""

from __future__ import annotations

import logging
import os
import pickle
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.ranker import Ranker
from trainer.config import DistillConfig, FitConfig, OptimizerConfig, ScheduleConfig, WarmStartConfig
from trainer.data import BatchModule, BatchPlan, ShardStore
from trainer.errors import TrainingError
from trainer.fit.clock import Clock
from trainer.fit.cost import Spent, spent
from trainer.fit.schedule import fresh_of, schedule_of
from trainer.fit.share import TakeShare, share_of
from trainer.fit.steps import StepLog, read_log
from trainer.fit.task import READ_EVERY, RankingTask
from trainer.fit.trunk import TrunkSettings

RESUME = "resume.ckpt"
_MOMENTS = "moments.safetensors"
_STEPS = "steps.jsonl"
_DAYS = "days"


@dataclass(frozen=True)
class FitResult:
    """What training left behind.

    Attributes:
        trunk: Weights at the end, by name.
        serving: Weights that are served, by name (`schedule.serving`).
        days: Day -> the same at the end of that day (`fit.day_weights`).
        optimizer: The trunk's moments by ``<parameter>/<moment>``.
        steps: Optimizer steps of this run's trunk.
        annealed: Steps of the annealed copy, made beside the trunk's on the same batches.
        skipped: Steps skipped as non-finite.
        log: One entry a step, of rank 0.
        seconds: Wall time of the loop.
        device: Where it ran.
        spent: What the loop spent.
    """

    trunk: dict[str, Tensor]
    serving: dict[str, Tensor]
    days: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Tensor]
    steps: int
    annealed: int
    skipped: int
    log: list[StepLog]
    seconds: float
    device: str
    spent: Spent


class CursorAndCheckpoint(Callback):
    """Moves the data cursor after every optimizer step, and saves a resumable checkpoint every so many steps."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every

    def on_train_batch_end(self, trainer: L.Trainer, task: RankingTask, outputs: Any, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Counts the batch as trained; nothing is counted before its step is done."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        data.cursor += 1
        if data.cursor % self.every == 0 and data.cursor < data.plan.steps:
            task.read_reports()  # or a run resumed from here would not know what the steps before it reported
            temporary = self.folder / f".{RESUME}.tmp"
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(self.folder / RESUME)

    def on_exception(self, trainer: L.Trainer, task: RankingTask, exception: BaseException) -> None:  # type: ignore[override]
        """Logs the last steps of a run that fails."""
        task.read_reports()

    def on_train_end(self, trainer: L.Trainer, task: RankingTask) -> None:  # type: ignore[override]
        """Saves the optimizer's moments by parameter name: spawned ranks cannot hand them back otherwise."""
        if trainer.is_global_zero:
            save_file(task.optimizers_of[0].named_state(), self.folder / _MOMENTS)


class DayWeights(Callback):
    """Saves the served weights at the end of every day: what production would have had that night."""

    def __init__(self, folder: Path, ends: dict[int, str]) -> None:
        self.folder = folder
        self.ends = ends

    def on_train_batch_end(self, trainer: L.Trainer, task: RankingTask, outputs: Any, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Saves after the last step of a day; a resumed run saves the days after its checkpoint again."""
        day = self.ends.get(trainer.datamodule.cursor)  # type: ignore[attr-defined]
        if day is None or not trainer.is_global_zero:
            return
        self.folder.mkdir(exist_ok=True)
        temporary = self.folder / f".{day}.tmp"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in task.served.state_dict().items()}, temporary)
        temporary.replace(self.folder / f"{day}.safetensors")


class _Begun(Callback):
    """Notes that training has begun: what fails before, where a run is resumed, is its checkpoint."""

    begun = False

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:  # type: ignore[override]
        self.begun = True


def fit(
    ranker: Ranker,
    store: ShardStore,
    plan: BatchPlan,
    *,
    action_weights: dict[str, float],
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    config: FitConfig,
    seed: int,
    warm: bool,
    folder: Path,
    moments: dict[str, dict[str, Tensor]] | None = None,
    fresh: Mapping[str, Tensor] | None = None,
    distill: DistillConfig | None = None,
    replay: WarmStartConfig | None = None,
    logger: Any = None,
    callbacks: Sequence[Callback] = (),
    peak_flops: float | None = None,
) -> FitResult:
    """Trains `ranker` on every batch of `plan`, once.

    Args:
        ranker: Initial weights; trained in place.
        store: Encoded shards.
        plan: Batches of all steps.
        action_weights: Action -> weight of its loss.
        optimizer: Optimizer settings.
        schedule: Learning-rate settings.
        config: Device, precision, cadence.
        seed: Seed of dropout.
        warm: Whether the weights come from production (re-warm instead of warm-up).
        folder: Folder for the resumable checkpoint; a checkpoint found there is resumed from.
        moments: Carried optimizer moments: parameter -> {exp_avg, exp_avg_sq, step} (`trainer.fit.tables` for tables).
        fresh: Dense parameter -> bool, the entries that production did not have (`schedule.fresh_factor`).
        distill: The teacher's part in the loss; its scores are in the shards.
        replay: What replayed targets do to tables.
        logger: Lightning logger or None.
        callbacks: Observers; they see every step before the cursor moves on, and a resumed run restores their state.
        peak_flops: FLOP/s that a device can do at most; None takes what is known or measured (`trainer.fit.cost`).

    Returns:
        Weights, moments and the log of the run.

    Raises:
        TrainingError: If training diverges, or a checkpoint belongs to another plan, does not fit, or is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    taken = share_of(config)
    task = RankingTask(
        ranker,
        action_weights=action_weights,
        optimizer=optimizer,
        schedule=schedule_of(schedule, plan.steps, warm),
        annealed=schedule_of(schedule, plan.steps, warm, anneal=True) if schedule.serving == "annealed" else None,
        distill=distill,
        replay=replay,
        ema_decay=config.ema_decay if schedule.serving == "ema" else 0.0,
        seed=seed,
        max_skipped_steps=config.max_skipped_steps,
        initial_moments=moments,
        fresh=fresh_of(schedule, fresh or {}) if warm else None,
        log_file=folder / _STEPS,
    )
    data = BatchModule(store, plan, taken.workers)
    ends = plan.ends_of_days() if config.day_weights else {}
    days = [DayWeights(folder / _DAYS, ends)] if ends else []
    clock, started = Clock(), _Begun()
    trainer = _trainer(config, folder, logger, [TakeShare(taken), clock, started, *callbacks, *days])
    trainer.callbacks.append(clock.observed)  # type: ignore[attr-defined]
    resume = folder / RESUME
    if resume.exists():
        check_resume(resume, task)
    else:
        (folder / _STEPS).unlink(missing_ok=True)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        # Our loader resumes through the data module's cursor, which this warning cannot see.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # a small night has few batches
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's own call of torch
        try:
            trainer.fit(task, datamodule=data, ckpt_path=str(resume) if resume.exists() else None, weights_only=True)
        except (ValueError, KeyError, RuntimeError) as error:
            if started.begun or not resume.exists() or config.device == "ddp":  # ranks of their own do not tell how far they came
                raise
            raise _no_resume(resume, str(error).partition("\n")[0], "moments of the optimizers of this run") from error
    seconds = time.perf_counter() - begin
    resume.unlink(missing_ok=True)
    annealed = 0 if task.annealed is None else task.annealed.anneal
    return FitResult(
        trunk={name: tensor.detach().cpu() for name, tensor in task.ranker.state_dict().items()},
        serving={name: tensor.detach().cpu() for name, tensor in task.served.state_dict().items()},
        days={day: load_file(folder / _DAYS / f"{day}.safetensors") for day in sorted(ends.values())},
        optimizer=load_file(folder / _MOMENTS),
        steps=plan.steps,
        annealed=annealed,
        skipped=int(task.skipped),
        log=read_log(folder / _STEPS),
        seconds=seconds,
        device=str(trainer.strategy.root_device),
        spent=spent(task.ranker, store, plan, clock, trainer.strategy.root_device, annealed=annealed, peak=peak_flops),
    )


def check_resume(resume: Path, task: RankingTask) -> None:
    """Refuses a checkpoint of other tensors than are to be trained: settings are the same, so other code wrote it, or it is damaged.

    Raises:
        TrainingError: With the first tensor that differs, or what is wrong with the file.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    try:
        loaded = torch.load(resume, map_location="cpu", weights_only=True, mmap=True)
        held = {name: tuple(tensor.shape) for name, tensor in loaded["state_dict"].items()}
    except (OSError, RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise _no_resume(resume, str(error).partition("\n")[0], "a checkpoint of this run") from error
    for name in sorted(set(wanted) | set(held)):
        if wanted.get(name) != held.get(name):
            told = [f"{name} {shapes[name]}" if name in shapes else f"no {name}" for shapes in (held, wanted)]
            raise _no_resume(resume, told[0], told[1])


def _no_resume(resume: Path, got: str, expected: str) -> TrainingError:
    remedy = f"remove {resume}, and training begins anew; or go on with the version of the code that wrote it"
    return TrainingError("cannot resume: the checkpoint does not fit", where=resume, got=got, expected=expected, remedy=remedy)


def _strategy(backend: str) -> DDPStrategy:
    """No buffer differs between ranks: sending them every step would cost what large tables' averages hold."""
    return DDPStrategy(start_method="spawn", process_group_backend=backend, broadcast_buffers=False)


def _trainer(config: FitConfig, folder: Path, logger: Any, observers: Sequence[Callback]) -> L.Trainer:
    device = config.device
    if device == "auto":
        device = "gpu" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "gpu" or (device == "ddp" and torch.cuda.is_available())
    callbacks: list[Callback] = [*observers, TrunkSettings(config), CursorAndCheckpoint(folder, config.checkpoint_steps)]
    if config.progress and os.isatty(2):
        callbacks.append(RichProgressBar())
    return L.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=config.devices if device == "ddp" else 1,
        strategy=_strategy("nccl" if on_gpu else "gloo") if device == "ddp" else "auto",
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=config.progress and os.isatty(2),
        callbacks=callbacks,
        logger=logger or False,
        log_every_n_steps=READ_EVERY if on_gpu else 10,
        deterministic=config.deterministic,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
