"""Warm start: production's weights into a new run, in three steps that are usable apart.

    source = Side.of(production, production_vocabularies, sha256)       # a models.Ranker and the ids of its tables
    target = Side.of(challenger, challenger_vocabularies)               # other order, more layers, wider: freshly initialised
    transfer = plan(source, target, Rules(rename={"click": "click@feed"}))
    show({"fates": as_plain(transfer.fates), ...})                       # or `python scripts/train.py warm_start.dry_run=true`
    challenger.load_state_dict(apply(transfer, source, target, production.state_dict(), challenger.state_dict()))
    parity = verify(production.eval(), challenger.eval(), probes, transfer.exact)
    moments = carry_moments(transfer, source, target, optimizer_state)  # by parameter name and row

`plan` reads shapes, axes and keys, never a weight: every tensor of both sides gets exactly one fate. `apply` refuses a plan
that refuses a tensor, or loses too much of a family of tensors. `verify` raises where an exact plan does not reproduce
production. `stream` does what `apply` and `carry_moments` do for tables that do not fit in memory.

| file | what is in it |
|---|---|
| `side.py` | what the planner knows of a model |
| `names.py` | rename rules and places of added layers |
| `places.py` | one dimension: where entries come from, what new ones hold; the rules of exact growth |
| `plan.py` | fates, coverage, refusals |
| `apply.py`, `rows.py` | weights; rows of new ids |
| `buckets.py` | rows by id and by hash: where they come from |
| `moments.py` | optimizer state |
| `stream.py` | the same, shard by shard |
| `verify.py`, `measure.py` | parity on probe rows; what removed features and new ids cost |
| `merge.py` | averages between beginning and end |
| `show.py` | the table that a person reads |

The rules that all of this keeps (A1 to A25), the tests of each and mutations that they notice: `tests/invariants.py`.
"""

from trainer.schema.transfer import Rules, TensorFate, TransferPlan, plan_sha256
from trainer.warm_start.apply import apply
from trainer.warm_start.merge import merge
from trainer.warm_start.moments import carry_moments
from trainer.warm_start.plan import plan
from trainer.warm_start.side import Side
from trainer.warm_start.verify import Parity, verify

__all__ = ["Parity", "Rules", "Side", "TensorFate", "TransferPlan", "apply", "carry_moments", "merge", "plan", "plan_sha256", "verify"]
