"""Reads and writes bundles (`trainer.schema.bundle`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import models
from models.ranker import Ranker, RankerShape
from trainer.checkpoint.header import check_header
from trainer.checkpoint.shards import SHARD_BYTES, ShardReader, index_path, read_sharded, stored_shapes, write_sharded
from trainer.errors import CheckpointError
from trainer.schema.bundle import BUNDLE_VERSION, DAYS, ITEMS, MANIFEST, OPTIMIZER, SERVING, TRANSFER, TRUNK, BundleManifest, day_weights
from trainer.schema.hashed import AnyVocabulary, HashedVocabulary, read_vocabulary
from trainer.schema.hashing import sha256_file, sha256_json
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.vocabulary import Vocabulary


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: Its folder.
        manifest: What it is.
        vocabularies: Rows of its tables, by id or by the hash that the manifest records.
        sha256: Hash of the manifest, which holds the hashes of all other files: the identity of the bundle.
    """

    path: Path
    manifest: BundleManifest
    vocabularies: Mapping[str, AnyVocabulary]
    sha256: str

    @property
    def shape(self) -> RankerShape:
        """The ranker's shape.

        Raises:
            CheckpointError: If the manifest declares what no ranker has.
        """
        try:
            return from_plain(RankerShape, self.manifest.shape)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError("the manifest's shape is no ranker's", where=self.path / MANIFEST, got=str(error)) from error

    @property
    def item_ids(self) -> Vocabulary:
        """The item vocabulary, which always lists its ids.

        Raises:
            CheckpointError: If the manifest says otherwise.
        """
        name = self.manifest.inputs.item_vocabulary
        vocabulary = self.vocabularies[name]
        if not isinstance(vocabulary, Vocabulary):
            raise CheckpointError("the items of a bundle cannot be hashed", where=self.path / MANIFEST, got=vocabulary.hash)
        return vocabulary

    def tensors(self, name: str = TRUNK) -> dict[str, Tensor]:
        """Reads the tensors of one file (`TRUNK`, `SERVING` or `OPTIMIZER`).

        Raises:
            CheckpointError: If the file is damaged or holds a value that is not finite; the tensor is named.
        """
        return read_tensors(self.path / name)

    def reader(self, name: str = TRUNK) -> ShardReader:
        """Opens the tensors of one file, to be read by rows or one at a time."""
        return ShardReader(self.path / name)

    def items(self) -> pa.Table:
        """Reads the items of the vocabulary: columns item and feature_<name>."""
        return pq.read_table(self.path / ITEMS, page_checksum_verification=True)


def write_bundle(
    path: Path,
    manifest: BundleManifest,
    *,
    trunk: dict[str, Tensor],
    serving: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    vocabularies: Mapping[str, AnyVocabulary],
    items: pa.Table,
    transfer: dict[str, Any] | None = None,
    days: Mapping[str, dict[str, Tensor]] | None = None,
) -> Bundle:
    """Writes a bundle; the manifest comes last, so that a folder without it is no bundle.

    Args:
        path: Its folder; files that an earlier attempt left there are removed.
        manifest: Everything but `files` and `hashes`, which are filled in here.
        trunk: Weights for the next warm start.
        serving: Weights that are served.
        optimizer: Moments by ``<parameter>/<moment>``.
        vocabularies: Vocabulary name -> vocabulary.
        items: Items of the vocabulary with their features.
        transfer: Transfer report of a warm start.
        days: Day -> served weights at its end, for scoring later days without a leak.

    Returns:
        The bundle as read back.

    Raises:
        CheckpointError: If a weight is not finite: such a bundle must never become a parent.
    """
    path.mkdir(parents=True, exist_ok=True)
    for stale in sorted(file for file in path.rglob("*") if file.is_file()):
        stale.unlink()  # an earlier attempt's vocabulary or transfer report would become part of this bundle
    if days:
        (path / DAYS).mkdir(exist_ok=True)
    by_day = [(day_weights(day), tensors) for day, tensors in (days or {}).items()]
    for name, tensors in ((TRUNK, trunk), (SERVING, serving), (OPTIMIZER, optimizer), *by_day):
        _check_finite(tensors, path / name)
        write_tensors(path / name, tensors)
    for name, vocabulary in vocabularies.items():
        vocabulary.write(path / "vocab" / f"{name}.parquet")
    pq.write_table(items, path / ITEMS, compression="zstd", write_page_checksum=True)
    if transfer is not None:
        (path / TRANSFER).write_text(json.dumps(transfer, indent=1))
    files = {str(file.relative_to(path)): sha256_file(file) for file in sorted(path.rglob("*")) if file.is_file()}
    hashes = {name: vocabulary.hash for name, vocabulary in vocabularies.items() if isinstance(vocabulary, HashedVocabulary)}
    (path / MANIFEST).write_text(json.dumps(as_plain(replace(manifest, files=files, hashes=hashes)), indent=1))
    return read_bundle(path)


def read_bundle(path: Path) -> Bundle:
    """Reads and verifies a bundle; tensors are read later, by file.

    Raises:
        CheckpointError: If a file is missing, altered or of another version. The file is named.
    """
    try:
        values = json.loads((path / MANIFEST).read_text())
        manifest = from_plain(BundleManifest, values)
    except FileNotFoundError as error:
        raise CheckpointError("no bundle here", where=path, expected=f"a folder with {MANIFEST}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError("cannot read a bundle's manifest", where=path / MANIFEST, got=str(error)) from error
    if manifest.version != BUNDLE_VERSION:
        raise CheckpointError("bundle of another version", where=path, got=manifest.version, expected=BUNDLE_VERSION)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()) or not file.is_file():
            raise CheckpointError("a bundle's file is missing", where=file, remedy="restore the release, or roll back to another one")
        if (got := sha256_file(file)) != expected:
            raise CheckpointError(
                "a bundle's file was altered or damaged",
                where=file,
                got=got,
                expected=expected,
                remedy="restore the file, or roll back to another release",
            )
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith(".") and str(file.relative_to(path)) not in {*manifest.files, MANIFEST}:
            raise CheckpointError(
                "a bundle holds a file that its manifest does not list: it would be read unchecked", where=file, remedy="remove the file"
            )
    return Bundle(path, manifest, _vocabularies(path, manifest), sha256_json(values))


def _vocabularies(path: Path, manifest: BundleManifest) -> dict[str, AnyVocabulary]:
    """Reads every vocabulary as the manifest says that its ids find their rows."""
    files = {file.stem: file for file in sorted((path / "vocab").glob("*.parquet"))}
    for name, hashing in manifest.hashes.items():
        hashing.check(f"{path / MANIFEST}: hashes.{name}")
        if name not in files:
            raise CheckpointError("the manifest has a hash for a vocabulary that is not there", where=path / MANIFEST, got=name)
    return {name: read_vocabulary(file, manifest.hashes.get(name)) for name, file in files.items()}


def write_tensors(file: Path, tensors: dict[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes tensors to one safetensors file, or as shards with an index where they are larger than a shard."""
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > shard_bytes:
        file.unlink(missing_ok=True)
        write_sharded(file, tensors, shard_bytes)
    else:
        index_path(file).unlink(missing_ok=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}, file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, or its shards, and checks that every value is finite.

    Raises:
        CheckpointError: Naming the file, and the tensor where one is at fault.
    """
    if index_path(file).exists():
        return read_sharded(file)
    check_header(file)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError("cannot read tensors", where=file, got=str(error)) from error
    _check_finite(tensors, file)
    return tensors


def build_ranker(bundle: Bundle, weights: str = SERVING) -> Ranker:
    """Builds the ranker of a bundle with its weights, in evaluation mode.

    Raises:
        CheckpointError: If tensors do not fit the shape that the manifest declares.
    """
    try:
        shape = bundle.shape
        with torch.device("meta"):  # what a manifest claims takes no memory before the file agrees
            claimed = models.build(shape).state_dict()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError("the manifest's shape is no ranker's", where=bundle.path / MANIFEST, got=str(error)) from error
    _check_fit({name: tuple(tensor.shape) for name, tensor in claimed.items()}, stored_shapes(bundle.path / weights), bundle.path / weights)
    ranker = models.build(shape)
    load_strictly(ranker, bundle.tensors(weights), bundle.path / weights)
    return ranker.eval()


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], where: Path | str) -> None:
    """Loads tensors by name; every tensor of both sides must match in name and shape.

    Raises:
        CheckpointError: Naming the first tensor that does not match.
    """
    wanted, got = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (module.state_dict(), tensors))
    _check_fit(wanted, got, where)
    module.load_state_dict(tensors)


def _check_fit(wanted: dict[str, tuple[int, ...]], got: dict[str, tuple[int, ...]], where: Path | str) -> None:
    for name in sorted(set(wanted) | set(got)):
        if name not in got or name not in wanted:
            side = "missing in the file" if name not in got else "unknown to the ranker"
            raise CheckpointError(f"a tensor is {side}", where=f"{where}: {name}")
        if wanted[name] != got[name]:
            raise CheckpointError("a tensor has another shape", where=f"{where}: {name}", got=got[name], expected=wanted[name])


def _check_finite(tensors: dict[str, Tensor], file: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                "a tensor holds values that are not finite",
                where=f"{file}: {name}",
                got=f"{bad} of {tensor.numel()}",
                remedy="never start from these weights; take the previous release",
            )
