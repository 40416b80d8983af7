"""What happens when a checkpoint meets a model that is not quite its own: an error, the right model, or a wrong one without a word.

    python scripts/bench/silent_failures.py [--rectools /path/to/python] [--json FILE]

Every case is carried out with each tool, and judged by what is measured, not by what the tool says: after loading, the scores of
kept ids must be those of the source, no new id may own a retired id's row, and the optimizer's next step must move every kept
entry as the source's next step would (new rows at most 1.1 times as far as old ones). `--rectools` is the interpreter of an
environment with RecTools; without it its column says "not installed". One table, and one JSON line a (case, tool, outcome).
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import models
from models.batch import Batch
from models.ranker import ActionShape, Ranker, RankerShape
from trainer.config import DistillConfig, ModelConfig, OptimizerConfig
from trainer.fit.learner import Learner, Optimizers
from trainer.importing.names import NameMap, RowMap, rename
from trainer.importing.probe import histories
from trainer.schema.hashing import sha256_json
from trainer.schema.vocabulary import RESERVED_ROWS, Vocabulary
from trainer.warm_start import Side, apply, carry_moments, plan

ERROR, WRONG, RIGHT, ABSENT = "error", "wrong_silently", "right", "not installed"
ITEMS = [f"item {n:02d}" for n in range(24)]
USERS = [f"{n}/6" for n in range(6)]  # hashed: bucket of six
STEPS, NEXT, LR, BETAS = 300, 15, 1e-3, (0.9, 0.999)  # new rows overshoot most about the twelfth step
Step = Callable[[], object]
PEERS = Path(__file__).parent / "peers"


@dataclass
class Model:
    """A ranker, the ids of its tables, and the order in which its optimizer knows its parameters."""

    ranker: Ranker
    keys: dict[str, list[str]]
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = self.order or [name for name, _ in self.ranker.named_parameters()]

    def rows(self, vocabulary: str, ids: list[str]) -> Tensor:
        return torch.tensor([self.keys[vocabulary].index(key) + RESERVED_ROWS for key in ids], dtype=torch.int64)

    def parameters(self) -> list[torch.nn.Parameter]:
        named = dict(self.ranker.named_parameters())
        return [named[name] for name in self.order]

    def adamw(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.parameters(), lr=LR, betas=BETAS, weight_decay=0.0)


@dataclass(frozen=True)
class Case:
    """A mismatch.

    Attributes:
        name: In a few words.
        items: Items of the target, in row order.
        users: Buckets of the target's user table.
        shape: Changes of the target's shape.
        written: What the checkpoint's own code called or laid out differently: changes its weights (and moments) by name.
        order: Order of the target's parameters in its optimizer; None keeps it.
        resized: Rows that the target's item table has beyond its vocabulary (a layer somebody forgot to resize).
        by_hand: Whether the user pads weights and moments with zeros first, as must be done by hand where shapes must match.
        rows: How an import lays out rows, where the checkpoint is no bundle of ours.
    """

    name: str
    items: list[str] = field(default_factory=lambda: list(ITEMS))
    users: list[str] = field(default_factory=lambda: list(USERS))
    shape: dict[str, object] = field(default_factory=dict)
    written: Callable[[str, Tensor], Iterator[tuple[str, Tensor]]] | None = None
    order: Callable[[list[str]], list[str]] | None = None
    resized: int = 0
    by_hand: bool = False
    rows: RowMap | None = None


def _padding_last(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name, value.roll(-1, 0) if name == "embedding.item.weight" else value


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name.replace("items.project", "tower.project"), value


def _with_extra(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name, value
    if name == "norm.gain":
        yield "statistics.mean", torch.ones(3)


def _rotated(order: list[str]) -> list[str]:
    """The last of the query matrices comes first: an attention that was inserted before the others."""
    places = [place for place, name in enumerate(order) if name.endswith(("query.weight", "key.weight", "value.weight"))]
    result = list(order)
    for place, other in zip(places, [places[-1], *places[:-1]], strict=True):
        result[place] = order[other]
    return result


CLICK, LIKE = (ActionShape(name=name, kind="binary", base_rate=rate) for name, rate in (("click", 0.2), ("like", 0.05)))
CASES = [
    Case("same ids in another order", items=sorted(ITEMS, key=lambda item: item[::-1])),
    Case("one id swapped for a new one", items=["new item", *ITEMS[1:]]),
    Case("one id added", items=[*ITEMS[:5], "new item", *ITEMS[5:]]),
    Case("one id dropped", items=[*ITEMS[:5], *ITEMS[6:]]),
    Case("width changed", shape={"dim": 24, "norm_eps": 1e-6 * 16 / 24}),  # as a run computes it: eps x dim stays
    Case("depth changed", shape={"layers": 3}),
    Case("padding row moved", written=_padding_last, rows=RowMap(first=1, oov=0, after=1)),
    Case("tied layer not resized", items=[*ITEMS, "new item"], resized=-1),
    Case("parameter before others in the optimizer", order=_rotated),
    Case("renamed tower", written=_renamed),
    Case("new head before the old one", shape={"actions": (LIKE, CLICK)}),
    Case("other hash size", users=[f"{n}/8" for n in range(8)]),
    Case("other hash, same size", users=[f"{n}/other 6" for n in range(6)]),
    Case("extra unused tensor", written=_with_extra),
    Case("step kept with zero moments", items=[*ITEMS, "new item"], by_hand=True),
]


def build(case: Case | None) -> Model:
    """Builds the source (no case) or a case's target; every parameter is random, so that no term hides behind a zero."""
    case_or_source = case or Case("source")
    keys = {"item": case_or_source.items, "user": case_or_source.users}
    rows = {name: len(ids) + RESERVED_ROWS for name, ids in keys.items()}
    rows["item"] += case_or_source.resized
    values = {
        "architecture": "sasrec", "actions": (CLICK,), "history_actions": (), "vocabularies": rows, "item_vocabulary": "item",
        "categorical": {"user": "user"}, "dim": 16, "heads": 2, "head_dim": 8, "ffn_dim": 16, "context_dim": 16, "context_layers": 1,
        "dropout": 0.0, **case_or_source.shape,
    }  # fmt: skip
    torch.manual_seed(1 if case is None else 2)
    ranker = models.build(RankerShape(**values)).eval()
    if case is None:
        with torch.no_grad():
            for name, parameter in ranker.named_parameters():
                if not name.endswith("gain"):
                    parameter.add_(0.2 * torch.randn_like(parameter))
        ranker.embedding.item.weight.data[0] = 0
    model = Model(ranker, keys)
    return replace(model, order=case.order(model.order)) if case is not None and case.order else model


# -- what is measured -------------------------------------------------------------------------------------------------------


def batch_of(model: Model, kept: list[str], buckets: list[str]) -> Batch:
    """Forty histories of kept items, each with a kept item and a user as target."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 8, 40)
    tokens = model.rows("item", [kept[n] for n in draw.integers(0, len(kept), lengths.sum())])
    users = model.rows("user", [buckets[n] for n in draw.integers(0, len(buckets), 40)])[:, None]
    target = model.rows("item", [kept[n] for n in draw.integers(0, len(kept), 40)])
    return replace(histories(lengths, tokens.numpy()), target_item_N=target, categorical_NC=users)


def clicks(model: Model, kept: list[str], buckets: list[str]) -> Tensor:
    """Scores of the action that both sides have."""
    with torch.inference_mode():
        output = model.ranker(batch_of(model, kept, buckets)).output_NO
    return output[:, model.ranker.shape.outputs.index("click")]


def gradient(model: Model, name: str) -> Tensor:
    """A gradient that depends on names and ids, never on places: what the same data would give either model.

    Within a parameter all entries have one magnitude, so a row's move tells its moments and nothing else.
    """
    parameter = dict(model.ranker.named_parameters())[name]

    def seed(*key: str) -> int:
        return int(sha256_json([name, *key])[:12], 16)

    def signs(shape: torch.Size, *key: str) -> Tensor:
        return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed(*key))) * 2.0 - 1.0

    axis, scale = model.ranker.axes()[name][0], 1.0 + seed() % 7
    if not axis.startswith("vocab:"):
        return scale * signs(parameter.shape)
    rows = [torch.zeros(parameter.shape[1:])] * RESERVED_ROWS
    keys = model.keys[axis.removeprefix("vocab:")][: len(parameter) - RESERVED_ROWS]
    return scale * torch.stack([*rows, *(signs(parameter.shape[1:], key) for key in keys)])


def moves(model: Model, step: Step, steps: int) -> dict[str, Tensor]:
    """Makes optimizer steps on the same gradients; returns how far every parameter moved in each, [steps, ...]."""
    log: dict[str, list[Tensor]] = {name: [] for name in model.order}
    named = dict(model.ranker.named_parameters())
    gradients = {name: gradient(model, name) for name in model.order}
    for _ in range(steps):
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        for name, parameter in named.items():
            parameter.grad = gradients[name].clone()
        step()
        for name, parameter in named.items():
            log[name].append(parameter.detach() - before[name])
    return {name: torch.stack(entries) for name, entries in log.items()}


def kept_scores(source: Model, target: Model) -> tuple[Tensor, Tensor]:
    """Scores of what both sides know, before and after."""
    kept = [item for item in source.keys["item"] if item in target.keys["item"]]
    buckets = [(user, user) for user in source.keys["user"] if user in target.keys["user"]]
    if not buckets:  # the same users, hashed otherwise: each meets another bucket
        count = len(target.keys["user"])
        buckets = [(user, target.keys["user"][(5 * place + 1) % count]) for place, user in enumerate(source.keys["user"])]
    return clicks(source, kept, [before for before, _ in buckets]), clicks(target, kept, [after for _, after in buckets])


def judge(source: Model, target: Model, scores: tuple[Tensor, Tensor], wanted: dict[str, Tensor], step: Step | None) -> str:
    """Returns `RIGHT` or `WRONG`.

    Args:
        source: The source, as it was when it was saved.
        target: What the tool loaded.
        scores: What `kept_scores` gave.
        wanted: Moves of the source's next steps.
        step: The target's optimizer step; None where no moments were to be carried.
    """
    old, new = scores
    if not torch.allclose(old, new, rtol=0, atol=1e-5 * float(old.abs().max())) or _inherits(source, target):
        return WRONG
    return RIGHT if step is None or _moves_alike(source, target, wanted, moves(target, step, NEXT)) else WRONG


def _inherits(source: Model, target: Model) -> bool:
    """Whether a new item owns the row of one that is gone."""
    gone = [item for item in source.keys["item"] if item not in target.keys["item"]]
    new = [item for item in target.keys["item"] if item not in source.keys["item"]]
    tables = [side.ranker.embedding.item.weight for side in (source, target)]
    if tables[0].shape[1] != tables[1].shape[1]:
        return False
    return any(torch.equal(tables[0][source.rows("item", [a])], tables[1][target.rows("item", [b])]) for a in gone for b in new)


def _moves_alike(source: Model, target: Model, wanted: dict[str, Tensor], took: dict[str, Tensor]) -> bool:
    for name, old in wanted.items():
        axis = target.ranker.axes().get(name, ("",))[0]
        if name not in took:
            continue
        new = took[name]
        if axis.startswith("vocab:"):
            vocabulary = axis.removeprefix("vocab:")
            kept = [key for key in source.keys[vocabulary] if key in target.keys[vocabulary]]
            fresh = [key for key in target.keys[vocabulary] if key not in source.keys[vocabulary]]
            largest = old.abs().max()
            if vocabulary == "item" and fresh and new[:, target.rows(vocabulary, fresh)].abs().max() > 1.1 * largest:
                return False
            old, new = old[:, source.rows(vocabulary, kept)], new[:, target.rows(vocabulary, kept)]
        if old.shape == new.shape and not torch.allclose(old, new, rtol=1e-3, atol=1e-3 * LR):
            return False
    return True


# -- the tools --------------------------------------------------------------------------------------------------------------


@dataclass
class Saved:
    """A source that was trained for some steps: its weights and moments under the names its code gave them."""

    model: Model
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    wanted: dict[str, Tensor]


@functools.cache
def source() -> Saved:
    """Trains the source, and goes on with a copy of it to see how its next steps would move."""
    model = build(None)
    optimizer = model.adamw()
    moves(model, optimizer.step, STEPS)
    named = dict(model.ranker.named_parameters())
    moments = {name: {key: value.clone() for key, value in optimizer.state[named[name]].items()} for name in model.order}
    state = {name: value.clone() for name, value in model.ranker.state_dict().items()}
    wanted = moves(model, optimizer.step, NEXT)
    model.ranker.load_state_dict(state)
    return Saved(model, state, moments, wanted)


def written(case: Case) -> Saved:
    """The source under the names, and in the layout, of the code that wrote it."""
    saved = source()
    copies = {name: {key: value.clone() for key, value in entry.items()} for name, entry in saved.moments.items()}
    if case.written is None:
        return replace(saved, weights={name: value.clone() for name, value in saved.weights.items()}, moments=copies)
    weights = dict(pair for name, value in saved.weights.items() for pair in case.written(name, value.clone()))
    moments: dict[str, dict[str, Tensor]] = {}
    for name, entry in copies.items():
        laid = {key: next(case.written(name, value)) if value.ndim else (None, value) for key, value in entry.items()}
        moments[str(laid["exp_avg"][0])] = {key: value for key, (_, value) in laid.items()}
    return replace(saved, weights=weights, moments=moments)


class Module(L.LightningModule):
    """How a Lightning user wraps a model; `strict_loading` is what Lightning offers where shapes or names differ."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.strict_loading = False
        self.network = model.ranker
        self.model = model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.model.adamw()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return sum(((p * 0).sum() for p in self.parameters()), torch.zeros(()))


def with_lightning(case: Case, saved: Saved, target: Model, folder: Path) -> Step | None:
    """Restores through `Trainer.fit(ckpt_path=...)`, strict=False; the optimizer comes with it, by position."""
    weights, moments = _padded_by_hand(case, saved, target)
    groups = [{**group, "params": list(range(len(moments)))} for group in target.adamw().state_dict()["param_groups"]]
    content = {
        "state_dict": {f"network.{name}": value for name, value in weights.items()}, "epoch": 0, "global_step": STEPS, "loops": None,
        "optimizer_states": [{"state": dict(enumerate(moments.values())), "param_groups": groups}], "lr_schedulers": [],
        "pytorch-lightning_version": L.__version__,
    }  # fmt: skip
    torch.save(content, folder / "last.ckpt")
    module = Module(target)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module, torch.utils.data.DataLoader([]), ckpt_path=folder / "last.ckpt", weights_only=True)  # restores, and has no batch
    return trainer.optimizers[0].step


def _padded_by_hand(case: Case, saved: Saved, target: Model) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """What people write where shapes must match: weights of the fresh model and zero moments for the rows that are new."""
    if not case.by_hand:
        return saved.weights, saved.moments
    name, rows = "embedding.item.weight", len(target.ranker.embedding.item.weight)
    weights = {**saved.weights, name: target.ranker.state_dict()[name].clone()}
    weights[name][: len(saved.weights[name])] = saved.weights[name]
    padded = {
        key: torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])]) if value.ndim else value
        for key, value in saved.moments[name].items()
    }
    return weights, {**saved.moments, name: padded}


def with_dcp(case: Case, saved: Saved, target: Model, folder: Path) -> Step | None:
    """Loads through torch's distributed checkpoint with a planner that allows partial loads; moments go by name."""
    weights, moments = _padded_by_hand(case, saved, target)
    optim = {f"state.{name}.{key}": value for name, entry in moments.items() for key, value in entry.items()}
    dcp.save({"model": weights, "optim": optim}, checkpoint_id=folder / "dcp", no_dist=True)
    optimizer = target.adamw()
    moves(target, optimizer.step, 1)  # states exist only after a step; what the checkpoint has overwrites them
    named = get_optimizer_state_dict(target.ranker, optimizer)["state"]
    into = {f"state.{name}.{key}": value for name, entry in named.items() for key, value in entry.items()}
    model_state = target.ranker.state_dict()
    planner = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load({"model": model_state, "optim": into}, checkpoint_id=folder / "dcp", planner=planner, no_dist=True)
    target.ranker.load_state_dict(model_state)
    loaded = {name: {key: into[f"state.{name}.{key}"] for key in entry} for name, entry in named.items()}
    groups = get_optimizer_state_dict(target.ranker, optimizer)["param_groups"]
    set_optimizer_state_dict(target.ranker, optimizer, {"state": loaded, "param_groups": groups})
    return optimizer.step


def with_rewarm(case: Case, saved: Saved, target: Model, folder: Path) -> Step | None:
    """Plans, applies and carries; a checkpoint of other code is imported first."""
    if case.rows is not None:
        names = NameMap(model=ModelConfig(name="sasrec"), tensors={name: name for name in target.ranker.state_dict()}, rows=case.rows)
        users = {name for name, axes in target.ranker.axes().items() if axes[0] == "vocab:user"}
        weights = {name: torch.cat([value[1:], value[:1]]) if name in users else value for name, value in saved.weights.items()}
        target.ranker.load_state_dict(rename(names, weights, target.ranker, folder))
        return None
    source = _side(saved)
    challenger = Side.of(target.ranker, _vocabularies(target))
    transfer = plan(source, challenger)
    target.ranker.load_state_dict(apply(transfer, source, challenger, saved.weights, target.ranker.state_dict()))
    flat = {f"{name}/{key}": value for name, entry in saved.moments.items() for key, value in entry.items()}
    settings = OptimizerConfig(lr=LR, embedding_lr=LR, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0)
    optimizers = Optimizers(Learner(target.ranker, {}, DistillConfig()), settings)
    optimizers.carry(carry_moments(transfer, source, challenger, flat))

    def step() -> None:
        for optimizer in optimizers.all():
            optimizer.step()

    return step


def _side(saved: Saved) -> Side:
    """The source as its manifest would describe it: its own names, also of what it has beyond ours."""
    side = Side.of(saved.model.ranker, _vocabularies(saved.model), "source")
    ours = dict(zip(saved.weights, saved.weights, strict=True)) | {"tower.project.weight": "items.project.weight"}
    axes = {name: side.axes.get(ours[name], ("fixed",) * saved.weights[name].ndim) for name in saved.weights}
    return replace(
        side, shapes={name: tuple(value.shape) for name, value in saved.weights.items()}, axes=axes,
        dtypes=dict.fromkeys(saved.weights, "float32"),
    )  # fmt: skip


def _vocabularies(model: Model) -> dict[str, Vocabulary]:
    def vocabulary(name: str, keys: list[str]) -> Vocabulary:
        days = pa.array(["2026-01-01"] * len(keys))
        return Vocabulary(name, pa.array(keys), np.full(len(keys), 100), days, days)

    return {name: vocabulary(name, keys) for name, keys in model.keys.items()}


TOOLS: dict[str, Callable[[Case, Saved, Model, Path], Step | None]] = {
    "Lightning strict=False": with_lightning,
    "torch DCP allow_partial_load": with_dcp,
    "rewarm": with_rewarm,
}


# -- the table --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a tool did with a case; `detail` is the first line of its error."""

    case: str
    tool: str
    outcome: str
    detail: str = ""


def outcome(case: Case, tool: str) -> Outcome:
    """Carries a case out with a tool."""
    saved, target = written(case), build(case)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            step = TOOLS[tool](case, saved, target, Path(folder))
            scores = kept_scores(saved.model, target)
            clicks(target, target.keys["item"], target.keys["user"])  # a model that cannot score what it should know is an error too
        except (Exception, CheckpointException) as error:  # whatever a tool raises is its outcome; torch's is no Exception
            lines = str(error).strip().splitlines() or [""]
            said = lines[-1] if isinstance(error, CheckpointException) else lines[0]
            return Outcome(case.name, tool, ERROR, f"{type(error).__name__}: {said[:160]}")
    return Outcome(case.name, tool, judge(saved.model, target, scores, saved.wanted, step))


def of_rectools(python: str | None) -> list[Outcome]:
    """Runs RecTools' cases in its own environment; its models know items only, so not every case exists there."""
    if python is None:
        return [Outcome(case.name, "RecTools", ABSENT) for case in CASES]
    done = subprocess.run([python, PEERS / "rectools_cases.py"], capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        sys.exit(f"RecTools' cases did not run:\n{done.stderr[-2000:]}")
    return [Outcome(**entry, tool="RecTools") for entry in found]


def show(outcomes: list[Outcome], console: Console) -> None:
    """Prints the table."""
    tools = list(dict.fromkeys(entry.tool for entry in outcomes))
    found = {(entry.case, entry.tool): entry.outcome for entry in outcomes}
    colours = {ERROR: "yellow", WRONG: "bold red", RIGHT: "green"}
    table = Table(title="a checkpoint meets a model that is not quite its own", title_justify="left")
    for column in ("case", *tools):
        table.add_column(column)
    for case in CASES:
        cells = [found.get((case.name, tool), "-") for tool in tools]
        table.add_row(case.name, *(f"[{colours[cell]}]{cell}[/]" if cell in colours else cell for cell in cells))
    table.add_section()
    table.add_row("wrong without a word", *(str(sum(e.tool == tool and e.outcome == WRONG for e in outcomes)) for tool in tools))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rectools", help="python of an environment with RecTools")
    parser.add_argument("--json", type=Path, help="file for the JSON lines; they are printed in any case")
    arguments = parser.parse_args()
    outcomes = [outcome(case, tool) for tool in TOOLS for case in CASES] + of_rectools(arguments.rectools)
    show(outcomes, Console(width=None if sys.stdout.isatty() else 150))
    lines = [json.dumps(asdict(entry)) for entry in outcomes]
    print("\n".join(lines))
    if arguments.json:
        arguments.json.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
