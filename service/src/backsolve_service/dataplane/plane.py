"""The data plane: validate → fingerprint → cache → schedule → solve → certify. It knows no transport."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from threading import Lock
from typing import TypeVar, final

from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, VjpCall, VjpReply
from backsolve.errors import (
    BacksolveError,
    DrainingError,
    NeedMatrixError,
    PayloadTooLargeError,
)
from backsolve.fingerprint import Taken
from backsolve.matrix import Matrix
from backsolve.pattern import AnyPattern
from backsolve.types import (
    DIGEST_VERSION,
    DTYPES,
    ErrorCode,
    Holding,
    Limits,
    MatrixRef,
    ServerInfo,
)

from .. import __version__
from ..cache.store import FactorCache
from ..context import CallContext, WouldWaitError
from ..engine.device import CPU, factor_budget, memory
from ..engine.registry import methods, preconditioners
from ..machine import usable_cpus
from ..observer import OK, REFUSED, Observer, Reading, Silent
from ..scheduling.scheduler import STUCK_SECONDS, Scheduler
from ..scheduling.steps import Steps, finish
from ..scheduling.worker import FactorRef, Worker
from .calls import Calls
from .prepare import Preparer
from .solving import Answering
from .telemetry import Telemetry

T = TypeVar("T")

_MIB, _GIB = 1 << 20, 1 << 30

_COUNTED = "_backsolve_counted"
"""Attribute of an exception that `requests_total` has seen."""


@final
@dataclass(frozen=True, slots=True)
class PlaneConfig:
    """Settings of a data plane.

    Attributes:
        device: "cpu" or a CUDA device; where methods compute that can.
        workers: threads that factorize and solve.
        processes: processes for methods that need one; started when there is such a call.
        isolated: methods that run in processes although they could run on threads.
        stuck_seconds: how long a process may work on for nobody before it is killed.
        unfit: methods that are not offered although their libraries are installed, and why.
        cache_bytes: budget for patterns, matrices and factors in the host's memory.
        device_cache_bytes: budget for factors on the device; None: a share of what is free there now.
        max_payload_bytes: largest single call.
        queue_depth, queue_bytes: most calls, and bytes of right-hand sides, that may wait.
        block_columns: most columns of several callers that are solved as one block; None: what the method gains by.
        instance: name of this process in certificates.
        http_port, grpc_port, unix_http, unix_grpc, unix_shared: where it listens, for `info()`.
    """

    device: str = "cpu"
    workers: int = field(default_factory=usable_cpus)
    processes: int = 1
    isolated: frozenset[str] = frozenset()
    stuck_seconds: float = STUCK_SECONDS
    unfit: Mapping[str, str] = field(default_factory=dict)
    cache_bytes: int = 2 * _GIB
    device_cache_bytes: int | None = None
    max_payload_bytes: int = _GIB
    queue_depth: int = 128
    queue_bytes: int = 2 * _GIB
    block_columns: int | None = None
    instance: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    http_port: int | None = None
    grpc_port: int | None = None
    unix_http: str | None = None
    unix_grpc: str | None = None
    unix_shared: str | None = None


@final
class DataPlane:
    """Everything behind the transports. Thread-safe.

    Args:
        config: sizes and device.
        observer: hears of every event; by default nobody.

    Every call raises a class of `backsolve.errors`.
    """

    def __init__(self, config: PlaneConfig | None = None, observer: Observer | None = None) -> None:
        self.config = config or PlaneConfig()
        self.limits = Limits(max_message_bytes=8 * _MIB, max_payload_bytes=self.config.max_payload_bytes)
        self.telemetry = Telemetry(observer or Silent())
        self._scheduler = Scheduler(
            self.config.workers,
            self.config.queue_depth,
            self.config.queue_bytes,
            self.telemetry,
            processes=self.config.processes,
            isolated=self.config.isolated,
            stuck_seconds=self.config.stuck_seconds,
            block_columns=self.config.block_columns,
            lost=self._forget,
        )
        on_device = self.config.device_cache_bytes
        self._cache: FactorCache[FactorRef] = FactorCache(
            self.config.cache_bytes,
            self._scheduler.free,
            self.telemetry,
            device_bytes=factor_budget(self.config.device) if on_device is None else on_device,
            move=lambda ref, out: self._scheduler.move(ref, CPU if out else ref.spec.device),
        )
        preparer = Preparer(self._cache, self._scheduler, self.config.device, self.telemetry, self.config.unfit)
        answering = Answering(self._scheduler, preparer, self._cache, self.telemetry, self.config.instance)
        self._calls = Calls(self._cache, answering, self.telemetry, self.limits)
        self._lock = Lock()
        self._inflight = 0
        self._bind_gauges()

    # -- calls -----------------------------------------------------------------------------

    def solve(self, call: SolveCall, context: CallContext) -> SolveReply:
        """Solve `op(A) x = b`."""
        return finish(self.solving(call, context), context)

    def vjp(self, call: VjpCall, context: CallContext) -> VjpReply:
        """Pull a cotangent back: one adjoint solve with the forward's factor."""
        return finish(self.pulling(call, context), context)

    def jvp(self, call: JvpCall, context: CallContext) -> SolveReply:
        """Push tangents forward: one solve with the forward's factor."""
        return finish(self.pushing(call, context), context)

    def solving(self, call: SolveCall, context: CallContext) -> Steps[SolveReply]:
        """`solve`, step by step."""
        size = call.rhs.nbytes + (0 if call.values is None else call.values.nbytes)
        return self._steps("solve", context, size, lambda: self._calls.solve(call, context), _solved_bytes)

    def pulling(self, call: VjpCall, context: CallContext) -> Steps[VjpReply]:
        """`vjp`, step by step."""
        size = call.cotangent.nbytes + (0 if call.x is None else call.x.nbytes)
        return self._steps("vjp", context, size, lambda: self._calls.vjp(call, context), _pulled_bytes)

    def pushing(self, call: JvpCall, context: CallContext) -> Steps[SolveReply]:
        """`jvp`, step by step."""
        given = (call.x, call.b_tangent, call.values_tangent)
        size = sum(a.nbytes for a in given if a is not None)
        return self._steps("jvp", context, size, lambda: self._calls.jvp(call, context), _solved_bytes)

    def at_hand(self, call: SolveCall | VjpCall | JvpCall, context: CallContext) -> bool:
        """Whether a call has a cached factor, and little else to do than to solve with it; it is not counted."""
        return not isinstance(call, JvpCall) and self._calls.at_hand(call, context)

    def put(self, call: PutCall, context: CallContext, taken: Taken | None = None) -> MatrixRef:
        """Keep a matrix under the digests of what was received, which become this plane's own.

        The matrix's arrays must not be written to afterwards. Idempotent.

        Args:
            call: the matrix, and the digests that its sender says.
            context: of the call.
            taken: digests that the transport took of the arrays' bytes as they arrived, never the sender's.

        Raises:
            DigestMismatchError: the data are not what `call.ref` says.
            NonfiniteInputError: NaN or infinity among the values.
            PayloadTooLargeError, MemoryBudgetError: there is no room for it.
        """
        size = call.matrix.values.nbytes + (0 if call.values_only else call.matrix.pattern.nbytes)
        return self._request("put", context, size, lambda: self._calls.put(call, context, taken), lambda _: 0)

    def pattern(self, digest: bytes, context: CallContext) -> tuple[AnyPattern, Matrix | None]:
        """The pattern that values sent alone belong to, and the matrix that it stands on if it is of updates.

        Raises:
            NeedMatrixError: it is not held.
        """
        entry = self._cache.pattern(context.tenant, digest)
        if entry is None:
            raise NeedMatrixError("this pattern is not held here: send the whole matrix")
        return entry.pattern, None if entry.base is None else entry.base.operand.matrix.named(entry.base.ref)

    def base(self, ref: MatrixRef, context: CallContext) -> Matrix:
        """The matrix that an update is to stand on.

        Raises:
            NeedMatrixError, NeedValuesError: it is not held, and has to be sent first; `details["base"]` names it.
        """
        return self._calls.base(ref, context).operand.matrix.named(ref)

    def require(self, ref: MatrixRef, context: CallContext, *, brought: bool = False) -> None:
        """Answer a call's header before its bulk is sent.

        Args:
            ref: what the call names.
            context: of the call.
            brought: the values of the matrix are part of the bulk.

        Raises:
            NeedMatrixError, NeedValuesError: what the caller has to send first.
            DrainingError: the service is shutting down.
        """
        self._check_open()
        self._calls.refuse_missing(ref, self._cache.holding(context.tenant, ref), brought=brought)

    def refuse_when_full(self, calls: int, context: CallContext) -> None:
        """Turn a call away on its header when there is no room to queue for it, before its body is read and hashed.

        Args:
            calls: that the transport has let in and not answered yet.
            context: of the call.

        Raises:
            DrainingError: the service is shutting down.
            QueueFullError: it would be refused after all that work.
        """
        self._check_open()
        self._scheduler.refuse_when_full(calls, context)

    def find(self, refs: Sequence[MatrixRef], context: CallContext) -> list[Holding]:
        """How much of each matrix is held."""
        return self._request(
            "find", context, 64 * len(refs), lambda: [self._cache.holding(context.tenant, r) for r in refs], len
        )

    def release(self, ref: MatrixRef, context: CallContext) -> None:
        """A hint that this caller needs the matrix no longer; other callers lose nothing by it."""
        self._request("release", context, 64, lambda: self._cache.release(context.tenant, ref), lambda _: 0)

    def refused(self, error: BaseException, transport: str, request_id: str) -> None:
        """Count a call that failed before it reached any of the calls above.

        A transport reports every failure it answers; those that were counted already are not
        counted again.
        """
        if getattr(error, _COUNTED, False):
            return
        code = error.code.name if isinstance(error, BacksolveError) else ErrorCode.INTERNAL.name
        self.telemetry.request(REFUSED, transport, code, 0.0, request_bytes=0, response_bytes=0, request_id=request_id)

    # -- what it is ------------------------------------------------------------------------

    def info(self) -> ServerInfo:
        """Versions, limits and methods."""
        return ServerInfo(
            version=__version__,
            api_versions=("v1",),
            digest_version=DIGEST_VERSION,
            instance=self.config.instance,
            device=self.config.device,
            dtypes=tuple(d.name for d in DTYPES),
            methods=tuple(name for name in methods(self.config.device) if name not in self.config.unfit),
            preconditioners=preconditioners(),
            limits=self.limits,
            extensions=("vjp", "jvp", "batch", "values-only", "values-brought", "update", "storage"),
            http_port=self.config.http_port,
            grpc_port=self.config.grpc_port,
            unix_http=self.config.unix_http,
            unix_grpc=self.config.unix_grpc,
            unix_shared=self.config.unix_shared,
            versions=_library_versions(),
        )

    def stats(self) -> Mapping[str, float]:
        """Counters since the start, and what the cache holds now."""
        held, count = self._cache.bytes(), self._cache.entries()
        sizes = {f"cache_bytes_{level}": float(size) for level, size in held.items()}
        counts = {f"cache_entries_{level}": float(number) for level, number in count.items()}
        on_device = float(self._cache.device_bytes())
        total = {"cache_bytes": float(sum(held.values())), "cache_bytes_device": on_device}
        return {**self.telemetry.totals(), **sizes, **counts, **total, **self._in_use()}

    def _in_use(self) -> Mapping[str, float]:
        """What calls under way hold; all of it is 0 when none is."""
        work, cache = self._scheduler.stats, self._cache.in_use()
        return {
            "calls_inflight": float(self._inflight),
            "queue_depth": float(work.depth),
            "queue_running": float(work.inflight),
            "queue_bytes": float(work.nbytes),
            "cache_bytes_reserved": float(cache.reserved),
            "cache_pinned": float(cache.pinned),
        }

    @property
    def ready(self) -> bool:
        """Whether new calls are taken; never waits."""
        return not self._scheduler.draining

    @property
    def inflight(self) -> int:
        """Calls that are being answered."""
        return self._inflight

    # -- its end ---------------------------------------------------------------------------

    def drain(self) -> None:
        """Refuse new calls with DrainingError; those under way are answered."""
        self._scheduler.drain()

    def close(self, timeout: float = 10.0) -> bool:
        """Answer what is under way, for at most `timeout` seconds, and free everything.

        Returns:
            Whether everything ended in time.
        """
        return self._scheduler.close(timeout)

    def _forget(self, worker: Worker) -> None:
        """A worker lost its factors: the cache forgets them."""
        self._cache.forget(lambda ref: ref.worker is worker and not worker.holds(ref))

    # -- around them -----------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._scheduler.draining:
            raise DrainingError(
                "the service is shutting down: ask again, another or the next one will answer", retry_after=1.0
            )

    def _request(
        self, op: str, context: CallContext, nbytes: int, answer: Callable[[], T], size: Callable[[T], int]
    ) -> T:
        """Run one call that never waits between its beginning and its end."""
        return finish(self._steps(op, context, nbytes, partial(_only, answer), size), context)

    def _steps(
        self, op: str, context: CallContext, nbytes: int, answer: Callable[[], Steps[T]], size: Callable[[T], int]
    ) -> Steps[T]:
        """One call between its beginning and its end, which are counted whatever happens."""
        started = time.perf_counter()
        code: str | None = OK
        replied = 0
        with self._lock:
            self._inflight += 1
        try:
            context.check()
            if nbytes > self.limits.max_payload_bytes:
                raise PayloadTooLargeError(
                    f"the call has {nbytes} bytes, this server takes {self.limits.max_payload_bytes}",
                    size=nbytes,
                    limit=self.limits.max_payload_bytes,
                )
            with self._scheduler.call(context):
                reply = yield from answer()
            replied = size(reply)
            return reply
        except WouldWaitError:
            code = None
            raise
        except GeneratorExit:
            code = ErrorCode.CANCELLED.name
            raise
        except BaseException as error:
            code = error.code.name if isinstance(error, BacksolveError) else ErrorCode.INTERNAL.name
            setattr(error, _COUNTED, True)
            raise
        finally:
            with self._lock:
                self._inflight -= 1
            if code is not None:
                self.telemetry.request(
                    op,
                    context.transport,
                    code,
                    time.perf_counter() - started,
                    request_bytes=nbytes,
                    response_bytes=replied,
                    request_id=context.request_id,
                )

    def _bind_gauges(self) -> None:
        observer = self.telemetry
        observer.bind("inflight_requests", lambda: float(self._inflight))
        observer.bind("queue_depth", lambda: float(self._scheduler.stats.depth))
        observer.bind("cache_bytes", self._tiers)
        observer.bind("cache_entries", lambda: {(level,): float(n) for level, n in self._cache.entries().items()})

        if self.config.device != CPU:
            observer.bind(
                "device_memory_bytes", lambda: {(k,): float(n) for k, n in memory(self.config.device).items()}
            )

    def _tiers(self) -> Reading:
        tiers: dict[tuple[str, ...], float] = {(level, "host"): float(n) for level, n in self._cache.bytes().items()}
        if self.config.device != CPU:
            tiers["factor", "device"] = float(self._cache.device_bytes())
        return tiers


def _only(answer: Callable[[], T]) -> Steps[T]:
    """The steps of what never waits."""
    yield from ()
    return answer()


@cache
def _library_versions() -> Mapping[str, str]:
    return {name: version(name) for name in ("numpy", "scipy", "torch", "grpcio", "protobuf", "blake3")}


def _solved_bytes(reply: SolveReply) -> int:
    return int(reply.x.nbytes)


def _pulled_bytes(reply: VjpReply) -> int:
    return sum(int(a.nbytes) for a in (reply.b, reply.values) if a is not None)
