"""Buffers of large bodies are used again, but never while anybody looks at them."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from backsolve_service.rest.buffers import KEPT_BYTES, LEAST_BYTES, Buffers


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_a_buffer_comes_back_when_nobody_holds_it() -> None:
    buffers = Buffers()
    first = buffers.take(2 * LEAST_BYTES)
    at = address(first)
    view = first[5:9].view(np.int32)
    view[:] = 77
    del first
    others = [buffers.take(2 * LEAST_BYTES) for _ in range(3)]
    for other in others:
        assert address(other) != at
        other[:] = 0
    assert (view == 77).all()
    del view
    gc.collect()
    assert address(buffers.take(2 * LEAST_BYTES - 100)) == at


def test_it_is_aligned_of_the_size_asked_for_and_not_much_larger_in_truth() -> None:
    buffers = Buffers()
    at = address(buffers.take(4 * LEAST_BYTES))
    for size in (4 * LEAST_BYTES + 1, 2 * LEAST_BYTES, 100, 0):
        other = buffers.take(size)
        assert other.size == size
        assert other.flags.writeable
        assert size == 0 or (address(other) % 64 == 0 and address(other) != at)


def test_only_so_much_is_kept() -> None:
    buffers = Buffers()
    held = [buffers.take(KEPT_BYTES // 4) for _ in range(9)]
    del held
    buffers.take(KEPT_BYTES + LEAST_BYTES)
    gc.collect()
    assert sum(block.size for block in buffers._kept) <= KEPT_BYTES


def test_threads_never_get_the_same_one() -> None:
    buffers = Buffers()

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            mine = buffers.take(LEAST_BYTES + int(rng.integers(1000)))
            mark = int(rng.integers(256))
            mine[:] = mark
            if not (mine[::4096] == mark).all():
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(730_220, 730_244)))
