"""Pools the judged days of several runs: challenger against each baseline, paired, with user-clustered intervals.

Run as ``python scripts/bench/pooled.py RUN_DIR [RUN_DIR ...] [actions=is_click,long_view]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.metrics import arrange, auc, interval, normalised_loss
from trainer.schema.predictions import CHALLENGER, COUNTING, LABEL, LIGHTGBM, PRODUCTION

BASELINES = {"counting": COUNTING, "lightgbm": LIGHTGBM, "production": PRODUCTION}


def compare(table: pa.Table, action: str, prefix: str) -> str:
    """Returns a line with both models' AUC and NE and the paired differences."""
    columns = [LABEL + action, CHALLENGER + action, prefix + action]
    table = table.filter(pc.and_(table[columns[0]].is_valid(), table[columns[2]].is_valid()))
    label_N, ours_N, theirs_N = (table[name].to_numpy() for name in columns)
    rows = arrange(np.asarray(table["user"].combine_chunks().dictionary_encode().indices))
    parts = []
    for name, ours, theirs in (
        ("AUC", auc(ours_N, label_N, rows), auc(theirs_N, label_N, rows)),
        ("NE", normalised_loss("binary", ours_N, label_N, rows), normalised_loss("binary", theirs_N, label_N, rows)),
    ):
        difference = ours.minus(theirs)
        low, high = (float(end[0]) for end in interval(difference, rows))
        values = f"{ours.value_G[0]:.4f} against {theirs.value_G[0]:.4f}"
        parts.append(f"{name} {values}: {difference.value_G[0]:+.4f} [{low:+.4f}, {high:+.4f}]")
    return f"{len(table):>8,} rows  " + "   ".join(parts)


def main() -> None:
    """Prints one table a baseline."""
    actions = next((a.split("=")[1].split(",") for a in sys.argv[1:] if a.startswith("actions=")), ["is_click", "long_view"])
    runs = [Path(a) for a in sys.argv[1:] if "=" not in a]
    days = {run.name: pq.read_table(run / "predictions.parquet") for run in runs}
    names = set.intersection(*(set(table.column_names) for table in days.values()))
    pooled = pa.concat_tables([table.select(sorted(names)) for table in days.values()], promote_options="permissive")
    for baseline, prefix in BASELINES.items():
        for action in actions:
            for name, table in {"pooled": pooled, **days}.items():
                if prefix + action in table.column_names:
                    print(f"{action:<12} vs {baseline:<11}{name:<10}{compare(table, action, prefix)}")


if __name__ == "__main__":
    main()
