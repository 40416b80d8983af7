"""From examples to packed batches: encode a partition into a shard, plan batches, load them.

Follow one batch: `encode.encode_shard` turns a (day, user bucket) partition into arrays, `plan.plan_batches` chooses its
user-days, `batches.take` gathers them into a `models.batch.Batch`.
"""

from trainer.data.batches import take
from trainer.data.encode import Encoder, Shard
from trainer.data.module import BatchModule
from trainer.data.plan import BatchPlan, plan_batches
from trainer.data.shards import ShardStore

__all__ = ["BatchModule", "BatchPlan", "Encoder", "Shard", "ShardStore", "plan_batches", "take"]
