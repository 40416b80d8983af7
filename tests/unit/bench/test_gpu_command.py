"""The one command for a GPU: its plan, what its steps' own parsers say to it, and what becomes of steps that fail, hang or come late."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[3] / "scripts" / "bench"


def load(name):
    spec = importlib.util.spec_from_file_location(f"bench_{Path(name).stem}", BENCH / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu():
    return load("gpu.py")


def asked(**options):
    return argparse.Namespace(**{"device": "gpu", "data": None, "rectools": None, **options})


def step(gpu, name, code, seconds=20, show=None):
    return gpu.Step(name, f"what {name} shows", [sys.executable, "-c", code], seconds, show or gpu.verbatim)


@pytest.mark.parametrize("options", [{}, {"data": Path("/logs"), "rectools": "/env/python"}], ids=["made-up", "logs"])
@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_every_script_understands_the_options_that_it_is_given(gpu, monkeypatch, device, options):
    steps = gpu.plan(asked(device=device, **options))
    assert ("rectools" in [each.name for each in steps]) == bool(options)
    for each in steps:
        if each.command[1] == "-m":
            folders = [BENCH.parents[1] / word for word in each.command if word.startswith("tests/")]
            assert folders and all(folder.is_dir() for folder in folders)
            continue
        script = load(Path(each.command[1]).relative_to(BENCH))
        monkeypatch.setattr(sys, "argv", each.command[1:])
        understood = (script._options if hasattr(script, "_options") else script._arguments)()
        assert understood.device == device
        if each.name.startswith("deep") and device == "gpu":
            assert (understood.dim, understood.layers, understood.history, understood.lengths) == (1024, 8, 4096, "full")
        if each.name == "d256" and device == "gpu":
            assert (understood.dim, understood.layers) == (256, 4)
            assert understood.data == ("/logs/ml-1m/sasrec_order.parquet" if options else None)


def test_the_steps_without_a_comparison_fit_a_lease_of_ten_minutes_one_by_one(gpu):
    limits = [each.seconds for each in gpu.plan(asked())]
    assert max(limits) <= 180 and limits[:3] == [180, 60, 60], "what must be seen comes first"


def test_a_comparison_needs_a_log_and_an_unknown_step_is_named(gpu):
    with pytest.raises(SystemExit, match="--data DIR"):
        gpu.plan(asked(rectools="/env/python"))
    with pytest.raises(SystemExit, match="no step tea; there are kernels"):
        gpu.chosen(gpu.plan(asked()), ["tea", "fit"])
    assert [each.name for each in gpu.chosen(gpu.plan(asked()), ["fit", "kernels"])] == ["kernels", "fit"]


def test_without_a_device_it_says_so_in_a_sentence(tmp_path):
    command = [sys.executable, str(BENCH / "gpu.py"), "--out", str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""}, check=False)
    assert found.returncode == 2 and found.stdout.startswith("no CUDA device is here") and not (tmp_path / "out").exists()
    found = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""}, check=False)
    assert found.returncode == 0 and "train.py --device gpu" in found.stdout and not (tmp_path / "out").exists()


def test_a_step_that_hangs_is_ended_with_all_that_it_started(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1)
    beat = tmp_path / "beat"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(beat)!r}).write_text(str(time.time())); time.sleep(0.05)"
    code = f"import subprocess, sys, time; print('here', flush=True); subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    found = gpu.run(step(gpu, "hangs", code, seconds=3), tmp_path, 100.0)
    assert found.code is None and found.said == "stopped at its limit" and found.output == "here\n" and found.seconds < 20
    last = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == last, "a grandchild goes on"


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [("12 skipped, 3 deselected in 2 s", 1, "nothing ran: every test was skipped"), ("9 passed, 3 skipped in 2 s", 0, "passed")],
)
def test_tests_that_were_all_skipped_have_shown_nothing(gpu, tmp_path, monkeypatch, last, code, said):
    monkeypatch.setattr(gpu, "plan", lambda arguments: [step(gpu, "tests", f"print({last!r})", show=gpu.summary_line)])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", lambda device: "a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    assert gpu.main() == code
    assert f"| {said} |" in (tmp_path / "section.md").read_text()


def test_the_next_step_begins_where_one_fails_and_the_section_says_all(gpu, tmp_path, monkeypatch, capsys):
    profile = {"shares": {"products": 0.6, "nothing": 0.1}, "top": [["gemm_a", 0.4]]}
    row = {"architecture": "sasrec", "share": 0.352, "positions": 701_000.4, "waits": 0.031, "step": 12.34, "memory": 4321.0}
    row |= {"fastest": 12.0, "slowest": 15.0, "profile": profile}
    path = {"attention": "causal", "lengths": "zipf", "path": "varlen", "padded": 2.5, "dense": None, "share": 0.2, "ms": 1.25, "real": 0.3}
    steps = [
        step(gpu, "breaks", "print('FAILED tests/a.py::b'); print('1 failed in 2 s'); raise SystemExit(1)", show=gpu.summary_line),
        step(gpu, "trains", f"print('noise'); print({json.dumps(row)!r}); print('{{cut off')", show=gpu.training),
        step(gpu, "attends", f"print({json.dumps(path)!r})", show=gpu.attentions),
        step(gpu, "late", "print('never')", seconds=5),
    ]
    monkeypatch.setattr(gpu, "plan", lambda arguments: steps)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert gpu.main() == 1
    section = (tmp_path / "out" / "section.md").read_text()
    assert capsys.readouterr().out.endswith(section + "\n")
    for line in (
        "`python scripts/bench/gpu.py --out PATH --device cpu`, toy-sized on a CPU, 20",
        "| breaks | what breaks shows | failed (1) | ", "- `FAILED tests/a.py::b`", "`1 failed in 2 s`",
        "| sasrec | 35.2% | 701,000 | 3.1% (more than 2%) | 12.3 (12.0 to 15.0) | 4,321 |",
        "share of a step: products 60.0%, nothing 10.0%.", "- 40.0% `gemm_a`", "| causal | zipf | varlen | 2.50 | - | 20.0% | 1.25 |",
        "| late | what late shows | left out: no time was left | 0 |",
    ):  # fmt: skip
        assert line in section, line
    assert str(tmp_path) not in section
    assert [each["code"] for each in json.loads((tmp_path / "out" / "results.json").read_text())] == [1, 0, 0, None]
    assert (tmp_path / "out" / "logs" / "trains.log").read_text().startswith("noise")


def test_a_round_on_a_device_waits_once_and_counts_its_wait(monkeypatch, capsys):
    clock = load("peers/clock.py")
    words = iter(["2\n", ""])
    monkeypatch.setattr(sys, "stdin", argparse.Namespace(readline=lambda: next(words)))
    timed = clock.Clock(wait=lambda: time.sleep(0.2), memory=lambda: 7.0, version="1")
    timed.begin()
    timed.step(3)
    with pytest.raises(clock.Finished):
        timed.step(5)
    answer = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix(clock.MARK))
    assert answer["positions"] == [3, 5] and answer["peak_mb"] == 7.0
    assert answer["seconds"][0] == answer["seconds"][1] and 0.2 <= sum(answer["seconds"]) < 1


def test_a_profile_names_the_softmax_apart_from_other_products_and_leaves_what_no_kernel_took():
    train = load("train.py")

    class Event:
        def __init__(self, name, parent=None, kernels=()):
            self.name, self.cpu_parent = name, parent
            self.kernels = [argparse.Namespace(name=kernel, duration=micro) for kernel, micro in kernels]

    softmax, update = Event("softmax"), Event("Optimizer.step#AdamW.step")
    events = [
        softmax, update, Event("aten::mm", softmax, [("nvjet_a", 100)]), Event("_Fused", softmax, [("_weigh", 50)]),
        Event("aten::mm", None, [("nvjet_a", 200)]), Event("aten::_fused_adamw_", update, [("multi_tensor", 30)]),
        Event("flash", None, [("flash_fwd_kernel", 70)]), Event("aten::gelu", None, [("vectorized", 20)]),
    ]  # fmt: skip
    found = train.profiled(argparse.Namespace(events=lambda: events), 1e-3, True)
    assert found["shares"] == pytest.approx(
        {"nothing": 0.53, "products": 0.2, "softmax": 0.15, "attention": 0.07, "optimizer": 0.03, "passes over memory": 0.02}
    )
    assert next(iter(found["shares"])) == "nothing" and found["top"][0] == ("nvjet_a", pytest.approx(0.3))
