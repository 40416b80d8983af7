"""Small seeded examples, as rebuild would write them: for tests of everything behind it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from trainer.data import Encoder
from trainer.schema.inputs import Action, InputSpec, NumericInput
from trainer.schema.vocabulary import Vocabulary

HOUR = 3_600_000


def vocabulary(name, keys):
    keys = pa.array(list(keys))
    days = pa.array(["2026-01-01"] * len(keys))
    return Vocabulary(name, keys, np.arange(1, len(keys) + 1), days, days)


def inputs(actions=("click", "like"), numeric=("rate", "age"), categorical=("tab",), max_history=8, history=None):
    return InputSpec(
        actions=[
            Action(name=name, kind="duration" if name == "watch" else "binary", base_rate=0.3, weight=1.0, maturity_ms=0)
            for name in actions
        ],
        history_actions=list(actions if history is None else history),
        numeric=[NumericInput(name=name, transform="none", mean=0.0, std=1.0) for name in numeric],
        categorical={name: name for name in categorical},
        item_features={"author": "author"},
        token_features={"tab": "tab"},
        max_history=max_history,
    )


def encoder(items=range(100, 140), tabs=("a", "b", "c"), authors=range(5), **kwargs):
    vocabularies = {"item": vocabulary("item", items), "tab": vocabulary("tab", tabs), "author": vocabulary("author", authors)}
    return Encoder(inputs(**kwargs), vocabularies)


def tables(users=30, rows=200, tail_rows=150, seed=0, items=40):
    """Returns (examples, tail) with ties, unknown items, nulls and clockless tail tokens."""
    rng = np.random.default_rng(seed)
    item = rng.integers(100, 100 + items + 3, rows)  # a few ids that the vocabulary does not know
    event = rng.integers(24 * HOUR, 48 * HOUR, rows) // 1000 * 1000
    click = (rng.random(rows) < 0.2 + 0.4 * (item % 3 == 0)).astype(np.float32)
    examples = pa.table(
        {
            "user": rng.integers(0, users, rows),
            "item": item,
            "event_time": event,
            "request_time": event,
            "known_at": event + rng.integers(0, 2, rows) * HOUR,
            "available": event + 1 + rng.integers(0, 2, rows) * HOUR,
            "is_event": rng.random(rows) < 0.9,
            "weight": np.ones(rows, np.float32),
            "label_click": click,
            "label_like": pa.array(np.where(rng.random(rows) < 0.1, np.nan, rng.random(rows) < 0.1), pa.float32(), from_pandas=True),
            "label_watch": (rng.random(rows) * 60).astype(np.float32),
            "feature_rate": pa.array(np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)), pa.float32(), from_pandas=True),
            "feature_age": rng.normal(size=rows).astype(np.float32),
            "feature_tab": pa.array([None if x == 3 else "abc"[x] for x in rng.integers(0, 4, rows)]),
            "feature_author": item % 5,
        }
    )
    clock = rng.random(tail_rows) < 0.7
    time = rng.integers(0, 24 * HOUR, tail_rows)
    tail_item = rng.integers(100, 100 + items, tail_rows)
    tail = pa.table(
        {
            "user": np.sort(rng.integers(0, users + 10, tail_rows)),
            "item": tail_item,
            "event_time": pa.array(np.where(clock, time, -1), pa.int64(), mask=~clock),
            "available": pa.array(np.where(clock, time + 1, 0), pa.int64(), mask=~clock),
            "label_click": (rng.random(tail_rows) < 0.3).astype(np.float32),
            "label_like": pa.array([None] * tail_rows, pa.float32()),
            "label_watch": (rng.random(tail_rows) * 60).astype(np.float32),
            "feature_tab": pa.array(["a"] * tail_rows),
            "feature_author": tail_item % 5,
        }
    )
    return examples, tail


def model_config(**overrides):
    from trainer.config import ModelConfig

    settings = {
        "name": "sasrec",
        "dim": 16,
        "layers": 2,
        "heads": 2,
        "head_dim": 8,
        "ffn_dim": 32,
        "context_dim": 16,
        "max_history": 8,
        "dropout": 0.1,
    }
    return ModelConfig(**{**settings, **overrides})
