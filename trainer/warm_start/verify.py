"""Proves a warm start before the first step: production's outputs and the challenger's, on the same probe rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.batch import Batch
from models.ranker import Ranker
from trainer.errors import CheckpointError

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}  # times max |output|: growth changes GEMM shapes, and with them the last bits
NEXT_ITEM = "next item"  # the one output of a ranker without actions


@dataclass(frozen=True)
class Parity:
    """Measured difference on the probe.

    Attributes:
        rows: Probe rows.
        max_difference: Largest difference of any shared output.
        max_output: Largest magnitude of production's outputs.
        bound: What an exact plan must stay within.
        exact: Whether the plan promised exactness.
        mean_difference: Mean difference of shared outputs.
        outputs: Shared output -> largest difference.
        new_outputs: Output of a new head -> largest distance from its base rate (as an output: a logit, a log rate).
    """

    rows: int
    max_difference: float
    max_output: float
    bound: float
    exact: bool
    mean_difference: float = 0.0
    outputs: dict[str, float] = field(default_factory=dict)
    new_outputs: dict[str, float] = field(default_factory=dict)


def verify(
    production: Ranker, challenger: Ranker, probes: list[tuple[Batch, Batch]], exact: bool, renamed: Mapping[str, str] | None = None
) -> Parity:
    """Compares shared outputs on rows encoded for each side; both in evaluation mode and of one precision.

    Args:
        production: Production's ranker.
        challenger: The warm-started ranker.
        probes: The same rows as (production's batch, challenger's batch).
        exact: Whether the plan is exact.
        renamed: Output of production -> its name in the challenger, where that differs.

    Returns:
        The measured parity.

    Raises:
        CheckpointError: If an exact plan does not hold, a new head does not start at its base rate, or an output is not finite.
    """
    renamed = renamed or {}
    names = [renamed.get(name, name) for name in output_names(production)]
    known = output_names(challenger)
    shared = [name for name in names if name in known]
    old, new = (
        torch.cat([scores(ranker, _readable(production, challenger, pair)[side]) for pair in probes] or [torch.zeros(0, len(known))])
        for side, ranker in enumerate((production, challenger))
    )
    old, kept = old[:, [names.index(name) for name in shared]], new[:, [known.index(name) for name in shared]]
    difference = (old - kept).abs()
    largest = float(old.abs().max()) if old.numel() else 0.0
    bound = BOUNDS.get(old.dtype, 1e-5) * max(largest, 1.0)
    parity = Parity(
        rows=len(old),
        max_difference=float(difference.max()) if difference.numel() else 0.0,
        max_output=largest,
        bound=bound,
        exact=exact,
        mean_difference=float(difference.mean()) if difference.numel() else 0.0,
        outputs={name: float(column.max()) for name, column in zip(shared, difference.T, strict=True) if len(column)},
        new_outputs=_new_outputs(challenger, new, [name for name in known if name not in shared]),
    )
    _check(parity)
    return parity


def _check(parity: Parity) -> None:
    if parity.exact and not parity.rows:
        raise CheckpointError(
            "there is no row to prove the warm start on",
            where="probe of the newest training day",
            expected="a target whose history production can read whole",
            remedy="train on a day that has one, or set warm_start.approximate=true and judge the result by the gate alone",
        )
    worst = max(parity.outputs, key=parity.outputs.__getitem__, default="")
    finite = np.isfinite(parity.max_difference) and all(map(np.isfinite, parity.outputs.values()))
    if not finite or (parity.exact and parity.max_difference > parity.bound):
        raise CheckpointError(
            "the warm start does not reproduce production before the first step",
            where=f"{parity.rows} probe rows, output {worst}",
            got=f"max difference {parity.max_difference:.3g}",
            expected=f"at most {parity.bound:.3g}",
            remedy="this is a defect of the transfer plan: report it with transfer.json",
        )
    for name, distance in parity.new_outputs.items():
        if parity.exact and not distance <= parity.bound:
            raise CheckpointError(
                "a new head does not start at its base rate",
                where=f"output {name}",
                got=f"{distance:.3g} away from it",
                expected=f"at most {parity.bound:.3g}",
                remedy="this is a defect of the transfer plan: report it with transfer.json",
            )


def output_names(ranker: Ranker) -> list[str]:
    """Returns the names of what `scores` returns."""
    return list(ranker.shape.outputs) or [NEXT_ITEM]


def scores(ranker: Ranker, batch: Batch) -> Tensor:
    """Returns a ranker's outputs [N, O] by row of the examples; user-item products [N, 1] for one without actions."""
    order_N = torch.from_numpy(np.argsort(batch.row_N.numpy(), kind="stable"))
    with torch.inference_mode():
        if ranker.shape.actions:
            return ranker(batch).output_NO[order_N]
        item_ND = ranker.item_vectors(batch.target_item_N, batch.target_item_features_NI)
        return (ranker.user_vectors(batch) * item_ND).sum(-1, keepdim=True)[order_N]


def _new_outputs(challenger: Ranker, new_NO: Tensor, names: list[str]) -> dict[str, float]:
    """Distance of new heads from their bias: a head that starts elsewhere floods the trunk with gradient."""
    if not names or not len(new_NO) or not challenger.shape.actions:
        return {}
    bias_O = challenger.state_dict()["context.bias"]
    columns = {name: challenger.shape.outputs.index(name) for name in names}
    return {name: float((new_NO[:, column] - bias_O[column]).abs().max()) for name, column in columns.items()}


def _readable(production: Ranker, challenger: Ranker, batches: tuple[Batch, Batch]) -> tuple[Batch, Batch]:
    """Leaves out targets with longer histories than production's learned positions reach: the challenger sees more of those."""
    reach = production.shape.positions
    if not reach or challenger.shape.positions <= reach:
        return batches
    return _within(batches[0], reach), _within(batches[1], reach)


def _within(batch: Batch, reach: int) -> Batch:
    from dataclasses import fields, replace

    stay_N = batch.target_position_N <= reach
    names = [f.name for f in fields(batch) if f.name.rsplit("_", 1)[-1].startswith("N") and getattr(batch, f.name) is not None]
    return replace(batch, **{name: getattr(batch, name)[stay_N] for name in names})
