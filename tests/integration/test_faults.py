"""Every kind of the catalogue on a simulated log: nothing crashes, nothing is silent, nothing else is accused.

The shipped policy and the shipped settings of every kind; `trainer.inject.score` compares the ledger with the truth.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, real_log
from trainer.config import ScanConfig, load
from trainer.errors import DataError
from trainer.inject import HAZARDS, KINDS, hazard, inject, score
from trainer.inject.score import HARMLESS
from trainer.scan import check_budget, discover_days, scan, write_scan
from trainer.schema.faults import CATALOGUE, FAULT_KINDS
from trainer.schema.injection import FaultSettings
from trainer.schema.logs import LogSpec
from trainer.schema.simulation import SimulationSpec
from trainer.simulate import simulate

pytestmark = pytest.mark.integration

HANGS = ("hanging_read", "footer_hang")


def shipped(name: str, root: Path) -> LogSpec:
    return load(LogSpec, yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text()) | {"root": str(root)})


def policy(store: Path | None, **changes: object) -> ScanConfig:
    values = yaml.safe_load((ROOT / "conf" / "scan" / "default.yaml").read_text())
    return load(ScanConfig, values | {"root": str(store) if store else None, "workers": 1, "slow_read_s": 3.0, **changes})


def stopped(health, config) -> bool:
    try:
        check_budget(health, config)
    except DataError:
        return True
    return False


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Ten clean days, their scan, and the folder in which the scan remembers files."""
    folder = tmp_path_factory.mktemp("faults")
    simulate(SimulationSpec(seed=11, days=10), folder / "log")
    spec = shipped("simulated", folder / "log")
    health = scan(spec, discover_days(spec), policy(folder / "store"))
    return spec, health, folder / "store"


# The kinds that happen weekly run with every change; the others, as slow together, with `make proof`.
EACH = [pytest.param(kind, marks=() if CATALOGUE[kind].weekly else pytest.mark.proof) for kind in KINDS if kind != "disk_full"]


@pytest.mark.parametrize("kind", EACH)
def test_every_kind_is_seen_named_answered_and_counted(clean, tmp_path, kind):
    spec, before, store = clean
    day = list(before.days)[-1]
    settings = yaml.safe_load((ROOT / "conf" / "faults" / f"{kind}.yaml").read_text())[kind]
    truth, sites = inject(spec, tmp_path / "log", {kind: load(FaultSettings, settings)}, day=day, seed=1)
    config = policy(store, read_deadline_s=4.0 if kind in HANGS else 120.0)
    with ExitStack() as stack:
        planted = [record for site in sites for record in stack.enter_context(hazard(site))] or truth.planted
        health = scan(replace(spec, root=str(tmp_path / "log")), list(before.days), config)
    found = score(planted, health, before, stopped(health, config))
    faults = [(fault.kind, fault.feature, fault.rows, fault.action, fault.evidence) for fault in health.days[day].faults]
    assert found.perfect, (found, planted, faults)
    assert all(fault.kind in FAULT_KINDS for state in health.days.values() for fault in state.faults)
    for other in list(before.days)[:-1]:
        assert health.days[other] == before.days[other], f"the verdict on {other} changed"


def test_the_catalogue_is_covered():
    assert set(KINDS) == set(CATALOGUE) and len(KINDS) == 54 and set(HAZARDS) < set(KINDS)


def test_a_full_disk_leaves_no_half_written_ledger(clean, tmp_path):
    spec, before, _ = clean
    _, [site] = inject(spec, tmp_path / "log", {"disk_full": FaultSettings()})
    (tmp_path / "run").mkdir()
    with hazard(site), pytest.raises(OSError):
        write_scan(before, tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    write_scan(before, tmp_path / "run")
    assert (tmp_path / "run" / "scan.json").exists() and (tmp_path / "run" / "quarantine" / "ledger.parquet").exists()


@pytest.mark.parametrize("name", ["kuairand", "globo"])
def test_clean_real_logs_are_not_accused(name):
    spec = shipped(name, real_log(name))
    health = scan(spec, discover_days(spec), policy(None))
    assert {fault.kind for state in health.days.values() for fault in state.faults} <= set(HARMLESS)
    assert {state.status for state in health.days.values()} == {"ok"}
    told = {(notice.kind, notice.day) for state in health.days.values() for notice in state.notices}
    assert told == ({("missing_hours", "2017-10-05")} if name == "globo" else set()), "no click from 6 to 13 UTC, in the first week"
    check_budget(health, policy(None))
