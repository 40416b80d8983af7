"""Losses of several actions at once. That of the next item is `models.softmax`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.batch import Batch
from models.ranker import ActionShape, RankerShape, Scores

MIN_RATE = 1e-6  # a teacher's expected count below this is taken for it: its logarithm would rule the loss
MAX_LOG_RATE = 15.0  # a rate of 3 million; above, the loss goes on linearly
MAX_LOG_SIGMA = 4.0  # sigma of log seconds stays between e^-4 and e^4
MAX_LOG_SECONDS = math.log1p(7 * 86_400)  # an expected duration never exceeds a week


@dataclass
class ActionLosses:
    """Losses of one batch.

    Attributes:
        total: Scalar to minimise.
        action_A: Weighted mean loss of each action over its known rows; 0 where none is known. Detached.
        weight_A: Sum of the example weights of those rows, to average batches correctly. Detached.
    """

    total: Tensor
    action_A: Tensor
    weight_A: Tensor


def ranker_loss(scores: Scores, batch: Batch, shape: RankerShape, weights: Mapping[str, float] | None = None) -> ActionLosses:
    """Loss of a ranker's outputs, plus the auxiliary head's at `RankerShape.auxiliary_weight`.

    Args:
        scores: What the ranker returned for `batch`.
        batch: Labels and example weights.
        shape: Shape of the ranker.
        weights: Action -> weight; None weighs all actions alike.

    Returns:
        Losses; `action_A` are those of the served outputs only.

    Raises:
        ValueError: If `weights` does not name exactly the ranker's actions.
    """
    losses = multi_action_loss(scores.output_NO, batch, shape.actions, weights)
    if scores.auxiliary_NO is not None and shape.auxiliary_weight > 0:
        auxiliary = multi_action_loss(scores.auxiliary_NO, batch, shape.actions, weights)
        losses.total = losses.total + shape.auxiliary_weight * auxiliary.total
    return losses


def multi_action_loss(
    output_NO: Tensor, batch: Batch, actions: tuple[ActionShape, ...], weights: Mapping[str, float] | None = None
) -> ActionLosses:
    """Weighted sum over actions of the weighted mean negative log likelihood over the rows whose label is known.

    Args:
        output_NO: Raw outputs in the order of `actions`.
        batch: `label_NA`, `known_NA`, `weight_N`.
        actions: Predicted actions.
        weights: Action -> weight; None weighs all actions alike.

    Raises:
        ValueError: If `weights` does not name exactly the actions.
    """
    names = [action.name for action in actions]
    if weights is not None and set(weights) != set(names):
        raise ValueError(f"loss weights name {sorted(weights)}; the ranker predicts {sorted(names)}")
    means, sums = [], []
    for column, (action, output) in enumerate(_by_action(output_NO, actions)):
        known_N = batch.known_NA[:, column]
        label_N = batch.label_NA[:, column].to(output.dtype).masked_fill(~known_N, 0.0)
        weight_N = batch.weight_N.to(output.dtype) * known_N
        total_weight = weight_N.sum()
        mean = (_row_loss(action.kind, output, label_N) * weight_N).sum() / total_weight.clamp(min=torch.finfo(output.dtype).tiny)
        means.append(mean)
        sums.append(total_weight)
    # Weights as plain numbers: a tensor made of them would be a copy from the host, for which an accelerator is waited for.
    weighted = means if weights is None else [weights[name] * mean for name, mean in zip(names, means, strict=True)]
    return ActionLosses(torch.stack(weighted).sum(), torch.stack(means).detach(), torch.stack(sums).detach())


def teacher_loss(read_NA: Tensor, batch: Batch, actions: tuple[ActionShape, ...], weights: Mapping[str, float] | None = None) -> Tensor:
    """Distance of a `models.heads.TeacherHead` from the teacher's scores, over the rows that the teacher scored.

    Soft binary cross-entropy on a probability (Hinton et al. 2015, arXiv 1503.02531, at temperature 1); half the squared
    difference of log rates (count) and of log1p of expected seconds (duration).

    Args:
        read_NA: What the head read.
        batch: `teacher_NA` and `weight_N`; labels play no part, so rows whose labels are not ripe teach as well.
        actions: Predicted actions.
        weights: Action -> weight; None weighs all actions alike.

    Returns:
        Scalar; 0 where the teacher scored no row.

    Raises:
        ValueError: If the batch brings no teacher's scores.
    """
    if batch.teacher_NA is None:
        raise ValueError("the batch holds no teacher's scores; its shard was written without distillation")
    total = read_NA.new_zeros(())
    for column, action in enumerate(actions):
        known_N = torch.isfinite(batch.teacher_NA[:, column])
        score_N = batch.teacher_NA[:, column].to(read_NA.dtype).masked_fill(~known_N, 0.0)
        read_N, weight_N = read_NA[:, column], batch.weight_N.to(read_NA.dtype) * known_N
        match action.kind:
            case "binary":
                loss_N = F.binary_cross_entropy_with_logits(read_N, score_N.clamp(0.0, 1.0), reduction="none")
            case "count":
                loss_N = 0.5 * (read_N - score_N.clamp(min=MIN_RATE).log()).square()
            case _:
                loss_N = 0.5 * (read_N - torch.log1p(score_N.clamp(min=0.0))).square()
        mean = (loss_N * weight_N).sum() / weight_N.sum().clamp(min=torch.finfo(read_NA.dtype).tiny)
        total = total + mean * (1.0 if weights is None else weights[action.name])
    return total


def _by_action(output_NO: Tensor, actions: tuple[ActionShape, ...]) -> Iterator[tuple[ActionShape, Tensor]]:
    """Yields each action with its outputs [N, 1 or 2] in fp32 or better."""
    output_NO = output_NO.to(torch.promote_types(output_NO.dtype, torch.float32))
    yield from zip(actions, output_NO.split([len(action.outputs) for action in actions], dim=1), strict=True)


def _row_loss(kind: str, output: Tensor, label_N: Tensor) -> Tensor:
    match kind:
        case "binary":
            return F.binary_cross_entropy_with_logits(output[:, 0], label_N, reduction="none")
        case "count":
            return _rate(output[:, 0]) - label_N * output[:, 0]
        case "duration":
            log_sigma_N = bounded_log_sigma(output[:, 1])
            return 0.5 * ((torch.log1p(label_N) - output[:, 0]) * torch.exp(-log_sigma_N)).square() + log_sigma_N
        case _:
            raise ValueError(f"unknown kind of action {kind!r}; known: binary, count, duration")


def _rate(log_rate_N: Tensor) -> Tensor:
    """exp, continued along its tangent above `MAX_LOG_RATE`: a runaway rate still gets a gradient that brings it back."""
    excess_N = F.relu(log_rate_N - MAX_LOG_RATE)
    return torch.exp(log_rate_N - excess_N) * (1 + excess_N)


def bounded_log_sigma(raw_N: Tensor) -> Tensor:
    """Maps a raw ``log_sigma`` output smoothly into (-`MAX_LOG_SIGMA`, `MAX_LOG_SIGMA`); near 0 it is the identity."""
    return MAX_LOG_SIGMA * torch.tanh(raw_N / MAX_LOG_SIGMA)


def expectations(output_NO: Tensor, actions: tuple[ActionShape, ...]) -> Tensor:
    """Turns outputs into scores: what the value function weighs and predictions hold.

    Args:
        output_NO: Raw outputs.
        actions: Predicted actions.

    Returns:
        [N, A] in fp32 or better: probability (binary), expected count, or expected seconds,
        ``expm1(mu + sigma^2 / 2)`` kept between 0 and a week: one wild sigma must not outrank every other item.
    """
    scores = []
    for action, output in _by_action(output_NO, actions):
        match action.kind:
            case "binary":
                scores.append(torch.sigmoid(output[:, 0]))
            case "count":
                scores.append(torch.exp(output[:, 0].clamp(max=MAX_LOG_RATE)))
            case _:
                variance_N = torch.exp(2 * bounded_log_sigma(output[:, 1]))
                scores.append(torch.expm1((output[:, 0] + variance_N / 2).clamp(0.0, MAX_LOG_SECONDS)))
    return torch.stack(scores, dim=1)
