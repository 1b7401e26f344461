"""How soon a server says that it lives while it works on solves of many seconds."""

import http.client
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, final
from urllib.parse import urlsplit

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array

from backsolve import Client
from backsolve.errors import DeadlineError
from loadtests.micro.ways import laplacian
from loadtests.target import Target
from scripts.local_server import LocalServer

from .part import Asked, Found, server_on
from .rate import NAMES

SOLVE_SECONDS = {False: 4.0, True: 10.0}
MOST_MS = 10.0
EVERY_SECONDS = 0.02
SIDE = 900
"""Of the grid of the iterative solve, whose tolerance it does not reach within its deadline."""

TRIALS, TRIAL_ROWS, MOST_ROWS = 2, 3000, 9000
SETTINGS = {"BACKSOLVE_WORKERS": "1"}
SEED = 871_402_635

PATIENCE_SECONDS, START_SECONDS = 10.0, 10.0

Probe = Callable[[], None]
Solve = Callable[[Client, float], Callable[[], float]]
"""Prepares a solve of so many seconds; what it returns makes it."""


@final
@dataclass
class Probed:
    """Health checks of one kind while something ran.

    Attributes:
        seconds: of each, counted from when it was due.
        failed: those that were not answered as they should be.
    """

    seconds: list[float] = field(default_factory=list)
    failed: int = 0

    def percentile(self, percent: float) -> float:
        """Milliseconds that so many of 100 took at most."""
        return 1e3 * float(np.percentile(self.seconds, percent))


def measure(asked: Asked) -> Found:
    """Health over both transports: with nothing to do, during a dense factorization, and during an iteration."""
    found = Found()
    seconds = asked.span(SOLVE_SECONDS[False], SOLVE_SECONDS[True])
    with server_on(None, SETTINGS) as server:
        probes = {way: PROBES[way](server) for way in asked.ways}
        _report(found, "nothing to do", *watch(lambda: time.sleep(seconds / 2), probes))
        for name, solve in SOLVES.items():
            with Caller(server.http, solve, seconds) as caller:
                seen = _report(found, name, *watch(caller.run, probes))
            for way in asked.ways:
                target = f"{NAMES[way]}: health p99 during {name}, ms"
                found.targets.append(Target(target, seen[way].percentile(99), MOST_MS, True))
    return found


@final
class Caller:
    """A process that prepares a solve, and makes it when it is told to: what it does must not delay the probes.

    Args:
        url: of the server.
        solve: makes what is to be run.
        seconds: that it is to take.
    """

    def __init__(self, url: str, solve: Solve, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_call, args=(theirs, url, solve, seconds), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Caller":
        self._hear(20 * START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(START_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def run(self) -> float:
        """Make the solve; returns the seconds that it took."""
        self._pipe.send(None)
        return float(self._hear(20 * START_SECONDS))

    def _hear(self, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            raise RuntimeError("the caller says nothing")
        said = self._pipe.recv()
        if isinstance(said, str):
            raise RuntimeError(f"the caller failed: {said}")
        return said


def _call(pipe: Connection, url: str, solve: Solve, seconds: float) -> None:
    try:
        with Client(url, timeout=60 * seconds) as client:
            work = solve(client, seconds)
            pipe.send(True)
            pipe.recv()
            pipe.send(work())
    except EOFError:
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def factorization(client: Client, seconds: float) -> Callable[[], float]:
    """A dense factorization of about so many seconds, of a matrix that the server has already."""
    rng, ones = np.random.default_rng(SEED), np.ones(TRIAL_ROWS)
    trials = [client.solve(_dense(rng, TRIAL_ROWS), ones, method="lu").stats.seconds.factor for _ in range(TRIALS)]
    n = min(int(TRIAL_ROWS * (seconds / min(trials)) ** (1 / 3)), MOST_ROWS)
    A, b = _dense(rng, n), np.ones(n)
    client.solve(A, b, method="gmres", maxiter=1, on_failure="nan")
    return lambda: client.solve(A, b, method="lu").stats.seconds.factor


def iteration(client: Client, seconds: float) -> Callable[[], float]:
    """An iteration that its deadline ends after so many seconds, unless it is over before."""
    A = laplacian(SIDE)
    A = csr_array(A - (1 - 1e-9) * eye_array(A.shape[0]))
    b = np.random.default_rng(SEED).standard_normal(A.shape[0])
    client.solve(A, b, method="cg", maxiter=1, on_failure="nan")

    def work() -> float:
        began = time.perf_counter()
        with suppress(DeadlineError):
            client.solve(A, b, method="cg", rtol=1e-14, maxiter=10**6, on_failure="nan", timeout=seconds)
        return time.perf_counter() - began

    return work


SOLVES: Mapping[str, Solve] = {"a factorization": factorization, "an iteration": iteration}


def _dense(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    A = rng.standard_normal((n, n))
    A[np.diag_indices(n)] += n
    return A


def _report(found: Found, name: str, took: float, seen: dict[str, Probed]) -> dict[str, Probed]:
    found.data[name] = {"seconds": took}
    for way, probed in seen.items():
        if probed.failed or not probed.seconds:
            asked = probed.failed + len(probed.seconds)
            found.faults.append(f"{NAMES[way]}: {probed.failed} of {asked} health checks failed during {name}")
            continue
        p50, p99, worst = (probed.percentile(percent) for percent in (50, 99, 100))
        found.data[name][way] = {"probes": len(probed.seconds), "p50": p50, "p99": p99, "max": worst}
        found.notes.append(
            f"{NAMES[way]}, {name} ({took:.1f} s): p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {worst:.1f} ms "
            f"of {len(probed.seconds)} checks"
        )
    return seen


def _http(server: LocalServer) -> Probe:
    """GET /livez on a new connection each time, as orchestrators do."""
    address = urlsplit(server.http).netloc

    def probe() -> None:
        connection = http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", "/livez")
            reply = connection.getresponse()
            reply.read()
            if reply.status != http.HTTPStatus.OK:
                raise RuntimeError(f"/livez answered {reply.status}")
        finally:
            connection.close()

    return probe


def _grpc(server: LocalServer) -> Probe:
    """`grpc.health.v1.Health/Check` on one channel."""
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(urlsplit(server.grpc).netloc))

    def probe() -> None:
        reply = stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=PATIENCE_SECONDS)
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise RuntimeError("the service says that it does not serve")

    return probe


PROBES = {"http": _http, "grpc": _grpc}


def watch(work: Callable[[], float | None], probes: dict[str, Probe]) -> tuple[float, dict[str, Probed]]:
    """Probe at fixed times until the work, on a thread of its own, is over.

    Returns:
        The seconds that the work says it took, or else was given, and what each kind of probe saw.
    """
    said: list[float | None] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            said.append(work())
        except Exception as error:
            failures.append(error)

    seen = {name: Probed() for name in probes}
    over = threading.Event()
    # Each kind on a thread of its own, so that none waits for another.
    probers = [threading.Thread(target=_probe, args=(probe, seen[name], over)) for name, probe in probes.items()]
    thread = threading.Thread(target=run)
    began = time.perf_counter()
    for each in (thread, *probers):
        each.start()
    thread.join()
    over.set()
    for each in probers:
        each.join()
    if failures:
        raise failures[0]
    return said[0] or time.perf_counter() - began, seen


def _probe(probe: Probe, seen: Probed, over: threading.Event) -> None:
    """Ask at fixed times; a probe that comes late because the one before it hung counts from when it was due."""
    due = time.perf_counter()
    while not over.wait(max(due - time.perf_counter(), 0.0)):
        try:
            probe()
        except (OSError, http.client.HTTPException, grpc.RpcError, RuntimeError):
            seen.failed += 1
        else:
            seen.seconds.append(time.perf_counter() - due)
        due += EVERY_SECONDS
