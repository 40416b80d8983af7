"""`make run`: simulates a month of logs, ships a first model cold, then a grown challenger warm-started from it.

    python scripts/demo.py [runs=DIR]

Everything lies below DIR (default ``runs``); DIR/demo is emptied first. Takes a few minutes on two cores.
exit codes: 0 both jobs completed, whatever the verdict; else that of the script that did not
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import EXIT_DONE, EXIT_HOLD, EXIT_REJECT, ConfigError

HERE = Path(__file__).resolve().parent
COMPLETED = (EXIT_DONE, EXIT_REJECT, EXIT_HOLD)  # a verdict is a result, whatever it says
FIRST_DAY, SECOND_DAY = "2026-03-27", "2026-03-28"


def call(script: str, *arguments: str) -> None:
    """Runs a script; stops the demo if it did not complete."""
    print(f"\n$ python scripts/{script} {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode
    if code not in COMPLETED:
        sys.exit(code)


def folder(arguments: Sequence[str]) -> Path:
    """Returns the folder given as ``runs=DIR``; prints the help, or refuses what is no argument, and ends the script."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        sys.exit(EXIT_DONE)
    unknown = [argument for argument in arguments if not argument.startswith("runs=")]
    if unknown:
        error = ConfigError("unknown argument", where="command line", got=unknown[0], expected="runs=DIR")
        print(f"rewarm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    return Path(arguments[-1].removeprefix("runs=") if arguments else "runs")


def main() -> None:
    """Runs the demo below the folder given as ``runs=DIR``."""
    runs = folder(sys.argv[1:])
    demo = runs / "demo"
    shutil.rmtree(demo, ignore_errors=True)
    begin = time.perf_counter()
    call("simulate.py", f"out={runs / 'simulated'}")
    common = [f"data.root={runs / 'simulated'}", f"registry.root={demo / 'registry'}", f"rebuild.root={demo / 'examples'}"]
    call("retrain.py", *common, f"as_of={FIRST_DAY}", "gate.first=promote", f"run_dir={demo / FIRST_DAY}")
    grown = ["model.layers=3", "model.ffn_dim=384", "model.context_layers=3"]
    call("retrain.py", *common, f"as_of={SECOND_DAY}", *grown, f"run_dir={demo / SECOND_DAY}")
    call("release.py", f"registry.root={demo / 'registry'}", "action=status")
    print(f"\n{time.perf_counter() - begin:.0f} s in all; look at {demo / SECOND_DAY / 'report.html'}")


if __name__ == "__main__":
    main()
