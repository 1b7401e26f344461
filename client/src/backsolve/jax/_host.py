"""One solve on the host: NumPy arrays in, NumPy arrays out.

JAX runs this from inside of compiled programs, where a call of JAX itself may wait for the very thread that makes it.
"""

from dataclasses import replace
from typing import Any, Final

import numpy as np

from .._adapter.finite import call_finite
from .._adapter.request import Request, System
from ..client import default_client
from ..matrix import Matrix
from ..pattern import StructuredPattern
from ..types import Array, Certificate, OnFailure
from ._asked import Asked
from .statistics import decoded, encoded

_AUTO: Final = "auto"


def answer(
    asked: Asked, values: Array, rhs: Array, chosen: Array, x0: Array | None, on_failure: OnFailure
) -> tuple[Array, ...]:
    """Solve.

    Args:
        asked: what.
        values: `[(batch,) *entries]`.
        rhs: `[(batch,) n(, k)]`.
        chosen: the method that answered the forward, as `encoded`; all zero in the forward itself.
        x0: shaped like rhs.
        on_failure: where `asked` leaves it open.

    Returns:
        x, the method, and the other fields of `Stats` in their order.
    """
    if values.ndim > 1 and isinstance(asked.pattern, StructuredPattern) and asked.pattern.base is not None:
        # A mapped update: each has its own S as far as can be seen, and S is cached under its own name.
        return _one_by_one(asked, values, rhs, chosen, x0, on_failure)
    system = System(
        asked.client or default_client(),
        asked.pattern,
        _derived(asked, decoded(chosen)),
        asked.timeout,
        asked.on_failure or on_failure,
        asked.observe,
    )
    request = Request(system, asked.adjoint, asked.tangent, asked.cotangent)
    # The transpose of a solve is the conjugate of its adjoint, of the conjugate.
    given = np.conj(rhs) if request.adjoint else rhs
    matrix = Matrix.of_parameters(asked.pattern, values)
    x, phase, certificate = call_finite(matrix, given, x0, request)
    system.record(phase, certificate)
    found = np.conj(x) if request.adjoint else x
    return (np.ascontiguousarray(found, rhs.dtype), *_statistics(certificate, matrix.batch, rhs.dtype))


def _derived(asked: Asked, chosen: str) -> Any:
    """Options with the forward's method by name, so that its factor is met (see `System.derived`)."""
    if not asked.derived or not chosen or asked.options.reuse is not None:
        return asked.options
    return replace(asked.options, method=chosen)


def _statistics(certificate: Certificate, batch: int | None, dtype: "np.dtype[Any]") -> tuple[Array, ...]:
    """The certificate as arrays, in the order of `primitive.outputs`."""
    real = np.zeros(0, dtype).real.dtype
    systems = certificate.elements or (certificate,) * (1 if batch is None else batch)
    shape = () if batch is None else (batch,)
    condition = np.nan if certificate.condition_estimate is None else certificate.condition_estimate
    with np.errstate(over="ignore"):
        return (
            encoded(certificate.method),
            np.array([each.status.value for each in systems], np.int32).reshape(shape),
            np.array([each.iterations for each in systems], np.int32).reshape(shape),
            np.array([each.relative_residual for each in systems]).astype(real).reshape(shape),
            np.array([each.backward_error for each in systems]).astype(real).reshape(shape),
            np.array(condition).astype(real),
            np.array(certificate.refinements, np.int32),
            np.array(certificate.factor_hit, np.bool_),
        )


def _one_by_one(
    asked: Asked, values: Array, rhs: Array, chosen: Array, x0: Array | None, on_failure: OnFailure
) -> tuple[Array, ...]:
    """A batch of systems, a request for each."""
    starts = [None] * values.shape[0] if x0 is None else list(x0)
    found = [
        answer(asked, one, b, chosen, start, on_failure) for one, b, start in zip(values, rhs, starts, strict=True)
    ]
    x, methods, *fields = zip(*found, strict=True)
    condition, refinements, hit = fields[4:]
    return (
        np.stack(x),
        methods[0],
        *(np.stack(each) for each in fields[:4]),
        np.max(condition),
        np.max(refinements),
        np.all(hit),
    )
