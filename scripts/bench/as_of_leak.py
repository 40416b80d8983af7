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
command.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from trainer import stages
from trainer.align import Alignment
from trainer.checkpoint import Bundle
from trainer.config import RetrainConfig, load
from trainer.downstream import later_scores
from trainer.downstream.table import ripe
from trainer.evaluate import RankerScorer
from trainer.export.as_of import AS_OF, PastDay, choose, read_as_of, read_records, write_as_of
from trainer.job import Job
from trainer.metrics import Estimate, Rows, arrange, auc, interval, normalised_loss
from trainer.next_item.run import hardware
from trainer.schema.bundle import SERVING, seen_until
from trainer.schema.embeddings import PAIR_DOT, PAIR_SCORE
from trainer.schema.examples import FEATURE, ExamplesManifest
from trainer.schema.ids import hash_ids
from trainer.schema.simulation import REPORT_FILE, SimulationSpec
from trainer.simulate import simulate
from trainer.stages.history import score_day

WITHOUT, AS_OF_ARM, LEAKED = "without", "as of", "leaked"


@dataclass(frozen=True)
class Ranker:
    """The trained ranker, its examples, and its weights by the newest day that they have seen."""

    job: Job
    examples: ExamplesManifest
    bundle: Bundle
    weights: dict[str, str]  # newest seen day -> file

    @property
    def days(self) -> list[str]:
        """Days of the log that have features as of them: all but the first."""
        return sorted(self.examples.source_days)[1:]

    def history(self, folder: Path, days: list[str], seen: str | None = None) -> pa.Table:
        """Returns the features of past days: as of each, or by the weights that have seen every day up to `seen`.

        Written to `folder` first, or read from there if an earlier run has written the same.
        """
        if seen is None:
            chosen = choose(days, list(self.weights.items()), in_sample=False)
        else:
            chosen = [PastDay(day, self.weights[seen], seen, True) for day in days]
        wanted = [(past.day, past.producer, past.seen_until) for past in chosen]
        if [(record.day, record.producer, record.seen_until) for record in read_records(folder)] != wanted:
            folder.mkdir(parents=True, exist_ok=True)
            write_as_of(folder, self._scored(chosen))
        table = read_as_of(folder)
        assert table is not None
        return table

    def _scored(self, chosen: list[PastDay]) -> Iterator:
        now = RankerScorer(self.bundle)
        still = Alignment.identity(self.bundle.shape.dim)
        for past in chosen:
            yield past, score_day(self.job, self.examples, past.day, RankerScorer(self.bundle, past.producer), now, [still, still])


def trained(options: argparse.Namespace) -> Ranker:
    """Trains the ranker by the stages of the main job, or takes what an earlier run left."""
    data = options.data
    if options.log == "simulated":
        data = options.out / f"log-{options.days}-{options.users}-{options.seed}"
        if not (data / REPORT_FILE).exists():
            simulate(SimulationSpec(days=options.days, users=options.users, seed=options.seed), data)
    overrides = [
        f"data={options.log}", f"data.root={data}", f"run_dir={options.out}/run", f"rebuild.root={options.out}/examples",
        f"registry.root={options.out}/registry", "tracking=none", "fit.day_weights=true", "fit.progress=false", "scan.workers=1",
        "rebuild.workers=1", f"seed={options.seed}", *options.overrides,
    ]  # fmt: skip
    with initialize_config_module("trainer.conf", version_base="1.3"):
        prefixed = [f"++{item}" if "." in item.split("=")[0] else item for item in overrides]
        job = Job.open(load(RetrainConfig, OmegaConf.to_container(compose("retrain", prefixed), resolve=True)))
    health = stages.scan(job)
    days = stages.plan(job, health)
    examples = stages.rebuild(job, health, days)
    bundle = stages.train(job, examples, days).bundle
    weights = {until: name for name, until in seen_until(bundle.manifest).items() if name != SERVING}
    return Ranker(job, examples, bundle, weights)


@dataclass(frozen=True)
class Block:
    """Judged days that share final models: the rows that these are trained on, honest and leaked, and the rows that judge."""

    earlier: pa.Table
    leaked: pa.Table
    judged: pa.Table


def blocks(ranker: Ranker, options: argparse.Namespace, action: str) -> list[Block]:
    """Returns the judged days of a run, block by block."""
    days = ranker.days[options.skip - 1 :]
    honest = ripe(ranker.history(options.out / AS_OF, days), action)
    found = []
    for start in range(len(days) - options.judged, len(days), options.block):
        before, block = days[:start], days[start : start + options.block]
        judged, earlier = (honest.filter(pc.is_in(honest["day"], pa.array(some))) for some in (block, before))
        found.append(Block(earlier, ranker.history(options.out / f"seen-{before[-1]}", before, before[-1]), judged))
    return found


def scored(found: list[Block], features: list[str], ranker: Ranker, action: str, seed: int) -> dict[str, np.ndarray]:
    """Returns arm -> scores of all judged rows, float64 [N]."""
    names = found[0].judged.column_names
    scalars = [name for name in names if name == PAIR_DOT or name.startswith(PAIR_SCORE)]
    columns = {"": [*features, *scalars, "user_vector", "item_vector"], ", scores only": [*features, *scalars]}
    arms: dict[str, list[np.ndarray]] = {}
    for block in found:
        trained_on = {WITHOUT: (block.earlier, features)}
        for suffix, used in columns.items():
            trained_on |= {AS_OF_ARM + suffix: (block.earlier, used), LEAKED + suffix: (block.leaked, used)}
        for name, (rows, used) in trained_on.items():
            score_N = later_scores(rows, block.judged, action, used, ranker.job.config.downstream, seed)
            arms.setdefault(name, []).append(score_N)
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
    for action in options.actions or [next(iter(ranker.job.config.data.gated_actions))]:
        found = blocks(ranker, options, action)
        judged = pa.concat_tables([block.judged for block in found])
        rows = arrange(hash_ids(judged["user"]))
        label_N = judged[f"label_{action}"].cast(pa.float64()).to_numpy()
        size = f"{len(label_N):,} judged rows, {int(rows.clusters_G[0]):,} users, {int(label_N.sum()):,} positives"
        learned = " to ".join(f"{count:,}" for count in sorted({found[0].earlier.num_rows, found[-1].earlier.num_rows}))
        print(f"{action}: {size}, after {learned} rows; {hardware('cpu')}", flush=True)
        for name, features in feature_sets(ranker, judged).items():
            print(f"\non {name} features ({len(features)})")
            arms = scored(found, features, ranker, action, options.seed)
            print("\n".join(told(measured(label_N, arms, rows), rows)), flush=True)
    spaces = [f"{record.day} {record.outcome} ({record.method})" for record in read_records(options.out / AS_OF)]
    print("\nspace of each day's ranker against the last one's:", ", ".join(spaces))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", default="simulated", choices=("simulated", "kuairand"))
    parser.add_argument("--data", type=Path, help="root of a real log")
    parser.add_argument("--days", type=int, default=29, help="length of the simulated log")
    parser.add_argument("--users", type=int, default=4000, help="users of the simulated log")
    parser.add_argument("--skip", type=int, default=14, help="first days that are not used: the ranker is still cold")
    parser.add_argument("--judged", type=int, default=7, help="last days that are judged")
    parser.add_argument("--block", type=int, default=7, help="judged days that share a final model")
    parser.add_argument("--actions", nargs="*", help="binary actions; the first gated one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="further settings, key=value")
    options = parser.parse_args()
    if options.log != "simulated" and options.data is None:
        parser.error(f"--log {options.log} needs --data")
    return options


if __name__ == "__main__":
    main()
