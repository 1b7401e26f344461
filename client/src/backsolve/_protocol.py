"""What is sent during one call, and when: by digest first, the data only when it is missed, again when that can help.

Nothing is sent here. A call is a generator that yields what has to be done next, a `Send`, a `Pause` or a `Warn`; it
is given the reply, or thrown the error, and returns the caller's answer. `_session.Session` does these steps and
blocks, `_aio.session.AsyncSession` awaits them.
"""

from collections import OrderedDict
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, final

from ._transports.base import Call, InfoCall, JvpCall, PutCall, SolveCall, SolveReply, StatsCall, VjpCall
from .canonical import PatternMemo
from .errors import (
    BacksolveError,
    DigestMismatchError,
    MatrixChangedError,
    NeedMatrixError,
    NeedValuesError,
    PayloadTooLargeError,
)
from .fingerprint import fresh_ref
from .matrix import Matrix
from .retry import Allowance, Budget, Timeout, Unset
from .types import MatrixRef, ServerInfo

T = TypeVar("T")

_REMEMBERED: Final = 1024
"""Matrices, and patterns, of which is known whether the server has them."""

_UPLOADS_PER_CALL: Final = 4
"""A matrix that is evicted as often as this between its upload and its use does not fit the cache."""


@final
@dataclass(frozen=True, slots=True)
class Send:
    """Send `call`, and give back its reply or throw its error; `left` is its time in seconds, None without a limit."""

    call: Call
    left: float | None


@final
@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for as many seconds."""

    seconds: float


@final
@dataclass(frozen=True, slots=True)
class Warn:
    """Warn the caller: of what was asked for and could not be had."""

    text: str
    category: type[Warning]


Step = Send | Pause | Warn
Steps = Generator[Step, Any, T]
"""A call in progress; what it is given after a `Send` is the reply of the transport's method for that call."""


@final
class Exchange:
    """What a client keeps from call to call, whatever carries them. Thread-safe.

    Args:
        timeout: seconds for each call unless it says otherwise; None waits for ever.
        allowance: what may be repeated to overloaded servers.

    Attributes:
        memo: the patterns it has met last.
        uploads: how many matrices it has sent.
    """

    def __init__(self, timeout: float | None, allowance: Allowance | None = None) -> None:
        self.timeout = timeout
        self._allowance = allowance or Allowance()
        self.memo = PatternMemo()
        self.uploads = 0
        self._met_before = False
        self._news = News()

    def forget_locks(self) -> None:
        """In a forked child: locks may have been held by threads that are not here."""
        self.memo.forget_locks()
        self._allowance.forget_locks()

    def ask(self, call: InfoCall | StatsCall, timeout: Timeout) -> Steps[Any]:
        """A call that is about no matrix."""
        return _persist(call, self._budget(timeout))

    def info(self, timeout: Timeout) -> Steps[ServerInfo]:
        """`Client.info`."""
        return self.ask(InfoCall(), timeout)

    def stats(self, timeout: Timeout) -> Steps[Mapping[str, float]]:
        """`Client.stats`."""
        counters = yield from self.ask(StatsCall(), timeout)
        return {**counters, "uploads": float(self.uploads)}

    def deliver(self, matrix: Matrix, call: SolveCall | VjpCall | JvpCall, timeout: Timeout) -> Steps[Any]:
        """Make a call by digest; when the server lacks the matrix, upload it and call again.

        Where the values on a pattern change from call to call they are not asked for: they go with the call.

        Raises:
            MatrixChangedError: the matrix is needed, and no longer what the call has named.
            BacksolveError: of the last attempt.
        """
        budget = self._budget(timeout)
        if isinstance(call, SolveCall) and self._news.expected(call.ref):
            reply = yield from self._bring(matrix, call, budget)
            if reply is not None:
                return reply
        for _ in range(_UPLOADS_PER_CALL):
            try:
                reply = yield from _persist(call, budget)
            except NeedValuesError:
                self._news.missed(call.ref)
                yield from self._upload(matrix, budget, values_only=True)
            except NeedMatrixError:
                yield from self._upload(matrix, budget, values_only=False)
            else:
                self._met_before = True
                self._news.answered(call.ref)
                return reply
        yield from self._upload(matrix, budget, values_only=False)
        return (yield from _persist(call, budget))

    def _bring(self, matrix: Matrix, call: SolveCall, budget: Budget) -> Steps[SolveReply | None]:
        """Solve with values that come along, since the server will not have them; None: it takes another way."""
        self._met_before = True
        self.uploads += 1
        try:
            reply: SolveReply = yield from _persist(replace(call, values=matrix.values), budget)
        except (NeedMatrixError, NeedValuesError, PayloadTooLargeError):
            # The pattern was evicted, or both together are too much for one call.
            self._news.unfounded(call.ref)
            return None
        except DigestMismatchError as error:
            _explain(error, matrix)
            raise
        if reply.certificate.factor_hit and matrix.base is None:
            self._news.unfounded(call.ref)  # somebody else had sent them; of an update it says nothing but of S
        self._news.answered(call.ref)
        return reply

    def _budget(self, timeout: Timeout) -> Budget:
        seconds = self.timeout if isinstance(timeout, Unset) else timeout
        return Budget(seconds, met_before=self._met_before, allowance=self._allowance)

    def _upload(self, matrix: Matrix, budget: Budget, *, values_only: bool) -> Steps[None]:
        """Send a matrix under the digests it was called by, and first the one that it stands on, if that is missed."""
        self._met_before = True
        for _ in range(_UPLOADS_PER_CALL):
            try:
                yield from self._put(matrix, budget, values_only=values_only)
                return
            except (NeedMatrixError, NeedValuesError) as error:
                below = matrix.base
                if below is None or error.details.get("base") != below.ref.key:
                    below = None
                    if not values_only:
                        raise
                pattern_held = isinstance(error, NeedValuesError)
            # Outside of the clause, so that no frame of the error's own traceback keeps it.
            if below is None:
                values_only = False
            else:
                yield from self._upload(below, budget, values_only=pattern_held)
        yield from self._put(matrix, budget, values_only=False)

    def _put(self, matrix: Matrix, budget: Budget, *, values_only: bool) -> Steps[None]:
        """Send one matrix.

        Raises:
            NeedMatrixError, NeedValuesError: what the other side must have first.
        """
        try:
            yield from _persist(PutCall(matrix.ref, matrix, values_only), budget)
        except DigestMismatchError as error:
            _explain(error, matrix)
            raise
        self.uploads += 1


@final
class News:
    """Which matrices a server will not know: values that were never answered for, where the last such were missed.

    Digests alone tell it, in tables of bounded size. Dict operations are atomic, so no lock is held.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[MatrixRef, None] = OrderedDict()
        self._changing: OrderedDict[bytes, None] = OrderedDict()

    def expected(self, ref: MatrixRef) -> bool:
        """Whether the values are better sent with the call than asked for."""
        return ref.pattern in self._changing and ref not in self._known

    def missed(self, ref: MatrixRef) -> None:
        """The server had the pattern, and not the values."""
        _note(self._changing, ref.pattern)

    def unfounded(self, ref: MatrixRef) -> None:
        """They need not have been sent, or could not be."""
        self._changing.pop(ref.pattern, None)

    def answered(self, ref: MatrixRef) -> None:
        """The server has it."""
        _note(self._known, ref)


def _note(table: OrderedDict[T, None], key: T) -> None:
    table[key] = None
    while len(table) > _REMEMBERED:
        try:
            table.popitem(last=False)
        except KeyError:  # another thread was first
            return


def _explain(error: DigestMismatchError, matrix: Matrix) -> None:
    """Tell a matrix that was written to from one that was spoilt under way.

    Raises:
        MatrixChangedError: it was written to.
    """
    if fresh_ref(matrix) != matrix.ref:
        raise MatrixChangedError(
            "A was modified after the call that used it began: pass a copy, or do not write to it in place"
        ) from error


def _persist(call: Call, budget: Budget) -> Steps[Any]:
    """Send a call until it succeeds or cannot.

    Raises:
        BacksolveError: of the last attempt.
    """
    while True:
        try:
            return (yield Send(call, budget.remaining()))
        except BacksolveError as error:
            pause = budget.pause(error)
            if pause is None:
                # Raised here and not where it was weighed, for the reason that `Progress.fail` gives.
                raise
        yield Pause(pause)
