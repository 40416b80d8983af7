"""Configuration of `scripts/diagnose.py`."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.schema.validate import positive


@dataclass(frozen=True, kw_only=True)
class DiagnoseRunConfig:
    """`scripts/diagnose.py`: explains the verdict of a finished run (`conf/diagnose.yaml`).

    Attributes:
        run_dir: Folder of the run, as retrain or gate wrote it.
        predictions: Table that was judged, where it does not lie in the folder.
        days: Days before the judged ones whose labels and features are compared with them.
        ablation: Whether both models are scored again without each feature; needs the run's examples, and takes minutes.
        rows: Rows that the ablation scores.
    """

    run_dir: str
    predictions: str | None = None
    days: int = 7
    ablation: bool = False
    rows: int = 20_000

    def __post_init__(self) -> None:
        positive("days", self.days)
        positive("rows", self.rows)
