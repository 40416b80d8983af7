"""Scores matrices by a LightGBM text model; run as a program, in a process of its own.

The library's parser trusts its input: a damaged file can abort the process (an exception inside an OpenMP region). Here that kills a
child, and the parent reports a damaged file. It imports nothing of trainer, so that it runs wherever its file lies.
"""

from __future__ import annotations

import sys

import numpy as np


def main(model: str, threads: str, *matrices: str) -> None:
    """Reads the model, and for each ``X.npy`` (float32 [N, F]) writes ``X.npy.scores.npy`` (float64 [N])."""
    import lightgbm

    booster = lightgbm.Booster(model_file=model)
    for matrix in matrices:
        np.save(f"{matrix}.scores.npy", np.asarray(booster.predict(np.load(matrix), num_threads=int(threads)), np.float64))


if __name__ == "__main__":
    main(*sys.argv[1:])
