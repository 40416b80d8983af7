import io
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from trainer.config import GateRunConfig
from trainer.errors import ConfigError
from trainer.gate import judge, present, run
from trainer.schema.policy import GatePolicy, RuleSet


def test_run_judges_a_file_and_writes_the_verdict(world, policy, no_rules, table, tmp_path, capsys):
    pq.write_table(table(world(rows=20_000)), tmp_path / "predictions.parquet")
    config = GateRunConfig(predictions=str(tmp_path / "predictions.parquet"), run_dir=str(tmp_path / "run"), gate=policy(), rules=no_rules)
    verdict = run(config)
    assert json.loads((tmp_path / "run" / "verdict.json").read_text())["verdict"] == verdict.verdict
    assert verdict.verdict in capsys.readouterr().out


def test_the_printed_table_leads_with_what_decided(world, policy, no_rules, table):
    columns = world(rows=20_000)
    columns["challenger_click"] = columns["challenger_click"] * 0.5
    out = io.StringIO()
    present(judge(table(columns), policy(), no_rules), console=Console(file=out, width=160))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("REJECT (refresh)")
    first = next(line for line in lines if line.startswith("fail"))
    assert "calibration/click/all" in first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": "maybe"}, "gate.first"),
        ({"ne_margin": 0.0}, "gate.ne_margin"),
        ({"quantiles": [1.5]}, "gate.quantiles"),
        ({"prove_within": 0.5}, "gate.prove_within"),
        ({"false_alarms_per_year": 400.0}, "false_alarms_per_year"),
        ({"severity": {"aucc": "warn"}}, "did you mean 'auc'"),
        ({"severity": {"auc": "loud"}}, "gate.severity.auc"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        GatePolicy(name="refresh", **changes)


def test_alpha_is_the_yearly_budget_over_the_runs(policy):
    assert policy(runs_per_year=365, false_alarms_per_year=4).alpha == pytest.approx(4 / 365)
    assert RuleSet().empty


def test_the_gate_needs_no_torch():
    code = "import sys, trainer.gate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
