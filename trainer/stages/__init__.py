"""The stages as the pipeline calls them: what each reads, under which key it is kept, and the line it prints.

Nothing is computed here. A stage's own package does the work and knows neither the run's folder nor the configuration as a
whole; these functions hand it exactly what it needs.
"""

from trainer.stages.delivery import judge
from trainer.stages.history import as_of
from trainer.stages.inputs import labels, plan, rebuild, scan
from trainer.stages.judging import evaluate, gate
from trainer.stages.question import judged_before, nothing_to_do, question
from trainer.stages.reporting import report
from trainer.stages.serving import serving
from trainer.stages.shipping import absorb, downstream, export, release
from trainer.stages.training import continue_production, dry_run, train

__all__ = [
    "absorb",
    "as_of",
    "continue_production",
    "downstream",
    "dry_run",
    "evaluate",
    "export",
    "gate",
    "judge",
    "judged_before",
    "labels",
    "nothing_to_do",
    "plan",
    "question",
    "rebuild",
    "release",
    "report",
    "scan",
    "serving",
    "train",
]
