"""How long a call may take, and when repeating it can help."""

import random
import threading
import time
from collections.abc import Callable
from typing import Final, final

from .errors import (
    WIRE,
    BacksolveError,
    DeadlineError,
    InvalidOptionError,
    QueueFullError,
    RateLimitedError,
    UnreachableError,
)

FIRST_CONTACT_SECONDS = 5.0
"""A server that never answered is given up after this long: the address is probably wrong.
One that did answer is expected to come back, and is waited for until the call's deadline."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0

RETRY_SHARE = 0.2
"""In lasting overload a client repeats at most this share of its calls."""

RETRY_RESERVE = 50.0
"""Repetitions that a client has saved up at most, for overload that passes."""

RETRIES_PER_SECOND = 1.0
"""So often it may repeat in any case: a job that makes one call at a time waits for a busy server, and is no load."""

OVERLOAD = (QueueFullError, RateLimitedError)
"""What a server says that has too much to do; repeating calls to it is what keeps it so."""


class Unset:
    """The type of `UNSET`: not given, as opposed to None (no limit)."""


UNSET: Final = Unset()
Timeout = float | None | Unset


@final
class Allowance:
    """What a client may still repeat to servers that are overloaded: a bucket of tokens. Thread-safe.

    Every call puts `RETRY_SHARE` of a token into it, every second `RETRIES_PER_SECOND`; a repetition takes one.
    Calls that find no server are not counted here: they load none, and wait for it.

    Args:
        clock: seconds that only grow.
        chance: a random number in [0, 1).

    Source: "retry budgets" of Finagle; Brooker, "Exponential backoff and jitter", AWS, 2015 (the full jitter).
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self.clock, self.chance = clock, chance
        self._tokens = RETRY_RESERVE
        self._counted = clock()
        self.forget_locks()

    def forget_locks(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A call is made."""
        with self._lock:
            self._add(RETRY_SHARE)

    def spend(self) -> bool:
        """Whether one more repetition is allowed; if so, it counts."""
        with self._lock:
            now = self.clock()
            self._add(RETRIES_PER_SECOND * (now - self._counted))
            self._counted = now
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True

    def _add(self, tokens: float) -> None:
        self._tokens = min(RETRY_RESERVE, self._tokens + tokens)


@final
class Budget:
    """The time of one call, over all its attempts.

    Args:
        timeout: seconds, or None for no limit.
        met_before: whether this server has answered before.
        allowance: the client's.

    Attributes:
        refused: whether a server had no room for the call, which has waited since.

    Raises:
        InvalidOptionError: the timeout is neither.
    """

    def __init__(self, timeout: float | None, *, met_before: bool, allowance: Allowance) -> None:
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise InvalidOptionError("timeout must be a number of seconds above 0, or None for no limit")
        self._allowance = allowance
        self._started = allowance.clock()
        self._timeout = timeout
        self._met_before = met_before
        self._pauses = 0
        self._single: set[type[BacksolveError]] = set()
        self._failed: BacksolveError | None = None
        self.refused = False
        allowance.earn()

    def remaining(self) -> float | None:
        """Seconds left, or None without a limit.

        Raises:
            DeadlineError: none are left.
            BacksolveError: none are left after a pause that took longer than it was meant to: why there was one.
        """
        if self._timeout is None:
            return None
        left = self._timeout - (self._allowance.clock() - self._started)
        if left <= 0 and self._failed is not None:
            raise self._failed
        if left <= 0:
            raise DeadlineError(f"no answer within {self._timeout:g} s: raise timeout=, or try again later")
        return left

    def once_more(self, error: BacksolveError) -> bool:
        """Whether the same thing is to be sent again at once."""
        if WIRE[error.code].retry != "once" or type(error) in self._single:
            return False
        self._single.add(type(error))
        return True

    def elsewhere(self, error: BacksolveError) -> bool:
        """Whether another replica is to be asked at once."""
        if WIRE[error.code].retry != "backoff":
            return False
        return not isinstance(error, OVERLOAD) or self._allowance.spend()

    def pause(self, error: BacksolveError) -> float | None:
        """Seconds until the next attempt; None when another attempt cannot help, or is not allowed."""
        if WIRE[error.code].retry != "backoff":
            return None
        ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**self._pauses)
        # Full jitter, on top of what the server asks for: callers that failed together must not come back together.
        pause = max(error.retry_after or 0.0, 0.0) + self._allowance.chance() * ceiling
        self._pauses = min(self._pauses + 1, 16)
        elapsed = self._allowance.clock() - self._started
        patience = self._timeout
        if isinstance(error, UnreachableError) and not self._met_before:
            patience = min(FIRST_CONTACT_SECONDS, patience or FIRST_CONTACT_SECONDS)
        if patience is not None and not elapsed + pause < patience:
            return None
        if isinstance(error, OVERLOAD) and not self._allowance.spend():
            error.add_note("It was not sent again: this client has repeated too many calls lately (backsolve.retry).")
            return None
        self._failed = error
        self.refused = self.refused or isinstance(error, OVERLOAD)
        return pause
