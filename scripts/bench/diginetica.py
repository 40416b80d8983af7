"""Weekly retraining on DIGINETICA, in the protocol of ADER (Mi, Lin & Faltings, RecSys 2020): what a warm start is worth.

    python scripts/bench/diginetica.py --data DIR --out DIR                                  # all arms, all 16 periods
    python scripts/bench/diginetica.py --data DIR --out DIR --arms finetune,replay --periods 4 --passes 2

Period p is learned from the model of period p - 1 (`joint`: from nothing, on all periods up to p), then judged on period p + 1:
every click of a session but the first is to be found among the 20 best of all items seen so far. Items that no period up to p
had are taken out of the judged sessions. The vocabulary grows every period; weights and moments move by item id
(`trainer.warm_start`). One JSON line an (arm, period) goes to ``OUT/results.jsonl``, the rank of every judged click to
``OUT/ranks``; a stopped run goes on from there.

    finetune   the period's sessions only              replay     and random whole sessions of earlier periods, drawn anew each period
    dropout    finetune with dropout                   replay_kd  which the old model's scores teach as well
    joint      from scratch on all periods so far      scratch    from scratch on the period only
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
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
from models.flops import forward_flops
from models.ranker import Ranker
from models.softmax import sampled_softmax
from trainer.config import ModelConfig, OptimizerConfig, ScheduleConfig
from trainer.data import BatchModule, Shard, ShardStore, plan_batches, take
from trainer.data.plan import cut
from trainer.data.shards import ShardKey
from trainer.fit.learner import Learner
from trainer.fit.run import CursorAndCheckpoint
from trainer.fit.schedule import schedule_of
from trainer.fit.task import RankingTask
from trainer.next_item.judge import catalogue
from trainer.next_item.run import hardware
from trainer.next_item.sequences import Sequences
from trainer.next_item.train import shape_of
from trainer.next_item.units import cut_units
from trainer.schema.vocabulary import RESERVED_ROWS, Vocabulary
from trainer.warm_start import Side, apply, carry_moments, plan

TOP_K, MAX_HISTORY = 20, 50
ARMS = ("finetune", "dropout", "replay", "replay_kd", "joint", "scratch")
PUBLISHED = {"finetune": 47.28, "dropout": 49.07, "replay": 49.14, "replay_kd": 50.21, "joint": 50.03}
NEW, OLD = 0, 1  # Shard.row_N marks whether a target is the period's or replayed


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


def session_units(sequences: Sequences, chosen_U: np.ndarray | None = None) -> Shard:
    """Returns a unit a session: every click but the first is a target, given at most `MAX_HISTORY` clicks before it.

    A session's targets share one pass through the trunk; as (prefix, item) pairs they would cost several times as much.
    """
    chosen_U = np.arange(sequences.users) if chosen_U is None else chosen_U
    first, stop = sequences.offsets_U1[:-1][chosen_U], sequences.offsets_U1[1:][chosen_U] - 1
    return cut_units(sequences, chosen_U, np.maximum(first, stop - MAX_HISTORY), stop, np.ones(len(chosen_U), np.int64))


def drawn(sequences: Sequences, targets: int, rng: np.random.Generator) -> np.ndarray:
    """Draws random sessions until they hold so many targets; all of them where there are fewer."""
    order_U = rng.permutation(sequences.users)
    held = np.cumsum(np.diff(sequences.offsets_U1)[order_U] - 1)
    return np.sort(order_U[: int(np.searchsorted(held, targets)) + 1])


class SessionTask(RankingTask):
    """Sampled softmax over clicks; under distillation, replayed ones are taught by the old model's scores as well.

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
        loss = sampled_softmax(
            user_ND, vectors(ranker, target_N), vectors(ranker, item_M), target_N, item_M, self.log_q_V[target_N], self.log_q_V[item_M],
        )  # fmt: skip
        replayed_N = batch.row_N == OLD
        if self.teacher is None or not replayed_N.any():
            return loss, loss.new_zeros(())
        with torch.no_grad():
            teacher_ND = self.teacher.user_vectors(batch)[replayed_N]
        return loss, self.kd * self._distil(ranker, user_ND[replayed_N], teacher_ND, torch.cat([target_N, item_M]))

    def _distil(self, ranker: Ranker, user_ND: Tensor, teacher_ND: Tensor, candidate_M: Tensor) -> Tensor:
        """Cross-entropy with the old model's distribution over the targets and the drawn items that it knew."""
        assert self.teacher is not None
        candidate_M = candidate_M[self.old_V[candidate_M]].unique()
        with torch.no_grad():
            teacher_NM = (teacher_ND @ vectors(self.teacher, candidate_M).T).softmax(1)
        return F.cross_entropy(user_ND @ vectors(ranker, candidate_M).T, teacher_NM)


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
    known_V = np.isin(item_V, before.item_V)
    if options.moments == "reset":
        return ranker, {}, known_V
    return ranker, carry_moments(transfer, source, target, before.moments, new_rows=options.moments), known_V


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
    """What one period left behind: the trunk, from which the next one starts, and what is served; and what it cost."""

    ranker: Ranker
    served: Ranker
    moments: dict[str, Tensor]
    seconds: float
    targets: int
    flops: int


def learn(
    options: argparse.Namespace,
    start: tuple[Ranker, dict, np.ndarray],
    new: Shard,
    old: Shard | None,
    share: float,
    kd: float,
    passes: int,
    folder: Path,
    period: int,
) -> Learned:
    """Trains on the units of one period, and on replayed ones among them, with the loop of the main job."""
    ranker, moments, known_V = start
    keys, store = [ShardKey(f"{kind}-{period:02d}", 0) for kind in ("new", "old")], ShardStore(folder)
    units = [replace(shard, row_N=np.full(len(shard.row_N), mark)) for mark, shard in ((NEW, new), (OLD, old)) if shard is not None]
    for key, shard in zip(keys[: len(units)], units, strict=True):
        store.write(key, shard)
    steps = plan_batches(
        keys[:1], store.lengths, batch_targets=options.batch, batch_tokens=8 * options.batch, passes=passes, seed=options.seed,
        replay=keys[1 : len(units)], replay_share=share,
        replay_beside=not options.replay_apart,
    )  # fmt: skip
    task = SessionTask(
        ranker, np.concatenate([shard.target_item_N for shard in units]) - RESERVED_ROWS, known_V, kd, options.negatives,
        optimizer=OptimizerConfig(lr=options.lr, tables=options.tables, embedding_lr=options.table_lr, weight_decay=0.0),
        schedule=schedule_of(ScheduleConfig(warm_factor=options.warm_factor), steps.steps, bool(known_V.any())), ema_decay=options.ema,
        seed=options.seed, max_skipped_steps=0, initial_moments=moments,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, limit_val_batches=0, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[CursorAndCheckpoint(folder, 10**9)], logger=False, default_root_dir=folder,
    )  # fmt: skip
    begun = time.process_time()
    trainer.fit(task, datamodule=BatchModule(store, steps))
    seconds = time.process_time() - begun
    planned = [part for batch in steps.batches for part in batch.parts]
    taken = [[part.units_B for part in planned if part.new == (kind == NEW)] for kind in (NEW, OLD)[: len(units)]]
    used = [take(shard, np.concatenate(parts)) for shard, parts in zip(units, taken, strict=True) if parts]
    costs = [forward_flops(ranker, batch) + 2 * batch.targets * options.negatives * options.dim for batch in used]
    flops = (4 if kd > 0 else 3) * sum(costs)  # with the old model's forward pass where it teaches
    return Learned(ranker.eval(), task.served.eval(), task.optimizers_of[0].named_state(), seconds, sum(b.targets for b in used), flops)


def judge(options: argparse.Namespace, ranker: Ranker, units: Shard) -> np.ndarray:
    """Returns int64 [3, N]: session, rank and item of the judged clicks, those of some sessions, the same ones for every arm."""
    rng = np.random.default_rng(0)
    tokens_U, targets_U = np.diff(units.token_offsets_U1), np.diff(units.target_offsets_U1)
    asked_U = rng.permutation(units.units)
    asked_U = asked_U[: int(np.searchsorted(np.cumsum(targets_U[asked_U]), options.questions)) + 1]
    sessions, ranks, items = [], [], []
    with torch.inference_mode():
        item_DV = catalogue(ranker).T.contiguous()
        for units_B in cut(tokens_U[asked_U], targets_U[asked_U], 512, 8192, rng):
            batch = take(units, asked_U[units_B])
            score_BV = ranker.user_vectors(batch) @ item_DV
            sessions.append(batch.row_N)
            items.append(batch.target_item_N - RESERVED_ROWS)
            own_B1 = score_BV.gather(1, items[-1][:, None])
            ranks.append((~(score_BV < own_B1)).sum(1) - 1)  # a tie or a NaN counts against the target
    return torch.stack([torch.cat(sessions), torch.cat(ranks), torch.cat(items)]).numpy()


def measured(rank_N: np.ndarray, absent_N: np.ndarray) -> dict[str, float]:
    """Returns Recall@20 and MRR@20 of ranks from 0, and the recall of items that the learned period had no click of: what is forgotten."""
    hit_N = rank_N < TOP_K
    absent = float(hit_N[absent_N].mean()) if absent_N.any() else float("nan")
    return {"recall": float(hit_N.mean()), "mrr": float((hit_N / (rank_N + 1.0)).mean()), "absent": absent, "n": len(rank_N)}


def mix(options: argparse.Namespace, new: int, history: int) -> tuple[int, float]:
    """Returns passes over the period's own targets, and the share of replayed ones among all.

    As set without a budget. A budget is spent and kept, up to whole batches: as many passes, up to `passes`, as leave `replay_share` of
    it to replay, which takes what is left. A single pass is made in any case, with nothing replayed where it costs more. With a `floor`,
    passes and share are never less than set: the first periods, in which joint itself is cheap, may then cost more than the budget.

    Args:
        options: `passes`, `replay_share`, `floor`, and `budget`: a share of what joint costs in this period.
        new: Targets of the period.
        history: Targets of all periods so far.
    """
    if not options.budget:
        return options.passes, options.replay_share
    affordable = options.budget * options.joint_passes * history
    if options.floor:
        return options.passes, max(options.replay_share, 1 - options.passes * new / affordable)
    passes = max(min(options.passes, int((1 - options.replay_share) * affordable / new)), 1)
    return passes, max(1 - passes * new / affordable, 0.0)


def run_arm(options: argparse.Namespace, arm: str, log: Log, done: dict[tuple[str, int], dict], results: Path) -> None:
    """Goes through the periods with one arm."""
    state, cold = None, arm in ("joint", "scratch")
    for period in range(options.periods):
        if cold and ((arm, period) in done or (arm == "joint" and (period + 1) % options.joint_every)):
            continue
        item_V = log.items(period)
        new = session_units(log.sequences(0 if arm == "joint" else period, period, item_V))
        counts_V = np.bincount(new.target_item_N - RESERVED_ROWS, minlength=len(item_V))
        start = begin(options, arm, item_V, counts_V, None if cold else state)
        file = options.out / "states" / arm / f"{period:02d}.pt"
        if (arm, period) in done:
            kept = torch.load(file, weights_only=True)
            start[0].load_state_dict(kept["weights"])
            state = State(start[0].eval(), kept["moments"], item_V)
            continue
        passes = options.joint_passes if arm == "joint" or period == 0 else options.passes
        old, share = None, 0.0
        if arm.startswith("replay") and state is not None:
            sequences, rng = log.sequences(0, period - 1, item_V), np.random.default_rng([options.seed, period])
            targets = len(new.target_item_N)
            passes, share = mix(options, targets, targets + len(sequences.item_E) - sequences.users)
            old = session_units(sequences, drawn(sequences, round(passes * targets * share / (1 - share)), rng)) if share > 0 else None
        learned = learn(options, start, new, old, share, options.kd * (arm == "replay_kd"), passes, options.out / "shards" / arm, period)
        state = State(learned.ranker, learned.moments, item_V)
        if not cold:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"weights": learned.ranker.state_dict(), "moments": learned.moments}, file)
        report(options, arm, period, learned, log, item_V, results)


def report(options: argparse.Namespace, arm: str, period: int, learned: Learned, log: Log, item_V: np.ndarray, results: Path) -> None:
    """Judges a period's model on the next period, and notes what it cost."""
    judged = judge(options, learned.served, session_units(log.sequences(period + 1, period + 1, item_V)))
    (results.parent / "ranks").mkdir(exist_ok=True)
    np.save(_ranks(results, arm, period), judged)
    metrics = measured(judged[1], ~np.isin(item_V[judged[2]], log.item_E[log.period_E == period]))
    line = {
        "arm": arm, "period": period, **metrics, "seconds": round(learned.seconds, 1), "targets": learned.targets,
        "flops": learned.flops, "items": len(item_V),
    }  # fmt: skip
    with results.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(
        f"{arm:10s} period {period:2d}  recall@20 {metrics['recall']:.4f}  mrr@20 {metrics['mrr']:.4f}  absent {metrics['absent']:.4f}  "
        f"{learned.seconds:6.1f} s  {learned.targets / learned.seconds:,.0f} targets/s", flush=True,
    )  # fmt: skip


def _ranks(results: Path, arm: str, period: int) -> Path:
    return results.parent / "ranks" / f"{arm}-{period:02d}.npy"


def show(lines: list[dict], results: Path) -> None:
    """Prints means over the periods that every arm has; where joint has fewer, over the others' periods as well."""
    by_arm: dict[str, dict[int, dict]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], {})[line["period"]] = line
    sets = {arm: frozenset(periods) for arm, periods in by_arm.items()}
    shared = [frozenset.intersection(*sets.values()), frozenset.intersection(*(kept for arm, kept in sets.items() if arm != "joint"))]
    for periods in filter(None, dict.fromkeys(shared)):
        show_periods({arm: found for arm, found in by_arm.items() if periods <= sets[arm]}, sorted(periods), results)


def show_periods(by_arm: dict[str, dict[int, dict]], periods: list[int], results: Path) -> None:
    """Prints one table: means over some periods, compute against joint, and the share of the gap to joint that is closed."""
    mean = {
        arm: {k: float(np.nanmean([found[i][k] for i in periods])) for k in ("recall", "mrr", "absent", "seconds")}
        for arm, found in by_arm.items()
    }
    later = [period for period in periods if period > 0]  # every arm learns period 0 from nothing
    flops = {arm: sum(found[i]["flops"] for i in later) for arm, found in by_arm.items()}
    questions = sum(next(iter(by_arm.values()))[i]["n"] for i in periods)
    print(f"\nlearned up to period {', '.join(map(str, periods))}; {questions:,} questions an arm; {hardware('cpu')}")
    print(
        f"{'arm':10s} {'recall@20':>10s} {'mrr@20':>8s} {'absent':>8s} {'published':>10s} {'of the gap from finetune':>25s} "
        f"{'from dropout':>17s} {'FLOPs of joint':>15s} {'most in a period':>17s} {'seconds':>8s}"
    )
    for arm, values in mean.items():
        gaps = [closed(results, arm, floor, periods) if {floor, "joint"} <= set(by_arm) else "-" for floor in ("finetune", "dropout")]
        share = f"{flops[arm] / flops['joint']:.1%}" if flops.get("joint") else "-"
        most = f"{max(by_arm[arm][i]['flops'] / by_arm['joint'][i]['flops'] for i in later):.1%}" if flops.get("joint") else "-"
        print(
            f"{arm:10s} {values['recall']:10.2%} {values['mrr']:8.2%} {values['absent']:8.2%} {PUBLISHED.get(arm, float('nan')):10.2f} "
            f"{gaps[0]:>25s} {gaps[1]:>17s} {share:>15s} {most:>17s} {values['seconds']:8.1f}"
        )


def closed(results: Path, arm: str, floor: str, periods: list[int]) -> str:
    """Returns the share of the gap in recall from `floor` to joint that an arm closes, with its standard error.

    A ratio of two means over the same clicks; sessions are drawn as a whole (linearised, clustered by session).
    """
    influence, above, gap = [], 0.0, 0.0
    for period in periods:
        judged = [np.load(_ranks(results, name, period)) for name in (arm, floor, "joint")]
        hit_N, low_N, high_N = ((ranks[1] < TOP_K) / ranks.shape[1] for ranks in judged)
        influence.append((judged[0][0], hit_N - low_N, high_N - low_N))
        above, gap = above + (hit_N - low_N).sum(), gap + (high_N - low_N).sum()
    share = above / gap
    parts = [np.bincount(session_N, more_N - share * most_N) for session_N, more_N, most_N in influence]
    return f"{share:.0%} +- {np.sqrt(sum((part**2).sum() for part in parts)) / abs(gap):.0%}"


def main() -> None:
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    results = options.out / "results.jsonl"
    log = Log.read(options.data / "interactions.parquet")
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["arm"], line["period"]): line for line in lines}
    for arm in options.arms.split(","):
        if arm not in ARMS:
            raise SystemExit(f"unknown arm {arm!r}; known: {', '.join(ARMS)}")
        run_arm(options, arm, log, done, results)
    show([json.loads(line) for line in results.read_text().splitlines()], results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of interactions.parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default="finetune,dropout,replay,replay_kd,joint")
    parser.add_argument("--periods", type=int, default=16)
    parser.add_argument("--joint-every", type=int, default=1, help="train joint only in every so many periods")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--joint-passes", type=int, default=5, help="passes of joint, and of every arm's first period")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--table-lr", type=float, default=0.25, help="of item rows: a rare item is touched a few times only")
    parser.add_argument("--tables", default="rowwise_adagrad", help="optimizer of item rows: adamw or rowwise_adagrad")
    parser.add_argument("--warm-factor", type=float, default=1.0, help="factor on both rates of a warm start")
    parser.add_argument(
        "--moments", default="none", choices=("as_met", "none", "reset"),
        help="carried optimizer state, and what new items start with (`warm_start.new_rows`); reset carries nothing",
    )  # fmt: skip
    parser.add_argument("--ema", type=float, default=0.99, help="decay of the served average of the weights; 0 serves the trunk")
    parser.add_argument("--replay-share", type=float, default=0.5, help="share of replayed targets in the arms that replay")
    parser.add_argument("--budget", type=float, default=0.0, help="spend this share of what joint costs on a period; 0: as set")
    parser.add_argument("--floor", action="store_true", help="passes and replay share are never less than set, whatever the budget")
    parser.add_argument("--replay-apart", action="store_true", help="replayed targets in batches of their own, not beside new ones")
    parser.add_argument("--kd", type=float, default=0.5, help="weight of the old model's scores on replayed targets")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--questions", type=int, default=12_000, help="judged clicks a period")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
