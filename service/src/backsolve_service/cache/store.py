"""The cache: pattern → what solvers prepared from it → matrices → references to their factors.

One lock guards the whole hierarchy and is held for dictionary work only: builds run on workers,
and factors are freed on them, without it.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import setitem
from typing import Any, Generic, TypeVar, cast, final

from backsolve.errors import (
    BacksolveError,
    NeedMatrixError,
    NonfiniteInputError,
    NotPositiveDefiniteError,
    SingularMatrixError,
)
from backsolve.matrix import Matrix
from backsolve.pattern import AnyPattern
from backsolve.types import Holding, MatrixRef

from ..context import CallContext
from ..engine.base import FactorSpec, Symbolic
from ..engine.device import CPU
from ..engine.operand import Operand
from ..engine.structure import PatternFacts, Structure
from ..observer import Level, Lookup, Observer, Silent
from .entries import FactorEntry, MatrixEntry, PatternEntry, R
from .flight import Flight, Flights, Made, Start, fresh
from .shelf import Shelf

T = TypeVar("T")
E = TypeVar("E", MatrixEntry[Any], PatternEntry[Any])
Pinnable = MatrixEntry[Any] | PatternEntry[Any]

DETERMINISTIC = (SingularMatrixError, NotPositiveDefiniteError, NonfiniteInputError)
"""Failures that the same values meet every time: they are remembered instead of repeated."""

_UPLOAD_SECONDS = 1e-3
_UPLOAD_BYTES_PER_SECOND = 1e9
"""What sending a matrix again is taken to cost: a round trip, and loopback's speed at bulk."""


@final
@dataclass(frozen=True, slots=True)
class InUse:
    """What calls under way hold of the cache; both are 0 when there are none.

    Attributes:
        reserved: bytes set aside for what is being made.
        pinned: patterns and matrices that must stay.
    """

    reserved: int
    pinned: int


@final
@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What the cache answered.

    Attributes:
        value: the symbolic, or the reference to the factor.
        lookup: "hit"; "miss": built for this caller; "coalesced": built for another one meanwhile.
        seconds_queued: the build's wait for a worker; 0 for a hit.
        seconds_run: the build itself; 0 for a hit.
    """

    value: T
    lookup: Lookup
    seconds_queued: float = 0.0
    seconds_run: float = 0.0


@final
class Pin(Generic[T]):
    """An entry that stays for as long as a `with` block lasts.

    Args:
        pin: pins an entry, and gives the one that is live.
        unpin: ends that.
        entry: to be pinned.
    """

    __slots__ = ("_entry", "_pin", "_unpin")

    def __init__(self, pin: Callable[[T], T], unpin: Callable[[T], None], entry: T) -> None:
        self._pin, self._unpin, self._entry = pin, unpin, entry

    def __enter__(self) -> T:
        self._entry = self._pin(self._entry)
        return self._entry

    def __exit__(self, *_: object) -> None:
        self._unpin(self._entry)


def _stay(ref: object, out: bool) -> None:
    """The `move` of a cache whose factors all lie on the host."""


@final
class FactorCache(Generic[R]):
    """Everything that may be asked for again, within a budget of bytes.

    Args:
        budget_bytes: limit on factors, stored matrices, patterns, symbolics and reservations.
        free: gives a factor back to its worker; returns at once, never raises.
        observer: hears of lookups and evictions.
        device_bytes: limit on the bytes of factors that lie on a device, beside the budget of the host.
        move: has the numbers of a factor moved to the host (True), or back to its device; as `free`.

    A call takes an entry with `pin`, so that nothing it uses is evicted meanwhile::

        with cache.pin(entry) as entry:
            found = cache.get_factor(entry, spec, lambda: scheduler.order_build(spec, job), context)
            yield from scheduler.solving(found.value, ...)
    """

    def __init__(
        self,
        budget_bytes: int,
        free: Callable[[R], None],
        observer: Observer | None = None,
        *,
        device_bytes: int = 0,
        move: Callable[[R, bool], None] = _stay,
    ) -> None:
        self._free = free
        self._move = move
        self._lock = threading.RLock()
        self._flights = Flights(self._lock)
        self._shelf: Shelf[R] = Shelf(budget_bytes, observer or Silent(), device_bytes)
        self._ledger = self._shelf.ledger

    # Looking up

    def pattern(self, tenant: str, digest: bytes) -> PatternEntry[R] | None:
        """The entry of a pattern, if this tenant has it here."""
        with self._lock:
            entry = self._shelf.pattern(tenant, digest)
            self._shelf.looked_up("pattern", entry)
            return entry

    def matrix(self, tenant: str, ref: MatrixRef) -> MatrixEntry[R] | None:
        """The entry of a matrix, if this tenant has it here."""
        with self._lock:
            entry = self._shelf.matrix(tenant, ref)
            self._shelf.looked_up("matrix", entry)
            return entry

    def at_hand(self, tenant: str, ref: MatrixRef) -> MatrixEntry[R] | None:
        """The entry of a matrix; counts neither as a lookup nor as a use."""
        with self._lock:
            return self._shelf.matrix(tenant, ref)

    def pattern_at_hand(self, tenant: str, digest: bytes) -> AnyPattern | None:
        """A pattern; counts neither as a lookup nor as a use."""
        with self._lock:
            entry = self._shelf.pattern(tenant, digest)
            return None if entry is None else entry.pattern

    def factor(self, entry: MatrixEntry[R], spec: FactorSpec) -> R | None:
        """The reference to a factor that is there already; use it only while `entry` is pinned.

        Only what is found counts as a lookup: who finds nothing goes on to `get_factor`.
        """
        with self._lock:
            held = entry.factors.get(spec)
            if held is None:
                return None
            self._shelf.looked_up("factor", held)
            if not held.away:
                return held.ref
        with self._changing():
            if held.live and held.away:
                self._shelf.bring_back(held)
        return held.ref

    def holding(self, tenant: str, ref: MatrixRef) -> Holding:
        """How much of a matrix is here; counts neither as a lookup nor as a use."""
        with self._lock:
            if self._shelf.pattern(tenant, ref.pattern) is None:
                return Holding.ABSENT
            entry = self._shelf.matrix(tenant, ref)
            if entry is None:
                return Holding.PATTERN
            return Holding.FACTOR if entry.factors else Holding.VALUES

    # Storing

    def add_pattern(
        self,
        tenant: str,
        digest: bytes,
        pattern: AnyPattern,
        facts: PatternFacts,
        seconds: float = 0.0,
        base: MatrixEntry[R] | None = None,
    ) -> PatternEntry[R]:
        """Keep a pattern; if it is there already, the first one stays and is returned.

        Args:
            tenant: whose it is.
            digest: as computed here from `pattern`, never the client's word.
            pattern: the arrays.
            facts: of the pattern.
            seconds: what it cost beside its transport (hashing, inspection).
            base: the matrix that updates on this pattern stand on; it stays as long as they do.

        Raises:
            MemoryBudgetError: there is no room for it.
        """
        with self._changing():
            return self._shelf.shelve_pattern(
                PatternEntry(tenant, digest, pattern, facts, _resend(pattern.nbytes, seconds), base)
            )

    def add_matrix(
        self, pattern: PatternEntry[R], values: bytes, operand: Operand, structure: Structure, seconds: float = 0.0
    ) -> MatrixEntry[R]:
        """Keep the values of a matrix; if they are there already, the first ones stay.

        Args:
            pattern: the entry of its pattern; taken back in if it was evicted meanwhile.
            values: digest as computed here from the values, never the client's word.
            operand: the values.
            structure: of the values.
            seconds: what they cost beside their transport.

        Raises:
            MemoryBudgetError: there is no room for it.
        """
        if operand.matrix.pattern is not pattern.pattern:
            # Equal by digest: share the stored arrays, and let the other copy go.
            below = None if pattern.base is None else pattern.base.operand
            matrix = Matrix(pattern.pattern, operand.matrix.values, None if below is None else below.matrix)
            operand = Operand(matrix, below)
        ref = MatrixRef(pattern.digest, values)
        with self._changing():
            return self._shelf.shelve_matrix(
                MatrixEntry(pattern, ref, operand, structure, _resend(operand.nbytes, seconds))
            )

    # Building

    def get_symbolic(
        self, entry: PatternEntry[R], name: Hashable, start: Start[Symbolic], context: CallContext
    ) -> Found[Symbolic]:
        """What a method prepares from a pattern: kept, or built once for all who wait for it.

        Args:
            entry: pinned by the caller, itself or through a matrix on it.
            name: of the method, and whatever else tells its symbolics apart.
            start: orders the analysis.
            context: ends this caller's wait, never the analysis.

        Raises:
            SingularMatrixError: no values on the pattern are invertible (remembered).
            DeadlineError, CancelledError: of `context`.
            MemoryBudgetError: there is no room for it.
        """
        with self._changing():
            entry = self._shelf.shelve_pattern(entry)
            held = entry.symbolics.get(name)
            if held is not None:
                self._ledger.looked_up("symbolic", "hit")
                return Found(held, "hit")
            self._refuse_again("symbolic", entry.failures.get(name))
            flight, first = self._board("symbolic", (entry, name), entry)

        def keep(made: Made[Symbolic]) -> None:
            self._shelf.make_room("analysis", made.value.nbytes)
            entry.symbolics[name] = made.value
            entry.cost += made.seconds_run
            entry.nbytes += made.value.nbytes
            self._ledger.add("symbolic", made.value.nbytes)

        if first:
            self._flights.launch(
                flight, start, lambda done: self._land(done, entry, keep, partial(setitem, entry.failures, name))
            )
        return self._await(flight, first, context)

    def get_factor(
        self,
        entry: MatrixEntry[R],
        spec: FactorSpec,
        start: Start[R],
        context: CallContext,
        predicted_bytes: int = 0,
        base: tuple[MatrixEntry[R], FactorSpec] | None = None,
    ) -> Found[R]:
        """The reference to a factor: kept, or built once for all who wait for it.

        Args:
            entry: pinned by the caller until its solve is over.
            spec: what the factor is built with.
            start: orders the factorization.
            context: ends this caller's wait, never the factorization.
            predicted_bytes: set aside before the factorization begins.
            base: of an update, whose factor it is built on and solves with: that one stays as long as it does.

        Raises:
            SingularMatrixError, NotPositiveDefiniteError, NonfiniteInputError: of the values;
                remembered, so that the second caller is told at once.
            DeadlineError, CancelledError: of `context`.
            MemoryBudgetError, DeviceOutOfMemoryError: there is no room for it.
        """
        on_device = spec.device != CPU
        with self._changing():
            entry = self._shelf.shelve_matrix(entry)
            held = entry.factors.get(spec)
            if held is not None:
                self._shelf.looked_up("factor", held)
                if held.away:
                    self._shelf.bring_back(held)
                return Found(held.ref, "hit")
            self._refuse_again("factor", entry.failures.get(spec))
            key = (entry, spec)
            if key not in self._flights:
                if on_device:
                    self._shelf.make_device_room(predicted_bytes)
                else:
                    # What this caller alone pins, it pins for the factor that it asks for.
                    self._shelf.make_room("factor", predicted_bytes, self._shelf.spare(entry, 1))
                self._ledger.reserve(predicted_bytes, on_device=on_device)
            flight, first = self._board("factor", key, entry)

        def keep(made: Made[R]) -> None:
            standing = None if base is None else self._standing(made.value, *base)
            self._shelf.shelve_factor(entry, spec, made, standing, flight.waiters + 1)

        def land(done: Future[Made[R]]) -> None:
            with self._lock:
                self._ledger.reserve(-predicted_bytes, on_device=on_device)
            self._land(done, entry, keep, partial(setitem, entry.failures, spec))

        if first:
            self._flights.launch(flight, start, land)
        return self._await(flight, first, context)

    # Room

    def pin(self, entry: E) -> "Pin[E]":
        """Keep a matrix with its factors, or a pattern, from eviction while the `with` block runs.

        The block gets the live entry: `entry` itself, taken back in if it was evicted before, or the one
        that has its place by now.

        Raises:
            MemoryBudgetError: it was evicted and there is no more room for it.
        """
        return Pin(self._pinned, self._unpin, entry)

    def _pinned(self, entry: E) -> E:
        with self._lock:
            if entry.live:
                self._shelf.pin(entry)
                return entry
        with self._changing():
            live: Any = (
                self._shelf.shelve_matrix(entry)
                if isinstance(entry, MatrixEntry)
                else self._shelf.shelve_pattern(entry)
            )
            self._shelf.pin(live)
        return cast("E", live)

    def _unpin(self, entry: Pinnable) -> None:
        with self._lock:
            self._shelf.unpin(entry)

    @contextmanager
    def reserve(self, nbytes: int) -> Iterator[None]:
        """Keep `nbytes` of the budget free of other entries while the block runs.

        Raises:
            MemoryBudgetError: not even evicting everything unused would make the room.
        """
        with self._changing():
            self._shelf.make_room("reservation", nbytes)
            self._ledger.reserved += nbytes
        try:
            yield
        finally:
            with self._lock:
                self._ledger.reserved -= nbytes

    def vacate_device(self) -> bool:
        """Take every factor that is not in use from the device.

        Returns:
            Whether there was one.
        """
        with self._changing():
            taken = False
            while self._shelf.vacate():
                taken = True
            return taken

    def release(self, tenant: str, ref: MatrixRef) -> bool:
        """A client is done with a matrix: it goes first when room is needed, unless it is used again.

        Returns:
            Whether it was here.
        """
        with self._lock:
            entry = self._shelf.matrix(tenant, ref)
            if entry is None:
                return False
            self._shelf.release(entry)
            return True

    def forget(self, lost: Callable[[R], bool]) -> int:
        """Drop every factor that is lost, in use or not: each will be built again when it is asked for.

        Args:
            lost: whether a factor is no more.

        Returns:
            How many there were.
        """
        with self._lock:
            return self._shelf.forget(lost)

    def clear(self) -> None:
        """Drop everything that is not in use."""
        with self._changing():
            while self._shelf.evict("cleared"):
                pass

    # Figures

    @property
    def budget_bytes(self) -> int:
        """The limit."""
        return self._ledger.budget_bytes

    def bytes(self) -> Mapping[Level, int]:
        """Bytes held by level, without reservations."""
        with self._lock:
            return dict(self._ledger.bytes)

    def device_bytes(self) -> int:
        """Bytes of factors on the device; `bytes` counts those of the host."""
        with self._lock:
            return self._ledger.device_held

    def in_use(self) -> InUse:
        """What calls under way hold."""
        with self._lock:
            return InUse(self._ledger.reserved + self._ledger.device_reserved, self._shelf.pinned)

    def entries(self) -> Mapping[Level, int]:
        """Number of things held by level."""
        with self._lock:
            return dict(self._ledger.entries)

    def lookups(self) -> Mapping[tuple[Level, Lookup], int]:
        """How often each level was asked, by result."""
        with self._lock:
            return dict(self._ledger.lookups)

    def evictions(self) -> Mapping[str, int]:
        """How many entries were dropped, by reason."""
        with self._lock:
            return dict(self._ledger.evictions)

    # Inside

    def _standing(self, made: R, matrix: MatrixEntry[R], spec: FactorSpec) -> FactorEntry[R]:
        """The factor that an update was built on. It was pinned, so it can only have been lost, and `made` with it."""
        held = matrix.factors.get(spec)
        if held is None:
            self._shelf.unfreed.append(made)
            raise NeedMatrixError("the factor that the update stands on is lost: ask again")
        return held

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock, and free what was evicted under it once it is let go."""
        try:
            with self._lock:
                yield
        finally:
            with self._lock:
                unfreed, self._shelf.unfreed = self._shelf.unfreed, []
                unmoved, self._shelf.unmoved = self._shelf.unmoved, []
            for ref, out in unmoved:
                self._move(ref, out)
            for ref in unfreed:
                self._free(ref)

    def _board(self, level: Level, key: Hashable, entry: Pinnable) -> tuple[Flight[Any], bool]:
        """Join or found a flight; a new one pins what it builds for until it has landed."""
        flight, first = self._flights.board(key)
        if first:
            self._shelf.pin(entry)
        self._ledger.looked_up(level, "miss" if first else "coalesced")
        return flight, first

    def _refuse_again(self, level: Level, failure: BacksolveError | None) -> None:
        """Tell the caller at once what the same values met before."""
        if failure is not None:
            self._ledger.looked_up(level, "hit")
            raise fresh(failure)

    def _land(
        self,
        done: Future[Made[T]],
        entry: Pinnable,
        keep: Callable[[Made[T]], None],
        failures: Callable[[BacksolveError], None],
    ) -> None:
        """Keep what a build gave, or remember why it cannot give anything."""
        try:
            with self._changing():
                if done.cancelled():
                    return
                error = done.exception()
                if error is None:
                    keep(done.result())
                elif isinstance(error, DETERMINISTIC):
                    failures(fresh(error))
        finally:
            with self._lock:
                self._shelf.unpin(entry)

    def _await(self, flight: Flight[T], first: bool, context: CallContext) -> Found[T]:
        made = self._flights.wait(flight, context)
        return Found(made.value, "miss" if first else "coalesced", made.seconds_queued, made.seconds_run)


def _resend(nbytes: int, seconds: float) -> float:
    """Seconds to have `nbytes` here again and ready."""
    return seconds + _UPLOAD_SECONDS + nbytes / _UPLOAD_BYTES_PER_SECOND
