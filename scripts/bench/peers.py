"""The same training by other tools: real positions a second in turns on one machine, and quality after as many passes.

    python scripts/bench/peers.py --env replay=PYTHON --env rectools=PYTHON --data DIR --log ml-1m        # speed
    python scripts/bench/peers.py --env replay=PYTHON --data DIR --log ml-1m --quality 10 --arms replay   # HR@10, NDCG@10
    python scripts/bench/peers.py --env rectools=PYTHON --data DIR --log ml-1m --device gpu --dim 256 --layers 4 --heads 4   # on a GPU

PYTHON is the interpreter of an environment of its own: `pip install torch==2.13.0 "replay-rec[torch]"`, or `"rectools[torch]"`; pmixer's
SASRec, in no registry, runs in any with torch and pyarrow (--env pmixer=PYTHON --pmixer CHECKOUT/python). DIR holds ml-1m/, diginetica/
and kuairand/. Every tool gets the same file of sequences, cut to the last L + 1 events of a user, the same width, depth, heads,
feed-forward width, dropout, loss (softmax over the whole catalogue; pmixer: one negative), threads, settings of how these wait (those
of rewarm's own scripts; `--waiting default`: GNU's) and of malloc. All are started and warmed up, then they make rounds of steps in
turn while the others wait: rounds of equal length, so no tool has the better minutes.

Of the limit: the operations that real positions need (`models.flops`, the same for equal models) a second, against the best rate of a
plain matrix product before and after the rounds.

A position is an event and the event that came next, learned once. What a tool computes for padding, or for predicting a user's first
event from nothing, counts for nobody. Every tool counts its own batches, and the mean is checked against the count of the file. rewarm
takes as many positions a step as 128 users bring on average; `--targets shipped` gives it the batch of conf/experiment/ml1m.yaml.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from trainer.fit.cost import matmul_ceiling, peak_flops
from trainer.machine import prepare_environment
from trainer.next_item.judge import list_metrics, pessimistic_rank

SIDES = Path(__file__).parent / "peers"
ROOT = Path(__file__).parents[2]
BATCH = 128  # users a step: the default of both peers
SHIPPED_TARGETS = 4096
HELD_OUT = 2
WARM_UP = 3  # steps before the first round
TOP = 10
LENGTHS = {"ml-1m": 200, "diginetica": 50, "kuairand": 100}
# glibc keeps the memory of a step for the next: without these, half of the peers' output layer is page faults.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "67108864"}


@dataclass(frozen=True)
class Arm:
    """One contender.

    Attributes:
        name: How it is called here.
        tool: Environment that it runs in.
        side: Script below peers/.
        model: ``sasrec`` or ``hstu``.
        bucketed: Whether RePlay's encoder sorts sequences by length.
        quality: Whether its side can score the catalogue.
    """

    name: str
    tool: str
    side: str
    model: str
    bucketed: bool = False
    quality: bool = False


ARMS = [
    Arm("rewarm", "rewarm", "rewarm_next_item.py", "sasrec", quality=True),
    Arm("rewarm_hstu", "rewarm", "rewarm_next_item.py", "hstu", quality=True),
    Arm("replay", "replay", "replay_sasrec.py", "sasrec", quality=True),
    Arm("replay_bucketed", "replay", "replay_sasrec.py", "sasrec", bucketed=True, quality=True),
    Arm("rectools", "rectools", "rectools_models.py", "sasrec"),
    Arm("rectools_hstu", "rectools", "rectools_models.py", "hstu"),
    Arm("pmixer", "pmixer", "pmixer_sasrec.py", "sasrec"),
]


@dataclass(frozen=True)
class Job:
    """What a side is told. Paths are absolute; `scores` asks for quality, its absence for speed; `source` is a tool's checkout."""

    sequences: str
    questions: str
    scores: str | None
    items: int
    length: int
    epochs: int | None
    batch: int
    batch_targets: int
    model: str
    bucketed: bool
    threads: int
    dim: int = 64
    layers: int = 2
    heads: int = 1
    dropout: float = 0.2
    lr: float = 1e-3
    seed: int = 0
    device: str = "cpu"
    overrides: list[str] = field(default_factory=list)
    source: str | None = None


@dataclass(frozen=True)
class Log:
    """A prepared log.

    Attributes:
        events: Training events of each user, in order, as places in the catalogue; at most L + 1, at least 2.
        held: The two held-out events of each user; None where everything is trained on.
        seen: All events of each user before the last one; what a list must not hold.
        items: Size of the catalogue.
    """

    events: list[np.ndarray]
    held: np.ndarray | None
    seen: list[np.ndarray] | None
    items: int

    @property
    def positions(self) -> int:
        """Pairs of neighbours: what one pass learns."""
        return sum(len(user) - 1 for user in self.events)

    def summary(self, length: int) -> str:
        """Returns its size in words."""
        padding = 1 - self.positions / (len(self.events) * length)
        return f"{len(self.events):,} users, {self.items:,} items, {self.positions:,} positions a pass, L {length}; {padding:.0%} padding"


def main() -> None:
    arguments = _arguments()
    length = arguments.length or LENGTHS[arguments.log]
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        log = READERS[arguments.log](arguments.data / arguments.log, length)
        write(log, length, out)
        print(f"{arguments.log}: {log.summary(length)}")
        arms = chosen(arguments)
        jobs = {arm.name: job_of(arm, log, arguments, length, out) for arm in arms}
        if arguments.quality:
            for arm in arms:
                judge(arm, jobs[arm.name], log, arguments, out)
        else:
            limits = [limit_of(arguments)]
            sides = alternate(arms, jobs, arguments, out)
            show(sides, log, [*limits, limit_of(arguments)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--log", choices=LENGTHS, required=True)
    parser.add_argument("--arms", nargs="*", choices=[arm.name for arm in ARMS], help="all whose environment is given")
    parser.add_argument("--length", type=int, help=f"L; by default {LENGTHS}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: in bf16 where the tool knows it (pmixer does not)")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a tool's turn")
    parser.add_argument("--targets", choices=["same", "shipped"], default="same", help="positions a step of rewarm")
    parser.add_argument("--malloc", choices=["kept", "default"], default="kept", help="glibc's settings, the same for all")
    parser.add_argument("--waiting", choices=["brief", "default"], default="brief", help="of OpenMP's threads, the same for all")
    parser.add_argument("--quality", type=int, metavar="PASSES", help="train so many passes and judge, instead of timing")
    parser.add_argument("--overrides", nargs="*", default=[], help="settings of rewarm, such as optimizer.lr=0.001")
    parser.add_argument("--pmixer", type=Path, metavar="FOLDER", help="with model.py and utils.py of github.com/pmixer/SASRec.pytorch")
    parser.add_argument("--out", type=Path, help="folder to keep; a temporary one otherwise")
    return parser.parse_args()


def chosen(arguments: argparse.Namespace) -> list[Arm]:
    known = {"rewarm", *(pair.split("=", 1)[0] for pair in arguments.env)}
    return [arm for arm in ARMS if (arm.name in arguments.arms if arguments.arms else arm.tool in known)]


def job_of(arm: Arm, log: Log, arguments: argparse.Namespace, length: int, out: Path) -> Job:
    same = round(log.positions / len(log.events) * BATCH)
    return Job(
        sequences=str(out / "sequences.parquet"), questions=str(out / "questions.parquet"),
        scores=str(out / f"{arm.name}.npy") if arguments.quality else None, items=log.items, length=length, epochs=arguments.quality,
        batch=BATCH, batch_targets=same if arguments.targets == "same" else SHIPPED_TARGETS, model=arm.model, bucketed=arm.bucketed,
        threads=arguments.threads, dim=arguments.dim, layers=arguments.layers, heads=arguments.heads, device=arguments.device,
        overrides=arguments.overrides,
        source=str(arguments.pmixer.absolute()) if arm.tool == "pmixer" and arguments.pmixer else None,
    )  # fmt: skip


# ---- logs


def ml_1m(folder: Path, length: int) -> Log:
    """The canonical SASRec order, leave-one-out: the last event tests, the one before validates."""
    table = pq.read_table(folder / "sasrec_order.parquet").sort_by([("user_id", "ascending"), ("seq_pos", "ascending")])
    users, items = by_user(table["user_id"].to_numpy(), table["item_id"].to_numpy())
    whole = [user for user in users if len(user) >= HELD_OUT + 2]
    events = [user[:-HELD_OUT][-length - 1 :] for user in whole]
    return Log(events, np.stack([user[-HELD_OUT:] for user in whole]), [user[:-1] for user in whole], items)


def diginetica(folder: Path, length: int) -> Log:
    """Sessions; the order of rows is that of time. Everything is trained on."""
    table = pq.read_table(folder / "interactions.parquet", columns=["session_id", "item_id"])
    users, items = by_user(table["session_id"].to_numpy(), table["item_id"].to_numpy())
    return Log([user[-length - 1 :] for user in users if len(user) > 1], None, None, items)


def kuairand(folder: Path, length: int) -> Log:
    """Exposures: each user's last ones from before the log, then the log's. Everything is trained on."""
    before = pq.read_table(folder / "user_history_to_0424.parquet", columns=["user_id", "watch_seq"])
    old = before["watch_seq"].combine_chunks()
    columns = ["user_id", "item_id", "timestamp"]
    events = pq.read_table(folder / "events", columns=columns).group_by(columns).aggregate([])  # some rows were delivered twice
    events = events.sort_by([("timestamp", "ascending"), ("item_id", "ascending")])
    length_U = pc.list_value_length(old).fill_null(0).to_numpy(zero_copy_only=False)
    user_E = np.concatenate([np.repeat(before["user_id"].to_numpy(), length_U), events["user_id"].to_numpy()])
    users, items = by_user(user_E, np.concatenate([old.flatten().to_numpy(), events["item_id"].to_numpy()]))
    return Log([user[-length - 1 :] for user in users if len(user) > 1], None, None, items)


READERS: dict[str, Callable[[Path, int], Log]] = {"ml-1m": ml_1m, "diginetica": diginetica, "kuairand": kuairand}


def by_user(user_E: np.ndarray, item_E: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Returns each user's items as places in the catalogue, rows in their order; and the size of the catalogue."""
    items, place_E = np.unique(item_E, return_inverse=True)
    _, code_E, count_U = np.unique(user_E, return_inverse=True, return_counts=True)
    return np.split(place_E[np.argsort(code_E, kind="stable")], np.cumsum(count_U)[:-1]), len(items)


def write(log: Log, length: int, out: Path) -> None:
    """Writes what every side reads: ``item_id`` (and ``held``) a user; and the history of each question."""
    columns = {"user_id": np.arange(len(log.events)), "item_id": log.events}
    if log.held is not None:
        columns["held"] = list(log.held)
        asked = [np.append(user, pair[0])[-length:] for user, pair in zip(log.events, log.held, strict=True)]
        pq.write_table(pa.table({"item_id": asked}), out / "questions.parquet")
    pq.write_table(pa.table(columns), out / "sequences.parquet")
    np.savez(out / "sequences.npz", item_E=np.concatenate(log.events), length_U=np.array([len(user) for user in log.events]))


# ---- sides


class Side:
    """A tool's process, which makes a round of steps when told to."""

    def __init__(self, arm: Arm, job: Job, arguments: argparse.Namespace, out: Path) -> None:
        self.arm, self.log_file = arm, out / f"{arm.name}.log"
        self.process = subprocess.Popen(
            command(arm, job, arguments, out), env=environment(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log_file.open("w"), text=True,
        )  # fmt: skip
        self.facts: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []

    def answer(self) -> dict[str, Any]:
        """Returns the next answer; what the tool prints besides is left out."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@bench "):
                return dict(json.loads(line.removeprefix("@bench ")))
        raise SystemExit(f"{self.arm.name} ended early; see the end of {self.log_file}:\n{self.log_file.read_text()[-2000:]}")

    def round(self, steps: int) -> dict[str, Any]:
        """Makes so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Lets the process end; one that does not is killed."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def command(arm: Arm, job: Job, arguments: argparse.Namespace, out: Path) -> list[str]:
    pythons = {"rewarm": sys.executable, **dict(pair.split("=", 1) for pair in arguments.env)}
    if arm.tool not in pythons:
        raise SystemExit(f"--env {arm.tool}=PYTHON is needed for {arm.name}")
    if arm.tool == "pmixer" and job.source is None:
        raise SystemExit("--pmixer FOLDER is needed for pmixer: the folder with its model.py and utils.py")
    file = out / f"{arm.name}.json"
    file.write_text(json.dumps(asdict(job)))
    return [pythons[arm.tool], str(SIDES / arm.side), str(file)]


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """The same for all tools; ``brief`` waiting is what rewarm's own scripts set."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "OMP_", "GOMP_", "MKL_"))}
    own.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(arguments.threads)))
    if arguments.waiting == "brief":
        prepare_environment(own)
    return {**own, "PYTHONPATH": str(ROOT), **(MALLOC if arguments.malloc == "kept" else {})}


# ---- speed


def alternate(arms: list[Arm], jobs: dict[str, Job], arguments: argparse.Namespace, out: Path) -> list[Side]:
    """Starts and warms up all, then lets them make rounds in turn; a turn takes about `arguments.seconds`."""
    sides = [Side(arm, jobs[arm.name], arguments, out) for arm in arms]
    try:
        for side in sides:
            side.facts = side.answer()
        steps = {}
        for side in sides:
            for _ in range(1 if arguments.device == "cpu" else 2):  # what is compiled in the first steps says nothing of the others
                warm = side.round(WARM_UP)
            steps[side.arm.name] = max(round(arguments.seconds / statistics.median(warm["seconds"])), WARM_UP)
        for _ in range(arguments.rounds):
            for side in sides:
                side.rounds.append(side.round(steps[side.arm.name]))
        (out / "rounds.json").write_text(json.dumps({side.arm.name: side.rounds for side in sides}))
        return sides
    finally:
        for side in sides:
            side.close()


def show(sides: list[Side], log: Log, limits: list[float]) -> None:
    """Prints medians over rounds, and the spread from the slowest round to the fastest."""
    table = Table("tool", "version", "parameters", "positions/s", "rewarm is faster by", "of the limit", "s/step", "s/pass", "peak MB")
    needed = {side.arm.model: side.facts["flops"] for side in sides if side.arm.tool == "rewarm"}
    ours = next((rates(side.rounds) for side in sides if side.arm.name == "rewarm"), None)
    for side in sides:
        check(side, log)
        rate, seconds = rates(side.rounds), [second for each in side.rounds for second in each["seconds"]]
        ratio = [mine / theirs for mine, theirs in zip(ours, rate, strict=True)] if ours else []
        whole = sum(position for each in side.rounds for position in each["positions"]) / sum(seconds)
        table.add_row(
            side.arm.name, side.facts["version"], f"{side.facts['parameters']:,}", spread(rate, "{:,.0f}"), spread(ratio, "{:.2f}x"),
            spread(shares(side, rate, needed, max(limits)), "{:.1%}"),
            f"{statistics.median(seconds):.3f}", f"{log.positions / whole:,.0f}", f"{side.rounds[-1]['peak_mb']:,.0f}",
        )  # fmt: skip
    Console(width=170).print(table)


def shares(side: Side, rate: list[float], needed: dict[str, float], limit: float) -> list[float]:
    """Returns the share of the machine's limit that a tool's rates are; what a position needs is a property of the model.

    None for pmixer, whose loss needs two items a position, and where no arm of rewarm has told what the model needs.
    """
    if side.arm.tool == "pmixer" or side.arm.model not in needed:
        return []
    return [each * needed[side.arm.model] / limit for each in rate]


def limit_of(arguments: argparse.Namespace) -> float:
    """Returns what the machine can do now, FLOP/s: an fp32 product of as many threads on a CPU, a GPU's bf16 peak."""
    if arguments.device == "gpu":
        return peak_flops(torch.device("cuda")) or float("nan")
    torch.set_num_threads(arguments.threads)
    return matmul_ceiling.__wrapped__(arguments.threads, seconds=0.5)


def rates(rounds: list[dict[str, Any]]) -> list[float]:
    """Returns positions a second of every round: the median of its steps, because a step that was interrupted tells nothing."""
    return [statistics.median(np.divide(each["positions"], each["seconds"]).tolist()) for each in rounds]


def spread(values: list[float], form: str) -> str:
    return f"{form.format(statistics.median(values))} [{form.format(min(values))}, {form.format(max(values))}]" if values else ""


def check(side: Side, log: Log) -> None:
    """Holds a tool's count against the file's: what it takes for positions must be what everybody else does."""
    if side.arm.tool == "rewarm":
        return  # its batches are cut by positions, not by users
    counted = statistics.mean(position for each in side.rounds for position in each["positions"])
    expected = log.positions / len(log.events) * BATCH
    if not 0.8 < counted / expected < 1.2:
        raise SystemExit(f"{side.arm.name} learns {counted:,.0f} positions a step; {BATCH} users of this file bring {expected:,.0f}")


# ---- quality


def judge(arm: Arm, job: Job, log: Log, arguments: argparse.Namespace, out: Path) -> None:
    """Trains, and ranks the last event of every user among the whole catalogue, seen events removed."""
    if log.held is None or log.seen is None or not arm.quality:
        raise SystemExit(f"{arm.name} on {arguments.log} cannot be judged: only ml-1m holds out, and {arm.side} must score")
    with (out / f"{arm.name}.log").open("w") as errors:
        subprocess.run(command(arm, job, arguments, out), env=environment(arguments), stderr=errors, check=True)
    score_UV = torch.from_numpy(np.load(str(job.scores), mmap_mode="r").copy())
    rank_U = np.concatenate([ranks(score_UV, log, block) for block in np.array_split(np.arange(len(log.held)), 16)])
    found = ", ".join(f"{name} {value:.4f}" for name, value in list_metrics(rank_U, TOP).items() if name != "n")
    print(f"{arm.name}: {arguments.quality} passes of {log.positions:,} positions, {found}", flush=True)


def ranks(score_UV: torch.Tensor, log: Log, block: np.ndarray) -> np.ndarray:
    assert log.held is not None and log.seen is not None
    seen = [log.seen[user] for user in block]
    row_E = np.repeat(np.arange(len(block)), [len(items) for items in seen])
    return pessimistic_rank(score_UV[block], log.held[block, 1], row_E, np.concatenate(seen))


if __name__ == "__main__":
    main()
