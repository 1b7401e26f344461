"""The rounds: each mistreats server or wire in one way while good callers work, then looks for what is left behind."""

import os
import random
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import final

from loadtests.served.dawdlers import Dawdlers
from loadtests.served.rows import counted
from scripts.local_server import LocalServer

from .callers import Findings, GoodCallers
from .proxy import Proxy
from .vandals import Vandal

SETTINGS: Mapping[str, str] = {
    "BACKSOLVE_LOG_LEVEL": "error",
    "BACKSOLVE_CACHE_BYTES": "64MiB",
    "BACKSOLVE_MAX_PAYLOAD_BYTES": "32MiB",
    "BACKSOLVE_QUEUE_DEPTH": "32",
    "BACKSOLVE_WORKERS": "2",
}
"""Of the server: so small that what is lost is soon missed."""

IN_USE = (
    "calls_inflight",
    "queue_depth",
    "queue_running",
    "queue_bytes",
    "cache_bytes_reserved",
    "cache_pinned",
    "body_bytes",
)
"""Counters of the server that are 0 when nobody calls."""

QUIET_SECONDS = 30.0
"""Time in which the server must have given everything back."""

VANDALS, BLOWS = 3, 8
SPARE_FILES = 16
"""Descriptors that a server may hold open beyond those it began with: pools keep some."""


@final
@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: its place, from 0.
        fault: the name of what is done, one of `FAULTS`.
        transport: "http" or "grpc".
        seed: of everything in it.
    """

    number: int
    fault: str
    transport: str
    seed: int

    def __str__(self) -> str:
        return f"round {self.number} ({self.fault}, {self.transport}, seed {self.seed})"


@final
@dataclass(frozen=True)
class Scene:
    """Where a round takes place, and what it has come to so far."""

    server: LocalServer
    url: str
    seed: int
    findings: Findings


def _nothing(scene: Scene) -> None:
    """The control: whatever is found here was not done by a fault."""


def _kill(scene: Scene) -> None:
    rng = random.Random(scene.seed)
    time.sleep(rng.uniform(0.05, 0.6))
    scene.server.kill()
    time.sleep(rng.uniform(0, 0.3))
    scene.server.start()


def _freeze(scene: Scene) -> None:
    rng = random.Random(scene.seed)
    for _ in range(2):
        time.sleep(rng.uniform(0.05, 0.4))
        scene.server.signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.2, 2.5))
        scene.server.signal(signal.SIGCONT)


def _vandals(blow: Callable[[Vandal], None]) -> Callable[[Scene], None]:
    def work(scene: Scene) -> None:
        def strike(number: int) -> None:
            vandal = Vandal(scene.url, scene.seed + number, scene.seed)
            try:
                for _ in range(BLOWS):
                    blow(vandal)
            except Exception as error:  # a round in which nobody struck proves nothing
                scene.findings.fault(f"a vandal could not strike: {type(error).__name__}: {error}")

        threads = [threading.Thread(target=strike, args=(number,), daemon=True) for number in range(VANDALS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return work


def _dawdle(scene: Scene) -> None:
    Dawdlers(scene.url, 6, 1.5).run()


def _garble(scene: Scene) -> None:
    """Callers of ours behind a wire that flips bits: they may be told anything, but in time, and in our words."""
    with Proxy(scene.url, scene.seed, flips=True) as wire:
        victims = GoodCallers(wire.url, scene.seed + 1, count=2, calls=4, checked=False)
        victims.start()
        found = victims.join()
    found.harm += wire.harmed
    found.answered = 0  # what they were told proves nothing
    scene.findings.add(found)


FAULTS: Mapping[str, Callable[[Scene], None]] = {
    "nothing": _nothing,
    "kill": _kill,
    "freeze": _freeze,
    "cut": _nothing,  # the callers' own wire does it
    "truncate": _vandals(Vandal.truncate),
    "flip": _vandals(Vandal.flip),
    "vanish": _vandals(Vandal.vanish),
    "dawdle": _dawdle,
    "garble": _garble,
}
"""What may happen, in the order in which rounds take it."""


def rounds(count: int, seed: int, transports: tuple[str, ...] = ("http", "grpc")) -> list[Round]:
    """So many rounds: every fault over every transport in turn, each round with a seed of its own."""
    rng = random.Random(seed)
    cases = [(fault, transport) for fault in FAULTS for transport in transports]
    return [Round(number, *cases[number % len(cases)], rng.randrange(1 << 40)) for number in range(count)]


def play(server: LocalServer, chosen: Round, files: dict[int, int]) -> Findings:
    """One round against a server that is ready, and that is ready again afterwards.

    Args:
        server: of our own; its settings are `SETTINGS`.
        chosen: what happens.
        files: descriptors that each process held when it was first seen, by pid; grows.
    """
    files.setdefault(server.pid, open_files(server.pid))
    url = server.http if chosen.transport == "http" else server.grpc
    pid, before = server.pid, counted(server.http).codes
    wire: AbstractContextManager[Proxy | None] = nullcontext()
    if chosen.fault == "cut":
        wire = Proxy(url, chosen.seed, cuts=True)
    beside = Findings()
    with wire as proxy:
        callers = GoodCallers(url if proxy is None else proxy.url, chosen.seed)
        callers.start()
        FAULTS[chosen.fault](Scene(server, url, chosen.seed, beside))
        found = callers.join()
        found.harm += 0 if proxy is None else proxy.harmed
    found.add(beside)
    for text in left_behind(server, files.setdefault(server.pid, open_files(server.pid))):
        found.fault(text)
    # The server of before may have been killed; its successor counts from zero.
    earlier = before if server.pid == pid else {}
    found.told.update({c: int(n - earlier.get(c, 0)) for c, n in counted(server.http).codes.items()})
    if found.told["INTERNAL"]:
        found.fault("the server answered INTERNAL, which is a fault of its own")
    found.faults = [f"{chosen}: {text}" for text in found.faults]
    return found


def left_behind(server: LocalServer, files: int, patience: float = QUIET_SECONDS) -> list[str]:
    """What the server still holds although nobody calls; waits until it is nothing, or the patience is over.

    Args:
        server: which.
        files: descriptors that it began with.
        patience: seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        held = _in_use(server)
        if (more := open_files(server.pid) - files) > SPARE_FILES:
            held["open files beyond the first"] = float(more)
        if not held or time.monotonic() > deadline:
            return [f"{name}: {value:g} when nobody calls" for name, value in held.items()]
        time.sleep(0.05)


def open_files(pid: int) -> int:
    """Descriptors that a process holds; Linux only."""
    return len(os.listdir(Path(f"/proc/{pid}/fd")))


def _in_use(server: LocalServer) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.http}/v1/stats", timeout=QUIET_SECONDS) as reply:
        totals = loads(reply.read())
    return {name: totals[name] for name in IN_USE if totals[name]}
