"""What is sent during one call, and when: by digest first, the data only when it is missed, again when that can help.

Nothing is sent here. A call is a generator that yields what has to be done next, such as a `Send` or a `Pause`; it
is given the reply, or thrown the error, and returns the caller's answer. `_session.Session` does these steps and
blocks, `_aio.session.AsyncSession` awaits them.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar, final

from ._fleet import Fleet, Replica
from ._surmise import Name, Surmises
from ._transports.base import Call, InfoCall, JvpCall, PutCall, SolveCall, SolveReply, StatsCall, VjpCall
from .canonical import PatternMemo
from .config import Endpoint
from .errors import (
    BacksolveError,
    BusyError,
    DigestMismatchError,
    MatrixChangedError,
    NeedMatrixError,
    NeedValuesError,
    PayloadTooLargeError,
    UnreachableError,
)
from .fingerprint import fresh_ref
from .matrix import Matrix
from .retry import OVERLOAD, Allowance, Budget, Timeout, Unset
from .types import ReplicaState, ServerInfo

T = TypeVar("T")

_UPLOADS_PER_CALL: Final = 4
"""A matrix that is evicted as often as this between its upload and its use does not fit the cache."""


@final
@dataclass(frozen=True, slots=True)
class Send:
    """Send `call`, and give back its reply or throw its error.

    Attributes:
        call: what is sent.
        left: its time in seconds; None without a limit.
        to: whom it is sent to.
    """

    call: Call
    left: float | None
    to: Replica


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


@final
@dataclass(frozen=True, slots=True)
class LookUp:
    """Give back the addresses of a name, as texts; throw `UnreachableError` when it has none."""

    endpoint: Endpoint


@final
@dataclass(frozen=True, slots=True)
class Dismiss:
    """Close what carries calls to a replica that is gone."""

    replica: Replica


Step = Send | Pause | Warn | LookUp | Dismiss
Steps = Generator[Step, Any, T]
"""A call in progress; what it is given after a `Send` is the reply of the transport's method for that call."""


@final
class Exchange:
    """What a client keeps from call to call, whatever carries them. Thread-safe.

    Args:
        endpoints: of the replicas.
        timeout: seconds for each call unless it says otherwise; None waits for ever.
        allowance: what may be repeated to overloaded servers.

    Attributes:
        fleet: the replicas.
        memo: the patterns it has met last.
        uploads: how many matrices it has sent.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], timeout: float | None, allowance: Allowance | None = None
    ) -> None:
        self.timeout = timeout
        self._allowance = allowance or Allowance()
        self.fleet = Fleet(endpoints, self._allowance.clock, self._allowance.chance)
        self.memo = PatternMemo()
        self._surmises = Surmises()
        self.uploads = 0
        self._met_before = False

    def forget_locks(self) -> None:
        """In a forked child: locks may have been held by threads that are not here."""
        self.memo.forget_locks()
        self._allowance.forget_locks()
        self.fleet.forget_locks()

    def info(self, timeout: Timeout) -> Steps[ServerInfo]:
        """`Client.info`."""
        budget = self._budget(timeout)
        found: ServerInfo = yield from self._somewhere(None, lambda to: _persist(InfoCall(), budget, to), budget)
        return found

    def stats(self, timeout: Timeout) -> Steps[Mapping[str, float]]:
        """`Client.stats`."""
        budget = self._budget(timeout)
        if len(self.fleet.members) == 1:
            ask = self._somewhere(None, lambda to: _persist(StatsCall(), budget, to), budget)
            return {**(yield from ask), "uploads": float(self.uploads)}
        states = yield from self.replicas(timeout)
        answers = [state.stats for state in states if state.stats is not None]
        if not answers:
            raise UnreachableError("none of the replicas answers: are they started?")
        names = dict.fromkeys(name for stats in answers for name in stats)
        sums = {name: sum(stats.get(name, 0.0) for stats in answers) for name in names}
        return {**sums, "uploads": float(self.uploads)}

    def replicas(self, timeout: Timeout) -> Steps[tuple[ReplicaState, ...]]:
        """`Client.replicas`."""
        budget = self._budget(timeout)
        yield from self._refresh()
        states = []
        for replica in self.fleet.members:
            try:
                stats: Mapping[str, float] | None = yield Send(StatsCall(), budget.remaining(), replica)
            except (UnreachableError, BusyError):
                stats = None
            counts = replica.in_flight, replica.calls, replica.spilled, replica.uploads
            states.append(ReplicaState(replica.endpoint.url, *counts, stats))
        return tuple(states)

    def name(self, matrix: Matrix, kind: str) -> Name:
        """By which digests a call of this kind names its matrix."""
        members = self.fleet.members
        if not any(each.carrier is not None and each.carrier.overlaps for each in members):
            return Name(matrix)
        takers = [each.news for each in members if kind == "solve" and not each.news.wary]
        return self._surmises.name(matrix, kind, lambda pattern: any(news.changing(pattern) for news in takers))

    def deliver(self, matrix: Matrix, call: SolveCall | VjpCall | JvpCall, timeout: Timeout) -> Steps[Any]:
        """Make a call by digest; when the server lacks the matrix, upload it and call again.

        Of several replicas it goes to the one that the pattern belongs to; if that cannot take it now, to the next.

        Raises:
            MatrixChangedError: the matrix is needed, and no longer what the call has named.
            BacksolveError: of the last attempt.
        """
        budget = self._budget(timeout)
        key = (call.ref if matrix.base is None else matrix.base.ref).route_key.encode()
        if call.meanwhile is not None:
            if isinstance(call, SolveCall) and call.ref.is_unnamed:
                bring = partial(self._bring_unnamed, matrix, call, budget)
                reply = yield from self._somewhere(key, bring, budget)
            else:
                reply = yield from self._surmised(matrix, call, key, budget)
            if reply is not None:
                return reply
            call = replace(call, ref=matrix.ref, meanwhile=None)
        return (yield from self._somewhere(key, lambda to: self._deliver(matrix, call, budget, to), budget))

    def _surmised(
        self, matrix: Matrix, call: SolveCall | VjpCall | JvpCall, key: bytes, budget: Budget
    ) -> Steps[Any | None]:
        """Make a call whose digests are surmised; None: they are others, or the matrix has to be sent.

        Raises:
            BacksolveError: they are right, and the call has failed.
        """
        assert call.meanwhile is not None
        reply = None
        try:
            reply = yield from self._somewhere(key, lambda to: _persist(call, budget, to), budget)
        except (NeedMatrixError, NeedValuesError):
            pass
        except BacksolveError:
            call.meanwhile()
            if matrix.ref == call.ref:
                raise
        call.meanwhile()
        return reply if matrix.ref == call.ref else None

    def _somewhere(self, key: bytes | None, attempt: Callable[[Replica], Steps[T]], budget: Budget) -> Steps[T]:
        """Make attempts at one replica after the other, with a pause when none is left, until one succeeds.

        Raises:
            BacksolveError: of the last attempt.
        """
        tried: list[Replica] = []
        while True:
            try:
                yield from self._refresh()
                with self.fleet.visit(key, tried) as replica:
                    tried.append(replica)
                    result = yield from attempt(replica)
            except BacksolveError as error:
                if self.fleet.others(tried) and budget.elsewhere(error):
                    continue
                pause = budget.pause(error)
                if pause is None:
                    # Raised here and not where it was weighed, for the reason that `Progress.fail` gives.
                    raise
            else:
                self._met_before = True
                return result
            tried = []
            yield Pause(pause)

    def _refresh(self) -> Steps[None]:
        """Look names up that are due."""
        endpoint = self.fleet.to_look_up()
        if endpoint is None:
            return
        try:
            addresses = yield LookUp(endpoint)
        except UnreachableError:
            if not self.fleet.members:
                raise
            return
        for gone in self.fleet.found(addresses):
            yield Dismiss(gone)

    def _deliver(self, matrix: Matrix, call: SolveCall | VjpCall | JvpCall, budget: Budget, to: Replica) -> Steps[Any]:
        """Make a call at one replica, with all that it lacks.

        Where the values on a pattern change from call to call they are not asked for: they go with the call. A replica
        that was full lately is asked whether it has room before it is sent them, unless this call has waited its turn.
        """
        expects_room = budget.refused or not to.news.wary
        if isinstance(call, SolveCall) and expects_room and to.news.expected(call.ref):
            reply = yield from self._bring(matrix, call, budget, to)
            if reply is not None:
                return reply
        for _ in range(_UPLOADS_PER_CALL):
            try:
                reply = yield from _persist(call, budget, to)
            except NeedValuesError:
                to.news.missed(call.ref)
                if to.news.wary and isinstance(call, SolveCall):
                    reply = yield from self._bring(matrix, call, budget, to)
                    if reply is not None:
                        return reply
                yield from self._upload(matrix, budget, to, values_only=True)
            except NeedMatrixError:
                yield from self._upload(matrix, budget, to, values_only=False)
            else:
                to.news.answered(call.ref)
                return reply
        yield from self._upload(matrix, budget, to, values_only=False)
        return (yield from _persist(call, budget, to))

    def _bring(self, matrix: Matrix, call: SolveCall, budget: Budget, to: Replica) -> Steps[SolveReply | None]:
        """Solve with values that come along, since the server will not have them; None: it takes another way."""
        self._met_before = True
        self._sent(to)
        try:
            reply: SolveReply = yield from _persist(replace(call, values=matrix.values), budget, to)
        except (NeedMatrixError, NeedValuesError, PayloadTooLargeError):
            # The pattern was evicted, or both together are too much for one call.
            to.news.unfounded(call.ref)
            return None
        except DigestMismatchError as error:
            _explain(error, matrix)
            raise
        if reply.certificate.factor_hit and matrix.base is None:
            to.news.unfounded(call.ref)  # somebody else had sent them; of an update it says nothing but of S
        to.news.answered(call.ref)
        return reply

    def _bring_unnamed(self, matrix: Matrix, call: SolveCall, budget: Budget, to: Replica) -> Steps[SolveReply | None]:
        """Solve with values that come along and that nobody has hashed yet; None: it takes another way.

        Both sides hash them at the same time. Where they do not agree, A was written to meanwhile or spoilt under way:
        the way on which the digests go first finds out.
        """
        assert call.meanwhile is not None
        if not to.news.changing(call.ref.pattern):
            return None
        self._met_before = True
        self._sent(to)
        try:
            reply: SolveReply = yield from _persist(replace(call, values=matrix.values), budget, to)
        except (NeedMatrixError, NeedValuesError, PayloadTooLargeError, DigestMismatchError):
            to.news.unfounded(call.ref)  # as above, or a server that takes no unnamed values
            return None
        call.meanwhile()
        if reply.ref != matrix.ref:
            return None
        if reply.certificate.factor_hit:
            to.news.unfounded(matrix.ref)
        to.news.answered(matrix.ref)
        return reply

    def _budget(self, timeout: Timeout) -> Budget:
        seconds = self.timeout if isinstance(timeout, Unset) else timeout
        return Budget(seconds, met_before=self._met_before, allowance=self._allowance)

    def _upload(self, matrix: Matrix, budget: Budget, to: Replica, *, values_only: bool) -> Steps[None]:
        """Send a matrix under the digests it was called by, and first the one that it stands on, if that is missed."""
        self._met_before = True
        for _ in range(_UPLOADS_PER_CALL):
            try:
                yield from self._put(matrix, budget, to, values_only=values_only)
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
                yield from self._upload(below, budget, to, values_only=pattern_held)
        yield from self._put(matrix, budget, to, values_only=False)

    def _put(self, matrix: Matrix, budget: Budget, to: Replica, *, values_only: bool) -> Steps[None]:
        """Send one matrix.

        Raises:
            NeedMatrixError, NeedValuesError: what the other side must have first.
        """
        try:
            yield from _persist(PutCall(matrix.ref, matrix, values_only), budget, to)
        except DigestMismatchError as error:
            _explain(error, matrix)
            raise
        self._sent(to)

    def _sent(self, to: Replica) -> None:
        """Count a matrix that was sent."""
        self.uploads += 1
        to.uploads += 1


def _explain(error: DigestMismatchError, matrix: Matrix) -> None:
    """Tell a matrix that was written to from one that was spoilt under way.

    Raises:
        MatrixChangedError: it was written to.
    """
    if fresh_ref(matrix) != matrix.ref:
        raise MatrixChangedError(
            "A was modified after the call that used it began: pass a copy, or do not write to it in place"
        ) from error


def _persist(call: Call, budget: Budget, to: Replica) -> Steps[Any]:
    """Send a call to one replica, and once more where that can help there and then.

    Raises:
        BacksolveError: of the last attempt.
    """
    if budget.refused and not isinstance(call, InfoCall | StatsCall):
        call = replace(call, repeated=True)
    while True:
        try:
            return (yield Send(call, budget.remaining(), to))
        except BacksolveError as error:
            if isinstance(error, OVERLOAD):
                to.news.refused()
            if not budget.once_more(error):
                raise
