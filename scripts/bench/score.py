"""Scoring: rows a second of the path of `scripts/score.py`, and of each form in which a release is served.

    python scripts/bench/score.py                      # sasrec and hstu, d 64, 2 layers, L 50
    python scripts/bench/score.py --candidates 100     # a slate a request

The path: examples and histories are encoded, packed and scored as evaluation does (`trainer.evaluate.RankerScorer`); what `score.py`
does before it, the point-in-time rebuild, has `rebuild.py`. The forms: `models.dense`, which answers padded requests, as it is in Python,
as `torch.export` program and in onnxruntime; one request alone (latency, median and 99th percentile), and 1,024 together (throughput). A
row is a candidate of a request. Weights are fresh: they cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from loader import CATEGORICAL, DAY, NUMERIC, USERS, made_up_encoder, rows
from rich.console import Console
from rich.table import Table

import models
from models.dense import DenseRanker
from models.ranker import ActionShape, Ranker, RankerShape
from trainer import __version__
from trainer.checkpoint import Bundle, write_bundle
from trainer.data import Encoder
from trainer.evaluate import RankerScorer
from trainer.machine import cores
from trainer.schema.bundle import BundleManifest
from trainer.schema.features import FeatureSpec
from trainer.schema.plain import as_plain
from trainer.schema.serving import ONNX, TORCH_EXPORT
from trainer.serving.artefact import can_run, load_artefact, write_artefact
from trainer.serving.requests import random_requests

MANY = 1024


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    encoder = made_up_encoder(arguments.history)
    path, forms = (
        Table("ranker", "encode: rows/s", "score: rows/s"),
        Table("ranker", "form", "1 request: ms", "99 %", f"{MANY:,} requests: rows/s"),
    )
    for architecture in ("sasrec", "hstu"):
        ranker = models.build(shape_of(architecture, encoder, arguments)).eval()
        with tempfile.TemporaryDirectory() as folder:
            path.add_row(
                architecture, *(f"{rate:,.0f}" for rate in score_path(bundle(ranker, encoder, Path(folder) / "bundle"), arguments))
            )
            for name, run in served(ranker, Path(folder) / "serving", arguments).items():
                alone, late, rate = requests(run, ranker.shape, arguments)
                forms.add_row(architecture, name, f"{alone:.2f}", f"{late:.2f}", f"{rate:,.0f}")
    console = Console(width=120)
    console.print(f"{arguments.threads} threads, d {arguments.dim}, {arguments.layers} layers, L {arguments.history}")
    console.print(f"{arguments.candidates} candidates a request")
    console.print(path)
    console.print(forms)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the path, over 2,000 users")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=cores())
    return parser.parse_args()


def shape_of(architecture: str, encoder: Encoder, arguments: argparse.Namespace) -> RankerShape:
    inputs, dim = encoder.inputs, arguments.dim
    return RankerShape(
        architecture=architecture, actions=tuple(ActionShape(name=a.name, kind=a.kind, base_rate=a.base_rate) for a in inputs.actions),
        history_actions=tuple(inputs.history_actions), vocabularies={name: v.rows for name, v in encoder.vocabularies.items()},
        item_vocabulary="item", item_features=inputs.item_features, token_features=inputs.token_features,
        categorical=dict.fromkeys(CATEGORICAL, "tag"), numeric=NUMERIC, dim=dim, layers=arguments.layers, heads=2, head_dim=dim // 2,
        ffn_dim=4 * dim,
    )  # fmt: skip


def bundle(ranker: Ranker, encoder: Encoder, folder: Path) -> Bundle:
    """Writes a ranker as a run does."""
    weights = {name: tensor.contiguous() for name, tensor in ranker.state_dict().items()}
    manifest = BundleManifest(
        code_version=__version__, shape=as_plain(ranker.shape), inputs=encoder.inputs, features=as_plain(FeatureSpec()), labels={},
        value={"version": "", "weights": {}}, config={}, axes={name: list(axes) for name, axes in ranker.axes().items()}, trained={},
        seed=0, parent=None, space_id="",
    )  # fmt: skip
    items = pa.table({"item": encoder.vocabularies["item"].keys})
    return write_bundle(folder, manifest, trunk=weights, serving=weights, optimizer={}, vocabularies=encoder.vocabularies, items=items)


def score_path(written: Bundle, arguments: argparse.Namespace) -> tuple[float, float]:
    """Returns rows a second of encoding, and of encoding and scoring together: the best of three."""
    rng = np.random.default_rng(0)
    examples = rows(rng, arguments.rows, DAY)
    tail = rows(rng, USERS * arguments.history // 2, 0).drop_columns(["request_time", "known_at", "weight", "is_event"])
    scorer = RankerScorer(written)
    encoding = min(seconds(lambda: scorer.encoder.encode(examples, tail, 10 * DAY)) for _ in range(3))
    scoring = min(seconds(lambda: scorer.score(examples, tail, 10 * DAY)) for _ in range(3))
    return arguments.rows / encoding, arguments.rows / scoring


def served(ranker: Ranker, folder: Path, arguments: argparse.Namespace) -> dict[str, Callable[[dict[str, torch.Tensor]], Any]]:
    """Returns the forms that run here."""
    formats = [name for name in (TORCH_EXPORT, ONNX) if can_run(name)]
    write_artefact(ranker, folder, formats, producer="bench", max_history=arguments.history)
    dense = DenseRanker(ranker).eval()

    def python(inputs: dict[str, torch.Tensor]) -> Any:
        with torch.inference_mode():
            return dense(inputs)

    return {"dense twin": python, **{name: load_artefact(folder, name).run for name in formats}}


def requests(
    run: Callable[[dict[str, torch.Tensor]], Any], shape: RankerShape, arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """Returns milliseconds of one request (median, 99th percentile), and rows a second of many."""
    history, candidates = arguments.history, arguments.candidates
    one = random_requests(shape, [history], tokens=history, candidates=candidates, seed=0)
    lengths = np.random.default_rng(0).integers(0, history + 1, MANY).tolist()
    many = random_requests(shape, lengths, tokens=history, candidates=candidates, seed=1)
    for made in (one, many):
        run(made)
    alone = [seconds(lambda: run(one)) * 1e3 for _ in range(arguments.repeats)]
    together = min(seconds(lambda: run(many)) for _ in range(3))
    return statistics.median(alone), sorted(alone)[math.ceil(0.99 * len(alone)) - 1], MANY * candidates / together


def seconds(task: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    task()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
