"""The parts every ranker is built from. Each part owns its parameters and says what their dimensions mean (`dimensions`).

Growth can stay exact because no forward pass here depends on a width, with one exception: RMSNorm divides by it. Its eps is
therefore given for the shape's `dim` and scaled to the width of each norm (`norm_eps_at`), so that ``norm_eps * dim`` is the
one number that growth keeps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from models.ranker import RankerShape

PAD_ROW = 0
OOV_ROW = 1
TABLE_STD = 0.02


def collect_axes(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Gathers the `dimensions` of all submodules under their names in the state dict.

    Args:
        module: A ranker, or any part of one.

    Returns:
        Name in the state dict -> meaning of each dimension (`models.ranker.Ranker.axes`).
    """
    axes: dict[str, tuple[str, ...]] = {}
    for prefix, part in module.named_modules():
        for name, meaning in getattr(part, "dimensions", {}).items():
            axes[f"{prefix}.{name}" if prefix else name] = meaning
    return axes


def feature_key(name: str) -> str:
    """Returns the module name of a feature: a colon keeps it apart from Python attributes (a feature may be called ``type``).

    Dots are escaped because torch splits names at them; distinct features keep distinct keys.
    """
    return "feature:" + name.replace("%", "%25").replace(".", "%2E")


def whole_name(name: str) -> str:
    """Returns the list that a feature is one value of (``tags`` of ``tags[0]``); any other feature's own name.

    As `trainer.schema.logs.whole_name`, which this package does not know; a test holds them equal.
    """
    return re.sub(r"(?<=.)\[\d+\]$", "", name)


def norm_eps_at(shape: RankerShape, width: int) -> float:
    """Returns the eps of an RMSNorm of `width`: the sum of squares is compared with the same number at every width."""
    return shape.norm_eps * shape.dim / width


class Projection(nn.Module):
    """A linear map.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        axes: Meaning of (output, input).
        std: Standard deviation of the initial weights; None takes ``inputs ** -0.5``, which keeps the input's scale.
        bias: Whether a bias is added; it starts at zero.
    """

    def __init__(self, inputs: int, outputs: int, axes: tuple[str, str], std: float | None = None, *, bias: bool = False) -> None:
        super().__init__()
        self.dimensions: dict[str, tuple[str, ...]] = {"weight": axes}
        self.weight = nn.Parameter(torch.empty(outputs, inputs).normal_(std=inputs**-0.5 if std is None else std))
        if bias:
            self.dimensions["bias"] = axes[:1]
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Maps [..., inputs] to [..., outputs].

        Args:
            x: Input.
            gain: [inputs], what is still to be multiplied to it: into the weights, which are smaller.
        """
        return F.linear(x, self.weight if gain is None else self.weight * gain, self.bias)

    def scaled(self, scale_H: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias of the map whose outputs, in H groups, are multiplied by `scale_H`."""

        def scale(x: Tensor) -> Tensor:
            return (x.unflatten(0, (len(scale_H), -1)) * scale_H.view(-1, *[1] * x.ndim)).flatten(0, 1)

        return scale(self.weight), None if self.bias is None else scale(self.bias)


def together(maps: Sequence[tuple[Tensor, Tensor | None]], x: Tensor, gain: Tensor | None = None) -> Tensor:
    """Applies linear maps to the same rows in one product: rows, and their gradient, are then read and written once.

    Args:
        maps: Weight and bias of each; all have a bias or none.
        x: Input [..., inputs].
        gain: As in `Projection.forward`.

    Returns:
        Their outputs, one beside the other.
    """
    weights, biases = zip(*maps, strict=True)
    weight = torch.cat(weights)
    return F.linear(x, weight if gain is None else weight * gain, None if biases[0] is None else torch.cat(biases))


class Table(nn.Module):
    """An embedding table by vocabulary row. Row 0 (pad) is zero and gets no gradient; row 1 (OOV) is trained.

    Args:
        rows: Rows, reserved ones included.
        width: Width of a row.
        axes: Meaning of (row, width).

    Attributes:
        sparse: Whether a lookup of fewer rows than half the table leaves a sparse gradient. It then lists the pad row too; whoever
            sets this drops it, because leaving it out here would stall an accelerator.
    """

    def __init__(self, rows: int, width: int, axes: tuple[str, str]) -> None:
        super().__init__()
        self.dimensions = {"weight": axes}
        weight = torch.empty(rows, width).normal_(std=TABLE_STD)
        weight[PAD_ROW] = 0
        self.weight = nn.Parameter(weight)
        self.sparse = False

    def forward(self, row: Tensor) -> Tensor:
        """Looks up int64 rows [...]; returns [..., width]."""
        if self.sparse and 2 * row.numel() < len(self.weight):
            return F.embedding(row, self.weight, sparse=True)
        return F.embedding(row, self.weight, padding_idx=PAD_ROW)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in fp32 or better (Zhang & Sennrich 2019, arXiv 1910.07467).

    Args:
        width: Width of the last dimension.
        eps: Added to the mean of squares.
        axis: Meaning of the gain's dimension.
        groups: The gain holds this many norms of `width`, one beside the other (heads); input is [..., groups, width].
    """

    def __init__(self, width: int, eps: float, axis: str, groups: int = 1) -> None:
        super().__init__()
        self.dimensions = {"gain": (axis,)}
        self.eps = eps
        self.groups = groups
        self.gain = nn.Parameter(torch.ones(groups * width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [..., width] (with groups: [..., groups, width]); returns the same shape."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.groups > 1:
            return rms_normalise(x, self.eps) * self.gain.view(self.groups, -1)
        return rms_normalise(x, self.eps) * self.gain

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns what `forward` multiplies, the normalised rows and the gain (without groups only), for a linear map to take both."""
        return rms_normalise(x.to(torch.promote_types(x.dtype, torch.float32)), self.eps), self.gain


class LayerNorm(nn.Module):
    """Layer norm over the last dimension, in fp32 or better (Ba et al. 2016, arXiv 1607.06450).

    Zeros beside the old entries would move its mean and variance, so a wider stream repeats its entries instead: the eps is that of
    every width.

    Args:
        width: Width of the last dimension.
        eps: Added to the variance.
        axis: Meaning of the gain's and the bias's dimension.
    """

    def __init__(self, width: int, eps: float, axis: str) -> None:
        super().__init__()
        self.dimensions = {"gain": (axis,), "bias": (axis,)}
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [..., width]; returns the same shape."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.layer_norm(x, x.shape[-1:], self.gain, self.bias, self.eps)

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns `forward`, and no gain that would be left to multiply (`RMSNorm.apart`)."""
        return self(x), None


def trunk_norm(shape: RankerShape, eps: float | None = None) -> RMSNorm | LayerNorm:
    """Returns a norm of the residual stream, of the kind that the shape names.

    Args:
        shape: Shape of the ranker.
        eps: eps of a LayerNorm; None takes ``shape.norm_eps``.
    """
    if shape.norm == "layer":
        return LayerNorm(shape.dim, shape.norm_eps if eps is None else eps, "dim")
    return RMSNorm(shape.dim, norm_eps_at(shape, shape.dim), "dim")


class _RMSNormalise(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + eps)`` in three passes; torch's own is made of a dozen on CPU (10,240 x 64: 35 ms)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        share = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, share, value=-1).mul_(inverse), None


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    """Divides [..., width] by its root mean square."""
    if x.device.type == "cpu" and not torch.compiler.is_exporting():
        return _RMSNormalise.apply(x, eps)
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def through(block: nn.Module, *inputs: Any, checkpointed: bool) -> Tensor:
    """Applies a block; `checkpointed`, its inside is computed again for the gradients, with the same dropout (Chen et al. 2016)."""
    if checkpointed and torch.is_grad_enabled():
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return out
    return block(*inputs)


class Dropout(nn.Module):
    """Inverted dropout. On CPU one random 64-bit draw serves eight elements, so the rate is a multiple of 1/256 there.

    The random generator is what dropout costs on CPU (8 ms for 10,240 x 64 elements, four times the matrix product beside it).
    Elements are scaled by the rate that is really drawn, so the expectation stays exact.

    Args:
        rate: Share of elements set to zero in training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` in eval() or at rate 0, else a copy with dropped elements."""
        if not self.training or self.rate == 0:
            return x
        return F.dropout(x, self.rate) if x.device.type != "cpu" else x * self._mask(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns ``x + self(y)``, on CPU in one pass."""
        if not self.training or self.rate == 0 or x.device.type != "cpu" or x.dtype != y.dtype:
            return x + self(y)
        added: Tensor = _AddMasked.apply(x, y, self._mask(y))
        return added

    def _mask(self, x: Tensor) -> Tensor:
        """Draws what elements of `x` are multiplied by: 0, or the inverse of the share that is kept."""
        threshold = round(self.rate * 256)
        draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        # Compared as floats, in place: torch turns a boolean into numbers three times as slowly.
        keep = draws.view(torch.uint8)[: x.numel()].view(x.shape).to(x.dtype).ge_(threshold)
        return keep.mul_(256 / (256 - threshold))


class _AddMasked(torch.autograd.Function):
    """``x + y * mask``; the gradient of torch's own is made of two passes over `y`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.addcmul(x, y, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad, grad * mask, None
