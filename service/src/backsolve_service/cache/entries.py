"""What the cache holds: patterns, the matrices on them, the factors of those, and the updates that stand on them.

Fields are written by `FactorCache` alone, under its lock; others read `pattern`, `facts`,
`operand` and `structure`, which never change.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, final

from backsolve.errors import BacksolveError
from backsolve.pattern import AnyPattern
from backsolve.storage import held_bytes
from backsolve.types import MatrixRef, Options

from ..engine.base import FactorSpec, Symbolic
from ..engine.operand import Operand
from ..engine.select import Choice
from ..engine.structure import PatternFacts, Structure
from ..observer import Level

OVERHEAD_BYTES = 1024
"""Counted for every entry beside its arrays, so that many tiny ones do not add up unseen."""


class FactorHandle(Protocol):
    """What the cache needs to know of a factor: it never holds the factor itself."""

    @property
    def nbytes(self) -> int:
        """Bytes that are free again once the factor is."""

    @property
    def device_nbytes(self) -> int:
        """Those of them that lie on a device when it is built."""

    @property
    def movable(self) -> bool:
        """Whether those can lie in the host's memory instead."""


R = TypeVar("R", bound=FactorHandle)


@final
@dataclass(order=True, slots=True)
class Offer:
    """An entry that the eviction queue holds.

    Attributes:
        rank: the priority under which it does.
        order: tells equal ranks apart.
        entry: None: the offer was withdrawn.
    """

    rank: float
    order: int
    entry: "Entry | None" = field(compare=False)


class Entry(ABC):
    """One thing that may be evicted, and what decides when.

    Attributes:
        nbytes: what evicting it gives back to the host; the constructor adds `OVERHEAD_BYTES`.
        device_nbytes: what evicting it gives back to the device.
        cost: seconds it takes to have it again.
        uses: how often it was asked for.
        floor: the cache's inflation when it was last asked for (see `eviction.py`).
        released: its client said that it is done with it.
        live: it is in the cache.
        offered: by which the eviction queue holds it; None: not queued.
    """

    level: Level

    def __init__(self, nbytes: int, cost: float) -> None:
        self.nbytes = nbytes + OVERHEAD_BYTES
        self.device_nbytes = 0
        self.cost = cost
        self.uses = 1
        self.floor = 0.0
        self.released = False
        self.live = False
        self.offered: Offer | None = None

    @property
    @abstractmethod
    def evictable(self) -> bool:
        """Nothing depends on it and nobody uses it."""

    @property
    def superseded(self) -> bool:
        """Newer values on the same pattern came, and it was not asked for since."""
        return False


@final
class FactorEntry(Entry, Generic[R]):
    """One factor of one matrix, somewhere on a worker.

    Attributes:
        matrix: the entry of the matrix.
        spec: what it was built with.
        ref: where it is.
        base: of an update, the factor that it solves with; on the same worker.
        updates: the factors of updates that solve with this one.
    """

    level: Level = "factor"

    def __init__(
        self, matrix: "MatrixEntry[R]", spec: FactorSpec, ref: R, cost: float, base: "FactorEntry[R] | None" = None
    ) -> None:
        super().__init__(ref.nbytes - ref.device_nbytes, cost)
        self.device_nbytes = ref.device_nbytes
        self.matrix = matrix
        self.spec = spec
        self.ref = ref
        self.base = base
        self.updates: set[FactorEntry[R]] = set()

    @property
    def away(self) -> bool:
        """Its numbers were moved from the device to the host."""
        return self.device_nbytes < self.ref.device_nbytes

    @property
    def evictable(self) -> bool:
        """A factor is in use while its matrix is; those of updates that solve with it go first."""
        return self.live and not self.matrix.pins and not self.updates

    @property
    def superseded(self) -> bool:
        """As its matrix."""
        return self.matrix.superseded


@final
class MatrixEntry(Entry, Generic[R]):
    """The values of one matrix, or of a batch on one pattern.

    Attributes:
        ref: its digests.
        pattern: the entry of its pattern.
        operand: the values, ready for products.
        structure: what `engine/structure.py` found of them.
        factors: by what they were built with.
        failures: why a factor cannot be built: the same values will fail again.
        updates: the patterns of updates that stand on it, by their digests.
        pins: calls and builds that use it, or an update of it, now.
        choices: methods that were chosen for it, by what was asked; whoever chooses keeps them here.
    """

    level: Level = "matrix"

    def __init__(
        self, pattern: "PatternEntry[R]", ref: MatrixRef, operand: Operand, structure: Structure, cost: float
    ) -> None:
        super().__init__(operand.nbytes, cost)
        self.pattern = pattern
        self.ref = ref
        self.operand = operand
        self.structure = structure
        self.factors: dict[FactorSpec, FactorEntry[R]] = {}
        self.failures: dict[FactorSpec, BacksolveError] = {}
        self.updates: dict[bytes, PatternEntry[R]] = {}
        self.choices: dict[tuple[Options, bool], Choice] = {}
        self.pins = 0
        self.newer_came = False
        self.recurring = False

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.pattern.tenant

    @property
    def evictable(self) -> bool:
        """Its factors go first, and the updates that stand on it."""
        return self.live and not self.pins and not self.factors and not self.updates

    @property
    def superseded(self) -> bool:
        """Used by one training step alone, as far as can be known."""
        return self.newer_came and not self.recurring


@final
class PatternEntry(Entry, Generic[R]):
    """One pattern, what is known of it, and what solvers prepared from it.

    Attributes:
        tenant: whose it is.
        digest: BLAKE3 of the pattern.
        pattern: the arrays.
        facts: what `engine/structure.py` found of the pattern alone.
        symbolics: by method (and whatever else tells them apart).
        failures: why a method cannot analyse it (structurally singular).
        matrices: by the digest of their values.
        recurs: one of its matrices was asked for again after newer values had come.
        base: of updates, the matrix that they stand on.
        pins: calls and builds that use it now.
    """

    level: Level = "pattern"

    def __init__(
        self,
        tenant: str,
        digest: bytes,
        pattern: AnyPattern,
        facts: PatternFacts,
        cost: float,
        base: MatrixEntry[R] | None = None,
    ) -> None:
        super().__init__(held_bytes(pattern), cost)
        self.tenant = tenant
        self.digest = digest
        self.pattern = pattern
        self.facts = facts
        self.symbolics: dict[Hashable, Symbolic] = {}
        self.failures: dict[Hashable, BacksolveError] = {}
        self.matrices: dict[bytes, MatrixEntry[R]] = {}
        self.newest: MatrixEntry[R] | None = None
        self.recurs = False
        self.base = base
        self.pins = 0

    @property
    def evictable(self) -> bool:
        """Its matrices go first."""
        return self.live and not self.pins and not self.matrices
