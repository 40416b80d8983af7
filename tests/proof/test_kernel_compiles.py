"""The Triton kernels compile to machine code for an H100, on a machine without one: the interpreter of the unit tests would not notice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

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

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    hold(kernel, signature, constants)


@pytest.mark.parametrize("columns", [1, 40, 3_416, 8_192, 1_000_003])
@pytest.mark.parametrize("sampled", [False, True], ids=["full", "sampled"])
@pytest.mark.parametrize("weights", ["*fp32", "*bf16"])
def test_the_softmax_compiles_for_an_h100_and_keeps_its_row_in_registers(columns: int, sampled: bool, weights: str, tmp_path: Path) -> None:
    from models import softmax_kernel

    kernel, constants = softmax_kernel._weigh, softmax_kernel._constants(columns, sampled=sampled)
    warps = constants.pop("num_warps")
    if not sampled:
        constants.update(dict.fromkeys(("own_ptr", "grad_own_ptr", "item_ptr", "log_q_ptr")))
    kinds = {"weight_ptr": weights, "target_ptr": "*i64", "item_ptr": "*i64", "columns": "i32", "stride": "i32"}
    signature = {argument: "constexpr" if argument in constants else kinds.get(argument, "*fp32") for argument in kernel.arg_names}
    aligned = {"logit_ptr", "weight_ptr", "item_ptr", "log_q_ptr", "stride"} & {name for name, of in signature.items() if of != "constexpr"}
    compiled = hold(kernel, signature, constants, aligned, num_warps=warps)
    assert " STACK:0 " in usage(compiled.asm["cubin"], tmp_path), "numbers that no register holds go through memory"
    assert ("ld.global.v4" in compiled.asm["ptx"]) == (constants["BLOCK"] >= 128 * warps), "logits are read four at a time"


def hold(kernel: Any, signature: dict[str, str], constants: dict[str, Any], aligned: Collection[str] = (), **options: int) -> Any:
    """Compiles for an H100, and holds the result to its shared memory. What is `aligned` is a multiple of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={places[name]: value for name, value in constants.items()},
        attrs={places[name]: [["tt.divisibility", 16]] for name in aligned},
    )  # fmt: skip
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= SHARED_BYTES
    return compiled


def usage(cubin: bytes, folder: Path) -> str:
    """Says what the compiled kernel needs of registers and stack."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    found = subprocess.run([triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)], capture_output=True, text=True, check=True)
    return found.stdout
