"""Numbers that no server has met, and that are the same whenever the same test runs."""

import hashlib
import os
from collections import Counter

import numpy as np

_drawn: Counter[str] = Counter()


def new_rng() -> np.random.Generator:
    """Another generator for each call: its seed is made of the name of the running test, and of its calls so far.

    So matrices differ between tests that share a server, and yet a test that fails fails again, alone as well. A
    process that a test starts counts anew.
    """
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    _drawn[test] += 1
    seed = hashlib.blake2b(f"{test} {_drawn[test]}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(seed))


def new_seed() -> int:
    """The same for what takes a seed: PyTorch's generators, and processes that make their own numbers of it."""
    return int(new_rng().integers(1 << 40))
