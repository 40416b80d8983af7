"""Entry points: one wrapper composes the configuration, runs a task, and turns errors into one message and an exit code.

Hydra does composition, sweeps and launchers. Around it stand three things it does not do: unknown keys are refused before
composition with the nearest valid key (exit 2); any declared key can be overridden, also one that a YAML file leaves at
its default; a failing trial of a sweep returns NaN instead of ending the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import multiprocessing
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from trainer.config import (
    BacktestConfig,
    CompareRunConfig,
    DiagnoseRunConfig,
    GateRunConfig,
    ImportConfig,
    InjectConfig,
    ReleaseRunConfig,
    RetrainConfig,
    ScanRunConfig,
    ScoreConfig,
    SimulateConfig,
    SuiteRunConfig,
    load,
    resolve_log_spec,
)
from trainer.errors import EXIT_DONE, EXIT_HOLD, EXIT_REJECT, EXIT_UNEXPECTED, ConfigError, RewarmError, Stopped, nearest
from trainer.machine import prepare_environment

Task = Callable[[Any], "tuple[int, float | None]"]

_FAILED = frozenset(range(1, 256)) - {EXIT_REJECT, EXIT_HOLD}
_VERDICT_EXIT = {"PROMOTE": EXIT_DONE, "HOLD": EXIT_HOLD, "REJECT": EXIT_REJECT, None: EXIT_DONE}


def retrain() -> None:
    """Runs the main job: from event logs to a judged, released model."""

    def task(config: RetrainConfig) -> tuple[int, float | None]:
        if config.next_item is not None:
            raise ConfigError("the next-item benchmark is no main job", where="next_item", remedy="start scripts/train.py instead")
        from trainer.pipeline import retrain as run

        summary = run(config)
        return _VERDICT_EXIT[summary.verdict], summary.objective

    _main("retrain", RetrainConfig, task)


def train() -> None:
    """Runs the main job up to the evaluation; the value of a sweep's trial is the evaluation metric."""

    def task(config: RetrainConfig) -> tuple[int, float | None]:
        if config.next_item is not None:
            from trainer.next_item import run as benchmark

            return EXIT_DONE, benchmark(config).objective
        from trainer.pipeline import train as run

        return EXIT_DONE, run(config).objective

    _main("retrain", RetrainConfig, task)


def backtest() -> None:
    """Replays the last nights of a log with several arms."""

    def task(config: BacktestConfig) -> tuple[int, float | None]:
        from trainer.backtest import backtest as run
        from trainer.backtest.show import show

        show(run(config))
        return EXIT_DONE, None

    _main("backtest", BacktestConfig, task)


def inject() -> None:
    """Damages a copy of a log on purpose."""

    def task(config: InjectConfig) -> tuple[int, float | None]:
        from trainer.inject import run

        run(config)
        return EXIT_DONE, None

    _main("inject", InjectConfig, task)


def simulate() -> None:
    """Writes a simulated log."""

    def task(config: SimulateConfig) -> tuple[int, float | None]:
        from trainer.simulate import simulate as run

        report = run(config.simulation, Path(config.out))
        print(f"{config.out}: {len(report.days)} days, {report.rows:,} rows")
        return EXIT_DONE, None

    _main("simulate", SimulateConfig, task)


def scan() -> None:
    """Judges a log directory; exit 3 when a day is refused."""

    def task(config: ScanRunConfig) -> tuple[int, float | None]:
        from trainer.scan import run

        health = run(config)
        refused = [day for day, state in health.days.items() if state.status == "refused"]
        return (3 if refused else EXIT_DONE), None

    _main("inspect", ScanRunConfig, task)


def gate() -> None:
    """Judges any predictions table."""

    def task(config: GateRunConfig) -> tuple[int, float | None]:
        from trainer.gate import run
        from trainer.report import render
        from trainer.suites import SuiteStore, collect

        suites = [] if config.suites is None else collect(SuiteStore.existing(Path(config.suites)), None, None)
        verdict = run(config, suites)
        print(render(Path(config.run_dir), Path(config.predictions)))
        return _VERDICT_EXIT[verdict.verdict], None

    _main("judge", GateRunConfig, task)


def compare_embeddings() -> None:
    """Judges any two tables of vectors; the outcome is in `compare.json`."""

    def task(config: CompareRunConfig) -> tuple[int, float | None]:
        from trainer.stages.comparing import compare_tables

        compare_tables(config)
        return EXIT_DONE, None

    _main("compare", CompareRunConfig, task)


def release() -> None:
    """Promotes, rolls back, freezes or shows a registry."""

    def task(config: ReleaseRunConfig) -> tuple[int, float | None]:
        from trainer.release import run

        run(config)
        return EXIT_DONE, None

    _main("operate", ReleaseRunConfig, task)


def suite() -> None:
    """Adds, lists, runs or removes suites; ``action=run`` exits 10 when one fails and 20 when one holds."""

    def task(config: SuiteRunConfig) -> tuple[int, float | None]:
        from trainer.suites import run

        outcomes = {check.outcome for check in run(config, models)}
        return (EXIT_REJECT if "fail" in outcomes else EXIT_HOLD if "hold" in outcomes else EXIT_DONE), None

    def models(challenger: Path, production: Path | None) -> Any:
        from trainer.checkpoint import read_bundle
        from trainer.stages.delivery import suite_models

        return suite_models(read_bundle(challenger), read_bundle(production) if production else None)

    _main("suite", SuiteRunConfig, task)


def score() -> None:
    """Scores any rows with a release."""

    def task(config: ScoreConfig) -> tuple[int, float | None]:
        from trainer.stages.scoring import score as run

        print(f"{config.out}: {run(config):,} rows scored")
        return EXIT_DONE, None

    _main("score", ScoreConfig, task)


def diagnose() -> None:
    """Explains the verdict of a finished run."""

    def task(config: DiagnoseRunConfig) -> tuple[int, float | None]:
        from trainer.diagnose import show
        from trainer.stages.diagnosing import explain

        show(explain(config))
        return EXIT_DONE, None

    _main("diagnose", DiagnoseRunConfig, task)


def import_checkpoint() -> None:
    """Turns a checkpoint of other code into a release, if its scores are proven equal."""

    def task(config: ImportConfig) -> tuple[int, float | None]:
        from trainer.importing import run
        from trainer.importing.run import describe

        print("\n".join(describe(run(config))))
        return EXIT_DONE, None

    _main("import", ImportConfig, task)


def _main(config_name: str, kind: type, task: Task) -> None:
    """Composes, runs, reports, exits."""
    _raise_on_signals()
    prepare_environment()
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "150")  # tables in a log file need not fold at 80
    code = EXIT_DONE
    try:
        arguments = _checked_arguments(sys.argv[1:], kind)
        with _own_choices(kind) if {"-h", "--help"} & set(arguments) else contextlib.nullcontext():
            code = _compose_and_run(config_name, kind, task, arguments)
    except RewarmError as error:
        code = _report(error)
    except BrokenPipeError:  # `--help | head`: the reader has seen enough
        os._exit(EXIT_DONE)
    sys.exit(code)


@contextlib.contextmanager
def _own_choices(kind: type) -> Iterator[None]:
    """Shows only the groups that a script has: Hydra's help lists every folder of ``conf/``."""
    fields = {field.name for field in dataclasses.fields(kind)} | ({"experiment"} if kind is RetrainConfig else set())
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        choices = False
        for line in text.getvalue().splitlines():
            choices = (choices or line.startswith("Choices")) and not line.startswith("Values")
            group, colon, _ = line.partition(": ")
            if not (choices and colon and group.isidentifier() and group not in fields):
                print(line)


def _compose_and_run(config_name: str, kind: type, task: Task, arguments: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, MissingConfigException
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    codes: list[int] = []

    def job(composed: DictConfig) -> float | None:
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        _plain_processes()
        trial = _trial(HydraConfig.get(), arguments) if in_sweep else ""
        if in_sweep:
            print(f"\n{trial}", flush=True)
        try:
            values = typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))
            values |= values.pop(_BEHIND_GROUPS, {})
            values = _with_run_dir(values, HydraConfig.get() if in_sweep else None)
            values = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(values), resolve=True))
            config: Any = load(kind, resolve_log_spec(values, _dotted(HydraConfig.get().overrides.task)))
            code, value = task(config)
        except RewarmError as error:
            code, value = _report(error), None
            if isinstance(error, Stopped):
                raise
        except OmegaConfBaseException as error:
            code, value = _report(ConfigError("the configuration does not resolve", got=str(error).splitlines()[0])), None
        except Exception:
            if not in_sweep:
                raise
            import traceback

            traceback.print_exc()
            code, value = EXIT_UNEXPECTED, None
        codes.append(code)
        if in_sweep:
            print(f"{trial}: {f'failed with exit code {code}' if code in _FAILED else value}", flush=True)
        return math.nan if value is None and in_sweep else value

    sys.argv[1:] = arguments
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions reach this wrapper instead of Hydra's own printing and exit(1)
    try:
        hydra.main(version_base="1.3", config_path="pkg://trainer.conf", config_name=config_name)(job)()
    except MissingConfigException as error:
        raise _unknown_choice(error) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError("the configuration does not compose", got=" ".join(str(error).split())) from error
    # Of a sweep's trials one that fails ends no other; a sweep of which nothing came says so.
    return codes[0] if len(codes) == 1 or (codes and all(code in _FAILED for code in codes)) else EXIT_DONE


def _plain_processes() -> None:
    """Starts processes as Python does: a launcher's own kind (joblib's ``loky``) is inherited by a trial's pools, which know no such."""
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method("spawn", force=True)


def _trial(job: Any, arguments: list[str]) -> str:
    """Names a trial of a sweep by the values that the sweep varies."""
    varied = {key.lstrip("+~") for key, _, value in (argument.partition("=") for argument in arguments) if "," in value or "(" in value}
    own = [override.lstrip("+~") for override in job.overrides.task]
    return " ".join([f"trial {job.job.num}", *(override for override in own if override.partition("=")[0] in varied)])


def _unknown_choice(error: Any) -> ConfigError:
    """Names the group, what was asked for and what there is; Hydra adds where it has looked."""
    group, _, got = str(error.missing_cfg_file).rpartition("/")
    return ConfigError("unknown choice", where=group or "command line", got=got, remedy=nearest(got, error.options or []))


def _with_run_dir(values: Any, sweep: Any) -> Any:
    """In a sweep every trial gets a folder of its own, unless the user spread `run_dir` over the trials himself."""
    if sweep is None or "run_dir" not in values or any(item.startswith(("run_dir=", "++run_dir=")) for item in sweep.overrides.task):
        return values
    return {**values, "run_dir": sweep.runtime.output_dir}


def _dotted(overrides: Any) -> dict[str, str]:
    """Returns the dotted overrides of the command line, without Hydra's prefixes."""
    pairs = (item.lstrip("+~").split("=", 1) for item in overrides if "=" in item)
    return {key: value for key, value in pairs if "." in key}


def _checked_arguments(arguments: list[str], kind: type) -> list[str]:
    """Refuses unknown keys, and prefixes known dotted ones so that Hydra adds keys a YAML file leaves out.

    Raises:
        ConfigError: On a key that no field of `kind` declares.
    """
    return [_checked_argument(argument, kind) for argument in arguments]


_BEHIND_GROUPS = "behind_groups"  # where such values lie while Hydra composes
_FREE_TEXT = ("reason", "note", "author", "where", "check")  # of scripts for people: commas, quotes and = in them mean nothing to Hydra


def _is_path(value: str) -> bool:
    """Says whether a value is a path through day folders (``events/dt=2026-03-27/x.parquet``): Hydra takes no bare ``=`` in a value."""
    return "=" in value and "/" in value and not set("\"'[]{}(),$") & set(value)


def _checked_argument(argument: str, kind: type) -> str:
    if argument.startswith("-") or "=" not in argument:
        return argument
    key, value = argument.split("=", 1)
    if (key in _FREE_TEXT and value != "null" and not (len(value) > 1 and value[0] in "\"'" and value[-1] == value[0])) or _is_path(value):
        value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        argument = f"{key}={value}"
    bare = key.lstrip("+~")
    if bare.startswith("hydra") or bare == "experiment" or bare.split("@", 1)[0] == "experiment":
        return argument
    _check_key(bare.split("."), kind, bare)
    if _hides_behind_a_group(bare, kind):
        return f"++{_BEHIND_GROUPS}.{bare}={value}"
    return f"++{bare}={value}" if "." in bare and not key.startswith("~") else argument


def _hides_behind_a_group(key: str, kind: type) -> bool:
    """Whether a script takes a text under a name that is a group of choices for others: Hydra knows groups only by their folders."""
    plain = {str, type(None)}
    hint = typing.get_type_hints(kind).get(key)
    return hint is not None and set(typing.get_args(hint) or [hint]) <= plain and (files("trainer.conf") / key).is_dir()


def _check_key(parts: list[str], kind: Any, whole: str) -> None:
    fields = {field.name for field in dataclasses.fields(kind)}
    if parts[0] not in fields:
        prefix = whole[: len(whole) - len(".".join(parts))]
        raise ConfigError(
            "unknown key", where="command line", got=whole, remedy=nearest(parts[0], fields) + (f" (below {prefix[:-1]})" if prefix else "")
        )
    hint = typing.get_type_hints(kind)[parts[0]]
    candidates = [hint, *typing.get_args(hint)]
    if len(parts) == 1:
        return
    if typing.get_origin(hint) is dict:
        value = typing.get_args(hint)[1]
        if dataclasses.is_dataclass(value) and len(parts) > 2:
            _check_key(parts[2:], value, whole)
        return
    nested = next((candidate for candidate in candidates if dataclasses.is_dataclass(candidate)), None)
    if nested is None:
        mapping = next((candidate for candidate in candidates if typing.get_origin(candidate) is dict), None)
        if mapping is None:
            raise ConfigError("this key has no keys below it", where="command line", got=whole, remedy=f"set {parts[0]} itself")
        return
    _check_key(parts[1:], nested, whole)


def _report(error: RewarmError) -> int:
    print(f"rewarm: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def _raise_on_signals() -> None:
    """SIGTERM and SIGINT end the run with exit code 75; its artefacts stay, and the same command goes on from them."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(
            f"stopped by {signal.Signals(number).name}",
            remedy="start the same command again with the same run_dir: finished stages are kept",
        )

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
