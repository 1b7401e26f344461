"""What `compare_libraries.py` asks of every library: one nonsymmetric system, and the questions about it.

Nothing here knows a library. A `Frame` says how its framework differentiates, a `Library` how one
library solves; each figure compares the library with a dense solve that the same framework differentiates.
"""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, final
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

import backsolve

SEED = 731_905_428
GRID = 10
COPIES = 3
LONGEST = 200
"""Characters of an exception's line that are shown."""

Floats = NDArray[np.float64]
Solve = Callable[[Any, Any], Any]
"""`x` from the stored values of A, `[nnz]`, and b, `[n]`: arrays of one framework."""


@final
@dataclass(frozen=True)
class System:
    """`A x = b` with a sparse, nonsymmetric, well-conditioned A, and directions for derivatives.

    Attributes:
        indptr, indices: where A has entries, in CSR order.
        rows: `[nnz]` the row of each entry.
        values: `[nnz]`.
        b: `[n]`.
        values_direction, b_direction: tangents, shaped like `values` and `b`.
        weights: `[n]`; the loss is `sum(weights * x³)`.
    """

    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    rows: NDArray[np.int32]
    values: Floats
    b: Floats
    values_direction: Floats
    b_direction: Floats
    weights: Floats

    @classmethod
    def convection(cls) -> "System":
        """Five-point diffusion on a grid with a random drift in every entry; about 4 beyond its row sums."""
        rng = np.random.default_rng(SEED)
        n = GRID * GRID
        place = np.arange(n).reshape(GRID, GRID)
        right, down = (place[:, :-1], place[:, 1:]), (place[:-1], place[1:])
        first, second = (np.concatenate([right[k].ravel(), down[k].ravel()]) for k in (0, 1))
        row = np.concatenate([np.arange(n), first, second])
        column = np.concatenate([np.arange(n), second, first])
        values = np.concatenate([np.full(n, 8.0), np.full(2 * len(first), -1.0)])
        values *= 1 + 0.4 * rng.standard_normal(len(values)).clip(-2, 2)
        order = np.lexsort((column, row))
        row, column, values = row[order], column[order], values[order]
        return cls(
            indptr=np.searchsorted(row, np.arange(n + 1)).astype(np.int32),
            indices=column.astype(np.int32),
            rows=row.astype(np.int32),
            values=values,
            b=rng.standard_normal(n),
            values_direction=rng.standard_normal(len(values)),
            b_direction=rng.standard_normal(n),
            weights=rng.standard_normal(n),
        )

    @property
    def n(self) -> int:
        """The number of unknowns."""
        return len(self.b)

    @property
    def singular_values(self) -> Floats:
        """The values with a row of zeros among them: the matrix has no inverse, and not by rounding."""
        return np.where(self.rows == self.n // 2, 0.0, self.values)

    @property
    def spoilt_b(self) -> Floats:
        """The right-hand side with one NaN."""
        return np.where(np.arange(self.n) == self.n // 3, np.nan, self.b)

    def dense(self, values: Floats) -> Floats:
        """A as `[n, n]`."""
        full = np.zeros((self.n, self.n))
        full[self.rows, self.indices] = values
        return full


class Frame(ABC):
    """One framework: how it differentiates any `solve` of its own arrays. Results are NumPy's."""

    def __init__(self, system: System) -> None:
        self.system = system

    @abstractmethod
    def dense_solve(self, values: Any, b: Any) -> Any:
        """The reference: the framework's own dense solve, in float64."""

    @abstractmethod
    def answer(self, solve: Solve, values: Floats, b: Floats) -> Floats:
        """`x`, no derivative asked."""

    @abstractmethod
    def gradient(self, solve: Solve) -> Floats:
        """Of the loss, with respect to the values and b: `[nnz + n]`."""

    @abstractmethod
    def hvp(self, solve: Solve) -> Floats:
        """The loss's Hessian with respect to the values, times `values_direction`: `[nnz]`."""

    @abstractmethod
    def jvp(self, solve: Solve) -> Floats:
        """The tangent of x along both directions, in forward mode: `[n]`."""

    @abstractmethod
    def vmap_b(self, solve: Solve, many: Floats) -> Floats:
        """X for each row of `many`, by the framework's own transform."""

    @abstractmethod
    def vmap_values(self, solve: Solve, many: Floats) -> Floats:
        """X for each row of `many`, matrices on one pattern, by the framework's own transform."""


class Library(ABC):
    """One library, used as its documentation shows, with its default settings unless its name says otherwise."""

    def __init__(self, system: System) -> None:
        self.system = system

    @abstractmethod
    def solve(self, values: Any, b: Any) -> Any:
        """`x`, differentiable as far as the library goes."""

    def work(self, gradient: Callable[[], Any]) -> str:
        """What one `gradient` makes the library do, counted while it runs."""
        del gradient
        return "not counted"


@final
@dataclass(frozen=True)
class Cell:
    """What came of one question.

    Attributes:
        text: for people; a number has two digits.
        error: relative to the reference, of the largest entry; None if there is no number.
        raised: the first line of the exception, if one was raised.
        warned: first lines of what was warned of.
    """

    text: str
    error: float | None = None
    raised: str | None = None
    warned: tuple[str, ...] = ()


QUESTIONS: dict[str, str] = {
    "x": "relative error of x, default settings, nonsymmetric A",
    "gradient": "relative error of the gradient with respect to A's entries and b",
    "HVP": "relative error of a Hessian-vector product with respect to A's entries",
    "jvp": "relative error of a forward-mode tangent",
    "vmap b": "relative error of x for several b, by the framework's vmap",
    "vmap A": "relative error of x for several A on one pattern, by the framework's vmap",
    "singular A": "what a matrix with a row of zeros is answered with",
    "NaN in b": "what a right-hand side with one NaN is answered with",
    "one gradient": "what was factorized and solved for one gradient",
}


def ask(question: str, frame: Frame, library: Library) -> Cell:
    """Put one question to one library; an exception is an answer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cell = _answer(question, frame, library)
        except Exception as error:
            raised = first_line(error)
            cell = Cell("raises", raised=raised)
    return Cell(cell.text, cell.error, cell.raised, tuple(dict.fromkeys(_told(each) for each in caught if _told(each))))


def first_line(error: BaseException) -> str:
    """The kind of an exception and the first line of its text; of a text that quotes a stack, the line after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith('File "') for line in lines):
        reasons = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
        lines = [reasons[0].partition(": ")[2]] if reasons else lines
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text if len(text) <= LONGEST else text[:LONGEST] + ' …'}"


def _told(warning: warnings.WarningMessage) -> str:
    """The first line of a warning about this call; what a library says of its own code or age is none."""
    text = str(warning.message).strip().partition("\n")[0]
    of_code = issubclass(warning.category, DeprecationWarning | PendingDeprecationWarning | FutureWarning)
    # PyTorch's own words about sparse tensors as such.
    of_code = of_code or "beta state" in text or "invariant checks are implicitly" in text
    return "" if of_code else f"{warning.category.__name__}: {text}"


def _answer(question: str, frame: Frame, library: Library) -> Cell:
    system = library.system
    if question == "singular A":
        values = system.singular_values
        x = frame.answer(library.solve, values, system.b)
        residual = np.linalg.norm(system.dense(values) @ x - system.b) / np.linalg.norm(system.b)
        return _judged(x, f"numbers, residual {residual:.1e}")
    if question == "NaN in b":
        return _judged(frame.answer(library.solve, system.values, system.spoilt_b), "numbers")
    if question == "one gradient":
        # Numbers that no cache of the library has met.
        fresh = type(frame)(replace(system, values=system.values * 1.01))
        return Cell(library.work(lambda: fresh.gradient(library.solve)))
    return _compared(*(_figure(question, frame, solve) for solve in (library.solve, frame.dense_solve)))


def _figure(question: str, frame: Frame, solve: Solve) -> Floats:
    """What a library and the dense reference are both asked for."""
    system, rng = frame.system, np.random.default_rng(SEED + 1)
    many_b = rng.standard_normal((COPIES, system.n))
    many_values = system.values * (1 + 0.1 * rng.standard_normal((COPIES, len(system.values))))
    asked: dict[str, Callable[[], Floats]] = {
        "x": lambda: frame.answer(solve, system.values, system.b),
        "gradient": lambda: frame.gradient(solve),
        "HVP": lambda: frame.hvp(solve),
        "jvp": lambda: frame.jvp(solve),
        "vmap b": lambda: frame.vmap_b(solve, many_b),
        "vmap A": lambda: frame.vmap_values(solve, many_values),
    }
    return asked[question]()


def _compared(found: Floats, reference: Floats) -> Cell:
    if found.shape != reference.shape:
        return Cell(f"shape {found.shape} for {reference.shape}", error=np.inf)
    error = float(np.max(np.abs(found - reference)) / np.max(np.abs(reference)))
    return Cell(f"{error:.1e}", error=error if np.isfinite(error) else np.inf)


def _judged(x: Floats, numbers: str) -> Cell:
    """An answer where none exists: NaN says so, numbers do not."""
    if np.isfinite(x).all():
        return Cell(numbers, error=np.inf)
    return Cell("NaN" if np.isnan(x).any() else "infinity")


def counters(client: backsolve.Client, gradient: Callable[[], Any]) -> str:
    """By how much one gradient moves the counters of the engine that a client uses."""
    before = client.stats()
    gradient()
    after = client.stats()
    grown = {name: int(after[name] - before.get(name, 0)) for name in ("factorizations", "solves", "adjoint_solves")}
    return f"factorized {grown['factorizations']}, solved {grown['solves'] + grown['adjoint_solves']}"


@contextmanager
def counted(*functions: tuple[ModuleType, str]) -> Iterator[dict[str, int]]:
    """How often each function, looked up as an attribute of its module, is called while the block runs."""
    calls = {name: 0 for _, name in functions}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **named)

        return call

    with ExitStack() as stack:
        for module, name in functions:
            stack.enter_context(patch.object(module, name, watched(name, getattr(module, name))))
        yield calls
