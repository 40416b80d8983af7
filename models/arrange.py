"""Chooses how a batch's rows are arranged for attention, and holds the arrangements of CUDA.

On the CPU, in fp32 and where a trunk shows its tokens padding: groups of nearly equal length (`models.attention`). On CUDA under
autocast to fp16 or bf16: nothing is padded at all; softmax attention by torch's variable-length kernel, pointwise attention by
`models.silu_kernel`. Neither arrangement waits for the device: the one length that a kernel wants to know is kept on the CPU
(`models.batch.Lengths`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import CausalAttention, PointwiseAttention, Seen, add_self, causal_layout, pair_layout, self_bias
from models.packing import Packing

if TYPE_CHECKING:
    from models.silu_kernel import Runs

_VARLEN_MULTIPLE = 8  # flash attention wants head widths that are a multiple of it


def arrange_causal(packing: Packing, padding: int | None = None) -> CausalAttention:
    """Arranges rows for softmax attention to earlier rows, the fastest way that is exact here.

    Args:
        packing: Rows of the batch.
        padding: Length of the window whose padding the front rows stand for (`models.ranker.RankerShape.padding`).
    """
    dtype = half_precision(packing.length_S.device)
    if dtype is None or padding is not None:
        return causal_layout(packing, padding)
    return varlen_layout(packing, dtype)


def arrange_pairs(packing: Packing, seen: Seen) -> PointwiseAttention:
    """Arranges rows and targets for pointwise attention, the fastest way that is exact here.

    Args:
        packing: Rows of the batch.
        seen: What rows and targets know.
    """
    device = packing.length_S.device
    # The kernel sums the bias gradient in no fixed order.
    if half_precision(device) is None or torch.are_deterministic_algorithms_enabled() or not has_triton():
        return pair_layout(packing, seen)
    return run_layout(packing, seen)


def half_precision(device: torch.device) -> torch.dtype | None:
    """Returns fp16 or bf16 where autocast computes in it on a CUDA device that has the kernels; else None."""
    if device.type != "cuda" or not torch.is_autocast_enabled("cuda") or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    dtype = torch.get_autocast_dtype("cuda")
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


@cache
def has_triton() -> bool:
    """Tells whether kernels written in Triton can be compiled here."""
    return find_spec("triton") is not None


@dataclass(frozen=True)
class VarlenLayout:
    """Rows as they are: each sequence is a run of consecutive rows.

    Attributes:
        begin_S1: int32, first row of each sequence, and the number of rows.
        longest: Rows of the longest sequence.
        dtype: What is computed in; sums are fp32.
    """

    begin_S1: Tensor
    longest: int
    dtype: torch.dtype

    @torch.compiler.disable
    def attend(self, q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor) -> Tensor:
        """Attends as `models.attention.causal_attention`, in the layout's precision."""
        from torch.nn.attention.varlen import varlen_attn

        width = q_RHE.shape[-1]
        missing = -width % _VARLEN_MULTIPLE  # zeros change neither a product of queries and keys nor the values before them
        q_RHE, k_RHE, v_RHE = (F.pad(x.to(self.dtype), (0, missing)) if missing else x.to(self.dtype) for x in (q_RHE, k_RHE, v_RHE))
        begin_S1, longest = self.begin_S1, self.longest
        out_RHE = varlen_attn(q_RHE, k_RHE, v_RHE, begin_S1, begin_S1, longest, longest, scale=1.0, window_size=(-1, 0))
        assert isinstance(out_RHE, Tensor)  # nothing else was asked for
        return out_RHE[..., :width]


def varlen_layout(packing: Packing, dtype: torch.dtype) -> VarlenLayout:
    """Arranges nothing: the runs are the sequences."""
    rows = packing.start_S.new_full((1,), len(packing.sequence_R))
    return VarlenLayout(torch.cat([packing.start_S, rows]).int(), int(packing.here[0].max()), dtype)


@dataclass(frozen=True)
class RunLayout:
    """Rows and targets as they are, as runs of consecutive rows.

    Attributes:
        runs: Where they lie.
        self_bias_N: int32, bias row of a target with itself.
    """

    runs: Runs
    self_bias_N: Tensor

    @torch.compiler.disable
    def attend(self, q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor) -> Tensor:
        """Attends as `models.attention.pointwise_attention`."""
        from models.silu_kernel import silu_attention

        out_QHE = silu_attention(q_QHE, k_QHE, v_QHE, bias_PH, self.runs)
        return add_self(out_QHE, q_QHE, k_QHE, v_QHE, F.embedding(self.self_bias_N, bias_PH))


def run_layout(packing: Packing, seen: Seen) -> RunLayout:
    """Describes the runs of a batch (`models.silu_kernel.runs_of`)."""
    from models.silu_kernel import runs_of

    rows = len(packing.sequence_R)
    runs = runs_of(packing.start_S, packing.length_S, packing.target_length_S, seen.position_Q, seen.time_Q, seen.visible_Q, rows)
    return RunLayout(runs, self_bias(seen.time_Q[rows:]))
