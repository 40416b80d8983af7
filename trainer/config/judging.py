"""Configuration of what is measured on the holdout."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.schema.validate import positive


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The holdout and what is measured on it.

    Attributes:
        holdout_days: Last days that are judged, never trained on.
        slices: Feature or carried columns that become slice columns of the predictions.
        slice_rows: Smallest slice that is reported.
        new_item: Whether rows whose item no training day knew are marked in a slice column ``new_item``.
        new_user: The same for users.
        counting: Entity (``user``, ``item``, a categorical feature) -> pseudo-count of the counting baseline.
        lightgbm: Whether a LightGBM on the same features and training days stands beside the challenger.
        objective: ``<action>/<metric>`` that is a sweep trial's value.
        bootstrap: Replicates where no influence function exists.
        served_as: What the log's serving version calls the live release; null: its version in the registry.
        rescoring_tolerance: Difference between a logged score and the bundle's that is rounding; relative above 1.
        rescoring_share: Share of the logged scores that must be repeated within it, and of neighbours that must keep their order.
    """

    holdout_days: int = 1
    slices: list[str] = field(default_factory=list)
    slice_rows: int = 100
    new_item: bool = True
    new_user: bool = True
    counting: dict[str, float] = field(default_factory=lambda: {"item": 20.0, "user": 5.0})
    lightgbm: bool = False
    objective: str | None = None
    bootstrap: int = 200
    served_as: str | None = None
    rescoring_tolerance: float = 1e-4
    rescoring_share: float = 0.999

    def __post_init__(self) -> None:
        positive("evaluation.holdout_days", self.holdout_days)
        positive("evaluation.rescoring_tolerance", self.rescoring_tolerance)
        positive("evaluation.rescoring_share", self.rescoring_share)


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """The versioned value function: a request is ranked by the weighted sum of expected actions.

    Attributes:
        version: Change it whenever a weight changes.
        weights: Action -> weight; null takes the weights of the log specification.
    """

    version: int = 1
    weights: dict[str, float] | None = None
