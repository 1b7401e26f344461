"""A solver for lineax whose solves are backsolve's, and an operator for sparse matrices.

    import lineax as lx
    from backsolve.jax.lineax import Backsolve

    lx.linear_solve(lx.MatrixLinearOperator(A), b, Backsolve())    # in place of lx.LU(), lx.Cholesky(), ...

Wherever lineax solvers go it goes too: to optimistix, and through that to diffrax's implicit methods. Needs the extra
`lineax`; `import backsolve.jax` does not.
"""

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Final, Unpack, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array

from .._adapter.rules import operated
from ..errors import InvalidOptionError, InvalidPatternError, InvalidShapeError
from ..options import KINDS, check_names, make_options
from ..pattern import DensePattern, Pattern
from ..retry import UNSET
from ..types import Options, Status, Trans
from . import _inputs
from ._asked import Asked, key_of
from ._options import SolveOptions
from ._primitive import bind
from ._rules import ALGEBRA

_RESULTS: Final[dict[Status, Any]] = {
    Status.MAX_ITER: lx.RESULTS.max_steps_reached,
    Status.STAGNATION: lx.RESULTS.stagnation,
    Status.BREAKDOWN: lx.RESULTS.breakdown,
    Status.SINGULAR_STRUCTURAL: lx.RESULTS.singular,
    Status.SINGULAR_NUMERIC: lx.RESULTS.singular,
    Status.NOT_POSITIVE_DEFINITE: lx.RESULTS.singular,
    Status.INCONSISTENT: lx.RESULTS.singular,
    Status.NONFINITE_INPUT: lx.RESULTS.nonfinite_input,
    Status.OUT_OF_RANGE: lx.RESULTS.breakdown,
}
"""What lineax calls each failure. OK and ILL_CONDITIONED have an answer; "singular" says of a false tag too."""

_OF_LINEAX: Final = ("y0",)

Structure = tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]
"""A pytree's definition, and its leaves."""


class _State(eqx.Module):
    """A matrix, and which of its operators is meant.

    Attributes:
        values: all entries, or those on the pattern.
        pattern: where they are; None of a dense matrix. Static, hence by value: diffrax compares states.
        operator: "N", or "T" after a transpose.
        given, wanted: what the right-hand side and the solution look like.
    """

    values: Array
    pattern: Pattern | None = eqx.field(static=True)
    operator: Trans = eqx.field(static=True)
    given: Structure = eqx.field(static=True)
    wanted: Structure = eqx.field(static=True)


@final
class Backsolve(lx.AbstractLinearSolver[_State]):  # type: ignore[misc]
    """Solve square systems by backsolve: in this process, or on the server that BACKSOLVE_URL names.

    The solve, its tangents and its transposes share one factor, which is found again by the content of the matrix:
    passing lineax's `state` on saves nothing more. Tags are not needed: the structure is looked at, and one that a tag
    promises wrongly changes no answer but where lineax itself believes it (a symmetric operator is its own transpose).

    A failure is a member of `lineax.RESULTS`, raised by lineax or not as `throw` says; `Solution.stats` has `status`,
    `num_steps`, `relative_residual` and `backward_error` (see `backsolve.jax.Stats`). Of lineax's own `options` "y0" is
    taken, the first iterate of an iterative method.

    Args:
        options: those of `backsolve.jax.solve` but for `trans`, `nullspace` and `on_failure`.

    Raises:
        InvalidOptionError: an option that does not exist, has no right type, or is lineax's to say.
    """

    options: Options = eqx.field(static=True)
    client: Any = eqx.field(static=True)
    timeout: Any = eqx.field(static=True)
    observe: Any = eqx.field(static=True)

    def __init__(self, **options: Unpack[SolveOptions]) -> None:
        check_names(options, SolveOptions.__annotations__.keys() | KINDS.keys(), "Backsolve")
        for name, instead in (
            ("trans", "transpose the operator"),
            ("on_failure", "linear_solve has throw="),
            ("nullspace", "use backsolve.jax.solve"),
        ):
            if name in options:
                raise InvalidOptionError(f"Backsolve does not take {name}: {instead}", option=name)
        self.options = make_options(**{name: v for name, v in options.items() if name in KINDS})  # type: ignore[arg-type]
        self.client = options.get("client")
        self.timeout = options.get("timeout", UNSET)
        self.observe = options.get("observe")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _State:
        """The matrix of an operator; nothing is sent yet."""
        check_names(options, _OF_LINEAX, "Backsolve inside linear_solve(options=...)")
        if operator.in_size() != operator.out_size():
            raise InvalidShapeError(
                f"Backsolve solves square systems, the operator has {operator.out_size()} rows and "
                f"{operator.in_size()} columns: use lineax.QR or backsolve's least squares"
            )
        given, wanted = _structure(operator.out_structure()), _structure(operator.in_structure())
        if isinstance(operator, SparseLinearOperator):
            return _State(operator.values, operator.pattern, "T" if operator.transposed else "N", given, wanted)
        return _State(operator.as_matrix(), None, "N", given, wanted)

    def compute(self, state: _State, vector: Any, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """One request."""
        shape = state.values.shape
        pattern = DensePattern((shape[0], shape[1])) if state.pattern is None else state.pattern
        asked = Asked(
            key_of(pattern),
            pattern,
            replace(self.options, trans=state.operator),
            self.client,
            self.timeout,
            "nan",
            self.observe,
        )
        dtype = state.values.dtype
        rhs = _flat(vector).astype(dtype)
        start = _first_iterate(options["y0"], rhs, state.wanted) if "y0" in options else None
        x, _, status, iterations, residual, backward, *_ = bind(state.values, rhs, start, None, asked)
        result = lx.RESULTS.successful
        for each, meaning in _RESULTS.items():
            result = lx.RESULTS.where(status == each.value, meaning, result)
        stats = {"status": status, "num_steps": iterations, "relative_residual": residual, "backward_error": backward}
        return _shaped(x, state.wanted), result, stats

    def transpose(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """The same matrix, to be solved with transposed: its factor serves both."""
        turned = _State(state.values, state.pattern, "T" if state.operator == "N" else "N", state.wanted, state.given)
        return turned, {}

    def conj(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """The conjugate matrix."""
        return _State(state.values.conj(), state.pattern, state.operator, state.given, state.wanted), {}

    def assume_full_rank(self) -> bool:
        """A singular matrix is an error."""
        return True


@final
class SparseLinearOperator(lx.AbstractLinearOperator):  # type: ignore[misc]
    """A sparse matrix as an operator of lineax; `Backsolve` solves with its entries, other solvers with all n x n.

    Args:
        values: `[nnz]`, in the pattern's order.
        pattern: where they are; keep the object, it is part of what `jit` compiles for.
        tags: lineax's, e.g. `lineax.positive_semidefinite_tag`.

    Raises:
        InvalidPatternError: `pattern` is not a `backsolve.Pattern`.
        InvalidShapeError: the values do not fit it.
    """

    values: Array
    pattern: Pattern = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)
    transposed: bool = eqx.field(static=True)

    def __init__(self, values: Array, pattern: Pattern, tags: object = (), *, transposed: bool = False) -> None:
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(A)")
        if tuple(values.shape) != pattern.entries:
            raise InvalidShapeError(f"values has shape {tuple(values.shape)}, the pattern needs {pattern.entries}")
        self.values, self.pattern, self.transposed = values, pattern, transposed
        self.tags = frozenset(tags) if isinstance(tags, frozenset | set | tuple | list) else frozenset([tags])

    def mv(self, vector: Array) -> Array:
        """`A vector`."""
        return self._products(vector[:, None])[:, 0]

    def _products(self, columns: Array) -> Array:
        found: Array = operated(ALGEBRA, self.pattern, "T" if self.transposed else "N", self.values, columns)
        return found

    def as_matrix(self) -> Array:
        """All entries, for other solvers than `Backsolve`."""
        return self._products(jnp.eye(self.in_structure().shape[0], dtype=self.values.dtype))

    def transpose(self) -> "SparseLinearOperator":
        """The operator of Aᵀ, on the same entries; of a symmetric one itself."""
        if lx.is_symmetric(self):
            return self
        tags = lx.transpose_tags(self.tags)
        return SparseLinearOperator(self.values, self.pattern, tags, transposed=not self.transposed)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """What it takes."""
        return _vector(self.pattern.m if self.transposed else self.pattern.n, self.values)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """What it gives."""
        return _vector(self.pattern.n if self.transposed else self.pattern.m, self.values)


def _vector(size: int, like: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), like.dtype)  # type: ignore[no-untyped-call]


def _structure(tree: Any) -> Structure:
    leaves, kind = jax.tree.flatten(tree)
    return kind, tuple(leaves)


def _first_iterate(y0: Any, rhs: Array, wanted: Structure) -> Array:
    kind, leaves = wanted
    if jax.tree.structure(y0) != kind or [jnp.shape(leaf) for leaf in jax.tree.leaves(y0)] != [e.shape for e in leaves]:
        raise InvalidShapeError("y0 must be shaped like the solution, leaf by leaf: see the operator's in_structure()")
    return _inputs.first_iterate(_flat(y0), rhs, "y0")


def _flat(tree: Any) -> Array:
    """A pytree of arrays as one vector, leaf after leaf, as lineax has its matrices."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def _shaped(x: Array, structure: Structure) -> Any:
    """The inverse of `_flat`."""
    kind, leaves = structure
    found, start = [], 0
    for leaf in leaves:
        stop = start + prod(leaf.shape)
        part = x[start:stop].reshape(leaf.shape)
        real = jnp.iscomplexobj(part) and not jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        found.append((part.real if real else part).astype(leaf.dtype))
        start = stop
    return jax.tree.unflatten(kind, found)


# -- what lineax asks of an operator -------------------------------------------------------


def _itself(operator: SparseLinearOperator) -> SparseLinearOperator:
    return operator


def _conjugate(operator: SparseLinearOperator) -> SparseLinearOperator:
    return SparseLinearOperator(operator.values.conj(), operator.pattern, operator.tags, transposed=operator.transposed)


def _diagonal(operator: SparseLinearOperator) -> Array:
    found: Array = jnp.diagonal(operator.as_matrix())
    return found


def _three_diagonals(operator: SparseLinearOperator) -> tuple[Array, Array, Array]:
    matrix = operator.as_matrix()
    return jnp.diagonal(matrix), jnp.diagonal(matrix, -1), jnp.diagonal(matrix, 1)


_CHECKS: Final = (
    (lx.is_symmetric, (lx.symmetric_tag, lx.diagonal_tag)),
    (lx.is_diagonal, (lx.diagonal_tag,)),
    (lx.has_unit_diagonal, (lx.unit_diagonal_tag,)),
    (lx.is_lower_triangular, (lx.lower_triangular_tag,)),
    (lx.is_upper_triangular, (lx.upper_triangular_tag,)),
    (lx.is_tridiagonal, (lx.tridiagonal_tag, lx.diagonal_tag)),
    (lx.is_positive_semidefinite, (lx.positive_semidefinite_tag,)),
    (lx.is_negative_semidefinite, (lx.negative_semidefinite_tag,)),
)

_DEFINITE: Final = (lx.positive_semidefinite_tag, lx.negative_semidefinite_tag)


def _tagged(operator: SparseLinearOperator, *, tags: tuple[object, ...], definite: bool) -> bool:
    """Whether an operator has one of these tags; of real numbers, a definite one is symmetric."""
    real = not jnp.issubdtype(operator.values.dtype, jnp.complexfloating)
    return any(tag in operator.tags for tag in (*tags, *(_DEFINITE if definite and real else ())))


for _asked_for, _answer in (
    (lx.linearise, _itself),
    (lx.materialise, _itself),
    (lx.conj, _conjugate),
    (lx.diagonal, _diagonal),
    (lx.tridiagonal, _three_diagonals),
):
    _asked_for.register(SparseLinearOperator)(_answer)

for _check, _tags in _CHECKS:
    _check.register(SparseLinearOperator)(partial(_tagged, tags=_tags, definite=_check is lx.is_symmetric))
