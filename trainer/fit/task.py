"""The LightningModule: an adapter between a ranker and Lightning's Trainer, with manual optimization.

Manual, because a non-finite gradient must never reach the optimizer: one NaN would poison Adam's moments and every later
warm start. Lightning has no such guard (its `check_finite_loss` is called by nothing).

A step asks the device for nothing: whether it is finite is decided, and acted on, there. What steps report is read every so many.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from models.batch import Batch
from models.ranker import Ranker
from trainer.config import DistillConfig, OptimizerConfig, WarmStartConfig
from trainer.errors import TrainingError
from trainer.fit.average import Average
from trainer.fit.learner import Learner, Optimizers
from trainer.fit.rows import by_row, can_be_asked, clip, exchange, gather
from trainer.fit.schedule import Fresh, Schedule
from trainer.fit.steps import Reported, append, read

READ_EVERY = 32  # steps of an accelerator between two readings of what they reported


class RankingTask(L.LightningModule):
    """Trains a ranker on its actions.

    Attributes:
        trunk: What trains at the schedule's rate, with the head that reads a teacher.
        ema: Exponential moving average of the trunk's weights. None when averaging is off.
        branch: The copy that leaves the trunk and is annealed. None where nothing is annealed.
        skipped: Steps skipped as non-finite so far.
    """

    skipped: Tensor

    def __init__(
        self,
        ranker: Ranker,
        *,
        action_weights: dict[str, float],
        optimizer: OptimizerConfig,
        schedule: Schedule,
        ema_decay: float,
        seed: int,
        max_skipped_steps: int,
        initial_moments: dict[str, dict[str, Tensor]] | None = None,
        log_file: Path | None = None,
        annealed: Schedule | None = None,
        distill: DistillConfig | None = None,
        replay: WarmStartConfig | None = None,
        fresh: Fresh | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.distill = distill or DistillConfig()
        self.replay = replay or WarmStartConfig()
        self.trunk = Learner(ranker, action_weights, self.distill)
        self.ema = Average(ranker, ema_decay, self.trunk.tables()) if ema_decay > 0 else None
        # Without gradients while the trunk is wrapped for several ranks: the branch averages its own.
        self.branch = copy.deepcopy(self.trunk).requires_grad_(False) if annealed is not None and annealed.anneal else None
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self.config = optimizer
        self.schedule = schedule
        self.annealed = annealed
        self.seed = seed
        self.max_skipped_steps = max_skipped_steps
        self.initial_moments = initial_moments or {}
        self.log_file = log_file
        self.fresh = fresh
        self.reports: list[Reported] = []
        self.host_group: Any = None
        # What Lightning's wrapper for several ranks leaves to `trainer.fit.rows.exchange`.
        self._ddp_params_and_buffers_to_ignore = [f"trunk.ranker.{name}" for name in self.trunk.tables()]

    @property
    def ranker(self) -> Ranker:
        """The trunk's ranker: what the next warm start begins with."""
        return self.trunk.ranker

    @property
    def average(self) -> Ranker | None:
        """The averaged ranker, brought up to date: not for every step, it reads all rows of all tables."""
        return None if self.ema is None else self.ema.read(self.ranker)

    @property
    def served(self) -> Ranker:
        """What is served: the annealed copy, else the average, else the trunk."""
        if self.branch is not None:
            return self.branch.ranker
        return self.average or self.ranker

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Makes one step of the trunk, and of the branch once it has left; a step is skipped if it is not finite."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        step, new = data.cursor, data.plan.is_new(data.cursor)
        if self.branch is not None and step == self._leaves():
            self.optimizers_of[1].copy_from(self.optimizers_of[0])
        report = self._advance(self.trunk, self.optimizers_of[0], self.schedule, batch, step, new)
        if self.branch is not None and self.annealed is not None and step >= self._leaves():
            self._advance(self.branch.requires_grad_(True), self.optimizers_of[1], self.annealed, batch, step, new)
        if can_be_asked(self.device) or len(self.reports) >= READ_EVERY:
            self.read_reports()
        logger = self.trainer.logger is not None
        bar = self.trainer.progress_bar_callback is not None and can_be_asked(self.device)  # a bar reads what it shows at every step
        if logger or bar:  # telling nobody would take Lightning a millisecond
            self.log("loss", report.loss, prog_bar=bar, on_step=True, logger=logger, batch_size=max(batch.targets, 1))
        return report.loss

    def losses(self, learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss of the labels and that of the teacher; the latter is weighted by `DistillConfig.weight_at`."""
        return learner.losses(batch)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Builds the optimizers of the trunk and of the branch; carried moments are filled in by parameter name."""
        self.optimizers_of = [Optimizers(learner, self.config, self.fresh) for learner in (self.trunk, self.branch) if learner is not None]
        trunk = self.optimizers_of[0]
        refused = trunk.carry(self.initial_moments)
        if refused and self.global_rank == 0:
            print(f"{len(refused)} tables start with fresh optimizer state: production kept another kind than {self.config.tables}")
        if self.ema is not None and trunk.tables is not None:
            trunk.tables.follow = self.ema.follow
        if self.trainer.world_size > 1 and dist.get_backend() != "gloo":
            self.host_group = dist.new_group(backend="gloo")
        return [optimizer for optimizers in self.optimizers_of for optimizer in optimizers.all()]

    def on_train_end(self) -> None:
        """Reads what is left to read."""
        self.read_reports()

    def read_reports(self) -> None:
        """Reads and logs what the steps since the last time reported; a checkpoint must not be saved before.

        Raises:
            TrainingError: If more steps were skipped than `max_skipped_steps`.
        """
        reports, self.reports = self.reports, []
        entries = read(reports)
        if self.log_file is not None and self.global_rank == 0:
            append([entry for entry, report in zip(entries, reports, strict=True) if not report.branch], self.log_file)
        skipped = [entry.step for entry in entries if entry.skipped]
        for step in skipped:
            print(f"skipped step {step}: loss or gradient is not finite ({self._batch_of(step)})")
        if skipped and int(self.skipped) > self.max_skipped_steps:
            raise TrainingError(
                "training diverged: too many steps with a loss or gradient that is not finite",
                where=f"step {skipped[-1]}, {self._batch_of(skipped[-1])}",
                got=int(self.skipped),
                expected=f"at most {self.max_skipped_steps} (fit.max_skipped_steps)",
                remedy="lower optimizer.lr, or look at the shard's features in the report",
            )

    def _batch_of(self, step: int) -> str:
        planned = self.trainer.datamodule.plan.of_rank(self.global_rank)[step]  # type: ignore[attr-defined]
        return " and ".join(f"shard {part.key.stem}, {len(part.units_B)} user-days" for part in planned.parts)

    def _leaves(self) -> int:
        """First step of the branch."""
        return self.annealed.steps - self.annealed.anneal if self.annealed is not None else 0

    def _advance(self, learner: Learner, optimizers: Optimizers, schedule: Schedule, batch: Batch, step: int, new: bool) -> Reported:
        # Dropout is a function of (seed, step, rank): a resumed run draws what the uninterrupted run would have drawn.
        self._seed((self.seed * 1_000_003 + step) * 4096 + self.global_rank)
        optimizers.zero_grad()
        with by_row(learner):
            labels, teacher = self.losses(learner, batch)
        loss = labels + self.distill.weight_at(step, schedule.steps) * teacher
        self._backward(learner, loss)
        self._collect(optimizers, frozen=not new and self.replay.replay_tables == "frozen")
        norm = clip(learner.parameters(), self.config.clip_norm)
        skip = 1 - (torch.isfinite(norm) & torch.isfinite(loss.detach())).float()
        if self.trainer.world_size > 1:  # a loss is a rank's own
            dist.all_reduce(skip, dist.ReduceOp.MAX)
        self.skipped += skip.long()
        factor = schedule.factor(step)
        optimizers.set_rates(factor, self.config.table_decay if new else self._replay_decay())
        ema = self.ema if learner is self.trunk else None
        if ema is not None:
            ema.begin(self.ranker, step, skip)
        optimizers.step(skip)
        if ema is not None:
            ema.finish(self.ranker)
        self.reports.append(Reported(step, factor, new, labels.detach(), norm, skip, teacher.detach(), learner is not self.trunk))
        return self.reports[-1]

    def _seed(self, seed: int) -> None:
        """Seeds what this step draws from: `torch.manual_seed` also leaves word, with a trace, for kinds of device that are absent."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _backward(self, learner: Learner, loss: Tensor) -> None:
        if learner is self.trunk:
            self.manual_backward(loss)
            return
        loss.backward()
        if self.trainer.world_size > 1:
            for parameter in learner.dense().values():
                if parameter.grad is None:  # every rank must take part in the same exchanges
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.trainer.world_size

    def _collect(self, optimizers: Optimizers, *, frozen: bool) -> None:
        """Turns what lookups left behind into one gradient a row, that of all ranks."""
        if frozen:
            for table in optimizers.by_row:
                table.grad = None
        elif self.trainer.world_size > 1:
            exchange(optimizers.by_row, self.host_group)
        else:
            gather(optimizers.by_row)

    def _replay_decay(self) -> float:
        return self.replay.replay_decay if self.replay.replay_tables == "decayed" else self.config.table_decay
