"""The LightningModule: an adapter between a ranker and Lightning's Trainer, with manual optimization.

Manual, because a non-finite gradient must never reach the optimizer: one NaN would poison Adam's moments and every later
warm start. Lightning has no such guard (its `check_finite_loss` is called by nothing).
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from models.batch import Batch
from models.ranker import Ranker
from trainer.config import DistillConfig, OptimizerConfig, WarmStartConfig
from trainer.errors import TrainingError
from trainer.fit.learner import Learner, Optimizers
from trainer.fit.schedule import Schedule


@dataclass(frozen=True)
class StepLog:
    """What one step reported.

    Attributes:
        step: Step number, from 0.
        loss: Loss of the labels before the step, NaN if the step was skipped for it. In one pass over new targets this is
            progressive validation: every target is scored before it is learned.
        lr: Learning rate factor.
        grad_norm: Global gradient norm before clipping.
        skipped: Whether the step was skipped as non-finite.
        new: Whether its targets were new; replayed ones have been learned before and say nothing about progress.
        teacher: Loss of the teacher's scores, unweighted; 0 without one.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    skipped: bool
    new: bool = True
    teacher: float = 0.0


class RankingTask(L.LightningModule):
    """Trains a ranker on its actions.

    Attributes:
        trunk: What trains at the schedule's rate, with the head that reads a teacher.
        average: Exponential moving average of the trunk's weights. None when averaging is off.
        branch: The copy that leaves the trunk and is annealed. None where nothing is annealed.
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.distill = distill or DistillConfig()
        self.replay = replay or WarmStartConfig()
        self.trunk = Learner(ranker, action_weights, self.distill)
        self.average = copy.deepcopy(ranker).requires_grad_(False) if ema_decay > 0 else None
        # Without gradients while the trunk is wrapped for several ranks: the branch averages its own.
        self.branch = copy.deepcopy(self.trunk).requires_grad_(False) if annealed is not None and annealed.anneal else None
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self.config = optimizer
        self.schedule = schedule
        self.annealed = annealed
        self.ema_decay = ema_decay
        self.seed = seed
        self.max_skipped_steps = max_skipped_steps
        self.initial_moments = initial_moments or {}
        self.log_file = log_file

    @property
    def ranker(self) -> Ranker:
        """The trunk's ranker: what the next warm start begins with."""
        return self.trunk.ranker

    @property
    def served(self) -> Ranker:
        """What is served: the annealed copy, else the average, else the trunk."""
        if self.branch is not None:
            return self.branch.ranker
        return self.ranker if self.average is None else self.average

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Makes one step of the trunk, and of the branch once it has left; a step is skipped if it is not finite."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        step, new = data.cursor, data.plan.is_new(data.cursor)
        if self.branch is not None and step == self._leaves():
            self.optimizers_of[1].copy_from(self.optimizers_of[0])
        entry = self._advance(self.trunk, self.optimizers_of[0], self.schedule, batch, step, new)
        if not entry.skipped:
            self._update_average(step)
        self._record(entry)
        if self.branch is not None and self.annealed is not None and step >= self._leaves():
            self._advance(self.branch.requires_grad_(True), self.optimizers_of[1], self.annealed, batch, step, new)
        loss = torch.tensor(entry.loss, device=self.device)
        self.log("loss", loss, prog_bar=True, on_step=True, logger=self.trainer.logger is not None, batch_size=max(batch.targets, 1))
        return loss

    def losses(self, learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss of the labels and that of the teacher; the latter is weighted by `DistillConfig.weight_at`."""
        return learner.losses(batch)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Builds the optimizers of the trunk and of the branch; carried moments are filled in by parameter name."""
        self.optimizers_of = [Optimizers(learner, self.config) for learner in (self.trunk, self.branch) if learner is not None]
        refused = self.optimizers_of[0].carry(self.initial_moments)
        if refused and self.global_rank == 0:
            print(f"{len(refused)} tables start with fresh optimizer state: production kept another kind than {self.config.tables}")
        return [optimizer for optimizers in self.optimizers_of for optimizer in optimizers.all()]

    def _leaves(self) -> int:
        """First step of the branch."""
        return self.annealed.steps - self.annealed.anneal if self.annealed is not None else 0

    def _advance(self, learner: Learner, optimizers: Optimizers, schedule: Schedule, batch: Batch, step: int, new: bool) -> StepLog:
        # Dropout is a function of (seed, step, rank): a resumed run draws what the uninterrupted run would have drawn.
        torch.manual_seed((self.seed * 1_000_003 + step) * 4096 + self.global_rank)
        optimizers.zero_grad()
        labels, teacher = self.losses(learner, batch)
        loss = labels + self.distill.weight_at(step, schedule.steps) * teacher
        if learner is self.trunk:
            self.manual_backward(loss)
        else:
            self._backward_branch(learner, loss)
        if not new and self.replay.replay_tables == "frozen":
            for table in learner.tables().values():
                table.grad = None
        norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), self.config.clip_norm)
        finite = bool(torch.isfinite(norm) & torch.isfinite(loss.detach()))
        factor = schedule.factor(step)
        if finite:
            optimizers.set_rates(factor, self.config.table_decay if new else self._replay_decay())
            for optimizer in optimizers.all():
                optimizer.step()
        else:
            optimizers.zero_grad()
            self._count_skipped(step)
        return StepLog(step, float(labels.detach()), factor, float(norm), not finite, new, float(teacher.detach()))

    def _backward_branch(self, learner: Learner, loss: Tensor) -> None:
        loss.backward()
        if self.trainer.world_size > 1:
            for parameter in learner.parameters():
                if parameter.grad is None:  # every rank must take part in the same exchanges
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.trainer.world_size

    def _replay_decay(self) -> float:
        return self.replay.replay_decay if self.replay.replay_tables == "decayed" else self.config.table_decay

    def _record(self, entry: StepLog) -> None:
        """Appends to the step log; a resumed run appends too, and the reader keeps the last entry of a step."""
        if self.log_file is not None and self.global_rank == 0:
            with self.log_file.open("a") as stream:
                stream.write(json.dumps(asdict(entry)) + "\n")

    def _update_average(self, step: int) -> None:
        if self.average is None:
            return
        decay = min(self.ema_decay, (1 + step) / (10 + step))  # a short run must not serve its initialisation
        with torch.no_grad():
            ours: list[Tensor] = list(self.average.parameters())
            theirs: list[Tensor] = list(self.ranker.parameters())
            torch._foreach_lerp_(ours, theirs, 1 - decay)

    def _count_skipped(self, step: int) -> None:
        self.skipped += 1
        planned = self.trainer.datamodule.plan.of_rank(self.global_rank)[step]  # type: ignore[attr-defined]
        print(f"skipped step {step}: loss or gradient is not finite (shard {planned.key.stem}, {len(planned.units_B)} user-days)")
        if int(self.skipped) > self.max_skipped_steps:
            raise TrainingError(
                "training diverged: too many steps with a loss or gradient that is not finite",
                where=f"step {step}, shard {planned.key.stem}",
                got=int(self.skipped),
                expected=f"at most {self.max_skipped_steps} (fit.max_skipped_steps)",
                remedy="lower optimizer.lr, or look at the shard's features in the report",
            )
