"""The benchmark, in order: read, train, judge once on the test items, write the summary."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from trainer import __version__
from trainer.checkpoint import Bundle, read_bundle
from trainer.config import NextItemConfig, RetrainConfig
from trainer.errors import ConfigError, DataError
from trainer.fit.cost import cost_report
from trainer.next_item.judge import judge, popularity_scorer, ranker_scorer
from trainer.next_item.sequences import Sequences, read_sequences
from trainer.next_item.train import Fitted, read_fitted, train
from trainer.next_item.units import TEST, training_units
from trainer.next_item.warm import with_catalogue
from trainer.release import Registry
from trainer.run_dir import RunDir
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_file, sha256_json
from trainer.schema.plain import as_plain
from trainer.schema.summary import Summary

NAME = "next_item"
# Settings of a warm start that are about days, or about a plan that is only looked at.
_WITHOUT_EFFECT = {"dry_run": False, "merge_alpha": 1.0, "retire_after_days": 0, "replay_share": 0.0}


def run(config: RetrainConfig) -> Summary:
    """Trains and judges a next-item ranker.

    Args:
        config: `next_item` must be set; besides it ``data.root``, `model`, `optimizer`, `schedule`, `fit`, `seed`, `warm_start`, `registry`
            and `run_dir` count.

    Returns:
        The summary that `summary.json` holds; its `objective` is NDCG on the validation items, because a sweep must not choose
        on the test items.

    Raises:
        ConfigError: If a setting has no meaning here, or a mapped column is missing.
        DataError: If the sequences cannot be read, or nobody can be judged.
        TrainingError: If training diverges.
    """
    spec = _spec(config)
    root = Path(config.data.root)
    job = RunDir(config.run_dir, config)
    sequences = job.stage(
        "read", None, lambda: _judgeable(read_sequences(root, spec)),
        tell=lambda done: (done.events, f"{done.users:,} users, {done.items:,} items, {int(done.judged_U.sum()):,} judged"),
    )  # fmt: skip
    production = _production(config)
    if production is not None:
        sequences = with_catalogue(sequences, production)
    folder = job.path / NAME
    key = [
        __version__, sha256_file(root / spec.path), spec, config.model, config.optimizer, config.schedule, config.fit, config.seed,
        config.warm_start, production.sha256 if production else None,
    ]  # fmt: skip
    fitted = job.stage(
        "train", key, lambda: _train(config, spec, sequences, folder, key, production),
        keep=lambda: read_fitted(folder),
        tell=lambda done: (sum(entry.positions for entry in done.curve), f"pass {done.chosen.number} of {len(done.curve)} is best"),
    )  # fmt: skip
    metrics = job.stage(
        "evaluate", None, lambda: _evaluate(config, spec, sequences, fitted),
        tell=lambda done: (done[NAME]["n"], " ".join(f"{name} {value:.4f}" for name, value in done[NAME].items() if name != "n")),
    )  # fmt: skip
    return job.finish(_summary(config, spec, job, sequences, fitted, metrics))


def _spec(config: RetrainConfig) -> NextItemConfig:
    """Returns the benchmark's own settings, after refusing what would have no effect."""
    if config.next_item is None:
        raise ConfigError("the next-item objective needs a file of sequences", where="next_item", remedy="add experiment=ml1m")
    if config.fit.device == "ddp":
        raise ConfigError("the next-item objective trains on one device", where="fit.device", got="ddp", expected="auto, cpu or gpu")
    if config.model.hashed:
        raise ConfigError(
            "the next-item objective reads items alone, and those are listed by id", where="model.hashed", got=config.model.hashed
        )
    for name, neutral in _WITHOUT_EFFECT.items():
        if (value := getattr(config.warm_start, name)) != neutral:
            raise ConfigError(
                "the next-item objective has no use for this", where=f"warm_start.{name}", got=value, remedy=f"warm_start.{name}={neutral}"
            )
    return config.next_item


def _production(config: RetrainConfig) -> Bundle | None:
    """Returns what is live in the registry, to start from; None for a cold start.

    Raises:
        ConfigError: If a warm start is asked for where nothing is live.
    """
    if config.warm_start.source == "none":
        return None
    live = Registry(Path(config.registry.root), config.registry.product).production_path()
    if live is None:
        raise ConfigError(
            "there is no production to start from", where="registry.root", got=config.registry.root,
            remedy="import one (scripts/import_checkpoint.py promote=true), or set warm_start=none",
        )  # fmt: skip
    return read_bundle(live / "bundle")


def _judgeable(sequences: Sequences) -> Sequences:
    if not sequences.judged_U.any():
        raise DataError(
            "nobody can be judged: leave-one-out needs three events of a user",
            got=f"{sequences.users} users, {sequences.events} events",
            expected="one event to train, one to validate, one to test",
        )
    return sequences


def _train(config: RetrainConfig, spec: NextItemConfig, sequences: Sequences, folder: Path, key: Any, production: Bundle | None) -> Fitted:
    """Trains; what another configuration left in the folder is no start for this one."""
    digest, mark = sha256_json(as_plain(key)), folder / "key"
    if not mark.is_file() or mark.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(mark, digest)
    return train(config, sequences, spec.top_k, spec.validate_every, folder, production)


def _evaluate(config: RetrainConfig, spec: NextItemConfig, sequences: Sequences, fitted: Fitted) -> dict[str, dict[str, Any]]:
    """Judges the chosen pass, and mere popularity beside it, on the test items: once."""
    length = config.model.max_history
    popular = popularity_scorer(training_units(sequences, length), sequences.items)
    scorers = {NAME: ranker_scorer(fitted.ranker), "popular": popular}
    return {name: judge(scorer, sequences, TEST, length, spec.top_k) for name, scorer in scorers.items()}


def _summary(
    config: RetrainConfig, spec: NextItemConfig, job: RunDir, sequences: Sequences, fitted: Fitted, metrics: dict[str, dict[str, Any]]
) -> Summary:
    chosen = fitted.chosen
    seconds = sum(entry.seconds for entry in fitted.curve)
    positions = sum(entry.positions for entry in fitted.curve)
    return Summary(
        verdict=None,
        as_of="",  # ordered sequences have no clock
        status="done",
        reason=f"next item, leave-one-out, full catalogue, seen items removed; pass {chosen.number} chosen on the validation items",
        stages=job.records,
        data={
            "read": sequences.events, "used": sequences.events, "users": sequences.users, "items": sequences.items,
            "judged_users": int(sequences.judged_U.sum()),
        },
        challenger={NAME: metrics[NAME], f"{NAME}_validation": chosen.metrics},
        baselines={"popular": {NAME: metrics["popular"]}},
        cost={
            **cost_report(fitted.spent, job.records, config.cost),
            "train_seconds": round(seconds, 1),
            "train_minutes": round(seconds / 60, 1),
            "passes": len(fitted.curve),
            "chosen_pass": chosen.number,
            "targets_per_second": round(positions / max(seconds, 1e-9)),
            "parameters": sum(parameter.numel() for parameter in fitted.ranker.parameters()),
            "seed": config.seed,
            "hardware": hardware(config.fit.device),
        },
        objective=(chosen.metrics or {})[f"ndcg@{spec.top_k}"],
    )  # fmt: skip


def hardware(device: str) -> str:
    """Returns the name of what a run on `device` computes with."""
    if device == "gpu" or (device == "auto" and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    return f"{_processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
