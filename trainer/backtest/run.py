"""The backtest, in order: scan once, train production, then night after night every arm; at the end the table.

Every night of every arm goes through the functions of the main job (`trainer.stages`): plan, rebuild, train. Its folder is
kept by content like a run's, so a stopped backtest goes on with the same command.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from trainer import stages
from trainer.backtest.arms import Arm, arms_of
from trainer.backtest.holdout import Holdout
from trainer.backtest.meter import Meter, Point, read_points
from trainer.backtest.table import Night, curves_of, succession_of, write_succession
from trainer.checkpoint import Bundle, build_ranker
from trainer.config import BacktestConfig
from trainer.days import DayPlan
from trainer.errors import ConfigError, DataError
from trainer.evaluate import RankerScorer
from trainer.job import Job
from trainer.run_dir import RunDir
from trainer.schema.examples import ExamplesManifest
from trainer.schema.health import HealthMap
from trainer.schema.succession import Succession

if TYPE_CHECKING:
    from models.ranker import Ranker
    from trainer.data import Encoder

PRODUCTION = "production"
SCORES = "scores.parquet"


@dataclass(frozen=True)
class Replay:
    """What all nights share.

    Attributes:
        config: The backtest.
        job: The run as the stages see it, opened once.
        health: Scan of the whole log.
    """

    config: BacktestConfig
    job: Job
    health: HealthMap

    def night(self, arm: Arm, as_of: str, parent: Bundle | None, live: Bundle | None) -> tuple[Job, HealthMap]:
        """Returns the job of one arm on one night, and the health of the days there were by then."""
        folder = self.job.run.path / arm.label / as_of
        config = replace(arm.config, as_of=as_of, run_dir=str(folder))
        job = replace(
            self.job, config=config, run=RunDir(folder, config), days=[day for day in self.job.days if day <= as_of],
            production=live, parent=parent,
        )  # fmt: skip
        return job, replace(self.health, days={day: state for day, state in self.health.days.items() if day <= as_of})


def backtest(config: BacktestConfig) -> Succession:
    """Replays the last nights of a log with every arm.

    Args:
        config: The checked configuration.

    Returns:
        What `succession.json` holds; `succession.parquet` holds the curves.

    Raises:
        ConfigError: If an arm's settings are wrong.
        DataError: If the log has too few days, or a judged day has no rows.
        RewarmError: Whatever a stage raises.
    """
    arms = arms_of(config)
    replay = _open(config)
    before, *judged = _nights(replay)
    production = Arm(PRODUCTION, config.seed, replace(config.arms[config.baseline], start="none"), arms[0].config)
    _night(replay, production, before, None, curve=False)
    live = _trained(production)
    nights: list[Night] = []
    for as_of in judged:
        served = live  # what was live while the night's arms were trained: it labels what they distil from
        for arm in arms:
            nights.append(_night(replay, arm, as_of, production.bundle, served, curve=as_of == judged[0]))
        live = _trained(arms[0])
    succession = succession_of(config, nights)
    write_succession(succession, curves_of(succession, nights), replay.job.run.path)
    return succession


def _open(config: BacktestConfig) -> Replay:
    """Opens the run on an empty registry: a backtest ships nothing, and starts from a production of its own."""
    if config.warm_start.dry_run:
        raise ConfigError("a backtest trains", where="warm_start.dry_run", got=True, remedy="scripts/train.py prints transfer plans")
    root = str(Path(config.run_dir) / "no-registry")
    job = Job.open(replace(config, registry=replace(config.registry, root=root)))
    return Replay(config, job, stages.scan(job))


def _nights(replay: Replay) -> list[str]:
    """Returns the day on which production would have been judged, and the judged days."""
    days = [day for day, state in replay.health.days.items() if state.status != "refused"]
    nights, behind = replay.config.nights, replay.config.behind
    needed = nights + behind + 2
    if len(days) < needed:
        raise DataError(
            "too few days: production needs one to train on, and one new day follows before the first judged one",
            where=replay.config.data.root, got=f"{len(days)} usable days",
            expected=f"at least {needed} for nights={nights} behind={behind}", remedy="lower nights= or behind=",
        )  # fmt: skip
    return [days[-nights - behind - 1], *days[-nights:]]


def _trained(arm: Arm) -> Bundle:
    if arm.bundle is None:
        raise ValueError(f"{arm.label} has not been trained yet")
    return arm.bundle


def _night(replay: Replay, arm: Arm, as_of: str, start: Bundle | None, live: Bundle | None = None, *, curve: bool) -> Night:
    """Trains an arm if it trains, and judges what it would serve."""
    print(f"{as_of}  {arm.label}", flush=True)
    parent = arm.parent(start)
    job, health = replay.night(arm, as_of, parent, live)
    days = arm.window(stages.plan(job, health), parent)
    examples = stages.rebuild(job, health, days)
    holdout = Holdout.read(arm.config, examples, days, replay.config.truth)
    begun, points = (arm.flops, arm.seconds), [Point(0, 0, 0.0, {})]
    if arm.trains:
        arm.bundle, points = _train(job, examples, days, holdout, replay.config.checkpoints if curve else 0)
        arm.flops, arm.seconds = arm.flops + points[-1].flops, arm.seconds + points[-1].seconds
    else:
        arm.bundle = parent
    scores = _judge(job, _trained(arm), examples, days, holdout)
    return Night(arm.name, arm.seed, days.holdout[-1], *begun, points, scores)


def _train(job: Job, examples: ExamplesManifest, days: DayPlan, holdout: Holdout, checkpoints: int) -> tuple[Bundle, list[Point]]:
    """Trains with a meter; judges on the way only where a curve is wanted."""
    teacher = _teacher(job)

    def watch(encoder: Encoder) -> list[Meter]:
        shards = holdout.encode(encoder) if checkpoints else []

        def judge(ranker: Ranker) -> dict[str, float]:
            return holdout.ne(holdout.score(ranker, shards))

        return [Meter(judge if checkpoints else None, checkpoints, job.run.path, teacher)]

    trained = stages.train(job, examples, days, watch=watch)
    return trained.bundle, read_points(job.run.path)


def _teacher(job: Job) -> Ranker | None:
    """Returns the ranker whose scores the arm distils from, if it has to compute them."""
    wanted = job.config.distill.source == "production" and job.production is not None
    return build_ranker(job.production) if wanted and job.production is not None else None


def _judge(job: Job, bundle: Bundle, examples: ExamplesManifest, days: DayPlan, holdout: Holdout) -> pa.Table:
    """Scores the judged rows with a bundle's serving weights, or takes what an earlier attempt left."""
    file = job.run.path / SCORES

    def produce() -> pa.Table:
        scorer = RankerScorer(bundle)
        scores = holdout.score(scorer.ranker, holdout.encode(scorer.encoder))
        pq.write_table(holdout.with_scores(scores), file, compression="zstd", write_page_checksum=True)
        return pq.read_table(file)

    judged = [record.key for record in examples.partitions if record.day in days.holdout]
    return job.run.stage(
        "judge", [bundle.sha256, judged, holdout.rows.column_names], produce, lambda: pq.read_table(file, page_checksum_verification=True),
        lambda table: (len(table), f"served {bundle.sha256[:12]}"),
    )  # fmt: skip
