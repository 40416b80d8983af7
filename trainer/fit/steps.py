"""What steps report, held on the device until it is read: reading every step would stall an accelerator every step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepLog:
    """What one step reported.

    Attributes:
        step: Step number, from 0.
        loss: Loss of the labels before the step, NaN if the step was skipped for it. In one pass over new targets this is
            progressive validation: every target is scored before it is learned.
        lr: Learning rate factor.
        grad_norm: Global gradient norm before clipping.
        skipped: Whether the step was skipped as non-finite.
        new: Whether it had new targets; replayed ones alone have been learned before and say nothing about progress.
        teacher: Loss of the teacher's scores, unweighted; 0 without one.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    skipped: bool
    new: bool = True
    teacher: float = 0.0


@dataclass(frozen=True)
class Reported:
    """A step whose numbers are still on the device.

    Attributes:
        step: Step number.
        lr: Learning rate factor.
        new: Whether its targets were new.
        loss: Loss of the labels, a scalar.
        grad_norm: Global gradient norm, a scalar.
        skip: Scalar, 1 if the step was skipped, else 0.
        teacher: Loss of the teacher's scores, a scalar.
        branch: Whether the annealed copy made it; the log is the trunk's.
    """

    step: int
    lr: float
    new: bool
    loss: Tensor
    grad_norm: Tensor
    skip: Tensor
    teacher: Tensor
    branch: bool


def read(reports: Sequence[Reported]) -> list[StepLog]:
    """Reads what steps reported; the host waits once, for the last of them."""
    if not reports:
        return []
    values = torch.stack([torch.stack([part.double() for part in (r.loss, r.grad_norm, r.skip, r.teacher)]) for r in reports]).tolist()
    return [
        StepLog(report.step, loss, report.lr, norm, skip > 0, report.new, teacher)
        for report, (loss, norm, skip, teacher) in zip(reports, values, strict=True)
    ]


def append(entries: Sequence[StepLog], file: Path) -> None:
    """Appends to a step log; a resumed run appends too, and the reader keeps the last entry of a step."""
    with file.open("a") as stream:
        stream.writelines(json.dumps(asdict(entry)) + "\n" for entry in entries)


def read_log(file: Path) -> list[StepLog]:
    """Reads a step log; steps that a killed run made after its last checkpoint were made again, the last entry counts."""
    entries = (StepLog(**json.loads(line)) for line in file.read_text().splitlines())
    return sorted({entry.step: entry for entry in entries}.values(), key=lambda entry: entry.step)
