"""Gradients of embedding tables by row: nothing in a step looks at a row that its batch does not name.

Inside `by_row` a lookup of few rows leaves a sparse gradient, as ``torch.nn.Embedding(sparse=True)`` does; outside of it tables are
plain parameters. torch's own sparse gradients are no more than the list of lookups: putting equal rows together (``coalesce``)
waits for the device, and NCCL cannot average them. Both is done here. A gradient stays dense where about as many rows are
looked up as there are: small tables, and the catalogue under a full softmax.

Shape suffixes: M lookups, U distinct rows, V rows of a table, D width, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.layers import PAD_ROW, Table


@contextmanager
def by_row(module: nn.Module) -> Iterator[None]:
    """Within it, lookups in the tables of `module` leave gradients by row."""
    tables = [part for part in module.modules() if isinstance(part, Table)]
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table in tables:
            table.sparse = False


def gather(tables: Iterable[Tensor]) -> None:
    """Puts equal rows of sparse gradients together, in place."""
    for table in tables:
        if table.grad is not None and table.grad.is_sparse and not table.grad.is_coalesced():
            table.grad = _of_rows(table, *distinct(table.grad._indices()[0], table.grad._values(), len(table)))


def distinct(row_M: Tensor, grad_MD: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Adds up the gradients of each row.

    Args:
        row_M: int64 rows that were looked up, in any order.
        grad_MD: Gradient of each lookup.
        rows: Rows of the table.

    Returns:
        Ascending rows, int64 [U], and their gradients [U, D]; that of the pad row is zero. On an accelerator U is min(M, V), which
        is known without asking it: behind the distinct rows stands the pad row, again and again.
    """
    sorted_M, order_M = row_M.sort()
    begins_M = torch.ones_like(sorted_M)
    begins_M[1:] = sorted_M[1:] != sorted_M[:-1]
    places_M = begins_M.cumsum(0) - 1
    size = int(begins_M.sum()) if can_be_asked(row_M.device) else min(len(row_M), rows)
    row_U = row_M.new_full((size,), PAD_ROW).scatter_(0, places_M, sorted_M)
    place_M = torch.empty_like(order_M).scatter_(0, order_M, places_M)
    grad_UD = grad_MD.new_zeros(size, grad_MD.shape[1]).index_add_(0, place_M, grad_MD)
    return row_U, grad_UD.masked_fill_((row_U == PAD_ROW)[:, None], 0.0)


def can_be_asked(device: torch.device) -> bool:
    """Tells whether reading a value of a tensor is free; on an accelerator the host would wait for all work before it."""
    return device.type == "cpu"


def rows_of(table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the rows that a table's gradient names (int64 [U], no row with a gradient twice) and their gradients [U, D]."""
    gather([table])
    grad = table.grad
    assert grad is not None
    if grad.is_sparse:
        return grad._indices()[0], grad._values()
    return torch.arange(len(table), device=table.device), grad


def exchange(tables: Sequence[Tensor], host_group: Any = None) -> None:
    """Replaces the gradients of all ranks by their mean, over the union of their rows. Every rank must call it.

    Args:
        tables: The same tables on every rank.
        host_group: Process group of host tensors, by which ranks tell each other how many rows they bring.
    """
    gather(tables)
    ranks = dist.get_world_size()
    size_WT = [torch.zeros(len(tables), dtype=torch.int64) for _ in range(ranks)]
    dist.all_gather(size_WT, torch.tensor([_size(table.grad) for table in tables]), group=host_group)
    for table, size_W in zip(tables, torch.stack(size_WT, 1).tolist(), strict=True):
        if sum(size_W) >= len(table):  # a dense sum is then the smaller message
            table.grad = _dense(table)
            dist.all_reduce(table.grad)
            table.grad /= ranks
        else:
            table.grad = _of_rows(table, *_union(table, max(size_W), ranks))


def _size(grad: Tensor | None) -> int:
    """Rows of a gradient that is gathered already."""
    if grad is None:
        return 0
    return grad._values().shape[0] if grad.is_sparse else grad.shape[0]


def _union(table: Tensor, longest: int, ranks: int) -> tuple[Tensor, Tensor]:
    """Gathers the rows of all ranks, each filled up to the longest with the pad row, and returns them with their mean gradients."""
    row_U = torch.full((longest,), PAD_ROW, device=table.device)
    grad_UD = table.new_zeros(longest, table.shape[1])
    if (size := _size(table.grad)) and table.grad is not None:
        row_U[:size], grad_UD[:size] = table.grad._indices()[0], table.grad._values()
    row_WU, grad_WUD = ([torch.empty_like(mine) for _ in range(ranks)] for mine in (row_U, grad_UD))
    dist.all_gather(row_WU, row_U)
    dist.all_gather(grad_WUD, grad_UD)
    return distinct(torch.cat(row_WU), torch.cat(grad_WUD) / ranks, len(table))


def _dense(table: Tensor) -> Tensor:
    grad = table.grad
    if grad is None:
        return torch.zeros_like(table)
    if not grad.is_sparse:
        return grad
    return torch.zeros_like(table).index_add_(0, grad._indices()[0], grad._values())


def _of_rows(table: Tensor, row_U: Tensor, grad_UD: Tensor) -> Tensor:
    """A sparse gradient whose rows are distinct, but for pad rows without gradient."""
    return torch.sparse_coo_tensor(row_U[None], grad_UD, table.shape, is_coalesced=True, check_invariants=False)


def clip(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scales all gradients so that their global norm is at most `limit`, as ``torch.nn.utils.clip_grad_norm_`` does.

    Args:
        parameters: Parameters; gradients by row must be gathered.
        limit: Largest norm.

    Returns:
        The norm before, a scalar on the device: nobody has waited for it.
    """
    found = (parameter.grad for parameter in parameters)
    grads = [grad._values() if grad.is_sparse else grad for grad in found if grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
