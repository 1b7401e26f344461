"""Requests a second of a real cached solve at 32 callers, the server on one core and its callers on another."""

import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtests.placed import cores
from loadtests.served.watch import cpu_seconds
from loadtests.target import Target
from scripts.local_server import LocalServer

from .lean import Generator, Load, Rate, prepare
from .part import Asked, Found, server_on
from .profiled import summary

ROWS = 100
CALLERS = 32
LEAST = {"http": 3000.0, "grpc": 2000.0}
NAMES = {"http": "REST", "grpc": "gRPC"}
SEED = 402_857_136


def measure(asked: Asked) -> Found:
    """Each transport in turn on one server; answers are checked, one in sixteen."""
    found = Found()
    with server_on(cores()[0], {}) as server, Generator(cores()[1]) as generator:
        for way in asked.ways:
            load = prepare(server.http if way == "http" else server.grpc, matrix(ROWS))
            _one(found, way, load, server, generator, asked.span(3.0, 20.0))
    if asked.profile:
        for way in asked.ways:
            found.notes.append(f"{NAMES[way]}, by function:\n{profile(way, asked.span(3.0, 10.0))}")
    return found


def matrix(n: int) -> NDArray[np.float64]:
    """Dense, well conditioned."""
    A: NDArray[np.float64] = np.random.default_rng(SEED).standard_normal((n, n)) + n * np.eye(n)
    return A


def _one(found: Found, way: str, load: Load, server: LocalServer, generator: Generator, seconds: float) -> None:
    before = cpu_seconds(server.pid)
    rate = generator.drive(load, callers=CALLERS, connections=CALLERS, seconds=seconds, warm=0.5)
    # The half second before is counted as well, on both sides.
    each = (cpu_seconds(server.pid) - before) / (rate.answered * (1 + 0.5 / seconds))
    found.targets.append(
        Target(f"{NAMES[way]}: requests/s, n = {ROWS}, {CALLERS} callers", rate.per_second, LEAST[way], False)
    )
    # On a shared machine it is this that says what one core could do.
    most = 1e6 / LEAST[way]
    found.targets.append(Target(f"{NAMES[way]}: us of the server's core a request", 1e6 * each, most, True))
    lone = generator.drive(load, callers=1, seconds=max(seconds / 4, 1.0))
    found.notes.append(
        f"{NAMES[way]}: p50 {1e3 * rate.percentile(50):.1f} ms, p99 {1e3 * rate.percentile(99):.1f} ms, "
        f"generator {100 * rate.generator:.0f} % of its core; "
        f"a lone caller waits {1e3 * lone.percentile(50):.2f} ms"
    )
    found.faults += faults(rate, NAMES[way])
    found.data[way] = {
        "per_second": rate.per_second,
        "p50": rate.percentile(50),
        "p99": rate.percentile(99),
        "server_seconds": each,
        "generator": rate.generator,
        "alone": lone.percentile(50),
        "checked": rate.checked,
        "wrong": rate.wrong,
    }


def faults(rate: Rate, name: str) -> list[str]:
    """What must not be in any run."""
    listed = [f"{name}: {rate.wrong} of {rate.checked} answers are wrong"] if rate.wrong else []
    return listed if rate.checked else [*listed, f"{name}: no answer was checked"]


def profile(way: str, seconds: float) -> str:
    """Where the server's time goes, as `profiled.summary` has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        command = [sys.executable, "-m", "loadtests.limits.profiled", str(path)]
        with server_on(cores()[0], {}, command) as server, Generator(cores()[1]) as generator:
            load = prepare(server.http if way == "http" else server.grpc, matrix(ROWS))
            generator.drive(load, callers=CALLERS, connections=CALLERS, seconds=0.5, warm=0.0)
            server.signal(signal.SIGUSR1)
            time.sleep(0.2)
            rate = generator.drive(load, callers=CALLERS, connections=CALLERS, seconds=seconds, warm=0.0)
        return summary(path, rate.answered)
