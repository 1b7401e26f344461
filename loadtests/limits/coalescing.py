"""What it gains to solve the right-hand sides of many callers as one block, and that a lone caller pays nothing."""

from collections.abc import Callable
from typing import final

import numpy as np

from backsolve import Client
from loadtests.placed import cores
from loadtests.target import Target
from scripts.local_server import LocalServer

from .lean import Generator, Load, Rate, prepare
from .part import Asked, Found, server_on
from .rate import CALLERS, NAMES, matrix

ROWS = 2000
LEAST = 2.5
"""Times the requests of the same server when it solves each alone."""

UNCHANGED = 1.1
"""A lone caller waits at most so many times as long; what is above 1 is the noise of a busy machine."""

ROUNDS = 3
SETTINGS = {"joined": {}, "single": {"BACKSOLVE_BLOCK_COLUMNS": "1"}}


@final
class Pair:
    """Runs of two servers in turn, so that what the machine does meanwhile meets both."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self.rates: dict[str, list[Rate]] = {name: [] for name in SETTINGS}

    def run(self, drive: Callable[[str], Rate]) -> None:
        """Drive each, changing who is first."""
        for number in range(self._rounds):
            for name in sorted(SETTINGS, reverse=bool(number % 2)):
                self.rates[name].append(drive(name))

    def gain(self) -> float:
        """Requests a second, joined over single: the median of the rounds."""
        return self._ratio(lambda rate: rate.per_second)

    def wait(self) -> float:
        """The median latency, joined over single."""
        return self._ratio(lambda rate: rate.percentile(50))

    def median(self, name: str, of: Callable[[Rate], float]) -> float:
        """The median of a figure over the rounds."""
        return float(np.median([of(rate) for rate in self.rates[name]]))

    def faults(self, name: str) -> list[str]:
        """What must not be, in all rounds together."""
        listed = []
        for server, rates in self.rates.items():
            checked, wrong = sum(rate.checked for rate in rates), sum(rate.wrong for rate in rates)
            if wrong or not checked:
                listed.append(f"{name}, {server}: {wrong} of {checked} answers are wrong")
        return listed

    def _ratio(self, of: Callable[[Rate], float]) -> float:
        pairs = zip(self.rates["joined"], self.rates["single"], strict=True)
        return float(np.median([of(joined) / of(single) for joined, single in pairs]))


def measure(asked: Asked) -> Found:
    """Two servers that differ in one setting, each transport in turn."""
    found = Found()
    seconds = asked.span(1.0, 8.0)
    with (
        server_on(cores()[0], SETTINGS["joined"]) as joined,
        server_on(cores()[0], SETTINGS["single"]) as single,
        Generator(cores()[1]) as generator,
    ):
        servers = {"joined": joined, "single": single}
        for way in asked.ways:
            loads = {
                name: prepare(server.http if way == "http" else server.grpc, matrix(ROWS))
                for name, server in servers.items()
            }
            _one(found, way, servers, loads, generator, seconds)
    return found


def _one(
    found: Found,
    way: str,
    servers: dict[str, LocalServer],
    loads: dict[str, Load],
    generator: Generator,
    seconds: float,
) -> None:
    crowd, lone = Pair(ROUNDS), Pair(ROUNDS)
    before = {name: _blocks(server) for name, server in servers.items()}
    crowd.run(lambda name: generator.drive(loads[name], callers=CALLERS, connections=CALLERS, seconds=seconds))
    widths = {name: _width(before[name], _blocks(server)) for name, server in servers.items()}
    lone.run(lambda name: generator.drive(loads[name], callers=1, seconds=max(seconds / 2, 0.5)))
    name = NAMES[way]
    found.targets += [
        Target(f"{name}: gain by joining, dense n = {ROWS}, {CALLERS} callers", crowd.gain(), LEAST, False),
        Target(f"{name}: wait of a lone caller, times that without", lone.wait(), UNCHANGED, True),
    ]
    figures = {
        each: {
            "per_second": crowd.median(each, lambda rate: rate.per_second),
            "p50": crowd.median(each, lambda rate: rate.percentile(50)),
            "p99": crowd.median(each, lambda rate: rate.percentile(99)),
            "generator": crowd.median(each, lambda rate: rate.generator),
            "alone": lone.median(each, lambda rate: rate.percentile(50)),
        }
        for each in SETTINGS
    }
    found.notes += [
        f"{name}, {each}: {of['per_second']:.0f} requests/s, p50 {1e3 * of['p50']:.1f} ms, p99 {1e3 * of['p99']:.1f} "
        f"ms, {widths[each]:.1f} columns a block, generator {100 * of['generator']:.0f} % of its core; "
        f"a lone caller waits {1e3 * of['alone']:.2f} ms"
        for each, of in figures.items()
    ]
    found.faults += crowd.faults(name)
    found.data[way] = {"gain": crowd.gain(), "wait": lone.wait(), "width": widths, **figures}


def _blocks(server: LocalServer) -> tuple[float, float]:
    """Columns and blocks that a server has solved so far."""
    with Client(server.http) as client:
        counted = client.stats()
    return counted["columns"], counted["blocks"]


def _width(before: tuple[float, float], after: tuple[float, float]) -> float:
    return (after[0] - before[0]) / max(after[1] - before[1], 1)
