"""Arrays in memory that is shared with the server: what is copied, how long they last, and what fails how."""

import gc
import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backsolve import Client
from backsolve._rest.body import Body
from backsolve._rest.messages import solve_body
from backsolve._transports import discover
from backsolve._transports.base import PutCall, SolveCall, SolveReply
from backsolve._transports.discover import DiscoveringTransport
from backsolve._transports.http import HttpTransport
from backsolve._transports.region import Region
from backsolve._transports.shared import LEAST_BYTES, SharedMemory
from backsolve.errors import CancelledError, DeadlineError, InvalidDtypeError, InvalidShapeError, UnreachableError
from backsolve.matrix import Matrix
from backsolve.types import Array, MatrixRef, Options
from backsolve_service.context import CallContext
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from support.rest import CERTIFICATE, ToldPlane, dense_matrix, echo
from support.servers import ServerProcess, free_port
from support.sharing import MIB, SharingServer, sharing

REF = MatrixRef(b"\x12" * 32, b"\x34" * 32)
TIMEOUT = 60.0


@pytest.fixture(scope="module")
def server_here() -> Iterator[SharingServer]:
    with sharing(ToldPlane(echo)) as made:
        yield made


@pytest.fixture
def memory(server_here: SharingServer) -> Iterator[SharedMemory]:
    made = server_here.memory()
    yield made
    made.close()


@pytest.fixture
def transport(server_here: SharingServer, memory: SharedMemory) -> Iterator[HttpTransport]:
    made = server_here.transport(memory)
    yield made
    made.close()


def call(transport: HttpTransport, rhs: Array, timeout: float = TIMEOUT) -> Array:
    return transport.solve(SolveCall(REF, Options(), rhs), timeout).x


def lies_in(memory: SharedMemory, array: Array) -> bool:
    address = array.__array_interface__["data"][0]
    return any(region.holds(address, array.nbytes) for region in memory._regions)


def empty(memory: SharedMemory, n: int) -> Array:
    array = memory.empty((n,), np.dtype(np.float64))
    assert array is not None
    assert lies_in(memory, array)
    return array


# -- what is copied ----------------------------------------------------------------------------


def test_an_array_that_lies_there_is_named_where_it_is_and_so_is_its_answer(
    transport: HttpTransport, memory: SharedMemory
) -> None:
    b = empty(memory, 5000)
    b[:] = np.random.default_rng(250_913_008).standard_normal(5000)
    lease = memory.lease(encoded(b), 0)
    assert lease is not None
    assert lease._slots == []  # nothing was copied
    with lease:
        lease.answered(None)
    x = call(transport, b)
    assert lies_in(memory, x)
    np.testing.assert_array_equal(x, b)
    part = call(transport, b[8:4000])
    assert lies_in(memory, part)
    np.testing.assert_array_equal(part, b[8:4000])


def test_other_arrays_are_copied_in_and_answers_out(transport: HttpTransport, memory: SharedMemory) -> None:
    b = np.random.default_rng(735_120_664).standard_normal(5000)
    for given in (b, empty(memory, 5000)[1:], empty(memory, 5000)[::2]):
        given[:] = b[: given.size]
        x = call(transport, np.ascontiguousarray(given))
        assert not lies_in(memory, x)
        assert x.flags.writeable
        np.testing.assert_array_equal(x, given)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(300,), (30, 4), (3, 20, 2), (0,), (5, 0), ()])
def test_every_type_and_shape(transport: HttpTransport, dtype: str, shape: tuple[int, ...]) -> None:
    with Client(transport=transport) as client:
        array = client.empty(shape, dtype)
        assert (array.shape, array.dtype.name) == (shape, dtype)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        array[...] = 2.5
        if shape:
            np.testing.assert_array_equal(call(client.transport, array), array)


def test_what_cannot_be_allocated_is_refused_as_elsewhere(transport: HttpTransport) -> None:
    for client in (Client("embedded"), Client(transport=transport)):
        with client:
            assert client.empty(3).shape == (3,)
            with pytest.raises(InvalidShapeError):
                client.empty((2, -1))
            with pytest.raises(InvalidDtypeError):
                client.empty(3, "float16")


def test_small_messages_go_in_the_body(server_here: SharingServer) -> None:
    memory = server_here.memory(least_bytes=LEAST_BYTES)
    try:
        assert memory.lease(encoded(np.zeros(LEAST_BYTES // 8 - 1)), LEAST_BYTES - 1) is None
        lease = memory.lease(encoded(np.zeros(LEAST_BYTES // 8)), 0)
        assert lease is not None
        with lease:
            lease.answered(None)
    finally:
        memory.close()


def encoded(rhs: Array) -> Body:
    return solve_body(SolveCall(REF, Options(), rhs))


def test_an_uploaded_matrix_is_the_same_as_over_http() -> None:
    a = dense_matrix(60, 771_305_942)
    b = np.random.default_rng(501_228_763).standard_normal(60)
    plane = DataPlane(PlaneConfig(workers=1))
    try:
        with sharing(plane) as server:
            own = server.memory()
            transport = server.transport(own)
            values = own.empty(a.values.shape, a.values.dtype)
            assert values is not None
            np.copyto(values, a.values)
            assert transport.put(PutCall(a.ref, Matrix(a.pattern, values)), TIMEOUT) == a.ref
            values[:] = np.nan  # the server has a copy of its own
            x = transport.solve(SolveCall(a.ref, Options(), b), TIMEOUT).x
            np.testing.assert_allclose(a.values @ x, b, atol=1e-12)
            transport.close()
    finally:
        plane.close()


# -- how long it lasts -------------------------------------------------------------------------


def test_a_view_keeps_its_part_of_the_memory(transport: HttpTransport, memory: SharedMemory) -> None:
    b = empty(memory, 4000)
    b[:] = 7.0
    answers = [call(transport, b)[3000:] for _ in range(5)]
    views = [b[100:200], *answers]
    del b, answers
    gc.collect()
    for number in range(20):
        call(transport, np.full(4000, float(number)))
        empty(memory, 4000)[:] = float(number)
    assert all((view == 7.0).all() for view in views)


def test_what_nobody_holds_is_used_again(transport: HttpTransport, memory: SharedMemory) -> None:
    for _ in range(100):
        b = empty(memory, MIB // 8)
        b[:] = 1.0
        assert lies_in(memory, call(transport, b))
        assert not lies_in(memory, call(transport, np.ones(MIB // 8)))
    assert sum(region.size for region in memory._regions) <= 32 * MIB


def test_arrays_outlive_the_client(transport: HttpTransport, memory: SharedMemory) -> None:
    b = empty(memory, 3000)
    b[:] = 3.0
    x = call(transport, b)
    transport.close()
    assert (x == 3.0).all()
    b[:] = 4.0
    with pytest.raises(CancelledError, match="closed"):
        memory.empty((3,), np.dtype(np.float64))
    with pytest.raises(CancelledError, match="closed"):
        call(transport, b)


def test_a_region_that_is_too_small_makes_room_for_a_larger_one() -> None:
    with sharing(ToldPlane(echo), caller_bytes=32 * MIB) as server:
        memory = server.memory()
        transport = server.transport(memory)
        small = empty(memory, 1000)
        call(transport, small)
        assert memory.empty((20 * MIB,), np.dtype(np.uint8)) is None
        del small
        large = memory.empty((20 * MIB,), np.dtype(np.uint8))
        assert large is not None
        assert server.registry.regions == 0  # the small one was released, the large one is not known yet
        transport.close()


def test_holes_are_joined_and_reused() -> None:
    region = Region(16 * 4096)
    slots = [region.take(4096) for _ in range(16)]
    assert region.take(1) is None
    for index in (3, 5, 4, 9):
        slots[index] = None
    assert region.take(3 * 4096 + 1) is None
    wide = region.take(3 * 4096)
    assert wide is not None
    assert wide.offset == 3 * 4096
    assert region.take(4096) is not None
    assert not region.idle
    del slots, wide
    assert region.idle
    region.forget()


def test_threads_get_their_own_answers(transport: HttpTransport, memory: SharedMemory) -> None:

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        b = rng.standard_normal(int(rng.integers(1, 40_000)))
        if seed % 2:
            shared = memory.empty(b.shape, b.dtype)
            assert shared is not None
            np.copyto(shared, b)
            return all(np.array_equal(call(transport, shared), b) for _ in range(10))
        return all(np.array_equal(call(transport, b), b) for _ in range(10))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40_011, 40_051)))


def test_a_late_answer_is_written_nowhere() -> None:
    """The caller has given up; its memory is another's when the server comes to answer."""
    go_on = threading.Event()

    def answer(solve: SolveCall, _: CallContext) -> SolveReply:
        if solve.rhs[0] == 1.0:
            assert go_on.wait(60)
        return SolveReply(solve.rhs, CERTIFICATE)

    with sharing(ToldPlane(answer), max_threads=1) as server:
        memory = server.memory()
        transport = server.transport(memory)
        call(transport, np.zeros(3000))
        with pytest.raises(DeadlineError):
            call(transport, np.ones(3000), timeout=0.2)
        everything = [empty(memory, 3000) for _ in range(600)]
        for array in everything:
            array[:] = 5.0
        go_on.set()
        assert (call(transport, np.zeros(3000)) == 0.0).all()  # on the only thread, after the late one
        assert all((array == 5.0).all() for array in everything)
        transport.close()


def test_memory_that_cannot_be_taken_back_is_never_used_again() -> None:
    """The control socket fails while a call is under way that is then given up."""
    go_on = threading.Event()

    def answer(solve: SolveCall, _: CallContext) -> SolveReply:
        if solve.rhs[0] == 1.0:
            assert memory._socket is not None
            memory._socket.shutdown(socket.SHUT_RDWR)
            assert go_on.wait(60)
        return SolveReply(solve.rhs, CERTIFICATE)

    with sharing(ToldPlane(answer), max_threads=1) as server:
        memory = server.memory()
        transport = server.transport(memory)
        kept = empty(memory, 3000)
        kept[:] = 3.0
        with pytest.raises(DeadlineError):
            call(transport, np.ones(3000), timeout=0.2)
        (region,) = memory._regions
        go_on.set()
        fresh = [empty(memory, 3000) for _ in range(600)]
        assert not any(region.holds(array.__array_interface__["data"][0], 1) for array in fresh)
        assert (call(transport, kept) == 3.0).all()
        transport.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_keeps_what_it_has_seen(transport: HttpTransport, memory: SharedMemory) -> None:
    """The parent lets go of an array and goes on: what the child still holds must not be written over."""
    b = empty(memory, 3000)
    b[:] = 9.0
    x = call(transport, b)
    to_child, from_child = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.read(to_child[0], 1)
            mine = call(transport, np.full(3000, 2.0))  # over a connection and in memory of its own
            code = 0 if (x == 9.0).all() and (b == 9.0).all() and (mine == 2.0).all() else 2
            os.write(from_child[1], b"x")
        finally:
            os._exit(code)
    del x, b
    for _ in range(10):
        fresh = empty(memory, 3000)
        fresh[:] = 4.0
        assert (call(transport, fresh) == 4.0).all()
        assert (call(transport, np.full(3000, 6.0)) == 6.0).all()
    os.write(to_child[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (call(transport, np.full(3000, 8.0)) == 8.0).all()
    for end in (*to_child, *from_child):
        os.close(end)


# -- when it fails -----------------------------------------------------------------------------


def test_without_a_server_that_shares_it_goes_over_http_and_is_said_once(
    server_here: SharingServer, caplog: pytest.LogCaptureFixture, tmp_path: object
) -> None:
    memory = SharedMemory(f"{tmp_path}/none", least_bytes=1)
    transport = server_here.transport(memory)
    with caplog.at_level(logging.WARNING, "backsolve"):
        for _ in range(3):
            assert (call(transport, np.ones(3000)) == 1.0).all()
            assert transport.empty((5,), np.dtype(np.float64)).shape == (5,)
            memory._retry_at = 0.0
    assert [record.getMessage() for record in caplog.records if "not shared" in record.getMessage()] == [
        "memory is not shared with the server, calls go over HTTP alone: [Errno 2] No such file or directory"
    ]
    transport.close()


def test_another_server_at_the_socket_is_not_used(server_here: SharingServer) -> None:
    memory = server_here.memory(instance="another-one")
    assert not memory.connect()
    memory.close()
    memory = server_here.memory(instance="this-one")
    assert memory.connect()
    memory.close()


def test_what_exceeds_the_quota_goes_over_http() -> None:
    with sharing(ToldPlane(echo), caller_bytes=16 * MIB) as server:
        memory = server.memory()
        transport = server.transport(memory)
        big = np.random.default_rng(817_340_225).standard_normal(3 * MIB)
        np.testing.assert_array_equal(call(transport, big), big)
        np.testing.assert_array_equal(transport.empty((3 * MIB,), big.dtype).shape, big.shape)
        kept = [empty(memory, MIB // 4) for _ in range(8)]
        over = transport.empty((MIB // 4,), big.dtype)
        assert not lies_in(memory, over)
        over[:] = 2.0
        np.testing.assert_array_equal(call(transport, over), over)
        del kept
        assert lies_in(memory, empty(memory, MIB // 4))
        assert server.registry.nbytes <= 16 * MIB
        transport.close()


def test_a_wrong_handle_is_registered_anew(transport: HttpTransport, memory: SharedMemory) -> None:
    b = empty(memory, 3000)
    b[:] = 1.0
    call(transport, b)
    memory._regions[0].handle = "0" * 32
    for _ in range(2):
        assert (call(transport, b) == 1.0).all()
    assert memory._regions[0].handle != "0" * 32
    assert lies_in(memory, call(transport, b))


def test_a_restarted_server_is_given_the_memory_again() -> None:
    with ServerProcess() as server, Client(f"backsolve+unix:{server.folder}/http") as client:
        a, rng = np.diag(np.arange(1.0, 301.0)), np.random.default_rng(664_090_158)
        b = client.empty((300, 200))
        b[:] = rng.standard_normal((300, 200))
        expected = b / np.arange(1.0, 301.0)[:, None]
        before = client.solve(a, b).x
        server.kill()
        server.start()
        after = client.solve(a, b).x
        for x in (before, after):
            np.testing.assert_allclose(x, expected, rtol=1e-13)
        transport = client.transport
        assert isinstance(transport, DiscoveringTransport)
        shared = transport.chosen(TIMEOUT)._shared
        assert lies_in(shared, before)
        client.solve(a, b)
        assert lies_in(shared, client.solve(a, b).x)


# -- who chooses it ----------------------------------------------------------------------------


def chosen(url: str) -> HttpTransport:
    with Client(url, timeout=30.0) as client:
        client.info()
        transport = client.transport
        return transport.chosen(30.0) if isinstance(transport, DiscoveringTransport) else transport


def test_a_host_is_asked_and_the_nearest_way_is_taken(server: ServerProcess) -> None:
    for url in (
        f"backsolve://127.0.0.1:{server.http_port}",
        f"backsolve://localhost:{server.http_port}",
        f"backsolve+unix:{server.folder}/http",
    ):
        found = chosen(url)
        assert found._shared is not None
        assert found._pool._endpoint.path == f"{server.folder}/http"
    for url in (server.http_url, server.url("unix")):
        forced = chosen(url)
        assert isinstance(forced, HttpTransport)
        assert forced._shared is None


def test_paths_are_followed_on_this_machine_only(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "_is_loopback", lambda host: False)
    found = chosen(f"backsolve://127.0.0.1:{server.http_port}")
    assert found._shared is None
    assert found._pool._endpoint.path == ""


def test_a_server_that_is_not_there_is_named(tmp_path: object) -> None:
    with (
        Client(f"backsolve+unix:{tmp_path}/none", timeout=60.0) as client,
        pytest.raises(UnreachableError, match="/none"),
    ):
        client.info()
    with Client(f"backsolve://127.0.0.1:{free_port()}", timeout=5.0) as client:
        assert client.empty(4).shape == (4,)


def test_a_client_in_the_container_of_another_goes_over_http(
    server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """The paths that the server names are not here."""
    hidden = server.folder.with_name("hidden")
    server.folder.rename(hidden)
    try:
        found = chosen(f"backsolve://127.0.0.1:{server.http_port}")
    finally:
        hidden.rename(server.folder)
    assert found._shared is None
    assert found._pool._endpoint.path == ""
    assert "not shared" in caplog.text
