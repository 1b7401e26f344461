"""The hierarchy of entries and the room they share: the part of the cache that needs its lock."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Generic, final

from backsolve.errors import DeviceOutOfMemoryError, MemoryBudgetError
from backsolve.types import MatrixRef

from ..engine.base import FactorSpec
from ..observer import Level, Lookup, Observer
from .bygones import Bygones
from .entries import Entry, FactorEntry, MatrixEntry, PatternEntry, R
from .eviction import EvictionQueue, priority, reason
from .flight import Made
from .ledger import Ledger


@final
class Shelf(Generic[R]):
    """Every entry, and which of them go when room is needed. Not thread-safe.

    Invariant: held + reserved bytes never exceed the budget.

    Attributes:
        unfreed: references of evicted factors; the cache frees them after it let its lock go.
        unmoved: likewise of factors whose numbers go to the host (True) or back to the device.
    """

    def __init__(self, budget_bytes: int, observer: Observer, device_bytes: int = 0) -> None:
        self.ledger = Ledger(budget_bytes, observer, device_bytes)
        self.unfreed: list[R] = []
        self.unmoved: list[tuple[R, bool]] = []
        self._queue = EvictionQueue()
        self._bygones: Bygones[R] = Bygones(budget_bytes)
        self._patterns: dict[tuple[str, bytes], PatternEntry[R]] = {}
        self._pinned: set[MatrixEntry[R] | PatternEntry[R]] = set()

    def pattern(self, tenant: str, digest: bytes) -> PatternEntry[R] | None:
        """The entry of a pattern; not a use."""
        return self._patterns.get((tenant, digest))

    def matrix(self, tenant: str, ref: MatrixRef) -> MatrixEntry[R] | None:
        """The entry of a matrix; not a use."""
        pattern = self._patterns.get((tenant, ref.pattern))
        return None if pattern is None else pattern.matrices.get(ref.values)

    @property
    def pinned(self) -> int:
        """Patterns and matrices in use."""
        return len(self._pinned)

    def looked_up(self, level: Level, entry: Entry | None) -> None:
        """Count a lookup, and a use of what was found."""
        result: Lookup = "miss" if entry is None else "hit"
        self.ledger.looked_up(level, result)
        if entry is None:
            return
        self._queue.touch(entry)
        matrix = entry.matrix if isinstance(entry, FactorEntry) else entry
        if isinstance(matrix, MatrixEntry):
            if matrix.newer_came:
                matrix.recurring = matrix.pattern.recurs = True
            self._queue.touch(matrix.pattern)

    def shelve_pattern(self, entry: PatternEntry[R]) -> PatternEntry[R]:
        """Take a pattern in; if its place is taken, the entry that is there stays.

        That of updates brings the matrix that they stand on.

        Raises:
            MemoryBudgetError: there is no room for it.
        """
        there = self._patterns.get((entry.tenant, entry.digest))
        if there is not None:
            return there
        if entry.base is None:
            self._take_in(entry)
        else:
            entry.base = self.shelve_matrix(entry.base)
            with self._held(entry.base):
                self._take_in(entry)
            entry.base.updates[entry.digest] = entry
        self._patterns[entry.tenant, entry.digest] = entry
        return entry

    def shelve_matrix(self, entry: MatrixEntry[R]) -> MatrixEntry[R]:
        """Take a matrix in, with its pattern; if its place is taken, the entry there stays.

        Raises:
            MemoryBudgetError: there is no room for it.
        """
        if entry.live:
            return entry
        pattern = self.shelve_pattern(entry.pattern)
        there = pattern.matrices.get(entry.ref.values)
        if there is not None:
            return there
        with self._held(pattern):
            self._take_in(entry)
        entry.pattern = pattern
        pattern.matrices[entry.ref.values] = entry
        if self._bygones.returned(entry):
            pattern.recurs = True
        self._supersede(pattern.newest)
        pattern.newest = entry
        return entry

    def shelve_factor(
        self,
        matrix: MatrixEntry[R],
        spec: FactorSpec,
        made: Made[R],
        base: FactorEntry[R] | None = None,
        pins: int = 0,
    ) -> None:
        """Take a factor in; the matrix is pinned.

        Args:
            matrix, spec, made: what it is of, and what was made.
            base: of an update, the factor that it solves with.
            pins: how many of the matrix's pins are of calls that wait for this factor, the build's own among them.

        Raises:
            MemoryBudgetError, DeviceOutOfMemoryError: there is no room for it; it is freed.
        """
        entry = FactorEntry(matrix, spec, made.value, made.seconds_run, base)
        try:
            self.make_device_room(entry.device_nbytes)
            self._take_in(entry, self.spare(matrix, pins))
        except (MemoryBudgetError, DeviceOutOfMemoryError):
            self.unfreed.append(made.value)
            raise
        matrix.factors[spec] = entry
        if base is not None:
            base.updates.add(entry)

    def release(self, matrix: MatrixEntry[R]) -> None:
        """Let a matrix go first, unless it is used again."""
        for entry in (matrix, *matrix.factors.values()):
            entry.released = True
            self._queue.offer(entry)

    def pin(self, entry: MatrixEntry[R] | PatternEntry[R]) -> None:
        """Begin a use; of an update, of what it stands on as well."""
        entry.pins += 1
        self._pinned.add(entry)
        base = _base(entry)
        if base is not None:
            self.pin(base)

    def unpin(self, entry: MatrixEntry[R] | PatternEntry[R]) -> None:
        """End a use; with the last one the entry may be evicted again."""
        base = _base(entry)
        if base is not None:
            self.unpin(base)
        entry.pins -= 1
        if entry.pins:
            return
        self._pinned.discard(entry)
        self._queue.offer(entry)
        if isinstance(entry, MatrixEntry):
            for factor in entry.factors.values():
                self._queue.offer(factor)

    def spare(self, matrix: MatrixEntry[R], pins: int) -> list[FactorEntry[R]]:
        """Factors of a matrix in use that nobody uses, the least missed first.

        Args:
            matrix: all of its factors count as in use while it is, unless that is known better:
            pins: so many of its pins are of calls that wait for a factor which is not there yet.
        """
        if not 0 < matrix.pins <= pins:
            return []
        return sorted((factor for factor in matrix.factors.values() if not factor.updates), key=priority)

    def make_room(self, what: str, nbytes: int, spare: Sequence[FactorEntry[R]] = ()) -> None:
        """Evict until `nbytes` more fit.

        Args:
            what: it is for, for the message.
            nbytes: how many.
            spare: factors that may go, if need be, although their matrix is in use.

        Raises:
            MemoryBudgetError: what is in use leaves too little room; nothing was evicted then.
        """
        if self.ledger.excess + nbytes <= 0:
            return
        busy = self._busy_bytes() - sum(factor.nbytes for factor in spare)
        if busy + nbytes > self.ledger.budget_bytes:
            raise self.ledger.refusal(what, nbytes, busy)
        left = iter(spare)
        while self.ledger.excess + nbytes > 0:
            if self.evict():
                continue
            factor = next(left, None)
            if factor is None:
                raise self.ledger.refusal(what, nbytes, self.ledger.held + self.ledger.reserved)
            if factor.live:
                self.ledger.evicted(reason(factor))
                self._drop(factor)

    def make_device_room(self, nbytes: int) -> None:
        """Take factors from the device until `nbytes` more fit there.

        Raises:
            DeviceOutOfMemoryError: what is in use leaves too little room; nothing was taken away then.
        """
        if not nbytes or self.ledger.device_excess + nbytes <= 0:
            return
        busy = self.ledger.device_reserved + sum(
            factor.device_nbytes
            for entry in self._pinned
            if isinstance(entry, MatrixEntry)
            for factor in entry.factors.values()
        )
        if busy + nbytes > self.ledger.device_budget:
            raise self.ledger.device_refusal(nbytes, busy)
        while self.ledger.device_excess + nbytes > 0:
            if not self.vacate():
                raise self.ledger.device_refusal(nbytes, self.ledger.device_held + self.ledger.device_reserved)

    def vacate(self) -> bool:
        """Take the factor that is missed least from the device; False when all that is there is in use.

        Its numbers go to the host where they may and where there is room for them as it is, since
        bringing them back is cheaper than computing them; else it is dropped.
        """
        entry = self._queue.pop(lambda candidate: candidate.device_nbytes > 0)
        if not isinstance(entry, FactorEntry):
            return False
        if entry.ref.movable and self.ledger.excess + entry.device_nbytes <= 0:
            self._move(entry, out=True)
            self._queue.offer(entry)
        else:
            self.ledger.evicted(reason(entry))
            self._drop(entry)
        return True

    def bring_back(self, entry: FactorEntry[R]) -> None:
        """Have a factor that is asked for on its device again; where it has no room, it is used from the host."""
        with suppress(DeviceOutOfMemoryError):
            self.make_device_room(entry.ref.device_nbytes)
            self._move(entry, out=False)

    def evict(self, why: str | None = None) -> bool:
        """Drop the entry that is missed least; False when everything left is in use."""
        entry = self._queue.pop()
        if entry is None:
            return False
        self.ledger.evicted(why or reason(entry))
        self._drop(entry)
        return True

    def forget(self, lost: Callable[[R], bool]) -> int:
        """Drop the factors that are lost already; there is nothing to free."""
        matrices = [matrix for pattern in self._patterns.values() for matrix in pattern.matrices.values()]
        gone = [entry for matrix in matrices for entry in matrix.factors.values() if lost(entry.ref)]
        for entry in gone:
            entry.live = False
            self._queue.withdraw(entry)
            del entry.matrix.factors[entry.spec]
            self._part(entry)
            self.ledger.remove(entry.level, entry.nbytes, entry.device_nbytes)
            self.ledger.evicted("lost")
            self._queue.offer(entry.matrix)
        return len(gone)

    def _take_in(self, entry: Entry, spare: Sequence[FactorEntry[R]] = ()) -> None:
        self.make_room(entry.level, entry.nbytes, spare)
        entry.live = True
        self.ledger.add(entry.level, entry.nbytes, entry.device_nbytes)
        entry.floor = self._queue.floor
        self._queue.offer(entry)

    def _drop(self, entry: Entry) -> None:
        """Take out an entry that nothing depends on; what it depended on may be next."""
        entry.live = False
        self._queue.withdraw(entry)
        if isinstance(entry, FactorEntry):
            del entry.matrix.factors[entry.spec]
            self._part(entry)
            self.unfreed.append(entry.ref)
            self._queue.offer(entry.matrix)
        elif isinstance(entry, MatrixEntry):
            del entry.pattern.matrices[entry.ref.values]
            self._bygones.remove(entry)
            if entry.pattern.newest is entry:
                entry.pattern.newest = None
            self._queue.offer(entry.pattern)
        elif isinstance(entry, PatternEntry):
            del self._patterns[entry.tenant, entry.digest]
            for symbolic in entry.symbolics.values():
                self.ledger.remove("symbolic", symbolic.nbytes)
                entry.nbytes -= symbolic.nbytes
            entry.symbolics.clear()
            if entry.base is not None:
                del entry.base.updates[entry.digest]
                self._queue.offer(entry.base)
        self.ledger.remove(entry.level, entry.nbytes, entry.device_nbytes)

    def _part(self, entry: FactorEntry[R]) -> None:
        """The factor of an update goes: the one that it solved with may be next."""
        if entry.base is not None:
            entry.base.updates.discard(entry)
            self._queue.offer(entry.base)

    def _move(self, entry: FactorEntry[R], *, out: bool) -> None:
        nbytes = entry.ref.device_nbytes if out else -entry.ref.device_nbytes
        entry.nbytes += nbytes
        entry.device_nbytes -= nbytes
        self.ledger.moved_out(entry.level, nbytes)
        self.unmoved.append((entry.ref, out))

    def _supersede(self, entry: MatrixEntry[R] | None) -> None:
        """Newer values came on the entry's pattern."""
        if entry is not None:
            entry.newer_came = True
            for each in (entry, *entry.factors.values()):
                self._queue.offer(each)
            self._bygones.add(entry)
            self._drop_bygones()

    def _drop_bygones(self) -> None:
        """Drop matrices of steps that are over, beyond what may be kept of them."""
        for entry in self._bygones.due():
            for each in (*entry.factors.values(), entry):
                if each.evictable:
                    self.ledger.evicted(reason(each))
                    self._drop(each)
            if entry.live:
                self._bygones.add(entry)
            else:
                self._bygones.went(entry)

    def _busy_bytes(self) -> int:
        """Bytes that cannot be evicted now, reservations among them."""
        patterns: set[PatternEntry[R]] = set()
        busy = self.ledger.reserved
        for entry in self._pinned:
            if isinstance(entry, MatrixEntry):
                patterns.add(entry.pattern)
                busy += entry.nbytes + sum(factor.nbytes for factor in entry.factors.values())
            else:
                patterns.add(entry)
        return busy + sum(pattern.nbytes for pattern in patterns)

    @contextmanager
    def _held(self, entry: MatrixEntry[R] | PatternEntry[R]) -> Iterator[None]:
        self.pin(entry)
        try:
            yield
        finally:
            self.unpin(entry)


def _base(entry: MatrixEntry[R] | PatternEntry[R]) -> MatrixEntry[R] | None:
    """What an update stands on."""
    return entry.pattern.base if isinstance(entry, MatrixEntry) else entry.base
