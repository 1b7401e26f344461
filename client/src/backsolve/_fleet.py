"""Which of several replicas gets a call: the one that its matrix belongs to, unless that is dead or has its hands full.

Nothing is sent here, and nothing looked up. The rule is rendezvous hashing with bounded load: every client that knows
the same names sends a pattern to the same replica, a replica that is lost moves its own patterns alone, and a pattern
that everybody asks for spills over to the next replica of its own rank.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Trans. Networking 6 (1998);
Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018.
"""

import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final, final

from ._news import News
from .config import Endpoint
from .errors import BacksolveError, CancelledError, DeadlineError, DrainingError, UnreachableError

BALANCE: Final = 1.25
"""How much more than the mean a replica may have in flight of this client's calls."""

FREE_HAND: Final = 8
"""So many calls in flight are never too many: a matrix costs more to move than a short wait."""

FIRST_REST_SECONDS: Final = 0.5
LONGEST_REST_SECONDS: Final = 30.0
"""A replica that cannot be reached is left alone for so long, doubling from the first, give or take a half."""

LOOK_UP_SECONDS: Final = 30.0
"""How often a name is looked up again, give or take a half."""


def rendezvous(key: bytes, names: Sequence[str]) -> list[int]:
    """The places of `names`, best first, in the order that belongs to a key.

    Each name is given a score that depends on it and on the key alone, so that leaving a name out changes
    nothing about the order of the others.
    """
    scores = [blake2b(key, digest_size=8, person=b"backsolve", salt=_salt(name)).digest() for name in names]
    return sorted(range(len(names)), key=lambda place: (scores[place], names[place]), reverse=True)


def _salt(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=blake2b.SALT_SIZE).digest()


@final
class Replica:
    """One place to send calls to, and what this client knows of it. Changed by its fleet alone.

    Attributes:
        endpoint: where it is.
        name: what it is ranked by.
        news: which matrices it will not know.
        in_flight: calls of this client under way.
        calls, uploads: so many it was given.
        spilled: calls among them that belonged to another replica.
        failures: in a row.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.name = endpoint.address if endpoint.host or endpoint.path else endpoint.scheme
        self.news = News()
        self._carriers: dict[str, Any] = {}
        self.in_flight = self.calls = self.uploads = self.spilled = self.failures = 0
        self.rests_until = 0.0

    @property
    def carrier(self) -> Any:
        """The transport to it, or None."""
        return self._carriers.get("")

    def carried_by(self, transport: Any) -> Any:
        """Give it its transport, unless it has one; returns that which it has now."""
        return self._carriers.setdefault("", transport)


@final
class Fleet:
    """The replicas of one service, as one client sees them. Thread-safe.

    Args:
        endpoints: of the replicas; one whose scheme begins with "dns+" stands for all addresses of its name.
        clock: seconds that only grow.
        chance: a random number in [0, 1).
    """

    def __init__(self, endpoints: Sequence[Endpoint], clock: Callable[[], float], chance: Callable[[], float]) -> None:
        self._clock, self._chance = clock, chance
        self._looked_up = endpoints[0] if endpoints[0].named else None
        self._members = [] if self._looked_up else [Replica(endpoint) for endpoint in endpoints]
        self._leaving: list[Replica] = []
        self._look_at = clock()
        self.forget_locks()

    def forget_locks(self) -> None:
        """In a forked child: the lock may have been held, and the parent's calls are not here."""
        self._lock = threading.Lock()
        for replica in (*self._members, *self._leaving):
            replica.in_flight = 0

    @property
    def members(self) -> tuple[Replica, ...]:
        """The replicas, in the order in which they were named."""
        return tuple(self._members)

    @property
    def known(self) -> tuple[Replica, ...]:
        """The replicas, and those that are gone while calls are under way there."""
        return (*self._members, *self._leaving)

    # -- names that are looked up ----------------------------------------------------------

    def to_look_up(self) -> Endpoint | None:
        """The name whose addresses must be asked for now; None: the last answer is still good.

        One caller does it while the others go on with what is known.
        """
        if self._looked_up is None:
            return None
        with self._lock:
            if self._members and self._clock() < self._look_at:
                return None
            self._look_at = self._clock() + LOOK_UP_SECONDS * (0.5 + self._chance())
            return self._looked_up

    def found(self, addresses: Collection[str]) -> list[Replica]:
        """The addresses of the name. Replicas that are still there keep all that is known of them.

        Returns:
            Those that are gone and have no call under way: to be closed.
        """
        assert self._looked_up is not None
        with self._lock:
            known = {replica.endpoint.host: replica for replica in self._members}
            self._leaving += [replica for host, replica in known.items() if host not in addresses]
            at = self._looked_up
            self._members = [known.get(host) or Replica(at.addressed(host)) for host in sorted(set(addresses))]
            gone = [replica for replica in self._leaving if not replica.in_flight]
            self._leaving = [replica for replica in self._leaving if replica.in_flight]
            return gone

    # -- calls -----------------------------------------------------------------------------

    @contextmanager
    def visit(self, key: bytes | None, avoid: Collection[Replica] = ()) -> Iterator[Replica]:
        """Choose a replica for one attempt at a call, and count it for as long as that takes.

        An error of the attempt that leaves the block is remembered of the replica.

        Args:
            key: what the call is about; None: any will do.
            avoid: those that were tried in vain.
        """
        with self._lock:
            replica = self._choose(key, avoid)
            replica.in_flight += 1
            replica.calls += 1
        try:
            yield replica
        except (UnreachableError, DrainingError) as error:
            self._rest(replica, error)
            raise
        except (DeadlineError, CancelledError):
            raise  # nothing is known of who did not answer
        except BacksolveError:
            self._well(replica)
            raise
        else:
            self._well(replica)
        finally:
            with self._lock:
                replica.in_flight -= 1

    def others(self, avoid: Collection[Replica]) -> bool:
        """Whether there is a replica that was not tried yet, and is not known to be dead."""
        now = self._clock()
        return any(replica.rests_until <= now for replica in self._members if replica not in avoid)

    def _choose(self, key: bytes | None, avoid: Collection[Replica]) -> Replica:
        members = self._members
        if len(members) == 1:
            return members[0]
        now = self._clock()
        order = range(len(members)) if key is None else rendezvous(key, [replica.name for replica in members])
        ranked = [members[place] for place in order]
        rested = [replica for replica in ranked if replica.rests_until <= now]
        fresh = [replica for replica in rested if replica not in avoid]
        # If all are dead or have been tried, one has to be tried again: that which it belongs to.
        candidates = fresh or rested or ranked
        total = 1 + sum(replica.in_flight for replica in candidates)
        most = max(FREE_HAND, math.ceil(BALANCE * total / len(candidates)))
        chosen = next((replica for replica in candidates if replica.in_flight < most), candidates[0])
        if chosen.failures:
            # The first to come back is the probe; until it is answered the others go elsewhere.
            chosen.rests_until = now + self._rest_seconds(chosen)
        if key is not None and chosen is not ranked[0]:
            chosen.spilled += 1
        return chosen

    def _rest_seconds(self, replica: Replica) -> float:
        longest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** min(replica.failures - 1, 16))
        return longest * (0.5 + self._chance())

    def _rest(self, replica: Replica, error: BacksolveError) -> None:
        with self._lock:
            replica.failures += 1
            seconds = max(self._rest_seconds(replica), error.retry_after or 0.0)
            replica.rests_until = self._clock() + seconds
            self._look_at = min(self._look_at, self._clock() + self._chance())

    def _well(self, replica: Replica) -> None:
        if replica.failures:
            with self._lock:
                replica.failures, replica.rests_until = 0, 0.0
