"""What a user sees when something is wrong: one message, the documented code, the registry untouched."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.integration.conftest import SMALL

pytestmark = pytest.mark.integration


def script(name, *arguments, **options):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=options.pop("cwd", ROOT), **options)


def retrain(simulated, folder, *arguments, **options):
    places = (f"data.root={simulated}", f"registry.root={folder}/registry", f"run_dir={folder}/run")
    return script("retrain", *places, *SMALL, *arguments, **options)


def one_message(result, code, *words):
    assert result.returncode == code, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    assert result.stderr.count("rewarm: ") == 1
    for word in words:
        assert word in result.stderr
    return result.stderr


@pytest.mark.parametrize("argument", ["fit.passess=2", "++typo=1", "+model.foo=1", "evaluation.holdout_day=1"])
def test_an_unknown_key_is_refused_with_the_nearest(simulated, tmp_path, argument):
    one_message(retrain(simulated, tmp_path, argument), 2, "unknown key", argument.lstrip("+").split("=")[0])


@pytest.mark.parametrize(
    ("argument", "word"),
    [("optimizer.lr=-1", "optimizer.lr"), ("fit.device=tpu", "fit.device"), ("model=sasrek", "sasrec"), ("fit.passes=two", "fit.passes")],
)
def test_a_wrong_value_is_refused_by_name(simulated, tmp_path, argument, word):
    one_message(retrain(simulated, tmp_path, argument), 2, word)


@pytest.mark.parametrize(
    ("argument", "code", "words"),
    [
        ("model=bert", 2, ["unknown choice", "model", "bert", "hstu, sasrec"]),
        ("data.spec={folder}/none.yaml", 2, ["cannot read the log specification", "none.yaml", "No such file"]),
        ("data.spec={folder}/text.yaml", 2, ["not a mapping", "text.yaml", "begin with name"]),
        ("data.spec={folder}/half.yaml", 2, ["cannot read the log specification", "half.yaml", "line 1"]),
        ("run_dir={folder}/text.yaml", 6, ["the run's files cannot be written", "text.yaml"]),
        ("run_dir=/proc/none", 6, ["the run's files cannot be written", "/proc/none"]),
        ("rebuild.root={folder}/text.yaml", 6, ["the folder of the examples cannot be written", "rebuild.root"]),
    ],
)
def test_a_file_or_folder_that_is_none_is_one_message(simulated, tmp_path, argument, code, words):
    (tmp_path / "text.yaml").write_text("just text")
    (tmp_path / "half.yaml").write_text("event_time: {column: ts")
    message = one_message(retrain(simulated, tmp_path, argument.format(folder=tmp_path)), code, *words)
    assert "Config search path" not in message and not (tmp_path / "registry").exists()


def test_no_data_at_all(tmp_path):
    (tmp_path / "log" / "events").mkdir(parents=True)
    one_message(retrain(tmp_path / "log", tmp_path), 3, "no day folder")
    one_message(retrain(tmp_path / "nowhere", tmp_path), 3, "does not exist")
    assert not (tmp_path / "registry").exists() and not (tmp_path / "run").exists()


def test_as_of_before_the_first_day(simulated, tmp_path):
    message = one_message(retrain(simulated, tmp_path, "as_of=2020-01-01"), 3, "before the first day")
    assert "2026-03-02" in message


def test_a_mapping_that_names_a_missing_column(simulated, tmp_path):
    message = one_message(retrain(simulated, tmp_path, "data.user=user_idd"), 2, "user_idd")
    assert "user_id" in message
    assert not (tmp_path / "registry").exists()


def test_an_empty_day_is_refused_and_said(simulated, tmp_path):
    log = tmp_path / "log"
    shutil.copytree(simulated, log)
    day = log / "events" / "dt=2026-03-07"
    for file in day.iterdir():
        file.unlink()
    one_message(retrain(log, tmp_path, "as_of=2026-03-07"), 3, "2026-03-07", "empty_day")


@pytest.mark.parametrize("damage", ["not json", '{"production": "gone", "revision": 3, "version": 1}'])
def test_a_broken_registry_stops_the_run_before_anything_is_written(simulated, tmp_path, damage):
    aliases = tmp_path / "registry" / "default" / "aliases.json"
    aliases.parent.mkdir(parents=True)
    aliases.write_text(damage)
    one_message(retrain(simulated, tmp_path), 4, "remedy")
    assert aliases.read_text() == damage and not (tmp_path / "run").exists()


def test_a_full_disk_leaves_the_registry_untouched(simulated, tmp_path):
    def small_files():  # every file larger than this fails to be written, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    result = retrain(simulated, tmp_path, preexec_fn=small_files)
    assert result.returncode in (3, 6), result.stderr[-3000:]
    assert result.stderr.count("rewarm: ") == 1 and "Traceback" not in result.stderr
    assert not (tmp_path / "registry").exists()


def test_a_signal_ends_with_75_and_the_same_command_goes_on(simulated, tmp_path):
    arguments = [f"data.root={simulated}", f"registry.root={tmp_path}/registry", f"run_dir={tmp_path}/run", *SMALL, "gate.first=promote"]
    command = [sys.executable, str(ROOT / "scripts" / "retrain.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "stages" / "rebuild.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert "SIGTERM" in errors and not (tmp_path / "registry").exists()
    again = script("retrain", *arguments)
    assert again.returncode in (0, 10, 20), again.stderr
    assert "(kept)" in again.stdout


def test_a_sweep_goes_on_after_a_failing_trial(simulated, tmp_path):
    arguments = [
        f"data.root={simulated}",
        f"registry.root={tmp_path}/registry",
        f"rebuild.root={tmp_path}/examples",
        "as_of=2026-03-04",
        *SMALL,
    ]
    result = script(
        "train", "-m", *arguments, "data.user=user_idd,user_id", env={**os.environ, "REWARM_SWEEP_DIR": str(tmp_path / "sweeps")}
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("rewarm: ") == 1 and "user_idd" in result.stderr
    done = sorted(path.parent.name for path in (tmp_path / "sweeps").rglob("summary.json"))
    assert done == ["1"], "the second trial ran in a folder of its own"
    lines = [line for line in result.stdout.splitlines() if line.startswith("trial ")]
    objective = json.loads(next((tmp_path / "sweeps").rglob("summary.json")).read_text())["objective"]
    assert lines == [
        "trial 0 data.user=user_idd", "trial 0 data.user=user_idd: failed with exit code 2",
        "trial 1 data.user=user_id", f"trial 1 data.user=user_id: {objective}",
    ]  # fmt: skip


def test_a_sweep_of_which_nothing_came_says_so(simulated, tmp_path):
    arguments = [f"data.root={simulated}", f"registry.root={tmp_path}/registry", f"hydra.sweep.dir={tmp_path}/sweeps", "as_of=2026-03-04"]
    result = script("train", "-m", *arguments, "data.user=user_idd,user_iddd", *SMALL)
    assert result.returncode == 2 and result.stderr.count("rewarm: ") == 2


def test_scan_alone(simulated, tmp_path):
    clean = script("scan", f"data.root={simulated}", f"run_dir={tmp_path}/clean", "scan.workers=1")
    assert clean.returncode == 0, clean.stderr
    log = tmp_path / "log"
    shutil.copytree(simulated, log)
    file = log / "events" / "dt=2026-03-05" / "part-0.parquet"
    file.write_bytes(file.read_bytes()[:-1000])
    damaged = script("scan", f"data.root={log}", f"run_dir={tmp_path}/damaged", "scan.workers=1")
    assert damaged.returncode == 3, damaged.stdout + damaged.stderr
    days = json.loads((tmp_path / "damaged" / "scan.json").read_text())["days"]
    assert [day for day, state in days.items() if state["status"] == "refused"] == ["2026-03-05"]


def test_gate_alone_on_any_two_models(tmp_path):
    rng = np.random.default_rng(0)
    users, rows = 2000, 20_000
    p = 1 / (1 + np.exp(-rng.normal(-1.5, 1.0, rows)))
    table = {
        "user": rng.integers(0, users, rows), "item": rng.integers(0, 500, rows), "time": np.arange(rows) * 1000,
        "label_click": (rng.random(rows) < p).astype(float), "production_click": p, "challenger_click": p,
        "value_production": p, "value_challenger": p,
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "same.parquet")
    pq.write_table(
        pa.table({**table, "challenger_click": np.minimum(p * 1.3, 0.999), "value_challenger": p * 1.3}), tmp_path / "scaled.parquet"
    )
    same = script("gate", f"predictions={tmp_path}/same.parquet", f"run_dir={tmp_path}/same")
    assert same.returncode == 0, same.stdout + same.stderr
    scaled = script("gate", f"predictions={tmp_path}/scaled.parquet", f"run_dir={tmp_path}/scaled")
    assert scaled.returncode == 10, scaled.stdout + scaled.stderr
    assert (tmp_path / "scaled" / "report.html").exists()
    missing = script("gate", f"predictions={tmp_path}/same.parquet", "gate.slices=[country]", f"run_dir={tmp_path}/missing")
    assert missing.returncode == 10 and "country" in (tmp_path / "missing" / "verdict.json").read_text()
    one_message(script("gate", f"predictions={tmp_path}/absent.parquet", f"run_dir={tmp_path}/absent"), 3, "absent.parquet")


def test_a_log_of_ones_own_needs_no_declared_features(simulated, tmp_path):
    (tmp_path / "my_logs.yaml").write_text(
        f"""
name: mine
root: {simulated}
layout: {{path: events}}
timezone: Asia/Shanghai
user: user_id
item: item_id
event_time: {{column: event_time_ms}}
actions:
  click: {{expression: click, weight: 1.0}}
  finished: {{expression: "watch_time_s >= 0.9 * duration_s", weight: 2.0}}
features:
  tab: {{kind: categorical}}
evaluation: {{slices: [tab]}}
"""
    )
    arguments = [
        f"data.spec={tmp_path}/my_logs.yaml",
        f"registry.root={tmp_path}/registry",
        f"run_dir={tmp_path}/run",
        "as_of=2026-03-05",
        *SMALL,
    ]
    result = script("train", *arguments)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["challenger"]) == {"click", "finished"}


def test_release_operations_on_an_empty_registry(tmp_path):
    assert script("release", f"registry.root={tmp_path}/registry", "action=status").returncode == 0
    one_message(script("release", f"registry.root={tmp_path}/registry", "action=rollback"), 4, "roll back")


SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if "trainer.commands" in path.read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_quick_and_says_how(name):
    begin = time.perf_counter()
    result = script(name, "--help")
    assert result.returncode == 0 and f"python scripts/{name if name != 'train' else 'retrain'}.py" in result.stdout
    assert "exit codes" in result.stdout
    assert ("simulation:" in result.stdout) == (name == "simulate"), "only the groups that a script has"
    assert time.perf_counter() - begin < 20  # about one second on a quiet machine; generous for a busy one


@pytest.mark.parametrize("name", sorted({path.stem for path in (ROOT / "scripts").glob("*.py")} - set(SCRIPTS)))
def test_scripts_without_a_configuration_explain_themselves_and_do_nothing_else(name, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{name}.py" in result.stdout
    assert not list(tmp_path.iterdir())
