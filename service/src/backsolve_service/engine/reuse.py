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
"""An iteration costs a solve with the old factor, a product with the new matrix and vectors: so many solves."""


@final
@dataclass(frozen=True, slots=True)
class Lifetime:
    """What one factor has cost and given so far; all in seconds of a worker.

    Attributes:
        factor_seconds: building it.
        solve_seconds: one solve with it for the values it was made from; 0 as long as there was none.
        steps: sets of values that it has served.
        spent: solving for all of them.
        last: solving for the latest set of values.
        before: solving for the set before, if the factor was not made from that one; else 0.
        iterations: most that a solve on values it was not made from has needed.
    """

    factor_seconds: float
    solve_seconds: float
    steps: int = 1
    spent: float = 0.0
    last: float = 0.0
    before: float = 0.0
    iterations: int = 0

    def begun(self) -> "Lifetime":
        """Another set of values came."""
        # Solves for its own values need no iterations: from them to the next nothing has risen yet.
        return replace(self, steps=self.steps + 1, before=self.last if self.iterations else 0.0, last=0.0)

    def solved(self, seconds: float, iterations: int) -> "Lifetime":
        """One more solve for the latest values; without iterations, for those it was made from."""
        solve = self.solve_seconds
        if not iterations:
            solve = min(seconds, solve) if solve else seconds
        return replace(
            self,
            solve_seconds=solve,
            spent=self.spent + seconds,
            last=self.last + seconds,
            iterations=max(iterations, self.iterations),
        )


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
    iteration = _MARGIN * life.solve_seconds
    least = FEWEST_ITERATIONS * iteration
    if least >= life.factor_seconds:
        return Verdict(False, "a factorization costs less than a few solves with the old factor: factorized anew")
    most = max(int(life.factor_seconds / iteration) if iteration > 0 else 1, FEWEST_ITERATIONS)
    if life.iterations == 0:
        return Verdict(True, "the factor of older values, tried as the preconditioner", most)
    # It rises: what it rose by last time is added once more.
    expected = life.last + max(life.last - life.before, 0.0) if life.before > 0 else life.last
    average = (life.factor_seconds + life.spent) / life.steps
    if expected > average:
        return Verdict(False, "the factor of older values needs so many iterations by now that a new one pays")
    return Verdict(True, "the factor of older values as the preconditioner, cheaper than a new one", most)
