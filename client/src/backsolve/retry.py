"""How long a call may take, and when repeating it can help."""

import random
import time
from typing import Final, final

from .errors import WIRE, BacksolveError, DeadlineError, InvalidOptionError, UnreachableError

FIRST_CONTACT_SECONDS = 5.0
"""A server that never answered is given up after this long: the address is probably wrong.
One that did answer is expected to come back, and is waited for until the call's deadline."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Unset:
    """The type of `UNSET`: not given, as opposed to None (no limit)."""


UNSET: Final = Unset()
Timeout = float | None | Unset


@final
class Budget:
    """The time of one call, over all its attempts.

    Args:
        timeout: seconds, or None for no limit.
        met_before: whether this server has answered before.

    Raises:
        InvalidOptionError: the timeout is neither.
    """

    def __init__(self, timeout: float | None, *, met_before: bool) -> None:
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise InvalidOptionError("timeout must be a number of seconds above 0, or None for no limit")
        self._started = time.monotonic()
        self._timeout = timeout
        self._met_before = met_before
        self._pauses = 0
        self._single: set[type[BacksolveError]] = set()

    def remaining(self) -> float | None:
        """Seconds left, or None without a limit.

        Raises:
            DeadlineError: none are left.
        """
        if self._timeout is None:
            return None
        left = self._timeout - (time.monotonic() - self._started)
        if left <= 0:
            raise DeadlineError(f"no answer within {self._timeout:g} s: raise timeout=, or try again later")
        return left

    def pause(self, error: BacksolveError) -> float | None:
        """Seconds until the next attempt; None when another attempt cannot help."""
        retry = WIRE[error.code].retry
        if retry == "once" and type(error) not in self._single:
            self._single.add(type(error))
            return 0.0
        if retry != "backoff":
            return None
        # Full jitter: callers that failed together must not come back together.
        ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._pauses)
        pause = max(random.uniform(0.5, 1.0) * ceiling, error.retry_after or 0.0)
        self._pauses += 1
        elapsed = time.monotonic() - self._started
        patience = self._timeout
        if isinstance(error, UnreachableError) and not self._met_before:
            patience = min(FIRST_CONTACT_SECONDS, patience or FIRST_CONTACT_SECONDS)
        return None if patience is not None and elapsed + pause >= patience else pause
