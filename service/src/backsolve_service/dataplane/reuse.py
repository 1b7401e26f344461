"""Which factor of older values stands ready for new ones, and what it has cost so far."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import final
from weakref import WeakKeyDictionary

from ..cache.entries import MatrixEntry, PatternEntry
from ..cache.store import FactorCache
from ..engine.base import FactorSpec
from ..engine.device import CPU
from ..engine.reuse import Lifetime, Verdict, judge
from ..scheduling.worker import FactorRef


@final
@dataclass(frozen=True, slots=True)
class Stale:
    """A factor of older values that a solve of new ones is to be preconditioned with.

    Attributes:
        base: the matrix it was made from; to be pinned while it is used.
        ref: where the factor is.
        reason: why it is used.
        most_iterations: a solve that needs more would have been dearer than a new factor.
    """

    base: MatrixEntry[FactorRef]
    ref: FactorRef
    reason: str
    most_iterations: int


@final
class _Record:
    """One factor in use, and the values it serves now."""

    def __init__(self, base: MatrixEntry[FactorRef], life: Lifetime) -> None:
        self.base = base
        self.life = life
        self.current: Hashable = base.ref.values
        self.verdict = Verdict(True, "made from these values")


@final
class Reuse:
    """The factors that `reuse="precondition"` goes on with, one for each pattern and factor spec. Thread-safe."""

    def __init__(self, cache: FactorCache[FactorRef]) -> None:
        self._cache = cache
        self._lock = Lock()
        self._records: WeakKeyDictionary[PatternEntry[FactorRef], dict[FactorSpec, _Record]] = WeakKeyDictionary()

    def consider(self, entry: MatrixEntry[FactorRef], spec: FactorSpec) -> tuple[Stale | None, str]:
        """The factor to precondition `entry`'s solves with, or None and why a new one is to be made."""
        with self._lock:
            record = self._records.get(entry.pattern, {}).get(spec)
            if record is None or record.base is entry:
                return None, ""
            ref = self._cache.factor(record.base, spec) if record.base.live else None
            if ref is None or not ref.worker.holds(ref):
                return None, "the factor of older values is no longer held: factorized anew"
            if ref.spec.device != CPU:
                return None, "a factor on a device is not used for other values: factorized anew"
            if record.current != entry.ref.values:
                record.verdict = judge(record.life)
                record.life = record.life.begun()
                record.current = entry.ref.values
            if not record.verdict.reuse:
                return None, record.verdict.reason
            return Stale(record.base, ref, record.verdict.reason, record.verdict.most_iterations), ""

    def built(self, entry: MatrixEntry[FactorRef], spec: FactorSpec, seconds: float) -> None:
        """A factor was made: it is the newest now."""
        with self._lock:
            known = self._records.setdefault(entry.pattern, {})
            before = known.get(spec)
            # Until the first solve with it is measured, the last factor's is the best guess.
            guess = 0.0 if before is None else before.life.solve_seconds
            known[spec] = _Record(entry, Lifetime(seconds, guess))

    def solved(self, entry: MatrixEntry[FactorRef], spec: FactorSpec, seconds: float, single: float) -> None:
        """A solve with a factor of `entry` itself has ended well; each use of that took `single` of its seconds."""
        self._spent(entry, spec, lambda life: life.solved(seconds, single))

    def preconditioned(self, entry: MatrixEntry[FactorRef], spec: FactorSpec, seconds: float, iterations: int) -> None:
        """A solve for `entry` on a factor of older values has ended well."""
        self._spent(entry, spec, lambda life: life.preconditioned(seconds, iterations))

    def _spent(self, entry: MatrixEntry[FactorRef], spec: FactorSpec, changed: Callable[[Lifetime], Lifetime]) -> None:
        with self._lock:
            record = self._records.get(entry.pattern, {}).get(spec)
            if record is not None and record.current == entry.ref.values:
                record.life = changed(record.life)

    def failed(self, entry: MatrixEntry[FactorRef], spec: FactorSpec) -> str:
        """The factor of older values did not bring a solve to its end: these values get their own.

        Returns:
            The reason for the certificate.
        """
        reason = "the factor of older values no longer brought the solve to its tolerance in time: factorized anew"
        with self._lock:
            record = self._records.get(entry.pattern, {}).get(spec)
            if record is not None and record.current == entry.ref.values:
                record.verdict = Verdict(False, reason)
        return reason
