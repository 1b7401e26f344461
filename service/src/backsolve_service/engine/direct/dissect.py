"""METIS in a process of its own; run as a script by `graph.nested_dissection`.

METIS traps SIGTERM and SIGABRT while it works and jumps out of whatever thread they reach, and it
leaves SIGTERM with other flags than Python's: a service would no longer drain, and the program of an
embedded engine could not be stopped. It holds the interpreter's lock as well. This file is therefore
never imported, and imports nothing of this package.

Reads from stdin: n and the number of neighbours as int64, offsets `[n + 1]` and neighbours as int32.
Writes the order, `[n]` int32, to stdout.
"""

import sys

import numpy as np


def main() -> None:
    """Order one graph."""
    import pymetis  # noqa: PLC0415  (mypy and the list of imports see this file too)

    given = sys.stdin.buffer.read()
    n = int(np.frombuffer(given, dtype=np.int64, count=1)[0])
    offsets = np.frombuffer(given, dtype=np.int32, offset=16, count=n + 1)
    neighbours = np.frombuffer(given, dtype=np.int32, offset=16 + offsets.nbytes)
    order, _ = pymetis.nested_dissection(pymetis.CSRAdjacency(offsets, neighbours))
    sys.stdout.buffer.write(np.asarray(order, dtype=np.int32).tobytes())


if __name__ == "__main__":
    main()
