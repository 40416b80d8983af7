"""The optimizer of embedding tables: only the rows that a step touched are read, moved or decayed.

Dense AdamW goes on moving a row by its old momentum, and decaying it, for as long as nobody sees its id: the rows of rare ids
are what years of training bought, and this is how they are lost. Here a row without gradient stays bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "rowwise_adagrad": ("sum",)}
_EPS = 1e-8


class TableOptimizer(torch.optim.Optimizer):
    """AdamW or row-wise Adagrad over the rows with a gradient, with frequency-aware decay.

    State of a table of V rows and width D, all float32 (steps are exact up to 16.7 million, as in `torch.optim.AdamW`):

    - ``step``: steps of the table (a step that brings it no gradient at all is none);
    - ``last`` [V]: step at which the row was last touched, 0 = never;
    - ``adamw``: ``exp_avg`` and ``exp_avg_sq`` [V, D]. On touch both are first faded by the steps that the row missed, so they
      are those of dense AdamW at that step and its update is dense AdamW's (Kingma & Ba 2015, arXiv 1412.6980);
    - ``rowwise_adagrad``: ``sum`` [V], summed mean square of the row's gradients (Duchi et al. 2011; one accumulator a row
      after Gupta et al. 2014 and FBGEMM's exact row-wise Adagrad).

    Decay: a touched row first loses ``min(1, decay x steps since its last touch)`` of itself, apart from the gradient, so every
    row decays by the same rate in time (AdamAR, ICLR 2026, openreview QFH5mwP9oH). A row touched for the first time loses nothing.

    Args:
        tables: Embedding tables.
        kind: ``adamw`` or ``rowwise_adagrad``.
        lr: Learning rate.
        betas: Decay rates of AdamW's moments.
        decay: Frequency-aware decay a step; may be changed between steps in `param_groups`.
    """

    def __init__(
        self, tables: Iterable[Tensor], *, kind: str, lr: float, betas: tuple[float, float] = (0.9, 0.99), decay: float = 0.0
    ) -> None:
        super().__init__(tables, {"lr": lr, "base_lr": lr, "betas": betas, "decay": decay})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates the touched rows of every table that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad, group)
        return loss

    def restore(self, table: Tensor, moments: dict[str, Tensor]) -> bool:
        """Fills in carried state; False if it is another optimizer's, and the table starts afresh.

        State without ``last`` (dense AdamW's) counts every row as touched at its last step.
        """
        if not set(MOMENTS[self.kind]) <= set(moments) or "step" not in moments:
            return False
        step = moments["step"].detach().clone().float().cpu()
        last = moments.get("last", step.expand(len(table)))
        state = {"last": last, **{key: moments[key] for key in MOMENTS[self.kind]}}
        self.state[table] = {"step": step, **{key: value.to(table.device, torch.float32).clone() for key, value in state.items()}}
        return True

    def _update(self, table: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table] or self._fresh(table)
        state["step"] += 1
        row_R = grad.ne(0).any(1).nonzero()[:, 0]
        last_R = state["last"][row_R]
        step = float(state["step"])
        missed_R1 = torch.where(last_R > 0, step - last_R, 1.0)[:, None]
        state["last"][row_R] = step
        weight_RD, grad_RD = table[row_R], grad[row_R].float()
        if group["decay"] > 0:
            share_R1 = (group["decay"] * missed_R1).clamp(max=1.0) * (last_R > 0)[:, None]
            weight_RD = weight_RD * (1 - share_R1)
        if self.kind == "adamw":
            move_RD = self._adam(state, row_R, grad_RD, missed_R1, group["betas"])
        else:
            state["sum"][row_R] += grad_RD.square().mean(1)
            move_RD = grad_RD / (state["sum"][row_R].sqrt() + _EPS)[:, None]
        table[row_R] = (weight_RD - group["lr"] * move_RD).to(table.dtype)

    def _adam(self, state: dict[str, Tensor], row_R: Tensor, grad_RD: Tensor, missed_R1: Tensor, betas: tuple[float, float]) -> Tensor:
        beta1, beta2 = betas
        step = float(state["step"])
        first_RD = state["exp_avg"][row_R] * beta1**missed_R1 + (1 - beta1) * grad_RD
        second_RD = state["exp_avg_sq"][row_R] * beta2**missed_R1 + (1 - beta2) * grad_RD.square()
        state["exp_avg"][row_R], state["exp_avg_sq"][row_R] = first_RD, second_RD
        return (first_RD / (1 - beta1**step)) / ((second_RD / (1 - beta2**step)).sqrt() + _EPS)

    def _fresh(self, table: Tensor) -> dict[str, Tensor]:
        shapes = {"exp_avg": table.shape, "exp_avg_sq": table.shape, "sum": table.shape[:1]}
        state = {key: torch.zeros(shapes[key], device=table.device) for key in MOMENTS[self.kind]}
        self.state[table] = {"step": torch.zeros(()), "last": torch.zeros(len(table), device=table.device), **state}
        return self.state[table]
