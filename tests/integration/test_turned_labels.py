"""Labels that were turned over end a run before its first step, also where neither the log nor counts can tell."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import configure
from trainer import stages
from trainer.config import RetrainConfig
from trainer.errors import DataError
from trainer.inject import damage
from trainer.job import Job
from trainer.pipeline import retrain
from trainer.schema.injection import FaultSettings

pytestmark = pytest.mark.integration
NEW, AS_OF = "2026-03-06", "2026-03-07"  # production has not seen the first; the second is judged


@pytest.fixture(scope="module")
def night(simulated, tmp_path_factory):
    """A log without logged scores, a scan with too little history to count, and a production that ranks."""
    folder = tmp_path_factory.mktemp("night")
    shutil.copytree(simulated, folder / "log")

    def config(run: str, *overrides: str, as_of: str = AS_OF) -> RetrainConfig:
        places = (
            f"data.root={folder}/log",
            f"registry.root={folder}/registry",
            f"rebuild.root={folder}/examples",
            f"run_dir={folder}/{run}",
        )
        made = configure(*places, "scan.min_history_days=30", f"as_of={as_of}", *overrides)
        return replace(made, data=replace(made.data, logged_scores={}))

    assert retrain(config("first", "gate.first=promote", as_of="2026-03-05")).verdict == "PROMOTE"
    return folder, config


def up_to_the_labels(config: RetrainConfig) -> None:
    job = Job.open(config)
    health = stages.scan(job)
    assert health.days[NEW].status == "ok", "the scan alone cannot tell"
    days = stages.plan(job, health)
    assert NEW in days.train
    stages.labels(job, stages.rebuild(job, health, days), days)


def test_a_flipped_day_is_refused_before_the_first_step(night, capsys):
    folder, config = night
    clean = config("flipped")
    damage(clean.data, "label_flip", FaultSettings(), day=NEW)
    with pytest.raises(DataError, match=rf"labels are turned over[\s\S]*{NEW}[\s\S]*label_flip=count") as refused:
        retrain(clean)
    assert refused.value.exit_code == 3 and not (folder / "flipped" / "challenger").exists()
    up_to_the_labels(config("counted", "scan.actions={label_flip: count}"))
    assert "let through" in capsys.readouterr().out
    damage(clean.data, "label_flip", FaultSettings(), day=NEW)  # turned over twice: as it was
    up_to_the_labels(config("clean"))


def test_a_world_that_moved_is_not_refused(night):
    folder, config = night
    file = next(Path(folder / "log" / "events" / f"dt={NEW}").glob("*.parquet"))
    table = pq.read_table(file, partitioning=None)
    rng = np.random.default_rng(0)
    fewer = table["click"].to_numpy() * (rng.random(len(table)) < 0.5)
    table = table.set_column(table.column_names.index("click"), "click", pa.array(fewer.astype(np.int8)))
    longer = table["duration_s"].to_numpy() * 5
    pq.write_table(table.set_column(table.column_names.index("duration_s"), "duration_s", pa.array(longer)), file)
    file.with_name("_MANIFEST.json").unlink()
    up_to_the_labels(config("moved"))
