"""From signals to the most likely cause: production is the control, fresh and golden data are the two experiments.

production vs its record | challenger vs production, fresh | golden  | cause
-------------------------+---------------------------------+---------+---------------------------------------------
(does not repeat its logged scores: whatever the rest says) |        | feature skew
same                     | worse                           | worse   | training fault
same                     | worse                           | unknown | training fault (golden rows would tell)
same                     | better or same                  | worse   | forgetting
same                     | worse                           | same    | does not fit the fresh days
worse                    | same or better                  | any     | labels or world
worse                    | worse                           | any     | fresh data corrupt
same                     | same, but scores moved          | same    | scale (and whether a map could be fitted)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.diagnose.signals import BETTER, SAME, UNKNOWN, WORSE, Signals
from trainer.schema.verdict import HOLD, PROMOTE


@dataclass(frozen=True)
class Cause:
    """A cause and what follows from it.

    Attributes:
        name: Short name.
        meaning: One sentence.
        remedy: What to do, one sentence.
        command: Command after ``python``, with the run's folder as ``{run}`` and its table as ``{predictions}``; null where there is none.
    """

    name: str
    meaning: str
    remedy: str
    command: str | None = None


# A later day, because production has learned the one that would be judged besides.
_LONGER = "scripts/retrain.py data=... as_of=... run_dir={run}-longer evaluation.holdout_days=2"

CAUSES = {
    cause.name: cause
    for cause in (
        Cause("nothing", "Nothing got worse.", "Watch the slices below."),
        Cause(
            "unsound scores", "A score or column that is to be judged is missing or no number.",
            "Mend the table; statistics come after that.", "scripts/gate.py predictions={predictions} run_dir={run}/again",
        ),
        Cause(
            "feature skew", "Production's own bundle does not repeat the scores it logged, so serving saw other features than the log has.",
            "Page the owner of the feature pipeline; train on nothing from these days until it is mended.",
            "scripts/diagnose.py run_dir={run} ablation=true",
        ),
        Cause(
            "fresh data corrupt", "Production is off against its own record, and the challenger is worse still on the same rows.",
            "Look at the judged days' files: nulls, coverage and duplicates by partition.", "scripts/scan.py data=... run_dir={run}-scan",
        ),
        Cause(
            "labels or world", "Production, which did not change, is off against its own record, and the challenger is no worse than it.",
            "Compare positives at equal label age below; if labels are sound the world moved, and promoting is a decision of a person.",
            "scripts/scan.py data=... run_dir={run}-scan",
        ),
        Cause(
            "training fault", "Production is as it was and the challenger is worse on the same rows.",
            "Look at what changed against the parent first (below), then at the training curves in report.html.",
            "scripts/train.py data=... run_dir={run}-again optimizer.lr=... warm_start=production",
        ),
        Cause(
            "forgetting", "The challenger holds on the fresh days and loses on the permanent validation sets.",
            "Mix earlier days into every batch.",
            "scripts/retrain.py data=... run_dir={run}-replay warm_start.replay_share=0.35 warm_start.replay_tables=train",
        ),
        Cause(
            "fresh days not fitted", "The challenger holds on the permanent validation sets and loses on the fresh days.",
            "Look at what is new in these days: drift and slices below.", "scripts/diagnose.py run_dir={run} ablation=true",
        ),
        Cause(
            "scale", "The challenger ranks as well as production, but its scores moved, and thresholds behind it would notice.",
            "Map it onto production's scale and judge it again; if its mean moved, look at the labels of the days it was trained on.",
            "scripts/gate.py predictions={predictions} run_dir={run}/repaired gate.repair=[map]",
        ),
        Cause(
            "scale, and too few rows to mend it",
            "The challenger ranks as well as production, but its scores moved, and these rows are too few for a map of them.",
            "Judge two days together as soon as the next one is there.", _LONGER,
        ),
        Cause(
            "too little data", "Nothing is shown to be wrong, but the rows cannot rule it out.",
            "Judge two days together as soon as the next one is there.", _LONGER,
        ),
        Cause("no production", "There is nothing live to compare with.", "Decide whether the first model goes live: gate.first=promote."),
    )
}  # fmt: skip

_RULES: list[tuple[str, Callable[[Signals], bool]]] = [
    ("unsound scores", lambda s: s.unsound),
    ("feature skew", lambda s: s.skew),
    ("fresh data corrupt", lambda s: s.production_on_fresh == WORSE and (s.challenger_on_fresh == WORSE or bool(s.corrupt))),
    ("labels or world", lambda s: s.production_on_fresh == WORSE),
    ("fresh data corrupt", lambda s: bool(s.corrupt) and s.challenger_on_fresh == WORSE and s.challenger_on_golden != WORSE),
    ("training fault", lambda s: s.challenger_on_fresh == WORSE and s.challenger_on_golden in (WORSE, UNKNOWN)),
    ("fresh days not fitted", lambda s: s.challenger_on_fresh == WORSE),
    ("forgetting", lambda s: s.challenger_on_fresh in (SAME, BETTER) and s.challenger_on_golden == WORSE),
    ("scale, and too few rows to mend it", lambda s: s.scale and s.unfit),
    ("scale", lambda s: s.scale),
]


def most_likely(signals: Signals, verdict: str, first: bool) -> Cause:
    """Returns the first cause of the table that fits.

    Args:
        signals: Where both models stand.
        verdict: The gate's.
        first: Whether nothing was live.
    """
    if first and not signals.unsound:
        return CAUSES["no production"]
    for name, fits in _RULES:
        if fits(signals):
            return CAUSES[name]
    return CAUSES["nothing" if verdict == PROMOTE else "too little data" if verdict == HOLD else "training fault"]
