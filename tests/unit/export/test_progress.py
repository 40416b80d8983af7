import numpy as np
import pyarrow as pa
import pytest

from trainer.export import progress
from trainer.schema.embeddings import VectorBlock


def block(done: float | None) -> VectorBlock:
    return VectorBlock(pa.array(np.arange(300)), np.zeros((300, 2), np.float32), done)


@pytest.mark.parametrize(("done", "words"), [(0.25, "600 user vectors, 30 a second, 60 s left"), (None, "600 user vectors, 30 a second\n")])
def test_the_time_that_is_left_is_told_where_the_source_knows(monkeypatch: pytest.MonkeyPatch, capsys, done: float | None, words: str):
    clock = iter([0.0, 4.0, 20.0, 25.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    blocks = [block(0.1), block(done), block(1.0)]
    assert list(progress.Progress("user vectors").over(iter(blocks))) == blocks
    told = capsys.readouterr().out
    assert words in told and told.count("\n") == 1, "silent for ten seconds, then once every ten"
