"""The two tables: methods, and preconditioners; where each lives, what it needs, which options it uses.

A module is imported when it is first used, so that the engine itself stays light. Adding a method
is adding a row (and a row in `tests/engine/table.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, final

from backsolve.errors import NotSupportedError

from .base import Solver
from .device import CPU
from .precond.base import Preconditioner
from .precond.parameters import Parameter, resolve, split

Layout = Literal["dense", "csr", "structured"]

Need = Literal[
    "square",
    "diagonal",
    "triangular",
    "symmetric",
    "hermitian",
    "definite",
    "transpose",
    "rectangular",
    "low_rank",
    "kronecker",
    "circulant",
    "toeplitz",
]
"""What a method needs of a matrix; "symmetric" is Hermitian or complex symmetric, "transpose" equal to its
transpose; "rectangular" is of least squares: any shape, and an answer that the square methods would
not give. Each kind of structured matrix has a method of its own, which needs that kind."""

Home = Literal["thread", "process"]
"""Where a method may run: libraries that hold the interpreter's lock, share state between
threads or may crash run in processes of their own."""

_PLAIN = frozenset({"rtol", "atol", "refine", "condition"})
_DIRECT = _PLAIN | {"reuse"}
_MIXED = frozenset({"precision"})
_SPARSE = _DIRECT | {"ordering"}
_ITERATIVE = frozenset({"preconditioner", "rtol", "atol", "maxiter", "x0"})
_LEAST_SQUARES = frozenset({"rtol", "damp", "refine"})
_ITERATED = _LEAST_SQUARES | {"maxiter"}
_SINGULAR = frozenset({"nullspace"})
"""Of methods that are tried on singular matrices with a known null space (`restricted.py`)."""
_RECYCLING = _ITERATIVE | {"recycle"}
_RESTARTED = _ITERATIVE | {"restart"}
_UNPRECONDITIONED = _ITERATIVE - {"preconditioner"}
_BOTH: frozenset[Layout] = frozenset({"dense", "csr"})
_DENSE: frozenset[Layout] = frozenset({"dense"})
_CSR: frozenset[Layout] = frozenset({"csr"})
_STRUCTURED: frozenset[Layout] = frozenset({"structured"})


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One method.

    Attributes:
        path: `module:class` inside this package.
        layouts: what it takes.
        needs: what it needs of the matrix.
        options: the options it uses beside `method` and `trans`.
        direct: it factorizes, rather than iterates.
        cuda: layouts for which it can compute on a CUDA device.
        on_cuda: `module:class` of the same method for a CUDA device; None: `path` serves both.
        wide: it computes in double whatever the element type is.
        definite_preconditioner: M must be Hermitian positive definite.
        home: where it may run.
        only_cuda: it cannot compute on the CPU.
        requires: an importable module it cannot do without, of an optional extra; or a package.
        probe: `module:function` that tells whether that package is here, where no module's name does.
        extra: that extra of the distribution; None: the package is the system's.
    """

    path: str
    layouts: frozenset[Layout]
    needs: Need
    options: frozenset[str]
    direct: bool = True
    cuda: frozenset[Layout] = frozenset()
    on_cuda: str | None = None
    wide: bool = False
    definite_preconditioner: bool = False
    home: Home = "thread"
    only_cuda: bool = False
    requires: str | None = None
    probe: str | None = None
    extra: str | None = None

    @property
    def least_squares(self) -> bool:
        """It minimises ||b - A x|| rather than solve A x = b."""
        return self.needs == "rectangular"

    @property
    def definite(self) -> bool:
        """It needs a Hermitian positive definite matrix."""
        return self.needs == "definite"


@final
@dataclass(frozen=True, slots=True)
class PreconditionerRow:
    """One preconditioner.

    Attributes:
        path: `module:class` inside this package.
        definite: M is Hermitian positive definite by construction if A is, so that CG and MINRES
            may use it; building it from another matrix is refused.
        parameters: what may stand in parentheses after its name.
        cuda: it can be applied on a CUDA device; methods that are given another one stay on the CPU.
        requires, extra: as of a method.
    """

    path: str
    definite: bool
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    cuda: bool = False
    requires: str | None = None
    extra: str | None = None


ROWS: Mapping[str, Row] = {
    "lu": Row("direct.lu:DenseLu", _DENSE, "square", _DIRECT | _MIXED | _SINGULAR, cuda=_DENSE),
    "cholesky": Row("direct.cholesky:Cholesky", _BOTH, "definite", _SPARSE | _MIXED | _SINGULAR, cuda=_DENSE),
    "ldl": Row("direct.ldl:Ldl", _DENSE, "symmetric", _DIRECT | _MIXED),
    "qr": Row("direct.qr:Qr", _DENSE, "square", _DIRECT, cuda=_DENSE),
    "superlu": Row("direct.superlu:SuperLu", _CSR, "square", _SPARSE | _MIXED | _SINGULAR),
    "diagonal": Row("direct.diagonal:Diagonal", _CSR, "diagonal", _DIRECT),
    "triangular": Row("direct.triangular:Triangular", _BOTH, "triangular", _DIRECT, cuda=_DENSE),
    "banded": Row("direct.banded:Banded", _CSR, "square", _DIRECT),
    "block_diagonal": Row("direct.block_diagonal:BlockDiagonal", _CSR, "square", _DIRECT),
    "rslab": Row(
        "direct.rslab:Rslab", _CSR, "square", _DIRECT | _MIXED, home="process", requires="rslab", extra="rslab"
    ),
    "rslab_ldl": Row(
        "direct.rslab:RslabLdl", _CSR, "transpose", _DIRECT | _MIXED, home="process", requires="rslab", extra="rslab"
    ),
    "rslab_klu": Row(
        "direct.rslab:RslabKlu", _CSR, "square", _DIRECT | _MIXED, home="process", requires="rslab", extra="rslab"
    ),
    "klu": Row(
        "direct.klu.solver:Klu",
        _CSR,
        "square",
        _DIRECT,
        wide=True,
        requires="nbklu",
        probe="direct.klu.library:usable",
        extra="klu",
    ),
    "pardiso": Row(
        "direct.pardiso.solver:Pardiso",
        _CSR,
        "square",
        _DIRECT,
        home="process",
        requires="mkl",
        probe="direct.pardiso.library:installed",
        extra="pardiso",
    ),
    "mumps": Row(
        "direct.mumps.solver:Mumps",
        _CSR,
        "square",
        _DIRECT,
        home="process",
        requires="libmumps-seq-5.5",
        probe="direct.mumps.library:installed",
    ),
    "cholmod": Row(
        "direct.cholmod.solver:Cholmod",
        _CSR,
        "definite",
        _DIRECT | _SINGULAR | {"ordering"},
        wide=True,
        home="process",
        requires="libcholmod3",
        probe="direct.cholmod.library:installed",
    ),
    "cg": Row(
        "krylov.cg:ConjugateGradients",
        _BOTH,
        "definite",
        _RECYCLING | _SINGULAR,
        direct=False,
        cuda=_BOTH,
        on_cuda="accelerator.methods:DeviceConjugateGradients",
        wide=True,
        definite_preconditioner=True,
    ),
    "cudss": Row(
        "direct.cudss.solver:Cudss",
        _CSR,
        "square",
        _PLAIN,
        cuda=_CSR,
        only_cuda=True,
        requires="nvidia-cudss-cu13",
        probe="direct.cudss.library:installed",
        extra="cuda",
    ),
    "fcg": Row("krylov.fcg:FlexibleConjugateGradients", _BOTH, "definite", _ITERATIVE, direct=False, wide=True),
    "minres": Row(
        "krylov.minres:MinRes",
        _BOTH,
        "hermitian",
        _ITERATIVE | _SINGULAR,
        direct=False,
        wide=True,
        definite_preconditioner=True,
    ),
    "bicgstab": Row("krylov.bicgstab:BiCgStab", _BOTH, "square", _ITERATIVE, direct=False, wide=True),
    "gmres": Row(
        "krylov.gmres:Gmres",
        _BOTH,
        "square",
        _RESTARTED,
        direct=False,
        cuda=_BOTH,
        on_cuda="accelerator.methods:DeviceGmres",
        wide=True,
    ),
    "fgmres": Row("krylov.gmres:FlexibleGmres", _BOTH, "square", _RESTARTED, direct=False, wide=True),
    "lsmr": Row("krylov.lsmr:Lsmr", _BOTH, "square", _UNPRECONDITIONED, direct=False, wide=True),
    "woodbury": Row("structured.woodbury:Woodbury", _STRUCTURED, "low_rank", _PLAIN, wide=True),
    "lstsq_lsmr": Row(
        "lstsq.lsmr:LeastSquaresLsmr", _BOTH, "rectangular", _ITERATED | {"rcond"}, direct=False, wide=True
    ),
    "lstsq_superlu": Row("lstsq.superlu:LeastSquaresSuperLu", _CSR, "rectangular", _LEAST_SQUARES, wide=True),
    "lstsq_qr": Row("lstsq.qr:LeastSquaresQr", _DENSE, "rectangular", _LEAST_SQUARES | {"rcond"}, wide=True),
    "kronecker": Row("structured.kronecker:Kronecker", _STRUCTURED, "kronecker", _PLAIN, wide=True),
    "circulant": Row("structured.circulant:Circulant", _STRUCTURED, "circulant", _PLAIN, wide=True),
    "toeplitz": Row("structured.toeplitz:Toeplitz", _STRUCTURED, "toeplitz", _PLAIN, wide=True),
}

PRECONDITIONERS: Mapping[str, PreconditionerRow] = {
    "none": PreconditionerRow("precond.identity:Identity", definite=True, cuda=True),
    "jacobi": PreconditionerRow("precond.jacobi:Jacobi", definite=True, cuda=True),
    "block_jacobi": PreconditionerRow(
        "precond.block_jacobi:BlockJacobi", definite=True, parameters={"size": Parameter(32, 1, 1024)}, cuda=True
    ),
    "ssor": PreconditionerRow("precond.ssor:Ssor", definite=True, parameters={"omega": Parameter(1.0, 0.01, 1.99)}),
    "ic": PreconditionerRow("precond.ic:IncompleteCholesky", definite=True),
    "ilu": PreconditionerRow("precond.ilu:IncompleteLu", definite=False),
    "ilut": PreconditionerRow(
        "precond.ilut:ThresholdLu",
        definite=False,
        parameters={"drop": Parameter(1e-4, 0, 1), "fill": Parameter(10.0, 1, 1000)},
    ),
    "chebyshev": PreconditionerRow(
        "precond.chebyshev:Chebyshev", definite=True, parameters={"degree": Parameter(4, 1, 64)}, cuda=True
    ),
    "amg": PreconditionerRow(
        "precond.amg:AlgebraicMultigrid",
        definite=True,
        parameters={"kind": Parameter("auto", choices=("auto", "rs", "sa"))},
        cuda=True,
    ),
    "low_rank": PreconditionerRow(
        "precond.low_rank:LowRank", definite=True, parameters={"rank": Parameter(10, 1, 512)}
    ),
}

DEFAULT_PRECONDITIONER = "jacobi"
NO_PRECONDITIONER = "none"


def methods(device: str = CPU) -> tuple[str, ...]:
    """Names of the methods that can run where `device` is: their libraries are installed."""
    return tuple(name for name in ROWS if runs(name, device))


def runs(name: str, device: str = CPU) -> bool:
    """Whether `name` is one of `methods(device)`."""
    row = ROWS.get(name)
    return row is not None and not (row.only_cuda and device == CPU) and _installed(row)


def preconditioners() -> tuple[str, ...]:
    """Names of the preconditioners whose libraries are installed."""
    return tuple(name for name, row in PRECONDITIONERS.items() if _installed(row))


def check_installed(kind: str, name: str, row: Row | PreconditionerRow) -> None:
    """Refuse what is known but not installed here.

    Raises:
        NotSupportedError: with the command that installs it.
    """
    if not _installed(row):
        if isinstance(row, Row) and row.probe is not None and row.requires is not None and _importable(row.requires):
            raise NotSupportedError(
                f"{kind} {name!r} cannot use the version of {row.requires!r} that is installed where the solve would "
                f"run: pip install --upgrade 'backsolve-service[{row.extra}]' there, or use another method"
            )
        cure = f"pip install 'backsolve-service[{row.extra}]'" if row.extra else f"apt-get install {row.requires}"
        raise NotSupportedError(
            f"{kind} {name!r} needs the package {row.requires!r}, which is not installed where the solve would run: "
            f"{cure} there"
        )


def least_squares(method: str) -> bool:
    """Whether a method, or the name that stands for several, minimises ||b - A x||."""
    return method == "lstsq" or (method in ROWS and ROWS[method].least_squares)


def solver(name: str, device: str = CPU) -> Solver:
    """The method of that name for a device, imported on first use; `name` is one of `methods()`."""
    row = ROWS[name]
    return _made(row.path if device == CPU or row.on_cuda is None else row.on_cuda)


@cache
def _made(path: str) -> Solver:
    made = _load(path)()
    assert isinstance(made, Solver)
    return made


@cache
def preconditioner(name: str) -> type[Preconditioner]:
    """The class of that name, imported on first use; `name` is one of `preconditioners()`."""
    found = _load(PRECONDITIONERS[name].path)
    assert issubclass(found, Preconditioner)
    return found


def precondition(spelled: str, a: Any) -> Preconditioner:
    """Build a preconditioner for one system.

    Args:
        spelled: its name with all its parameters, as `FactorSpec.preconditioner` holds it.
        a: `csr_array` or 2-D array in float64 or complex128.

    Raises:
        NotPositiveDefiniteError, SingularMatrixError: A has no such preconditioner.
    """
    name, given = split(spelled)
    return preconditioner(name)(a, **resolve(name, given, PRECONDITIONERS[name].parameters))


def _installed(row: Row | PreconditionerRow) -> bool:
    if isinstance(row, Row) and row.probe is not None:
        return bool(_found(row.probe)())
    return row.requires is None or _importable(row.requires)


@cache
def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def _load(path: str) -> type:
    found = _found(path)
    assert isinstance(found, type)
    return found


def _found(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(f".{module}", __package__), name)
