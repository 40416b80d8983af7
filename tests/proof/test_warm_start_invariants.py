"""The invariants of a warm start, the tests that hold them, and proof that each fails when its rule is broken.

`INVARIANTS` is the map: rule, tests, and mutations of the source, each of which at least one of the rule's tests must notice
(``pytest -m proof tests/proof/test_warm_start_invariants.py``, about three minutes of one core; the map itself is checked in
`tests/unit/warm_start/test_invariants.py`). Mutations are made in a copy.
"""

import json
import shutil
import subprocess
import sys

import pytest

from tests.invariants import INVARIANTS, ROOT

# Heavy libraries are imported once; every mutation is met by a fork that has not seen our code yet.
RUNNER = """
import json, os, sys
import lightning, numpy, pyarrow.compute, pyarrow.parquet, pytest, safetensors.torch, scipy.stats, torch
sys.path.insert(0, os.getcwd())
torch.set_num_threads(1)
for line in sys.stdin:
    file, old, new, tests = json.loads(line)
    sound = open(file).read()
    open(file, "w").write(sound.replace(old, new))
    child = os.fork()
    if not child:
        sys.dont_write_bytecode = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
        os._exit(int(code))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open(file, "w").write(sound)
    print(code, flush=True)
"""

CASES = [
    (f"{number} {index}", mutation, rule.tests) for number, rule in INVARIANTS.items() for index, mutation in enumerate(rule.mutations)
]


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    tree = tmp_path_factory.mktemp("mutated")
    for name in ("trainer", "models", "tests", "conf", "scripts"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "conf" if name == "trainer" else "-"))
    (tree / "trainer" / "conf").symlink_to(tree / "conf")
    shutil.copy(ROOT / "pyproject.toml", tree)
    with subprocess.Popen(
        [sys.executable, "-B", "-c", RUNNER], cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        process.stdin.close()


def ask(runner, file, old, new, tests):
    print(json.dumps([file, old, new, tests]), file=runner.stdin, flush=True)
    return int(runner.stdout.readline())


@pytest.mark.proof
def test_without_a_mutation_all_pass(runner):
    tests = sorted({test for rule in INVARIANTS.values() for test in rule.tests})
    assert ask(runner, "trainer/warm_start/plan.py", "", "", tests) == pytest.ExitCode.OK


@pytest.mark.proof
@pytest.mark.parametrize(("mutation", "tests"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_broken_rule_is_noticed(runner, mutation, tests):
    assert ask(runner, *mutation, tests) == pytest.ExitCode.TESTS_FAILED
