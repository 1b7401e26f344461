"""Which client solves: SciPy's signatures have no room to say it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..client import Client, default_client
from ..errors import InvalidOptionError, NotConvergedError
from ..types import Solution, Status

_chosen: ContextVar[Client | None] = ContextVar("backsolve_scipy_linalg_client", default=None)


@contextmanager
def using(client: Client) -> Iterator[Client]:
    """Within the block, SciPy's names are solved by `client`.

        with scipy_linalg.using(backsolve.Client("http://solver:8080")):
            x = scipy_linalg.spsolve(A, b)

    It holds for the thread, or the asyncio task, that enters the block; threads that are started inside have the
    default client. Blocks may be nested. What `splu` and `factorized` return goes on with the client that made it. The
    client is not closed at the end.

    Args:
        client: any `backsolve.Client`.

    Raises:
        InvalidOptionError: its calls have to be awaited, which SciPy's names cannot do.
    """
    if inspect.iscoroutinefunction(client.solve):
        raise InvalidOptionError("using() takes a backsolve.Client: the calls of an AsyncClient have to be awaited")
    token = _chosen.set(client)
    try:
        yield client
    finally:
        _chosen.reset(token)


def current() -> Client:
    """The client of the innermost block, else the process-wide one."""
    return _chosen.get() or default_client()


def settled(solve: Callable[[], Solution]) -> Solution:
    """The answer of a solve, also where it misses its tolerance: SciPy tells that by a number.

    Raises:
        NotConvergedError: A or b is not finite.
    """
    try:
        return solve()
    except NotConvergedError as error:
        if error.solution is None or error.solution.status is Status.NONFINITE_INPUT:
            raise
        return error.solution
