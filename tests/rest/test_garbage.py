"""A request leaves nothing that only the garbage collector could free: its rounds cost every caller time."""

import gc
import socket
from collections import Counter

import pytest

from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from loadtests.limits.lean import Load, prepare
from loadtests.limits.rate import matrix
from support.rest import serving

REQUESTS = 20


def asked(load: Load, count: int) -> int:
    """Ask so often over one connection; the number of right answers."""
    line, right = load.line(), 0
    with socket.create_connection(load.address, timeout=60) as sock:
        for number in range(count):
            sock.sendall(line.ask(0, load.requests[number]))
            replies = line.came(sock.recv(1 << 18))
            while not replies:
                replies = line.came(sock.recv(1 << 18))
            right += load.right(number, replies[0][1])
    return right


@pytest.mark.parametrize("n", [40, 1300])  # answered on the event loop; on a thread
def test_a_request_leaves_no_garbage(n):
    plane = DataPlane(PlaneConfig(workers=1))
    try:
        with serving(plane) as server:
            load = prepare(f"http://127.0.0.1:{server.port}", matrix(n))
            asked(load, REQUESTS)
            gc.collect()
            gc.disable()
            try:
                assert asked(load, REQUESTS) == REQUESTS
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                left = Counter(type(each).__name__ for each in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
    finally:
        plane.close()
    # A connection may leave something at its end, a request nothing.
    assert [name for name, count in left.items() if count >= REQUESTS] == []
