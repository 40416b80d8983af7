"""The optimizer of embedding tables: only the rows that a step names are read; only those with a gradient move or decay.

Dense AdamW goes on moving a row by its old momentum, and decaying it, for as long as nobody sees its id: the rows of rare ids
are what years of training bought, and this is how they are lost. Here a row without gradient stays bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from trainer.fit.rows import can_be_asked, rows_of

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "rowwise_adagrad": ("sum",)}
_EPS = 1e-8
_CHUNK = 65_536  # rows updated at once: what a dense gradient of a large table costs in temporary memory stays bounded

# table, int64 rows or the slice of all, their old values, their new ones
Follower = Callable[[Tensor, Tensor | slice, Tensor, Tensor], None]


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

    Where gradients are sparse (`trainer.fit.rows`), no step costs anything proportional to V and none waits for the device; a dense
    gradient names every row. Bytes that a table takes in training, float32 (a step takes a few times U D for U rows besides):

    - weights: 4 V D;
    - state: 8 V D + 4 V (``adamw``) or 8 V (``rowwise_adagrad``);
    - the moving average that is served: 4 V D + 8 V; an annealed copy instead: 4 V D, and its own state once it has left.

    Attributes:
        found_inf: Scalar on the device, 1 to skip the next steps, 0 to make them, as ``torch.amp.GradScaler`` tells torch's own
            optimizers; None makes them.
        follow: Called with every row that a step names, after it may have moved.

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
        # `capturable` has torch restore the count of steps to the table's device, where a skipped step is taken back.
        super().__init__(tables, {"lr": lr, "base_lr": lr, "betas": betas, "decay": decay, "capturable": True})
        self.kind = kind
        self.found_inf: Tensor | None = None
        self.follow: Follower | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates the touched rows of every table that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group)
        return loss

    def restore(self, table: Tensor, moments: dict[str, Tensor]) -> bool:
        """Fills in carried state; False if it is another optimizer's, and the table starts afresh.

        State without ``last`` (dense AdamW's) counts every row as touched at its last step.
        """
        if not set(MOMENTS[self.kind]) <= set(moments) or "step" not in moments:
            return False
        last = moments.get("last", moments["step"].expand(len(table)))
        state = {"step": moments["step"], "last": last, **{key: moments[key] for key in MOMENTS[self.kind]}}
        self.state[table] = {key: value.detach().to(table.device, torch.float32).clone() for key, value in state.items()}
        return True

    def _update(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table] or self._fresh(table)
        taken = torch.ones_like(state["step"]) if self.found_inf is None else 1 - self.found_inf
        if can_be_asked(table.device) and float(taken) > 0 and self._update_whole(table, state, group):
            return
        state["step"] += taken
        row_U, grad_UD = rows_of(table)
        for row_R, grad_RD in zip(row_U.split(_CHUNK), grad_UD.split(_CHUNK), strict=True):
            self._update_rows(table, state, row_R, grad_RD.float(), group, taken)

    def _update_whole(self, table: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> bool:
        """The same by torch's fused AdamW, in one pass instead of two dozen; False, with nothing done, where it would not be the same.

        It is where the gradient is dense and rows with a gradient have missed no step, as those of a catalogue under a full softmax:
        the few without one are put back. Asks for values, so it is for the CPU.
        """
        grad_VD = table.grad
        if self.kind != "adamw" or group["decay"] > 0 or len(table) > _CHUNK or grad_VD is None or grad_VD.is_sparse:
            return False
        if {table.dtype, grad_VD.dtype} != {torch.float32}:
            return False
        still_V = grad_VD.abs().amax(1) == 0
        missed_none_V = (state["last"] == state["step"]) | (state["last"] == 0)
        still_K = still_V.nonzero()[:, 0]
        if len(still_K) > len(table) // 8 or not (still_V | missed_none_V).all():
            return False
        old_VD, moving = table.detach().clone(), [table.detach(), *(state[key] for key in MOMENTS["adamw"])]
        kept = [values_VD.index_select(0, still_K) for values_VD in moving]
        adamw(  # counts the step, too
            moving[:1], [grad_VD], moving[1:2], moving[2:], [], [state["step"]], fused=True, lr=group["lr"], beta1=group["betas"][0],
            beta2=group["betas"][1], weight_decay=0.0, eps=_EPS, amsgrad=False, maximize=False,
        )  # fmt: skip
        for values_VD, kept_KD in zip(moving, kept, strict=True):
            values_VD.index_copy_(0, still_K, kept_KD)
        state["last"] = torch.where(still_V, state["last"], state["step"])
        if self.follow is not None:
            self.follow(table, slice(None), old_VD, moving[0])
        return True

    def _update_rows(
        self, table: Tensor, state: dict[str, Tensor], row_R: Tensor, grad_RD: Tensor, group: dict[str, Any], taken: Tensor
    ) -> None:
        """Every row is written, with its old values where it has no gradient: to leave rows out would be to wait for their number."""
        touched_R = grad_RD.ne(0).any(1) & (taken > 0)
        last_R = state["last"].index_select(0, row_R)
        known_R, missed_R = last_R > 0, torch.where(last_R > 0, state["step"] - last_R, 1.0)
        old_RD = table.index_select(0, row_R)
        weight_RD = old_RD.float()
        if group["decay"] > 0:
            weight_RD = weight_RD * (1 - (group["decay"] * missed_R).clamp(max=1.0) * known_R)[:, None]
        if self.kind == "adamw":
            move_RD, fresh = self._adam(state, row_R, grad_RD, missed_R[:, None], group["betas"])
        else:
            move_RD, fresh = self._adagrad(state, row_R, grad_RD)
        new_RD = torch.where(touched_R[:, None], (weight_RD - group["lr"] * move_RD).to(table.dtype), old_RD)
        table.index_copy_(0, row_R, new_RD)
        for key, (before, after) in {"last": (last_R, state["step"]), **fresh}.items():
            touched = touched_R if before.ndim == 1 else touched_R[:, None]
            state[key].index_copy_(0, row_R, torch.where(touched, after, before))
        if self.follow is not None:
            self.follow(table, row_R, old_RD, new_RD)

    @staticmethod
    def _adam(
        state: dict[str, Tensor], row_R: Tensor, grad_RD: Tensor, missed_R1: Tensor, betas: tuple[float, float]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The move in units of the learning rate, and each moment before and after it."""
        before = {key: state[key].index_select(0, row_R) for key in MOMENTS["adamw"]}
        powers = {"exp_avg": grad_RD, "exp_avg_sq": grad_RD.square()}
        after = {key: before[key] * beta**missed_R1 + (1 - beta) * powers[key] for key, beta in zip(MOMENTS["adamw"], betas, strict=True)}
        first_RD, second_RD = (
            after[key] / (1 - beta ** state["step"].double()).float() for key, beta in zip(MOMENTS["adamw"], betas, strict=True)
        )
        return first_RD / (second_RD.sqrt() + _EPS), {key: (before[key], after[key]) for key in before}

    @staticmethod
    def _adagrad(state: dict[str, Tensor], row_R: Tensor, grad_RD: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        before_R = state["sum"].index_select(0, row_R)
        after_R = before_R + grad_RD.square().mean(1)
        return grad_RD / (after_R.sqrt() + _EPS)[:, None], {"sum": (before_R, after_R)}

    def _fresh(self, table: Tensor) -> dict[str, Tensor]:
        shapes = {"step": (), "last": table.shape[:1], "exp_avg": table.shape, "exp_avg_sq": table.shape, "sum": table.shape[:1]}
        self.state[table] = {key: torch.zeros(shapes[key], device=table.device) for key in ("step", "last", *MOMENTS[self.kind])}
        return self.state[table]
