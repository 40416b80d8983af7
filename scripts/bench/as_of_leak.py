"""What the embeddings of past days are worth to the final model, and what it costs when they leak.

    python scripts/bench/as_of_leak.py --out DIR                                          # simulated log, 29 days, the last 7 judged
    python scripts/bench/as_of_leak.py --out DIR --log kuairand --data DIR --skip 1 --judged 8 --block 2

The ranker passes once over the log and keeps its weights at the end of every day, so every day but the first has features that are
as of that day: weights and histories from before each of its rows. The final model (LightGBM) is trained on the days before a block
of judged days and judged on the block; blocks are pooled. All arms are judged on the same rows with the same features: as of each
day, as production would have had them. They differ in what the final model was trained on:

without   the features only
as of     and the features that its training days had then
leaked    and features of its training days by weights that had seen these very days, which is what an export of the whole history
          with today's model gives

Each arm with features also comes with the scores alone (dot product and score an action, no vectors). All of it twice: on the team's
``own`` features, which are the columns of the log and its side tables, and on ``all``, with the counters as well that the rebuild made
for the ranker. Intervals are paired, 95 per cent, clustered by user; below 0 is better for NE. A stopped run goes on with the same
command: days that were scored and final models that were trained are kept below ``--out`` under what they depend on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pyarrow as pa
from composed import configured, log_arguments, log_settings, parsed

from trainer import stages
from trainer.align import Alignment
from trainer.checkpoint import Bundle
from trainer.config import DownstreamConfig, RetrainConfig
from trainer.downstream import later_scores
from trainer.downstream.table import ripe
from trainer.evaluate import RankerScorer
from trainer.export.as_of import AsOfRecord, DayScores, PastDay, choose, read_as_of, read_records, write_as_of
from trainer.job import Job
from trainer.metrics import Estimate, Rows, arrange, auc, interval, normalised_loss
from trainer.next_item.run import hardware
from trainer.schema.bundle import SERVING, seen_until
from trainer.schema.embeddings import PAIR_DOT, PAIR_SCORE
from trainer.schema.examples import FEATURE, ExamplesManifest
from trainer.schema.ids import hash_ids
from trainer.stages.history import score_day, vectors_of_day

WITHOUT, AS_OF_ARM, LEAKED = "without", "as of", "leaked"


@dataclass(frozen=True)
class Days:
    """Features of some past days, and a record of each: what they are and the hash of their file."""

    table: pa.Table
    records: list[AsOfRecord]


@dataclass(frozen=True)
class Ranker:
    """The trained ranker and its examples.

    Attributes:
        weights: (newest day that they have seen, file) of all of its weights.
        folder: Where days are kept once they are scored.
        today: Day -> vectors of its rows by the last weights: the space that all days are brought to.
    """

    job: Job
    examples: ExamplesManifest
    bundle: Bundle
    weights: list[tuple[str, str]]
    folder: Path
    today: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def days(self) -> list[str]:
        """Days of the log that have features as of them: all but the first."""
        return sorted(self.examples.source_days)[1:]

    def as_of(self, days: Sequence[str]) -> Days:
        """Returns the features that days had then."""
        return self._scored(choose(days, self.weights, in_sample=False))

    def leaked(self, days: Sequence[str]) -> Days:
        """Returns features of days by weights that have seen all of them and nothing later."""
        file = dict(self.weights)[max(days)]
        return self._scored([PastDay(day, file, max(days), True) for day in days])

    def _scored(self, chosen: Sequence[PastDay]) -> Days:
        tables, records = [], []
        for past in chosen:
            folder = self.folder / f"{past.day}-seen-{past.seen_until}"
            made_by = f"{self.bundle.sha256}/{past.producer}"
            if [record.producer for record in read_records(folder)] != [made_by]:
                begun = time.process_time()
                folder.mkdir(parents=True, exist_ok=True)
                write_as_of(folder, iter([(PastDay(past.day, made_by, past.seen_until, past.in_sample), self._day(past))]))
                print(f"scored {past.day} by weights until {past.seen_until}: {time.process_time() - begun:.0f} s of CPU", flush=True)
            table = read_as_of(folder)
            assert table is not None
            tables.append(table)
            records += read_records(folder)
        return Days(pa.concat_tables(tables, promote_options="default"), records)

    def _day(self, past: PastDay) -> DayScores:
        if past.day not in self.today:
            still = Alignment.identity(self.bundle.shape.dim)
            now = RankerScorer(self.bundle)
            self.today[past.day] = vectors_of_day(self.job, self.examples, past.day, now, [still, still])
        return score_day(self.job, self.examples, past.day, RankerScorer(self.bundle, past.producer), self.today[past.day])


def trained(options: argparse.Namespace) -> Ranker:
    """Trains the ranker by the stages of the main job, or takes what an earlier run left."""
    settings = [*log_settings(options), f"registry.root={options.out}/registry", "fit.day_weights=true", *options.overrides]
    job = Job.open(configured(RetrainConfig, "retrain", *settings))
    health = stages.scan(job)
    days = stages.plan(job, health)
    examples = stages.rebuild(job, health, days)
    bundle = stages.train(job, examples, days).bundle
    weights = [(until, name) for name, until in seen_until(bundle.manifest).items() if name != SERVING]
    return Ranker(job, examples, bundle, weights, options.out / "days")


@dataclass(frozen=True)
class Block:
    """Judged days that share final models: the days that these are trained on, honest and leaked, and the days that judge."""

    earlier: Days
    leaked: Days
    judged: Days


def blocks(ranker: Ranker, options: argparse.Namespace) -> Iterator[Block]:
    """Yields the judged days of a run, block by block."""
    days = ranker.days[options.skip - 1 :]
    for start in range(len(days) - options.judged, len(days), options.block):
        before, block = days[:start], days[start : start + options.block]
        yield Block(ranker.as_of(before), ranker.leaked(before), ranker.as_of(block))


@dataclass(frozen=True)
class FinalModel:
    """What all arms have in common: the action, the library and size of the final model, and where its scores are kept."""

    action: str
    config: DownstreamConfig
    seed: int
    folder: Path

    def scores(self, train: Days, judged: Days, columns: Sequence[str]) -> np.ndarray:
        """Returns a score a ripe row of the judged days, by a final model of earlier days or from an earlier run that had the same."""
        inputs = [[record.sha256 for record in days.records] for days in (train, judged)]
        identity = json.dumps([inputs, list(columns), self.action, asdict(self.config), self.seed])
        path = self.folder / f"{sha256(identity.encode()).hexdigest()[:16]}.npy"
        if path.is_file():
            return np.load(path)
        rows = ripe(judged.table, self.action)
        score_N = later_scores(train.table, rows, self.action, columns, self.config, self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".part.npy"), score_N)
        path.with_suffix(".part.npy").rename(path)
        return score_N


def scored(found: Sequence[Block], features: list[str], model: FinalModel) -> dict[str, np.ndarray]:
    """Returns arm -> scores of all judged rows, float64 [N]."""
    names = found[0].judged.table.column_names
    scalars = [name for name in names if name == PAIR_DOT or name.startswith(PAIR_SCORE)]
    columns = {"": [*features, *scalars, "user_vector", "item_vector"], ", scores only": [*features, *scalars]}
    arms: dict[str, list[np.ndarray]] = {}
    for block in found:
        trained_on = {WITHOUT: (block.earlier, features)}
        for suffix, used in columns.items():
            trained_on |= {AS_OF_ARM + suffix: (block.earlier, used), LEAKED + suffix: (block.leaked, used)}
        for name, (days, used) in trained_on.items():
            arms.setdefault(name, []).append(model.scores(days, block.judged, used))
    return {name: np.concatenate(parts) for name, parts in arms.items()}


def feature_sets(ranker: Ranker, table: pa.Table) -> dict[str, list[str]]:
    """Returns the features of the final model: the team's own ones, and all."""
    spec = ranker.job.config.data
    declared = {*spec.features, *(name for side in spec.side_tables.values() for name in side.columns)}
    everything = [name for name in table.column_names if name.startswith(FEATURE)]
    return {"own": [name for name in everything if name.removeprefix(FEATURE) in declared], "all": everything}


def measured(label_N: np.ndarray, scores: dict[str, np.ndarray], rows: Rows) -> dict[str, dict[str, Estimate]]:
    """Returns arm -> metric -> estimate."""
    return {
        name: {"NE": normalised_loss("binary", score_N, label_N, rows), "AUC": auc(score_N, label_N, rows)}
        for name, score_N in scores.items()
    }


def told(found: dict[str, dict[str, Estimate]], rows: Rows) -> list[str]:
    """Returns the lines of a table: every arm against none, and the leaked ones against their honest twins."""
    lines = ["| arm | NE | AUC | NE against without | AUC against without |", "|---|---|---|---|---|"]
    for name, metrics in found.items():
        cells = ["", ""] if name == WITHOUT else [_difference(metrics[m], found[WITHOUT][m], rows) for m in ("NE", "AUC")]
        lines.append(f"| {name} | {metrics['NE'].value_G[0]:.4f} | {metrics['AUC'].value_G[0]:.4f} | {cells[0]} | {cells[1]} |")
    for name in found:
        if name.startswith(LEAKED):
            twin = found[name.replace(LEAKED, AS_OF_ARM)]
            lines.append(f"{name} against as of: NE {_difference(found[name]['NE'], twin['NE'], rows)}")
    return lines


def _difference(ours: Estimate, theirs: Estimate, rows: Rows) -> str:
    difference = ours.minus(theirs)
    low, high = (float(end[0]) for end in interval(difference, rows))
    return f"{difference.value_G[0]:+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    options = _arguments()
    ranker = trained(options)
    found = list(blocks(ranker, options))
    config = ranker.job.config
    for action in options.actions or [next(iter(config.data.gated_actions))]:
        judged = pa.concat_tables([ripe(block.judged.table, action) for block in found], promote_options="default")
        rows = arrange(hash_ids(judged["user"]))
        label_N = judged[f"label_{action}"].cast(pa.float64()).to_numpy()
        size = f"{len(label_N):,} judged rows, {int(rows.clusters_G[0]):,} users, {int(label_N.sum()):,} positives"
        learned = " to ".join(f"{block.earlier.table.num_rows:,}" for block in (found[0], found[-1]))
        print(f"{action}: {size}, after {learned} rows; {hardware('cpu')}", flush=True)
        model = FinalModel(action, config.downstream, options.seed, options.out / "scores")
        for name, features in feature_sets(ranker, judged).items():
            print(f"\non {name} features ({len(features)})")
            arms = scored(found, features, model)
            print("\n".join(told(measured(label_N, arms, rows), rows)), flush=True)
    last = found[-1]
    spaces = [f"{record.day} {record.outcome} ({record.method})" for record in (*last.earlier.records, *last.judged.records)]
    print("\nspace of each day's ranker against the last one's:", ", ".join(spaces))


def _arguments() -> argparse.Namespace:
    parser = log_arguments(__doc__, ("kuairand",), days=29, users=4000)
    parser.add_argument("--skip", type=int, default=14, help="first days that are not used: the ranker is still cold")
    parser.add_argument("--judged", type=int, default=7, help="last days that are judged")
    parser.add_argument("--block", type=int, default=7, help="judged days that share a final model")
    parser.add_argument("--actions", nargs="*", help="binary actions; the first gated one")
    return parsed(parser)


if __name__ == "__main__":
    main()
