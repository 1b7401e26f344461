"""Which method solves a matrix: a pure function of structure, options and device that gives its reason."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from backsolve.errors import (
    InvalidOptionError,
    InvalidShapeError,
    NotPositiveDefiniteError,
    NotSupportedError,
    SingularMatrixError,
)
from backsolve.types import Options

from .base import FactorSpec
from .candidates import SPREADING, Candidate, candidates
from .device import CPU, check_device
from .options import AUTO, LEAST_SQUARES, check_used, given, preconditioner_spec, users, validate
from .precond.parameters import split
from .registry import DEFAULT_PRECONDITIONER, PRECONDITIONERS, ROWS, Need, least_squares, preconditioners, runs
from .structure import Structure
from .tolerance import direct_backward_error


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """A resolved method.

    Attributes:
        spec: what to build.
        reason: why, for the certificate.
        fallback: what to build instead when the matrix turns out not to be positive definite, or to fill in.
        most_fill: the analysis has to foretell no more than this, or `fallback` is built; None: whatever it is.
    """

    spec: FactorSpec
    reason: str
    fallback: "Choice | None" = None
    most_fill: float | None = None


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
        InvalidShapeError: the matrix is not square.
    """
    validate(options)
    check_device(device)
    if least_squares(options.method):
        return _least_squares(structure, options, given(options, has_x0=has_x0), device)
    if not structure.facts.square:
        raise InvalidShapeError("A must be square, and this one is not; use lstsq for other shapes")
    if options.nullspace is None:
        _check_solvable(structure)
    names = given(options, has_x0=has_x0)
    if options.method == AUTO:
        return _automatic(structure, options, names, device)
    _check_named(structure, options.method)
    _check_place(options.method, device)
    check_used(options.method, names)
    if structure.dense and "ordering" in names:
        raise InvalidOptionError(
            "ordering is of sparse matrices, and this one is dense: leave it out",
            option="ordering",
            method=options.method,
        )
    _check_preconditioner(options)
    return _choice(structure, options.method, options, device, "asked for by name")


_NOT_OF_UPDATES = ("x0", "nullspace", "recycle", "reuse", "damp", "rcond")
"""Options that say something of the one matrix which is solved, where an update has two."""

_OF_UPDATE = re.compile(r"update\((\w+)\)")


def choose_for_update(base: Structure, options: Options, *, has_x0: bool) -> Choice:
    """The method of S, for an update `S + U Vᴴ`; always on the CPU.

    Args:
        base: of S.
        options: what the caller asks for; `method` is a method of S, plainly or as the certificate names it.
        has_x0: a first iterate comes with the call.

    Raises:
        InvalidOptionError: an option that an update does not use, or a method of least squares.
        NotSupportedError: the method is of a CUDA device alone.
        As `choose`.
    """
    named = _OF_UPDATE.fullmatch(options.method) if isinstance(options.method, str) else None
    asked = options if named is None else replace(options, method=named[1])
    validate(asked)
    for name in given(asked, has_x0=has_x0):
        if name in _NOT_OF_UPDATES:
            raise InvalidOptionError(f"an update does not use {name}: leave it out, or add U V^H to S", option=name)
    if least_squares(asked.method):
        raise InvalidOptionError("least squares takes no update: add U V^H to S", option="method")
    if asked.method in ROWS and ROWS[asked.method].only_cuda:
        raise NotSupportedError(f"updates are solved on the CPU, and method {asked.method!r} is not: use 'superlu'")
    return choose(base, asked, has_x0=False, device=CPU)


def _least_squares(structure: Structure, options: Options, names: tuple[str, ...], device: str) -> Choice:
    if options.trans != "N":
        raise InvalidOptionError("least squares takes trans 'N' alone: transpose A itself", option="trans")
    if options.method != LEAST_SQUARES:
        _check_named(structure, options.method)
        check_used(options.method, names)
        return _choice(structure, options.method, options, device, "asked for by name")
    if structure.layout == "structured":
        raise InvalidOptionError("least squares takes dense and sparse matrices: write this one out", option="method")
    if structure.dense and _uses("lstsq_qr", names):
        return _choice(structure, "lstsq_qr", options, device, "least squares, dense: QR")
    iterated = "lstsq_lsmr" if _uses("lstsq_lsmr", names) or not structure.dense else "lstsq_qr"
    check_used(iterated, names)
    found = _choice(structure, iterated, options, device, "least squares: LSMR")
    full = structure.facts.m >= structure.facts.n or bool(options.damp)
    if structure.dense or structure.batch or not full or not _uses("lstsq_superlu", names) or not _local(structure):
        return found
    if options.rtol is not None and options.rtol < direct_backward_error(np.dtype(np.float64)):
        return replace(found, reason="least squares, to a tolerance that LU may miss: LSMR")
    reason = "least squares, sparse, with little fill: LU of the augmented system"
    direct = _choice(structure, "lstsq_superlu", options, device, reason)
    behind = replace(found, reason="least squares, where LU would fill in or columns are dependent: LSMR")
    return replace(direct, fallback=behind, most_fill=LITTLE_AUGMENTED_FILL)


LITTLE_AUGMENTED_FILL = 10.0
"""Entries of L and U over those of the augmented matrix up to which it is factorized (docs/adr/0055)."""


def _local(structure: Structure) -> bool:
    """Rows and columns are joined as on a line or in the plane, where ordering is quick and factors stay small."""
    facts = structure.facts
    return not facts.square and facts.width is not None and facts.width**2 < SPREADING * (facts.m + facts.n)


def choose_iterative(structure: Structure, options: Options, device: str, why: str) -> Choice | None:
    """The iterative method for a matrix whose factor cannot be had; None if the caller asks for what none uses.

    Args:
        structure: of the matrix.
        options: with method "auto".
        device: as for `choose`.
        why: no factor, for the certificate.
    """
    if structure.facts.kind is not None:
        return None
    names = given(options, has_x0=False)
    for each in candidates(structure):
        row = ROWS.get(each.method)
        if row is None or row.direct or not (_offered(each.method, structure, device) and _uses(each.method, names)):
            continue
        preconditioner = each.preconditioner
        if preconditioner is None and "preconditioner" in row.options:
            preconditioner = next((m for m in _STRONG[structure.definite_candidate] if m in preconditioners()), None)
        chosen = replace(each, reason=f"{why}: {each.name}", preconditioner=preconditioner)
        return _choice(structure, each.method, _completed(options, chosen), device, chosen.reason)
    return None


_STRONG: Mapping[bool, tuple[str, ...]] = {True: ("amg", "ic", "jacobi"), False: ("ilu", "jacobi")}
"""Preconditioners for a large system, the best first; by whether it may be definite."""


def _automatic(structure: Structure, options: Options, names: tuple[str, ...], device: str) -> Choice:
    """The first candidate that exists here and uses all that is asked for, with its substitutes behind it."""
    if structure.facts.kind is not None:
        method = method_of(structure.facts.kind)
        check_used(method, names)
        return _choice(structure, method, options, device, f"{structure.facts.kind}: its own method")
    if options.nullspace is not None:
        # On the complement of its null space such a matrix may be definite whatever a lone node's diagonal is.
        structure = replace(structure, real_positive_diagonal=True)
    listed = list(candidates(structure, names, on_device=device != CPU))
    usable = [each for each in listed if _offered(each.method, structure, device) and _uses(each.method, names)]
    if not usable:
        raise _nothing_uses(names, [each.method for each in listed])
    chain: Choice | None = None
    for each in reversed(_with_substitutes(usable)):
        chosen = _choice(structure, each.method, _completed(options, each), device, each.reason)
        chain = replace(chosen, fallback=chain, most_fill=each.most_fill)
    assert chain is not None
    return chain


def _with_substitutes(usable: list[Candidate]) -> list[Candidate]:
    """The first candidate, and those that stand in where its analysis or elimination finds the matrix unfit for it."""
    chain = usable[:1]
    for each in usable[1:]:
        before, row = ROWS[chain[-1].method], ROWS[each.method]
        if chain[-1].most_fill is not None or before.only_cuda:
            chain.append(each)
            continue
        if before.needs not in _FOUND_UNFIT:
            break
        if row.direct and row.needs != before.needs:
            reason = f"{chain[-1].name} {_FOUND_UNFIT[before.needs]}: {each.name}"
            chain.append(replace(each, reason=reason))
    return chain


_FOUND_UNFIT: Mapping[Need, str] = {
    "definite": "found the matrix not positive definite",
}
"""What only elimination can find and another method need not mind, by what the method needs. An exactly zero pivot is
not of it: one of LDL says that the matrix is singular, and LU could only hide it behind a rounding."""


def _offered(method: str, structure: Structure, device: str) -> bool:
    row = ROWS.get(method)
    if row is None or structure.layout not in row.layouts:
        return False
    return runs(method, device) and _MET[row.needs](structure)


def _uses(method: str, names: Iterable[str]) -> bool:
    return all(name in ROWS[method].options for name in names)


def _completed(options: Options, candidate: Candidate) -> Options:
    """The options with the candidate's own preconditioner where the caller names none."""
    if options.preconditioner is not None or candidate.preconditioner is None:
        return options
    return replace(options, preconditioner=candidate.preconditioner)


def _nothing_uses(names: tuple[str, ...], listed: list[str]) -> InvalidOptionError:
    fitting = [name for name in listed if name in ROWS]
    for name in names:
        if not any(name in ROWS[method].options for method in fitting):
            return InvalidOptionError(
                f"{name} is used by method {users(name)}, and none of them is for such a matrix: leave {name} out",
                option=name,
            )
    return InvalidOptionError(
        f"no method for a matrix like this one uses {' and '.join(names)} together: leave one of them out",
        option=names[0],
    )


def _check_preconditioner(options: Options) -> None:
    """Refuse an indefinite preconditioner where the method presumes a definite one."""
    if options.preconditioner is None or not ROWS[options.method].definite_preconditioner:
        return
    name = split(options.preconditioner)[0]
    if not PRECONDITIONERS[name].definite:
        other = "fcg" if ROWS[options.method].needs == "definite" else "gmres"
        raise InvalidOptionError(
            f"preconditioner {name!r} is not Hermitian positive definite, which method {options.method!r} needs: "
            f"use method {other!r}",
            option="preconditioner",
            method=options.method,
        )


def method_of(kind: str) -> str:
    """The method of a kind of structured matrix."""
    return next(name for name, row in ROWS.items() if row.needs == kind)


def _check_solvable(structure: Structure) -> None:
    if structure.facts.structurally_singular:
        raise SingularMatrixError(
            "the pattern is structurally singular: no values on it are invertible; look for an empty row or column, "
            "or rows that share too few columns",
            kind="structural",
        )


def _check_named(structure: Structure, method: str) -> None:
    row = ROWS[method]
    layout = structure.layout
    if layout not in row.layouts or (structure.facts.kind is not None and row.needs != structure.facts.kind):
        fitting = [name for name, other in ROWS.items() if layout in other.layouts and other.needs == row.needs]
        kind = {"dense": "dense", "csr": "sparse", "structured": f"structured ({structure.facts.kind})"}[layout]
        if structure.facts.kind is not None:
            fitting = [method_of(structure.facts.kind)]
        cure = f"use method {' or '.join(map(repr, fitting))}" if fitting else "use method 'auto'"
        raise InvalidOptionError(
            f"method {method!r} does not take a {kind} matrix: {cure}", option="method", method=method
        )
    other = "lu" if structure.dense else "superlu"
    # The method itself finds a diagonal entry that is not positive, and tells which; and of a batch it judges each
    # system, which has a status of its own.
    if row.needs == "definite" and not structure.batch and not structure.hermitian:
        raise NotPositiveDefiniteError(
            f"method {method!r} needs a Hermitian positive definite matrix, and this one is not Hermitian: "
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
    "transpose": lambda structure: structure.symmetric,
    "definite": lambda structure: structure.definite_candidate,
    "low_rank": lambda structure: structure.facts.kind == "low_rank",
    "rectangular": lambda structure: True,
    "kronecker": lambda structure: structure.facts.kind == "kronecker",
    "circulant": lambda structure: structure.facts.kind == "circulant",
    "toeplitz": lambda structure: structure.facts.kind == "toeplitz",
}
_NAMED: Mapping[Need, str] = {
    "square": "square",
    "diagonal": "diagonal",
    "triangular": "triangular",
    "symmetric": "Hermitian or complex symmetric",
    "hermitian": "Hermitian",
    "transpose": "equal to its transpose",
    "definite": "Hermitian positive definite",
    "low_rank": "a diagonal plus a part of low rank",
    "rectangular": "rectangular",
    "kronecker": "a Kronecker product",
    "circulant": "circulant",
    "toeplitz": "Toeplitz",
}


_MIRRORED = ("definite", "hermitian", "symmetric", "transpose")
"""What a matrix needs to be its own mirror image for."""

_NARROWER = {"float64": "float32", "complex128": "complex64"}
"""What precision="mixed" factorizes in."""


def _choice(structure: Structure, method: str, options: Options, device: str, reason: str) -> Choice:
    """A method, with the device it is computed on where there is a choice of that."""
    spec = _spec(structure, method, options, device)
    if structure.rounded and ROWS[method].needs in _MIRRORED:
        reason = f"{reason}; A is {_NAMED[ROWS[method].needs]} but for rounding"
    if spec.device != CPU:
        reason = f"{reason}; on {device}"
    elif device != CPU:
        reason = f"{reason}; on the CPU: {_why_host(structure, spec)}"
    return Choice(spec, reason)


def _why_host(structure: Structure, spec: FactorSpec) -> str:
    """Why a method does not compute on the device that there is."""
    row = ROWS[spec.method]
    if not row.cuda:
        return f"{spec.method} has no form for a device"
    if structure.layout not in row.cuda:
        kind = "sparse" if structure.layout == "csr" else structure.layout
        return f"{spec.method} of {kind} matrices has no form for a device"
    if spec.preconditioner is not None and not PRECONDITIONERS[split(spec.preconditioner)[0]].cuda:
        return f"preconditioner {split(spec.preconditioner)[0]} has no form for a device"
    return "what is recycled is kept in the host's memory"


def _spec(structure: Structure, method: str, options: Options, device: str) -> FactorSpec:
    row = ROWS[method]
    precision = structure.dtype
    if options.precision == "mixed":
        if precision not in _NARROWER:
            raise InvalidOptionError(
                "precision='mixed' gains nothing: the matrix is in single precision already; leave it out",
                option="precision",
                method=method,
            )
        precision = _NARROWER[precision]
    if row.wide:
        precision = np.dtype(np.complex128 if np.dtype(precision).kind == "c" else np.float64).name
    preconditioner = None
    if "preconditioner" in row.options:
        preconditioner = preconditioner_spec(options.preconditioner or DEFAULT_PRECONDITIONER)
    there = structure.layout in row.cuda and (preconditioner is None or PRECONDITIONERS[split(preconditioner)[0]].cuda)
    there = there and options.recycle is None  # what is recycled is kept in host memory
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
