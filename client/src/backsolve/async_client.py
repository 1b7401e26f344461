"""The client whose calls are awaited: those of `Client`, on an event loop."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Unpack, final

import numpy as np

from ._aio.facade import HandsBack, awaited
from ._aio.session import AsyncSession
from ._aio.threads import ThreadedTransport
from ._calls import solve as solves
from ._calls.operands import Terms, allocated
from ._fork import renew_after_fork
from ._opening import Opening
from ._transports.base import Transport
from .client import Client
from .factorized import Factorized
from .options import SolveOptions
from .retry import UNSET, Timeout
from .types import Array, Certificate, OnFailure, Storage


@final
class AsyncFactorized:
    """A matrix ready to be solved with; made by `AsyncClient.factorized`.

    Attributes:
        shape: `(n, n)`.
        dtype: element type of the values, and of the answers.
    """

    def __init__(self, driver: AsyncSession, held: solves.Held) -> None:
        self._driver = driver
        self._exchange = driver.exchange
        self._session: HandsBack[Any] = HandsBack()
        self._held = held
        self.shape = held.matrix.pattern.shape
        self.dtype = held.matrix.dtype

    @property
    def last(self) -> Certificate:
        """Certificate of the latest call."""
        return self._held.last

    solve = awaited(Factorized.solve, "AsyncFactorized")


@final
class AsyncClient:
    """`Client` for programs that await: the same calls, answers and errors, and no call blocks the event loop.

    HTTP goes over sockets that the loop watches, 64 of them at most; the engine in this process and gRPC work on
    threads, 32 at most. Operands of 256 KiB or more are also hashed on threads. Further calls wait for their turn,
    within their time. A cancelled call is taken back: the connection is closed, and the server stops working for it.

    An object serves any number of event loops (asyncio's or uvloop's), one after the other or at once, and a forked
    child; it is pickled as a `Client` is. Usable as `async with`; otherwise `await client.close()`.

    Args:
        url, token, timeout, ca_file: as for `Client`.
        transport: carries the calls, in place of what the URL names, on threads.

    Raises:
        InvalidOptionError: the URL cannot be understood.
        NotSupportedError: no URL, and the package `backsolve-service` is not installed.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        timeout: Timeout = UNSET,
        ca_file: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._opening = Opening.of(url, token, timeout, ca_file, custom=transport is not None)
        carrier = None if transport is None else ThreadedTransport(transport)
        self._driver = AsyncSession(self._opening.endpoints, self._opening.timeout, carrier)
        self._exchange = self._driver.exchange
        self._session: HandsBack[Any] = HandsBack()
        renew_after_fork(self, AsyncClient._renew)

    def _renew(self) -> None:
        self._exchange.forget_locks()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._opening.reduced(AsyncClient)

    solve = awaited(Client.solve, "AsyncClient")
    solve_matrix = awaited(Client.solve_matrix, "AsyncClient")
    vjp = awaited(Client.vjp, "AsyncClient")
    vjp_matrix = awaited(Client.vjp_matrix, "AsyncClient")
    jvp = awaited(Client.jvp, "AsyncClient")
    jvp_matrix = awaited(Client.jvp_matrix, "AsyncClient")
    lstsq = awaited(Client.lstsq, "AsyncClient")
    lstsq_vjp = awaited(Client.lstsq_vjp, "AsyncClient")
    lstsq_jvp = awaited(Client.lstsq_jvp, "AsyncClient")
    lstsq_matrix = awaited(Client.lstsq_matrix, "AsyncClient")
    normal_matrix = awaited(Client.normal_matrix, "AsyncClient")
    info = awaited(Client.info, "AsyncClient")
    stats = awaited(Client.stats, "AsyncClient")
    replicas = awaited(Client.replicas, "AsyncClient")

    async def factorized(  # noqa: D102  (its docstring is that of `Client.factorized`)
        self,
        A: Any,
        *,
        storage: Storage = "general",
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> AsyncFactorized:
        # The steps are those of `Client.factorized`; only the handle is another.
        steps = solves.hold(self._exchange, A, Terms(on_failure, timeout, storage), options)
        return AsyncFactorized(self._driver, await self._driver.run(steps, heavy=True))

    factorized.__doc__ = Client.factorized.__doc__

    async def empty(  # noqa: D102  (its docstring is that of `Client.empty`)
        self, shape: int | tuple[int, ...], dtype: Any = np.float64
    ) -> Array:
        sizes, kind = allocated(shape, dtype)
        opened = self._driver.transports
        return await opened[0].empty(sizes, kind) if opened else np.empty(sizes, kind)

    empty.__doc__ = Client.empty.__doc__

    async def close(self) -> None:
        """Free connections, or this client's share of the embedded engine."""
        await self._driver.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
