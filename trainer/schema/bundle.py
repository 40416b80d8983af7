"""A bundle is a model as files: data only, no pickled objects, no class chosen by a file.

bundle/manifest.json            `BundleManifest`; holds a hash of every other file
(tensors larger than a shard lie in <name>-00000.safetensors, ... with <name>.safetensors.index.json)
bundle/trunk.safetensors        weights at the constant learning rate: parent of the next warm start
bundle/serving.safetensors      weights that are served (averaged)
bundle/optimizer.safetensors    `<parameter>/exp_avg`, `<parameter>/exp_avg_sq`, `<parameter>/step`, by parameter name
bundle/vocab/<name>.parquet     `trainer.schema.vocabulary`, or `trainer.schema.hashed` where the manifest records a hash
bundle/items.parquet            every item of the vocabulary with its features: what item vectors are made of
bundle/transfer.json            how it was warm-started, if it was
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.schema.hash_function import HashFunction
from trainer.schema.inputs import InputSpec

BUNDLE_VERSION = 1

TRUNK = "trunk.safetensors"
SERVING = "serving.safetensors"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"
TRANSFER = "transfer.json"
ITEMS = "items.parquet"
DAYS = "days"  # served weights at the end of each day, if asked for


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """What a bundle is. No clock times: the same training yields the same manifest.

    Attributes:
        version: Version of this schema.
        code_version: Version of rewarm that wrote it.
        shape: `models.RankerShape` as plain values.
        inputs: Frozen interface to examples.
        features: Declared features (`FeatureSpec` as plain values) that the inputs need.
        labels: Action -> expression, so that a changed label is seen.
        value: Version and weights of the value function.
        config: Resolved configuration of the run.
        axes: Parameter -> meaning of each dimension (see `models.ranker.Ranker.axes`).
        trained: Day -> content hash of every partition that the weights have seen, ancestors included.
        watermark_ms: Latest event time among all targets that the weights have seen, ancestors included (UTC).
        absorbed: Day -> content hash of partitions that the serving weights alone have seen; the trunk has not.
        parent: Hash of the parent's manifest, if warm-started.
        space_id: Space of the exported vectors.
        steps: Optimizer steps since the first ancestor.
        hashes: Vocabulary -> the hash by which its ids find their rows; the others list their ids.
        files: File -> sha256.
        seed: Seed of the run.
    """

    version: int = BUNDLE_VERSION
    code_version: str
    shape: dict[str, Any]
    inputs: InputSpec
    features: dict[str, Any]
    labels: dict[str, str]
    value: dict[str, Any]
    config: dict[str, Any]
    axes: dict[str, list[str]]
    trained: dict[str, str]
    watermark_ms: int = 0
    absorbed: dict[str, str] = field(default_factory=dict)
    parent: str | None = None
    space_id: str = ""
    steps: int = 0
    hashes: dict[str, HashFunction] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    seed: int = 0


def day_weights(day: str) -> str:
    """Returns the name of the file with the weights that were served at the end of a day."""
    return f"{DAYS}/{day}.safetensors"


def seen_until(manifest: BundleManifest) -> dict[str, str]:
    """Returns weights file -> newest day that those weights have seen, for every file that can score."""
    whole = max([*manifest.trained, *manifest.absorbed], default="")
    days = [name for name in manifest.files if name.startswith(f"{DAYS}/")]
    return {SERVING: whole} | {name: name.removeprefix(f"{DAYS}/").removesuffix(".safetensors") for name in sorted(days)}
