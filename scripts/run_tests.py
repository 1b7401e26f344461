"""Run the tests: folders in processes of pytest of their own, two at a time, those that take longest first.

    python scripts/run_tests.py [arguments of pytest: then it is one process, as pytest itself]

Most of the time goes into single threads: compilers, servers, solvers. No process has the compilers, servers or caches
of another. What it says is printed when it has ended; at the end stands a table of what each took.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BESIDE: Final = "files"
"""The part of the files that lie in no folder."""

TOGETHER: Final = {"tensorflow": ("tf", "frameworks", "testing")}
"""Folders in one process: to load TensorFlow, PyTorch and JAX takes as long as many of their tests."""

LONG: Final = (
    "engine",
    BESIDE,
    "pytorch",
    "xla",
    "tensorflow",
    "congruence",
    "service",
    "e2e",
    "loadtests",
    "transports",
)
"""Started first, so that none of them is what all others have to be waited for."""

SIDE_BY_SIDE: Final = 2
PYTEST: Final = (sys.executable, "-m", "pytest", "-m", "not containers")
NOT_NEEDED: Final = ("typeguard", "jaxtyping", "anyio")
"""Plugins that other packages bring, of use to no test here. Hypothesis needs its own, by which each case of a test has
examples of its own."""

ENVIRONMENT: Final = os.environ | {"OMP_NUM_THREADS": "1"}


def parts(tests: Path) -> list[tuple[str, list[str]]]:
    """Name and paths of each part, longest first: folders that have tests, and the files beside them."""
    folders = {path.name: str(path) for path in tests.iterdir() if any(path.glob("test_*.py"))}
    found: dict[str, list[str]] = {}
    for name, together in TOGETHER.items():
        if paths := [folders.pop(each) for each in together if each in folders]:
            found[name] = paths
    found |= {name: [path] for name, path in folders.items()}
    files = sorted(str(path) for path in tests.glob("test_*.py"))
    if files:
        found[BESIDE] = files
    return [(name, found[name]) for name in [*filter(found.__contains__, LONG), *sorted(found.keys() - set(LONG))]]


def run(name: str, paths: Sequence[str]) -> tuple[str, int, float, str]:
    """Its name, pytest's exit status, the seconds it took, what it said."""
    print(f"{name}: begun", flush=True)
    began = time.monotonic()
    without = [argument for name in NOT_NEEDED for argument in ("-p", f"no:{name}")]
    command = [*PYTEST, *without, "-p", "no:cacheprovider", "--durations=5", "--durations-min=5", *paths]
    with tempfile.TemporaryFile("w+") as said:
        status = subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT, stdout=said, stderr=subprocess.STDOUT, check=False
        ).returncode
        said.seek(0)
        return name, status, time.monotonic() - began, said.read()


def main(arguments: list[str], tests: Path = ROOT / "tests") -> int:
    """Exit status of pytest; of several processes, that of one that failed."""
    if arguments:
        return subprocess.run([*PYTEST, *arguments], cwd=ROOT, env=ENVIRONMENT, check=False).returncode
    done: list[tuple[str, int, float, str]] = []
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for future in as_completed([pool.submit(run, *part) for part in parts(tests)]):
            done.append(future.result())
            name, status, seconds, said = done[-1]
            print(f"\n{said}\n{name}: ended with {status} after {seconds:.0f} s", flush=True)
    failed = [part for part in done if part[1]]
    for _, _, _, said in failed:
        print(said[said.find("= FAILURES =") :] if "= FAILURES =" in said else said[-4000:], flush=True)
    for name, status, seconds, _ in sorted(done, key=lambda part: -part[2]):
        print(f"{name:14} {seconds:6.0f} s  {'passed' if not status else f'FAILED ({status})'}", flush=True)
    return failed[0][1] if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
