"""Clients and transports that await, behind the face of those that block: what tests say of these they say of both."""

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from backsolve import AsyncClient
from backsolve._aio.http import AsyncHttpTransport
from backsolve._steps import drive_async
from backsolve._transports.base import Call, InfoCall, StatsCall
from backsolve.config import resolve
from backsolve.errors import InvalidOptionError
from backsolve.types import Holding, MatrixRef


class Loop:
    """An event loop in a thread of its own, for as long as somebody wants it, and another in a forked child."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine that runs there."""
        if self._process != os.getpid():
            self._start()
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        """End the loop and its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class _Blocking:
    """An object whose coroutines are waited for."""

    def __init__(self, awaited: Any, loop: Loop) -> None:
        self._awaited, self._loop = awaited, loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._awaited, name)
        if not inspect.iscoroutinefunction(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._loop.wait(found(*args, **kwargs))
            return _Blocking(result, self._loop) if name == "factorized" else result

        return call


class AwaitedClient(_Blocking):
    """An `AsyncClient` that is used as a `Client`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(AsyncClient(*args, **kwargs), Loop())

    def __enter__(self) -> "AwaitedClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.wait(self._awaited.close())
        self._loop.close()


class AwaitedHttp:
    """An `AsyncHttpTransport` that is used as an `HttpTransport`; every call on an event loop of its own."""

    def __init__(self, url: str, *, ca_file: str | None = None, token: str | None = None) -> None:
        endpoint = resolve(url, token, ca_file, environment={})
        if endpoint.scheme not in ("http", "https", "unix"):
            raise InvalidOptionError("this transport speaks http://, https:// and unix: only")
        self._inner = AsyncHttpTransport(endpoint)
        self._pool, self._calls = self._inner._pool, self._inner._calls
        self.solve = self.vjp = self.jvp = self.put = self._carry

    @property
    def sent(self) -> int:
        return self._calls.sent

    @property
    def received(self) -> int:
        return self._calls.received

    @property
    def received_arrays(self) -> int:
        return self._calls.received_arrays

    def _carry(self, call: Call, timeout: float | None) -> Any:
        return asyncio.run(self._inner.carry(call, timeout))

    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> list[Holding]:
        return self._drive(lambda: self._calls.find(refs, timeout))

    def release(self, ref: MatrixRef, timeout: float | None) -> None:
        self._drive(lambda: self._calls.release(ref, timeout))

    def info(self, timeout: float | None) -> Any:
        return self._carry(InfoCall(), timeout)

    def stats(self, timeout: float | None) -> Any:
        return self._carry(StatsCall(), timeout)

    def close(self) -> None:
        asyncio.run(self._inner.close())

    def _drive(self, steps: Callable[[], Any]) -> Any:
        return asyncio.run(drive_async(steps(), self._pool.exchange))
