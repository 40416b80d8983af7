"""The Triton kernels compile to machine code for an H100, on a machine without one: the interpreter of the unit tests would not notice."""

from __future__ import annotations

import os

import pytest

from models.packing import EXACT_POSITIONS, GAP_BUCKETS, LONGEST_GAP, POSITION_BUCKETS

triton = pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton interprets in this process; run this file by itself"),
]

SHARED_BYTES = 227 * 1024  # what one block of an H100 may use (CUDA C++ programming guide, compute capability 9.0)
HEADS, HALF = 4, "bf16"
TYPES = {"bias": "*fp32", "dbias": "*fp32", "time": "*i64", "S": "i32"}
VALUES = {"q_ptr", "k_ptr", "v_ptr", "out_ptr", "grad_ptr", "dq_ptr", "dk_ptr", "dv_ptr"}


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["_forward", "_backward_queries", "_backward_keys"])
def test_a_kernel_compiles_for_an_h100_and_fits_its_shared_memory(name: str, width: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models import silu_kernel

    kernel = getattr(silu_kernel, name)
    constants = {
        "H": HEADS, "E": width, "WIDTH": width, "BLOCK": silu_kernel._BLOCK, **silu_kernel._BUCKETS,
        "P": POSITION_BUCKETS * GAP_BUCKETS, "COPIES": silu_kernel._COPIES,
    }  # fmt: skip
    assert {"GAPS": GAP_BUCKETS, "LONGEST": LONGEST_GAP, "PLACES": POSITION_BUCKETS, "EXACT": EXACT_POSITIONS}.items() <= constants.items()
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}

    def kind(argument: str) -> str:
        return "constexpr" if argument in constants else TYPES.get(argument, f"*{HALF}" if argument in VALUES else "*i32")

    source = ASTSource(
        fn=kernel,
        signature={argument: kind(argument) for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(key),): value for key, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= SHARED_BYTES
