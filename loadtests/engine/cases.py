"""The comparisons: each times every user in turn on the same fresh data, round by round."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array
from scipy.sparse.linalg import splu
from tqdm import tqdm

from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve_service.engine.base import FactorSpec
from backsolve_service.engine.direct.ordering import Ordering
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver

from .problems import Problem, grid
from .users import Caller, CarefulUser, Step, spsolve_pair

Floats = NDArray[np.float64]

_DRIFT = 0.02
"""Standard deviation of the logarithm by which each conductance moves in one step of a sequence."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        case: what is compared.
        problem: on which matrix.
        reference: with whom.
        ours, theirs: median seconds.
        target: least ratio that is aimed at; None: reported only.
        rounds: how many.
        note: what a reader must know beside.
    """

    case: str
    problem: str
    reference: str
    ours: float
    theirs: float
    target: float | None
    rounds: int
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times faster than the reference."""
        return self.theirs / self.ours

    @property
    def missed(self) -> bool:
        """The target was not reached."""
        return self.target is not None and self.ratio < self.target


def cached(problem: Problem, rounds: int, targets: tuple[float, float]) -> Iterator[Row]:
    """The matrix and its factor are known: a step is two triangular solves and two hashes."""
    rng, ours = np.random.default_rng(660_183_274), Caller()
    A = problem.draw(rng)
    _warm(ours, A, rng)
    yield from _against_both("cached factor", problem, ours, lambda: A, rounds, targets, rng)
    ours.close()


def new_values(
    problem: Problem, rounds: int, targets: tuple[float | None, float | None], **options: Any
) -> Iterator[Row]:
    """The pattern is known, the values are not: the step of a training loop."""
    rng, ours = np.random.default_rng(171_905_338), Caller(**options)
    _warm(ours, problem.draw(rng), rng)
    name = "new values" + "".join(f", {value}" for value in options.values())
    yield from _against_both(name, problem, ours, lambda: problem.draw(rng), rounds, targets, rng)
    ours.close()


def refactored(problem: Problem, rounds: int) -> Iterator[Row]:
    """The default's factorization alone: SuperLU in the ordering that the pattern has kept, against plain `splu`."""
    rng, method = np.random.default_rng(507_116_284), solver("superlu")
    spec = FactorSpec("superlu", None, "float64", "cpu")
    first = problem.draw(rng)
    pattern = Pattern.from_csr(first)
    symbolic = method.analyze(pattern, spec)
    assert isinstance(symbolic, Ordering)
    method.factorize(symbolic, Operand(Matrix(pattern, first.data)), spec)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in tqdm(range(rounds), desc=f"refactored, {problem.name}", unit="round"):
        A = problem.draw(rng)
        operand, columns = Operand(Matrix(pattern, A.data)), csc_array(A)
        users: dict[str, Callable[[], object]] = {
            "ours": partial(method.factorize, symbolic, operand, spec),
            "theirs": partial(splu, columns),
        }
        for name in rng.permutation(list(users)):
            began = time.perf_counter()
            users[name]()
            seconds[name].append(time.perf_counter() - began)
    ours, theirs = (float(np.median(seconds[name])) for name in ("ours", "theirs"))
    note = f"{ours / theirs:.2f} of splu's time; {symbolic.kind} ordering, checks of the values and the pivots included"
    yield Row("refactored", problem.name, "plain splu", ours, theirs, 1, rounds, note)


def first_sight(problem: Problem, rounds: int, targets: tuple[float, float]) -> Iterator[Row]:
    """Nothing is known: each round has an engine of its own."""
    rng = np.random.default_rng(415_530_962)
    seconds: dict[str, list[float]] = {"ours": [], "pair": [], "careful": []}
    for _ in tqdm(range(rounds), desc=f"first sight, {problem.name}", unit="round"):
        A, (b, g) = problem.draw(rng), rng.standard_normal((2, problem.n))
        ours = Caller()
        _warm(ours, grid((6, 6)).draw(rng), rng)  # threads and imports are there; the pattern is not
        _round(seconds, ours.step, A, b, g, rng)
        ours.close()
    yield from _rows("first sight", problem, seconds, rounds, targets)


def drifting(problem: Problem, steps: int, target: float, **options: Any) -> Iterator[Row]:
    """A sequence of slowly changing values: the stale factor as preconditioner against a fresh one each step.

    Both users have the same options beside, so that both have the same method factorize.
    """
    rng = np.random.default_rng(982_116_405)
    weights = np.exp(0.5 * rng.standard_normal(problem.edges))
    reusing, fresh = Caller(reuse="precondition", **options), Caller(**options)
    seconds: dict[str, list[float]] = {"reuse": [], "fresh": []}
    for step in tqdm(range(steps + 1), desc=f"drifting, {problem.name}", unit="step"):
        A, (b, g) = problem.member(weights), rng.standard_normal((2, problem.n))
        for name, caller in (("reuse", reusing), ("fresh", fresh)):
            began = time.perf_counter()
            caller.step(A, b, g)
            if step:  # the first one has nothing to reuse
                seconds[name].append(time.perf_counter() - began)
        weights = weights * np.exp(_DRIFT * rng.standard_normal(problem.edges))
    made = reusing.client.stats()["factorizations"]
    method = fresh.client.solve(A, b, **options).stats.method
    note = f"{made:.0f} factorizations in {steps + 1} steps, each by {method}; means of the steps"
    ours, theirs = (float(np.mean(seconds[name])) for name in ("reuse", "fresh"))
    name = "drifting values" + "".join(f", {value}" for value in options.values())
    yield Row(name, problem.name, "refactoring each step", ours, theirs, target, steps, note)
    reusing.close()
    fresh.close()


def large_definite(problem: Problem, rounds: int, patience: float) -> Iterator[Row]:
    """A 3-D system to 1e-10 by the method that the engine chooses; `splu` gets `patience` seconds."""
    rng, seconds = np.random.default_rng(730_662_191), []
    for _ in tqdm(range(rounds), desc=f"large, {problem.name}", unit="round"):
        A, b = problem.draw(rng), rng.standard_normal(problem.n)
        ours = Caller()
        _warm(ours, grid((6, 6, 6)).draw(rng), rng)
        began = time.perf_counter()
        solution = ours.client.solve(A, b, rtol=1e-10)
        seconds.append(time.perf_counter() - began)
        ours.close()
    theirs = _splu_seconds(A, patience)
    note = f"{solution.stats.method} with {solution.stats.preconditioner}, {solution.stats.iterations} iterations"
    if theirs is None:
        note += f"; splu had not ended after {patience:g} s, so the ratio is a lower bound"
    yield Row(
        "one solve to 1e-10",
        problem.name,
        "splu, once",
        float(np.median(seconds)),
        theirs or patience,
        20,
        rounds,
        note,
    )


def _against_both(
    case: str,
    problem: Problem,
    ours: Caller,
    draw: Callable[[], csr_array],
    rounds: int,
    targets: tuple[float | None, float | None],
    rng: np.random.Generator,
) -> Iterator[Row]:
    seconds: dict[str, list[float]] = {"ours": [], "pair": [], "careful": []}
    for _ in tqdm(range(rounds), desc=f"{case}, {problem.name}", unit="round"):
        A, (b, g) = draw(), rng.standard_normal((2, problem.n))
        _round(seconds, ours.step, A, b, g, rng)
    yield from _rows(case, problem, seconds, rounds, targets)


def _round(
    seconds: dict[str, list[float]],
    step: Callable[[csr_array, Floats, Floats], Step],
    A: csr_array,
    b: Floats,
    g: Floats,
    rng: np.random.Generator,
) -> None:
    """Time each user once, in a new order, and compare their answers."""
    users = {"ours": step, "pair": spsolve_pair, "careful": CarefulUser().step}
    answers = {}
    for name in rng.permutation(list(users)):
        began = time.perf_counter()
        answers[name] = users[name](A, b, g)
        seconds[name].append(time.perf_counter() - began)
    for ours, theirs in zip(answers["ours"], answers["careful"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7 * np.abs(theirs).max())


def _rows(
    case: str,
    problem: Problem,
    seconds: dict[str, list[float]],
    rounds: int,
    targets: tuple[float | None, float | None],
) -> Iterator[Row]:
    median = {name: float(np.median(each)) for name, each in seconds.items()}
    names = {"pair": "spsolve(A) + spsolve(A.T)", "careful": "one splu kept for both"}
    for (name, reference), target in zip(names.items(), targets, strict=True):
        yield Row(case, problem.name, reference, median["ours"], median[name], target, rounds)


def _warm(ours: Caller, A: csr_array, rng: np.random.Generator) -> None:
    b, g = rng.standard_normal((2, A.shape[0]))
    ours.step(A, b, g)


def _splu_seconds(A: csr_array, patience: float) -> float | None:
    """Time of plain `splu` and one solve in a process of its own; None: it took longer than `patience`."""
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe()
    process = context.Process(target=_factorize, args=(csc_array(A), ours), daemon=True)
    process.start()
    answered = theirs.poll(patience)
    seconds = float(theirs.recv()) if answered else None
    process.kill()
    process.join()
    return seconds


def _factorize(A: csc_array, pipe: Any) -> None:
    began = time.perf_counter()
    splu(A).solve(np.ones(A.shape[0]))
    pipe.send(time.perf_counter() - began)
