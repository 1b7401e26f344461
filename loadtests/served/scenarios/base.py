"""What a scenario is, and how one of its runs is measured."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from threading import Thread
from typing import ClassVar, final

from loadtests.placed import started_on
from scripts.local_server import LocalServer

from ..generator import Plan, run
from ..rows import Counted, Row, counted, row
from ..tally import Tally
from ..watch import Watch, Watched

Names = tuple[str, str, str]


@final
@dataclass(frozen=True)
class Bench:
    """Where and how a scenario runs.

    Attributes:
        transport: "http" or "grpc".
        http: the server's REST address, which also has its health and its counters.
        url: the address that callers use.
        own: the server, if it was started for this; it may be killed.
        seconds: length of one measured run.
        processes: of the load generator.
        core: that the generator has for itself; None: it shares them all with the server.
        salt: makes new matrices new to a server that earlier runs have used.
    """

    transport: str
    http: str
    url: str
    own: LocalServer | None
    seconds: float
    processes: int = 1
    core: int | None = None
    salt: int = 0


class Scenario(ABC):
    """One kind of traffic.

    Attributes:
        name: as the command line and the results call it.
        about: one line for people.
        settings: of the server that is started for it.
        apart: server and callers have a core each, so that callers take nothing from the server.
        needs_own: it kills the server or depends on `settings`, so a server by URL will not do.
        may_fail: failed steps belong to it.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    settings: ClassVar[Mapping[str, str]] = {}
    apart: ClassVar[bool] = False
    needs_own: ClassVar[bool] = False
    may_fail: ClassVar[bool] = False

    @abstractmethod
    def rows(self, bench: Bench) -> Iterator[Row]:
        """Run it, and give the figures of each of its parts."""

    @final
    def measure(
        self,
        bench: Bench,
        part: str,
        plan: Plan,
        *,
        during: Callable[[], None] | None = None,
        notes: list[str] | None = None,
    ) -> Row:
        """Run a plan while the server is watched.

        Args:
            bench: where.
            part: what of the scenario this is.
            plan: what callers do.
            during: runs on a thread beside the callers, from their first step on.
            notes: for the row; `during` may still add to it.

        Raises:
            RuntimeError: the generator failed.
        """
        notes = [] if notes is None else notes
        tally, seen, before, after = _watched(bench, replace(plan, processes=bench.processes), during)
        names = (self.name, part, bench.transport)
        return row(names, plan, tally, seen, before, after, may_fail=self.may_fail, notes=notes)


def _watched(bench: Bench, plan: Plan, during: Callable[[], None] | None) -> tuple[Tally, Watched, Counted, Counted]:
    own = bench.own
    watch = Watch(bench.http, None if own is None else lambda: own.pid)
    first: list[Counted] = []
    beside = None if during is None else _Beside(during)
    with ExitStack() as stack:

        def begun() -> None:
            first.append(counted(bench.http))
            stack.enter_context(watch)
            if beside is not None:
                stack.callback(beside.join)
                beside.start()

        stack.enter_context(started_on(bench.core))
        tally = run(plan, begun)
    if beside is not None and beside.failure is not None:
        raise beside.failure
    return tally, watch.seen, first[0], counted(bench.http)


@final
class _Beside(Thread):
    """A thread whose exception is kept for whoever joins it."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._work = work
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Work."""
        try:
            self._work()
        except BaseException as err:
            self.failure = err
