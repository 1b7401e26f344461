"""Health, reflection, readiness, tokens, TLS, deadlines, cancellation and stalled uploads of the gRPC server."""

import queue
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from backsolve._rpc import calls, framing
from backsolve._transports.base import PutCall, SolveCall
from backsolve._transports.grpc import GrpcTransport
from backsolve.errors import (
    DeadlineError,
    DrainingError,
    InvalidOptionError,
    QueueFullError,
    UnauthenticatedError,
    UnreachableError,
)
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.types import Options
from backsolve.v1 import solver_pb2, types_pb2
from backsolve.v1.solver_pb2_grpc import SolverStub
from backsolve_service.context import CallContext
from backsolve_service.grpc import server
from backsolve_service.grpc.server import GrpcConfig, GrpcServer
from support.systems import random_like

from .conftest import run

TIMEOUT = 30
# Self-signed for 127.0.0.1 and localhost, of no use elsewhere; valid for a century.
CERT, KEY = (Path(__file__).parent / "tls" / name for name in ("cert.pem", "key.pem"))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT).status


def until(condition, what: str) -> None:
    """Wait for something that other threads bring about."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def put_on(running) -> Matrix:
    """A dense matrix of eight rows that the server holds."""
    matrix = Matrix(DensePattern((8, 8)), random_like((8, 8), "float64", seed=99_105) + 8 * np.eye(8))
    running.plane.put(PutCall(matrix.ref, matrix), CallContext.within(TIMEOUT, "grpc"))
    return matrix


class HalfSent:
    """A streaming solve whose client sends the header and then falls silent."""

    def __init__(self, channel: grpc.Channel, matrix: Matrix) -> None:
        self._frames: queue.Queue = queue.Queue()
        tensor = types_pb2.Tensor(dtype=types_pb2.DTYPE_FLOAT64, shape=[8], nbytes=64)
        header = solver_pb2.SolveRequest(matrix=calls.encode_ref(matrix.ref), rhs=tensor)
        self._frames.put(solver_pb2.Frame(solve=header))
        self.call = SolverStub(channel).SolveStream(iter(self._frames.get, None), timeout=TIMEOUT)

    def finish(self) -> list:
        self._frames.put(solver_pb2.Frame(chunk=solver_pb2.Chunk(tensor=3, offset=0, data=np.ones(8).tobytes())))
        self._frames.put(None)
        return list(self.call)

    def drop(self) -> None:
        self._frames.put(None)
        self.call.cancel()


def test_health_answers_while_every_handler_is_taken():
    with run(GrpcConfig(queue_depth=1)) as own:
        transport = GrpcTransport(own.target)
        rng = np.random.default_rng(836_720_159)
        matrix = Matrix(DensePattern((8, 8)), rng.standard_normal((8, 8)) + 8 * np.eye(8))
        transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
        with grpc.insecure_channel(own.target, framing.channel_options()) as channel:
            blocked = [HalfSent(channel, matrix) for _ in range(33)]
            assert all(next(half.call).WhichOneof("kind") == "ready" for half in blocked)
            with pytest.raises(DeadlineError):
                transport.solve(SolveCall(matrix.ref, Options(), np.ones(8)), 0.3)
            for service in ("", "backsolve.v1.Solver", "backsolve.v1.Matrices"):
                assert health(channel, service) == SERVING
            kinds = [[frame.WhichOneof("kind") for frame in half.finish()] for half in blocked]
        assert kinds == [["solved", "chunk"]] * 33
        assert transport.solve(SolveCall(matrix.ref, Options(), np.ones(8)), TIMEOUT).x.shape == (8,)
        transport.close()


def test_readiness_follows_start_and_drain():
    with run(GrpcConfig()) as own:
        transport = GrpcTransport(own.target)
        with grpc.insecure_channel(own.target) as channel:
            assert health(channel, "backsolve.v1.Solver") == SERVING
            own.plane.drain()
            own.server.drain()
            assert health(channel, "backsolve.v1.Solver") == NOT_SERVING
            assert health(channel, "") == SERVING  # alive, and to be left alone
            with pytest.raises(DrainingError) as caught:
                transport.solve(SolveCall(Matrix(DensePattern((1, 1)), np.ones((1, 1))).ref, Options(), np.ones(1)), 9)
            assert caught.value.retry_after > 0
        transport.close()


def test_reflection_lists_the_services(channel):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [reply] = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=TIMEOUT)
    names = {service.name for service in reply.list_services_response.service}
    assert {"backsolve.v1.Solver", "backsolve.v1.Matrices", "grpc.health.v1.Health"} <= names


def test_every_method_of_ours_asks_for_the_token():
    with run(GrpcConfig(token="k7-Ostrich.42")) as own:
        with grpc.insecure_channel(own.target) as channel:
            assert health(channel, "") == SERVING
            services = solver_pb2.DESCRIPTOR.services_by_name.values()
            methods = [(service.full_name, method) for service in services for method in service.methods]
            assert len(methods) == 11
            for service, method in methods:
                kinds = [("unary", "stream")[s] for s in (method.client_streaming, method.server_streaming)]
                call = getattr(channel, "_".join(kinds))(f"/{service}/{method.name}")
                for given in (None, "Bearer k7-Ostrich.43", "k7-Ostrich.42", "Bearer"):
                    metadata = [] if given is None else [("authorization", given)]
                    with pytest.raises(grpc.RpcError) as caught:
                        list(call(iter([b""]) if method.client_streaming else b"", metadata=metadata, timeout=TIMEOUT))
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method.name
        for token in (None, "k7-Ostrich.4"):
            stranger = GrpcTransport(own.target, token=token)
            with pytest.raises(UnauthenticatedError, match="token"):
                stranger.info(TIMEOUT)
            stranger.close()
        known = GrpcTransport(own.target, token="k7-Ostrich.42")
        assert known.info(TIMEOUT) == own.plane.info()
        known.close()


@pytest.mark.parametrize("token", ["two words", "línea", "tab\t", "line\n"])
def test_tokens_that_cannot_be_a_header_are_refused(token):
    with pytest.raises(InvalidOptionError, match="ASCII"):
        GrpcTransport("127.0.0.1:1", token=token)


def test_tls():
    with run(GrpcConfig(tls_cert=CERT, tls_key=KEY, token="t")) as own:
        trusting = GrpcTransport(own.target, secure=True, ca_file=str(CERT), token="t")
        assert trusting.info(TIMEOUT) == own.plane.info()
        b = random_like((8, 90_000), "float64", 462_917_805)
        matrix = Matrix(DensePattern((8, 8)), random_like((8, 8), "float64", 908_124_573) + 8 * np.eye(8))
        trusting.put(PutCall(matrix.ref, matrix), TIMEOUT)
        x = trusting.solve(SolveCall(matrix.ref, Options(), b), TIMEOUT).x
        np.testing.assert_allclose(matrix.values @ x, b, rtol=1e-9, atol=1e-11)
        for stranger in (GrpcTransport(own.target, secure=True), GrpcTransport(own.target)):
            with pytest.raises(UnreachableError):
                stranger.info(TIMEOUT)
            stranger.close()
        trusting.close()


def test_clients_show_a_certificate_where_that_is_asked():
    with run(GrpcConfig(tls_cert=CERT, tls_key=KEY, tls_client_ca=CERT)) as own:
        anonymous = GrpcTransport(own.target, secure=True, ca_file=str(CERT))
        with pytest.raises(UnreachableError):
            anonymous.info(TIMEOUT)
        anonymous.close()
        credentials = grpc.ssl_channel_credentials(CERT.read_bytes(), KEY.read_bytes(), CERT.read_bytes())
        with grpc.secure_channel(own.target, credentials) as channel:
            assert health(channel, "") == SERVING


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InvalidOptionError, match="cannot be read"):
        GrpcTransport("127.0.0.1:1", secure=True, ca_file=str(tmp_path / "none.pem"))
    (tmp_path / "no.pem").write_text("not a certificate")
    with pytest.raises(InvalidOptionError, match="PEM"):
        GrpcTransport("127.0.0.1:1", secure=True, ca_file=str(tmp_path / "no.pem"))


def test_a_taken_port_is_reported(running):
    second = GrpcServer(running.plane, GrpcConfig(port=running.server.port))
    with pytest.raises(OSError, match="is the port taken"):
        second.start()
    second.stop()


def slow_system() -> tuple[Matrix, np.ndarray]:
    """One that takes seconds to factor."""
    n = 2600
    rng = np.random.default_rng(704_318_265)
    return Matrix(DensePattern((n, n)), rng.standard_normal((n, n)) + n * np.eye(n)), rng.standard_normal(n)


def counted(own, code: str) -> float:
    """How many solves ended with this code, as the service's own metrics have it."""
    labels = {"op": "solve", "transport": "grpc", "code": code}
    return own.metrics.registry.get_sample_value("backsolve_requests_total", labels) or 0.0


@pytest.mark.parametrize("gone", ["deadline", "cancelled"])
def test_a_caller_that_is_gone_is_not_worked_for(gone):
    with run(GrpcConfig()) as own:
        transport = GrpcTransport(own.target)
        matrix, b = slow_system()
        transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
        call = SolveCall(matrix.ref, Options("lu"), b)
        if gone == "deadline":
            with pytest.raises(DeadlineError):
                transport.solve(call, 0.05)
        else:
            message, arrays = calls.encode_solve(call)
            framing.embed(message, arrays)
            with grpc.insecure_channel(own.target, framing.channel_options()) as channel:
                future = SolverStub(channel).Solve.future(message)
                until(lambda: own.plane.inflight == 1, "the call never began")
                future.cancel()
        # The factorization itself cannot be stopped, and is of use to the next caller.
        until(lambda: counted(own, "CANCELLED") + counted(own, "DEADLINE") == 1, "nobody noticed that the caller left")
        until(lambda: own.plane.inflight == 0, "the call never ended")
        assert transport.solve(call, TIMEOUT).certificate.status.name == "OK"
        transport.close()


def test_request_ids_come_back_and_only_harmless_ones(channel):
    stub = SolverStub(channel)
    for given, kept in (("job-17.step:3", True), ("x" * 129, False), ("a b", False), ('"}', False)):
        _, call = stub.GetStats.with_call(solver_pb2.GetStatsRequest(), metadata=[("x-request-id", given)])
        returned = dict(call.trailing_metadata())["x-request-id"]
        assert (returned == given) is kept
        assert returned


def test_an_upload_that_falls_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(server, "STALL_SECONDS", 0.2)
    with run(GrpcConfig()) as own, grpc.insecure_channel(own.target) as channel:
        silent = HalfSent(channel, put_on(own))
        assert next(silent.call).WhichOneof("kind") == "ready"
        with pytest.raises(grpc.RpcError) as caught:
            next(silent.call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        silent.drop()


def test_a_call_that_never_brings_its_message_is_given_up_and_takes_no_place(monkeypatch):
    monkeypatch.setattr(server, "STALL_SECONDS", 0.2)
    with run(GrpcConfig(queue_depth=1), queue_depth=1) as own, grpc.insecure_channel(own.target) as channel:
        matrix, nothing = put_on(own), queue.Queue()
        mute = channel.stream_unary("/backsolve.v1.Solver/Solve").future(iter(nothing.get, None), timeout=TIMEOUT)
        until(lambda: own.server._admission._under_way == 1, "it was let in")
        transport = GrpcTransport(own.target)
        with pytest.raises(QueueFullError):
            transport.solve(SolveCall(matrix.ref, Options(), np.ones(8)), TIMEOUT)
        assert mute.code() is grpc.StatusCode.CANCELLED
        until(lambda: own.server._admission._under_way == 0, "its place was given back")
        assert not own.server._stalls._open, "nobody looks after what has ended"
        transport.solve(SolveCall(matrix.ref, Options(), np.ones(8)), TIMEOUT)
        transport.close()
        nothing.put(None)


def test_calls_under_way_end_when_the_server_stops():
    with run(GrpcConfig()) as own:
        transport = GrpcTransport(own.target)
        matrix = Matrix(DensePattern((8, 8)), 9 * np.eye(8))
        transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
        with grpc.insecure_channel(own.target) as channel:
            half = HalfSent(channel, matrix)
            next(half.call)
            own.server.stop(0.1)
            with pytest.raises(grpc.RpcError) as caught:
                next(half.call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # so that callers go elsewhere
            half.drop()
        with pytest.raises(UnreachableError):
            transport.info(TIMEOUT)
        transport.close()
