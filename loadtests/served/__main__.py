"""Put load on a server and write what came of it: `out/load/load.json`, `load.md` and two pictures.

Without `--url` it starts servers of its own on free ports of 127.0.0.1, one for each set of settings that the chosen
scenarios need. Every run ends by itself.
"""

import argparse
import sys
import time
from collections.abc import Hashable
from contextlib import ExitStack
from pathlib import Path
from typing import final
from urllib.parse import urlsplit

from tqdm import tqdm

from backsolve import Client
from loadtests.placed import cores, started_on
from scripts.local_server import LocalServer

from .picture import draw
from .report import environment, markdown, write
from .rows import Row
from .scenarios import SCENARIOS, Bench, Scenario

LENGTHS = {"short": 5.0, "full": 30.0, "long": 300.0}
"""Seconds of one measured run."""


def main() -> int:
    """Exit status: 1 if an answer was wrong, or a step failed where none may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenarios", nargs="+", action="extend", choices=SCENARIOS, metavar="NAME", help="(default: all)"
    )
    parser.add_argument("--transport", nargs="+", action="extend", choices=("http", "grpc"), help="(default: http)")
    parser.add_argument(
        "--length", choices=LENGTHS, default="short", help="5, 30 or 300 s a run (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, help="seconds a run, in place of --length")
    parser.add_argument("--processes", type=int, default=1, help="processes of the load generator (default: 1)")
    parser.add_argument("--url", help="http address of a running server, in place of one of our own")
    parser.add_argument(
        "--out", type=Path, default=Path("out/load"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="say what the scenarios are, and end")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:<10}{scenario.about}" for name, scenario in SCENARIOS.items()))
        return 0
    about = environment()
    chosen = [(n, t) for n in options.scenarios or SCENARIOS for t in options.transport or ["http"]]
    rows: list[Row] = []
    with ExitStack() as servers:
        places = Places(options.url, options.seconds or LENGTHS[options.length], options.processes, servers)
        for name, transport in tqdm(chosen, unit="scenario"):
            scenario = SCENARIOS[name]
            if options.url and scenario.needs_own:
                print(f"left out: {name} needs a server that it may set up and kill", file=sys.stderr)
                continue
            rows += scenario.rows(places.bench(scenario, transport))
    write(rows, about, options.out)
    pictures = draw(rows, options.out)
    print(markdown(rows, about))
    print("written:", *(options.out / name for name in ("load.json", "load.md")), *pictures)
    return 0 if all(row.passed for row in rows) else 1


@final
class Places:
    """The servers that scenarios run against.

    Args:
        url: of a running one, or None: they are started when they are first needed.
        seconds: of one measured run.
        processes: of the load generator.
        servers: stops those that were started.
    """

    def __init__(self, url: str | None, seconds: float, processes: int, servers: ExitStack) -> None:
        self._url, self._seconds, self._processes, self._servers = url, seconds, processes, servers
        self._own: dict[Hashable, LocalServer] = {}

    def bench(self, scenario: Scenario, transport: str) -> Bench:
        """The server for a scenario, and how it is to be reached."""
        # Both transports may use one server, which must not know the other's matrices.
        salt = ("http", "grpc").index(transport)
        if self._url is not None:
            address = self._url if transport == "http" else _grpc_address(self._url)
            salt += 2 * int(time.time())
            return Bench(transport, self._url, address, None, self._seconds, self._processes, None, salt)
        settings = {"BACKSOLVE_LOG_LEVEL": "error", **scenario.settings}
        here, there = cores() if scenario.apart else (None, None)
        key = (here, *sorted(settings.items()))
        if key not in self._own:
            with started_on(here):
                self._own[key] = self._servers.enter_context(LocalServer(settings))
        own = self._own[key]
        address = own.http if transport == "http" else own.grpc
        return Bench(transport, own.http, address, own, self._seconds, self._processes, there, salt)


def _grpc_address(url: str) -> str:
    with Client(url) as client:
        port = client.info().grpc_port
    if port is None:
        raise SystemExit(f"{url} says that it serves no gRPC: choose --transport http")
    return f"grpc://{urlsplit(url).hostname}:{port}"


if __name__ == "__main__":
    sys.exit(main())
