"""The dense twin of a ranker: padded requests in, scores out, through one mask. What other runtimes trace and serve.

A request is one user at one instant with N candidates. Padded to L tokens, requests are a packed batch of sequences of equal length:
padding stands behind the tokens, where nothing that is asked for may look, so it never matters. Only the arrangement of rows differs
from training; the parameters and every layer are the ranker's own.

Additional shape suffixes:
    B  requests        L  history tokens of a request, padded        N  candidates of a request (elsewhere: of all requests)
    W  rows of a request, W = L + 1, its front row first             A  actions
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import BIAS_ROWS, Seen, bias_row, padding_weight
from models.batch import Batch
from models.hstu import HSTU, seen
from models.losses import expectations
from models.packing import Packing, gap_bucket, position_bucket
from models.ranker import Ranker, RankerShape
from models.sasrec import SASRec


def dense_inputs(shape: RankerShape) -> dict[str, tuple[torch.dtype, tuple[str, ...], int | None]]:
    """Returns the inputs of `DenseRanker`, in order: name -> (dtype, varying dimensions, width of a last fixed dimension).

    Only what the ranker reads is an input: a feature kind that it has none of is left out.
    """
    tokens, candidates = ("request", "token"), ("request", "candidate")
    declared: dict[str, tuple[torch.dtype, tuple[str, ...], int | None]] = {
        "token_mask": (torch.bool, tokens, None),
        "token_item": (torch.int64, tokens, None),
        "token_item_features": (torch.int64, tokens, len(shape.item_features)),
        "token_features": (torch.int64, tokens, len(shape.token_features)),
        "token_action": (torch.float32, tokens, len(shape.history_actions)),
        "token_action_known": (torch.bool, tokens, len(shape.history_actions)),
        "token_time": (torch.int64, tokens, None),
        "request_time": (torch.int64, ("request",), None),
        "item": (torch.int64, candidates, None),
        "item_features": (torch.int64, candidates, len(shape.item_features)),
        "event_features": (torch.int64, candidates, len(shape.token_features) if shape.architecture == "hstu" else 0),
        "categorical": (torch.int64, candidates, len(shape.categorical)),
        "numeric": (torch.float32, candidates, len(shape.numeric)),
        "present": (torch.bool, candidates, len(shape.numeric)),
    }
    return {name: entry for name, entry in declared.items() if entry[2] != 0}


class DenseRanker(nn.Module):
    """Scores padded requests as a ranker scores packed ones.

    Args:
        ranker: A ranker with actions, in evaluation mode.

    Raises:
        ValueError: If the ranker has no actions, or is of an architecture without a dense twin.
    """

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        if not ranker.shape.actions:
            raise ValueError("a ranker without actions has nothing to serve")
        if not isinstance(ranker, SASRec | HSTU):
            raise ValueError(f"no dense twin of {type(ranker).__name__}")
        self.ranker = ranker

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores every candidate of every request.

        Args:
            inputs: Tensors as `dense_inputs` declares them. Tokens are ordered by availability, the newest last, and padded behind:
                `token_mask` is true for tokens. Rows are those of the bundle's vocabularies, numbers are standardised as it says.

        Returns:
            Scores [B, N, A] in the order of the shape's actions (probability, count or seconds) and the product of user and item
            vector [B, N].
        """
        mask_BL, item_BN = inputs["token_mask"], inputs["item"]
        batch, packing = padded_batch(inputs, self.ranker.shape), padded_packing(mask_BL, item_BN.shape[1])
        requests, candidates, rows = item_BN.shape[0], item_BN.shape[1], mask_BL.shape[1] + 1
        if isinstance(self.ranker, SASRec):
            causal = PaddedCausal(requests, rows, packing.length_S, self.ranker.shape.padding)
            scores, product_N1 = self.ranker.score(batch, packing, causal)
        elif isinstance(self.ranker, HSTU):
            pointwise = PaddedPointwise(requests, rows, candidates, seen(batch, packing))
            scores, product_N1 = self.ranker.score(batch, packing, pointwise)
        expected_NA = expectations(scores.output_NO, self.ranker.shape.actions)
        return _by_request(expected_NA, requests, candidates), _by_request(product_N1[:, 0], requests, candidates)


def padded_batch(inputs: dict[str, Tensor], shape: RankerShape) -> Batch:
    """Returns padded requests as a batch of B sequences of L tokens each; its offsets and positions are `padded_packing`'s to tell."""
    item_BL, item_BN = inputs["token_item"], inputs["item"]
    tokens, targets = item_BL.numel(), item_BN.numel()

    def flat(name: str, count: int, dtype: torch.dtype = torch.int64) -> Tensor:
        if name in inputs:
            return inputs[name].flatten(0, 1)
        return torch.zeros(count, 0, dtype=dtype, device=item_BN.device)

    nothing = item_BN.new_zeros(0)
    return Batch(
        offsets_S1=nothing,
        token_item_T=item_BL.flatten(),
        token_item_features_TI=flat("token_item_features", tokens),
        token_features_TK=flat("token_features", tokens),
        token_action_TH=flat("token_action", tokens, torch.float32),
        token_action_known_TH=flat("token_action_known", tokens, torch.bool),
        token_time_T=inputs["token_time"].flatten(),
        target_sequence_N=_by_candidate(torch.arange(item_BN.shape[0], device=item_BN.device), item_BN.shape[1]),
        target_position_N=_by_candidate(inputs["token_mask"].sum(1), item_BN.shape[1]),
        target_time_N=_by_candidate(inputs["request_time"], item_BN.shape[1]),
        target_item_N=item_BN.flatten(),
        target_item_features_NI=flat("item_features", targets),
        target_token_features_NK=flat("event_features", targets),
        categorical_NC=flat("categorical", targets),
        numeric_NF=flat("numeric", targets, torch.float32),
        present_NF=flat("present", targets, torch.bool),
        label_NA=nothing,
        known_NA=nothing,
        weight_N=nothing,
        row_N=nothing,
    )


def padded_packing(mask_BL: Tensor, candidates: int) -> Packing:
    """Returns the rows of padded requests: W = L + 1 each, so that only the lengths depend on a value.

    Args:
        mask_BL: bool, true for tokens.
        candidates: N of a request.
    """
    requests, rows = mask_BL.shape[0], mask_BL.shape[1] + 1
    request_B = torch.arange(requests, device=mask_BL.device)
    place_W = torch.arange(rows, device=mask_BL.device)
    sequence_R = (request_B[:, None] + torch.zeros_like(place_W)).flatten()
    position_R = (torch.zeros_like(request_B)[:, None] + place_W).flatten()
    start_B, length_B = request_B * rows, mask_BL.sum(1) + 1
    return Packing(
        start_S=start_B,
        length_S=length_B,
        source_R=torch.where(position_R == 0, 0, sequence_R * (rows - 1) + position_R),
        sequence_R=sequence_R,
        position_R=position_R,
        state_N=_by_candidate(start_B + length_B - 1, candidates),
        target_length_S=torch.full_like(length_B, candidates),
    )


@dataclass(frozen=True)
class PaddedCausal:
    """Softmax attention of padded requests to earlier rows.

    Attributes:
        requests: B.
        rows: W.
        length_B: int64, rows of each request that are no padding, the front row included.
        padding: As `models.ranker.RankerShape.padding`.
    """

    requests: int
    rows: int
    length_B: Tensor
    padding: int | None

    def attend(self, q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor) -> Tensor:
        """Attends as `models.attention.causal_attention`; rows of padding hold what nothing reads."""
        q_BHWE, k_BHWE, v_BHWE = (x_RHE.unflatten(0, (self.requests, self.rows)).transpose(1, 2) for x_RHE in (q_RHE, k_RHE, v_RHE))
        bias = None if self.padding is None else self._bias(q_RHE.dtype)
        out_BHWE = F.scaled_dot_product_attention(q_BHWE, k_BHWE, v_BHWE, attn_mask=bias, is_causal=bias is None, scale=1.0)
        return out_BHWE.transpose(1, 2).flatten(0, 1)

    def _bias(self, dtype: torch.dtype) -> Tensor:
        place_W = torch.arange(self.rows, device=self.length_B.device)
        later_WW = place_W[None, :] > place_W[:, None]
        front_WW = (place_W[:, None] > 0) & (place_W[None, :] == 0)  # the front row sees itself, however little padding there is
        weight_B = padding_weight(self.length_B, self.padding or 0)
        bias_BWW = torch.where(front_WW[None], weight_B[:, None, None], 0.0).masked_fill(later_WW, -torch.inf)
        return bias_BWW[:, None].to(dtype)


@dataclass(frozen=True)
class PaddedPointwise:
    """Pointwise attention of padded requests: rows and candidates to the tokens that they may read, candidates to themselves as well.

    Attributes:
        requests: B.
        rows: W.
        candidates: N.
        seen: What rows (first) and candidates (behind them) know.
    """

    requests: int
    rows: int
    candidates: int
    seen: Seen

    def attend(self, q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor) -> Tensor:
        """Attends as `models.attention.pointwise_attention`."""
        rows_and_candidates = self.rows + self.candidates
        q_BQHE, (q_BNHE, k_BNHE, v_BNHE) = self._asking(q_QHE), map(self._of_candidates, (q_QHE, k_QHE, v_QHE))
        k_BWHE, v_BWHE = (_by_request(x_QHE, self.requests, self.rows) for x_QHE in (k_QHE, v_QHE))
        index_BQW, hidden_BQW = self._pairs()
        score_BHQW = q_BQHE.transpose(1, 2) @ k_BWHE.permute(0, 2, 3, 1) + bias_PH[index_BQW].permute(0, 3, 1, 2)
        weight_BHQW = F.silu(score_BHQW).masked_fill(hidden_BQW[:, None], 0.0)
        out_BQHE = (weight_BHQW @ v_BWHE.transpose(1, 2)).transpose(1, 2)
        time_BN = self._of_candidates(self.seen.time_Q)
        own_BNH = bias_PH[bias_row(torch.zeros_like(time_BN), gap_bucket(time_BN, time_BN)).long()]
        own_BNH = F.silu((q_BNHE * k_BNHE).sum(-1) + own_BNH)
        rows_BWHE, targets_BNHE = out_BQHE.split([self.rows, rows_and_candidates - self.rows], 1)
        return torch.cat([rows_BWHE.flatten(0, 1), (targets_BNHE + own_BNH[..., None] * v_BNHE).flatten(0, 1)])

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Bias row of every (asking row, row), int64 [B, W + N, W], and whether it must not be seen."""
        position_BQ, time_BQ, visible_BQ = map(self._asking, (self.seen.position_Q, self.seen.time_Q, self.seen.visible_Q))
        distance_BQW = position_BQ[:, :, None] - position_BQ[:, None, : self.rows]
        gap_BQW = gap_bucket(time_BQ[:, :, None], time_BQ[:, None, : self.rows])
        index_BQW = bias_row(position_bucket(distance_BQW), gap_BQW).long().clamp(max=BIAS_ROWS - 1)
        return index_BQW, torch.arange(self.rows, device=visible_BQ.device) >= visible_BQ[:, :, None]

    def _asking(self, x_Q: Tensor) -> Tensor:
        """Rows and candidates of each request: [Q, ...] to [B, W + N, ...]."""
        return torch.cat([_by_request(x_Q, self.requests, self.rows), self._of_candidates(x_Q)], 1)

    def _of_candidates(self, x_Q: Tensor) -> Tensor:
        return _by_request(x_Q, self.requests, self.candidates, self.requests * self.rows)


def _by_candidate(value_B: Tensor, candidates: int) -> Tensor:
    return (value_B[:, None] + value_B.new_zeros(candidates)).flatten()


def _by_request(x_N: Tensor, requests: int, count: int, skipped: int = 0) -> Tensor:
    """Takes [B, count, ...] out of [N, ...], behind the first `skipped`. A gather: slices and views would tie an exported graph to more
    than one request or candidate.
    """
    first_B, place_C = torch.arange(requests, device=x_N.device) * count, torch.arange(count, device=x_N.device)
    return x_N[skipped + first_B[:, None] + place_C]
