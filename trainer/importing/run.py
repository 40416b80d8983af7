"""Imports a checkpoint: read, rename, prove, write, seal. Nothing is written before the proof holds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

import models
from models.ranker import ActionShape, Ranker, RankerShape
from trainer import __version__
from trainer.checkpoint import Bundle, write_bundle
from trainer.config import ImportConfig, ModelConfig
from trainer.errors import CheckpointError, ConfigError, RegistryError
from trainer.importing import rectools
from trainer.importing.ids import read_ids
from trainer.importing.names import NameMap, read_names, rename
from trainer.importing.probe import Proof, prove, read_probe
from trainer.importing.read import read_state
from trainer.release import Registry
from trainer.schema.bundle import BundleManifest
from trainer.schema.features import FeatureSpec
from trainer.schema.hashing import sha256_file, sha256_json
from trainer.schema.inputs import InputSpec, next_item_inputs
from trainer.schema.plain import as_plain
from trainer.schema.verdict import HOLD, PROMOTE
from trainer.schema.vocabulary import Vocabulary


@dataclass(frozen=True)
class Source:
    """A checkpoint of other code, read and checked, and what is needed to understand it.

    Attributes:
        file: The checkpoint.
        tensors: Its tensors.
        names: What it is as a ranker.
        vocabularies: Vocabulary -> ids.
        probe: File of the proof.
    """

    file: Path
    tensors: dict[str, Tensor]
    names: NameMap
    vocabularies: dict[str, Vocabulary]
    probe: Path


@dataclass(frozen=True)
class Imported:
    """What an import left behind.

    Attributes:
        version: Its release in the registry.
        model: The ranker's configuration.
        proof: How far its scores are from those of the checkpoint's own code.
        live: Whether it is production now.
    """

    version: str
    model: ModelConfig
    proof: Proof
    live: bool


def run(config: ImportConfig) -> Imported:
    """Imports a checkpoint into a registry.

    Args:
        config: What to import, and where to.

    Returns:
        The sealed release and its proof.

    Raises:
        CheckpointError: If anything of the checkpoint is damaged, foreign or left over, or the scores differ.
        ConfigError: If the names are wrong.
        RegistryError: If the registry cannot take it; it is then as it was.
    """
    registry = Registry(Path(config.registry.root), config.registry.product)
    aliases = registry.check()
    if config.promote and aliases.production is not None:
        raise RegistryError(
            "a model is live already: an import does not replace it", where=registry.folder, got=aliases.production,
            remedy="import with promote=false; then scripts/release.py action=promote version=ID override=true reason=...",
        )  # fmt: skip
    source = read_source(config)
    ranker = build(source)
    weights = rename(source.names, source.tensors, ranker, source.file)
    ranker.load_state_dict(weights)
    item_vocabulary = source.vocabularies[ranker.shape.item_vocabulary]
    proof = prove(ranker.eval(), read_probe(source.probe, ranker.shape, item_vocabulary), source.probe)
    digest = sha256_file(source.file)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_import(Path(folder) / "bundle", source, ranker, weights, digest)
        version = f"import-{bundle.sha256[:12]}"
        registry.seal(
            version, Path(folder), as_of=config.as_of, verdict=PROMOTE if config.promote else HOLD, parent=None,
            inputs_sha256=sha256_json([digest, as_plain(source.names)]),
            notes={"imported": config.format, "checkpoint": digest, "max_difference": f"{proof.max_difference:.3g}"},
        )  # fmt: skip
    if config.promote:
        registry.promote(version, aliases.revision)
    return Imported(version, source.names.model, proof, config.promote)


def read_source(config: ImportConfig) -> Source:
    """Reads the checkpoint and everything beside it.

    Raises:
        CheckpointError: If a file is damaged or foreign.
        ConfigError: If the names are wrong.
    """
    checkpoint = Path(config.checkpoint)
    if config.format == "rectools":
        names = rectools.names(rectools.read_options(checkpoint))
        vocabulary, probe = checkpoint / rectools.ITEMS, checkpoint / rectools.PROBE
        file, tensors = checkpoint / rectools.WEIGHTS, read_state(checkpoint / rectools.WEIGHTS)
    else:
        names = read_names(Path(config.names or ""))
        vocabulary, probe, file = Path(config.vocabulary or ""), Path(config.probe or ""), checkpoint
        tensors = read_state(file, _root(config, names), names.ignores)
    if names.model.hashed:
        raise ConfigError("the rows of an imported checkpoint are listed by id", where="names: model.hashed", got=names.model.hashed,
                          remedy="drop it; a run that starts from the import may hash them (warm_start.approximate=true)")  # fmt: skip
    inputs = inputs_of(names)
    files = {inputs.item_vocabulary: vocabulary}
    for name in inputs.vocabularies[1:]:
        if name not in names.vocabularies:
            raise ConfigError("a vocabulary has no file", where=f"names: vocabularies.{name}", remedy=f"write `{name}: FILE`")
        files[name] = Path(config.names or "").parent / names.vocabularies[name]
    vocabularies = {name: read_ids(path, name, config.as_of) for name, path in files.items()}
    return Source(file, tensors, names, vocabularies, probe)


def _root(config: ImportConfig, names: NameMap) -> str | None:
    """Returns the key of the weights in the file."""
    if config.format != "lightning":
        return names.root
    if names.root is not None:
        raise ConfigError(
            "a Lightning checkpoint has its weights under state_dict", where="names: root", got=names.root, remedy="drop root"
        )
    return "state_dict"


def inputs_of(names: NameMap) -> InputSpec:
    """Returns the frozen interface: the declared one, or that of a pure next-item ranker."""
    return names.inputs or next_item_inputs(names.model.max_history)


def build(source: Source) -> Ranker:
    """Builds a fresh ranker of the declared model.

    Raises:
        ConfigError: If the model is impossible.
    """
    inputs = inputs_of(source.names)
    shape = RankerShape(
        architecture=source.names.model.name,
        actions=tuple(ActionShape(name=a.name, kind=a.kind, base_rate=a.base_rate) for a in inputs.actions),
        history_actions=tuple(inputs.history_actions),
        vocabularies={name: vocabulary.rows for name, vocabulary in source.vocabularies.items()},
        item_vocabulary=inputs.item_vocabulary, item_features=inputs.item_features, token_features=inputs.token_features,
        categorical=inputs.categorical, numeric=tuple(entry.name for entry in inputs.numeric),
        **source.names.model.shape_values(),
    )  # fmt: skip
    torch.manual_seed(0)
    try:
        return models.build(shape)
    except ValueError as error:
        raise ConfigError("the names describe an impossible model", where="names: model", got=str(error)) from error


def write_import(path: Path, source: Source, ranker: Ranker, weights: dict[str, Tensor], digest: str) -> Bundle:
    """Writes the bundle of an imported ranker; it has no moments, so the first run re-warms from none."""
    inputs = inputs_of(source.names)
    if inputs.item_features:
        raise CheckpointError(
            "an imported ranker cannot have item features yet", where="names: inputs.item_features", got=inputs.item_features
        )
    manifest = BundleManifest(
        code_version=__version__, shape=as_plain(ranker.shape), inputs=inputs, features=as_plain(FeatureSpec()),
        labels={}, value={"version": "", "weights": {a.name: a.weight for a in inputs.actions}},
        config={"model": as_plain(source.names.model), "optimizer": {}, "schedule": {}},
        axes={name: list(axes) for name, axes in ranker.axes().items()}, trained={}, space_id=digest[:16],
    )  # fmt: skip
    keys = source.vocabularies[inputs.item_vocabulary].keys
    return write_bundle(
        path, manifest, trunk=weights, serving=weights, optimizer={}, vocabularies=source.vocabularies, items=pa.table({"item": keys}),
    )  # fmt: skip


def describe(imported: Imported) -> list[str]:
    """Returns what the console says of an import."""
    proof = imported.proof
    lines = [
        f"proof: {proof.rows} probes, {proof.values:,} scores, largest difference {proof.max_difference:.2e} (bound {proof.bound:.2e})",
        f"release {imported.version}: {'live' if imported.live else 'sealed, not live'}",
        "a run that starts from it needs this model, or one that extends it:",
        "  " + " ".join(f"model.{key}={value}" for key, value in overrides(imported.model).items()),
    ]
    if not imported.live:
        lines.append(f"to make it live: scripts/release.py action=promote version={imported.version} override=true reason=...")
    return lines


def overrides(model: ModelConfig) -> dict[str, Any]:
    """Returns the settings of a model that differ from the shipped defaults, as the command line takes them."""
    default = as_plain(ModelConfig(name=model.name))
    changed = {key: value for key, value in as_plain(model).items() if value != default[key]}
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in changed.items()}
