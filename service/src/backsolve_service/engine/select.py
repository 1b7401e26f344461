"""Which method solves a matrix: a pure function of structure, options and device that gives its reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.errors import InvalidOptionError, NotPositiveDefiniteError, NotSupportedError, SingularMatrixError
from backsolve.types import Options

from .base import FactorSpec
from .device import CPU, check_device
from .options import AUTO, check_used, given, preconditioner_spec, users, validate
from .precond.parameters import split
from .registry import DEFAULT_PRECONDITIONER, PRECONDITIONERS, ROWS, Layout, Need
from .structure import Structure

_ITERATIVE_ONLY = ("preconditioner", "maxiter", "x0")


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """A resolved method.

    Attributes:
        spec: what to build.
        reason: why, for the certificate.
        fallback: what to build instead when the matrix turns out not to be positive definite.
    """

    spec: FactorSpec
    reason: str
    fallback: "Choice | None" = None


def choose(structure: Structure, options: Options, *, has_x0: bool, device: str) -> Choice:
    """Resolve the method.

    Args:
        structure: of the matrix.
        options: what the caller asks for.
        has_x0: a first iterate comes with the call.
        device: "cpu" or a CUDA device; methods that run on the CPU only ignore another one.

    Raises:
        InvalidOptionError: a bad option, one that the method does not use, or a method that
            does not take this layout.
        NotPositiveDefiniteError: a named method needs a Hermitian positive definite matrix.
        SingularMatrixError: no values on this pattern are invertible.
        NotSupportedError: the device is not available.
    """
    validate(options)
    check_device(device)
    if options.nullspace is None:
        _check_solvable(structure)
    names = given(options, has_x0=has_x0)
    if options.method == AUTO:
        return _automatic(structure, options, names, device)
    _check_named(structure, options.method, singular=options.nullspace is not None)
    _check_place(options.method, device)
    check_used(options.method, names)
    if structure.dense and "ordering" in names:
        raise InvalidOptionError(
            "ordering is of sparse matrices, and this one is dense: leave it out",
            option="ordering",
            method=options.method,
        )
    return Choice(_spec(structure, options.method, options, device), "asked for by name")


def _automatic(structure: Structure, options: Options, names: tuple[str, ...], device: str) -> Choice:
    iterative = [name for name in names if name in _ITERATIVE_ONLY]
    if iterative:
        return _iterative(structure, options, names, iterative[0], device)
    if not structure.dense:
        check_used("superlu", names)
        return Choice(_spec(structure, "superlu", options, device), "sparse: LU in the pattern's cached ordering")
    check_used("lu", names)
    lu = _spec(structure, "lu", options, device)
    if not _definite(structure, singular=options.nullspace is not None):
        what = "Hermitian without a positive diagonal" if structure.hermitian else "not Hermitian"
        return Choice(lu, f"dense and {what}: LU")
    fallback = Choice(lu, "dense and Hermitian, but Cholesky found it not positive definite: LU")
    reason = "dense, Hermitian, positive diagonal: Cholesky"
    return Choice(_spec(structure, "cholesky", options, device), reason, fallback)


def _iterative(structure: Structure, options: Options, names: tuple[str, ...], asked: str, device: str) -> Choice:
    if not _definite(structure, singular=options.nullspace is not None):
        raise InvalidOptionError(
            f"{asked} is used by method {users(asked)}, which needs a Hermitian matrix with a positive diagonal, "
            f"and this one is not: leave {asked} out",
            option=asked,
        )
    check_used("cg", names)
    return Choice(_spec(structure, "cg", options, device), f"Hermitian, positive diagonal, and {asked} is given: CG")


def _check_solvable(structure: Structure) -> None:
    if structure.facts.structurally_singular:
        raise SingularMatrixError(
            "the pattern is structurally singular: no values on it are invertible; look for an empty row or column, "
            "or rows that share too few columns",
            kind="structural",
        )


def _definite(structure: Structure, *, singular: bool) -> bool:
    """Whether nothing cheap speaks against a definite matrix; with a known null space, on its complement.

    A node without neighbours then has a zero on the diagonal.
    """
    return structure.hermitian if singular else structure.definite_candidate


def _check_named(structure: Structure, method: str, *, singular: bool) -> None:
    row = ROWS[method]
    layout: Layout = "dense" if structure.dense else "csr"
    if layout not in row.layouts:
        fitting = [name for name, other in ROWS.items() if layout in other.layouts and other.needs == row.needs]
        kind = "dense" if structure.dense else "sparse"
        cure = f"use method {' or '.join(map(repr, fitting))}" if fitting else "use method 'auto'"
        raise InvalidOptionError(
            f"method {method!r} does not take a {kind} matrix: {cure}", option="method", method=method
        )
    other = "lu" if structure.dense else "superlu"
    if row.needs == "definite" and not _definite(structure, singular=singular):
        fault = "is not Hermitian" if not structure.hermitian else "has a diagonal entry that is not positive"
        raise NotPositiveDefiniteError(
            f"method {method!r} needs a Hermitian positive definite matrix, and this one {fault}: "
            f"use method {other!r} or 'auto'",
            method=method,
        )
    if row.needs != "definite" and not _MET[row.needs](structure):
        raise InvalidOptionError(
            f"method {method!r} needs a matrix that is {_NAMED[row.needs]}, and this one is not: "
            f"use method {other!r} or 'auto'",
            option="method",
            method=method,
        )


def _check_place(method: str, device: str) -> None:
    if ROWS[method].only_cuda and device == CPU:
        raise NotSupportedError(
            f"method {method!r} computes on a CUDA device only, and this engine has none: "
            "set BACKSOLVE_DEVICE=cuda:0 where it runs, or use method 'superlu'"
        )


_MET: Mapping[Need, Callable[[Structure], bool]] = {
    "square": lambda structure: True,
    "diagonal": lambda structure: structure.facts.diagonal,
    "triangular": lambda structure: structure.triangular,
    "symmetric": lambda structure: structure.hermitian or structure.symmetric,
    "hermitian": lambda structure: structure.hermitian,
    "definite": lambda structure: structure.definite_candidate,
}
_NAMED: Mapping[Need, str] = {
    "square": "square",
    "diagonal": "diagonal",
    "triangular": "triangular",
    "symmetric": "Hermitian or complex symmetric",
    "hermitian": "Hermitian",
    "definite": "Hermitian positive definite",
}


def _spec(structure: Structure, method: str, options: Options, device: str) -> FactorSpec:
    row = ROWS[method]
    precision = structure.dtype
    if row.wide:
        precision = np.dtype(np.complex128 if np.dtype(precision).kind == "c" else np.float64).name
    preconditioner = None
    if "preconditioner" in row.options:
        preconditioner = preconditioner_spec(options.preconditioner or DEFAULT_PRECONDITIONER)
    layout: Layout = "dense" if structure.dense else "csr"
    there = layout in row.cuda and (preconditioner is None or PRECONDITIONERS[split(preconditioner)[0]].cuda)
    return FactorSpec(
        method=method,
        preconditioner=preconditioner,
        precision=precision,
        device=device if there else CPU,
        ordering=(options.ordering or AUTO) if "ordering" in row.options and not structure.dense else None,
        nullspace=options.nullspace,
        damp=options.damp or 0.0,
        rcond=options.rcond,
    )
