"""Who is next among several tenants: whoever has had least of a thread's time.

Within one tenant jobs keep their order. A tenant that comes back after a pause starts level with the one
that is served then: it is owed nothing for the time in which it asked for nothing. This is start-time fair
queuing (Goyal, Vin and Cheng, "Start-time fair queueing", SIGCOMM 1996) with measured times for lengths,
since nobody knows beforehand how long a factorization will take.
"""

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar, final


class Waiting(Protocol):
    """What waits.

    Attributes:
        tenant: whose it is.
        key: those of equal key may be served together; None: it is served alone.
    """

    tenant: str
    key: Hashable | None


_REMEMBERED = 256
"""Tenants that wait for nothing now, and of whom is still known what they had."""

J = TypeVar("J", bound=Waiting)


@final
class FairQueue(Generic[J]):
    """Jobs that wait. Not thread-safe."""

    def __init__(self) -> None:
        self._jobs: dict[str, OrderedDict[J, int]] = {}
        self._mates: dict[Hashable, OrderedDict[J, None]] = {}
        self._used: dict[str, float] = {}
        self._clock = 0.0
        self._number = itertools.count()
        self._length = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._length

    def __contains__(self, job: J) -> bool:
        """Whether a job waits."""
        return job in self._jobs.get(job.tenant, ())

    def __iter__(self) -> Iterator[J]:
        """All that wait, tenant by tenant."""
        return itertools.chain.from_iterable(self._jobs.values())

    def push(self, job: J) -> None:
        """Let a job wait behind its tenant's others."""
        tenant = job.tenant
        if tenant not in self._jobs:
            self._jobs[tenant] = OrderedDict()
            self._used[tenant] = max(self._used.get(tenant, 0.0), self._clock)
        self._jobs[tenant][job] = next(self._number)
        if job.key is not None:
            self._mates.setdefault(job.key, OrderedDict())[job] = None
        self._length += 1

    def pop(self) -> J | None:
        """The first job of the tenant that has had least; None: nothing waits."""
        if not self._length:
            return None
        # Of equals, whose job came first.
        tenant = min(self._jobs, key=lambda each: (self._used[each], next(iter(self._jobs[each].values()))))
        self._clock = max(self._clock, self._used[tenant])
        job = next(iter(self._jobs[tenant]))
        self.remove(job)
        return job

    def mates(self, job: J) -> Iterator[J]:
        """Those that wait and may be served together with a job, in their order; each is to be removed when taken."""
        while job.key is not None and (waiting := self._mates.get(job.key)):
            yield next(iter(waiting))

    def remove(self, job: J) -> None:
        """Take a job out."""
        waiting = self._jobs[job.tenant]
        del waiting[job]
        if not waiting:
            del self._jobs[job.tenant]
        if job.key is not None:
            mates = self._mates[job.key]
            del mates[job]
            if not mates:
                del self._mates[job.key]
        self._length -= 1

    def charge(self, tenant: str, seconds: float) -> None:
        """A tenant was served for so long."""
        if not self._jobs:
            self._used.clear()  # nobody has waited for it
            return
        self._used[tenant] = max(self._used.get(tenant, 0.0), self._clock) + seconds
        if len(self._used) > len(self._jobs) + 2 * _REMEMBERED:
            # Whoever waits for nothing and is behind the clock would start level with it anyway; of the others
            # those that are furthest ahead matter most.
            ahead = [each for each, used in self._used.items() if used > self._clock and each not in self._jobs]
            kept = {*self._jobs, *sorted(ahead, key=self._used.__getitem__)[-_REMEMBERED:]}
            self._used = {each: used for each, used in self._used.items() if each in kept}
