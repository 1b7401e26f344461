"""What a server answers, as dataclasses and as messages of `backsolve.v1`; `calls` is the way up."""

from collections.abc import Iterable

from .._transports.base import SolveReply, VjpReply
from ..errors import MalformedError
from ..types import Certificate, Element, Holding, Limits, ServerInfo, Status, Timings
from ..v1 import solver_pb2 as solver
from ..v1 import types_pb2 as types
from .calls import Arrays, Given, described, present, required


def encode_solved(reply: SolveReply, elements: bool = True) -> tuple[solver.SolveResponse, Arrays]:
    """The response to a solve, and its array; `elements=False` leaves them to other frames."""
    arrays = present(x=reply.x)
    return solver.SolveResponse(
        certificate=encode_certificate(reply.certificate, elements), **described(arrays)
    ), arrays


def encode_pushed(reply: SolveReply, elements: bool = True) -> tuple[solver.JvpResponse, Arrays]:
    """The response to a tangent solve, and its array."""
    arrays = present(x=reply.x)
    return solver.JvpResponse(certificate=encode_certificate(reply.certificate, elements), **described(arrays)), arrays


def decode_solved(
    message: solver.SolveResponse | solver.JvpResponse, arrays: Given, more: Iterable[types.Element] = ()
) -> SolveReply:
    """The answer to a solve or a tangent solve; `more` are elements that came in other frames.

    Raises:
        MalformedError: x is missing, or a status is unknown.
    """
    return SolveReply(required(arrays, "x"), decode_certificate(message.certificate, more))


def encode_pulled(reply: VjpReply, elements: bool = True) -> tuple[solver.VjpResponse, Arrays]:
    """The response to an adjoint solve, and its arrays."""
    arrays = present(b=reply.b, values=reply.values)
    return solver.VjpResponse(certificate=encode_certificate(reply.certificate, elements), **described(arrays)), arrays


def decode_pulled(message: solver.VjpResponse, arrays: Given, more: Iterable[types.Element] = ()) -> VjpReply:
    """The answer to an adjoint solve.

    Raises:
        MalformedError: a status is unknown.
    """
    return VjpReply(arrays.get("b"), arrays.get("values"), decode_certificate(message.certificate, more))


def encode_certificate(certificate: Certificate, elements: bool = True) -> types.Certificate:
    """The message of a certificate; `elements=False` leaves them to frames of their own."""
    seconds = certificate.seconds
    return types.Certificate(
        status=f"STATUS_{certificate.status.name}",
        method=certificate.method,
        reason=certificate.reason,
        precision=certificate.precision,
        iterations=certificate.iterations,
        relative_residual=certificate.relative_residual,
        backward_error=certificate.backward_error,
        condition_estimate=certificate.condition_estimate,
        symbolic_hit=certificate.symbolic_hit,
        factor_hit=certificate.factor_hit,
        seconds=types.Timings(
            queue=seconds.queue,
            hash=seconds.hash,
            analyze=seconds.analyze,
            factor=seconds.factor,
            solve=seconds.solve,
        ),
        instance=certificate.instance,
        refinements=certificate.refinements,
        elements=encode_elements(certificate.elements) if elements else (),
        preconditioner=certificate.preconditioner,
        inverse_norm=certificate.inverse_norm,
    )


def encode_elements(elements: Iterable[Element]) -> list[types.Element]:
    """The messages of a batch's elements."""
    return [
        types.Element(
            status=f"STATUS_{element.status.name}",
            iterations=element.iterations,
            relative_residual=element.relative_residual,
            backward_error=element.backward_error,
        )
        for element in elements
    ]


def decode_certificate(message: types.Certificate, more: Iterable[types.Element] = ()) -> Certificate:
    """A certificate; `more` are elements that came in frames of their own.

    Raises:
        MalformedError: a status that this version does not know.
    """
    seconds = message.seconds
    return Certificate(
        status=_status(message.status),
        method=message.method,
        reason=message.reason,
        precision=message.precision,
        iterations=message.iterations,
        relative_residual=message.relative_residual,
        backward_error=message.backward_error,
        condition_estimate=message.condition_estimate if message.HasField("condition_estimate") else None,
        symbolic_hit=message.symbolic_hit,
        factor_hit=message.factor_hit,
        seconds=Timings(seconds.queue, seconds.hash, seconds.analyze, seconds.factor, seconds.solve),
        instance=message.instance,
        refinements=message.refinements,
        elements=tuple(
            Element(_status(e.status), e.iterations, e.relative_residual, e.backward_error)
            for part in (message.elements, more)
            for e in part
        ),
        preconditioner=message.preconditioner if message.HasField("preconditioner") else None,
        inverse_norm=message.inverse_norm if message.HasField("inverse_norm") else None,
    )


def encode_info(info: ServerInfo) -> solver.GetServerInfoResponse:
    """The message of what a server is."""
    return solver.GetServerInfoResponse(
        version=info.version,
        api_versions=info.api_versions,
        digest_version=info.digest_version,
        instance=info.instance,
        device=info.device,
        dtypes=info.dtypes,
        methods=info.methods,
        preconditioners=info.preconditioners,
        limits=solver.Limits(
            max_message_bytes=info.limits.max_message_bytes, max_payload_bytes=info.limits.max_payload_bytes
        ),
        extensions=info.extensions,
        http_port=info.http_port,
        grpc_port=info.grpc_port,
        unix_http=info.unix_http,
        unix_grpc=info.unix_grpc,
        unix_shared=info.unix_shared,
        versions=info.versions,
    )


def decode_info(message: solver.GetServerInfoResponse) -> ServerInfo:
    """What a server is."""
    return ServerInfo(
        version=message.version,
        api_versions=tuple(message.api_versions),
        digest_version=message.digest_version,
        instance=message.instance,
        device=message.device,
        dtypes=tuple(message.dtypes),
        methods=tuple(message.methods),
        preconditioners=tuple(message.preconditioners),
        limits=Limits(message.limits.max_message_bytes, message.limits.max_payload_bytes),
        extensions=tuple(message.extensions),
        http_port=message.http_port if message.HasField("http_port") else None,
        grpc_port=message.grpc_port if message.HasField("grpc_port") else None,
        unix_http=message.unix_http if message.HasField("unix_http") else None,
        unix_grpc=message.unix_grpc if message.HasField("unix_grpc") else None,
        unix_shared=message.unix_shared if message.HasField("unix_shared") else None,
        versions=dict(message.versions),
    )


def decode_holdings(message: solver.FindResponse) -> list[Holding]:
    """How much of each matrix is held; what this version does not know counts as absent.

    A needless upload is the worst that can follow.
    """
    known = {holding.value: holding for holding in Holding}
    return [known.get(number, Holding.ABSENT) for number in message.holdings]


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        raise MalformedError("a status is unknown to this version: upgrade the older of client and server") from None
