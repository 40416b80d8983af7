"""Configuration of `scripts/import_checkpoint.py` (`conf/import.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.shipping import RegistryConfig
from trainer.errors import ConfigError
from trainer.schema.time import parse_day
from trainer.schema.validate import choice

FORMATS = ("state_dict", "lightning", "rectools")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Turns a checkpoint of other code into a release that the next run can start from.

    Attributes:
        format: ``state_dict`` (safetensors, or a torch file that holds tensors only), ``lightning`` (its ``state_dict`` is read) or
            ``rectools`` (a folder that `scripts/export_rectools.py` wrote).
        checkpoint: The file, or the folder.
        vocabulary: Ids of the items in row order: Parquet (column ``id``, optional ``count``), JSON list, or text with an id a line.
        names: YAML that says what the ranker is and where each of its tensors comes from (`trainer.importing.names.NameMap`).
        probe: Inputs with the scores that the checkpoint's own code gave them (`trainer.importing.probe`).
        as_of: Last day of the data that the checkpoint was trained on.
        promote: Make the imported model live. Only where nothing is live yet: replacing a live model is the gate's decision.
        registry: Where the release is sealed.
    """

    format: str
    checkpoint: str
    as_of: str
    vocabulary: str | None = None
    names: str | None = None
    probe: str | None = None
    promote: bool = False
    registry: RegistryConfig

    def __post_init__(self) -> None:
        choice("format", self.format, FORMATS)
        parse_day(self.as_of)
        for name in ("vocabulary", "names", "probe"):
            given = getattr(self, name) is not None
            if self.format == "rectools" and given:
                raise ConfigError("the exported folder holds this already", where=name, got=getattr(self, name), remedy=f"leave {name} out")
            if self.format != "rectools" and not given:
                raise ConfigError(f"format={self.format} needs a {name} file", where=name, remedy=f"give {name}=FILE")
