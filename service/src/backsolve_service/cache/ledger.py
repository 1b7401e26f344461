"""What the cache holds and did, in figures."""

from collections import Counter
from typing import final, get_args

from backsolve.errors import MemoryBudgetError

from ..observer import Level, Lookup, Observer

LEVELS: tuple[Level, ...] = get_args(Level)


@final
class Ledger:
    """Bytes and entries by level, reservations, lookups and evictions.

    Not thread-safe: the cache's lock guards it.
    """

    def __init__(self, budget_bytes: int, observer: Observer) -> None:
        self.budget_bytes = budget_bytes
        self.reserved = 0
        self.held = 0
        self.bytes: dict[Level, int] = dict.fromkeys(LEVELS, 0)
        self.entries: dict[Level, int] = dict.fromkeys(LEVELS, 0)
        self.lookups: Counter[tuple[Level, Lookup]] = Counter()
        self.evictions: Counter[str] = Counter()
        self._observer = observer

    @property
    def excess(self) -> int:
        """Bytes above the budget; negative while there is room."""
        return self.held + self.reserved - self.budget_bytes

    def looked_up(self, level: Level, result: Lookup) -> None:
        """Count one question to the cache."""
        self.lookups[level, result] += 1
        self._observer.lookup(level, result)

    def add(self, level: Level, nbytes: int) -> None:
        """Something has come."""
        self._change(level, nbytes, 1)

    def remove(self, level: Level, nbytes: int) -> None:
        """Something has gone."""
        self._change(level, -nbytes, -1)

    def evicted(self, reason: str) -> None:
        """Count one entry that has gone, and why."""
        self.evictions[reason] += 1
        self._observer.evicted(reason)

    def refusal(self, what: str, nbytes: int, busy: int) -> MemoryBudgetError:
        """The error for something that cannot be made room for."""
        if nbytes > self.budget_bytes:
            text = "raise the cache's budget, or use a method that needs no factor, such as cg"
        else:
            text = f"calls under way hold {busy} bytes of it: raise the cache's budget, or send fewer at a time"
        return MemoryBudgetError(
            f"the {what} needs {nbytes} bytes, the cache may hold {self.budget_bytes}: {text}",
            size=nbytes,
            limit=self.budget_bytes,
            in_use=busy,
        )

    def _change(self, level: Level, nbytes: int, count: int) -> None:
        self.bytes[level] += nbytes
        self.entries[level] += count
        self.held += nbytes
