"""Weekly retraining on DIGINETICA, in the protocol of ADER (Mi, Lin & Faltings, RecSys 2020): what a warm start is worth.

    python scripts/bench/diginetica.py --data DIR --out DIR                                  # all arms, all 16 periods
    python scripts/bench/diginetica.py --data DIR --out DIR --arms finetune,replay --periods 4 --passes 2

Period p is learned from the model of period p - 1 (`joint`: from nothing, on all periods up to p), then judged on period p + 1:
every click of a session but the first is to be found among the 20 best of all items seen so far. Items that no period up to p
had are taken out of the judged sessions. The vocabulary grows every period; weights and moments move by item id
(`trainer.warm_start`). One JSON line an (arm, period) goes to ``OUT/results.jsonl``; a stopped run goes on from there.

    finetune   the period's sessions only              replay     and 30,000 random (prefix, item) exemplars of earlier periods
    dropout    finetune with dropout                   replay_kd  exemplars carry the old model's scores instead of their label
    joint      from scratch on all periods so far      scratch    from scratch on the period only
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

import models
from models.batch import Batch
from models.losses import sampled_softmax
from models.ranker import Ranker
from trainer.backtest.flops import forward_flops
from trainer.config import ModelConfig, OptimizerConfig, ScheduleConfig
from trainer.data import BatchModule, Shard, ShardStore, plan_batches, take
from trainer.data.plan import cut
from trainer.data.shards import ShardKey
from trainer.fit.learner import Learner
from trainer.fit.run import CursorAndCheckpoint
from trainer.fit.schedule import schedule_of
from trainer.fit.task import RankingTask
from trainer.next_item.judge import catalogue, pessimistic_rank
from trainer.next_item.run import hardware
from trainer.next_item.sequences import Sequences
from trainer.next_item.train import shape_of
from trainer.next_item.units import cut_units
from trainer.schema.vocabulary import RESERVED_ROWS, Vocabulary
from trainer.warm_start import Side, apply, carry_moments, plan

TOP_K, KEEP, MAX_HISTORY = 20, 30_000, 50
KD_WEIGHT = 0.8  # ADER's base weight on this log; scaled by how much of the catalogue and of the data is old
ARMS = ("finetune", "dropout", "replay", "replay_kd", "joint", "scratch")
PUBLISHED = {"finetune": 47.28, "dropout": 49.07, "replay": 49.14, "replay_kd": 50.21, "joint": 50.03}
NEW, OLD = 0, 1  # Shard.row_N marks whether a target is the period's or an exemplar


@dataclass(frozen=True)
class Log:
    """Clicks in time order.

    Attributes:
        session_E: Session of each click.
        item_E: Item id.
        period_E: Period, ascending.
    """

    session_E: np.ndarray
    item_E: np.ndarray
    period_E: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Log:
        """Reads the log; row order is time order."""
        table = pq.read_table(path, columns=["session_id", "item_id", "period"])
        return cls(*(table[name].to_numpy().astype(np.int64) for name in table.column_names))

    def items(self, last: int) -> np.ndarray:
        """Returns the ids seen in periods up to `last`, ascending."""
        return np.unique(self.item_E[self.period_E <= last])

    def sequences(self, first: int, last: int, item_V: np.ndarray) -> Sequences:
        """Returns the sessions of periods `first` to `last`, reduced to known items; sessions of one click are left out."""
        chosen_E = (self.period_E >= first) & (self.period_E <= last) & np.isin(self.item_E, item_V)
        # A session belongs to a period: one that goes on in the next is two.
        key_E = self.session_E[chosen_E] * 64 + self.period_E[chosen_E]
        item_E = np.searchsorted(item_V, self.item_E[chosen_E])
        _, code_E, count_U = np.unique(key_E, return_inverse=True, return_counts=True)
        kept_E = count_U[code_E] > 1
        users, code_E = np.unique(code_E[kept_E], return_inverse=True)
        order_E = np.argsort(code_E, kind="stable")
        offsets_U1 = np.concatenate([[0], np.cumsum(np.bincount(code_E, minlength=len(users)))]).astype(np.int64)
        return Sequences(pa.array(users), pa.array(item_V), offsets_U1, item_E[kept_E][order_E])


@dataclass(frozen=True)
class Exemplars:
    """(prefix, item) pairs kept from earlier periods: item ids, because rows change every period.

    Attributes:
        prefixes: Item ids of each prefix, the latest last.
        item_N: Item id that came next.
    """

    prefixes: list[np.ndarray]
    item_N: np.ndarray

    def unit(self, item_V: np.ndarray) -> Shard:
        """Returns a unit an exemplar: its tokens, and one target behind them."""
        sequences = [np.append(prefix, item) for prefix, item in zip(self.prefixes, self.item_N, strict=True)]
        length_N = np.array([len(sequence) for sequence in sequences], np.int64)
        offsets = np.concatenate([[0], np.cumsum(length_N)])
        rows = Sequences(pa.array(np.arange(len(length_N))), pa.array(item_V), offsets, np.searchsorted(item_V, np.concatenate(sequences)))
        return cut_units(rows, np.arange(len(length_N)), offsets[:-1], offsets[1:] - 1, length_N - 1)

    def renewed(self, sequences: Sequences, item_V: np.ndarray, rng: np.random.Generator) -> Exemplars:
        """Returns `KEEP` random pairs of the old ones and the period's."""
        session_E = np.repeat(np.arange(sequences.users), np.diff(sequences.offsets_U1))
        target_E = np.flatnonzero(np.arange(sequences.events) > sequences.offsets_U1[session_E])
        chosen = rng.permutation(len(self.item_N) + len(target_E))[:KEEP]
        old, new = chosen[chosen < len(self.item_N)], target_E[chosen[chosen >= len(self.item_N)] - len(self.item_N)]
        first_N = np.maximum(sequences.offsets_U1[session_E[new]], new - MAX_HISTORY)
        prefixes = [item_V[sequences.item_E[first:event]] for first, event in zip(first_N, new, strict=True)]
        items = [self.item_N[old], item_V[sequences.item_E[new]]]
        return Exemplars([*(self.prefixes[index] for index in old), *prefixes], np.concatenate(items))


def session_units(sequences: Sequences) -> Shard:
    """Returns a unit a session: every click but the first is a target, given at most `MAX_HISTORY` clicks before it."""
    first, stop = sequences.offsets_U1[:-1], sequences.offsets_U1[1:] - 1
    return cut_units(sequences, np.arange(sequences.users), np.maximum(first, stop - MAX_HISTORY), stop, np.ones(sequences.users, np.int64))


def joined(new: Shard, old: Shard) -> Shard:
    """Puts exemplars behind the period's units, and marks both in `row_N`."""
    new, old = (replace(shard, row_N=np.full(len(shard.row_N), mark)) for shard, mark in ((new, NEW), (old, OLD)))
    arrays = {name: np.concatenate([a, b]) for (name, a), b in zip(new.arrays().items(), old.arrays().values(), strict=True)}
    for name in ("token_offsets_U1", "target_offsets_U1"):
        a, b = getattr(new, name), getattr(old, name)
        arrays[name] = np.concatenate([a, b[1:] + a[-1]])
    return Shard(**arrays)


class SessionTask(RankingTask):
    """Sampled softmax over the period's clicks; exemplars by their label, or by the old model's scores.

    Negatives of a batch are shared: half are drawn as the period's clicks are, half uniformly from the catalogue, so that items
    which nobody clicks any more are still pushed down. Logits are corrected by the log probability of being drawn.
    """

    def __init__(self, ranker: Ranker, targets: np.ndarray, old_V: np.ndarray, kd: float, negatives: int, **settings: object) -> None:
        super().__init__(ranker, action_weights={}, **settings)  # type: ignore[arg-type]
        items = len(old_V)
        count_V = np.bincount(targets, minlength=items)
        self.clicked_N = torch.from_numpy(targets)
        self.log_q_V = torch.from_numpy(np.log(0.5 * count_V / count_V.sum() + 0.5 / items)).float()
        self.old_V, self.kd, self.negatives = torch.from_numpy(old_V), kd, negatives
        self.teacher = copy.deepcopy(ranker).eval().requires_grad_(False) if kd > 0 else None

    def losses(self, learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss of the labels and that of the old model; the draw of negatives is a function of the step, like dropout."""
        ranker, half = learner.ranker, self.negatives // 2
        drawn = self.clicked_N[torch.randint(len(self.clicked_N), (half,))]
        item_M = torch.cat([drawn, torch.randint(len(self.old_V), (half,))])
        target_N = batch.target_item_N - RESERVED_ROWS
        user_ND = ranker.user_vectors(batch)
        weight_N = torch.ones(len(target_N)) if self.teacher is None else (batch.row_N == NEW).float()
        loss = sampled_softmax(
            user_ND, vectors(ranker, target_N), vectors(ranker, item_M), target_N, item_M, self.log_q_V[target_N], self.log_q_V[item_M],
            weight_N,
        )  # fmt: skip
        if self.teacher is None:
            return loss, loss.new_zeros(())
        return loss, self.kd * self._distil(ranker, batch, user_ND, target_N, item_M)

    def _distil(self, ranker: Ranker, batch: Batch, user_ND: Tensor, target_N: Tensor, item_M: Tensor) -> Tensor:
        """Cross-entropy with the old model's distribution over the drawn items that it knew, on exemplars."""
        assert self.teacher is not None
        old_N, known_M = batch.row_N == OLD, item_M[self.old_V[item_M]].unique()
        if not old_N.any() or not len(known_M):
            return user_ND.sum() * 0.0
        candidates = torch.cat([known_M, target_N[old_N]]).unique()
        with torch.no_grad():
            teacher_NM = self.teacher.user_vectors(batch)[old_N] @ vectors(self.teacher, candidates).T
        student_NM = user_ND[old_N] @ vectors(ranker, candidates).T
        return F.cross_entropy(student_NM, teacher_NM.softmax(1))


def vectors(ranker: Ranker, item_M: Tensor) -> Tensor:
    """Returns [M, D]: vectors of items given by their place in the catalogue."""
    return ranker.item_vectors(item_M + RESERVED_ROWS, item_M.new_zeros(len(item_M), 0))


@dataclass
class State:
    """What an arm carries from one period to the next."""

    ranker: Ranker
    moments: dict[str, Tensor]
    item_V: np.ndarray


def begin(
    options: argparse.Namespace, arm: str, item_V: np.ndarray, count_V: np.ndarray, before: State | None
) -> tuple[Ranker, dict, np.ndarray]:
    """Returns the ranker a period starts with, its moments, and which items it knows already."""
    torch.manual_seed(options.seed)
    ranker = models.build(shape_of(_model(options, arm), len(item_V)))
    if before is None:
        return ranker, {}, np.zeros(len(item_V), bool)
    source = Side.of(before.ranker, {"item": _vocabulary(before.item_V, np.ones(len(before.item_V)))})
    target = Side.of(ranker, {"item": _vocabulary(item_V, count_V)})
    transfer = plan(source, target)
    ranker.load_state_dict(apply(transfer, source, target, before.ranker.state_dict(), ranker.state_dict()))
    return ranker, carry_moments(transfer, source, target, before.moments), np.isin(item_V, before.item_V)


def _vocabulary(item_V: np.ndarray, count_V: np.ndarray) -> Vocabulary:
    days = pa.array(["2016-01-01"] * len(item_V))
    return Vocabulary("item", pa.array(item_V), count_V.astype(np.int64), days, days)


def _model(options: argparse.Namespace, arm: str) -> ModelConfig:
    dropout = 0.0 if arm == "finetune" else options.dropout
    return ModelConfig(
        name="sasrec", dim=options.dim, layers=2, heads=1, head_dim=options.dim, ffn_dim=2 * options.dim, dropout=dropout,
        max_history=MAX_HISTORY,
    )  # fmt: skip


@dataclass(frozen=True)
class Learned:
    """What one period cost."""

    ranker: Ranker
    moments: dict[str, Tensor]
    seconds: float
    targets: int
    flops: int


def learn(
    options: argparse.Namespace,
    start: tuple[Ranker, dict, np.ndarray],
    units: Shard,
    fresh: np.ndarray,
    kd: float,
    passes: int,
    folder: Path,
    period: int,
) -> Learned:
    """Trains on the units of one period with the loop of the main job."""
    ranker, moments, known_V = start
    key, store = ShardKey(f"period-{period:02d}", 0), ShardStore(folder)
    store.write(key, units)
    steps = plan_batches(
        [key], store.lengths, batch_targets=options.batch, batch_tokens=8 * options.batch, passes=passes, seed=options.seed
    )
    task = SessionTask(
        ranker, fresh, known_V, kd, options.negatives,
        optimizer=OptimizerConfig(lr=options.lr, embedding_lr=options.table_lr, weight_decay=0.0),
        schedule=schedule_of(ScheduleConfig(warm_factor=options.warm_factor), steps.steps, bool(moments)), ema_decay=0.0, seed=options.seed,
        max_skipped_steps=0, initial_moments=moments,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, limit_val_batches=0, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[CursorAndCheckpoint(folder, 10**9)], logger=False, default_root_dir=folder,
    )  # fmt: skip
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    begun = time.perf_counter()
    trainer.fit(task, datamodule=BatchModule(store, steps))
    seconds = time.perf_counter() - begun
    return Learned(
        ranker.eval(), task.optimizers_of[0].named_state(), seconds, passes * len(units.row_N), passes * _flops(options, ranker, units, kd)
    )


def _flops(options: argparse.Namespace, ranker: Ranker, units: Shard, kd: float) -> int:
    """Counts one pass: the trunk, and the scores of the negatives; the old model's forward pass where it teaches."""
    batch = take(units, np.arange(units.units))
    forward = forward_flops(ranker, batch) + 2 * batch.targets * options.negatives * options.dim
    return forward * (4 if kd > 0 else 3)


def judge(options: argparse.Namespace, ranker: Ranker, units: Shard) -> dict[str, float]:
    """Returns Recall@20 and MRR@20 over the targets of some sessions, the same ones for every arm; ties count against the target."""
    rng = np.random.default_rng(0)
    tokens_U, targets_U = np.diff(units.token_offsets_U1), np.diff(units.target_offsets_U1)
    asked_U = rng.permutation(units.units)
    asked_U = asked_U[: int(np.searchsorted(np.cumsum(targets_U[asked_U]), options.questions)) + 1]
    ranks = []
    with torch.inference_mode():
        item_DV = catalogue(ranker).T
        for units_B in cut(tokens_U[asked_U], targets_U[asked_U], 512, 8192, rng):
            batch, nothing = take(units, asked_U[units_B]), np.zeros(0, np.int64)
            score_BV = ranker.user_vectors(batch) @ item_DV
            ranks.append(pessimistic_rank(score_BV, batch.target_item_N.numpy() - RESERVED_ROWS, nothing, nothing))
    rank_N = np.concatenate(ranks)
    return {
        "recall": float((rank_N < TOP_K).mean()), "mrr": float(np.where(rank_N < TOP_K, 1 / (rank_N + 1.0), 0).mean()), "n": len(rank_N)
    }  # fmt: skip


def run_arm(options: argparse.Namespace, arm: str, log: Log, done: dict[tuple[str, int], dict], results: Path) -> None:
    """Goes through the periods with one arm."""
    state, exemplars = None, Exemplars([], np.zeros(0, np.int64))
    rng = np.random.default_rng(options.seed)
    cold = arm in ("joint", "scratch")
    for period in range(options.periods):
        if ((arm, period) in done and cold) or (cold and arm == "joint" and (period + 1) % options.joint_every):
            continue
        item_V = log.items(period)
        sequences = log.sequences(0 if arm == "joint" else period, period, item_V)
        units, kd = session_units(sequences), 0.0
        fresh = units.target_item_N - RESERVED_ROWS
        if len(exemplars.item_N) and arm.startswith("replay"):
            if arm == "replay_kd" and state is not None:
                kd = KD_WEIGHT * math.sqrt(len(state.item_V) / len(item_V) * len(exemplars.item_N) / len(fresh))
            units = joined(units, exemplars.unit(item_V))
        file = options.out / "states" / arm / f"{period:02d}.pt"
        start = begin(options, arm, item_V, np.bincount(fresh, minlength=len(item_V)), None if cold else state)
        if (arm, period) in done and file.exists():
            kept = torch.load(file, weights_only=True)
            start[0].load_state_dict(kept["weights"])
            state = State(start[0].eval(), kept["moments"], item_V)
        else:
            passes = options.joint_passes if arm == "joint" or period == 0 else options.passes
            learned = learn(options, start, units, fresh, kd, passes, options.out / "shards" / arm, period)
            state = State(learned.ranker, learned.moments, item_V)
            if not cold:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save({"weights": learned.ranker.state_dict(), "moments": learned.moments}, file)
            metrics = judge(options, learned.ranker, session_units(log.sequences(period + 1, period + 1, item_V)))
            line = {
                "arm": arm, "period": period, **metrics, "seconds": round(learned.seconds, 1), "targets": learned.targets,
                "flops": learned.flops, "items": len(item_V), "kd": kd,
            }  # fmt: skip
            with results.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            print(
                f"{arm:10s} period {period:2d}  recall@20 {metrics['recall']:.4f}  mrr@20 {metrics['mrr']:.4f}  {learned.seconds:6.1f} s",
                flush=True,
            )
        if arm.startswith("replay"):
            exemplars = exemplars.renewed(sequences, item_V, rng)


def show(lines: list[dict]) -> None:
    """Prints means over the periods that every arm has; where joint has fewer, over the others' periods as well."""
    by_arm: dict[str, dict[int, dict]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], {})[line["period"]] = line
    sets = {arm: frozenset(periods) for arm, periods in by_arm.items()}
    shared = [frozenset.intersection(*sets.values()), frozenset.intersection(*(kept for arm, kept in sets.items() if arm != "joint"))]
    for periods in filter(None, dict.fromkeys(shared)):
        show_periods({arm: found for arm, found in by_arm.items() if periods <= sets[arm]}, sorted(periods))


def show_periods(by_arm: dict[str, dict[int, dict]], periods: list[int]) -> None:
    """Prints one table: means over some periods, compute against joint, and the share of the gap to joint that is closed."""
    mean = {arm: {k: float(np.mean([found[i][k] for i in periods])) for k in ("recall", "mrr", "seconds")} for arm, found in by_arm.items()}
    later = [period for period in periods if period > 0]  # every arm learns period 0 from nothing
    flops = {arm: sum(found[i]["flops"] for i in later) for arm, found in by_arm.items()}
    questions = sum(next(iter(by_arm.values()))[i]["n"] for i in periods)
    print(f"\nlearned up to period {', '.join(map(str, periods))}; {questions:,} questions an arm; {hardware('cpu')}")
    print(f"{'arm':10s} {'recall@20':>10s} {'mrr@20':>8s} {'published':>10s} {'gap closed':>11s} {'FLOPs of joint':>15s} {'seconds':>8s}")
    for arm, values in mean.items():
        gap = closed(mean, arm)
        share = f"{flops[arm] / flops['joint']:.1%}" if flops.get("joint") else "-"
        print(
            f"{arm:10s} {values['recall']:10.2%} {values['mrr']:8.2%} {PUBLISHED.get(arm, float('nan')):10.2f} "
            f"{'-' if gap is None else format(gap, '.0%'):>11s} {share:>15s} {values['seconds']:8.1f}"
        )


def closed(mean: dict[str, dict[str, float]], arm: str) -> float | None:
    """Returns the share of the gap from finetune to joint that an arm closes."""
    if not {"finetune", "joint"} <= set(mean):
        return None
    floor, ceiling = mean["finetune"]["recall"], mean["joint"]["recall"]
    return (mean[arm]["recall"] - floor) / (ceiling - floor) if ceiling > floor else None


def main() -> None:
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    log = Log.read(options.data / "interactions.parquet")
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["arm"], line["period"]): line for line in lines}
    for arm in options.arms.split(","):
        if arm not in ARMS:
            raise SystemExit(f"unknown arm {arm!r}; known: {', '.join(ARMS)}")
        run_arm(options, arm, log, done, results)
    show([json.loads(line) for line in results.read_text().splitlines()])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of interactions.parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default="finetune,dropout,replay,replay_kd,joint")
    parser.add_argument("--periods", type=int, default=16)
    parser.add_argument("--joint-every", type=int, default=1, help="train joint only in every so many periods")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--joint-passes", type=int, default=8, help="passes of joint, and of every arm's first period")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--table-lr", type=float, default=3e-2, help="of item rows: a rare item is touched a few times only")
    parser.add_argument("--warm-factor", type=float, default=0.3, help="factor on both rates of a warm start")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--questions", type=int, default=12_000, help="judged clicks a period")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
