"""Weight averages between where a run began and where it ended."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.schema.transfer import TransferPlan
from trainer.warm_start.plan import pair
from trainer.warm_start.side import Side


def merge(
    began: Mapping[str, Tensor],
    ended: Mapping[str, Tensor],
    alpha: float,
    transfer: TransferPlan,
    source: Side,
    target: Side,
    parent: str,
) -> dict[str, Tensor]:
    """Interpolates between the warm start and the weights after training (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).

    Only what production had takes part: rows of new ids and tensors without a source keep their trained values, because
    their beginning means nothing.

    Args:
        began: The challenger's weights before the first step: production, grown.
        ended: Its weights after training.
        alpha: 0 gives `began` where production had an entry, 1 gives `ended`.
        transfer: The plan of the warm start.
        source: Production's side.
        target: The challenger's side.
        parent: Hash of the bundle that the trained weights descend from.

    Returns:
        Tensor -> value.

    Raises:
        CheckpointError: If the weights do not descend from the plan's source: an average of strangers is garbage.
    """
    if parent != transfer.source:
        raise CheckpointError(
            "weights of different ancestors cannot be averaged", where="warm_start.merge_alpha", got=parent, expected=transfer.source
        )
    result: dict[str, Tensor] = {}
    for fate in transfer.fates:
        if fate.target is None:
            continue
        new, old = ended[fate.target], began[fate.target]
        if fate.source is None or alpha == 1:
            result[fate.target] = new.clone()
            continue
        mixed = torch.lerp(old, new, alpha) if alpha > 0 and new.is_floating_point() else old.clone()
        places = pair(fate, source, target, transfer.rules).places()
        if places and target.axes[fate.target][0].startswith("vocab:"):
            added = torch.from_numpy(places[0].index < 0)
            mixed[added] = new[added]
        result[fate.target] = mixed
    return result
