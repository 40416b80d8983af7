"""What garbage in the source data costs: a month of which some days were built wrong, trained on as it is, without them, or masked.

    python scripts/bench/garbage_days.py --out DIR                                 # 13 of 30 days, every kind, three seeds
    python scripts/bench/garbage_days.py --out DIR --damaged 3 7 --kinds zero_filled unit_change label_flip --seeds 2
    python scripts/bench/garbage_days.py --out DIR2 --set ++model.stand_ins=false   # one learned value for a missing number, as it was
    python scripts/bench/garbage_days.py --out DIR --table                         # only print what is measured so far

A simulated log of 33 days; the first 30 are trained on in one pass from scratch, the last three are judged. Beside its own columns the
log carries six features that were joined at request time: noisy views of what the feed knows of an impression, the inputs a ranker
lives on. On the damaged days (drawn from the fifth day on: a scan needs something to compare with) `trainer.inject` damages two of
them, or labels, ids or rows, and the pipeline vouches for the files. Arms, through the stages of the main job (scan, rebuild, train):

    clean    the log before the damage: what could be had at best
    as_is    no scan: every file that can be decoded is believed. Plain handling is what any loader does: cells that cannot be cast and
             NaN are null, repeated event ids count once, ids and values are taken for what they say
    drop     the damaged days are known by an oracle and left out whole, also from windows and histories
    mask     rewarm: `scan` decides by its shipped policy what is null, dropped or refused (the limit of refused days is not applied, and
             where the policy stops the run, as at a label inside a feature, the day is refused)
    without  the clean log, the two features null on every day, the judged ones included: what they are worth

Every other arm is judged on the same rows with the same inputs, those of the clean log: the garbage is in what models are built from,
not in what is served. *own* judges the same days as the arm's own pipeline rebuilt them, damaged histories and counters included.
One JSON line a run is appended to DIR/results.jsonl; a stopped benchmark goes on where it was. Arms whose examples are the same bytes (all
damaged days are refused, say, or everybody reads null) train the same model, once. NE and AUC are of the click.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config import RetrainConfig, load
from trainer.days import DayPlan, plan_days
from trainer.errors import DataError
from trainer.inject import damage
from trainer.inject.site import Site
from trainer.logs.layout import discover_days
from trainer.metrics import arrange, auc, normalised_loss
from trainer.rebuild import rebuild
from trainer.rebuild.plan import content_hash
from trainer.scan import scan
from trainer.schema.examples import LABEL, ExamplesManifest, read_partition, read_tail
from trainer.schema.health import HealthMap
from trainer.schema.injection import FaultSettings
from trainer.schema.logs import LogSpec
from trainer.schema.simulation import TRUTH_FOLDER, SimulationSpec
from trainer.schema.time import day_end_ms
from trainer.simulate import simulate

if TYPE_CHECKING:
    from trainer.checkpoint import Bundle

TRAIN_DAYS, HOLDOUT_DAYS, FIRST_DAMAGED = 30, 3, 4
ACTION = "click"
# Column -> what it is a view of, and the standard deviation of its noise in log-odds (probabilities) or log-seconds.
JOINED = {
    "taste": ("click", 0.8), "reach": ("click", 1.6), "stay": ("long_view", 1.2), "warmth": ("like", 1.2), "pace": ("watch_time", 0.7),
    "dwell": ("watch_time", 1.4),
}  # fmt: skip
BROKEN = ("taste", "pace")  # what one upstream job writes, and what it damages when it fails
_EACH = [FaultSettings(feature=name) for name in BROKEN]
KINDS: dict[str, list[FaultSettings]] = {
    "zero_filled": _EACH,
    "constant": _EACH,
    "unit_change": [replace(settings, factor=1000.0) for settings in _EACH],
    "sentinel_spike": [replace(settings, share=0.15, value=999.0) for settings in _EACH],
    "non_finite": [replace(settings, share=0.5) for settings in _EACH],
    "wrong_dtype_garbage": [replace(settings, share=0.3) for settings in _EACH],
    "missing_column": _EACH,
    "mixed_version": [replace(settings, factor=1000.0) for settings in _EACH],
    "swapped_columns": [FaultSettings(feature=BROKEN[0], partner=BROKEN[1])],
    "shuffled_column": _EACH,
    "stale_copy": _EACH,
    "label_flip": [FaultSettings()],
    "label_noise": [FaultSettings(share=0.2)],
    "labels_all_zero": [FaultSettings()],
    "label_leak": _EACH,
    "unripe_labels": [FaultSettings(hours=6)],
    "resalted_ids": [FaultSettings()],  # of users
    "resalted_ids of items": [FaultSettings(feature="item_id")],
    "id_collapse": [FaultSettings()],  # of users
    "bot_user": [FaultSettings(share=0.08)],
    "missing_hours": [FaultSettings(hours=6)],
    "late_rows": [FaultSettings(share=0.3)],
    "time_unit": [FaultSettings(factor=1000.0)],  # of one producer, who writes 30 % of the rows
    "duplicate_file": [FaultSettings()],
}
ARMS = ("clean", "without", "drop", "as_is", "mask")
SETTINGS = (
    "data=simulated", "experiment=quick", "warm_start=none", "tracking=none", "registry.root=none", "++fit.device=cpu", "++fit.threads=1",
    "++fit.progress=false", "++fit.batch_targets=256", "++scan.workers=1", "++rebuild.workers=1", "++rebuild.audit_rows=0",
    "++rebuild.user_buckets=1", "++rebuild.entity_buckets=1", "++model.layers=1", "++model.max_history=16",
    "++optimizer.lr=0.003", "++optimizer.embedding_lr=0.003", f"++evaluation.holdout_days={HOLDOUT_DAYS}",
)  # fmt: skip
MEASURED = ("ne", "auc", "own_ne", "own_auc", "train_s")
COUNTERS = ("item_click_rate_7d", "item_watch_mean_7d", "user_click_rate_28d", "user_views_7d", "author_click_rate_7d")


@dataclass(frozen=True)
class Case:
    """One run: an arm on a log damaged in one way. Arms that do not look at the damage have no kind."""

    arm: str
    seed: int
    damaged: int = 0
    kind: str = ""

    @property
    def name(self) -> str:
        return "-".join(map(str, (self.arm, self.seed, self.damaged, self.kind)))


@dataclass(frozen=True)
class Lab:
    """The clean log of a seed, what is known of it, and what every arm is judged on.

    Attributes:
        config: The main job's configuration for this log.
        folder: Scratch.
        seed: Of the log, the damage and the training.
        health: The clean scan.
        judged: Days that every arm is judged on.
        examples: Where the clean examples lie, and what they are.
    """

    config: RetrainConfig
    folder: Path
    seed: int
    health: HealthMap
    judged: list[str]
    examples: tuple[Path, ExamplesManifest]

    @property
    def days(self) -> list[str]:
        return list(self.health.days)

    def damaged_days(self, count: int) -> list[str]:
        """Draws the damaged days; three of thirteen are damaged in a month with three as well."""
        order = np.random.default_rng([self.seed, 13]).permutation(np.arange(FIRST_DAMAGED, TRAIN_DAYS))
        return sorted(self.days[index] for index in order[:count])


def main() -> None:
    options = _arguments()
    results = options.out / "results.jsonl"
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        for seed in range(options.seeds):
            done = {line["name"] for line in read_lines(results)}
            wanted = [case for case in cases(options.damaged, options.kinds, seed) if case.name not in done]
            if wanted:
                measure(written(options.out, seed, options.users, options.set), wanted, results)
    show(read_lines(results))


def cases(damaged: Sequence[int], kinds: Sequence[str], seed: int) -> Iterator[Case]:
    """Lists what is to be measured, shared arms once."""
    yield Case("clean", seed)
    yield Case("without", seed)
    for count in damaged:
        yield Case("drop", seed, count)
        for kind in kinds:
            yield Case("as_is", seed, count, kind)
            yield Case("mask", seed, count, kind)


def written(out: Path, seed: int, users: int, overrides: Sequence[str]) -> Lab:
    """Simulates the clean log of a seed, joins the features, scans and rebuilds it."""
    root = out / f"log-{seed}"
    if not (root / "joined").exists():
        shutil.rmtree(root, ignore_errors=True)
        simulate(SimulationSpec(seed=seed, days=TRAIN_DAYS + HOLDOUT_DAYS, users=users), root)
    config = configured(f"++data.root={root}", f"run_dir={out}/run", f"++scan.root={out}/store-{seed}", f"seed={seed}", *overrides)
    if not (root / "joined").exists():
        truth = pq.read_table(root / TRUTH_FOLDER, partitioning=None).sort_by("event_id")
        for day in discover_days(config.data):
            _join(config.data, day, truth, seed)
        (root / "joined").touch()
    health = scan(config.data, discover_days(config.data), config.scan)
    folder = out / f"clean-{seed}"
    days = planned(config, health)
    return Lab(config, out, seed, health, days.holdout, (folder, rebuilt(config, health, days, folder)))


def configured(*overrides: str) -> RetrainConfig:
    """Composes the main job's configuration, with the joined features and a few counters."""
    from hydra import compose, initialize_config_module  # here and below: processes that read files start without what only this one needs
    from omegaconf import OmegaConf

    with initialize_config_module("trainer.conf", version_base="1.3"):
        values = OmegaConf.to_container(compose("retrain", [*SETTINGS, *overrides]), resolve=True)
    values["data"]["features"] |= {name: {"kind": "numeric", "transform": "none"} for name in JOINED}  # type: ignore[index,call-overload]
    counters = values["features"]["counters"]  # type: ignore[index,call-overload]
    values["features"]["counters"] = {name: counters[name] for name in COUNTERS}  # type: ignore[index,call-overload]
    return load(RetrainConfig, values)


def _join(spec: LogSpec, day: str, truth: pa.Table, seed: int) -> None:
    """Adds the features to a day's file; an event has the same values wherever it is delivered again."""

    def change(table: pa.Table) -> tuple[pa.Table, int]:
        event_N = table["event_id"].to_numpy()
        place_N = np.searchsorted(truth["event_id"].to_numpy(), event_N)
        for name, (source, noise) in JOINED.items():
            known_N = truth[source].to_numpy().astype(np.float64)[place_N]
            table = table.append_column(name, pa.array(_view(source, known_N, noise * _normal(event_N, name, seed)), pa.float32()))
        return table, len(table)

    Site("joined", spec, day, FaultSettings(), np.random.default_rng(seed)).edit(change)


def _view(source: str, known_N: np.ndarray, noise_N: np.ndarray) -> np.ndarray:
    """Returns noisy log-odds of a probability, or noisy seconds."""
    if source == "watch_time":
        return known_N * np.exp(noise_N)
    known_N = np.clip(known_N, 1e-4, 1 - 1e-4)
    return np.log(known_N / (1 - known_N)) + noise_N


def _normal(event_N: np.ndarray, name: str, seed: int) -> np.ndarray:
    """Standard normal noise that depends on the event alone."""
    unique_K, code_N = np.unique(event_N, return_inverse=True)
    bits_K = (unique_K.astype(np.uint64) + np.uint64(crc32(name.encode()) + seed)) * np.uint64(0x9E3779B97F4A7C15)
    bits_K ^= bits_K >> np.uint64(29)
    bits_K *= np.uint64(0xBF58476D1CE4E5B9)
    high_K, low_K = (bits_K >> np.uint64(32)).astype(np.float64), (bits_K & np.uint64(0xFFFFFFFF)).astype(np.float64)
    uniform_K = (high_K + 0.5) / 2**32
    return (np.sqrt(-2 * np.log(uniform_K)) * np.cos(2 * np.pi * low_K / 2**32))[code_N]  # Box and Muller


def measure(lab: Lab, wanted: Sequence[Case], results: Path) -> None:
    """Runs cases, one JSON line each; the cases of a damaged log come one after the other, and it is scanned once."""
    now, spec, scanned = ("", 0), lab.config.data, lab.health
    for case in wanted:
        begun = time.process_time()
        if case.kind and (case.kind, case.damaged) != now:
            now, spec = (case.kind, case.damaged), damaged_log(lab, case)
            scanned = scan(spec, lab.days, lab.config.scan)
        found = outcome(lab, case, spec if case.kind else lab.config.data, scanned, read_lines(results))
        line = {**vars(case), "name": case.name, **found, "cpu_s": round(time.process_time() - begun, 1)}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def damaged_log(lab: Lab, case: Case) -> LogSpec:
    """Copies the clean log and damages its days."""
    copy = replace(lab.config.data, root=str(lab.folder / f"damaged-{lab.seed}"))
    shutil.rmtree(copy.root, ignore_errors=True)
    shutil.copytree(lab.config.data.root, copy.root)
    for day in lab.damaged_days(case.damaged):
        for settings in KINDS[case.kind]:
            damage(copy, case.kind.split()[0], settings, day=day, seed=lab.seed)
    return copy


def outcome(lab: Lab, case: Case, spec: LogSpec, scanned: HealthMap, earlier: Sequence[dict]) -> dict[str, object]:
    """Trains an arm and judges it; a run that is refused says why."""
    config = replace(lab.config, data=spec)
    damaged = lab.damaged_days(case.damaged)
    health = {
        "clean": lambda: lab.health, "drop": lambda: _changed(lab.health, damaged, status="refused"),
        "without": lambda: _changed(lab.health, lab.days, masked_columns=sorted(BROKEN)),
        "as_is": lambda: believed(scanned), "mask": lambda: scanned,
    }[case.arm]()  # fmt: skip
    folder = lab.folder / "arm"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        days = planned(config, health)
        manifest = rebuilt(config, health, days, folder / "examples")
        examples = content(manifest, days)
        twin = next((line for line in earlier if (line["seed"], line.get("examples")) == (case.seed, examples)), None)
        measured = {name: twin[name] for name in MEASURED if name in twin} if twin else trained(lab, config, folder, manifest, days)
    except DataError as error:
        return {"refused_run": str(error).splitlines()[0]}
    states = {day: health.days[day].status for day in lab.days[:TRAIN_DAYS]}
    return {
        **measured,
        "examples": examples,
        "unseen": [day for day in damaged if _kinds(health, day) <= _kinds(lab.health, day)],
        "refused": sum(state == "refused" for state in states.values()),
        "masked": sum(state == "masked" for state in states.values()),
        "false": [day for day, state in states.items() if day not in damaged and state != "ok"],
        "rows": sum(record.rows for record in manifest.partitions if record.day in days.train),
    }


def content(manifest: ExamplesManifest, days: DayPlan) -> str:
    """Returns a digest of everything that training and judging read: the same digest and seed, the same model and numbers."""
    files = [(record.day, record.examples_sha256, record.tail_sha256) for record in manifest.partitions]
    return sha256(json.dumps([files, manifest.final_tails, days.train, days.holdout]).encode()).hexdigest()[:16]


def trained(lab: Lab, config: RetrainConfig, folder: Path, manifest: ExamplesManifest, days: DayPlan) -> dict[str, float]:
    """Trains on an arm's examples; returns `MEASURED`."""
    from trainer.fit import train

    begun = time.process_time()
    bundle = train(config, folder / "examples", manifest, days, None, folder / "challenger").bundle
    seconds = round(time.process_time() - begun, 1)
    own = judge(bundle, config, (folder / "examples", manifest), days.holdout) if days.holdout == lab.judged else {}
    return {**judge(bundle, config, lab.examples, lab.judged), **{f"own_{name}": value for name, value in own.items()}, "train_s": seconds}


def _kinds(health: HealthMap, day: str) -> set[str]:
    return {fault.kind for fault in health.days[day].faults}


def _changed(health: HealthMap, days: Sequence[str], **changes: object) -> HealthMap:
    return replace(health, days={day: replace(state, **changes) if day in days else state for day, state in health.days.items()})  # type: ignore[arg-type]


def believed(health: HealthMap) -> HealthMap:
    """Returns the health map of somebody who does not scan: what can be decoded is true."""
    fresh = {
        day: replace(
            state, status="ok", faults=[], masked_columns=[], rules=[], dropped=0, used=state.rows - state.duplicates * (state.used > 0),
            files=[file if file.quarantined else replace(file, masked=[], dropped_groups=[]) for file in state.files],
        )
        for day, state in health.days.items()
    }  # fmt: skip
    return replace(health, days=fresh)


def planned(config: RetrainConfig, health: HealthMap) -> DayPlan:
    contents = {day: content_hash(day, state) for day, state in health.days.items()}
    return plan_days(config.data, health, contents, {}, list(health.days)[-1], HOLDOUT_DAYS)


def rebuilt(config: RetrainConfig, health: HealthMap, days: DayPlan, folder: Path) -> ExamplesManifest:
    settings = replace(config.rebuild, root=str(folder))
    until = day_end_ms(days.as_of, config.data.timezone)
    return rebuild(config.data, config.features, health, days.usable, settings, config.model.max_history, until, days.train)


def judge(bundle: Bundle, config: RetrainConfig, examples: tuple[Path, ExamplesManifest], days: Sequence[str]) -> dict[str, float]:
    """Scores days with a bundle; returns NE and AUC of the click."""
    from trainer.evaluate import RankerScorer

    root, manifest = examples
    scorer, until = RankerScorer(bundle), day_end_ms(days[-1], config.data.timezone)
    tables, scores = [], []
    for day in days:
        for bucket in range(manifest.user_buckets):
            part, tail = read_partition(root, manifest, day, bucket), read_tail(root, manifest, day, bucket)
            scores.append(scorer.score(part, tail, until).score_N[ACTION])
            tables.append(part.select(["user", LABEL + ACTION]))
    table, score_N = pa.concat_tables(tables), np.concatenate(scores)
    label_N = table[LABEL + ACTION].to_numpy().astype(np.float64)
    known_N = np.isfinite(label_N)
    rows = arrange(table["user"].to_numpy()[known_N])
    measured = {
        "ne": normalised_loss("binary", score_N[known_N], label_N[known_N], rows),
        "auc": auc(score_N[known_N], label_N[known_N], rows),
    }
    return {name: round(float(estimate.value_G[0]), 6) for name, estimate in measured.items()}


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def show(lines: Sequence[dict]) -> None:
    """Prints the tables: NE of every arm against the clean one, percent, mean and range over seeds."""
    found = {(line["arm"], line["damaged"], line["kind"], line["seed"]): line for line in lines if "ne" in line}
    seeds = sorted({seed for *_, seed in found})
    for arm, prefix in (("clean", ""), ("without", "own_")):
        values = [found[arm, 0, "", seed] for seed in seeds if (arm, 0, "", seed) in found]
        if values:
            ne, area = (np.mean([value[prefix + name] for value in values]) for name in ("ne", "auc"))
            print(f"{arm}: NE {ne:.4f}, AUC {area:.4f}, {len(values)} seeds")
    for damaged in sorted({line["damaged"] for line in lines if line["kind"]}):
        print(f"\n{damaged} of {TRAIN_DAYS} days damaged; NE against the clean log in percent: mean (smallest to largest of the seeds)\n")
        print("| kind | seeds | as is | drop | mask | mask - better of the two | AUC as is | drop | mask | refused/masked/unseen/falsely |")
        print("|---" * 10 + "|")
        for kind in dict.fromkeys(line["kind"] for line in lines if line["damaged"] == damaged and line["kind"]):
            print(_row(found, damaged, kind, seeds))
    for line in lines:
        if "refused_run" in line:
            print(f"{line['name']}: {line['refused_run']}")


def _row(found: dict, damaged: int, kind: str, seeds: Sequence[int]) -> str:
    keys = {"as_is": kind, "drop": "", "mask": kind}
    complete = [seed for seed in seeds if all((arm, damaged, of, seed) in found for arm, of in keys.items())]
    if not complete:
        return f"| {kind} | 0 |" + " |" * 8
    lines: Callable[[str], list[dict]] = lambda arm: [found[arm, damaged, keys[arm], seed] for seed in complete]  # noqa: E731
    clean = np.array([found["clean", 0, "", seed]["ne"] for seed in complete])
    cost = {arm: 100 * (np.array([line["ne"] for line in lines(arm)]) / clean - 1) for arm in keys}
    cells = [f"{values.mean():+.2f} ({values.min():+.2f} to {values.max():+.2f})" for values in cost.values()]
    better = cost["mask"].mean() - min(cost["as_is"].mean(), cost["drop"].mean())
    areas = [f"{np.mean([line['auc'] for line in lines(arm)]):.4f}" for arm in keys]
    mask = lines("mask")
    days = "/".join(f"{np.mean([value(line) for line in mask]):.1f}" for value in (
        lambda line: line["refused"], lambda line: line["masked"], lambda line: len(line["unseen"]), lambda line: len(line["false"]),
    ))  # fmt: skip
    return "| " + " | ".join([kind, str(len(complete)), *cells, f"{better:+.2f}", *areas, days]) + " |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--damaged", type=int, nargs="+", default=[13])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--users", type=int, default=1000, help="of the simulated log; about 2.5 rows a user and day")
    parser.add_argument(
        "--set", nargs="+", default=[], help="other settings of the main job: ++model.stand_ins=false; give them their own --out"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
