"""A server under load in a browser: Locust users over REST and gRPC, each a training job with a client of its own.

Without `--host` it starts a server of its own. Answers are checked; a wrong one is a failure.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc.experimental.gevent
import numpy as np
from locust import User, between, events, tag, task
from locust.env import Environment

from backsolve import Client
from backsolve.errors import BacksolveError
from loadtests.served.problems import Changing, grid, one_of_many, pulls, solves
from scripts.local_server import LocalServer

# Locust has patched the standard library on import; gRPC waits in compiled code and has to be told.
grpc.experimental.gevent.init_gevent()

T = TypeVar("T")

SIDE = 40
TIMEOUT_SECONDS = 30.0


class WrongAnswerError(Exception):
    """The server answered, but not with the solution."""


@events.init.add_listener
def start_server(environment: Environment, **_: Any) -> None:
    """A server of our own, unless one was named; workers of a distributed run are told the master's."""
    if environment.host or type(environment.runner).__name__ == "WorkerRunner":
        return
    server = LocalServer({"BACKSOLVE_LOG_LEVEL": "error"})
    server.start()
    environment.host = server.http
    environment.events.quitting.add_listener(lambda **_: server.stop())


class Job(User):
    """A training job; the classes below say how it calls.

    Attributes:
        transport: as the statistics name it.
    """

    abstract = True
    transport = ""
    wait_time = between(0.01, 0.1)

    def on_start(self) -> None:
        """A client, and systems of its own."""
        self.rng = np.random.default_rng()
        self.client = Client(self.address(), timeout=TIMEOUT_SECONDS)
        self.shared = grid(SIDE)
        self.systems = Changing(SIDE, (int(self.rng.integers(1 << 30)),))
        self.count = 0

    def on_stop(self) -> None:
        """Free the connections."""
        self.client.close()

    def address(self) -> str:
        """Where this class of users calls."""
        return str(self.environment.host)

    @tag("shared")
    @task(10)
    def solve_shared(self) -> None:
        """A matrix that everybody uses, and that the server holds."""
        b = self.rng.standard_normal(SIDE * SIDE)
        self.timed(
            "solve, shared matrix", lambda: self.client.solve(self.shared, b).x, lambda x: solves(self.shared, x, b)
        )

    @tag("steps")
    @task(5)
    def train(self) -> None:
        """New values on a pattern that the server knows: forward, then backward."""
        self.count += 1
        A = self.systems.at(self.count)
        b, g = self.rng.standard_normal((2, SIDE * SIDE))
        x = self.timed("solve, new values", lambda: self.client.solve(A, b).x, lambda x: solves(A, x, b))
        if x is not None:
            self.timed("vjp", lambda: self.client.vjp(A, x, g), lambda pulled: pulls(A, x, g, pulled))

    @tag("new")
    @task(1)
    def solve_new(self) -> None:
        """A matrix that nobody has sent before."""
        A = one_of_many(SIDE, int(self.rng.integers(1 << 30)))
        b = self.rng.standard_normal(SIDE * SIDE)
        self.timed("solve, new pattern", lambda: self.client.solve(A, b).x, lambda x: solves(A, x, b))

    def timed(self, name: str, call: Callable[[], T], right: Callable[[T], bool]) -> T | None:
        """Make a call and tell Locust of it; None if it failed. The check is not part of the time."""
        wire: Any = self.client.transport
        before, began = wire.received, time.perf_counter()
        answer: T | None = None
        failure: Exception | None = None
        try:
            answer = call()
        except BacksolveError as err:
            failure = err
        seconds = time.perf_counter() - began
        if answer is not None and not right(answer):
            answer, failure = None, WrongAnswerError("the answer does not solve the system")
        self.environment.events.request.fire(
            request_type=self.transport,
            name=name,
            response_time=1e3 * seconds,
            response_length=wire.received - before,
            exception=failure,
            context={},
        )
        return answer


class RestJob(Job):
    """Over REST."""

    transport = "REST"


class GrpcJob(Job):
    """Over gRPC, at the port that the server names."""

    transport = "gRPC"

    def address(self) -> str:
        """The same host, another port."""
        host = str(self.environment.host)
        with Client(host, timeout=TIMEOUT_SECONDS) as client:
            port = client.info().grpc_port
        return f"grpc://{urlsplit(host).hostname}:{port}"
