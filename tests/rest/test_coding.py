"""Bodies and replies in zstd: what they hold, what they may not hold, and what is said where they are not read."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from scipy.sparse import diags_array

from backsolve._rest.body import MEDIA_TYPE, aligned, decode
from backsolve._rest.messages import put_body, read_solve_reply, solve_body
from backsolve._transports.base import PutCall, SolveCall
from backsolve.canonical import canonicalise
from backsolve.errors import BacksolveError, MalformedError, PayloadTooLargeError
from backsolve.types import Options
from backsolve_service.dataplane.plane import DataPlane
from backsolve_service.rest import coding
from backsolve_service.rest.exchange import Reply as Answer
from support.rest import Reply, ToldPlane, ask, ask_json, dense_matrix, echo, serving

from .conftest import LIMIT

SMALL = {"matrix": {"values": [[2.0]]}, "b": [4.0]}


def joined(body: object) -> bytes:
    return b"".join(body.parts)  # type: ignore[attr-defined]


def pack(data: bytes, *, told: bool = True, window_log: int | None = None, checked: bool = False) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    parameters = {} if window_log is None else {"window_log": window_log}
    made = zstandard.ZstdCompressionParameters.from_level(
        3, write_content_size=told, write_checksum=checked, **parameters
    )
    return bytes(zstandard.ZstdCompressor(compression_params=made).compress(data))


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def refused(port: int, body: bytes, path: str = "/v1/solve") -> Reply:
    return ask(port, "POST", path, body, MEDIA_TYPE, content_encoding="zstd")


@pytest.mark.parametrize("coded", ["gzip", "br", "gzip, zstd", "x"])
def test_codings_that_are_not_read_are_refused_with_the_list(port: int, coded: str) -> None:
    for method, path in (
        ("POST", "/v1/solve"),
        ("POST", "/v1/matrices"),
        ("PUT", f"/v1/matrices/{'ab' * 32}-{'cd' * 32}"),
    ):
        reply = ask(port, method, path, b"{}", MEDIA_TYPE, content_encoding=coded)
        assert (reply.status, reply.json()["reason"]) == (415, "UNSUPPORTED_MEDIA")
        assert reply.json()["details"]["supported"] == ", ".join(coding.codings())


def test_identity_is_no_coding(port: int) -> None:
    assert ask_json(port, "/v1/solve", SMALL, content_encoding="Identity").status == 200


def test_without_the_package_zstd_is_refused() -> None:
    """In a process that cannot find it: the extra is not installed there."""
    code = (
        "import importlib.util as util; found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'zstandard' else found(name, *rest)\n"
        "from support.rest import *\n"
        "with serving(ToldPlane(echo)) as server:\n"
        "    reply = ask(server.port, 'POST', '/v1/solve', b'{}', 'application/json', content_encoding='zstd')\n"
        "    print(reply.status, reply.json()['details']['supported'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="tests", check=True
    )
    assert done.stdout.split() == ["415", "identity"]


@pytest.mark.parametrize("told", [True, False])
def test_a_matrix_and_a_solve_go_up_in_zstd(port: int, told: bool) -> None:
    matrix = dense_matrix(40, 558_210_394 + told)
    body = pack(joined(put_body(PutCall(matrix.ref, matrix))), told=told)
    reply = ask(port, "PUT", f"/v1/matrices/{matrix.ref.key}", body, MEDIA_TYPE, content_encoding="ZSTD")
    assert (reply.status, reply.json()["ref"]) == (201, matrix.ref.key)
    rhs = np.random.default_rng(140_667_981).standard_normal(40)
    body = pack(joined(solve_body(SolveCall(matrix.ref, Options(), rhs))), told=told)
    answer = read_solve_reply(decode(array(refused(port, body).body).copy()))
    np.testing.assert_allclose(matrix.values @ answer.x, rhs, atol=1e-10)


def test_a_large_pattern_shrinks_and_is_stored(port: int) -> None:
    matrix = canonicalise(diags_array([-1.0, 4.0, -1.0], offsets=[-1, 0, 1], shape=(200_000, 200_000))).matrix
    plain = joined(put_body(PutCall(matrix.ref, matrix)))
    body = pack(plain)
    assert len(body) < len(plain) / 4
    reply = ask(port, "PUT", f"/v1/matrices/{matrix.ref.key}", body, MEDIA_TYPE, content_encoding="zstd")
    assert (reply.status, reply.json()["nnz"]) == (201, matrix.pattern.nnz)


@pytest.mark.parametrize("told", [True, False])
def test_a_bomb_is_refused_before_anything_is_allocated(told: bool) -> None:
    body = array(pack(bytes(200 << 20), told=told))
    assert body.size < 64 << 10
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLargeError, match="larger than 8388608 bytes"):
            coding.decoded_size(body, 8 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("told", [True, False])
def test_a_bomb_is_answered_with_413_and_the_limit(port: int, plane: DataPlane, told: bool) -> None:
    for path in ("/v1/solve", "/v1/matrices"):
        reply = refused(port, pack(bytes(LIMIT + 1), told=told), path)
        assert (reply.status, reply.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")
        assert reply.json()["details"]["limit"] == str(LIMIT)


def test_decoded_bodies_count_as_memory() -> None:
    """Four times the limit in all: a fifth body of that size finds no room."""
    with serving(ToldPlane(echo, limit=1 << 20)) as server:
        server._handlers._places.nbytes = 3 << 20
        reply = refused(server.port, pack(bytes(1 << 20)))
        assert (reply.status, reply.json()["reason"]) == (503, "QUEUE_FULL")


def test_a_frame_that_lies_about_its_length_is_malformed() -> None:
    frame = bytearray(pack(bytes(5000)))
    header = 5  # magic and descriptor; then two bytes of content size, less 256
    assert int.from_bytes(frame[header : header + 2], "little") + 256 == 5000
    for said in (4000, 6000):
        frame[header : header + 2] = (said - 256).to_bytes(2, "little")
        size = coding.decoded_size(array(bytes(frame)), 1 << 20)
        assert size == said
        with pytest.raises(MalformedError):
            coding.decode(array(bytes(frame)), size, aligned)


def test_a_frame_that_does_not_say_its_length_is_not_decoded_beyond_the_limit() -> None:
    packed = bytearray(pack(np.arange(4 << 20).tobytes(), told=False, checked=True))
    packed[-1] ^= 1  # a checksum that only who reads to the end can find wrong
    with pytest.raises(PayloadTooLargeError):
        coding.decoded_size(array(bytes(packed)), 1 << 20)
    with pytest.raises(MalformedError):
        coding.decoded_size(array(bytes(packed)), 1 << 30)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("checked", [True, False])
def test_a_frame_must_be_whole(told: bool, checked: bool) -> None:
    data = np.arange(1 << 17).tobytes()
    good = pack(data, told=told, checked=checked)
    decoded = coding.decode(array(good), coding.decoded_size(array(good), 8 << 20), aligned)
    assert decoded.tobytes() == data
    rng = np.random.default_rng(330_517_482)
    for length in (*rng.integers(0, len(good), 40), len(good) - 4, len(good) - 1):
        with pytest.raises(MalformedError):
            coding.decoded_size(array(good[:length]), 8 << 20)
    if checked and told:
        bad = array(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(MalformedError):
            coding.decode(bad, coding.decoded_size(bad, 8 << 20), aligned)


def test_a_frame_of_empty_blocks_is_refused() -> None:
    head = pack(b"", told=False)[:-3]
    with pytest.raises(MalformedError, match="too small"):
        coding.decoded_size(array(head + bytes(3 * coding._MOST_BLOCKS) + b"\x01\0\0"), 8 << 20)


def test_what_is_no_frame_or_follows_one_is_malformed(port: int) -> None:
    good = pack(json.dumps(SMALL).encode())
    for body in (b"", b"{}", good[:-3], good[:7], good + good, good + b"x"):
        reply = refused(port, body)
        assert (reply.status, reply.json()["reason"]) == (400, "MALFORMED")
    wide = pack(bytes(64 << 20), window_log=25)
    assert "8 MiB" in refused(port, wide).json()["detail"]


def test_mutated_frames_are_errors_of_ours() -> None:
    good = array(pack(np.random.default_rng(72_406_915).standard_normal(800).tobytes()))
    rng = np.random.default_rng(613_094_827)
    seen = set()
    for _ in range(300):
        body = good.copy()
        for position in rng.integers(0, min(body.size, 40), 2):
            body[position] = rng.integers(0, 256)
        try:
            coding.decode(body, coding.decoded_size(body, 1 << 20), aligned)
            seen.add("read")
        except BacksolveError as error:
            seen.add(type(error).__name__)
    assert "MalformedError" in seen


@pytest.mark.parametrize(
    ("accepted", "coded"),
    [("zstd", True), ("gzip, zstd;q=0.5", True), ("zstd;q=0", False), ("gzip, *", False), ("", False)],
)
def test_replies_are_in_zstd_only_if_that_is_asked_for(accepted: str, coded: bool) -> None:
    zstandard = pytest.importorskip("zstandard")
    document = {"matrix": {"ref": f"{'ab' * 32}-{'cd' * 32}"}, "b": [1.5] * 2000}
    with serving(ToldPlane(echo)) as server:
        reply = ask_json(server.port, "/v1/solve", document, accept_encoding=accepted)
        short = ask_json(server.port, "/v1/solve", {**document, "b": [1.5]}, accept_encoding=accepted)
    assert (reply.headers.get("content-encoding") == "zstd") == coded
    assert ("vary" in reply.headers) == coded
    assert "content-encoding" not in short.headers
    text = zstandard.ZstdDecompressor().decompress(reply.body) if coded else reply.body
    assert json.loads(text)["x"] == [1.5] * 2000


def test_a_reply_that_does_not_shrink_stays_as_it_is() -> None:
    pytest.importorskip("zstandard")
    noise = np.random.default_rng(205_839_447).bytes(50_000)
    assert coding.encode(Answer(200, MEDIA_TYPE, (noise[:20_000], noise[20_000:]))).pieces == (
        noise[:20_000],
        noise[20_000:],
    )
