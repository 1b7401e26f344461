"""What carries calls to a data plane while a task awaits the reply."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from .._transports.base import Call
from ..types import Array


class AsyncTransport(ABC):
    """Carries calls to a data plane; the awaiting task may be cancelled, which takes the call back."""

    @abstractmethod
    async def carry(self, call: Call, timeout: float | None) -> object:
        """Make a call; the reply is that of the method of `Transport` for such a call.

        Args:
            call: what is asked.
            timeout: seconds; None waits for ever.

        Raises:
            BacksolveError: what the other side raised, or `UnreachableError` when there is none.
        """

    @property
    def overlaps(self) -> bool:
        """Whether what a call has to do meanwhile is done while the reply is awaited."""
        return False

    async def empty(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        """An array, not initialised; one that is sent without a copy, where the transport has such memory."""
        return np.empty(shape, dtype)

    @abstractmethod
    async def close(self) -> None:
        """Free connections; later calls fail."""
