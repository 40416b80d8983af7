"""READ FIRST. The main job: from event logs to a judged, released model, the stages in order.

Each stage is one public function; what passes between stages is a file in `run_dir`, so each can be kept, resumed and
tested alone. Follow one batch: `rebuild` writes examples, `fit.train` encodes them into shards and plans batches
(`trainer/data`), `fit.task.RankingTask.training_step` trains on one, `evaluate` scores the holdout with the same encoder.
"""

from __future__ import annotations

from trainer import stages
from trainer.config import RetrainConfig
from trainer.job import Job
from trainer.schema.summary import Summary


def retrain(config: RetrainConfig) -> Summary:
    """Runs the main job.

    Args:
        config: The checked configuration.

    Returns:
        The summary that `summary.json` holds. A rejected challenger changes nothing but the run's folder and the history.

    Raises:
        RewarmError: One of its kinds, with an exit code; the registry is then as it was.
    """
    job = Job.open(config)  # run_dir, registry, production (verified) or None
    health = stages.scan(job)  # which files, columns and days can be trusted
    asked = stages.question(job, health)  # as_of, configuration and data, as one hash
    if stages.judged_before(job, asked):
        return stages.nothing_to_do(job, asked)
    days = stages.plan(job, health)  # holdout, training days, days production has seen
    examples = stages.rebuild(job, health, days)  # features as they were known at the time
    stages.labels(job, examples, days)  # production still ranks them; labels that were turned over end the run here
    trained = stages.train(job, examples, days)  # the challenger's bundle, warm-started from production
    continued = stages.continue_production(job, examples, days)  # at a launch: production on the same new days
    evaluation = stages.evaluate(job, examples, days, trained, continued)  # every model on the same holdout rows
    delivered = stages.judge(job, trained, evaluation)  # the scores, repaired if a curve mends them: what goes out
    embeddings = stages.export(job, examples, days, trained, evaluation, delivered)  # staged, not yet visible
    stages.as_of(job, examples, days, trained, delivered, embeddings)  # if asked for: what past days would have exported, without leaks
    downstream = stages.downstream(job, examples, days, evaluation, delivered, embeddings)  # the model behind the embeddings
    serving = stages.serving(job, trained)  # if asked for: the graph that other runtimes load, against the ranker and production's
    verdict = stages.gate(job, trained, evaluation, delivered, embeddings, downstream, serving)  # PROMOTE, HOLD or REJECT, and why
    absorbed = stages.absorb(job, examples, days, trained, evaluation, verdict)  # after PROMOTE, if asked for: the holdout too
    release = stages.release(job, asked, trained, verdict, absorbed)  # seal, then move the pointer or leave it
    return stages.report(job, health, days, examples, trained, evaluation, embeddings, downstream, verdict, release)


def train(config: RetrainConfig) -> Summary:
    """Runs the main job up to the evaluation: for sweeps and experiments; the registry is only read.

    Args:
        config: The checked configuration.

    Returns:
        The summary; its `objective` is the value of a sweep's trial.
    """
    job = Job.open(config)
    health = stages.scan(job)
    days = stages.plan(job, health)
    examples = stages.rebuild(job, health, days)
    if config.warm_start.dry_run:
        return stages.dry_run(job, examples, days)
    stages.labels(job, examples, days)
    trained = stages.train(job, examples, days)
    evaluation = stages.evaluate(job, examples, days, trained, None)
    return stages.report(job, health, days, examples, trained, evaluation)
