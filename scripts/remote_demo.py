"""Run the demo, unedited, against a server: start one, name it in BACKSOLVE_URL, stop it.

Where the embedded run has left `out/losses.json`, the losses are compared step by step.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from scripts.local_server import local_server

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "heat_inverse.py"
EMBEDDED_LOSSES = Path("out/losses.json")
TOLERANCE = 1e-8


def main() -> int:
    """Exit status: 0, the demo's own, or 1 for losses that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=["http", "grpc"], default="http")
    parser.add_argument("--compare", type=Path, default=EMBEDDED_LOSSES, help="losses of the embedded run")
    parser.add_argument("--losses", type=Path, help="where the losses of this run go")
    options, rest = parser.parse_known_args()
    losses = options.losses or Path("out") / f"losses-{options.transport}.json"
    picture = Path("out") / f"demo-{options.transport}.png"
    with local_server() as server:
        environment = os.environ | {"BACKSOLVE_URL": getattr(server, options.transport)}
        command = [sys.executable, str(DEMO), "--losses", str(losses), "--out", str(picture), *rest]
        status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        return status
    if not options.compare.exists():
        print(f"  {'compared with':<26}nothing: run `make demo` first to compare with {options.compare}")
        return 0
    worst = worst_difference(json.loads(options.compare.read_text()), json.loads(losses.read_text()))
    if worst is None:
        print(f"  {'compared with':<26}nothing: {options.compare} has another number of steps")
        return 0
    verdict = "the same" if worst <= TOLERANCE else "NOT the same"
    print(f"  {'losses, embedded run':<26}{verdict}: they differ by at most {worst:.1e} relative")
    return 0 if worst <= TOLERANCE else 1


def worst_difference(embedded: list[float], remote: list[float]) -> float | None:
    """Largest relative difference of two runs' losses; None if they took different numbers of steps."""
    if len(embedded) != len(remote):
        return None
    return max(abs(ours - theirs) / abs(ours) for ours, theirs in zip(embedded, remote, strict=True))


if __name__ == "__main__":
    sys.exit(main())
