"""What `eval.json` calls a metric is what the gate calls so: the report prints both in one line."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import yaml

from tests.unit.gate.conftest import CONF
from trainer.config import EvaluationConfig, load
from trainer.evaluate.run import measure
from trainer.gate import judge
from trainer.schema.logs import ActionSpec, LogSpec, TimeSpec
from trainer.schema.policy import GatePolicy, RuleSet

ROWS, USERS = 4_000, 200


def predictions() -> pa.Table:
    """Users with several requests; what a request shows depends on the user's mood, which production's scores know."""
    rng = np.random.default_rng(0)
    user_N = rng.integers(0, USERS, ROWS)
    request_N = user_N * 10 + rng.integers(0, 5, ROWS)
    mood_N = rng.normal(size=USERS * 10)[request_N]
    logit_N = mood_N + rng.normal(size=ROWS) - 1
    scores = {"production_click": logit_N, "challenger_click": 0.3 * mood_N + logit_N - mood_N}
    columns = {name: 1 / (1 + np.exp(-score_N)) for name, score_N in scores.items()}
    label_N = (rng.random(ROWS) < columns["production_click"]).astype(float)
    ids = {"user": user_N, "item": rng.integers(0, 50, ROWS), "time": np.arange(ROWS), "request": request_N, "weight": np.ones(ROWS)}
    return pa.table({**ids, "label_click": label_N, **columns})


@pytest.mark.parametrize("dropped", [[], ["request"]], ids=["within requests", "within users"])
def test_ranking_metrics_are_those_of_the_gate(dropped):
    table = predictions().drop_columns(dropped)
    spec = LogSpec(
        name="log", root="log", user="u", item="i", event_time=TimeSpec(column="t"), actions={"click": ActionSpec(expression="c")}
    )  # fmt: skip
    report = measure(table, spec, EvaluationConfig(bootstrap=0), 0)
    policy = load(GatePolicy, {**yaml.safe_load((CONF / "gate" / "refresh.yaml").read_text()), "slices": []})
    checks = {check.name: check for check in judge(table, policy, RuleSet()).checks if check.slice == "all"}
    for name in ("auc", "gauc"):
        lost = report["production"]["click"][name] - report["challenger"]["click"][name]
        assert lost == pytest.approx(checks[name].estimate, abs=1e-12), name
    assert abs(checks["auc"].estimate - checks["gauc"].estimate) > 0.005, "two quantities"
