"""What a transfer costs where it cannot be exact: removed features, and room that new ids take; measured on probe rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.batch import Batch
from models.ranker import Ranker
from trainer.schema.logs import whole_name, whole_names
from trainer.schema.transfer import TransferPlan
from trainer.schema.vocabulary import RESERVED_ROWS
from trainer.warm_start.names import Renames
from trainer.warm_start.places import Pair
from trainer.warm_start.rows import mean_row
from trainer.warm_start.side import Side
from trainer.warm_start.verify import scores

TOP = 10
MOST_USERS = 256


def measure_removed(
    production: Ranker, probes: list[Batch], source: Side, target: Side, transfer: TransferPlan, absent: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Measures what production loses with each feature that the challenger does not have: it is replaced by its mean (each value of a
    list by the mean value, where only one mean value is what the challenger keeps).

    Args:
        production: Production's ranker, evaluation mode.
        probes: Rows encoded for it.
        source: Production's side.
        target: The challenger's side.
        transfer: The plan.
        absent: Features that the probe rows no longer hold; what they did cannot be measured.

    Returns:
        Feature -> mean and largest change of any output (None where absent), and where its mean went.
    """
    folded = {name.removeprefix("-"): str(fate.target) for fate in transfer.fates for name in fate.folds if not name.startswith("-")}
    result: dict[str, dict[str, Any]] = {}
    before, unknown = [scores(production, batch) for batch in probes], whole_names(absent)

    def add(feature: str, place: str, after: list[Tensor]) -> None:
        change = [(a - b).abs() for a, b in zip(after, before, strict=True)]
        known = feature not in unknown and bool(change) and any(c.numel() for c in change)
        merged = torch.cat([c.flatten() for c in change]) if known else None
        result[feature] = {
            "mean_change": None if merged is None else float(merged.mean()), "max_change": None if merged is None else float(merged.max()),
            "mean_goes_to": place,
        }  # fmt: skip

    for fate in transfer.fates:
        if fate.fate == "dropped" and fate.family == "tables" and "feature:" in str(fate.source):
            name = str(fate.source)
            with _mean_rows(production, name, source):
                add(_feature(name), folded.get(name, "nowhere"), [scores(production, batch) for batch in probes])
    renames = Renames(transfer.rules.rename)
    gone: dict[str, list[int]] = {}
    for column, name in enumerate(source.keys["numeric"]):
        if renames(name, target.keys["numeric"]) not in target.keys["numeric"]:
            gone.setdefault(whole_name(name), []).append(column)
    for name, columns in gone.items():
        add(name, "nowhere: standardised, its mean is 0", [scores(production, _without(batch, columns)) for batch in probes])
    return result


def _feature(tensor: str) -> str:
    return tensor.split("feature:")[1].split(".")[0].replace("%2E", ".").replace("%25", "%")


def _without(batch: Batch, columns: list[int]) -> Batch:
    numeric_NF, present_NF = batch.numeric_NF.clone(), batch.present_NF.clone()
    numeric_NF[:, columns], present_NF[:, columns] = 0.0, True
    return replace(batch, numeric_NF=numeric_NF, present_NF=present_NF)


@contextmanager
def _mean_rows(ranker: Ranker, name: str, source: Side) -> Iterator[None]:
    """Every row of a table is its mean row for a while."""
    table = ranker.state_dict()[name]
    kept = table.clone()
    mean = mean_row(kept.__getitem__, source.vocabularies[source.axes[name][0].removeprefix("vocab:")])
    with torch.no_grad():
        table[1:] = mean.to(table.dtype)
        try:
            yield
        finally:
            table.copy_(kept)


def measure_new_items(
    challenger: Ranker, probes: list[Batch], source: Side, target: Side, item_M: Tensor, item_features_MI: Tensor
) -> dict[str, Any]:
    """Measures how much room new items take from old ones under a softmax over the catalogue.

    Args:
        challenger: The warm-started ranker, evaluation mode.
        probes: Rows encoded for it; their users' vectors are asked.
        source: Production's side.
        target: The challenger's side.
        item_M: int64, rows of the challenger's items.
        item_features_MI: int64, rows of their features.

    Returns:
        ``count`` of new items, ``softmax_nats`` that old items lose on average, ``top_share`` of the first ten places that new ones
        take. Empty without new items.
    """
    name = "embedding.item.weight"
    if name not in source.axes or name not in target.axes:
        return {}
    new_R = Pair(source, target, name, name, Renames({})).places()[0].index < 0
    is_new_M = torch.from_numpy(new_R[item_M.numpy()])
    real_M = item_M >= RESERVED_ROWS
    if not bool((is_new_M & real_M).any()) or not bool((~is_new_M & real_M).any()) or not probes:
        return {"count": int((is_new_M & real_M).sum())}
    with torch.inference_mode():
        user_ND = torch.cat([challenger.user_vectors(batch) for batch in probes])[:MOST_USERS]
        logit_NM = user_ND @ challenger.item_vectors(item_M, item_features_MI)[real_M].T
    is_new_M = is_new_M[real_M]
    lost_N = logit_NM.logsumexp(1) - logit_NM[:, ~is_new_M].logsumexp(1)
    first = logit_NM.topk(min(TOP, logit_NM.shape[1]), dim=1).indices
    return {
        "count": int(is_new_M.sum()),
        "softmax_nats": float(lost_N.mean()) if len(lost_N) else 0.0,
        "top_share": float(np.mean(is_new_M[first].double().numpy())) if len(lost_N) else 0.0,
    }
