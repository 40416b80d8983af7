"""Everything that has to be seen on a GPU, by one command: tests, speed, what explains it, and a section for RESULTS.md.

    python scripts/bench/gpu.py --out DIR                   # on one H100: at most ten minutes
    python scripts/bench/gpu.py --out DIR --data DIR        # real lengths: ml-1m/sasrec_order.parquet below it
    python scripts/bench/gpu.py --out DIR --data DIR --rectools PYTHON --only rectools       # RecTools beside rewarm
    python scripts/bench/gpu.py --out DIR --dry-run         # what would be run
    python scripts/bench/gpu.py --out DIR --device cpu      # the same steps, toy-sized, on a CPU: no typo waits for a GPU

Steps run one after the other, each in a process group of its own with a time limit; the next begins where one fails. What must be seen
comes first, what takes longest last: if `--seconds` end before the steps do, the rest is named as left out. DIR gets `section.md`,
`results.json` with all that was printed, and a log a step below `logs`. Exit code: 0 if every step passed, 1 if one did not or skipped
all of its tests, 2 without the device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

BENCH = Path(__file__).parent
ROOT = BENCH.parents[1]
LEAST_SECONDS = 10  # a step that has less left is not begun
MOST_WAIT = 0.02  # of a step at d 256, 4 layers: what a loader may cost

# Options of `train.py` and `attention.py`.
WIDE = "--architecture sasrec --dim 256 --layers 4 --heads 4 --history 200 --batch-tokens 65536 --batch-targets 65536"
MILLION = "--architecture sasrec --items 1000000"
DEEP = (
    "--dim 1024 --layers 8 --heads 8 --history 4096 --lengths full --batch-tokens 65536 --batch-targets 65536 --softmax sampled"
    " --negatives 8192 --steps 16 --profile --compile"
)
LONG = "--heads 4 --width 64 --longest 1024"
# The same on one slow core; later options win over earlier ones.
TOY = "--dim 16 --layers 1 --heads 2 --history 12 --batch-tokens 256 --batch-targets 256 --steps 12 --threads 1"
FEW = "--negatives 16"
SMALL = "--sequences 4 --longest 16 --repetitions 1"

Show = Callable[[list[dict[str, Any]], str], list[str]]


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: How its log is called.
        why: What it shows, in words.
        command: What is run from the root of the repository.
        seconds: How long it may take.
        show: Makes Markdown lines of its JSON lines and of its whole output.
    """

    name: str
    why: str
    command: list[str]
    seconds: int
    show: Show


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        name: The step's.
        code: Exit code; None if it was stopped at its limit, or not begun.
        seconds: How long it took.
        output: What it printed.
    """

    name: str
    code: int | None
    seconds: float
    output: str

    @property
    def idle(self) -> bool:
        """Whether it was a run of tests none of which ran: pytest calls that a success."""
        last = self.output.rstrip().rpartition("\n")[2]
        return " skipped" in last and " passed" not in last

    @property
    def said(self) -> str:
        """The outcome in a word or two."""
        if self.code is None:
            return "stopped at its limit" if self.seconds else "left out: no time was left"
        if self.code == 0 and self.idle:
            return "nothing ran: every test was skipped"
        return "passed" if self.code == 0 else f"failed ({self.code})"


def main() -> int:
    arguments = _arguments()
    if arguments.device == "gpu" and not arguments.dry_run and not torch.cuda.is_available():
        print("no CUDA device is here: run this on a machine with one (--dry-run shows the commands, --device cpu tries them toy-sized)")
        return 2
    steps = chosen(plan(arguments), arguments.only)
    if arguments.dry_run:
        print("\n".join(f"{step.seconds:>4} s  {step.name:<12} {' '.join(step.command)}" for step in steps))
        return 0
    (arguments.out / "logs").mkdir(parents=True, exist_ok=True)
    end, outcomes = time.monotonic() + arguments.seconds, []
    for step in steps:
        outcomes.append(run(step, arguments.out / "logs", end - time.monotonic()))
        print(f"{step.name}: {outcomes[-1].said}, {outcomes[-1].seconds:.0f} s", flush=True)
        # After every step: whatever ends this process, what is known by then is written.
        (arguments.out / "results.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
        (arguments.out / "section.md").write_text(section(steps, outcomes, machine(arguments.device), called()))
    print((arguments.out / "section.md").read_text())
    toy = arguments.device == "cpu"  # where tests that want a GPU can only be collected
    return 0 if all(outcome.code == 0 and (toy or not outcome.idle) for outcome in outcomes) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--data", type=Path, help="folder of real logs: ml-1m/sasrec_order.parquet; made-up lengths without it")
    parser.add_argument("--rectools", metavar="PYTHON", help="interpreter of an environment with RecTools")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps; all otherwise")
    parser.add_argument("--seconds", type=float, default=580.0, help="that all steps may take together")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args()


# ---- the plan


def plan(arguments: argparse.Namespace) -> list[Step]:
    """Returns all steps, in the order in which they run."""
    toy = arguments.device == "cpu"
    log = arguments.data / "ml-1m" / "sasrec_order.parquet" if arguments.data else None
    lengths, of = ([], "made-up lengths by Zipf's law") if log is None else (["--data", str(log)], "ml-1m")

    def script(name: str, options: str) -> list[str]:
        return [sys.executable, str(BENCH / name), "--device", arguments.device, *options.split()]

    def tests(*folders: str) -> list[str]:
        quiet = ["-q", "-rfE", "-p", "no:cacheprovider"]
        return [sys.executable, "-m", "pytest", *quiet, "-m", "gpu", *(f"tests/unit/{name}" for name in folders)]

    def train(name: str, why: str, options: str, seconds: int, small: str = "") -> Step:
        command = script("train.py", f"{options} {TOY} {small}" if toy else options)
        return Step(name, why, [*command, *(lengths if name.startswith("d256") else [])], seconds, training)

    return [
        Step("kernels", "kernels and varlen attention against their twins", tests("models"), 180, summary_line),
        train("d256", f"d 256, 4 layers, {of}", f"{WIDE} --steps 80 --profile", 60),
        Step("attention", "attentions beside padded and dense ones", script("attention.py", SMALL if toy else LONG), 60, attentions),
        Step("fit", "resume after a kill, bf16 beside fp32, no waiting", tests("fit", "next_item"), 150, summary_line),
        train("d256_workers", "the same with four loader threads instead of two", f"{WIDE} --steps 60 --workers 4", 60),
        train("d256_compiled", "the same, compiled", f"{WIDE} --steps 80 --compile", 90),
        train("million", "full softmax over a million items, d 64", f"{MILLION} --steps 14 --profile", 60, "--items 5000"),
        train("deep", "hidden 1024, 8 layers, length 4096", f"--architecture sasrec {DEEP}", 150, FEW),
        train("deep_hstu", "the same, hstu", f"--architecture hstu {DEEP}", 150, FEW),
        *peers(arguments),
    ]


def peers(arguments: argparse.Namespace) -> list[Step]:
    """Returns the comparison with RecTools where its environment is known."""
    if arguments.rectools is None:
        return []
    if arguments.data is None:
        raise SystemExit("--rectools compares on a real log: --data DIR is needed, the folder that holds ml-1m/")
    toy = arguments.device == "cpu"
    shape = {"dim": 16 if toy else 256, "layers": 1 if toy else 4, "heads": 2 if toy else 4, "threads": 1 if toy else 8}
    shape |= {"rounds": 1, "seconds": 1, "length": 12} if toy else {"rounds": 4, "seconds": 5}
    options = [text for name, value in shape.items() for text in (f"--{name}", str(value))]
    command = [
        sys.executable, str(BENCH / "peers.py"), "--device", arguments.device, "--env", f"rectools={arguments.rectools}", "--data",
        str(arguments.data), "--log", "ml-1m", "--arms", "rewarm", "rectools", *options,
    ]  # fmt: skip
    return [Step("rectools", "RecTools' SASRec beside rewarm, d 256, 4 layers, ml-1m", command, 300, verbatim)]


def chosen(steps: list[Step], only: list[str] | None) -> list[Step]:
    """Returns the steps that were asked for; all of them otherwise."""
    if only is None:
        return steps
    unknown = sorted(set(only) - {step.name for step in steps})
    if unknown:
        raise SystemExit(
            f"there is no step {', '.join(unknown)}; there are {', '.join(step.name for step in steps)} (rectools: --rectools)"
        )
    return [step for step in steps if step.name in only]


# ---- running


def run(step: Step, logs: Path, left: float) -> Outcome:
    """Runs a step for as long as it may, and keeps what it prints; whatever it has started ends with it."""
    seconds = min(step.seconds, left)
    if seconds < LEAST_SECONDS:
        return Outcome(step.name, None, 0.0, "")
    file, begin = logs / f"{step.name}.log", time.monotonic()
    with file.open("w") as log:
        process = subprocess.Popen(
            step.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "150"},
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process.pid)
            process.wait()
    return Outcome(step.name, code, time.monotonic() - begin, file.read_text(errors="replace"))


def _end(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:  # nobody is left
        return


# ---- the section


def section(steps: list[Step], outcomes: list[Outcome], where: str, command: str) -> str:
    """Writes what was found as Markdown; steps that have not run yet are left out."""
    known = {outcome.name: outcome for outcome in outcomes}
    lines = ["## On a GPU", f"`{command}`, {where}.", "", "| step | what it shows | outcome | s |", "|---|---|---|---|"]
    done = [(step, known[step.name]) for step in steps if step.name in known]
    lines += [f"| {step.name} | {step.why} | {found.said} | {found.seconds:.0f} |" for step, found in done]
    for step, found in done:
        shown = [] if found.code is None and not found.output else _shown(step, found)
        lines += ["", f"**{step.name}**: {step.why}.", "", *shown] if shown else []
    return "\n".join(lines) + "\n"


def _shown(step: Step, found: Outcome) -> list[str]:
    lines = step.show(json_lines(found.output), found.output)
    if found.code != 0:
        lines += ["```", *found.output.rstrip().splitlines()[-15:], "```"]
    return lines


def json_lines(output: str) -> list[dict[str, Any]]:
    """Returns the JSON objects among the lines that a step printed; one that was cut off by its limit is none."""
    found = []
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def summary_line(found: list[dict[str, Any]], output: str) -> list[str]:
    """The last line of pytest, and what failed."""
    lines = [line for line in output.splitlines() if line.strip()]
    return [*(f"- `{line}`" for line in lines if line.startswith(("FAILED", "ERROR"))), f"`{lines[-1]}`"] if lines else []


def training(found: list[dict[str, Any]], output: str) -> list[str]:
    """A row a ranker of what `train.py` found, and the profile of each."""
    if not found:
        return []
    lines = ["| ranker | of the peak (MFU) | positions/s | waits for data | step, ms | memory, MiB |", "|---|---|---|---|---|---|"]
    for each in found:
        waits = f"{each['waits']:.1%}" + (f" (more than {MOST_WAIT:.0%})" if each["waits"] > MOST_WAIT else "")
        step = f"{each['step']:.1f} ({each['fastest']:.1f} to {each['slowest']:.1f})"
        lines.append(
            f"| {each['architecture']} | {each['share']:.1%} | {each['positions']:,.0f} | {waits} | {step} | {each['memory']:,.0f} |"
        )
    for each in found:
        if "profile" in each:
            parts = ", ".join(f"{kind} {share:.1%}" for kind, share in each["profile"]["shares"].items())
            lines += ["", f"{each['architecture']}, share of a step: {parts}. The dearest kernels:", ""]
            lines += [f"- {share:.1%} `{name}`" for name, share in each["profile"]["top"]]
    return lines


def attentions(found: list[dict[str, Any]], output: str) -> list[str]:
    """A row a path of `attention.py`."""
    if not found:
        return []
    lines = ["| attention | lengths | path | padded / path | dense / path | of the peak | ms |", "|---|---|---|---|---|---|---|"]
    for each in found:
        ratios = " | ".join("-" if each[name] is None else f"{each[name]:.2f}" for name in ("padded", "dense"))
        lines.append(f"| {each['attention']} | {each['lengths']} | {each['path']} | {ratios} | {each['share']:.1%} | {each['ms']:.2f} |")
    return lines


def verbatim(found: list[dict[str, Any]], output: str) -> list[str]:
    """What a step printed."""
    return ["```", *output.rstrip().splitlines()[-25:], "```"]


def machine(device: str) -> str:
    """Returns hardware, software and date."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    software = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device == "cpu":
        return f"toy-sized on a CPU, {today}, {software}"
    about = torch.cuda.get_device_properties(0)
    driver = _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, driver {driver}, {os.cpu_count()} CPU cores, {today}, {software}"


def called() -> str:
    """Returns this command as it was called, the interpreter and paths of this machine left out."""
    return " ".join(["python scripts/bench/gpu.py", *("PATH" if Path(word).is_absolute() else word for word in sys.argv[1:])])


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
