"""Run the tests as two processes of pytest side by side: those of the compiling frameworks, and all others.

    python scripts/run_tests.py [arguments of pytest: then it is one process, as pytest itself]

Most of the time goes into single threads: compilers in one, servers and solvers in the other. What the tests of the
compiling frameworks say is shown when all others have ended.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
COMPILING: Final = ("tests/frameworks", "tests/pytorch", "tests/testing", "tests/tf", "tests/xla")
PYTEST: Final = (sys.executable, "-m", "pytest", "-m", "not containers")


def main(arguments: list[str]) -> int:
    """Exit status of pytest; of two processes, that of one that failed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if arguments:
        return subprocess.run([*PYTEST, *arguments], cwd=ROOT, env=environment, check=False).returncode
    others = [f"--ignore={folder}" for folder in COMPILING]
    with tempfile.TemporaryFile("w+") as said:
        command = [*PYTEST, "-p", "no:cacheprovider", *COMPILING]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT) as beside:
            first = subprocess.run([*PYTEST, *others], cwd=ROOT, env=environment, check=False).returncode
            print("\nbeside it ran", " ".join(COMPILING), flush=True)
            second = beside.wait()
        said.seek(0)
        print(said.read(), flush=True)
    return first or second


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
