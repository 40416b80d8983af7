"""From vectors to outputs: the context network and the two-tower (bilinear) head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.embedding import FeatureTables
from models.layers import TABLE_STD, Dropout, Projection, RMSNorm, norm_eps_at
from models.packing import GAP_BUCKETS, Packing, gap_bucket, row_times
from models.ranker import ActionShape, Ranker, RankerShape


def initial_bias(actions: tuple[ActionShape, ...]) -> Tensor:
    """Returns float32 [O]: the outputs that predict every action's base rate.

    Raises:
        ValueError: On an unknown kind.
    """
    values: list[float] = []
    for action in actions:
        match action.kind:
            case "binary":
                rate = min(max(action.base_rate, 1e-6), 1 - 1e-6)
                values.append(math.log(rate / (1 - rate)))
            case "count":
                values.append(math.log(max(action.base_rate, 1e-6)))
            case "duration":
                values.extend([action.base_rate, 0.0])
            case _:
                raise ValueError(f"action {action.name!r} has unknown kind {action.kind!r}; known: binary, count, duration")
    return torch.tensor(values, dtype=torch.float32)


class TwoTowerHead(nn.Module):
    """``scale_o * <user, item>`` (+ bias): because every output shares the one product, the vectors mean something outside.

    The product is not divided by sqrt(D): the item vectors start small instead, so that a wider model stays the same function.

    Args:
        shape: Shape of the ranker.
        bias: Whether the head stands alone and starts at the base rates.
    """

    def __init__(self, shape: RankerShape, *, bias: bool) -> None:
        super().__init__()
        self.dimensions: dict[str, tuple[str, ...]] = {"scale": ("output",)}
        self.scale = nn.Parameter(torch.tensor([0.0 if name.endswith("/log_sigma") else 1.0 for name in shape.outputs]))
        if bias:
            self.dimensions["bias"] = ("output",)
            self.bias = nn.Parameter(initial_bias(shape.actions))
        self.has_bias = bias

    def forward(self, user_ND: Tensor, item_ND: Tensor) -> Tensor:
        """Returns [N, O] in fp32 or better."""
        product_N1 = self.product(user_ND, item_ND)
        return product_N1 * self.scale + self.bias if self.has_bias else product_N1 * self.scale

    @staticmethod
    def product(user_ND: Tensor, item_ND: Tensor) -> Tensor:
        """Returns [N, 1], the product that all outputs share."""
        return (user_ND * item_ND.to(user_ND.dtype)).sum(-1, keepdim=True)


class ContextNetwork(nn.Module):
    """What is known of a target besides its history: features, time since the last token, and how user and item fit.

    hidden = sum of terms, then residual layers, then outputs. A feature is a term, so a new one with zero weights changes nothing.
    Numeric features reach the outputs by a wide linear path as well, which starts at zero. A missing one is stood in for by a value
    of its own plus a linear function of those that are there, both learned from zero: with one value for all rows the other
    features' weights would have to suit rows with it and rows without it (`scripts/bench/RESULTS.md`, garbage days).

    Args:
        shape: Shape of the ranker.
    """

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        context, numeric, outputs = shape.context_dim, len(shape.numeric), len(shape.outputs)
        self.feature_dropout = shape.feature_dropout
        self.categorical = FeatureTables(shape.categorical, shape.vocabularies, context, "context")
        self.user, self.item, self.product = (Projection(shape.dim, context, ("context", axis)) for axis in ("dim", "vector", "vector"))
        self.layers = nn.ModuleList(ContextLayer(shape) for _ in range(shape.context_layers))
        self.norm = RMSNorm(context, norm_eps_at(shape, context), "context")
        self.dimensions = {
            "numeric": ("numeric", "context"),
            "wide": ("numeric", "output"),
            "missing": ("numeric",),
            "gap": ("fixed", "context"),
            "output": ("output", "context"),
            "bias": ("output",),
        }
        if shape.stand_ins:
            self.dimensions["stand_in"] = ("numeric", "numeric")
        self.numeric = nn.Parameter(torch.empty(numeric, context).normal_(std=max(numeric, 1) ** -0.5))
        self.wide = nn.Parameter(torch.zeros(numeric, outputs))
        self.missing = nn.Parameter(torch.zeros(numeric))
        self.stand_in = nn.Parameter(torch.zeros(numeric, numeric)) if shape.stand_ins else None
        self.gap = nn.Parameter(torch.empty(GAP_BUCKETS, context).normal_(std=TABLE_STD))
        self.output = nn.Parameter(torch.empty(outputs, context).normal_(std=TABLE_STD))
        self.bias = nn.Parameter(initial_bias(shape.actions))

    def forward(self, batch: Batch, packing: Packing, user_ND: Tensor, item_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Scores every target.

        Args:
            batch: The batch.
            packing: Its rows.
            user_ND: Vector of the user (or of the target in its history).
            item_ND: Vector of the item.

        Returns:
            Outputs [N, O] in fp32 or better, and what they are a linear function of: [N, context + F], last state and numbers.

        Raises:
            ValueError: If the batch has other numbers of features than the shape.
        """
        categorical_NC, numeric_NF = self._inputs(batch)
        last_N = row_times(batch, packing)[packing.state_N]
        hidden_NC = F.embedding(gap_bucket(batch.target_time_N, last_N), self.gap)
        hidden_NC = self.categorical.add_to(hidden_NC, categorical_NC) + numeric_NF @ self.numeric
        hidden_NC = hidden_NC + self.user(user_ND) + self.item(item_ND) + self.product(user_ND * item_ND)
        for layer in self.layers:
            hidden_NC = layer(hidden_NC)
        hidden_NC = self.norm(hidden_NC)
        with torch.autocast(hidden_NC.device.type, enabled=False):  # bf16 keeps three digits; calibration needs more
            output_NO = _by_output(hidden_NC, self.output) + _by_output(numeric_NF, self.wide.T) + self.bias
            return output_NO, torch.cat([hidden_NC, numeric_NF.to(hidden_NC.dtype)], 1)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Context rows [N, C] and numeric values [N, F], with learned values where a feature is missing or dropped."""
        categorical_NC, present_NF = batch.categorical_NC, batch.present_NF
        if present_NF.shape[1] != len(self.missing):
            raise ValueError(f"{len(self.missing)} numeric columns expected, got {present_NF.shape[1]}")
        if self.training and self.feature_dropout > 0:
            categorical_NC = self.categorical.dropped(categorical_NC, self.feature_dropout)
            present_NF = present_NF & ~_chance(present_NF, self.feature_dropout)
        known_NF = torch.where(present_NF, batch.numeric_NF.to(self.missing.dtype), 0.0)
        instead_NF = self.missing if self.stand_in is None else self.missing + known_NF @ self.stand_in
        return categorical_NC, torch.where(present_NF, known_NF, instead_NF)


class TeacherHead(nn.Module):
    """Reads a teacher's scores from what the served outputs read, as they do: linearly. It is trained and never served.

    The teacher's bias stays in this head: it shapes the trunk and the context network, but no served output is fitted to it
    (Khani et al. 2024, arXiv 2408.14678, section on auxiliary distillation heads). Because the head reads all that the served
    outputs read, the trunk learns what they lack and nothing to make up for what the head cannot see. Its weights start at
    zero and its bias at the base rates, so it begins without a say.

    Args:
        ranker: The ranker that it reads.
        stop_gradient: Whether the head only listens: it then measures how well the teacher can be read and teaches nothing.
    """

    def __init__(self, ranker: Ranker, *, stop_gradient: bool = False) -> None:
        super().__init__()
        actions = ranker.shape.actions
        self.weight = nn.Parameter(torch.zeros(len(actions), ranker.shared_dim))
        self.bias = nn.Parameter(torch.cat([initial_bias((action,))[:1] for action in actions]))
        self.stop_gradient = stop_gradient

    def forward(self, shared_NC: Tensor) -> Tensor:
        """Maps `models.ranker.Scores.shared_NC` to one output an action, [N, A]: logit, log rate, or log1p of expected seconds."""
        shared_NC = shared_NC.detach() if self.stop_gradient else shared_NC
        with torch.autocast(shared_NC.device.type, enabled=False):
            return F.linear(shared_NC.to(self.weight.dtype), self.weight, self.bias)


def _by_output(x_NC: Tensor, weight_OC: Tensor) -> Tensor:
    """``x @ weight.T``, an output at a time: a matrix product's last bits depend on how many outputs stand beside each other, and an
    added head must leave the old ones bit-equal.
    """
    return torch.stack([x_NC @ weight_C for weight_C in weight_OC], dim=1)


def _chance(like: Tensor, rate: float) -> Tensor:
    return torch.rand(like.shape, device=like.device) < rate


class ContextLayer(nn.Module):
    """Pre-norm residual layer: ``x + down(gelu(up(norm(x))))``.

    Args:
        shape: Shape of the ranker.
    """

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        width = shape.context_dim
        self.norm = RMSNorm(width, norm_eps_at(shape, width), "context")
        self.up = Projection(width, width, ("context_ffn", "context"))
        self.down = Projection(width, width, ("context", "context_ffn"), std=TABLE_STD / math.sqrt(2 * shape.context_layers))
        self.dropout = Dropout(shape.dropout)

    def forward(self, x_NC: Tensor) -> Tensor:
        """Maps [N, context] to [N, context]."""
        return x_NC + self.dropout(self.down(F.gelu(self.up(self.norm(x_NC)))))
