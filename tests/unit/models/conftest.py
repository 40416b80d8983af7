"""Random shapes and batches for the tests of `models`. Factories are session fixtures, so that hypothesis may use them."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from models.batch import Batch
from models.ranker import ActionShape, RankerShape

HOUR_MS = 3_600_000
START_MS = 1_651_000_000_000


def make_shape(architecture="sasrec", **changes):
    values = {
        "architecture": architecture,
        "actions": (
            ActionShape(name="click", kind="binary", base_rate=0.2),
            ActionShape(name="watch", kind="duration", base_rate=2.0),
            ActionShape(name="comments", kind="count", base_rate=0.1),
        ),
        "history_actions": ("click", "watch"),
        "vocabularies": {"item": 40, "author": 9, "surface": 5, "user": 11, "country": 4},
        "item_vocabulary": "item",
        "item_features": {"author": "author"},
        "token_features": {"type": "surface"},  # `type` is an attribute of every module: names must not collide
        "categorical": {"user": "user", "user.country": "country", "author": "author"},
        "numeric": ("ctr_7d", "age"),
        "dim": 16,
        "heads": 2,
        "head_dim": 8,
        "ffn_dim": 24,
        "context_dim": 12,
        "dropout": 0.0,
    }
    return RankerShape(**{**values, **changes})


def bare_shape(architecture="sasrec", **changes):
    """No features of any kind."""
    bare = {"item_features": {}, "token_features": {}, "categorical": {}, "numeric": (), "history_actions": ()}
    return make_shape(architecture, **{**bare, **changes})


def make_batch(shape, lengths, targets, seed=0):
    """A random batch. `targets`: a list of positions a sequence; instants rise within a sequence, some tokens have no clock."""
    generator = torch.Generator().manual_seed(seed)

    def rows(count, vocabularies):
        columns = [torch.randint(0, shape.vocabularies[name], (count,), generator=generator) for name in vocabularies]
        return torch.stack(columns, 1) if columns else torch.zeros(count, 0, dtype=torch.int64)

    def uniform(*size):
        return torch.rand(size, generator=generator)

    tokens, count = sum(lengths), sum(map(len, targets))
    actions, history, numeric = len(shape.actions), len(shape.history_actions), len(shape.numeric)
    known_TH, present_NF, known_NA = uniform(tokens, history) < 0.8, uniform(count, numeric) < 0.7, uniform(count, actions) < 0.8
    gap_T = (2 ** (uniform(tokens) * 12)).long() * 1000
    clock_T = uniform(tokens) < 0.8
    draws = {"binary": (uniform(count) < 0.3).float(), "duration": uniform(count) * 60, "count": (uniform(count) * 4).floor()}
    label_NA = torch.stack([draws[action.kind] for action in shape.actions], 1) if actions else uniform(count, 0)
    return Batch(
        offsets_S1=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
        token_item_T=torch.randint(1, shape.vocabularies[shape.item_vocabulary], (tokens,), generator=generator),
        token_item_features_TI=rows(tokens, shape.item_features.values()),
        token_features_TK=rows(tokens, shape.token_features.values()),
        token_action_TH=uniform(tokens, history) * known_TH,
        token_action_known_TH=known_TH,
        token_time_T=torch.where(clock_T, START_MS + gap_T.cumsum(0), -1),
        target_sequence_N=torch.tensor([s for s, positions in enumerate(targets) for _ in positions], dtype=torch.int64),
        target_position_N=torch.tensor([p for positions in targets for p in positions], dtype=torch.int64),
        target_time_N=START_MS + (uniform(count) * 48 * HOUR_MS).long(),
        target_item_N=torch.randint(1, shape.vocabularies[shape.item_vocabulary], (count,), generator=generator),
        target_item_features_NI=rows(count, shape.item_features.values()),
        target_token_features_NK=rows(count, shape.token_features.values()),
        categorical_NC=rows(count, shape.categorical.values()),
        numeric_NF=torch.randn(count, numeric, generator=generator) * present_NF,
        present_NF=present_NF,
        label_NA=label_NA * known_NA,
        known_NA=known_NA,
        weight_N=uniform(count) + 0.5,
        row_N=torch.arange(count),
    )


def make_model(shape, seed=0, dtype=torch.float32):
    """A ranker in eval() whose every parameter is random, so that no term hides behind a zero."""
    torch.manual_seed(seed)
    model = models.build(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("gain"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if "weight" in name and model.axes()[name][0].startswith("vocab:"):
                parameter[0] = 0
    return model.to(dtype).eval()


def one_sequence(batch, sequence):
    """The batch that holds only one sequence and its targets."""
    first, last = batch.offsets_S1[sequence : sequence + 2].tolist()
    mine_N = batch.target_sequence_N == sequence
    values = {}
    for field in dataclasses.fields(Batch):
        value = getattr(batch, field.name)
        if field.name == "offsets_S1":
            values[field.name] = torch.tensor([0, last - first])
        elif field.name.startswith("token_"):
            values[field.name] = value[first:last]
        elif value is not None:
            values[field.name] = value[mine_N]
    return Batch(**{**values, "target_sequence_N": torch.zeros_like(values["target_sequence_N"])})


def pick_targets(batch, index):
    """The same tokens with the targets `index`, in that order."""
    per_target = [f.name for f in dataclasses.fields(Batch) if f.name.split("_")[-1].startswith("N") and getattr(batch, f.name) is not None]
    return dataclasses.replace(batch, **{name: getattr(batch, name)[index] for name in per_target})


class Kit:
    shape = staticmethod(make_shape)
    bare = staticmethod(bare_shape)
    batch = staticmethod(make_batch)
    model = staticmethod(make_model)
    one_sequence = staticmethod(one_sequence)
    pick = staticmethod(pick_targets)


@pytest.fixture(scope="session")
def kit():
    return Kit


@pytest.fixture
def interpreted(monkeypatch):
    """Puts, in the place of a module of kernels, the same module loaded so that Triton interprets them."""
    triton = pytest.importorskip("triton", reason="triton is not installed: kernels cannot be run, not even interpreted")

    def load(name):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        if not loops_are_interpreted():
            pytest.skip(f"the interpreter of Triton {triton.__version__} cannot loop up to a loaded bound with NumPy {np.__version__}")
        # Triton's own functions were made when it was imported, to be compiled; what they consist of is interpreted.
        monkeypatch.setattr(triton.runtime.jit.JITFunction, "__call__", lambda self, *args, **options: self.fn(*args, **options))
        module = load_interpreted(name)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return load


@cache
def load_interpreted(name):
    spec = importlib.util.spec_from_file_location(f"models.{name}", Path(models.__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    outside = sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # dataclasses look up where they were made
    try:
        spec.loader.exec_module(module)
    finally:
        if outside is None:
            del sys.modules[spec.name]
        else:
            sys.modules[spec.name] = outside
    return module


@cache
def loops_are_interpreted():
    """Tells whether this Triton goes with this NumPy: 3.6 turns an array of one value into an index, which NumPy 2.4 refuses."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction, InterpreterError

    def count(bound, out):
        total = 0
        for step in range(tl.load(bound)):
            total += step
        tl.store(out, total)

    out = torch.zeros(1, dtype=torch.int32)
    try:
        InterpretedFunction(count)[(1,)](torch.tensor([4], dtype=torch.int32), out)
    except InterpreterError:
        return False
    return out.item() == 6
