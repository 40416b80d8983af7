"""Rules that are code: the user's own function, replayed on production's and on the challenger's scores of the same rows.

The entry point stands in the user's configuration (`conf/rules/*.yaml`); nothing that a bundle or a table holds can name one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.errors import ConfigError
from trainer.gate.slices import slice_candidates
from trainer.schema import predictions as names
from trainer.schema.policy import PythonRule

Rule = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def entry_point(rule: PythonRule, where: str) -> Rule:
    """Imports the function of a rule.

    Raises:
        ConfigError: If the module cannot be imported or has no such function.
    """
    module, _, name = rule.function.rpartition(":")
    try:
        loaded = _file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
        function = getattr(loaded, name)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise ConfigError(
            "cannot import a rule", where=where, got=rule.function, expected=f"package.module:function, /path/rules.py:function ({error})",
            remedy="check the spelling, and that the folder of the module is on PYTHONPATH",
        ) from error  # fmt: skip
    if not callable(function):
        raise ConfigError("a rule is no function", where=where, got=rule.function)
    return function


def _file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"rules_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no file {path}")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses and pickles of the module look themselves up there
    spec.loader.exec_module(loaded)
    return loaded


def batch(table: pa.Table, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what a rule sees: keys and slice columns as they are, and one model's scores as ``score_<action>``, ``value``, blends.

    Args:
        table: The predictions; labels and the columns of other models are left out, a rule in production has neither.
        scores: Scores of one model by name.
    """
    kept = [name for name in (*names.KEYS, names.WEIGHT) if name in table.column_names] + slice_candidates(table)
    columns = {name: table[name].to_numpy() for name in kept if not pa.types.is_nested(table[name].type)}
    return columns | dict(scores)


def decide(function: Rule, rows: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Runs a rule on one model's rows.

    Raises:
        ValueError: If what it returns is not one finite number, not negative, a row.
    """
    decided_N = np.asarray(function(rows), np.float64)
    if decided_N.shape != (count,):
        raise ValueError(f"the rule returned shape {decided_N.shape}, one number for each of {count:,} rows was expected")
    if not (np.isfinite(decided_N).all() and decided_N.min(initial=0.0) >= 0):
        raise ValueError("the rule returned a number that is negative or not finite")
    return decided_N
