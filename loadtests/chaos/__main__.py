"""Mistreat a server of our own, and the wire to it, in many ways; whatever should not happen is printed as a fault.

Each round is decided by its seed, so `--only NUMBER` plays one again.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from scripts.local_server import LocalServer

from .callers import Findings
from .rounds import FAULTS, SETTINGS, play, rounds

SEED = 592_760_431
TRANSPORTS = ("http", "grpc")


def main() -> int:
    """Exit status: 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of all of them (default: %(default)s)")
    parser.add_argument("--transport", nargs="+", action="extend", choices=TRANSPORTS, help="(default: both)")
    parser.add_argument("--faults", nargs="+", action="extend", choices=FAULTS, help="only these; by default all")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="only this round")
    parser.add_argument("--out", type=Path, default=Path("out/chaos.json"), help="results (default: %(default)s)")
    options = parser.parse_args()
    chosen = [
        each
        for each in rounds(options.rounds, options.seed, tuple(options.transport or TRANSPORTS))
        if options.only in (None, each.number) and each.fault in (options.faults or FAULTS)
    ]
    by_fault = {each.fault: Findings() for each in chosen}
    counts = Counter(each.fault for each in chosen)
    files: dict[int, int] = {}
    with LocalServer(dict(SETTINGS)) as server:
        for each in tqdm(chosen, unit="round"):
            by_fault[each.fault].add(play(server, each, files))
    print(f"{'fault':<10}{'rounds':>8}{'answered':>10}{'harm':>6}{'faults':>8}  callers' errors; what the server said")
    for name, found in by_fault.items():
        line = f"{name:<10}{counts[name]:>8}{found.answered:>10}{found.harm:>6}{len(found.faults):>8}"
        print(f"{line}  {_counts(found.errors)}; {_counts(found.told)}")
    faults = [text for found in by_fault.values() for text in found.faults]
    print(*faults, sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "seed": options.seed,
        "rounds": len(chosen),
        "faults": faults,
        "outcomes": {
            name: {
                "rounds": counts[name],
                "answered": found.answered,
                "harm": found.harm,
                "errors": dict(found.errors),
                "told": {code: count for code, count in found.told.items() if count},
            }
            for name, found in by_fault.items()
        },
    }
    options.out.write_text(json.dumps(document, indent=1))
    return 1 if faults else 0


def _counts(codes: Counter[str]) -> str:
    return ", ".join(f"{code} {count}" for code, count in sorted(codes.items()) if count) or "none"


if __name__ == "__main__":
    sys.exit(main())
