"""NaN in, NaN out: in a compiled program a number that is not finite must not stop what it has nothing to do with.

The server refuses a call whose numbers are not all finite. Where failures are to be NaN, the rest of such a call is
solved all the same: the other columns, and the other matrices of a batch.
"""

from dataclasses import replace

import numpy as np

from ..errors import NonfiniteInputError
from ..matrix import Matrix
from ..types import Array, Certificate, Element, Options, Status, Timings
from .request import Phase, Request, call


def call_finite(matrix: Matrix, rhs: Array, x0: Array | None, request: Request) -> tuple[Array, Phase, Certificate]:
    """As `request.call`, but what is not finite is answered by NaN and NONFINITE_INPUT; for `on_failure="nan"`."""
    try:
        return call(matrix, rhs, x0, request)
    except NonfiniteInputError:
        if request.system.on_failure != "nan":
            raise
    systems = rhs[None] if matrix.batch is None else rhs
    columns = systems[..., None] if matrix.is_vector(rhs) else systems
    starts = np.zeros_like(columns) if x0 is None else x0.reshape(columns.shape)
    bad: Array = np.logical_not(np.isfinite(columns).all(1) & np.isfinite(starts).all(1))
    lost = ~np.isfinite(_entries(matrix))
    blank = np.where((bad | lost[:, None])[:, None, :], columns.dtype.type(0), columns)
    kept = np.flatnonzero(~lost)
    begun = None if x0 is None else np.where(bad[:, None, :], columns.dtype.type(0), starts)
    x = np.full_like(columns, np.nan)
    if kept.size == 0:
        certificate = _nothing(rhs, request.system.options)
        found: tuple[Array, Phase, Certificate] = (x, "adjoint" if request.adjoint else "solve", certificate)
    elif matrix.batch is None:
        found = call(matrix, blank.reshape(rhs.shape), None if begun is None else begun.reshape(rhs.shape), request)
    else:
        part = Matrix(matrix.pattern, matrix.values[kept])
        shape = (kept.size, *rhs.shape[1:])
        start = None if begun is None else begun[kept].reshape(shape)
        found = call(part, blank[kept].reshape(shape), start, request)
    answer, phase, certificate = found
    if kept.size:
        x[kept] = answer.reshape((kept.size, *columns.shape[1:]))
    x[np.broadcast_to(bad[:, None, :], x.shape)] = np.nan
    failed = lost | bad.any(1)
    return x.reshape(rhs.shape), phase, _marked(certificate, failed, kept, batched=matrix.batch is not None)


def _entries(matrix: Matrix) -> Array:
    """The sum of each system's numbers, which is not finite if one of them is not."""
    count = 1 if matrix.batch is None else matrix.batch
    finite = np.isfinite(matrix.parameters.reshape(count, -1)).all(1)
    return np.where(finite, 0.0, np.nan)


def _marked(certificate: Certificate, failed: Array, kept: Array, *, batched: bool) -> Certificate:
    """The certificate of the finite part, made that of the whole call."""
    refused = Element(Status.NONFINITE_INPUT, 0, float("nan"), float("nan"))
    if not batched:
        return replace(certificate, **{name: getattr(refused, name) for name in Element.__slots__})
    known = dict(zip(kept.tolist(), certificate.elements, strict=True)) if certificate.elements else {}
    elements = tuple(refused if bad else known[index] for index, bad in enumerate(failed.tolist()))
    return replace(certificate, status=Status.NONFINITE_INPUT, elements=elements)


def _nothing(rhs: Array, options: Options) -> Certificate:
    """The certificate where there was nothing to solve."""
    return Certificate(
        status=Status.NONFINITE_INPUT,
        method=options.method,
        reason="no system is finite",
        precision=rhs.dtype.name,
        iterations=0,
        relative_residual=float("nan"),
        backward_error=float("nan"),
        condition_estimate=None,
        symbolic_hit=False,
        factor_hit=False,
        seconds=Timings(),
        instance="",
    )
