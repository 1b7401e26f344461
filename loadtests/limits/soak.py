"""Whether a server's memory grows with the requests that it answers, over connections that last, as clients' do."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from backsolve import Client
from loadtests.placed import cores
from loadtests.served.watch import Slope, resident_bytes, slope
from loadtests.target import Target
from scripts.local_server import LocalServer

from .lean import Generator, Load, Rate, prepare
from .part import Asked, Found, server_on
from .rate import CALLERS, NAMES, ROWS, matrix

SHORT, LONG = 10_000, 200_000
"""Requests."""

MOST_SECONDS = {False: 60.0, True: 2400.0}
"""A run ends then at the latest, and says how far it came."""

LEAST_SECONDS = 8.0
"""Over each way: a look waits its turn among the callers, up to 0.2 s on a busy machine, and thirty are needed."""

SPELLS = 60
"""Looks at the memory over each way; the slope leaves out the first fifth, and needs ten blocks of the rest."""

WARM = 1100
"""New matrices before all: they fill the cache, and whatever remembers the last thousand of something."""

FRESH = 1
"""New matrices at each look, so that the cache does not rest."""

SETTINGS = {"BACKSOLVE_CACHE_BYTES": "8MiB"}
SEED = 550_283_917


@final
@dataclass
class Soaked:
    """What was seen of one way, at each look.

    Attributes:
        requests: that the server has answered so far.
        sizes: resident bytes.
        wrong, checked: answers.
    """

    requests: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    wrong: int = 0
    checked: int = 0

    @property
    def answered(self) -> int:
        """Between the first look and the last."""
        return int(self.requests[-1] - self.requests[0]) if self.requests else 0

    def growth(self) -> Slope | None:
        """Bytes a request, with its 95 % interval; None of too few looks."""
        return slope(self.requests, self.sizes)


def measure(asked: Asked) -> Found:
    """One server, REST and then gRPC, a full cache."""
    count = LONG if asked.long else SHORT
    with server_on(cores()[0], SETTINGS) as server, Generator(cores()[1]) as generator:
        seen = soak(server, generator, asked.ways, count, asked.seconds or MOST_SECONDS[asked.long])
    return judge(seen, count)


def soak(
    server: LocalServer, generator: Generator, ways: tuple[str, ...], count: int, most_seconds: float
) -> Mapping[str, Soaked]:
    """So many requests, an equal share each way, or what the time asks for; each way over the same connections."""
    seen: dict[str, Soaked] = {}
    with Client(server.http) as client, ThreadPoolExecutor(1) as pool:
        fresh = _matrices()
        first = next(fresh)
        # One that comes back shows that they recur: else few of them would be kept, however much room there is.
        for each in (first, next(fresh), first):
            _train(client, each)
        for _ in range(WARM):
            _train(client, next(fresh))
        for way in ways:
            load = prepare(server.http if way == "http" else server.grpc, matrix(ROWS))
            speed = _drive(generator, load, 0.5).per_second
            seconds = min(max(count / len(ways) / speed, LEAST_SECONDS), most_seconds / 2 / len(ways))
            # Once for nothing: the allocator settles over it, with all that is done at the looks.
            for _ in range(2):
                running = pool.submit(_drive, generator, load, seconds)
                seen[way] = _watched(running, seconds / SPELLS, server.pid, client, fresh)
    return seen


def _drive(generator: Generator, load: Load, seconds: float) -> Rate:
    return generator.drive(load, callers=CALLERS, connections=CALLERS, seconds=seconds, warm=0.0)


def _watched(
    running: "Future[Rate]", pause: float, pid: int, client: Client, fresh: Iterator[NDArray[np.float64]]
) -> Soaked:
    """Look at the memory while a load runs, and have new matrices solved with."""
    found, over = Soaked(), False
    while not over:
        over = bool(wait_for([running], timeout=pause).done)
        for _ in range(FRESH):
            _train(client, next(fresh))
        stats = client.stats()
        found.requests.append(stats["solves"] + stats["adjoint_solves"])
        found.sizes.append(float(resident_bytes(pid)))
    rate = running.result()
    found.checked, found.wrong = rate.checked, rate.wrong
    return found


def judge(seen: Mapping[str, Soaked], count: int) -> Found:
    """The growth of each way in half-widths of its interval: up to 1 it cannot be told from none."""
    found = Found()
    for way, one in seen.items():
        _judge(found, NAMES[way], way, one)
    answered = sum(one.answered for one in seen.values())
    found.notes.append(f"{answered} of {count} requests were looked at")
    found.data["asked"] = count
    return found


def _judge(found: Found, name: str, way: str, seen: Soaked) -> None:
    if seen.wrong or not seen.checked:
        found.faults.append(f"{name}: {seen.wrong} of {seen.checked} answers are wrong")
    grown = seen.growth()
    found.data[way] = {"requests": seen.requests, "sizes": seen.sizes}
    if grown is None:
        found.faults.append(f"{name}: too slow to tell a slope, {seen.answered} requests in {len(seen.sizes)} looks")
        return
    half = grown.high - grown.value
    found.targets.append(
        Target(f"{name}: RSS slope, in half-widths of its 95 % interval", grown.value / half, 1.0, True)
    )
    found.notes.append(
        f"{name}: {seen.answered} requests; {grown.value:+.1f} bytes a request, 95 % interval {grown.low:+.1f} to "
        f"{grown.high:+.1f}; resident {seen.sizes[0] / 2**20:.1f} MiB at the first look, "
        f"{seen.sizes[-1] / 2**20:.1f} MiB at the last"
    )
    found.data[way] |= {"slope": grown.value, "low": grown.low, "high": grown.high}


def _matrices() -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(SEED)
    while True:
        yield rng.standard_normal((ROWS, ROWS)) + ROWS * np.eye(ROWS)


def _train(client: Client, A: NDArray[np.float64]) -> None:
    """A step with a matrix that nobody has sent before."""
    b = np.ones(ROWS)
    client.vjp(A, client.solve(A, b).x, b)
