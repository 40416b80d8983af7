"""The gate: PROMOTE, HOLD or REJECT, with statistics a careful engineer trusts. Reads tables only; no torch."""

from trainer.gate.judge import conclude, judge
from trainer.gate.present import present
from trainer.gate.repair import judge_and_repair
from trainer.gate.run import run, write_verdict

__all__ = ["conclude", "judge", "judge_and_repair", "present", "run", "write_verdict"]
