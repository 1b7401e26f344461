"""Makes of a method that blocks one that is awaited: same arguments, same documentation, same body."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, final

import numpy as np

from .._protocol import Exchange, Steps
from .session import AsyncSession

HEAVY_BYTES = 256 << 10
"""Operands of less are brought into canonical form and hashed on the event loop, in about 1 ms at most."""

C = TypeVar("C")
O = TypeVar("O", bound="Owner")  # noqa: E741
P = ParamSpec("P")
T = TypeVar("T")


@final
class HandsBack(Generic[T]):
    """In place of the session that a method of `Client` hands its steps to: gives them back, nothing done."""

    def run(self, steps: Steps[T]) -> Steps[T]:
        """The steps."""
        return steps


class Owner(Protocol):
    """What such a method may use of its object."""

    _session: HandsBack[Any]
    _exchange: Exchange
    _driver: AsyncSession


def awaited(method: Callable[Concatenate[C, P], T], name: str) -> Callable[Concatenate[O, P], Coroutine[Any, Any, T]]:
    """The same method for an object whose calls are awaited.

    Args:
        method: its body hands steps to `self._session.run` and returns what that returns; of `self` it uses
            `_session` and `_exchange` alone, and what else an object of both classes has.
        name: of the class that it is for.
    """

    @wraps(method)
    async def call(self: O, /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = cast("Steps[T]", method(cast("Any", self), *args, **kwargs))
        heavy = sum(map(weight, (*args, *kwargs.values()))) >= HEAVY_BYTES
        return await self._driver.run(steps, heavy=heavy)

    call.__qualname__ = f"{name}.{method.__name__}"
    return call


def weight(operand: object) -> int:
    """About how many bytes an operand has, as far as that can be seen without looking into it."""
    if isinstance(operand, int | float | complex | str | None):
        return 0
    if isinstance(operand, np.ndarray):
        return operand.nbytes
    if isinstance(operand, list | tuple):
        return 8 * len(operand) ** 2  # rows of a matrix, perhaps
    stored = getattr(operand, "data", None)  # of SciPy's sparse matrices
    if isinstance(stored, np.ndarray):
        return 2 * stored.nbytes
    return HEAVY_BYTES  # structured, or not known here
