"""Gathers what the stages handed over into `summary.json`."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from trainer import __version__
from trainer.checkpoint import Bundle
from trainer.config import CostConfig, ModelConfig, OptimizerConfig, RetrainConfig, ScheduleConfig
from trainer.days import DayPlan
from trainer.errors import ConfigError, nearest
from trainer.fit import Trained
from trainer.fit.cost import cost_report
from trainer.schema.examples import ExamplesManifest, FeatureMatch
from trainer.schema.health import HealthMap
from trainer.schema.logs import whole_names
from trainer.schema.plain import as_plain
from trainer.schema.summary import StageRecord, Summary
from trainer.schema.verdict import Verdict

BASELINES = ("counting", "lightgbm", "continued")


def summarise(
    config: RetrainConfig,
    *,
    as_of: str,
    stages: dict[str, StageRecord],
    health: HealthMap,
    days: DayPlan,
    examples: ExamplesManifest,
    trained: Trained,
    report: dict[str, Any],
    production: Bundle | None,
    live: str | None,
    embeddings: Any = None,
    downstream: Any = None,
    verdict: Verdict | None = None,
    release: dict[str, Any] | None = None,
) -> Summary:
    """Builds the summary of a run.

    Args:
        config: The run's configuration.
        as_of: Cut-off day.
        stages: Record of each stage.
        health: The scan.
        days: Holdout and training days.
        examples: What rebuild wrote.
        trained: The challenger.
        report: Content of `eval.json`.
        production: The live bundle, if any.
        live: Its version.
        embeddings: Manifest of the export, if the stage ran.
        downstream: Report of the downstream stage, if it ran.
        verdict: The gate's decision, if it judged.
        release: What the release stage did, if it ran.
    """
    return Summary(
        verdict=verdict.verdict if verdict else None,
        as_of=as_of,
        status="done",
        reason=verdict.reason if verdict else "evaluated, not judged",
        stages=stages,
        data={**_data(health, days, examples), "rows_trained": as_plain(trained.log.account.total), "hashed": trained.log.hashed},
        transfer=_transfer(trained.transfer),
        production=_metrics(report.get("production")) if "production" in report else None,
        challenger=_metrics(report.get("challenger")),
        baselines={name: _metrics(report[name]) for name in BASELINES if name in report},
        changes=_changes(config, days, examples, trained.bundle, production),
        rescoring=report.get("rescoring"),
        export=as_plain(embeddings) if embeddings is not None else None,
        downstream=as_plain(downstream) if downstream is not None else None,
        release=release,
        versions={
            "production": live,
            "production_sha256": production.sha256 if production else None,
            "challenger": (release or {}).get("version"),
            "challenger_sha256": trained.bundle.sha256,
        },
        cost=_cost(trained, stages, config.cost),
        objective=_objective(config, report),
    )


def _metrics(entries: dict[str, Any] | None) -> dict[str, Any]:
    """Keeps the metrics themselves; intervals and slices stay in `eval.json`."""
    extras = ("intervals", "slices", "notes")
    return {action: {name: value for name, value in entry.items() if name not in extras} for action, entry in (entries or {}).items()}


def _data(health: HealthMap, days: DayPlan, examples: ExamplesManifest) -> dict[str, Any]:
    """Rows read, used and set aside; what is counted but no fault (duplicates, late rows) stands apart."""
    quarantined: dict[str, int] = {}
    for state in health.days.values():
        for fault in state.faults:
            if fault.action not in ("count", "mask"):
                quarantined[fault.kind] = quarantined.get(fault.kind, 0) + fault.rows
    return {
        "read": sum(state.rows for state in health.days.values()),
        "used": sum(record.events for record in examples.partitions),
        "quarantined": quarantined,
        "duplicates": examples.duplicates,
        "other_labels": examples.other_labels,
        "late": examples.late,
        "sampled_negatives": sum(examples.negatives.values()),
        "logged_features": {name: _match_rates(found) for name, found in examples.matches.items()},
        "holdout": days.holdout,
        "train": days.train,
        "seen": days.seen,
        "refused": days.refused,
        "unripe": days.unripe,
    }


def _match_rates(days: dict[str, FeatureMatch]) -> dict[str, Any]:
    """How well a rebuilt feature repeats the logged one, over all days and on the worst of them; None where nothing is compared."""
    rates = {day: match.matched / match.compared for day, match in days.items() if match.compared}
    compared = sum(match.compared for match in days.values())
    return {
        "compared": compared,
        "match_rate": sum(match.matched for match in days.values()) / compared if compared else None,
        "worst_day": min(rates, key=rates.__getitem__) if rates else None,
        "days": rates,
    }


def _transfer(transfer: dict[str, Any] | None) -> dict[str, Any] | None:
    if transfer is None:
        return None
    names = ("exact", "source", "elements", "vocabularies", "parity", "distilled")
    return {name: transfer[name] for name in names if name in transfer}


def _changes(
    config: RetrainConfig, days: DayPlan, examples: ExamplesManifest, challenger: Bundle, production: Bundle | None
) -> dict[str, Any]:
    """What differs from the live model: the first place to look when the metric moved."""
    if production is None:
        return {"parent": "none: nothing is live yet"}
    old, new = production.manifest, challenger.manifest
    had, has = (set(whole_names([*(entry.name for entry in side.inputs.numeric), *side.inputs.categorical])) for side in (old, new))
    return {
        "config": _difference(_with_defaults(old.config), _with_defaults(new.config)),
        "code_version": None if old.code_version == __version__ else [old.code_version, __version__],
        "labels": _difference(old.labels, new.labels),
        "value": _difference(old.value, new.value),
        "features_added": sorted(has - had),
        "features_removed": sorted(had - has),
        "days_added": days.train,
        "days_repaired": [day for day in days.train if day in old.trained and old.trained[day] != examples.source_days[day]],
        "days_refused": days.refused,
    }


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Fills in settings that the code did not have yet when a bundle was written: at their defaults they change nothing."""
    filled = dict(config)
    for name, kind in (("model", ModelConfig), ("optimizer", OptimizerConfig), ("schedule", ScheduleConfig)):
        if isinstance(config.get(name), dict):
            known = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
            filled[name] = {**as_plain(known), **config[name]}
    return filled


def _difference(old: Any, new: Any, where: str = "") -> dict[str, list[Any]]:
    """Returns dotted key -> [old, new] for every value that differs."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {where: [old, new]}
    found: dict[str, list[Any]] = {}
    for key in sorted(set(old) | set(new)):
        found |= _difference(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    return found


def _cost(trained: Trained, stages: dict[str, StageRecord], config: CostConfig) -> dict[str, Any]:
    log = trained.log
    seconds = max(log.seconds, 1e-9)
    return {
        **cost_report(log.spent, stages, config),
        "train_seconds": round(log.seconds, 2),
        "device": log.device,
        "parameters": log.parameters,
        "steps": log.steps,
        "targets": log.targets,
        "tokens": log.tokens,
        "tokens_per_second": round(log.tokens * log.passes / seconds),
        "targets_per_second": round(log.targets * log.passes / seconds),
    }


def _objective(config: RetrainConfig, report: dict[str, Any]) -> float | None:
    """Value of ``evaluation.objective``; default: NE of the first gated binary action."""
    binary = [name for name in config.data.gated_actions if config.data.actions[name].kind == "binary"]
    objective = config.evaluation.objective or (f"{binary[0]}/ne" if binary else None)
    if objective is None:
        return None
    action, _, metric = objective.partition("/")
    entries = report["challenger"]
    if action not in entries or metric not in entries[action]:
        names = [f"{name}/{key}" for name, entry in entries.items() for key in entry if key not in ("intervals", "slices", "notes")]
        raise ConfigError("unknown objective", where="evaluation.objective", got=objective, remedy=nearest(objective, names))
    value = entries[action][metric]
    return None if value is None else float(value)
