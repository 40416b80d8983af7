"""Proves a warm start before the first step: production's outputs and the challenger's, on the same probe rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from models.batch import Batch
from models.ranker import Ranker
from trainer.errors import CheckpointError

FP32_BOUND = 1e-5  # times max |output|: growth changes GEMM shapes, and with them the last bits


@dataclass(frozen=True)
class Parity:
    """Measured difference on the probe.

    Attributes:
        rows: Probe rows.
        max_difference: Largest difference of any shared output.
        max_output: Largest magnitude of production's outputs.
        bound: What an exact plan must stay within.
        exact: Whether the plan promised exactness.
    """

    rows: int
    max_difference: float
    max_output: float
    bound: float
    exact: bool


def verify(production: Ranker, challenger: Ranker, probes: list[tuple[Batch, Batch]], exact: bool) -> Parity:
    """Compares shared outputs on rows encoded for each side.

    Args:
        production: Production's ranker, evaluation mode.
        challenger: The warm-started ranker, evaluation mode.
        probes: The same rows as (production's batch, challenger's batch).
        exact: Whether the plan is exact.

    Returns:
        The measured parity.

    Raises:
        CheckpointError: If an exact plan does not hold, or an output is not finite.
    """
    names_old, names_new = production.shape.outputs, challenger.shape.outputs
    shared = [name for name in names_old if name in names_new]
    columns_old = [names_old.index(name) for name in shared]
    columns_new = [names_new.index(name) for name in shared]
    difference, largest, rows = 0.0, 0.0, 0
    with torch.inference_mode():
        for old_batch, new_batch in probes:
            old = production(old_batch).output_NO[torch.from_numpy(np.argsort(old_batch.row_N.numpy()))][:, columns_old]
            new = challenger(new_batch).output_NO[torch.from_numpy(np.argsort(new_batch.row_N.numpy()))][:, columns_new]
            difference = max(difference, float((old - new).abs().max()))
            largest = max(largest, float(old.abs().max()))
            rows += len(old)
    parity = Parity(rows, difference, largest, FP32_BOUND * max(largest, 1.0), exact)
    if not np.isfinite(difference) or (exact and difference > parity.bound):
        raise CheckpointError(
            "the warm start does not reproduce production before the first step",
            where=f"{rows} probe rows",
            got=f"max difference {difference:.3g}",
            expected=f"at most {parity.bound:.3g}",
            remedy="this is a defect of the transfer plan: report it with transfer.json",
        )
    return parity
