"""The one-epoch phenomenon and its cures: what further passes over the same rows do to a click model with embeddings of rare ids.

    python scripts/bench/one_epoch.py                       # five cures, four passes, three seeds

The log is synthetic: Zipf-distributed ids in fields of very different sizes, clicks drawn from a logistic model of their
effects; test rows come from the same law, so every difference between passes is overfitting. Cures: Adam on everything (none),
AdamW's decay on everything, frequency-aware decay of touched rows (`trainer.fit.tables`, after AdamAR), tables drawn afresh
before every pass (MEDA, arXiv 2407.01607), tables frozen after the first pass. AUC and NE after each pass by `trainer.metrics`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.fit.tables import TableOptimizer
from trainer.metrics import arrange, auc, normalised_loss
from trainer.next_item.run import hardware

SIZES = (200_000, 50_000, 5_000, 500, 20)  # ids a field: the first ones are seen a few times each, if at all
CURES = ("adam", "adamw", "frequency", "reset", "frozen")
TABLE_STD = 0.01


@dataclass(frozen=True)
class Rows:
    """N rows with F fields.

    Attributes:
        id_NF: Ids, counted over all fields.
        label_N: Clicks.
    """

    id_NF: Tensor
    label_N: Tensor


def draw(rows: int, seed: int) -> Rows:
    """Draws rows: ids by Zipf's law, effects of ids and of pairs of fields, clicks."""
    rng = np.random.default_rng(seed)
    columns, logit_N = [], np.full(rows, -2.2)
    hidden = []
    for size in SIZES:
        share = 1 / np.arange(1, size + 1) ** 0.9
        columns.append(rng.choice(size, rows, p=share / share.sum()))
        logit_N += 0.5 * rng.normal(size=size)[columns[-1]]
        hidden.append(0.6 * rng.normal(size=(size, 4))[columns[-1]])
    logit_N += sum((hidden[a] * hidden[b]).sum(1) / 2 for a in range(2, len(SIZES)) for b in range(a))
    label_N = rng.random(rows) < 1 / (1 + np.exp(-logit_N))
    first = np.cumsum([0, *SIZES[:-1]])
    return Rows(torch.from_numpy(np.stack(columns, 1) + first), torch.from_numpy(label_N.astype(np.float32)))


class ClickModel(nn.Module):
    """Embeddings of all fields side by side, then two hidden layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(sum(SIZES), width).normal_(std=TABLE_STD))
        self.layers = nn.Sequential(nn.Linear(width * len(SIZES), 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, id_NF: Tensor) -> Tensor:
        """Returns logits [N]."""
        return self.layers(F.embedding(id_NF, self.table).flatten(1))[:, 0]


def optimizers(model: ClickModel, cure: str, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Returns the optimizers of a cure."""
    decay = options.weight_decay if cure == "adamw" else 0.0
    if cure != "frequency":
        return [torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=decay)]
    table = TableOptimizer([model.table], kind="adamw", lr=options.lr, betas=(0.9, 0.999), decay=options.frequency_decay)
    return [torch.optim.AdamW(model.layers.parameters(), lr=options.lr, weight_decay=0.0), table]


def train(train_rows: Rows, test_rows: Rows, cure: str, options: argparse.Namespace, seed: int) -> list[dict[str, float]]:
    """Trains with one cure; returns the metrics on the test rows after each pass."""
    torch.manual_seed(seed)
    model = ClickModel(options.width)
    steps = optimizers(model, cure, options)
    found = []
    for number in range(options.passes):
        if cure == "reset" and number:
            with torch.no_grad():
                model.table.normal_(std=TABLE_STD)
            steps[0].state.pop(model.table, None)
        if cure == "frozen" and number:
            model.table.requires_grad_(False)
            model.table.grad = None
        losses = []
        for index in torch.randperm(len(train_rows.label_N)).split(options.batch):
            loss = F.binary_cross_entropy_with_logits(model(train_rows.id_NF[index]), train_rows.label_N[index])
            for optimizer in steps:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in steps:
                optimizer.step()
            losses.append(float(loss.detach()))
        found.append({**judge(model, test_rows), "train": float(np.mean(losses))})
    return found


def judge(model: ClickModel, rows: Rows) -> dict[str, float]:
    """Returns AUC and NE."""
    with torch.inference_mode():
        score_N = torch.cat([model(part).sigmoid() for part in rows.id_NF.split(8192)]).double().numpy()
    label_N, grouped = rows.label_N.double().numpy(), arrange(np.arange(len(rows.label_N)))
    return {
        "auc": float(auc(score_N, label_N, grouped).value_G[0]),
        "ne": float(normalised_loss("binary", score_N, label_N, grouped).value_G[0]),
    }  # fmt: skip


def main() -> None:
    options = _arguments()
    begun = time.perf_counter()
    found: dict[str, list[list[dict[str, float]]]] = {cure: [] for cure in CURES}
    for seed in range(options.seeds):
        rows = draw(options.rows + options.test_rows, seed)
        train_rows = Rows(rows.id_NF[: options.rows], rows.label_N[: options.rows])
        test_rows = Rows(rows.id_NF[options.rows :], rows.label_N[options.rows :])
        for cure in CURES:
            found[cure].append(train(train_rows, test_rows, cure, options, seed))
    print(f"{options.rows:,} rows to train on, {options.test_rows:,} to test on, {options.seeds} seeds, mean and range; {hardware('cpu')}")
    for metric in ("auc", "ne", "train"):
        print(f"{metric if metric != 'train' else 'training loss':14s}" + "".join(f"{f'pass {n + 1}':>26s}" for n in range(options.passes)))
        for cure, runs in found.items():
            cells = []
            for number in range(options.passes):
                values = [run[number][metric] for run in runs]
                cells.append(f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
            print(f"{cure:14s}" + "".join(f"{cell:>26s}" for cell in cells))
    print(f"{time.perf_counter() - begun:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--test-rows", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1, help="of AdamW, on everything")
    parser.add_argument("--frequency-decay", type=float, default=1e-3, help="share a touched row loses for every step it was not touched")
    return parser.parse_args()


if __name__ == "__main__":
    main()
