"""What a vocabulary costs that lists its ids, and one that hashes them: rows, table, file, and CPU time to look ids up.

    OMP_NUM_THREADS=1 python scripts/bench/hashed.py                     # 100,000, 1,000,000 and 4,000,000 users in 100,000 rows

A partition asks for 200,000 rows of 20,000 users, as encoding does once a partition. The two kinds take turns; medians of rounds.
A table's bytes are those of `trainer.fit.tables.TableOptimizer` under adamw, averaged weights included.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.schema.hash_function import HashFunction
from trainer.schema.hashed import AnyVocabulary, HashedVocabulary, crowding
from trainer.schema.vocabulary import Vocabulary

ASKED, DISTINCT = 200_000, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", default="100000,1000000,4000000")
    parser.add_argument("--rows", type=int, default=100_000, help="of the hashed vocabulary")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    hashing = HashFunction(rows=options.rows)
    print(f"{'kind':>8} {'ids':>12} {'rows':>12} {'table':>12} {'file':>10} {'look-up':>16}   ids with a row of their own (law)")
    for size in map(int, options.ids.split(",")):
        ids, asked = made_up(size)
        pair: list[tuple[str, AnyVocabulary]] = [("listed", ids), ("hashed", HashedVocabulary.of(hashing, ids))]
        seconds: dict[str, list[float]] = {name: [] for name, _ in pair}
        for _ in range(options.rounds):
            for name, vocabulary in pair:
                begin = time.process_time()
                vocabulary.lookup(asked)
                seconds[name].append(time.process_time() - begin)
        alone = {"listed": (1.0, 1.0), "hashed": (1 - crowding(hashing, ids)["shared"], math.exp(-(size - 1) / options.rows))}
        for name, vocabulary in pair:
            table = vocabulary.rows * (16 * options.dim + 12) / 2**20  # weights, two moments, average; last steps of two
            each = statistics.median(seconds[name]) / ASKED * 1e6
            print(
                f"{name:>8} {size:12,} {vocabulary.rows:12,} {table:8,.0f} MiB {written(vocabulary):6.1f} MiB {each:10.3f} us a row   "
                f"{alone[name][0]:.3f} ({alone[name][1]:.3f})",
                flush=True,
            )


def made_up(size: int) -> tuple[Vocabulary, pa.Array]:
    """Returns a vocabulary of that many users, each met once, and the ids that a partition asks for."""
    rng = np.random.default_rng(0)
    keys, day = pa.array(rng.permutation(3 * size)[:size]), pa.array(["2026-01-01"]).take(pa.array(np.zeros(size, np.int64)))
    asked = rng.integers(0, size, DISTINCT)[rng.integers(0, DISTINCT, ASKED)]
    return Vocabulary("user", keys, np.ones(size, np.int64), day, day), keys.take(pa.array(asked))


def written(vocabulary: AnyVocabulary) -> float:
    """Returns the size of its file, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "user.parquet"
        vocabulary.write(path)
        return path.stat().st_size / 2**20


if __name__ == "__main__":
    main()
