"""The injector: copies a log, damages the copy, writes down the truth."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np

from trainer.config import InjectConfig
from trainer.errors import ConfigError, DataError, nearest
from trainer.inject import files, rows, shape, values
from trainer.inject.hazards import HAZARDS, hazard
from trainer.inject.site import Site
from trainer.logs.layout import discover_days
from trainer.schema.faults import BYTES, CATALOGUE, RUNTIME
from trainer.schema.files import write_text
from trainer.schema.injection import TRUTH_FILE, FaultSettings, Planted, Truth
from trainer.schema.logs import LogSpec
from trainer.schema.plain import as_plain
from trainer.schema.time import add_days

KINDS = tuple(CATALOGUE)

_MODULES = (files, shape, values, rows)


def run(config: InjectConfig) -> Truth:
    """Damages a copy of a log; hazards are kept up for `hold_s` seconds.

    Raises:
        ConfigError: If a kind is unknown, a fault does not fit the log, or a hazard has no time to happen in.
        DataError: If there is no log, no such day, or the output folder is not empty.
    """
    hazards = [kind for kind in config.faults if kind in HAZARDS]
    if hazards and not config.hold_s:
        raise ConfigError(
            "this fault happens while files are read, and ends with the injector", where="hold_s", got=f"0 with {', '.join(hazards)}",
            remedy="give hold_s=SECONDS, start it in the background, and read the copy meanwhile",
        )  # fmt: skip
    truth, sites = inject(config.data, Path(config.out), config.faults, day=config.day, seed=config.seed, spread=config.spread)
    with ExitStack() as stack:
        planted = [record for site in sites for record in stack.enter_context(hazard(site))]
        truth = replace(truth, planted=[*truth.planted, *planted])
        if "disk_full" not in hazards:
            _write(truth, Path(config.out))
        for record in truth.planted:
            print(
                f"{record.day}  {record.kind:<22}{record.feature or record.file or '':<34}{record.rows:>8,} rows  {record.note}", flush=True
            )
        if hazards:
            time.sleep(config.hold_s)
    return truth


def inject(
    spec: LogSpec, out: Path, faults: Mapping[str, FaultSettings], *, day: str | None = None, seed: int = 0, spread: bool = False
) -> tuple[Truth, list[Site]]:
    """Copies a log and damages the copy.

    Args:
        spec: The log; its root is only read.
        out: Folder of the copy; new or empty.
        faults: Kind -> how. Rows and values are damaged before bytes: no pipeline rewrites what storage has broken.
        day: Day to damage; default the last. A fault's own day wins.
        seed: Same log, faults and seed: same damage.
        spread: Each fault has a day of its own, going back from `day`.

    Returns:
        What was planted (also written as ``faults.json``), and the hazards, which do their damage only while
        `trainer.inject.hazard` holds them.

    Raises:
        ConfigError: If a kind is unknown, or a fault does not fit the log.
        DataError: If there is no log, no such day, or the output folder is not empty.
    """
    for kind in faults:
        if kind not in CATALOGUE:
            raise ConfigError("unknown kind of fault", where="faults", got=kind, remedy=nearest(kind, CATALOGUE))
    days = discover_days(spec)
    _copy(Path(spec.root), out)
    copy, planted, hazards = replace(spec, root=str(out)), [], []
    last = _day(day or days[-1], days)
    ordered = sorted(faults.items(), key=lambda entry: CATALOGUE[entry[0]].family in (BYTES, RUNTIME))
    for number, (kind, settings) in enumerate(ordered):
        site = Site(kind, copy, _day(settings.day or (add_days(last, -number) if spread else last), days), settings, _luck(seed, kind))
        if kind in HAZARDS:
            hazards.append(site)
        else:
            planted += _damage(site)
    truth = Truth(log=spec.name, source=str(spec.root), seed=seed, planted=planted)
    _write(truth, out)
    return truth, hazards


def damage(spec: LogSpec, kind: str, settings: FaultSettings, *, day: str, seed: int = 0) -> list[Planted]:
    """Damages one day of a log where it lies: for experiments that have a copy of their own and damage many days of it.

    Args:
        spec: The copy.
        kind: Kind of damage that stays on disk; no hazard.
        settings: How.
        day: Day to damage.
        seed: Same log, kind, settings, day and seed: same damage.

    Returns:
        What was planted.

    Raises:
        ConfigError: If the kind is unknown or a hazard, or does not fit the log.
        DataError: If the log has no such day.
    """
    if kind not in CATALOGUE or kind in HAZARDS:
        raise ConfigError("no kind of fault that stays on disk", where="kind", got=kind, remedy=nearest(kind, set(KINDS) - set(HAZARDS)))
    return _damage(Site(kind, spec, _day(day, discover_days(spec)), settings, _luck(seed, f"{kind} {day}")))


def _damage(site: Site) -> list[Planted]:
    for module in _MODULES:
        if function := getattr(module, site.kind, None):
            planted: list[Planted] = function(site)
            return planted
    raise NotImplementedError(site.kind)


def _luck(seed: int, kind: str) -> np.random.Generator:
    """Every kind has its own luck, so that a list of faults does what each of them does alone."""
    return np.random.default_rng([seed, crc32(kind.encode())])


def _day(day: str, days: list[str]) -> str:
    if day not in days:
        raise DataError("the log has no such day", where="day", got=day, expected=f"{days[0]} .. {days[-1]}")
    return day


def _copy(root: Path, out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise DataError("the output folder is not empty", where="out", got=out, remedy="choose a new folder: nothing is overwritten")
    if out.resolve().is_relative_to(root.resolve()):
        raise DataError("the output folder lies in the log", where="out", got=out, remedy="choose a folder elsewhere")
    shutil.copytree(root, out, dirs_exist_ok=True)
    for place in [out, *out.rglob("*")]:  # a read-only log gives a copy that can be damaged
        place.chmod(place.stat().st_mode | 0o200)


def _write(truth: Truth, out: Path) -> None:
    write_text(out / TRUTH_FILE, json.dumps(as_plain(truth), indent=1, ensure_ascii=False) + "\n")
