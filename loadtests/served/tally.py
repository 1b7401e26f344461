"""What became of the steps of one run: latencies, failures by code, and how all of it moved over time."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import final

from .histogram import Latencies

BLOCKS = 6
"""A run is cut into as many equal times; how much they differ is its noise."""

WRONG = "WRONG_ANSWER"
"""The code of a step that was answered, but not with the solution."""

NOT_SENT = "NOT_SENT"
"""The code of a step that was due, and that no caller was free for before the run was over."""


@final
@dataclass
class Tally:
    """Counts and histograms of one run, of one process or of all. Thread-safe while it records.

    Attributes:
        seconds: length of the run.
        limit: an answer counts for goodput if it took at most so many seconds.
        right, good: answered steps; those within the limit.
        errors: steps that failed, by error code.
        checked: answers that were compared with the truth.
        lasted: seconds from the start of the run to its end, or to the last answer if that came later.
        answered: latencies of answered steps; a failed one has told nothing that was asked.
        failed: how long callers waited for a failure.
        blocks: the answered latencies by time of the intended start.
        late: how late an idle caller began: the generator's own part of every latency.
        sent, received: payload bytes that the clients counted.
        uploads: matrices that they sent.
        cpu_seconds: of the generator's processes, the largest.
    """

    seconds: float
    limit: float
    right: int = 0
    good: int = 0
    checked: int = 0
    lasted: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    answered: Latencies = field(default_factory=Latencies)
    failed: Latencies = field(default_factory=Latencies)
    late: Latencies = field(default_factory=Latencies)
    blocks: list[Latencies] = field(default_factory=lambda: [Latencies() for _ in range(BLOCKS)])
    sent: int = 0
    received: int = 0
    uploads: int = 0
    cpu_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.lasted = max(self.lasted, self.seconds)

    def record(self, due: float, seconds: float, code: str | None) -> None:
        """One step has ended.

        Args:
            due: when it was to begin, in seconds after the start of the run.
            seconds: from then to its end.
            code: None if it was answered, else its error code.
        """
        with self._lock:
            if code is not None:
                self.errors[code] += 1
                self.failed.record(seconds)
                return
            self.right += 1
            self.good += seconds <= self.limit
            self.lasted = max(self.lasted, due + seconds)
            self.answered.record(seconds)
            self.blocks[min(max(int(due / self.seconds * BLOCKS), 0), BLOCKS - 1)].record(seconds)

    def count(self, code: str) -> None:
        """One step that never began."""
        with self._lock:
            self.errors[code] += 1

    def lagged(self, seconds: float) -> None:
        """An idle caller began so late."""
        with self._lock:
            self.late.record(max(seconds, 0.0))

    def verdict(self, right: bool, within: bool) -> None:
        """An answer that `record` has counted was compared with the truth.

        Args:
            right: whether it is the solution; if not, it is an error after all.
            within: whether it had counted for goodput.
        """
        with self._lock:
            self.checked += 1
            if not right:
                self.right -= 1
                self.good -= within
                self.errors[WRONG] += 1

    def add(self, other: "Tally") -> None:
        """Take in what another process has seen in the same time."""
        self.right += other.right
        self.good += other.good
        self.checked += other.checked
        self.lasted = max(self.lasted, other.lasted)
        self.errors.update(other.errors)
        self.sent += other.sent
        self.received += other.received
        self.uploads += other.uploads
        self.cpu_seconds = max(self.cpu_seconds, other.cpu_seconds)
        pairs = ((self.answered, other.answered), (self.failed, other.failed), (self.late, other.late))
        for mine, theirs in (*pairs, *zip(self.blocks, other.blocks, strict=True)):
            mine.add(theirs)

    @property
    def steps(self) -> int:
        """Every step, answered or not."""
        return self.right + sum(self.errors.values())

    def __getstate__(self) -> dict[str, object]:
        """For another process: histograms as bytes, and no lock."""
        state = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        for name in ("answered", "failed", "late"):
            state[name] = getattr(self, name).encode()
        return state | {"blocks": [block.encode() for block in self.blocks]}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Undo `__getstate__`."""
        self.__dict__.update(state)
        for name in ("answered", "failed", "late"):
            setattr(self, name, Latencies.decode(self.__dict__[name]))
        self.blocks = [Latencies.decode(block) for block in self.__dict__["blocks"]]
        self._lock = threading.Lock()
