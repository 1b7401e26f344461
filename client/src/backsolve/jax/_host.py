"""One request on the host: NumPy arrays in, NumPy arrays out.

JAX runs this from inside of compiled programs, where a call of JAX itself may wait for the very thread that makes it.
Every function takes what an `_operation.Answer` takes and gives x, the method, and the other fields of `Stats` in
their order.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from .._adapter.finite import Ask, ask_finite, call_finite
from .._adapter.request import Phase, Request, System
from ..client import default_client
from ..matrix import Matrix
from ..pattern import StructuredPattern
from ..types import Array, Certificate, OnFailure
from ._asked import Asked
from .statistics import decoded, encoded


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
    """
    if values.ndim > 1 and isinstance(asked.pattern, StructuredPattern) and asked.pattern.base is not None:
        # A mapped update: each has its own S as far as can be seen, and S is cached under its own name.
        return _one_by_one(asked, values, rhs, chosen, x0, on_failure)
    system = _system(asked, chosen, on_failure)
    request = Request(system, asked.adjoint, asked.tangent, asked.cotangent)
    # The transpose of a solve is the conjugate of its adjoint, of the conjugate.
    given = np.conj(rhs) if request.adjoint else rhs
    matrix = Matrix.of_parameters(asked.pattern, values)
    x, phase, certificate = call_finite(matrix, given, x0, request)
    system.record(phase, certificate)
    return _outputs(np.conj(x) if request.adjoint else x, certificate, matrix, rhs)


def minimise(
    asked: Asked, values: Array, rhs: Array, chosen: Array, _: Array | None, on_failure: OnFailure
) -> tuple[Array, ...]:
    """`G Aᴴ rhs`; `rhs` is `[(batch,) m, k]`."""
    system, matrix = _system(asked, chosen, on_failure), Matrix.of_parameters(asked.pattern, values)

    def ask(b: Array, _: Array | None) -> tuple[Array, Phase, Certificate]:
        found = system.client.lstsq_matrix(
            matrix, b, system.options, timeout=system.timeout, on_failure=system.on_failure
        )
        return found.x, "solve", found.stats

    return _recorded(ask, system, matrix, rhs, "solve")


def normal(
    asked: Asked, values: Array, rhs: Array, chosen: Array, _: Array | None, on_failure: OnFailure
) -> tuple[Array, ...]:
    """`G rhs`; `rhs` is `[(batch,) n, k]`."""
    system, matrix = _system(asked, chosen, on_failure), Matrix.of_parameters(asked.pattern, values)

    def ask(g: Array, _: Array | None) -> tuple[Array, Phase, Certificate]:
        found = system.client.normal_matrix(
            matrix, g, system.options, timeout=system.timeout, on_failure=system.on_failure
        )
        return np.asarray(found.b), "adjoint", found.stats

    return _recorded(ask, system, matrix, rhs, "adjoint")


def _recorded(ask: Ask, system: System, matrix: Matrix, rhs: Array, phase: Phase) -> tuple[Array, ...]:
    x, met, certificate = ask_finite(ask, matrix, rhs, None, system, phase)
    system.record(met, certificate)
    return _outputs(x, certificate, matrix, rhs)


def _system(asked: Asked, chosen: Array, on_failure: OnFailure) -> System:
    return System(
        asked.client or default_client(),
        asked.pattern,
        _derived(asked, decoded(chosen)),
        asked.timeout,
        asked.on_failure or on_failure,
        asked.observe,
    )


def _derived(asked: Asked, chosen: str) -> Any:
    """Options with the forward's method by name, so that its factor is met (see `System.derived`)."""
    if not asked.derived or not chosen or asked.options.reuse is not None:
        return asked.options
    return replace(asked.options, method=chosen)


def _outputs(x: Array, certificate: Certificate, matrix: Matrix, rhs: Array) -> tuple[Array, ...]:
    """x, and the certificate as arrays."""
    batch = matrix.batch
    real = np.zeros(0, rhs.dtype).real.dtype
    systems = certificate.elements or (certificate,) * (1 if batch is None else batch)
    shape = () if batch is None else (batch,)
    condition = np.nan if certificate.condition_estimate is None else certificate.condition_estimate
    with np.errstate(over="ignore"):
        return (
            np.ascontiguousarray(x, rhs.dtype),
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
