"""Losses: several actions at once, and the next item by full or sampled softmax.

Additional shape suffixes:
    V  items of the softmax        M  shared negatives        D  width
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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


def full_softmax(
    hidden_ND: Tensor, item_VD: Tensor, target_N: Tensor, weight_N: Tensor | None = None, chunk_rows: int | None = None
) -> Tensor:
    """Mean cross-entropy of the next item over the whole catalogue, without ever holding N x V numbers.

    Both gradients are computed in the forward pass, some rows at a time in one reused buffer: fresh logits cost more in page
    faults than in arithmetic (measured: 1190 ms flat, 499 ms in chunks of 256, equal gradients). Under autocast to bf16 on CUDA the
    three products take bf16 factors and sum in fp32; logits, their exponentials and the loss are fp32 everywhere.

    Args:
        hidden_ND: States that predict.
        item_VD: Vectors of the candidates. Leave out the reserved rows: nobody can be served padding.
        target_N: int64 row of `item_VD`; a negative target takes no part.
        weight_N: Example weights; None weighs alike.
        chunk_rows: Rows a chunk; None takes `rows_a_chunk`.

    Returns:
        Scalar; 0 if no row takes part.
    """
    dtype = torch.promote_types(torch.promote_types(hidden_ND.dtype, item_VD.dtype), torch.float32)
    weight_N = torch.ones_like(target_N, dtype=dtype) if weight_N is None else weight_N.to(dtype)
    weight_N = weight_N * (target_N >= 0)
    share_N = weight_N / weight_N.sum().clamp(min=torch.finfo(dtype).tiny)
    device = hidden_ND.device.type
    halved = device == "cuda" and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    rows = rows_a_chunk(len(item_VD)) if chunk_rows is None else chunk_rows
    with torch.autocast(device, enabled=False):
        loss: Tensor = _FullSoftmax.apply(
            hidden_ND.to(dtype), item_VD.to(dtype), target_N.clamp(min=0), share_N, rows, torch.bfloat16 if halved else dtype
        )
    return loss


MOST_LOGITS = 2**26  # held at a time: 256 MiB in fp32, 64 rows of a million items
MOST_ROWS = 256  # more rows a product make it no faster


def rows_a_chunk(items: int) -> int:
    """Returns how many rows' logits over a catalogue of `items` are held at a time: at most `MOST_LOGITS` numbers, one row at least."""
    return max(1, min(MOST_ROWS, MOST_LOGITS // max(items, 1)))


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, item_VD: Tensor, target_N: Tensor, share_N: Tensor, chunk_rows: int, factors: torch.dtype
    ) -> Tensor:
        needs_hidden, needs_item = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_item = torch.zeros_like(item_VD) if needs_item else None
        buffer = hidden_ND.new_empty(min(chunk_rows, len(hidden_ND)), len(item_VD))
        loss = hidden_ND.new_zeros(())
        rounded_ND, rounded_VD = hidden_ND.to(factors), item_VD.to(factors)
        for first in range(0, len(hidden_ND), chunk_rows):
            rows = slice(first, first + chunk_rows)
            hidden, target, share = rounded_ND[rows], target_N[rows, None], share_N[rows, None]
            logit = _product(hidden, rounded_VD.T, buffer[: len(hidden)])
            logit -= logit.amax(1, keepdim=True)
            chosen = logit.gather(1, target)
            total = logit.exp_().sum(1, keepdim=True)
            loss += ((total.log() - chosen) * share).sum()
            if not (needs_hidden or needs_item):
                continue
            gradient = logit.mul_(share / total).scatter_add_(1, target, -share).to(factors)
            if grad_hidden is not None:
                _product(gradient, rounded_VD, grad_hidden[rows])
            if grad_item is not None:
                _product(gradient.T, hidden, grad_item, add=True)
        ctx.save_for_backward(grad_hidden, grad_item)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        grad_hidden, grad_item = ctx.saved_tensors
        scaled = [None if part is None else part * grad for part in (grad_hidden, grad_item)]
        return scaled[0], scaled[1], None, None, None, None


def _product(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Writes (or adds) a b to `out`; factors of a smaller type than `out` are multiplied as they are and summed in `out`'s."""
    if a.dtype != out.dtype and a.device.type != "cuda":  # other devices know no product whose sums are wider than its factors
        a, b = a.to(out.dtype), b.to(out.dtype)
    if a.dtype == out.dtype:
        return out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    product = torch.mm(a, b, out_dtype=out.dtype)
    return out.add_(product) if add else out.copy_(product)


def sampled_softmax(
    hidden_ND: Tensor,
    positive_ND: Tensor,
    negative_MD: Tensor,
    target_N: Tensor,
    negative_M: Tensor,
    log_q_positive_N: Tensor,
    log_q_negative_M: Tensor,
    weight_N: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the next item against negatives shared by all rows, corrected for how often they are drawn.

    Each logit is lowered by log q, so that in expectation the popular items that a sampler offers more often are not pushed
    down for it (Bengio & Senecal 2008; Yi et al. 2019; `models.negatives` draws and estimates). A negative that is a row's own target
    is no negative: it is masked.

    Args:
        hidden_ND: States that predict.
        positive_ND: Vectors of the targets.
        negative_MD: Vectors of the negatives.
        target_N: int64 item rows of the targets.
        negative_M: int64 item rows of the negatives.
        log_q_positive_N: Log probability with which the sampler draws each target.
        log_q_negative_M: The same for the negatives; a constant added to both changes nothing.
        weight_N: Example weights; None weighs alike.

    Returns:
        Scalar; 0 if the weights add up to nothing.
    """
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        hidden_ND = hidden_ND.to(dtype)
        positive_N1 = ((hidden_ND * positive_ND.to(dtype)).sum(-1) - log_q_positive_N.to(dtype))[:, None]
        negative_NM = hidden_ND @ negative_MD.to(dtype).T - log_q_negative_M.to(dtype)
        negative_NM = negative_NM.masked_fill(target_N[:, None] == negative_M[None, :], -torch.inf)
        loss_N = torch.logsumexp(torch.cat([positive_N1, negative_NM], 1), 1) - positive_N1[:, 0]
    weight_N = torch.ones_like(loss_N) if weight_N is None else weight_N.to(dtype)
    return (loss_N * weight_N).sum() / weight_N.sum().clamp(min=torch.finfo(dtype).tiny)
