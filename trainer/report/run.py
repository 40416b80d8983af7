"""The report stage: the files of a run folder in, one self-contained page out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from trainer.errors import DataError
from trainer.report import checks, parts
from trainer.report.artefacts import MANIFEST, STEPS, Artefacts, read_artefacts
from trainer.report.comparison import Comparison, compare
from trainer.report.diagnosis import diagnosis
from trainer.report.health import health, status_line
from trainer.report.numbers import leaf, seconds
from trainer.report.score_charts import distribution_charts, reliability_charts
from trainer.report.scores import PAIR, ActionScores, read_scores
from trainer.report.training import training
from trainer.schema.diagnosis import FILE as DIAGNOSIS
from trainer.schema.files import write_text
from trainer.schema.verdict import HOLD, PROMOTE, REJECT

FILE = "report.html"
NO_PRODUCTION = "No production yet: nothing to compare with."
NOT_JUDGED = "Nothing was judged in this run: there is no verdict.json."
_TONES = {PROMOTE: "good", HOLD: "hold", REJECT: "bad"}


@dataclass(frozen=True)
class Section:
    """A part of the page: a view with its template, or one line that says why there is none."""

    key: str
    title: str
    template: str
    view: Any = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything the templates read.

    Attributes:
        title: Title of the window.
        badge: The verdict, or the status of a run that judged nothing.
        tone: Colour of the badge.
        reason: One sentence behind it.
        facts: Name and value of what places the run: day, policy, versions.
        comparison: The first table.
        no_comparison: Why there is none.
        production: Whether there was a production to compare with.
        changes: What changed against the parent.
        deciding: Blocking checks that failed or held.
        nothing_decides: What stands there when no check failed or held.
        warnings: Others that failed or held.
        trust: (whether all is well, sentence) on data, training, warm start and checks.
        confidence: Level of the intervals.
        repaired: Whether the challenger's scores go out through the curves of a repair.
        sections: The rest of the page.
    """

    title: str
    badge: str
    tone: str
    reason: str
    facts: list[parts.Fact]
    comparison: Comparison | None
    no_comparison: str
    production: bool
    changes: list[parts.Fact]
    deciding: checks.Findings
    nothing_decides: str
    warnings: checks.Findings
    trust: list[tuple[bool, str]]
    confidence: str
    repaired: bool = False
    sections: list[Section] = field(default_factory=list)


def render(run_dir: Path, predictions: Path | None = None) -> Path:
    """Writes ``report.html`` into a run folder; the same artefacts give the same bytes.

    Args:
        run_dir: Folder of a finished run: of the main job, of training alone, or of the gate alone.
        predictions: The table that was judged, where it does not lie in the folder.

    Returns:
        Path of the page.

    Raises:
        DataError: If neither a summary nor a verdict is there, or one of them is damaged.
        OSError: If the page cannot be written.
    """
    page = build(read_artefacts(run_dir, predictions))
    environment = Environment(
        loader=PackageLoader("trainer.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = files("trainer.report").joinpath("report.css").read_text(encoding="utf-8")
    html = environment.get_template("report.html").render(page=page, css=css)
    path = run_dir / FILE
    write_text(path, html.encode("utf-8", "replace").decode("utf-8"))  # an id may hold half a surrogate pair, which no file can
    return path


def build(run: Artefacts) -> Page:
    """Turns artefacts into what the page shows."""
    scores, problem = _scores(run)
    comparison = compare(run, scores)
    summary = run.summary
    judged = summary.verdict or (run.verdict.verdict if run.verdict and summary.status == "done" else None)
    has_production = any(model == "production" for model, _ in comparison.references) if comparison else False
    return Page(
        title=f"rewarm {judged or summary.status} {summary.as_of}".strip(),
        badge=judged or ("not judged" if summary.status == "done" else summary.status),
        tone=_TONES.get(judged or "", "plain"),
        reason=summary.reason or (run.verdict.reason if run.verdict else "Trained and measured; the gate was not asked."),
        facts=_facts(run),
        comparison=comparison,
        no_comparison=run.missing(
            "eval.json", problem or "There is neither eval.json nor a table of predictions, so no model was measured."
        ),
        production=has_production,
        changes=parts.changes(run),
        deciding=checks.findings(checks.deciding(run)),
        nothing_decides="No blocking check failed or held." if run.verdict else NOT_JUDGED,
        warnings=checks.findings(checks.warnings(run), checks.MOST_WARNINGS),
        trust=_trust(run),
        confidence=run.confidence,
        repaired=run.repair is not None,
        sections=[
            *_judgement_sections(run),
            *_data_sections(run),
            *_score_sections(run, scores, problem),
            *_model_sections(run),
            *_record_sections(run),
        ],
    )


def _scores(run: Artefacts) -> tuple[list[ActionScores], str]:
    """Reads the predictions; returns why there are none otherwise."""
    if run.predictions is None:
        return [], "There is no predictions.parquet in this run."
    try:
        scores = read_scores(run.predictions)
    except DataError as error:
        return [], f"The predictions cannot be read: {error.got}"
    return scores, "" if scores else "The predictions hold no action with a label and a challenger's score."


def _facts(run: Artefacts) -> list[parts.Fact]:
    """What places the run: each only where it is known."""
    summary, versions = run.summary, run.summary.versions
    release = summary.release or {}
    found = [
        ("as of", summary.as_of),
        ("gate", run.verdict.policy if run.verdict else None),
        ("product", run.setting("registry", "product")),
        ("architecture", run.setting("model", "name")),
        ("production", versions.get("production")),
        ("challenger", versions.get("challenger")),
        ("release", release.get("sentence")),
        ("took", seconds(sum(record.seconds for record in summary.stages.values())) if summary.stages else None),
    ]
    return [parts.Fact(name, leaf(value)) for name, value in found if value]


def _trust(run: Artefacts) -> list[tuple[bool, str]]:
    """What a careful reader asks before believing a table: data, training, warm start, checks."""
    lines = []
    if run.scan:
        lines.append(status_line(run))
    trained = training(run)
    if trained is not None:
        lines.append((not any(entry["skipped"] for entry in run.steps), f"Training: {trained.sentence}"))
    if run.transfer:
        parity = run.transfer.get("parity") or {}
        cold = "distilled" in run.transfer and not parity  # nothing was carried over that could differ
        sound = cold or bool(run.transfer.get("exact", parity.get("exact")))
        lines.append((sound, f"The {'start' if cold else 'warm start'} is {parts.parity_sentence(run.transfer)}"))
    if run.verdict:
        blocking = [check for check in run.checks if check.severity == "block"]
        others = [check for check in run.checks if check.severity != "block"]
        words = f"Blocking checks: {checks.tally(blocking)}. Others: {checks.tally(others)}."
        lines.append((not checks.deciding(run), words))
    lines += [(False, f"{name} cannot be read: {why}") for name, why in sorted(run.damaged.items())]
    return lines


def _judgement_sections(run: Artefacts) -> list[Section]:
    """What stands behind the verdict besides the tests of tonight's rows."""
    promoted = "No repair was tried: none was asked for, or the scores passed as they came."
    return [
        _section("suites", "Suites", checks.lines(checks.suite_checks(run)), NOT_JUDGED if run.verdict is None else "There are no suites."),
        _section("diagnosis", "Diagnosis", diagnosis(run), run.missing(DIAGNOSIS, "No diagnosis was made of this run.")),
        _section("repair", "Repair", parts.repair(run), NOT_JUDGED if run.verdict is None else promoted),
    ]


def _data_sections(run: Artefacts) -> list[Section]:
    return [
        _section(
            "data", "Data health", health(run), run.missing("scan.json", "The logs were not scanned in this run: there is no scan.json.")
        ),
        _section(
            "training", "Training", training(run), run.missing(STEPS.name, "Nothing was trained in this run: there is no steps.jsonl.")
        ),
    ]


def _score_sections(run: Artefacts, scores: Sequence[ActionScores], problem: str) -> list[Section]:
    scores = list(scores)
    compared = any(len([model for model in PAIR if model in action.scores]) == len(PAIR) for action in scores)
    unjudged = NOT_JUDGED if run.verdict is None else NO_PRODUCTION
    slices = {"forests": checks.slice_forests(run), "tables": parts.slice_table(run)}
    shares, slate = checks.score_forest(run), checks.slate_forest(run)
    return [
        _section("reliability", "Reliability", reliability_charts(run, scores), problem),
        _section("distribution", "Score distribution", distribution_charts(run, scores), problem, note="" if compared else NO_PRODUCTION),
        _section("slices", "Slices", slices if any(slices.values()) else None, unjudged if run.verdict is None else "No slice was judged."),
        _section(
            "compatibility",
            "Score compatibility",
            shares and {"forest": shares, "others": checks.churn_checks(run), "absent": checks.not_replayed(run)},
            unjudged,
        ),
        _section("slate", "Slate composition", slate and {"forest": slate, "others": [], "absent": []}, unjudged, template="compatibility"),
    ]


def _model_sections(run: Artefacts) -> list[Section]:
    own = [check for check in run.checks if check.family in ("embeddings", "downstream", "export")]
    exported, lift = parts.embeddings(run), parts.downstream(run)
    view = {"embeddings": exported, "downstream": lift, "checks": checks.lines(own)} if exported or lift or own else None
    absent = "; ".join(
        run.damaged[name] for name in (str(MANIFEST), "downstream.json") if name in run.damaged
    ) or "No embeddings were exported and no downstream model was trained in this run."  # fmt: skip
    cold = "Cold start: no production weights were carried over." if run.steps else "There is no transfer.json: nothing was warm-started."
    return [
        _section("transfer", "Warm start", parts.transfer(run), run.missing("transfer.json", cold)),
        _section("embeddings", "Embeddings and downstream lift", view, absent),
    ]


def _record_sections(run: Artefacts) -> list[Section]:
    summary = run.summary
    sentence, facts = parts.cost(summary.cost)
    cost = {"stages": parts.stages(run), "sentence": sentence, "cost": facts, "versions": parts.facts(summary.versions)}
    everything = {"lines": checks.lines(run.checks), "tally": checks.tally(run.checks), "more": max(0, len(run.checks) - checks.MOST_LINES)}
    return [
        _section("cost", "Cost and stages", cost if any(cost.values()) else None, "No stage was recorded: the gate ran alone."),
        _section("checks", "All checks", everything if run.checks else None, NOT_JUDGED),
        _section("config", "Configuration", run.config_text, run.missing("config.yaml", "There is no config.yaml in this run.")),
    ]


def _section(key: str, title: str, view: Any, missing: str, *, template: str = "", note: str = "") -> Section:
    """A section with its view, or with the line that stands for it; `note` is shown beside the view."""
    if not view:
        return Section(key, title, "", None, missing)
    return Section(key, title, f"section_{template or key}.html", view, note)
