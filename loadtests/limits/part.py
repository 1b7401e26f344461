"""What a part of the measurement is told, and what it finds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from loadtests.placed import started_on
from loadtests.target import Target
from scripts.local_server import LocalServer


@final
@dataclass(frozen=True)
class Asked:
    """How to measure.

    Attributes:
        long: as the targets have it, which takes minutes; else a short form of the same.
        profile: whether the server's functions are listed as well, in a run of its own.
        ways: "http" and "grpc", or one of them.
        seconds: of each run, in place of what either form has.
    """

    long: bool = False
    profile: bool = False
    ways: tuple[str, ...] = ("http", "grpc")
    seconds: float | None = None

    def span(self, short: float, long: float) -> float:
        """Seconds of a run."""
        return self.seconds or (long if self.long else short)


@final
@dataclass
class Found:
    """What was found.

    Attributes:
        targets: figures beside their bounds.
        notes: lines for people, figures without a bound among them.
        faults: what must not be, however fast it was; there should be none.
        data: for the JSON file.
    """

    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


@contextmanager
def server_on(
    core: int | None, settings: Mapping[str, str], command: Sequence[str] | None = None
) -> Iterator[LocalServer]:
    """A server that may use one core alone, or any."""
    server = LocalServer({"BACKSOLVE_LOG_LEVEL": "warning", "OMP_NUM_THREADS": "1", **settings}, command)
    with ExitStack() as stack:
        with started_on(core):
            stack.enter_context(server)
        yield server
