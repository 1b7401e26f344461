"""When a factor of older values still pays as a preconditioner, and when to factorize again.

Each factor is bought once, and serves step after step of a sequence of values: exactly those it
was made from, and every later set as the preconditioner of a Krylov solve that takes a little
longer each time. The average cost of a step is least if the next factor is bought as soon as the
next step on the old one would cost more than the average so far, its price included.

Source: the replacement problem of a machine whose running cost rises; Bellman, "Equipment
replacement policy", J. SIAM 3 (1955).
"""

from dataclasses import dataclass, replace
from typing import final

FEWEST_ITERATIONS = 2
"""No preconditioned solve of new values is done in fewer."""

_MARGIN = 1.5
"""An iteration costs a solve with the old factor, a product with the new matrix and vectors: so many solves.

Until iterations have been timed."""

_UNRISEN = 2
"""Of the sets of values that a factor has served: its own, and the first of the others."""


@final
@dataclass(frozen=True, slots=True)
class Lifetime:
    """What one factor has cost and given so far; seconds are of a worker.

    Attributes:
        factor_seconds: building it.
        solve_seconds: using it once, for the values it was made from; 0 as long as that was not timed.
        steps: sets of values that it has served.
        spent: seconds of solving for all of them.
        iterated: those of `spent` that went into iterations for values it was not made from.
        iterations: how many those were.
        last: how many for the latest set of values.
        first: how many for the first set that it was not made from.
    """

    factor_seconds: float
    solve_seconds: float
    steps: int = 1
    spent: float = 0.0
    iterated: float = 0.0
    iterations: int = 0
    last: int = 0
    first: int = 0

    def begun(self) -> "Lifetime":
        """Another set of values came."""
        return replace(self, steps=self.steps + 1, first=self.first or self.last, last=0)

    def solved(self, seconds: float, single: float) -> "Lifetime":
        """One more solve for the values it was made from, which took `single` for each use of the factor."""
        least = min(single, self.solve_seconds) if self.solve_seconds else single
        return replace(self, solve_seconds=least, spent=self.spent + seconds)

    def preconditioned(self, seconds: float, iterations: int) -> "Lifetime":
        """One more solve for the latest values, which are others; b = 0 needs no iteration."""
        return replace(
            self,
            spent=self.spent + seconds,
            iterated=self.iterated + seconds,
            iterations=self.iterations + iterations,
            last=self.last + iterations,
        )

    @property
    def iteration_seconds(self) -> float:
        """One iteration for values it was not made from: as measured, all of them together, else as foreseen."""
        return self.iterated / self.iterations if self.iterations else _MARGIN * self.solve_seconds


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with new values.

    Attributes:
        reuse: precondition with the factor that is there.
        reason: why, for the certificate.
        most_iterations: a solve that needs more would have been dearer than a new factor.
    """

    reuse: bool
    reason: str
    most_iterations: int = 0


def judge(life: Lifetime) -> Verdict:
    """Whether the next set of values is better solved on the old factor."""
    iteration = life.iteration_seconds
    if FEWEST_ITERATIONS * iteration >= life.factor_seconds:
        return Verdict(False, "a factorization costs less than a few solves with the old factor: factorized anew")
    most = max(int(life.factor_seconds / iteration) if iteration > 0 else 1, FEWEST_ITERATIONS)
    if life.iterations == 0:
        return Verdict(True, "the factor of older values, tried as the preconditioner", most)
    # Iterations rise: what a step has added so far is added once more. Counted, and priced at the mean of all, they
    # say what the next step will cost; the seconds of a single step say as much of whatever else the machine did.
    rise = max(life.last - life.first, 0) / (life.steps - _UNRISEN) if life.first else 0.0
    average = (life.factor_seconds + life.spent) / life.steps
    if iteration * (life.last + rise) > average:
        return Verdict(False, "the factor of older values needs so many iterations by now that a new one pays")
    return Verdict(True, "the factor of older values as the preconditioner, cheaper than a new one", most)
