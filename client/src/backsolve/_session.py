"""Does the steps of calls over the transports of a client, and blocks until they are done."""

import inspect
import socket
import time
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar, final

from ._entry import connect
from ._fleet import Replica
from ._protocol import Dismiss, Exchange, LookUp, Pause, Send, Step, Steps, Warn
from ._steps import drive
from ._transports.base import Transport, carry
from .config import Endpoint
from .errors import UnreachableError

T = TypeVar("T")


@final
class Session:
    """The transports to the replicas of one service, and what is kept from call to call. Thread-safe.

    Args:
        endpoints: of the replicas.
        timeout: seconds for each call unless it says otherwise; None waits for ever.
        transport: carries the calls to the one replica, in place of what its endpoint names.
    """

    def __init__(self, endpoints: Sequence[Endpoint], timeout: float | None, transport: Transport | None) -> None:
        self.exchange = Exchange(endpoints, timeout)
        self._closed = False
        for replica in self.exchange.fleet.members:
            replica.carried_by(transport or connect(replica.endpoint))

    @property
    def transports(self) -> list[Transport]:
        """Those that are open, in the order in which the replicas were named."""
        found = (replica.carrier for replica in self.exchange.fleet.members)
        return [transport for transport in found if transport is not None]

    def run(self, steps: Steps[T]) -> T:
        """Do what a call asks for until it has its result.

        Raises:
            BacksolveError: the call has failed.
        """
        return drive(steps, self._do)

    def close(self) -> None:
        """Free what the transports hold."""
        self._closed = True
        for replica in self.exchange.fleet.known:
            if replica.carrier is not None:
                replica.carrier.close()

    def _do(self, step: Step) -> Any:
        match step:
            case Send():
                return carry(step.to.carrier or self._opened(step.to), step.call, step.left)
            case Pause():
                time.sleep(step.seconds)
            case Warn():
                warn(step)
            case LookUp():
                return look_up(step.endpoint)
            case Dismiss():
                if step.replica.carrier is not None:
                    step.replica.carrier.close()
        return None

    def _opened(self, replica: Replica) -> Transport:
        """The transport to a replica whose address was looked up."""
        transport = connect(replica.endpoint)
        if self._closed:
            transport.close()
        # Where two threads come at once one transport is dropped, before it has sent anything.
        carrier: Transport = replica.carried_by(transport)
        return carrier


def look_up(endpoint: Endpoint) -> list[str]:
    """Every address of a name.

    Raises:
        UnreachableError: it has none.
    """
    try:
        return addresses_of(socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM))
    except OSError as err:
        raise no_address(endpoint) from err


def addresses_of(found: Sequence[tuple[Any, ...]]) -> list[str]:
    """The addresses in what `getaddrinfo` returns, of one family: a host that has two is one replica."""
    family = min((entry[0] for entry in found), default=socket.AF_INET)
    return sorted({str(entry[4][0]) for entry in found if entry[0] == family})


def no_address(endpoint: Endpoint) -> UnreachableError:
    """A name that cannot be looked up."""
    return UnreachableError(f"the name {endpoint.host} has no address: is the service started, and the name right?")


def warn(step: Warn) -> None:
    """Warn, of the line of the caller's own code that made the call."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(step.text, step.category, stacklevel=level)
