"""Why did it get worse? Production as the control, on fresh and on golden data. Reads artefacts; no torch."""

from trainer.diagnose.ablation import ablate
from trainer.diagnose.fresh import cohorts, drift, odd_cohorts
from trainer.diagnose.run import diagnose
from trainer.diagnose.show import show
from trainer.diagnose.worst import worst_slices

__all__ = ["ablate", "cohorts", "diagnose", "drift", "odd_cohorts", "show", "worst_slices"]
