"""The one table of methods: where each lives, what it needs, which options it uses.

A method's module is imported when the method is first used, so that the engine itself stays
light. Adding a method is adding a row (and a row in `tests/engine/table.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Literal, final

from .base import Solver
from .precond.base import Preconditioner

Layout = Literal["dense", "csr"]

_DIRECT_OPTIONS = frozenset({"rtol", "atol", "refine"})


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One method.

    Attributes:
        path: `module:class` inside this package.
        layouts: what it takes.
        definite: it needs a Hermitian positive definite matrix.
        options: the options it uses beside `method` and `trans`.
        cuda: it can compute on a CUDA device.
        wide: it computes in double whatever the element type is.
    """

    path: str
    layouts: frozenset[Layout]
    definite: bool
    options: frozenset[str]
    cuda: bool = False
    wide: bool = False


ROWS: Mapping[str, Row] = {
    "lu": Row("direct.lu:DenseLu", frozenset({"dense"}), False, _DIRECT_OPTIONS, cuda=True),
    "cholesky": Row("direct.cholesky:Cholesky", frozenset({"dense", "csr"}), True, _DIRECT_OPTIONS, cuda=True),
    "superlu": Row("direct.superlu:SuperLu", frozenset({"csr"}), False, _DIRECT_OPTIONS),
    "cg": Row(
        "krylov.cg:ConjugateGradients",
        frozenset({"dense", "csr"}),
        True,
        frozenset({"preconditioner", "rtol", "atol", "maxiter", "x0"}),
        wide=True,
    ),
}

PRECONDITIONERS: Mapping[str, str] = {
    "jacobi": "precond.jacobi:Jacobi",
    "none": "precond.identity:Identity",
}

DEFAULT_PRECONDITIONER = "jacobi"


def methods() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(ROWS)


def preconditioners() -> tuple[str, ...]:
    """Names of all preconditioners."""
    return tuple(PRECONDITIONERS)


@cache
def solver(name: str) -> Solver:
    """The method of that name, imported on first use; `name` is one of `methods()`."""
    made = _load(ROWS[name].path)()
    assert isinstance(made, Solver)
    return made


@cache
def preconditioner(name: str) -> type[Preconditioner]:
    """The class of that name, imported on first use; `name` is one of `preconditioners()`."""
    found = _load(PRECONDITIONERS[name])
    assert issubclass(found, Preconditioner)
    return found


def _load(path: str) -> type:
    module, _, name = path.partition(":")
    found = getattr(import_module(f".{module}", __package__), name)
    assert isinstance(found, type)
    return found
