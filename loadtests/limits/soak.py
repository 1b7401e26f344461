"""Whether a server's memory grows with the requests that it answers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from backsolve import Client
from loadtests.served.watch import Slope, resident_bytes, slope
from loadtests.target import Target
from scripts.local_server import LocalServer

from .lean import Generator, Load, prepare
from .part import Asked, Found, cores, server_on
from .rate import CALLERS, ROWS, matrix

SHORT, LONG = 10_000, 200_000
"""Requests."""

MOST_SECONDS = {False: 60.0, True: 2400.0}
"""A run ends then at the latest, and says how far it came."""

SPELLS = 60
"""The memory is looked at so often; the slope needs the first fifth to settle and ten blocks of the rest."""

WARM = 1100
"""New matrices before all: they fill the cache, and whatever remembers the last thousand of something."""

FRESH = 8
"""New matrices after each spell."""

SETTINGS = {"BACKSOLVE_CACHE_BYTES": "8MiB"}
SEED = 550_283_917


@final
@dataclass
class Soaked:
    """What was seen, once after each spell.

    Attributes:
        requests: answered so far.
        sizes: resident bytes.
        wrong, checked: answers.
    """

    requests: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    wrong: int = 0
    checked: int = 0

    def growth(self) -> Slope | None:
        """Bytes a request, with its 95 % interval; None of too few spells."""
        return slope(self.requests, self.sizes)


def measure(asked: Asked) -> Found:
    """One server, REST and gRPC in turn, a full cache."""
    count = LONG if asked.long else SHORT
    with server_on(cores()[0], SETTINGS) as server, Generator(cores()[1]) as generator:
        seen = soak(server, generator, asked.ways, count, asked.seconds or MOST_SECONDS[asked.long])
    return judge(seen, count)


def soak(server: LocalServer, generator: Generator, ways: tuple[str, ...], count: int, most_seconds: float) -> Soaked:
    """So many requests, or as many as the time allows, in spells; after each the memory, and a few new matrices."""
    seen, end = Soaked(), time.monotonic() + most_seconds
    A = matrix(ROWS)
    loads = {way: prepare(server.http if way == "http" else server.grpc, A) for way in ways}
    fresh = _matrices()
    spells, answered = _spells(generator, loads, count / SPELLS), 2 * WARM
    with Client(server.http) as client:
        for _ in range(WARM):
            _train(client, next(fresh))
        client.solve(A, np.ones(ROWS))
        answered += 1
        for rate_answered, checked, wrong in spells:
            answered += rate_answered
            seen.checked += checked
            seen.wrong += wrong
            for _ in range(FRESH):
                _train(client, next(fresh))
            client.solve(A, np.ones(ROWS))  # new matrices may have driven it out
            answered += 2 * FRESH + 1
            seen.requests.append(float(answered))
            seen.sizes.append(float(resident_bytes(server.pid)))
            if answered >= count or time.monotonic() > end:
                return seen
    raise AssertionError("spells do not end")


def judge(seen: Soaked, count: int) -> Found:
    """The growth in half-widths of its interval: up to 1 it cannot be told from none."""
    found = Found(
        faults=[f"{seen.wrong} of {seen.checked} answers are wrong"] if seen.wrong or not seen.checked else []
    )
    answered, grown = int(seen.requests[-1]), seen.growth()
    found.data = {"asked": count, "requests": seen.requests, "sizes": seen.sizes}
    if grown is None:
        found.faults.append(f"the server was too slow to tell a slope: {answered} of {count} requests")
        return found
    half = grown.high - grown.value
    found.targets.append(Target("RSS slope, in half-widths of its 95 % interval", grown.value / half, 1.0, True))
    found.notes.append(
        f"{answered} of {count} requests; {grown.value:+.0f} bytes a request, 95 % interval {grown.low:+.0f} to "
        f"{grown.high:+.0f}; resident {seen.sizes[0] / 2**20:.0f} MiB after the first spell, "
        f"{seen.sizes[-1] / 2**20:.0f} MiB at the end"
    )
    found.data |= {"slope": grown.value, "low": grown.low, "high": grown.high}
    return found


def _spells(generator: Generator, loads: dict[str, Load], each: float) -> Iterator[tuple[int, int, int]]:
    """About so many requests at a time, by each way in turn; what was answered, checked and wrong."""
    speed = dict.fromkeys(loads, 0.0)
    while True:
        for way, load in loads.items():
            seconds = min(max(each / speed[way], 0.05), 60.0) if speed[way] else 0.2
            rate = generator.drive(load, callers=CALLERS, connections=CALLERS, seconds=seconds, warm=0.0)
            speed[way] = rate.per_second
            yield rate.answered, rate.checked, rate.wrong


def _matrices() -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(SEED)
    while True:
        yield rng.standard_normal((ROWS, ROWS)) + ROWS * np.eye(ROWS)


def _train(client: Client, A: NDArray[np.float64]) -> None:
    """A step with a matrix that nobody has sent before."""
    b = np.ones(ROWS)
    client.vjp(A, client.solve(A, b).x, b)
