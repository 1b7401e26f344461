"""Krylov methods with SciPy's signatures and stop rule: `cg`, `gmres`, `bicgstab` and `minres`.

Each is one call of the service, whose methods stop by the true residual: `info` is 0 if and only if the x that is
returned has ||b - A x|| <= max(rtol ||b||, atol), in the 2-norm and in double precision. SciPy judges by a residual
that its recurrence carries along, which rounding can separate from the true one.

`maxiter` counts what it counts in SciPy: iterations, of `gmres` cycles of `restart` of them. The service counts
products with the matrix, and is told as many as SciPy would take: one an iteration, two of `bicgstab`, `restart` a
cycle of `gmres`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import eye_array, issparse

from ..errors import InvalidOptionError, NotPositiveDefiniteError, NotSupportedError
from ..types import Array
from ._inputs import count, dtype_of, no_callback, number, square
from ._system import System

_RESTART = 20
"""SciPy's default for the basis of GMRES."""


def cg(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    callback: Callable[..., Any] | None = None,
) -> tuple[Array, int]:
    """Conjugate gradients for a Hermitian positive definite A, as `scipy.sparse.linalg.cg`.

    Args:
        A: `[n, n]`, sparse or dense.
        b: `[n]` or `[n, 1]`.
        x0: first iterate; "Mb" is b itself without a preconditioner.
        rtol, atol: wanted ||b - A x|| <= max(rtol ||b||, atol).
        maxiter: most iterations; by default 10 n.
        M: None, or the name of a preconditioner of the service, such as "jacobi", "ic" or "amg".
        callback: must be None.

    Returns:
        x, `[n]`, and info: 0 if the residual is as wanted; else a positive number: `maxiter` if that was reached, or
        the iterations after which nothing was gained any more.

    Raises:
        NotPositiveDefiniteError: A, or M, is not Hermitian positive definite; SciPy would iterate all the same.
        NotSupportedError: a linear operator, a matrix for M, or a callback: none of them can be sent.
        BacksolveError: as `Client.solve`.
    """
    no_callback(callback, "cg")
    system = System.of("cg", A, b, x0, M, rtol, atol)
    try:
        return system.hermitian(count(10 * system.n or 1 if maxiter is None else maxiter, "cg", "maxiter"))
    except NotPositiveDefiniteError as error:
        raise NotPositiveDefiniteError(
            "cg needs a Hermitian positive definite matrix, and this one is not: use minres if it is Hermitian, else "
            "gmres",
            **error.details,
        ) from error


def bicgstab(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    callback: Callable[..., Any] | None = None,
) -> tuple[Array, int]:
    """BiCGStab for any square A, as `scipy.sparse.linalg.bicgstab`.

    Args:
        A, b, x0, rtol, atol, callback: as for `cg`.
        maxiter: most iterations, each of two products with A; by default 10 n.
        M: None, or the name of a preconditioner of the service, such as "ilu".

    Returns:
        x, `[n]`, and info: 0 if the residual is as wanted, negative after a breakdown, else positive as of `cg`. After
        a breakdown the service begins anew from the best x first, so that it is rarer than in SciPy.

    Raises:
        NotSupportedError, BacksolveError: as `cg`.
    """
    no_callback(callback, "bicgstab")
    system = System.of("bicgstab", A, b, x0, M, rtol, atol)
    return system.solved(count(10 * system.n or 1 if maxiter is None else maxiter, "bicgstab", "maxiter"), products=2)


def gmres(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    restart: int | None = None,
    maxiter: int | None = None,
    M: Any = None,
    callback: Callable[..., Any] | None = None,
    callback_type: str | None = None,
) -> tuple[Array, int]:
    """Restarted GMRES for any square A, as `scipy.sparse.linalg.gmres`.

    A named preconditioner acts from the right, so that what is minimised is the residual itself.

    Args:
        A, b, x0, rtol, atol: as for `cg`.
        restart: iterations in a cycle; by default min(20, n).
        maxiter: most cycles; by default 10 n.
        M: None, or the name of a preconditioner of the service, such as "ilu".
        callback: with `callback_type="x"`, called with a copy of x after each cycle; every cycle is then a call of its
            own.
        callback_type: "x"; the others ("pr_norm", "legacy", and None, which means "legacy") ask for something at each
            iteration, and are refused where there is a callback.

    Returns:
        x, `[n]`, and info as of `cg`, in cycles.

    Raises:
        NotSupportedError, BacksolveError: as `cg`.
    """
    if callback_type not in (None, "x", "pr_norm", "legacy"):
        raise InvalidOptionError("callback_type of gmres must be 'x', 'pr_norm' or 'legacy'", option="callback_type")
    if callback is not None and callback_type != "x":
        raise NotSupportedError(
            "gmres iterates where the service is, and can call back after each cycle only: pass callback_type='x', or "
            "call scipy.sparse.linalg.gmres"
        )
    system = System.of("gmres", A, b, x0, M, rtol, atol)
    cycles = count(10 * system.n or 1 if maxiter is None else maxiter, "gmres", "maxiter")
    length = min(count(_RESTART if restart is None else restart, "gmres", "restart"), system.n or 1)
    if callback is None:
        return system.solved(cycles, products=length, restart=length)
    return system.watched(cycles, length, callback)


def minres(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    shift: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    callback: Callable[..., Any] | None = None,
    show: bool = False,
    check: bool = False,
) -> tuple[Array, int]:
    """MINRES for a Hermitian A, definite or not, as `scipy.sparse.linalg.minres`.

    It stops where ||b - A x|| <= rtol ||b||, or where x is a least squares solution of a singular system that has no
    other: ||A r|| <= rtol ||A|| ||r||. SciPy's own code compares the residual with ||A|| ||x|| in place of ||b||, and
    may stop far earlier.

    Args:
        A, b, x0, rtol, callback: as for `cg`.
        shift: the system is (A - shift I) x = b.
        maxiter: most iterations; by default 5 n.
        M: None, or the name of a positive definite preconditioner of the service, such as "jacobi" or "ic".
        show: print a summary at the end; the iterations are not seen from here.
        check: that A is Hermitian, which is always checked.

    Returns:
        x, `[n]`, and info as of `cg`.

    Raises:
        InvalidOptionError: A is not Hermitian, or M not positive definite (a ValueError, as in SciPy).
        NotSupportedError, BacksolveError: as `cg`.
    """
    del check
    no_callback(callback, "minres")
    a = square(A, "minres")
    limit = count(5 * a.shape[0] or 1 if maxiter is None else maxiter, "minres", "maxiter")
    if shift != 0:
        kind = np.result_type(dtype_of(a), np.asarray(shift).dtype if np.iscomplexobj(shift) else np.float32)
        unit = eye_array(a.shape[0], dtype=kind, format="csr") if issparse(a) else np.eye(a.shape[0], dtype=kind)
        a = a - kind.type(shift) * unit
    system = System.of("minres", a, b, x0, M, rtol, 0.0)
    try:
        x, info = system.hermitian(limit)
    except InvalidOptionError as error:
        if error.details.get("option") == "method":
            raise InvalidOptionError("minres needs a Hermitian matrix, and this one is not: use gmres") from error
        raise
    if info and system.minimised(x, number(rtol, "minres", "rtol")):
        info = 0
    if show:
        rest = float(np.linalg.norm(system.residual(x)))
        print(f"minres: n = {system.n}, shift = {shift:.3e}, rtol = {rtol:.1e}, at most {limit} iterations")
        print(f"minres: info = {info}, |b - A x| = {rest:.3e}, |b| = {system.size:.3e}, |x| = {np.linalg.norm(x):.3e}")
    return x, info
