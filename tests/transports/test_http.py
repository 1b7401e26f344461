"""HttpTransport over real sockets: every call, and everything that servers, proxies and networks do wrong."""

import contextlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backsolve._rest import messages
from backsolve._rest.body import MEDIA_TYPE
from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, VjpCall
from backsolve._transports.http import ASK_FIRST_BYTES, BRING_UNASKED_BYTES, HttpTransport
from backsolve.errors import (
    BY_CODE,
    BacksolveError,
    CancelledError,
    DeadlineError,
    DrainingError,
    InternalError,
    InvalidDtypeError,
    InvalidOptionError,
    MalformedError,
    NeedMatrixError,
    NeedValuesError,
    NotFoundError,
    NotSupportedError,
    PayloadTooLargeError,
    RateLimitedError,
    UnauthenticatedError,
    UnreachableError,
    from_wire,
)
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import ErrorCode, Holding, MatrixRef, Options
from backsolve_service.context import CallContext
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from support.awaiting import AwaitedHttp
from support.rest import CERTIFICATE, ToldPlane, canned, dense_matrix, echo, serving
from support.servers import free_port

TIMEOUT = 60.0
REF = MatrixRef(b"\x12" * 32, b"\x34" * 32)
CALL = SolveCall(REF, Options(), np.ones(3))


@pytest.fixture(scope="module", params=["blocking", "awaited"], autouse=True)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test twice: everything that is said here holds for the sockets of an event loop as well."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "awaited":
            patch.setitem(globals(), "HttpTransport", AwaitedHttp)
        yield request.param


@pytest.fixture(scope="module")
def plane(kind: str) -> Iterator[DataPlane]:
    plane = DataPlane(PlaneConfig(workers=1))
    yield plane
    plane.close()


@pytest.fixture(scope="module")
def port(plane: DataPlane) -> Iterator[int]:
    with serving(plane) as server:
        yield server.port


@pytest.fixture
def transport(port: int) -> Iterator[HttpTransport]:
    opened = HttpTransport(f"http://127.0.0.1:{port}")
    yield opened
    opened.close()


def put(transport: HttpTransport, matrix: Matrix) -> None:
    assert transport.put(PutCall(matrix.ref, matrix), TIMEOUT) == matrix.ref


# -- calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_solve_vjp_and_jvp(transport: HttpTransport, dtype: str) -> None:
    matrix = dense_matrix(7, 430_912_688, dtype)
    a, tolerance = matrix.values, 1e-4 if dtype in ("float32", "complex64") else 1e-12
    put(transport, matrix)
    rng = np.random.default_rng(829_174_506)
    b, g = rng.standard_normal((2, 7, 2)).astype(dtype)
    solved = transport.solve(SolveCall(matrix.ref, Options(), b), TIMEOUT)
    assert (solved.x.dtype, solved.x.shape, solved.x.flags.writeable) == (dtype, b.shape, True)
    np.testing.assert_allclose(a @ solved.x, b, atol=tolerance)
    pulled = transport.vjp(VjpCall(matrix.ref, Options(), g, ("b", "values"), solved.x), TIMEOUT)
    np.testing.assert_allclose(a.conj().T @ pulled.b, g, atol=tolerance)
    np.testing.assert_allclose(pulled.values, -pulled.b @ solved.x.conj().T, atol=tolerance)
    assert pulled.certificate.factor_hit
    pushed = transport.jvp(JvpCall(matrix.ref, Options(), None, g, None), TIMEOUT)
    np.testing.assert_allclose(a @ pushed.x, g, atol=tolerance)


def test_sparse_matrices_values_only_and_release(transport: HttpTransport) -> None:
    pattern = Pattern([0, 1, 3, 4], [0, 1, 2, 2], (3, 3))
    first = Matrix(pattern, np.array([2.0, 4.0, 1.0, 8.0]))
    second = Matrix(pattern, 2 * first.values)
    assert transport.find([first.ref, second.ref], TIMEOUT) == [Holding.ABSENT, Holding.ABSENT]
    with pytest.raises(NeedMatrixError):
        transport.solve(SolveCall(second.ref, Options(), np.ones(3)), TIMEOUT)
    put(transport, first)
    with pytest.raises(NeedValuesError):
        transport.solve(SolveCall(second.ref, Options(), np.ones(3)), TIMEOUT)
    assert transport.put(PutCall(second.ref, second, values_only=True), TIMEOUT) == second.ref
    assert transport.find([first.ref, second.ref], TIMEOUT) == [Holding.VALUES, Holding.VALUES]
    x = transport.solve(SolveCall(second.ref, Options(), np.ones(3)), TIMEOUT).x
    np.testing.assert_allclose(x, [0.25, 0.125 * (1 - 2 / 16), 1 / 16], rtol=1e-14)
    transport.release(second.ref, TIMEOUT)


def test_info_and_stats(transport: HttpTransport, plane: DataPlane) -> None:
    assert transport.info(TIMEOUT) == plane.info()
    assert transport.stats(TIMEOUT) == {**plane.stats(), "body_bytes": 0.0}


def test_forty_megabytes_each_way_in_one_buffer() -> None:
    b = np.random.default_rng(263_518_074).standard_normal(5_000_000)
    with serving(ToldPlane(echo)) as server:
        transport = HttpTransport(f"http://127.0.0.1:{server.port}")
        reply = transport.solve(SolveCall(REF, Options(), b), TIMEOUT)
        transport.close()
    np.testing.assert_array_equal(reply.x, b)
    assert reply.x.ctypes.data % 64 == 0
    assert b.nbytes < transport.sent < b.nbytes + 4096
    assert b.nbytes < transport.received < b.nbytes + 4096
    assert transport.received_arrays == b.nbytes


def test_bulk_of_an_unknown_matrix_is_not_sent(transport: HttpTransport) -> None:
    b = np.ones(ASK_FIRST_BYTES // 8)
    for _ in range(2):
        with pytest.raises(NeedMatrixError):
            transport.solve(SolveCall(REF, Options(), b), TIMEOUT)
    assert transport.sent == 0
    n = 1200
    matrix = dense_matrix(n, 517_706_321)
    put(transport, matrix)
    uploaded = transport.sent
    wide = np.ones((n, 120))
    transport.solve(SolveCall(matrix.ref, Options(), wide), TIMEOUT)
    assert wide.nbytes < transport.sent - uploaded < wide.nbytes + 4096
    unknown_values = MatrixRef(matrix.ref.pattern, REF.values)
    with pytest.raises(NeedValuesError):
        transport.solve(SolveCall(unknown_values, Options(), wide), TIMEOUT)
    assert transport.sent - uploaded < wide.nbytes + 4096


@pytest.mark.parametrize("nbytes", [2 * ASK_FIRST_BYTES, BRING_UNASKED_BYTES])
def test_values_that_come_along_are_asked_about_only_if_there_are_many(nbytes: int) -> None:
    """The answer is that of the call itself, or of a HEAD before it; beside the values there are 24 bytes of b."""
    held = b"HTTP/1.1 404 Not Found\r\nbacksolve-holding: pattern\r\ncontent-length: 0\r\n\r\n"
    many = nbytes == BRING_UNASKED_BYTES
    port, served, thread = canned([held, good_reply()] if many else [good_reply()])
    transport = HttpTransport(f"http://127.0.0.1:{port}")
    reply = transport.solve(SolveCall(REF, Options(), np.ones(3), values=np.ones(nbytes // 8)), TIMEOUT)
    transport.close()
    thread.join(TIMEOUT)
    np.testing.assert_array_equal(reply.x, np.ones(3))
    assert served == [2 if many else 1]
    assert transport.sent > nbytes


def test_threads_share_the_transport(transport: HttpTransport) -> None:
    matrix = dense_matrix(20, 690_148_235)
    put(transport, matrix)
    failures: list[object] = []

    def work(seed: int) -> None:
        b = np.random.default_rng(seed).standard_normal(20)
        for _ in range(20):
            x = transport.solve(SolveCall(matrix.ref, Options(), b), TIMEOUT).x
            if not np.allclose(matrix.values @ x, b):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(811_203, 811_209)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert failures == []


# -- connections ------------------------------------------------------------------------------


def good_reply() -> bytes:
    body = b"".join(messages.solve_reply_body(SolveReply(np.ones(3), CERTIFICATE)).parts)
    return f"HTTP/1.1 200 OK\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def chunked_reply() -> bytes:
    head, _, body = good_reply().partition(b"\r\n\r\n")
    head = head.replace(f"content-length: {len(body)}".encode(), b"transfer-encoding: chunked")
    halves = (body[:100], body[100:])
    return head + b"\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in halves) + b"0\r\n\r\n"


def plain(status: str, *headers: str, body: bytes = b"<html>oops</html>") -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: text/html", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def exchange(*answers: bytes | None, calls: int = 1) -> tuple[list[SolveReply], list[int]]:
    """Solve against a server of canned answers; returns the replies and the requests on each connection."""
    port, served, thread = canned(list(answers))
    transport = HttpTransport(f"http://127.0.0.1:{port}")
    try:
        return [transport.solve(CALL, TIMEOUT) for _ in range(calls)], served
    finally:
        transport.close()
        thread.join(TIMEOUT)


def test_connections_are_kept() -> None:
    _, served = exchange(good_reply(), good_reply(), good_reply(), calls=3)
    assert served == [3]


def test_a_connection_closed_by_the_server_is_replaced() -> None:
    closing = good_reply().replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
    replies, served = exchange(closing, good_reply(), good_reply(), calls=3)
    assert served == [1, 2]
    np.testing.assert_array_equal(replies[2].x, np.ones(3))


def test_a_kept_connection_that_dies_is_retried_once() -> None:
    replies, served = exchange(good_reply(), None, good_reply(), calls=2)
    assert served == [1 + 1, 1]
    assert len(replies) == 2


def test_a_fresh_connection_that_dies_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match="without an answer"):
        exchange(None)


def test_a_restarted_server_is_found_again(plane: DataPlane) -> None:
    port = free_port()
    transport = HttpTransport(f"http://127.0.0.1:{port}")
    for _ in range(2):
        with serving(plane, port=port):
            assert transport.info(TIMEOUT) == plane.info()
    with pytest.raises(UnreachableError, match=r"no server at 127\.0\.0\.1"):
        transport.info(TIMEOUT)
    transport.close()


def test_chunked_replies_are_read() -> None:
    replies, served = exchange(chunked_reply(), good_reply(), calls=2)
    np.testing.assert_array_equal(replies[0].x, np.ones(3))
    assert served == [2]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (good_reply()[:-5].replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1), UnreachableError, "middle"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9", UnreachableError, "middle|without"),
        (b"220 smtp ready\r\nconnection: close\r\n", UnreachableError, "does not speak HTTP"),
        (plain("200 OK"), MalformedError, "backsolve server"),
        (good_reply().replace(b"F64", b"F99"), InvalidDtypeError, "F64"),
        (plain("301 Moved Permanently", "location: https://example.org"), NotSupportedError, "redirect"),
        (plain("400 Bad Request"), MalformedError, "400"),
        (plain("401 Unauthorized"), UnauthenticatedError, "token="),
        (plain("404 Not Found"), NotFoundError, "URL"),
        (plain("413 Content Too Large"), PayloadTooLargeError, "proxy"),
        (plain("429 Too Many Requests", "retry-after: 7"), RateLimitedError, "429"),
        (plain("500 Internal Server Error"), InternalError, "500"),
        (plain("502 Bad Gateway"), UnreachableError, "proxy"),
        (plain("503 Service Unavailable", "retry-after: 7"), UnreachableError, "503"),
        (plain("504 Gateway Timeout"), DeadlineError, "proxy"),
        (plain("500 x", body=b"{").replace(b"text/html", b"application/problem+json"), InternalError, "500"),
        (
            plain("500 x", body=b'{"reason": "NEW", "detail": "?"}').replace(b"text/html", b"application/problem+json"),
            InternalError,
            "500",
        ),
    ],
)
def test_what_is_not_our_reply_has_a_fitting_error(answer: bytes, error: type[BacksolveError], words: str) -> None:
    if b"connection: close" not in answer:
        answer = answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
    with pytest.raises(error, match=words) as caught:
        exchange(answer)
    assert caught.value.retry_after == (7.0 if b"retry-after" in answer else None)


def test_a_server_that_says_nothing_costs_no_more_than_the_deadline() -> None:
    release = threading.Event()

    def waits(call: SolveCall, context: CallContext) -> SolveReply:
        assert release.wait(TIMEOUT)
        return SolveReply(call.rhs, CERTIFICATE)

    with serving(ToldPlane(waits)) as server:
        transport = HttpTransport(f"http://127.0.0.1:{server.port}")
        with pytest.raises(DeadlineError, match="timeout="):
            transport.solve(CALL, 0.2)
        release.set()
        assert transport.solve(CALL, TIMEOUT).x.tolist() == [1.0, 1.0, 1.0]
        transport.close()


def test_the_servers_deadline_is_the_callers() -> None:
    seen: list[float | None] = []

    def notes(call: SolveCall, context: CallContext) -> SolveReply:
        seen.append(context.remaining())
        return SolveReply(call.rhs, CERTIFICATE)

    with serving(ToldPlane(notes)) as server:
        transport = HttpTransport(f"http://127.0.0.1:{server.port}")
        transport.solve(CALL, 50.0)
        transport.solve(CALL, None)
        transport.close()
    assert seen[0] is not None
    assert 0 < seen[0] <= 50.0
    assert seen[1] is None


def test_a_closed_transport_refuses(port: int) -> None:
    transport = HttpTransport(f"http://127.0.0.1:{port}")
    transport.info(TIMEOUT)
    transport.close()
    with pytest.raises(CancelledError, match="closed"):
        transport.info(TIMEOUT)


def socket_name(transport: HttpTransport) -> object:
    idle = transport._pool._idle[0]
    return (idle.socket if hasattr(idle, "socket") else idle.sock).getsockname()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_uses_connections_of_its_own(transport: HttpTransport) -> None:
    before = transport.info(TIMEOUT)
    address = socket_name(transport)
    child = os.fork()
    if child == 0:
        same = transport.info(TIMEOUT) == before
        os._exit(0 if same and socket_name(transport) != address else 1)
    for _ in range(20):
        assert transport.info(TIMEOUT) == before
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_reason_arrives_as_its_class_with_details(code: ErrorCode) -> None:
    raised = from_wire(code, "what happened, and what to try", {"limit": "7", "column": "3"})

    def fails(call: SolveCall, context: CallContext) -> SolveReply:
        raise raised

    with serving(ToldPlane(fails)) as server:
        transport = HttpTransport(f"http://127.0.0.1:{server.port}")
        with pytest.raises(BacksolveError) as caught:
            transport.solve(CALL, TIMEOUT)
        transport.close()
    assert type(caught.value) is BY_CODE[code]
    assert (str(caught.value), caught.value.details) == (str(raised), raised.details)


def test_a_refused_head_keeps_its_reason() -> None:
    def fails(*_: object) -> list[Holding]:
        raise DrainingError("not now", retry_after=2)

    told = ToldPlane(echo)
    told.find = fails
    with serving(told) as server:
        transport = HttpTransport(f"http://127.0.0.1:{server.port}")
        with pytest.raises(DrainingError) as caught:
            transport.find([REF], TIMEOUT)
        transport.close()
    assert caught.value.retry_after == 2.0


# -- credentials ------------------------------------------------------------------------------


def test_tokens(plane: DataPlane) -> None:
    with serving(plane, token="word-8811") as server:
        url = f"http://127.0.0.1:{server.port}"
        allowed, refused, without = (
            HttpTransport(url, token="word-8811"),
            HttpTransport(url, token="x"),
            HttpTransport(url),
        )
        assert allowed.info(TIMEOUT) == plane.info()
        for transport in (refused, without):
            with pytest.raises(UnauthenticatedError):
                transport.info(TIMEOUT)
            with pytest.raises(UnauthenticatedError):
                transport.find([REF], TIMEOUT)
        for transport in (allowed, refused, without):
            transport.close()


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "naïve"])
def test_tokens_that_would_break_the_header_are_refused(token: str) -> None:
    with pytest.raises(InvalidOptionError, match="ASCII"):
        HttpTransport("http://127.0.0.1:1", token=token)


@pytest.mark.parametrize("url", ["grpc://h:1", "embedded", "http://h:1/path", "ftp://h"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidOptionError):
        HttpTransport(url)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that no system trusts, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=backsolve test", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", *kind, *names, *files], check=True, capture_output=True)
    return cert, key


def test_tls(plane: DataPlane, certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    with serving(plane, tls_cert=cert, tls_key=key) as server:
        url = f"https://127.0.0.1:{server.port}"
        transport = HttpTransport(url, ca_file=cert)
        matrix = dense_matrix(400, 281_904_776)
        put(transport, matrix)
        b = np.ones((400, 500))
        np.testing.assert_allclose(matrix.values @ transport.solve(SolveCall(matrix.ref, Options(), b), TIMEOUT).x, b)
        stranger = HttpTransport(url)
        with pytest.raises(UnreachableError, match=r"self-signed|certificate"):
            stranger.info(TIMEOUT)
        plain_http = HttpTransport(f"http://127.0.0.1:{server.port}")
        with pytest.raises(UnreachableError):
            plain_http.info(TIMEOUT)
        for opened in (transport, stranger, plain_http):
            opened.close()


@pytest.mark.parametrize("farewell", [True, False])
def test_over_tls_the_end_of_the_connection_may_end_a_reply(certificate: tuple[Path, Path], farewell: bool) -> None:
    """With TLS's own farewell or without: the second request meets an end of either kind as well, and is repeated."""
    cert, key = map(str, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    length = next(line for line in good_reply().split(b"\r\n") if line.startswith(b"content-length"))
    listener = socket.create_server(("127.0.0.1", 0))
    served: list[int] = []

    def run() -> None:
        for answers in ((good_reply(), b""), (good_reply().replace(length + b"\r\n", b""),)):
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                for answer in answers:
                    while not connection.recv(65536).endswith(b"\0\xf0?"):  # the last bytes of b
                        pass
                    connection.sendall(answer)
                served.append(len(answers))
                if farewell:
                    with contextlib.suppress(OSError):
                        connection.unwrap()

    thread = threading.Thread(target=run)
    thread.start()
    transport = HttpTransport(f"https://127.0.0.1:{listener.getsockname()[1]}", ca_file=cert)
    for _ in range(2):
        np.testing.assert_array_equal(transport.solve(CALL, TIMEOUT).x, np.ones(3))
    transport.close()
    thread.join(TIMEOUT)
    listener.close()
    assert served == [2, 1]


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text("not a certificate")
    for path in (wrong, tmp_path / "absent.pem"):
        with pytest.raises(InvalidOptionError, match="PEM"):
            HttpTransport("https://127.0.0.1:1", ca_file=str(path))
    assert isinstance(ssl.create_default_context(), ssl.SSLContext)
