"""Measure what one server can do at its limits, and say of each figure whether it keeps its target.

Without arguments a short form of every part; `--long` is what the targets are about. The exit status is 1 if an
answer was wrong or something is not as it must be; a target that is missed is printed as MISSED.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from loadtests.micro.__main__ import environment
from loadtests.transports.picture import draw

from . import coalescing, health, idle, memory, rate, soak
from .part import Asked, Found

WAYS = ("http", "grpc")
PARTS: Mapping[str, tuple[str, Callable[[Asked], Found]]] = {
    "rate": ("requests a second of a cached solve, one core for the server", rate.measure),
    "coalescing": ("many callers of one dense factor, joined into blocks and each alone", coalescing.measure),
    "idle": ("processor time of a server that nobody calls", idle.measure),
    "memory": ("memory of a server beside its factors", memory.measure),
    "health": ("health checks during solves of many seconds", health.measure),
    "soak": ("growth of the memory with the requests answered", soak.measure),
}


def main() -> int:
    """Command line; writes `limits.json` and `limits.png`."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.limits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", action="extend", choices=PARTS, metavar="PART", help="(default: all)")
    parser.add_argument("--ways", nargs="+", action="extend", choices=WAYS, help="(default: both)")
    parser.add_argument("--long", action="store_true", help="as the targets have it; up to half an hour for all parts")
    parser.add_argument("--seconds", type=float, help="of each run, in place of what either form has")
    parser.add_argument("--profile", action="store_true", help="list the server's functions by their time as well")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="say what the parts are, and end")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:<12}{about}" for name, (about, _) in PARTS.items()))
        return 0
    asked = Asked(options.long, options.profile, tuple(options.ways or WAYS), options.seconds)
    found = {}
    for name in options.only or PARTS:
        found[name] = PARTS[name][1](asked)
        print(f"\n{name}: {PARTS[name][0]}", *found[name].targets, *found[name].notes, sep="\n", flush=True)
        print(*(f"FAULT: {fault}" for fault in found[name].faults), sep="\n", end="", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = {
        name: {
            "targets": [{**asdict(target), "met": target.met} for target in each.targets],
            "faults": each.faults,
            **each.data,
        }
        for name, each in found.items()
    }
    document = {"environment": environment(), "long": asked.long, "parts": parts}
    (options.out / "limits.json").write_text(json.dumps(document, indent=1))
    draw([target for each in found.values() for target in each.targets], options.out / "limits.png")
    print(f"\nwritten: {options.out / 'limits.json'}, {options.out / 'limits.png'}")
    return 1 if any(each.faults for each in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
