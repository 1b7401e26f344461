"""What a caller may do with memory that it shares: nothing that ends the server, misleads it, or touches another's."""

import fcntl
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backsolve._rest import messages
from backsolve._rest.body import MEDIA_TYPE
from backsolve._shared.spans import Span, read_spans
from backsolve._transports.base import PutCall, SolveCall, SolveReply
from backsolve.errors import MalformedError, NotFoundError
from backsolve.fingerprint import matrix_ref
from backsolve.matrix import Matrix
from backsolve.types import MatrixRef, Options
from backsolve_service.context import CallContext
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.sharing import control
from backsolve_service.sharing.region import Region
from support.rest import CERTIFICATE, Reply, ToldPlane, ask, dense_matrix, echo, serving
from support.servers import ServerProcess
from support.sharing import MIB, SEALS, Caller, SharingServer, sealed, sharing

REF = MatrixRef(b"\x12" * 32, b"\x34" * 32)
BODY = messages.solve_body(SolveCall(REF, Options(), np.arange(8.0)))
HEAD = bytes(BODY.parts[0])
PAGE = 4096


@pytest.fixture(scope="module")
def server() -> Iterator[SharingServer]:
    with sharing(ToldPlane(echo, limit=64 * MIB)) as made:
        yield made


@pytest.fixture
def caller(server: SharingServer) -> Iterator[Caller]:
    made = Caller(server.path)
    yield made
    made.close()


def solve(server: SharingServer, shared: str | None, answer: str | None = None, body: bytes = HEAD) -> Reply:
    headers = {"backsolve-shared": shared, "backsolve-answer": answer}
    given = {name: value for name, value in headers.items() if value is not None}
    return ask(server.rest.port, "POST", "/v1/solve", body, MEDIA_TYPE, **given)


def mapped(descriptor: int, nbytes: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(descriptor, nbytes), dtype=np.uint8)


# -- what is not mapped ------------------------------------------------------------------------


def descriptors(tmp_path: Path) -> dict[str, tuple[int, str]]:
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGE))
    memory = sealed(PAGE)
    read_only = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    os.close(memory)
    shrinkable = SEALS & ~fcntl.F_SEAL_SHRINK
    return {
        "not sealed": (sealed(PAGE, 0), "seal it"),
        "may shrink": (sealed(PAGE, shrinkable), "seal it"),
        "may grow": (sealed(PAGE, SEALS & ~fcntl.F_SEAL_GROW), "seal it"),
        "may be sealed further": (sealed(PAGE, SEALS & ~fcntl.F_SEAL_SEAL), "seal it"),
        "a file": (os.open(file, os.O_RDWR), "no anonymous memory"),
        "a device": (os.open("/dev/zero", os.O_RDWR), "no anonymous memory"),
        "empty": (sealed(0), "empty"),
        "for reading only": (read_only, "reading and writing"),
        "sealed against writing": (sealed(PAGE, SEALS | fcntl.F_SEAL_WRITE), "reading and writing"),
    }


def test_only_sealed_anonymous_memory_is_mapped(server: SharingServer, caller: Caller, tmp_path: Path) -> None:
    for what, (descriptor, text) in descriptors(tmp_path).items():
        answer = caller.register(descriptor)
        assert answer["reason"] == "MALFORMED", what
        assert text in answer["detail"], what
    assert server.registry.regions == 0
    assert "handle" in caller.register(sealed(PAGE))


def test_huge_pages_are_refused(caller: Caller) -> None:
    """One that the pool does not have is a SIGBUS when it is touched; the size of the file is all that is needed."""
    try:
        descriptor = sealed(2 * MIB, flags=os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no memory of huge pages here: {error}")
    assert "huge pages" in caller.register(descriptor)["detail"]


def test_quotas_are_told_with_their_limits() -> None:
    with sharing(
        ToldPlane(echo), total_regions=3, caller_regions=2, total_bytes=6 * MIB, caller_bytes=4 * MIB
    ) as server:
        first, second = Caller(server.path), Caller(server.path)
        assert first.greeting == {"instance": "this-one", "bytes": 4 * MIB, "regions": 2}

        def refusal(caller: Caller, nbytes: int) -> str:
            answer = caller.register(sealed(nbytes))
            assert answer["reason"] == "MEMORY_BUDGET"
            return str(answer["detail"])

        assert "at most 4194304 bytes" in refusal(first, 5 * MIB)
        handles = [first.register(sealed(2 * MIB))["handle"] for _ in range(2)]
        assert "at most 2 regions a caller" in refusal(first, PAGE)
        assert "BACKSOLVE_SHARED_CLIENT_REGIONS" in refusal(first, PAGE)
        assert "at most 6291456 bytes" in refusal(second, 3 * MIB)
        second.register(sealed(PAGE))
        assert "at most 3 regions in all" in refusal(second, PAGE)
        assert (server.registry.regions, server.registry.nbytes) == (3, 4 * MIB + PAGE)
        assert first.ask({"release": handles[0]}) == {"released": True}
        assert "handle" in second.register(sealed(2 * MIB))
        first.close()
        second.close()


def test_only_its_owner_releases_a_region(server: SharingServer, caller: Caller) -> None:
    handle = caller.register(sealed(PAGE))["handle"]
    other = Caller(server.path)
    for name in (handle, "0" * 32, handle.upper(), "x"):
        assert other.ask({"release": name})["reason"] == "NOT_FOUND"
    assert server.registry.regions == 1
    assert caller.ask({"release": handle}) == {"released": True}
    assert caller.ask({"release": handle})["reason"] == "NOT_FOUND"
    other.close()


# -- the control socket ------------------------------------------------------------------------


def test_packets_that_mean_nothing_are_answered_and_do_no_harm(server: SharingServer, caller: Caller) -> None:
    memory = sealed(PAGE)
    before = len(os.listdir("/proc/self/fd"))
    for packet in (b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"release": 7}', b'{"hello": 1' + b" " * 9000 + b"}"):
        assert caller.ask(packet)["reason"] in ("MALFORMED", "NOT_SUPPORTED")
        assert caller.ask(packet, memory)["reason"] == "MALFORMED"  # and the descriptor is closed
    assert caller.ask({"register": True})["reason"] == "MALFORMED"
    assert caller.ask({"register": True}, memory, memory)["reason"] == "MALFORMED"
    assert caller.ask({"hello": 2})["reason"] == "NOT_SUPPORTED"
    assert caller.ask(b"[" * 4000)["reason"] == "MALFORMED"
    assert server.registry.regions == 0
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(memory)


def test_a_token_is_asked_for_before_anything_is_mapped() -> None:
    with sharing(ToldPlane(echo), token="k7-Egret.03") as server:
        for hello in ({}, {"token": "k7-Egret.0"}, {"token": None}, {"token": 5}):
            stranger = Caller(server.path, hello)
            assert stranger.greeting["reason"] == "UNAUTHENTICATED"
            assert stranger.register(sealed(PAGE))["reason"] == "UNAUTHENTICATED"
            stranger.close()
        known = Caller(server.path, {"token": "k7-Egret.03"})
        assert "handle" in known.register(sealed(PAGE))
        known.close()


# -- spans -------------------------------------------------------------------------------------


def test_spans_are_checked_before_anything_is_read(server: SharingServer, caller: Caller) -> None:
    h, other = (caller.register(sealed(2 * PAGE))["handle"] for _ in range(2))
    end = 2 * PAGE
    cases = {
        f"{'0' * 32}:0:64": ("NOT_FOUND", "not registered"),
        f"{h}:{end}:64": ("MALFORMED", "beyond its region"),
        f"{h}:{end - 64}:65": ("MALFORMED", "beyond its region"),
        f"{h}:0:{end + 1}": ("MALFORMED", "beyond its region"),
        f"{h}:64:{10**17}": ("MALFORMED", "beyond its region"),
        f"{h}:8:64": ("MALFORMED", "multiples of 64"),
        f"{h}:64:64, {h}:0:128": ("MALFORMED", "overlap"),
        f"{h}:0:65, {h}:64:64": ("MALFORMED", "overlap"),
        f"{h}:-64:64": ("MALFORMED", "handle:offset:length"),
        f"{h}:0:0": ("MALFORMED", "handle:offset:length"),
        f"{h}:0:6e1": ("MALFORMED", "handle:offset:length"),
        f"{h}:0:64,": ("MALFORMED", "handle:offset:length"),
        f"{h}:0:{10**18}": ("MALFORMED", "handle:offset:length"),
        h: ("MALFORMED", "handle:offset:length"),
        "": ("MALFORMED", "handle:offset:length"),
        ", ".join(f"{h}:{64 * i}:64" for i in range(9)): ("MALFORMED", "more than 8"),
    }
    for text, (reason, words) in cases.items():
        for reply in (solve(server, text), solve(server, f"{other}:0:64", text)):
            problem = reply.json()
            assert problem["reason"] == reason, text
            assert words in problem["detail"], text
            assert h not in problem["detail"]
    assert "overlap" in solve(server, f"{h}:0:64", f"{h}:0:64").json()["detail"]
    assert "one span" in solve(server, f"{h}:0:64", f"{h}:64:64, {h}:128:64").json()["detail"]
    assert solve(server, f"{h}:0:64").status == 200


def test_shared_bytes_count_as_payload(server: SharingServer, caller: Caller) -> None:
    """The limit is on the message, wherever it lies."""
    h = caller.register(sealed(65 * MIB))["handle"]
    reply = solve(server, f"{h}:0:{64 * MIB}")
    assert (reply.status, reply.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")


def test_spans_that_do_not_make_the_message_are_malformed(server: SharingServer, caller: Caller) -> None:
    h = caller.register(sealed(PAGE))["handle"]
    for shared in (f"{h}:0:63", f"{h}:0:65", f"{h}:0:64, {h}:64:64"):
        assert solve(server, shared).json()["reason"] == "MALFORMED"
    assert solve(server, f"{h}:0:32, {h}:64:32").status == 200


def test_only_framed_bodies_have_tensors_elsewhere(server: SharingServer, caller: Caller) -> None:
    h = caller.register(sealed(PAGE))["handle"]
    for path, kind in (("/v1/solve", "application/json"), ("/v1/matrices", "text/plain")):
        reply = ask(server.rest.port, "POST", path, b"{}", kind, backsolve_shared=f"{h}:0:64")
        assert reply.json()["reason"] == "MALFORMED"
        assert MEDIA_TYPE in reply.json()["detail"]


def test_an_answer_that_does_not_fit_its_room_is_in_the_body(server: SharingServer, caller: Caller) -> None:
    memory = sealed(PAGE)
    bytes_ = mapped(memory, PAGE)
    h = caller.register(memory)["handle"]
    sent = np.arange(8.0) + 0.5
    bytes_[:64] = sent.view(np.uint8)
    bytes_[128:] = 0xEE
    small = solve(server, f"{h}:0:64", f"{h}:128:63")
    assert "backsolve-shared" not in small.headers
    assert small.body.endswith(sent.tobytes())
    assert (bytes_[128:] == 0xEE).all()
    exact = solve(server, f"{h}:0:64", f"{h}:128:64")
    assert exact.headers["backsolve-shared"] == f"{h}:128:64"
    np.testing.assert_array_equal(bytes_[128:192].view(np.float64), sent)
    assert (bytes_[192:] == 0xEE).all()


def test_a_server_that_shares_nothing_says_so() -> None:
    with serving(ToldPlane(echo)) as rest:
        reply = ask(rest.port, "POST", "/v1/solve", HEAD, MEDIA_TYPE, backsolve_shared=f"{'0' * 32}:0:64")
        assert (reply.status, reply.json()["reason"]) == (501, "NOT_SUPPORTED")
        assert "BACKSOLVE_UNIX_SHARED" in reply.json()["detail"]


@pytest.mark.parametrize("text", ["a:0:1", "0" * 32 + ":00:1", "0" * 31 + "g:0:1", "0" * 32 + ":0:01"])
def test_a_span_has_one_spelling(text: str) -> None:
    with pytest.raises(MalformedError):
        read_spans(text)
    assert read_spans("0" * 32 + ":64:1, " + "1" * 32 + ":0:2") == (Span("0" * 32, 64, 1), Span("1" * 32, 0, 2))


# -- memory that changes, and callers that go ----------------------------------------------------


def test_what_is_written_after_it_was_sent_changes_nothing() -> None:
    """The plane is in the midst of a call when the caller writes over everything."""
    arrived, go_on = threading.Event(), threading.Event()
    seen: list[np.ndarray] = []

    def answer(call: SolveCall, _: CallContext) -> SolveReply:
        arrived.set()
        assert go_on.wait(60)
        seen.append(call.rhs.copy())
        return SolveReply(call.rhs, CERTIFICATE)

    with sharing(ToldPlane(answer)) as server:
        caller = Caller(server.path)
        memory = sealed(PAGE)
        bytes_ = mapped(memory, PAGE)
        h = caller.register(memory)["handle"]
        sent = np.arange(8.0) + 1.25
        bytes_[:64] = sent.view(np.uint8)
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(solve(server, f"{h}:0:64")))
        asking.start()
        assert arrived.wait(60)
        bytes_[:] = 0xFF  # NaN, for whoever looks
        go_on.set()
        asking.join(60)
        np.testing.assert_array_equal(seen[0], sent)
        assert replies[0].body.endswith(sent.tobytes())
        caller.close()


def test_a_matrix_is_hashed_and_kept_as_one_and_the_same_copy() -> None:
    """However the caller scribbles: what is kept under a digest has that digest."""
    plane = DataPlane(PlaneConfig(workers=1))
    kept: list[Matrix] = []
    put = plane.put

    def watched(call: PutCall, context: CallContext, *taken: Any) -> MatrixRef:
        ref = put(call, context, *taken)
        kept.append(call.matrix)
        return ref

    plane.put = watched  # type: ignore[method-assign]
    a = dense_matrix(96, 620_118_457)
    values = np.ascontiguousarray(a.values)
    head = bytes(messages.put_body(PutCall(a.ref, a)).parts[0])
    memory = sealed(values.nbytes)
    bytes_ = mapped(memory, values.nbytes)
    stop = threading.Event()

    def scribble() -> None:
        words = bytes_.view(np.float64)
        rng = np.random.default_rng(118_204_661)
        while not stop.is_set():
            at = int(rng.integers(words.size))
            words[at] += 1.0
            words[at] -= 1.0

    try:
        with sharing(plane) as server:
            caller = Caller(server.path)
            h = caller.register(memory)["handle"]
            bytes_[:] = values.reshape(-1).view(np.uint8)
            scribbler = threading.Thread(target=scribble)
            scribbler.start()
            reasons = []
            for _ in range(60):
                reply = ask(
                    server.rest.port,
                    "PUT",
                    f"/v1/matrices/{a.ref.key}",
                    head,
                    MEDIA_TYPE,
                    backsolve_shared=f"{h}:0:{values.nbytes}",
                )
                reasons.append("OK" if reply.status < 300 else reply.json()["reason"])
            stop.set()
            scribbler.join(60)
            caller.close()
        assert set(reasons) <= {"OK", "DIGEST_MISMATCH"}
        for matrix in kept:
            assert matrix_ref(matrix.pattern, matrix.values) == a.ref
    finally:
        stop.set()
        plane.close()


def test_a_region_released_in_the_midst_of_a_call_is_answered_in_the_body() -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def answer(call: SolveCall, _: CallContext) -> SolveReply:
        arrived.set()
        assert go_on.wait(60)
        return SolveReply(call.rhs, CERTIFICATE)

    with sharing(ToldPlane(answer)) as server:
        caller = Caller(server.path)
        memory = sealed(PAGE)
        bytes_ = mapped(memory, PAGE)
        h = caller.register(memory)["handle"]
        bytes_[:64] = np.arange(8.0).view(np.uint8)
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(solve(server, f"{h}:0:64", f"{h}:64:64")))
        asking.start()
        assert arrived.wait(60)
        caller.close()
        while server.registry.regions:
            time.sleep(0.005)
        go_on.set()
        asking.join(60)
        assert "backsolve-shared" not in replies[0].headers
        assert replies[0].body.endswith(np.arange(8.0).tobytes())
        assert not bytes_[64:].any()


KILLED = """
import sys
import numpy as np
from backsolve import Client
from backsolve._transports.http import HttpTransport
from backsolve._transports.shared import SharedMemory

memory = SharedMemory(sys.argv[1] + "/shared", least_bytes=1)
client = Client(transport=HttpTransport("unix:" + sys.argv[1] + "/http", shared=memory))
rng = np.random.default_rng(403_991_286)
while True:
    a = rng.standard_normal((400, 400)) + 400 * np.eye(400)
    client.solve(a, rng.standard_normal((400, 50)))
    print("solved", flush=True)
"""


def shared_regions(server: ServerProcess) -> float:
    with urllib.request.urlopen(f"{server.http_url}/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    (line,) = (line for line in lines if line.startswith("backsolve_shared_regions "))
    return float(line.split()[1])


def test_nothing_is_left_of_killed_callers() -> None:
    with ServerProcess() as server:
        for _ in range(3):
            doomed = subprocess.Popen(
                [sys.executable, "-c", KILLED, str(server.folder)], stdout=subprocess.PIPE, text=True
            )
            assert doomed.stdout is not None
            for _ in range(3):
                assert doomed.stdout.readline() == "solved\n"
            assert shared_regions(server) == 1
            doomed.send_signal(signal.SIGKILL)
            doomed.wait()
            doomed.stdout.close()
            while shared_regions(server):  # the end of the connection is noticed in its turn
                assert server.ended is None
                time.sleep(0.01)
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        assert "memfd:backsolve" not in maps


def test_a_flood_of_connections_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MOST_CALLERS", 5)
    with sharing(ToldPlane(echo)) as server:
        flood = [Caller(server.path) for _ in range(5)]
        for _ in range(3):
            with pytest.raises((OSError, ValueError)):  # closed without a word
                Caller(server.path)
        assert "handle" in flood[2].register(sealed(PAGE))
        for one in flood:
            one.close()
        patience = time.monotonic() + 60
        while True:
            try:
                late = Caller(server.path)
            except (OSError, ValueError):
                assert time.monotonic() < patience
                time.sleep(0.01)
            else:
                break
        assert "handle" in late.register(sealed(PAGE))
        late.close()


class Held(list[memoryview]):
    """Pieces of which the second look takes until it is told to go on."""

    def __init__(self, *pieces: memoryview) -> None:
        super().__init__(pieces)
        self.looked, self.go_on = threading.Event(), threading.Event()
        self._looks = 0

    def __iter__(self) -> Iterator[memoryview]:
        self._looks += 1
        if self._looks == 2:
            self.looked.set()
            assert self.go_on.wait(60)
        return super().__iter__()


def test_a_region_stays_mapped_until_the_copies_under_way_have_ended() -> None:
    memory = sealed(PAGE)
    bytes_ = mapped(memory, PAGE)
    region = Region(memory, PAGE)
    os.close(memory)
    pieces = Held(memoryview(b"abc"))
    writing = threading.Thread(target=region.write, args=(64, pieces))
    closing = threading.Thread(target=region.close)
    writing.start()
    assert pieces.looked.wait(60)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    with pytest.raises(NotFoundError):
        region.read(0, np.empty(8, np.uint8))
    pieces.go_on.set()
    for thread in (writing, closing):
        thread.join(60)
        assert not thread.is_alive()
    assert bytes(bytes_[64:67]) == b"abc"
