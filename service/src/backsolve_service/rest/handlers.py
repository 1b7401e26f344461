"""The routes: each checks headers, reads its body, hands the work to a thread, and sends what comes back."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from backsolve._rest.body import MEDIA_TYPE, aligned, decode
from backsolve._rest.documents import info_to_json, ref_from_key
from backsolve._rest.messages import put_base, read_put
from backsolve._transports.base import REPEATED_HEADER, PutCall
from backsolve.errors import DigestMismatchError, DrainingError, MalformedError
from backsolve.fingerprint import Taken
from backsolve.matrix import Matrix
from backsolve.types import Holding, MatrixRef

from ..arriving import LEAST_BYTES
from ..context import CallContext
from ..sharing.registry import Registry
from . import coding, uploads
from .buffers import Buffers
from .exchange import Exchange, Reply, query_choice
from .hashing import BodyDigests
from .media import JSON, reply_type, request_type, timeout_seconds
from .operations import Job, Request
from .parking import WATCH_AFTER_SECONDS, Parking
from .places import Place, Places
from .shared import Sharing, sharing_of

if TYPE_CHECKING:
    from ..dataplane.plane import DataPlane

T = TypeVar("T")

ASK_FIRST_BYTES = 1 << 20
"""Before a larger body is read, it is made sure that its matrix is held here."""

BODIES_IN_MEMORY = 4
"""Bodies being read or worked on may together be this many times the largest one."""

AT_ONCE_BYTES = 256 << 10
"""Smaller bodies are read on the event loop, and answered there if a small factor lies ready."""

_MOST_ALONE, _MOST_AMONG_OTHERS = 8 << 20, 512 << 10
"""Bytes of a factor that may be read on the event loop: about 0.8 ms for a lone caller, 0.05 ms among others.

Whatever else arrives waits for all of them, and larger solves are better joined into blocks.
"""

_HELD = (Holding.VALUES, Holding.FACTOR)


@final
class Handlers:
    """The routes over one data plane.

    Args:
        plane: what answers.
        pool: threads for everything that is not moving bytes; more of them than calls may
            queue, so that a full queue is told and not waited for.
        metrics_text: the page for Prometheus and its media type.
        registry: the memory that callers share, or None where that is not offered.
    """

    def __init__(
        self,
        plane: "DataPlane",
        pool: Executor,
        metrics_text: Callable[[], tuple[bytes, str]],
        registry: Registry | None = None,
    ) -> None:
        self._plane, self._pool, self._metrics_text, self._registry = plane, pool, metrics_text, registry
        self._buffers = Buffers()
        self._places = Places(plane.refuse_when_full, BODIES_IN_MEMORY * plane.limits.max_payload_bytes)
        self._parked: Parking | None = None
        self._computing = 0
        self.draining = False

    async def compute(self, job: Job, exchange: Exchange) -> None:
        """POST /v1/solve, /v1/vjp, /v1/jvp."""
        self._check_open()
        source = request_type(exchange, (MEDIA_TYPE, JSON))
        target = reply_type(exchange, (MEDIA_TYPE, JSON) if source == MEDIA_TYPE else (JSON, MEDIA_TYPE))
        strict = query_choice(exchange, "on_failure", ("return", "raise")) == "raise"
        packed = coding.wants_zstd(exchange)
        context = self._context(exchange)
        sharing = sharing_of(exchange, source, self._registry)
        size = exchange.length(self._plane.limits.max_payload_bytes, sharing.nbytes)
        named = exchange.headers.get("backsolve-matrix")
        ref = None if named is None else ref_from_key(named)
        brought = exchange.headers.get("backsolve-brings", "").lower() == "values"
        allocate = aligned if brought else self._buffers.take  # brought values stay, and with them their buffer
        with self._places.let_in(size, context) as place:
            if ref is not None and size > ASK_FIRST_BYTES:
                await self._run(partial(self._plane.require, ref, context, brought=brought))
            body = await self._body(exchange, size, sharing, place, allocate)

            def work() -> Reply:
                request = Request(sharing.gather(body, allocate), source, target, strict, context)
                reply = sharing.deliver(job(self._plane, request))
                return coding.encode(reply) if packed else reply

            reply = None
            self._computing += 1
            try:
                at_once = not packed and sharing.registry is None and source == MEDIA_TYPE
                if at_once and body.size <= AT_ONCE_BYTES:
                    request = Request(body, source, target, strict, context)
                    most_bytes = _MOST_ALONE if self._computing == 1 else _MOST_AMONG_OTHERS
                    steps = job.at_once(self._plane, request, most_bytes)
                    reply = await self._parking().finish(steps, context, exchange.gone)
                if reply is None:
                    reply = await self._watched(exchange, context, work)
            finally:
                self._computing -= 1
            await exchange.reply(reply)

    async def upload(self, exchange: Exchange) -> None:
        """POST /v1/matrices."""
        self._check_open()
        source = request_type(exchange, tuple(uploads.READERS))
        reply_type(exchange, (JSON,))
        context = self._context(exchange)
        sharing = sharing_of(exchange, source, self._registry)
        size = exchange.length(self._plane.limits.max_payload_bytes, sharing.nbytes)
        with self._places.let_in(size, context) as place:
            body = await self._body(exchange, size, sharing, place)
            reply = await self._watched(exchange, context, partial(self._accept, source, body, sharing, context))
        await exchange.reply(reply)

    def _accept(self, source: str, inline: NDArray[np.uint8], sharing: Sharing, context: CallContext) -> Reply:
        body = sharing.gather(inline)
        matrix = uploads.read_matrix(
            source, body, self._plane.limits.max_payload_bytes, lambda ref: self._plane.base(ref, context)
        )
        held = self._holding(matrix.ref, context) in _HELD
        matrix = Matrix(matrix.pattern, uploads.own(matrix.values, body), matrix.base)
        ref = self._plane.put(PutCall(matrix.ref, matrix), context)
        return _accepted(ref, matrix, held)

    async def put(self, exchange: Exchange) -> None:
        """PUT /v1/matrices/{ref}."""
        self._check_open()
        ref = _path_ref(exchange)
        source = request_type(exchange, (MEDIA_TYPE,))
        reply_type(exchange, (JSON,))
        context = self._context(exchange)
        sharing = sharing_of(exchange, source, self._registry)
        size = exchange.length(self._plane.limits.max_payload_bytes, sharing.nbytes)
        with self._places.let_in(size, context) as place:
            digests = None
            if size >= LEAST_BYTES and not sharing.nbytes and coding.request_coding(exchange) is None:
                digests = BodyDigests(self._pool, lambda: self._plane.pattern(ref.pattern, context)[0].layout)
            watch = None if digests is None else digests.came
            body = await self._body(exchange, size, sharing, place, watch=watch)
            taken = Taken() if digests is None else await digests.taken()
            reply = await self._watched(exchange, context, partial(self._store, ref, body, sharing, taken, context))
        await exchange.reply(reply)

    def _store(
        self, ref: MatrixRef, inline: NDArray[np.uint8], sharing: Sharing, taken: Taken, context: CallContext
    ) -> Reply:
        body = sharing.gather(inline)
        message = decode(body)
        named = put_base(message)
        base = None if named is None else self._plane.base(named, context)
        pattern, values = read_put(message, base)
        values_only = pattern is None
        if pattern is None:
            pattern, base = self._plane.pattern(ref.pattern, context)
        matrix = Matrix(pattern, uploads.own(values, body), base)
        held = self._holding(ref, context) in _HELD
        stored = self._plane.put(PutCall(ref, matrix, values_only), context, taken)
        if stored != ref:
            raise DigestMismatchError("the matrix received does not have the digests of its address: send it again")
        return _accepted(stored, matrix, held)

    async def head(self, exchange: Exchange) -> None:
        """HEAD /v1/matrices/{ref}."""
        context = self._context(exchange)
        holding = await self._run(self._holding, _path_ref(exchange), context)
        status = 200 if holding in _HELD else 404
        await exchange.reply(Reply(status, "", (), {"backsolve-holding": holding.name.lower()}))

    async def delete(self, exchange: Exchange) -> None:
        """DELETE /v1/matrices/{ref}."""
        await self._run(self._plane.release, _path_ref(exchange), self._context(exchange))
        await exchange.reply(Reply(204, ""))

    async def info(self, exchange: Exchange) -> None:
        """GET /v1/info."""
        reply_type(exchange, (JSON,))
        info = await self._run(self._plane.info)
        await exchange.reply(_json(info_to_json(info)))

    async def stats(self, exchange: Exchange) -> None:
        """GET /v1/stats: the data plane's, and `body_bytes`, the memory of bodies that are read or worked on."""
        reply_type(exchange, (JSON,))
        counters = await self._run(self._plane.stats)
        await exchange.reply(_json({**counters, "body_bytes": float(self._places.nbytes)}))

    async def metrics(self, exchange: Exchange) -> None:
        """GET /metrics."""
        page, media_type = await self._run(self._metrics_text)
        await exchange.reply(Reply(200, media_type, (page,)))

    async def live(self, exchange: Exchange) -> None:
        """GET /livez, /v2/health/live: the event loop turns; nothing else is asked."""
        await exchange.reply(_json({"live": True}))

    async def ready(self, exchange: Exchange) -> None:
        """GET /readyz, /v2/health/ready: a flag is read; nothing else is asked."""
        ready = self._plane.ready and not self.draining
        await exchange.reply(_json({"ready": ready}, 200 if ready else 503))

    def _holding(self, ref: MatrixRef, context: CallContext) -> Holding:
        return self._plane.find([ref], context)[0]

    def _context(self, exchange: Exchange) -> CallContext:
        return CallContext.within(
            timeout_seconds(exchange),
            "rest",
            exchange.request_id,
            exchange.tenant,
            repeated=REPEATED_HEADER in exchange.headers,
        )

    def _check_open(self) -> None:
        if self.draining:
            raise DrainingError(
                "the server is shutting down: ask again, another one or its successor will answer", retry_after=1
            )

    async def _body(
        self,
        exchange: Exchange,
        size: int,
        sharing: Sharing,
        place: Place,
        allocate: Callable[[int], NDArray[np.uint8]] = aligned,
        watch: Callable[[NDArray[np.uint8], int], None] | None = None,
    ) -> NDArray[np.uint8]:
        """The body of a message of `size` bytes, decoded; there is room at its place for it as it came already."""
        sent = size - sharing.nbytes
        if coding.request_coding(exchange) is None:
            return await exchange.read(sent, allocate, watch)
        if sharing.nbytes:
            raise MalformedError("the header of tensors in shared memory is sent as it is, without Content-Encoding")
        body = await exchange.read(sent)
        whole = await self._run(coding.decoded_size, body, self._plane.limits.max_payload_bytes)
        place.take(whole)
        return await self._run(coding.decode, body, whole, allocate)

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments))

    async def _watched(self, exchange: Exchange, context: CallContext, work: Callable[[], T]) -> T:
        """Run work on a thread; cancel its context if the caller goes away meanwhile."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, work)
        await asyncio.wait((future,), timeout=WATCH_AFTER_SECONDS)
        if not future.done():
            gone = asyncio.ensure_future(exchange.gone())
            await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                # On another thread: whoever listens to the cancellation may take a lock.
                await loop.run_in_executor(None, context.cancel)
            gone.cancel()
        return await future

    def _parking(self) -> Parking:
        """Of the event loop that serves."""
        if self._parked is None:
            self._parked = Parking()
        return self._parked


def _path_ref(exchange: Exchange) -> MatrixRef:
    return ref_from_key(exchange.scope["path_params"]["ref"])


def _accepted(ref: MatrixRef, matrix: Matrix, held: bool) -> Reply:
    document = {"pattern": ref.pattern.hex(), "values": ref.values.hex(), "ref": ref.key, **uploads.describe(matrix)}
    reply = _json(document, 200 if held else 201)
    return Reply(reply.status, reply.media_type, reply.pieces, {"location": f"/v1/matrices/{ref.key}"})


def _json(document: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, JSON, (json.dumps(document).encode(),))
