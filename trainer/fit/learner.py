"""What is trained: a ranker and, under distillation, the unserved head that reads the teacher from it; and their optimizers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.heads import TeacherHead
from models.losses import ranker_loss, teacher_loss
from models.ranker import Ranker
from trainer.config import DistillConfig, OptimizerConfig
from trainer.errors import CheckpointError
from trainer.fit.schedule import Fresh
from trainer.fit.tables import MOMENTS, TableOptimizer


class Learner(nn.Module):
    """A ranker with its loss. Only the ranker is kept.

    Args:
        ranker: The ranker.
        action_weights: Action -> weight of its loss.
        distill: The teacher's part in it.
    """

    def __init__(self, ranker: Ranker, action_weights: Mapping[str, float], distill: DistillConfig) -> None:
        super().__init__()
        self.ranker = ranker
        self.action_weights = action_weights
        self.teacher = TeacherHead(ranker, stop_gradient=distill.stop_gradient) if distill.source != "none" else None

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss of the labels (weighted multi-action loss, the two-tower head's included) and that of the teacher."""
        if batch.targets == 0:  # the padding batch of a rank that has run out of units: take part, add nothing
            nothing = sum((p.sum() * 0.0 for p in self.dense().values()), torch.zeros((), device=batch.weight_N.device))
            return nothing, nothing
        scores, shape = self.ranker(batch), self.ranker.shape
        labels = ranker_loss(scores, batch, shape, self.action_weights).total
        if self.teacher is None:
            return labels, labels.new_zeros(())
        return labels, teacher_loss(self.teacher(scores.shared_NC), batch, shape.actions, self.action_weights)

    def tables(self) -> dict[str, nn.Parameter]:
        """Returns the embedding tables by name: what has a row an id."""
        axes = self.ranker.axes()
        return {name: p for name, p in self.ranker.named_parameters() if any(axis.startswith("vocab:") for axis in axes[name])}

    def dense(self) -> dict[str, nn.Parameter]:
        """Returns all other parameters, the teacher's head included, by their name in the learner."""
        tables = set(map(id, self.tables().values()))
        return {name: p for name, p in self.named_parameters() if id(p) not in tables}


def _check_whole(name: str, moments: Collection[str], kinds: Iterable[tuple[str, ...]]) -> None:
    wanted = [{"step", *kind} for kind in kinds]
    if not any(states <= set(moments) for states in wanted):
        raise CheckpointError(
            "production's optimizer state is incomplete",
            where=name,
            got=", ".join(sorted(moments)),
            expected=" or ".join(", ".join(sorted(states)) for states in wanted),
            remedy="restore the bundle's optimizer file, or start with warm_start.optimizer=reset",
        )


class Optimizers:
    """AdamW for dense parameters (only matrices decay), and one that works by row for the embedding tables.

    Attributes:
        dense: Optimizer of everything but tables.
        tables: Optimizer of the tables; None for a ranker without any.
        by_row: The tables.

    Args:
        learner: What they train.
        config: Settings.
        fresh: Which entries move further than the others.
    """

    def __init__(self, learner: Learner, config: OptimizerConfig, fresh: Fresh | None = None) -> None:
        self.learner = learner
        self.fresh = fresh or Fresh()
        known = dict(learner.ranker.named_parameters())
        self.slower = [(known[name], share) for name, share in self.fresh.shares.items() if name in known]  # buffers do not move
        self.by_row, dense = list(learner.tables().values()), list(learner.dense().values())
        groups = (([p for p in dense if p.ndim >= 2], config.weight_decay), ([p for p in dense if p.ndim < 2], 0.0))
        betas = (config.beta1, config.beta2)
        self.dense = torch.optim.AdamW(
            [{"params": params, "lr": config.lr, "base_lr": config.lr, "weight_decay": decay} for params, decay in groups if params],
            betas=betas,
            fused=True,  # the one kind that skips a step on the device's word (`found_inf`)
        )
        self.tables = (
            TableOptimizer(self.by_row, kind=config.tables, lr=config.embedding_lr, betas=betas, decay=config.table_decay)
            if self.by_row
            else None
        )

    def all(self) -> list[torch.optim.Optimizer]:
        """Returns the optimizers in a fixed order: Lightning restores them by position."""
        return [self.dense] if self.tables is None else [self.dense, self.tables]

    def set_rates(self, factor: float, table_decay: float) -> None:
        """Sets learning rates to `factor` times their configured values, and the decay of touched rows."""
        for optimizer in self.all():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor * (self.fresh.rate if optimizer is self.dense else 1.0)
        if self.tables is not None:
            for group in self.tables.param_groups:
                group["decay"] = table_decay

    def step(self, skip: Tensor) -> None:
        """Makes a step with the gradients there are.

        Args:
            skip: float32 scalar on the device; at 1 nothing changes, no count of steps either. Nobody reads it.
        """
        before = [parameter.detach().clone() for parameter, _ in self.slower]
        for optimizer in self.all():
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
        with torch.no_grad():
            for (parameter, share), old in zip(self.slower, before, strict=True):
                parameter.copy_(old.lerp(parameter, share.to(old)))

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for optimizer in self.all():
            optimizer.zero_grad(set_to_none=True)

    def carry(self, moments: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
        """Fills in carried moments by parameter name; returns the parameters whose moments are another optimizer's.

        Raises:
            CheckpointError: If a parameter has only some of the moments that belong together.
        """
        tables, refused = self.learner.tables(), []
        for name, parameter in self.learner.ranker.named_parameters():
            if name not in moments:
                continue
            _check_whole(name, moments[name], MOMENTS.values() if name in tables else [MOMENTS["adamw"]])
            if name in tables and self.tables is not None:
                if not self.tables.restore(parameter, dict(moments[name])):
                    refused.append(name)
                continue
            self.dense.state[parameter] = {key: value.to(parameter.device).clone() for key, value in moments[name].items()}
        return refused

    def named_state(self) -> dict[str, Tensor]:
        """Returns the state as ``<parameter>/<key>``, float32 on the CPU; the teacher's head is not kept."""
        named: dict[str, Tensor] = {}
        for name, parameter in self.learner.ranker.named_parameters():
            for optimizer in self.all():
                for key, value in optimizer.state.get(parameter, {}).items():
                    named[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().float().contiguous()
        return named

    def copy_from(self, other: Optimizers) -> None:
        """Takes over weights and state of `other`, whose learner has the same shape."""
        self.learner.load_state_dict(other.learner.state_dict())
        for mine, theirs in zip(self.all(), other.all(), strict=True):
            mine.load_state_dict(copy.deepcopy(theirs.state_dict()))  # torch keeps the tensors it is given
