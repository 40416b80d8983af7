"""The LightningModule: an adapter between a ranker and Lightning's Trainer, with manual optimization.

Manual, because a non-finite gradient must never reach the optimizer: one NaN would poison Adam's moments and every later
warm start. Lightning has no such guard (its `check_finite_loss` is called by nothing).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import lightning as L
import torch
from torch import Tensor

from models.batch import Batch
from models.losses import ranker_loss
from models.ranker import Ranker
from trainer.config import OptimizerConfig
from trainer.errors import TrainingError
from trainer.fit.schedule import Schedule


@dataclass(frozen=True)
class StepLog:
    """What one step reported.

    Attributes:
        step: Step number, from 0.
        loss: Training loss, NaN if the step was skipped for it.
        lr: Learning rate factor.
        grad_norm: Global gradient norm before clipping.
        skipped: Whether the step was skipped as non-finite.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    skipped: bool


class RankingTask(L.LightningModule):
    """Trains a ranker on its actions.

    Attributes:
        ranker: The trunk: what the next warm start begins with.
        average: Exponential moving average of the trunk's weights: what is served. None when averaging is off.
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.ranker = ranker
        self.average = copy.deepcopy(ranker).requires_grad_(False) if ema_decay > 0 else None
        self.action_weights = action_weights
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self.config = optimizer
        self.schedule = schedule
        self.ema_decay = ema_decay
        self.seed = seed
        self.max_skipped_steps = max_skipped_steps
        self.initial_moments = initial_moments or {}
        self.log_file = log_file

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Makes one step, or skips it if the loss or the gradient is not finite."""
        step = self.trainer.datamodule.cursor  # type: ignore[attr-defined]
        # Dropout is a function of (seed, step, rank): a resumed run draws what the uninterrupted run would have drawn.
        torch.manual_seed((self.seed * 1_000_003 + step) * 4096 + self.global_rank)
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        self.manual_backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.ranker.parameters(), self.config.clip_norm)
        finite = bool(torch.isfinite(norm) & torch.isfinite(loss.detach()))
        factor = self.schedule.factor(step)
        if finite:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
            self._update_average(step)
        else:
            optimizer.zero_grad(set_to_none=True)
            self._count_skipped(step)
        self._record(StepLog(step, float(loss.detach()), factor, float(norm), not finite))
        self.log(
            "loss", loss.detach(), prog_bar=True, on_step=True, logger=self.trainer.logger is not None, batch_size=max(batch.targets, 1)
        )
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """Returns the weighted multi-action loss, the auxiliary head's included."""
        if batch.targets == 0:  # the padding batch of a rank that has run out of units: take part, add nothing
            return sum((p.sum() * 0.0 for p in self.ranker.parameters()), torch.zeros((), device=self.device))
        return ranker_loss(self.ranker(batch), batch, self.ranker.shape, self.action_weights).total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns AdamW over named groups; carried moments are filled in by parameter name."""
        groups = list(parameter_groups(self.ranker, self.config))
        optimizer = torch.optim.AdamW(groups, betas=(self.config.beta1, self.config.beta2), foreach=True)
        names = {parameter: name for name, parameter in self.ranker.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                moments = self.initial_moments.get(names[parameter])
                if moments is not None:
                    optimizer.state[parameter] = {
                        key: value.clone() if key == "step" else value.to(parameter.device).clone() for key, value in moments.items()
                    }
        return optimizer

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


def parameter_groups(ranker: Ranker, config: OptimizerConfig) -> Iterator[dict]:
    """Groups parameters by what they are: tables, matrices, vectors. Only matrices decay.

    AdamW's decay on tables would shrink the rows of rare ids at every step, touched or not (x0.007 in 50,000 steps at lr 1e-3
    and decay 0.1): the long tail is what years of training bought.
    """
    axes = ranker.axes()
    tables, matrices, vectors = [], [], []
    for name, parameter in ranker.named_parameters():
        if any(axis.startswith("vocab:") for axis in axes[name]):
            tables.append(parameter)
        elif parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    for params, lr, decay in ((tables, config.embedding_lr, 0.0), (matrices, config.lr, config.weight_decay), (vectors, config.lr, 0.0)):
        if params:
            yield {"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay}
