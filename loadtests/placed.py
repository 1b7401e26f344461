"""Which core the server has and which its callers, where what is asked is what the server alone can do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def cores() -> tuple[int, int]:
    """A core for the server, and another one for what calls it; the same one where there is no other."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def started_on(core: int | None) -> Iterator[None]:
    """What is started in this block may use that core alone, or any: it takes over where its starter may run."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
