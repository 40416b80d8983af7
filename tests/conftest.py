"""Fixtures shared by all tests: where the real logs are, and small seeded examples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share the machine; oversubscribed threads make them many times slower

import pytest

if TYPE_CHECKING:
    from trainer.checkpoint import Bundle

ROOT = Path(__file__).resolve().parent.parent


def real_log(name: str) -> Path:
    """Returns the folder of a real log, or skips the test that needs it."""
    folder = Path(os.environ.get("REWARM_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"real log {name!r} is not here: {folder} (set REWARM_DATA)")
    return folder


def next_item_bundle(folder: Path) -> Bundle:
    """Writes the bundle of a small untrained next-item ranker: five items, one block of width 8."""
    import numpy as np  # here: torch takes seconds to import, and most files of tests do without
    import pyarrow as pa
    import torch

    import models
    from models.ranker import RankerShape
    from trainer.checkpoint import write_bundle
    from trainer.schema.bundle import BundleManifest
    from trainer.schema.inputs import next_item_inputs
    from trainer.schema.plain import as_plain
    from trainer.schema.vocabulary import Vocabulary

    shape = RankerShape(
        architecture="sasrec", actions=(), history_actions=(), vocabularies={"item": 7}, item_vocabulary="item", dim=8, heads=1, head_dim=8,
        layers=1, ffn_dim=8, context_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    ranker = models.build(shape)
    days = pa.array(["2026-01-01"] * 5)
    manifest = BundleManifest(
        code_version="0", shape=as_plain(shape), inputs=next_item_inputs(5), features={}, labels={}, value={}, config={},
        axes={name: list(axes) for name, axes in ranker.axes().items()}, trained={},
    )  # fmt: skip
    return write_bundle(
        folder, manifest, trunk=ranker.state_dict(), serving=ranker.state_dict(), optimizer={},
        vocabularies={"item": Vocabulary("item", pa.array(range(5)), np.ones(5), days, days)}, items=pa.table({"item": range(5)}),
    )  # fmt: skip
