"""What the cache holds and did, in figures."""

from collections import Counter
from typing import final, get_args

from backsolve.errors import DeviceOutOfMemoryError, MemoryBudgetError

from ..observer import Level, Lookup, Observer

LEVELS: tuple[Level, ...] = get_args(Level)


@final
class Ledger:
    """Bytes and entries by level, reservations, lookups and evictions.

    Not thread-safe: the cache's lock guards it.
    """

    def __init__(self, budget_bytes: int, observer: Observer, device_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        self.device_budget = device_bytes
        self.device_reserved = 0
        self.device_held = 0
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

    @property
    def device_excess(self) -> int:
        """The same of the device, which has a budget of its own."""
        return self.device_held + self.device_reserved - self.device_budget

    def reserve(self, nbytes: int, *, on_device: bool) -> None:
        """Set bytes aside for what is being made; negative: no longer."""
        if on_device:
            self.device_reserved += nbytes
        else:
            self.reserved += nbytes

    def looked_up(self, level: Level, result: Lookup) -> None:
        """Count one question to the cache."""
        self.lookups[level, result] += 1
        self._observer.lookup(level, result)

    def add(self, level: Level, nbytes: int, device_nbytes: int = 0) -> None:
        """Something has come."""
        self._change(level, nbytes, 1)
        self.device_held += device_nbytes

    def remove(self, level: Level, nbytes: int, device_nbytes: int = 0) -> None:
        """Something has gone."""
        self._change(level, -nbytes, -1)
        self.device_held -= device_nbytes

    def moved_out(self, level: Level, nbytes: int) -> None:
        """Bytes went from the device to the host; negative: back."""
        self._change(level, nbytes, 0)
        self.device_held -= nbytes

    def evicted(self, reason: str) -> None:
        """Count one entry that has gone, and why."""
        self.evictions[reason] += 1
        self._observer.evicted(reason)

    def refusal(self, what: str, nbytes: int, busy: int) -> MemoryBudgetError:
        """The error for something that cannot be made room for."""
        if nbytes > self.budget_bytes and what == "factor":
            text = "raise BACKSOLVE_CACHE_BYTES, or use a method that needs no factor, such as cg or gmres"
        elif nbytes > self.budget_bytes:
            # No method needs less than the matrix.
            text = (
                "raise BACKSOLVE_CACHE_BYTES, or send less: single precision, sparse where most entries are zero, "
                "storage='lower' of a Hermitian matrix, a batch in parts"
            )
        else:
            text = f"calls under way hold {busy} bytes of it: raise the cache's budget, or send fewer at a time"
        return MemoryBudgetError(
            f"the {what} needs {nbytes} bytes, the cache may hold {self.budget_bytes}: {text}",
            size=nbytes,
            limit=self.budget_bytes,
            in_use=busy,
        )

    def device_refusal(self, nbytes: int, busy: int) -> DeviceOutOfMemoryError:
        """The error for a factor that cannot be made room for on the device."""
        return DeviceOutOfMemoryError(
            f"the factor needs {nbytes} bytes on the device, where factors may hold {self.device_budget} and calls "
            f"under way hold {busy}: raise BACKSOLVE_DEVICE_CACHE_BYTES, or use device 'cpu'",
            size=nbytes,
            limit=self.device_budget,
            in_use=busy,
        )

    def _change(self, level: Level, nbytes: int, count: int) -> None:
        self.bytes[level] += nbytes
        self.entries[level] += count
        self.held += nbytes
