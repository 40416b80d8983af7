"""What the gate holds a challenger to (`conf/gate/*.yaml`) and the rules behind the scores (`conf/rules/*.yaml`).

Both are flat on purpose: a margin is a number in the metric's own unit, and one line of YAML changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.errors import ConfigError
from trainer.schema.repair import AUTO, CALIBRATORS, REPAIRS
from trainer.schema.validate import choice, positive

POLICY_VERSION = 1

FIRST = ("hold", "promote")
SEVERITIES = ("block", "warn", "info")
FAMILIES = ("ranking", "loss", "calibration", "scores", "slate", "baseline", "reference")  # `data` always blocks: the gate fails closed
CHECKS = ("auc", "gauc", "rank_correlation", "ndcg", "ne", "deviance", "calibration", "ecce", "slice_coverage", "label_sanity", "rescoring")
CHECK_PREFIXES = ("share_", "churn_", "slate_", "auc_vs_", "gauc_vs_", "ne_vs_", "ndcg_vs_", "rank_correlation_vs_", "deviance_vs_")
SCORE_KINDS = ("probability", "logit", "uncalibrated")
CONTENTS = ("new_item", "popularity", "duration", "author", "topic")  # what slates are made of; keys of gate.composition
VALUE = "value"  # name of the value function where a rule refers to a score
CROSS = "*"  # "country*platform" is the cross of two slice columns


def _within(where: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ConfigError("out of range", where=where, got=value, expected=f"more than {low:g} and less than {high:g}")


def _positive(policy: Any, *names: str) -> None:
    for name in names:
        positive(f"gate.{name}", getattr(policy, name))


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """Margins and error rates. Harm is always counted as challenger against production, on the same rows.

    Three outcomes of a blocking check on all rows: *fail* when harm beyond the margin is shown (all blocking tests of a run share
    one budget of false alarms, by Holm); *pass* when harm beyond ``prove_within`` margins is ruled out; else *hold*. On a slice
    the same test may fail, and a slice that is too small to say anything is *not_testable*.

    Attributes:
        name: ``refresh`` blocks on shown deterioration, ``launch`` also demands proof of non-inferiority (``prove_within: 1``).
        first: Verdict where there is no production to compare with: ``hold``, or ``promote`` if the sanity checks pass.
        slices: Slices that must be there: ``country``, ``country=TR``, ``age:quantile5`` (bins of equal mass), crosses
            ``country*age:quantile5``. Null takes every slice column of the predictions.
        actions: Judged actions; null takes every action that has a label and a challenger column.
        score_kind: What scores of binary actions are: ``probability``, ``logit`` (calibration and loss are read off their sigmoid,
            thresholds off the logits themselves), or ``uncalibrated`` (neither calibration nor loss is asked).
        runs_per_year: Gate runs a year ...
        false_alarms_per_year: ... of which so many may reject a challenger that is within all margins.
        confidence: Level of the reported two-sided intervals, and of the one-sided bound that a pass needs.
        power: Chance with which a harm of the reported size (`mde`) would have been shown.
        prove_within: Margins within which harm must be proven to lie before a check on all rows passes.
        auc_margin: Tolerated loss of AUC, absolute.
        gauc_margin: Tolerated loss of GAUC (mean AUC within requests, else within users), absolute.
        rank_margin: Tolerated loss of rank correlation (count and duration actions), absolute.
        ndcg_margin: Tolerated loss of the NDCG of the value, relative.
        ne_margin: Tolerated increase of NE (count, duration: of normalised deviance), relative.
        calibration_margin: Tolerated distance of sum p / sum y from 1, relative.
        calibration_slack: A miscalibrated challenger passes if it is at most this much farther from 1 than production.
        ecce_margin: Tolerated range of the cumulative calibration error, as a share of the base rate.
        share_margin: Tolerated relative change of the traffic above a threshold that the rules declare.
        quantile_share_margin: The same at production's own quantiles, which stand in for thresholds when no rule is declared.
        excuse_backed: Whether traffic at a stand-in threshold may change where labels show that the challenger is right about the rows
            that changed sides. A threshold that the rules declare is never excused: it was tuned on production's scale.
        slice_factor: A margin on a slice is so many times the margin on all rows.
        reference_factor: A margin against the frozen reference (``reference_<action>``) is so many times the margin against production.
        adaptive_factor: Without a request column GAUC and NDCG compare rows of one user that were scored at different moments, and
            punish a model that learns within the day: among users with mixed outcomes, who clicked already is less likely to click
            again. There their margins are so many times wider, so that they block only a gross loss; `auc`, `ne` stay as they are.
        quantiles: Shares of traffic above the stand-in thresholds; where the rows do not carry the smallest, the smallest they do carry
            stands in for it.
        rows_per_quantile: A quantile q is used from ``rows_per_quantile / q`` rows on: fewer do not fix its threshold to 5 %.
        churn_budget: Share of the rows above a threshold that may be replaced by others before a warning.
        churn_floor_factor: With scores of an A/A training (``repeat_<action>``) the budget is so many times the churn they cause.
        composition_margin: Tolerated relative change of what the slates are made of.
        composition: What the slates are made of -> its column; keys `CONTENTS`. What is not declared is found by usual names.
        top_k: Positions of a slate that count for NDCG, overlap and composition.
        suspicious_auc: An AUC or GAUC gain beyond this holds: it is more often a leak than a discovery.
        suspicious_relative: The same for relative gains of NE and NDCG.
        min_rows: Smallest slice that is tested.
        min_positives: Fewest positives, and fewest negatives, of a tested slice (count, duration: rows with a nonzero label).
        max_slice_values: Values of a slice column that are judged, largest first; a column with more is binned if it is a number.
        numeric_bins: Equal-mass bins of a numeric slice column.
        untestable_share: Holds when slices with more than this share of the rows are not testable.
        unscored_share: Share of the rows that production may be without a score for (null, as logs of an incumbent have them: they
            are left out and counted); with more of them the gate fails closed, as it does on NaN.
        repair: Repairs that are tried on a challenger that is not promoted, which is then judged again on users they were not fitted
            on: ``map`` (a strictly increasing curve onto production's scale), ``calibrate`` (onto the labels'). With both, a score is
            mapped, but calibrated where production itself is shown to be off by more than `calibration_margin` and no declared rule
            reads it: a map would keep that error for ever.
        calibrator: How `calibrate` fits: ``platt`` (slope and shift on the logit: scale and spread, steady with few positives),
            ``temperature`` (slope alone: spread), ``isotonic`` (any increasing shape; wants many positives), or ``auto``: whichever
            predicts held-out users best, since no one of them is right for every fault.
        repair_share: Share of the users that repairs are fitted on; the others decide.
        production_record: File with production's recorded calibration: the ``eval.json`` that was sealed with it, or a mapping
            {action: {ratio, ne, base_rate, n}}; null takes that of the live release in the main job, and none elsewhere.
        record_margin: Change of production's own sum p / sum y against its record that holds: labels or the world changed.
        record_ne_margin: Relative increase of production's own NE against its record that holds.
        severity: Family or check name -> ``block``, ``warn`` or ``info``, where it differs from the default.
    """

    name: str
    first: str = "hold"
    slices: list[str] | None = None
    actions: list[str] | None = None
    score_kind: str = "probability"
    runs_per_year: float = 365.0
    false_alarms_per_year: float = 4.0
    confidence: float = 0.95
    power: float = 0.8
    prove_within: float = 5.0
    auc_margin: float = 0.002
    gauc_margin: float = 0.004
    rank_margin: float = 0.005
    ndcg_margin: float = 0.01
    ne_margin: float = 0.005
    calibration_margin: float = 0.05
    calibration_slack: float = 0.02
    ecce_margin: float = 0.02
    share_margin: float = 0.10
    quantile_share_margin: float = 0.15
    excuse_backed: bool = True
    slice_factor: float = 1.5
    reference_factor: float = 1.0
    adaptive_factor: float = 5.0
    quantiles: list[float] = field(default_factory=lambda: [0.1, 0.01, 0.001])
    rows_per_quantile: float = 800.0
    churn_budget: float = 0.3
    churn_floor_factor: float = 1.5
    composition_margin: float = 0.1
    composition: dict[str, str] = field(default_factory=dict)
    top_k: int = 10
    suspicious_auc: float = 0.1
    suspicious_relative: float = 0.15
    min_rows: int = 200
    min_positives: int = 20
    max_slice_values: int = 200
    numeric_bins: int = 5
    untestable_share: float = 0.2
    unscored_share: float = 0.0
    repair: list[str] = field(default_factory=list)
    calibrator: str = AUTO
    repair_share: float = 0.5
    production_record: str | None = None
    record_margin: float = 0.05
    record_ne_margin: float = 0.02
    severity: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice("gate.first", self.first, FIRST)
        choice("gate.score_kind", self.score_kind, SCORE_KINDS)
        for content in self.composition:
            choice("gate.composition", content, CONTENTS)
        _within("gate.confidence", self.confidence, 0.5, 1.0)
        _within("gate.power", self.power, 0.0, 1.0)
        _within("gate.false_alarms_per_year / gate.runs_per_year", self.alpha, 0.0, 0.5)
        margins = (name for name in self.__dataclass_fields__ if name.endswith("_margin"))
        _positive(self, *margins, "runs_per_year", "slice_factor", "rows_per_quantile", "churn_budget", "top_k", "suspicious_auc")
        _positive(self, "reference_factor", "adaptive_factor", "churn_floor_factor")
        _positive(self, "suspicious_relative", "min_rows", "min_positives", "max_slice_values", "numeric_bins", "prove_within")
        for share in self.quantiles:
            _within("gate.quantiles", share, 0.0, 1.0)
        for repair in self.repair:
            choice("gate.repair", repair, REPAIRS)
        choice("gate.calibrator", self.calibrator, (AUTO, *CALIBRATORS))
        _within("gate.repair_share", self.repair_share, 0.0, 1.0)
        if self.prove_within < 1:
            raise ConfigError("a pass demands at most the margin", where="gate.prove_within", got=self.prove_within, expected="1 or more")
        if not 0 <= self.unscored_share < 1:
            raise ConfigError("out of range", where="gate.unscored_share", got=self.unscored_share, expected="at least 0, below 1")
        if self.calibration_slack < 0 or not 0 <= self.untestable_share <= 1:
            raise ConfigError(
                "out of range", where="gate.calibration_slack, gate.untestable_share",
                got=f"{self.calibration_slack}, {self.untestable_share}", expected="slack >= 0, share between 0 and 1",
            )  # fmt: skip
        for key, value in self.severity.items():
            if not key.startswith(CHECK_PREFIXES):
                choice("gate.severity", key, FAMILIES + CHECKS)
            choice(f"gate.severity.{key}", value, SEVERITIES)

    @property
    def alpha(self) -> float:
        """False-alarm probability that all blocking tests of one run share."""
        return self.false_alarms_per_year / self.runs_per_year if self.runs_per_year > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class ThresholdRule:
    """Something downstream happens to rows whose score is at least `at_least`.

    Attributes:
        score: Action, blend, or ``value``.
        at_least: The live threshold, on production's scale.
    """

    score: str
    at_least: float


@dataclass(frozen=True, kw_only=True)
class CapRule:
    """A score is cut off at `at_most` before it is used; what counts is how much traffic hits the cap."""

    score: str
    at_most: float


@dataclass(frozen=True, kw_only=True)
class TopKRule:
    """The `k` best rows of a slate by `score` go on; the others are dropped."""

    score: str
    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError("must be positive", where="rules.top_k.*.k", got=self.k)


@dataclass(frozen=True, kw_only=True)
class PythonRule:
    """A rule that is code: the user's own function, run once on production's scores and once on the challenger's, same rows.

    It is named by the user's configuration alone, never by a bundle. Its batch is a mapping of numpy columns: every column of the
    predictions that is no score or label (``user``, ``item``, ``country``, ...), ``score_<action>``, ``value``, and the blends.
    It returns one number a row, not negative: a decision (0 or 1, or a boolean), or the final score.

    Attributes:
        function: ``package.module:function``, or ``/path/rules.py:function``.
    """

    function: str

    def __post_init__(self) -> None:
        module, _, name = self.function.rpartition(":")
        if not module or not name.isidentifier():
            raise ConfigError("no entry point", where="rules.python.*.function", got=self.function, expected="package.module:function")


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """The rules behind the model, replayed on production's and the challenger's scores of the same rows.

    Attributes:
        thresholds: Rule name -> threshold.
        blends: Blend name -> {action: weight}, a weighted sum of scores that other rules may refer to.
        caps: Rule name -> cap; blends see the capped score.
        top_k: Rule name -> cut of a slate.
        python: Rule name -> the user's own function.
    """

    thresholds: dict[str, ThresholdRule] = field(default_factory=dict)
    blends: dict[str, dict[str, float]] = field(default_factory=dict)
    caps: dict[str, CapRule] = field(default_factory=dict)
    top_k: dict[str, TopKRule] = field(default_factory=dict)
    python: dict[str, PythonRule] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether no rule is declared, so that production's quantiles stand in for thresholds."""
        return not (self.thresholds or self.caps or self.top_k or self.python)
