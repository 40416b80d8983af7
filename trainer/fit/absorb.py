"""Absorbing the holdout: after the verdict, a copy of the judged trunk learns the judged days too and may be served.

The newest day is the most valuable one and the judgement has held it back. The judged trunk itself stays as it is: it is the
parent of the next run, for which these days are new, so that no weight that lives on ever sees a row twice.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.checkpoint import Bundle, build_ranker, write_bundle
from trainer.config import RetrainConfig
from trainer.data import Encoder, ShardStore, plan_batches
from trainer.days import DayPlan
from trainer.errors import DataError
from trainer.fit.run import fit
from trainer.fit.train import action_weights, encode_shards, shard_keys
from trainer.schema.bundle import OPTIMIZER, SERVING, TRANSFER, TRUNK, seen_until
from trainer.schema.examples import ExamplesManifest
from trainer.schema.time import day_end_ms


def absorb(
    config: RetrainConfig, root: Path, manifest: ExamplesManifest, days: DayPlan, judged: Bundle, out: Path, *, logger: Any = None
) -> tuple[Bundle, int]:
    """Trains a copy of the judged trunk on the holdout, one pass under the schedule of a warm run.

    Args:
        config: The run.
        root: Folder of the examples.
        manifest: What rebuild wrote there.
        days: The run's days; its holdout is absorbed.
        judged: The challenger that was judged; ids that it does not know stay unknown to the copy.
        out: Folder of the new bundle; scratch files lie beside it.
        logger: Lightning logger.

    Returns:
        A bundle with the judged trunk and moments, and the copy's weights for serving; and the steps it took.

    Raises:
        DataError: If the holdout has no row.
        TrainingError: If training diverges.
    """
    store, keys = ShardStore(out.parent / f"{out.name}-shards"), shard_keys(manifest, days.holdout)
    if not keys:
        raise DataError("the holdout has no row to absorb", got=", ".join(days.holdout), remedy="release.absorb=false")
    encoder = Encoder(judged.manifest.inputs, judged.vocabularies)
    encode_shards(store, root, manifest, keys, encoder, day_end_ms(days.as_of, config.data.timezone), None)
    trunk, moments = judged.tensors(TRUNK), judged.tensors(OPTIMIZER)
    plan = plan_batches(
        keys,
        store.lengths,
        batch_targets=config.fit.batch_targets,
        batch_tokens=config.fit.batch_tokens,
        passes=1,
        seed=config.seed,
        ranks=config.fit.devices if config.fit.device == "ddp" else 1,
    )
    result = fit(
        build_ranker(judged, TRUNK).train(),
        store,
        plan,
        action_weights=action_weights(config, judged.manifest.inputs),
        optimizer=config.optimizer,
        schedule=config.schedule,
        config=replace(config.fit, day_weights=False),
        seed=config.seed,
        warm=True,
        folder=out.parent / f"{out.name}-fit",
        moments=by_parameter(moments),
        logger=logger,
    )
    bundle = write_bundle(
        out,
        replace(judged.manifest, absorbed={day: manifest.source_days[day] for day in days.holdout}, files={}),
        trunk=trunk,
        serving=result.serving,
        optimizer=moments,
        vocabularies=judged.vocabularies,
        items=judged.items(),
        transfer=json.loads((judged.path / TRANSFER).read_text()) if TRANSFER in judged.manifest.files else None,
        days={day: judged.tensors(name) for name, day in seen_until(judged.manifest).items() if name != SERVING},
    )
    return bundle, result.steps + result.annealed


def by_parameter(moments: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups ``<parameter>/<key>`` by parameter."""
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in moments.items():
        parameter, _, key = name.rpartition("/")
        grouped[parameter][key] = tensor
    return dict(grouped)
