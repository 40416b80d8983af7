"""Cores are counted as granted, and divided without one being taken twice."""

import os
import subprocess
import sys

import pytest

from trainer.machine import MOST_THREADS, MOST_WORKERS, Share, cores, keep_freed_memory, prepare_environment, share, threads_of_openmp


@pytest.fixture
def affinity(monkeypatch):
    def grant(number):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(number)), raising=False)

    grant(64)
    return grant


def system(root, group, **files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for path, text in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_affinity_counts(affinity, tmp_path):
    affinity(6)
    assert cores(tmp_path) == 6, "no control groups"


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "390000 100000\n"}, 3),
        ("0::/jobs/one\n", {"jobs/cpu.max": "400000 100000\n", "jobs/one/cpu.max": "max 100000\n"}, 4),
        ("0::/jobs/one\n", {"jobs/cpu.max": "400000 100000\n", "jobs/one/cpu.max": "300000 100000\n"}, 3),
        ("0::/host/path\n", {"cpu.max": "500000 100000\n"}, 5),
        ("3:cpu,cpuacct:/box\n", {"cpu,cpuacct/box/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/box/cpu.cfs_period_us": "50000\n"}, 3),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("4:memory:/box\n", {"memory/box/cpu.max": "100000 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 64),
    ],
)
def test_control_groups_count(affinity, tmp_path, group, files, expected):
    assert cores(system(tmp_path, group, **files)) == expected


def test_affinity_below_the_quota(affinity, tmp_path):
    affinity(2)
    assert cores(system(tmp_path, "0::/\n", **{"cpu.max": "800000 100000\n"})) == 2


@pytest.mark.parametrize(
    ("available", "options", "expected"),
    [
        (1, {}, Share(1, 0)),
        (2, {}, Share(2, 0)),
        (64, {}, Share(MOST_THREADS, 0)),
        (64, {"most": 1}, Share(1, 0)),
        (8, {"ranks": 4}, Share(2, 0)),
        (2, {"ranks": 4}, Share(1, 0)),
        (2, {"workers": 1}, Share(1, 1)),
        (2, {"workers": 4}, Share(1, 4)),
        (2, {"threads": 3}, Share(3, 0)),
        (1, {"on_gpu": True}, Share(1, 0)),
        (2, {"on_gpu": True}, Share(1, 1)),
        (64, {"on_gpu": True}, Share(MOST_THREADS, MOST_WORKERS)),
        (16, {"on_gpu": True, "ranks": 8}, Share(1, 1)),
        (16, {"on_gpu": True, "workers": 0}, Share(16, 0)),
    ],
)
def test_share(available, options, expected):
    assert share(available, **options) == expected


@pytest.mark.parametrize("available", [1, 2, 3, 7, 16, 96])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_chosen_shares_never_exceed_the_machine(available, ranks, on_gpu):
    chosen = share(available, ranks=ranks, on_gpu=on_gpu)
    assert ranks * (chosen.threads + chosen.workers) <= max(available, ranks)


def test_environment_keeps_what_the_user_set(affinity):
    affinity(3)
    environment: dict[str, str] = {}
    prepare_environment(environment)
    assert int(environment["OMP_NUM_THREADS"]) <= 3
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(environment["GOMP_SPINCOUNT"]) > 0
    own = {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "ACTIVE"}
    prepare_environment(kept := dict(own))
    assert kept == own, "a short wait would undo an active one"


@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("2,4", 2), ("", MOST_THREADS), ("0", MOST_THREADS), ("many", MOST_THREADS)])
def test_threads_of_openmp(text, expected):
    assert threads_of_openmp({"OMP_NUM_THREADS": text}) == expected


def test_memory_settings_of_the_user_stay():
    assert not keep_freed_memory({"MALLOC_ARENA_MAX": "1"})
    assert not keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_freed_memory_is_kept():
    """A freed block of 64 MiB comes back without page faults: without the switch, every page of it faults again."""
    code = (
        "import resource, sys; from trainer.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'keep' and not keep_freed_memory({}): raise SystemExit('skip')\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt; bytearray(64 << 20)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults(); print(faults())"
    )

    def measured(mode):
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        done = subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, env=plain, check=False)
        if "skip" in done.stderr:
            pytest.skip("another C library")
        return int(done.stdout)

    assert measured("keep") < 100 < 10_000 < measured("leave")
