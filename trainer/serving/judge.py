"""Judges a serving artefact: does it score as the ranker that was judged, as fast and as small as production's?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.losses import expectations
from models.ranker import Ranker
from trainer.config import ServingConfig
from trainer.schema.serving import ServingManifest, read_serving_manifest
from trainer.schema.verdict import Check
from trainer.serving.artefact import Artefact, can_run, load_artefact
from trainer.serving.requests import edge_requests, packed, random_requests

FAMILY = "serving"
TOP = 10
BLOCKS = 5  # the two models take turns within each; the spread of the blocks says how far a ratio can be trusted
_WARM_UP = 3


@dataclass(frozen=True)
class Live:
    """Production's side of the comparison.

    Attributes:
        folder: Its artefact.
        ranker: Its ranker.
    """

    folder: Path
    ranker: Ranker


def judge_serving(ranker: Ranker, folder: Path, config: ServingConfig, live: Live | None) -> list[Check]:
    """Judges the artefact in `folder`.

    Args:
        ranker: The ranker that was judged, in evaluation mode: what the artefact must repeat.
        folder: The artefact.
        config: Tolerance and budgets.
        live: Production; None where nothing is live.

    Returns:
        Parity of each format on the edge set, latency and size against production.

    Raises:
        CheckpointError: If an artefact is damaged.
    """
    manifest = read_serving_manifest(folder)
    checks = [parity(ranker, folder, name, manifest, config) for name in manifest.files]
    if live is None:
        return checks
    shared = [name for name in manifest.files if name in read_serving_manifest(live.folder).files and can_run(name)]
    if shared:
        new, old = load_artefact(folder, shared[-1]), load_artefact(live.folder, shared[-1])
        timed = measure(new, ranker, manifest.max_tokens, old, live.ranker, read_serving_manifest(live.folder).max_tokens, config)
        checks += [latency(name, timed_B, shared[-1], config) for name, timed_B in timed.items()]
    return [*checks, *sizes(manifest, read_serving_manifest(live.folder), config)]


def parity(ranker: Ranker, folder: Path, name: str, manifest: ServingManifest, config: ServingConfig) -> Check:
    """Compares one format with the ranker on the edge set: every score within the tolerance, none missing, the same best items.

    The tolerance is relative to the largest score of an action where that is above one (seconds), absolute below (probabilities).
    """
    if not can_run(name):
        words = f"{name} was written and not run: onnxruntime is not installed"
        return Check(name="serving_parity", family=FAMILY, slice=f"format={name}", outcome="not_testable", severity="warn", sentence=words)
    artefact = load_artefact(folder, name)
    worst, where, compared = 0.0, "", 0
    for edge, requests in edge_requests(ranker.shape, manifest.max_tokens, config.candidates).items():
        expected = reference(ranker, requests)
        distance, problem = _distance(artefact.run(requests), expected, config.tolerance)
        compared += expected[0].numel()
        if problem or not distance <= worst:
            worst, where = (float("inf") if problem else distance), f"{edge}{': ' + problem if problem else ''}"
        if problem:
            break
    good = worst <= config.tolerance
    words = f"{name} repeats the ranker's scores within {worst:.1e} (at most {config.tolerance:g}), farthest on {where}"
    if not good:
        words = f"{name} does not repeat the ranker's scores: {worst:.1e} apart on {where} (at most {config.tolerance:g})"
    return Check(
        name="serving_parity", family=FAMILY, slice=f"format={name}", estimate=worst if np.isfinite(worst) else None,
        margin=config.tolerance, n=compared, outcome="pass" if good else "fail", sentence=words,
    )  # fmt: skip


def reference(ranker: Ranker, requests: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns scores [B, N, A] and dot [B, N] of the ranker on the packed batch, by the path that was judged."""
    batch, (requests_B, candidates) = packed(requests, ranker.shape), requests["item"].shape
    with torch.inference_mode():
        expected_NA = expectations(ranker(batch).output_NO, ranker.shape.actions)
        items_ND = ranker.item_vectors(batch.target_item_N, batch.target_item_features_NI)
        dot_N = (ranker.user_vectors(batch) * items_ND).sum(-1)
    return expected_NA.view(requests_B, candidates, -1), dot_N.view(requests_B, candidates)


def _distance(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> tuple[float, str]:
    """Returns the largest scaled difference, and what is wrong besides."""
    if any(g.shape != e.shape for g, e in zip(got, expected, strict=True)):
        return float("inf"), f"shape {tuple(got[0].shape)}, not {tuple(expected[0].shape)}"
    if not all(torch.isfinite(part).all() for part in got):
        return float("inf"), "a score that is not finite"
    worst = 0.0
    columns = [(got[0][..., index], expected[0][..., index]) for index in range(got[0].shape[-1])]
    for got_BN, expected_BN in [*columns, (got[1], expected[1])]:
        scale = max(1.0, float(expected_BN.abs().max()))
        worst = max(worst, float((got_BN - expected_BN).abs().max()) / scale)
        if not _same_best(got_BN, expected_BN, tolerance * scale):
            return worst, f"other items among the best {TOP}"
    return worst, ""


def _same_best(got_BN: Tensor, expected_BN: Tensor, tolerance: float) -> bool:
    """Whether the best items are the same, where the expected scores do not tie within the tolerance."""
    count = min(TOP, got_BN.shape[1])
    last_B = expected_BN.topk(count, 1).values[:, -1]
    chosen_BK = expected_BN.gather(1, got_BN.topk(count, 1).indices)
    return bool((chosen_BK >= last_B[:, None] - 2 * tolerance).all())


def measure(
    new: Artefact, ranker: Ranker, tokens: int, old: Artefact, live: Ranker, live_tokens: int, config: ServingConfig
) -> dict[str, np.ndarray]:
    """Times requests of `config.candidates` candidates and a full history on CPU, both models taking turns.

    Returns:
        ``p50`` and ``p95`` -> float64 [3, BLOCKS]: new and old seconds, and their ratio, by block.
    """
    asked = random_requests(ranker.shape, [tokens], tokens=tokens, candidates=config.candidates, seed=7)
    asked_live = random_requests(live.shape, [live_tokens], tokens=live_tokens, candidates=config.candidates, seed=7)
    for _ in range(_WARM_UP):
        new.run(asked), old.run(asked_live)
    taken_BR2 = np.empty((BLOCKS, config.requests, 2))
    for block in range(BLOCKS):
        for turn in range(config.requests):
            pairs = [(0, new, asked), (1, old, asked_live)]
            for side, model, requests in pairs if turn % 2 else reversed(pairs):
                begin = time.perf_counter()
                model.run(requests)
                taken_BR2[block, turn, side] = time.perf_counter() - begin
    found = {}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        new_B, old_B = np.quantile(taken_BR2, share, axis=1).T
        found[name] = np.stack([new_B, old_B, new_B / old_B])
    return found


def latency(name: str, timed_3B: np.ndarray, form: str, config: ServingConfig) -> Check:
    """Turns timings into a check: it fails if every block is beyond the budget, and holds if only the median is."""
    new, old, ratio = np.median(timed_3B, axis=1)
    low, high = float(timed_3B[2].min()) - 1, float(timed_3B[2].max()) - 1
    slower = float(ratio) - 1
    outcome = "fail" if low > config.latency_budget else "hold" if slower > config.latency_budget else "pass"
    words = (
        f"a request of {config.candidates} candidates takes {1e3 * new:.2f} ms ({name}, {form}, CPU), production's {1e3 * old:.2f} ms: "
        f"{slower:+.1%} [{low:+.1%}, {high:+.1%}], budget {config.latency_budget:+.0%}"
    )
    return Check(
        name=f"serving_latency_{name}", family=FAMILY, slice=f"format={form}", estimate=slower, low=low, high=high,
        margin=config.latency_budget, n=BLOCKS * config.requests, outcome=outcome, sentence=words,
    )  # fmt: skip


def sizes(new: ServingManifest, old: ServingManifest, config: ServingConfig) -> Sequence[Check]:
    """Compares the sizes of the files of shared formats."""
    checks = []
    for name in (name for name in new.bytes if name in old.bytes):
        larger = new.bytes[name] / old.bytes[name] - 1
        words = (
            f"{name} takes {new.bytes[name] / 1e6:.2f} MB, production's {old.bytes[name] / 1e6:.2f} MB: {larger:+.1%}, "
            f"budget {config.size_budget:+.0%}"
        )
        checks.append(
            Check(
                name="serving_size", family=FAMILY, slice=f"format={name}", estimate=larger, margin=config.size_budget, n=1,
                outcome="fail" if larger > config.size_budget else "pass", sentence=words,
            )
        )  # fmt: skip
    return checks
