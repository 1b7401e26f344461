"""Uploads that are hashed while they arrive: the digests are those of the whole, or are not used."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backsolve._rest.body import MEDIA_TYPE, aligned
from backsolve._rest.messages import put_body
from backsolve._transports.base import PutCall
from backsolve._transports.grpc import GrpcTransport
from backsolve.errors import DigestMismatchError, NeedMatrixError
from backsolve.fingerprint import RunningDigest, Taken, pattern_digest, values_digest
from backsolve.matrix import Matrix
from backsolve.pattern import AnyPattern, DensePattern, Pattern
from backsolve.types import MatrixRef
from backsolve_service.arriving import LEAST_BYTES
from backsolve_service.context import CallContext
from backsolve_service.dataplane.plane import DataPlane
from backsolve_service.grpc.server import GrpcConfig, GrpcServer
from backsolve_service.rest.hashing import BodyDigests
from support.rest import ask

ROWS = 70_000
NNZ = 5 * ROWS


def pattern() -> Pattern:
    columns = np.minimum(np.arange(ROWS)[:, None], ROWS - 5) + np.arange(5)
    return Pattern(np.arange(0, NNZ + 1, 5), columns.reshape(-1), (ROWS, ROWS))


def values(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((2, *shape))
    return (made[0] + 1j * made[1]).astype(dtype) if np.dtype(dtype).kind == "c" else made[0].astype(dtype)


CASES = {
    "csr": (pattern(), values("float64", (NNZ,), 318_706_225)),
    "csr complex": (pattern(), values("complex128", (NNZ,), 755_019_482)),
    "csr single batch": (pattern(), values("float32", (4, NNZ), 190_437_728)),
    "dense": (DensePattern((900, 900)), values("float64", (900, 900), 664_182_095)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
Case = tuple[AnyPattern, np.ndarray]


def body_of(matrix: Matrix, *, values_only: bool = False) -> np.ndarray:
    joined = b"".join(put_body(PutCall(matrix.ref, matrix, values_only)).parts)
    body = aligned(len(joined))
    body[:] = np.frombuffer(joined, np.uint8)
    return body


def taken_of(body: np.ndarray, layout: str = "csr", seed: int = 0) -> Taken:
    """As the event loop does it: pieces of any size."""

    def held() -> str:
        if not layout:
            raise NeedMatrixError("it is not held")
        return layout

    async def arrive() -> Taken:
        digests, rng, position = BodyDigests(pool, held), np.random.default_rng(seed), 0
        while position < body.size:
            position = min(position + int(rng.integers(1, 3 << 20)), body.size)
            digests.came(body, position)
            await asyncio.sleep(0)
        return await digests.taken()

    with ThreadPoolExecutor(2) as pool:
        return asyncio.run(arrive())


@each_case
@pytest.mark.parametrize("seed", [502_917_336, 87_240_991])
def test_digests_of_what_arrives_are_those_of_the_whole(case: Case, seed: int) -> None:
    matrix = Matrix(*case)
    body = body_of(matrix)
    assert body.size > LEAST_BYTES / 2
    taken = taken_of(body, seed=seed)
    assert taken.values is not None
    assert taken.values.digest() == matrix.ref.values
    assert taken.values.nbytes == matrix.values.nbytes
    if isinstance(matrix.pattern, Pattern):
        assert taken.pattern is not None
        assert taken.pattern.digest() == matrix.ref.pattern


@each_case
def test_values_alone_are_hashed_for_the_pattern_that_is_held(case: Case) -> None:
    matrix = Matrix(*case)
    body = body_of(matrix, values_only=True)
    taken = taken_of(body, matrix.pattern.layout)
    assert taken.values is not None
    assert taken.values.digest() == matrix.ref.values
    assert taken_of(body, "") == Taken()


def test_a_body_that_is_no_upload_has_no_digests() -> None:
    rng = np.random.default_rng(449_018_273)
    assert taken_of(rng.integers(0, 256, 5 << 20).astype(np.uint8)) == Taken()
    head = json.dumps({"values": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}}).encode()
    body = np.frombuffer(len(head).to_bytes(8, "little") + head + bytes(5 << 20), np.uint8)
    assert taken_of(body) == Taken()


@each_case
def test_large_uploads_over_rest(case: Case, port: int) -> None:
    pattern, numbers = case
    for factor in (3, 5):  # the second time only the values are sent
        matrix = Matrix(pattern, numbers * factor)
        body = body_of(matrix, values_only=factor == 5)
        path = f"/v1/matrices/{matrix.ref.key}"
        reply = ask(port, "PUT", path, body.tobytes(), MEDIA_TYPE)
        assert (reply.status, reply.json()["ref"]) == (201, matrix.ref.key)
    body[-9] ^= 1
    other = MatrixRef(matrix.ref.pattern, bytes(32))
    reply = ask(port, "PUT", f"/v1/matrices/{matrix.ref.key}", body.tobytes(), MEDIA_TYPE)
    assert (reply.status, reply.json()["reason"]) == (422, "DIGEST_MISMATCH")
    reply = ask(port, "PUT", f"/v1/matrices/{other.key}", body.tobytes(), MEDIA_TYPE)
    assert (reply.status, reply.json()["reason"]) == (422, "DIGEST_MISMATCH")


def test_tensors_in_another_order_are_an_upload_as_well(port: int) -> None:
    matrix = Matrix(*CASES["csr"])
    assert isinstance(matrix.pattern, Pattern)
    tensors = {"indices": matrix.pattern.indices, "indptr": matrix.pattern.indptr, "values": matrix.values}
    header, offset, names = {}, 0, {"int32": "I32", "float64": "F64"}
    for name, array in tensors.items():
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": span}
        offset = span[1]
    header["__metadata__"] = {"backsolve": json.dumps({"layout": "csr", "shape": [ROWS, ROWS]})}
    head = json.dumps(header).encode()
    body = len(head).to_bytes(8, "little") + head + b"".join(array.tobytes() for array in tensors.values())
    taken = taken_of(np.frombuffer(body, np.uint8))
    assert taken.pattern is None
    reply = ask(port, "PUT", f"/v1/matrices/{matrix.ref.key}", body, MEDIA_TYPE)
    assert (reply.status, reply.json()["ref"]) in ((201, matrix.ref.key), (200, matrix.ref.key))


@each_case
def test_large_uploads_over_grpc(case: Case, plane: DataPlane) -> None:
    pattern, numbers = case
    server = GrpcServer(plane, GrpcConfig())
    server.start()
    transport = GrpcTransport(f"127.0.0.1:{server.port}")
    try:
        for factor in (7, 11):
            matrix = Matrix(pattern, numbers * factor)
            assert transport.put(PutCall(matrix.ref, matrix, factor == 11), 60) == matrix.ref
        wrong = MatrixRef(matrix.ref.pattern, matrix.ref.pattern)
        with pytest.raises(DigestMismatchError):
            transport.put(PutCall(wrong, matrix, values_only=True), 60)
    finally:
        transport.close()
        server.stop()


def test_the_data_plane_takes_the_transports_digest_of_just_these_bytes_and_no_other(plane: DataPlane) -> None:
    made = DensePattern((9, 9))
    numbers = values("float64", (9, 9), 871_240_663)
    matrix, context = Matrix(made, numbers), CallContext.within(60, "rest", "test")

    def running(dtype: str, shape: tuple[int, ...], data: np.ndarray) -> Taken:
        digest = RunningDigest.of_values("dense", np.dtype(dtype), shape)
        digest.add(data.view(np.uint8).reshape(-1))
        return Taken(None, digest)

    # Of other bytes: that the digests differ shows that these were not hashed again.
    with pytest.raises(DigestMismatchError):
        plane.put(PutCall(matrix.ref, matrix), context, running("float64", (9, 9), numbers + 1))
    # Of something else, or of a part: it does not count.
    for taken in (
        running("complex64", (9, 9), numbers),
        running("float64", (1, 9, 9), numbers),
        running("float64", (9, 9), numbers[:5]),
    ):
        assert plane.put(PutCall(matrix.ref, matrix), context, taken) == matrix.ref
    assert matrix.ref == MatrixRef(pattern_digest(made), values_digest(made, numbers))
