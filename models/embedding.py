"""Embeddings of items and tokens: sums of terms, so that a new feature is a new term and a table of zeros changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.layers import OOV_ROW, PAD_ROW, TABLE_STD, Dropout, Projection, Table, feature_key, whole_name
from models.packing import GAP_BUCKETS, NO_CLOCK, Packing, gap_bucket, row_times
from models.ranker import RankerShape


class FeatureTables(nn.Module):
    """One table a categorical feature; a row's embedding is the sum over features.

    A feature may be one value of a list (``tags[0]``): all of them share one table (``tags``), so that a list is the sum of its values,
    whatever their order. A sum, not a mean: a value then means the same beside any others, and what a new one adds can start from what
    the unknown value added before.

    Args:
        features: Feature -> vocabulary, in column order.
        vocabularies: Vocabulary -> rows.
        width: Width of the sum.
        axis: Meaning of the width.
    """

    def __init__(self, features: dict[str, str], vocabularies: dict[str, int], width: int, axis: str) -> None:
        super().__init__()
        tables = {whole_name(name): vocabulary for name, vocabulary in features.items()}
        self.tables = nn.ModuleDict(
            {
                feature_key(name): Table(vocabularies[vocabulary], width, (f"vocab:{vocabulary}", axis))
                for name, vocabulary in tables.items()
            }
        )
        places = {name: place for place, name in enumerate(tables)}
        self.place_F = [places[whole_name(name)] for name in features]
        first_F = [place not in self.place_F[:column] for column, place in enumerate(self.place_F)]
        self.missing_F = [OOV_ROW if first else PAD_ROW for first in first_F]

    def add_to(self, sum_MD: Tensor, row_MF: Tensor) -> Tensor:
        """Returns `sum_MD` plus the embedding of every feature.

        Raises:
            ValueError: If `row_MF` has another number of columns than there are features.
        """
        if row_MF.shape[1] != len(self.place_F):
            raise ValueError(f"{len(self.place_F)} feature columns expected ({', '.join(self.tables)}), got {row_MF.shape[1]}")
        tables = list(self.tables.values())
        for column, place in enumerate(self.place_F):
            sum_MD = sum_MD + tables[place](row_MF[:, column])
        return sum_MD

    def dropped(self, row_MF: Tensor, rate: float) -> Tensor:
        """Replaces whole features, lists with all their values, by what stands for a missing one, at a rate."""
        drop_MT = torch.rand(len(row_MF), len(self.tables), device=row_MF.device) < rate
        if len(self.tables) == len(self.place_F):
            return row_MF.masked_fill(drop_MT, OOV_ROW)
        columns = enumerate(zip(self.place_F, self.missing_F, strict=True))
        return torch.stack([row_MF[:, column].masked_fill(drop_MT[:, place], missing) for column, (place, missing) in columns], 1)


class TokenEmbedding(nn.Module):
    """Embeds history tokens, BOS rows and, for target-aware rankers, targets.

    token = item row + item features + token features + actions (by value, and by being known) + time since the token before
    (+ learned position, where the shape has them).

    Args:
        shape: Shape of the ranker.
        targets: Whether targets become rows of the trunk: they get a learned marker where tokens have actions.
    """

    def __init__(self, shape: RankerShape, *, targets: bool) -> None:
        super().__init__()
        rows, dim, actions = shape.vocabularies[shape.item_vocabulary], shape.dim, len(shape.history_actions)
        self.item = Table(rows, dim, (f"vocab:{shape.item_vocabulary}", "dim"))
        self.item_features = FeatureTables(shape.item_features, shape.vocabularies, dim, "dim")
        self.token_features = FeatureTables(shape.token_features, shape.vocabularies, dim, "dim")
        self.dimensions: dict[str, tuple[str, ...]] = {
            "action_value": ("history_action", "dim"),
            "action_known": ("history_action", "dim"),
            "gap": ("fixed", "dim"),
        }
        self.action_value = nn.Parameter(torch.empty(actions, dim).normal_(std=TABLE_STD))
        self.action_known = nn.Parameter(torch.empty(actions, dim).normal_(std=TABLE_STD))
        self.gap = nn.Parameter(torch.empty(GAP_BUCKETS, dim).normal_(std=TABLE_STD))
        if shape.padding is None:
            self.dimensions["bos"] = ("dim",)
        self.bos = nn.Parameter(torch.empty(dim).normal_(std=TABLE_STD)) if shape.padding is None else None
        if shape.positions:
            self.dimensions["position"] = ("position", "dim")
        self.position = nn.Parameter(torch.empty(shape.positions, dim).normal_(std=TABLE_STD)) if shape.positions else None
        if targets:
            self.dimensions["target"] = ("dim",)
            self.target = nn.Parameter(torch.empty(dim).normal_(std=TABLE_STD))
        self.dropout = Dropout(shape.dropout)

    def items(self, item_M: Tensor, item_features_MI: Tensor) -> Tensor:
        """Returns [M, D]: item rows plus item features."""
        return self.item_features.add_to(self.item(item_M), item_features_MI)

    def rows(self, batch: Batch, packing: Packing) -> Tensor:
        """Returns [R, D]: BOS and tokens in row order (`models.packing`)."""
        time_R = row_times(batch, packing)
        before_R = torch.cat([time_R.new_full((1,), NO_CLOCK), time_R[:-1]])  # a sequence's first token follows its clockless BOS
        token_TD = self.token_features.add_to(self.items(batch.token_item_T, batch.token_item_features_TI), batch.token_features_TK)
        token_TD = token_TD + batch.token_action_TH.to(token_TD.dtype) @ self.action_value
        token_TD = token_TD + batch.token_action_known_TH.to(token_TD.dtype) @ self.action_known
        front_D = token_TD.new_zeros(token_TD.shape[1]) if self.bos is None else self.bos
        row_RD = torch.cat([front_D[None], token_TD]).index_select(0, packing.source_R)
        if self.position is not None:  # older tokens than there are rows share the oldest row
            row_RD = row_RD + nn.functional.embedding(packing.from_end_R.clamp(0, len(self.position) - 1), self.position)
        return self.dropout(row_RD + nn.functional.embedding(gap_bucket(time_R, before_R), self.gap))

    def target_rows(self, batch: Batch, packing: Packing) -> Tensor:
        """Returns [N, D]: targets as rows of the trunk; their time gap is the one to the last token available to them."""
        last_N = row_times(batch, packing)[packing.state_N]
        items_ND = self.items(batch.target_item_N, batch.target_item_features_NI)
        row_ND = self.token_features.add_to(items_ND + self.target, batch.target_token_features_NK)
        return self.dropout(row_ND + nn.functional.embedding(gap_bucket(batch.target_time_N, last_N), self.gap))


class ItemTower(nn.Module):
    """Item vectors: a projection that starts as the identity, so a new ranker begins with tied item embeddings."""

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        self.project = Projection(shape.dim, shape.dim, ("vector", "dim"))
        with torch.no_grad():
            self.project.weight.copy_(torch.eye(shape.dim))

    def forward(self, item_MD: Tensor) -> Tensor:
        """Maps [M, D] (`TokenEmbedding.items`) to [M, D]."""
        return self.project(item_MD)
