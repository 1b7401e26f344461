"""From a matrix that is held and the options of a call to a factor on a worker."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final
from weakref import WeakKeyDictionary

import numpy as np

from backsolve.errors import (
    BacksolveError,
    DeviceOutOfMemoryError,
    InvalidOptionError,
    MemoryBudgetError,
    NotPositiveDefiniteError,
    NotSupportedError,
    SingularMatrixError,
)
from backsolve.storage import general
from backsolve.types import Options

from ..cache.entries import MatrixEntry, PatternEntry
from ..cache.flight import Order
from ..cache.store import FactorCache, Found
from ..context import CallContext, WouldWaitError
from ..engine.base import FactorSpec, Symbolic
from ..engine.device import CPU
from ..engine.faults import systems
from ..engine.operand import Operand
from ..engine.options import AUTO
from ..engine.registry import ROWS
from ..engine.select import Choice, choose, choose_for_update, choose_iterative
from ..engine.structured.update import predicted_nbytes, update_spec
from ..scheduling.scheduler import Scheduler
from ..scheduling.worker import FactorRef
from .reuse import Reuse, Stale
from .telemetry import Telemetry

_MOST_CHOICES = 32
"""Sets of options remembered with one matrix; a caller whose tolerance changes with every call has no end of them."""

_SMALL_DENSE = 128
"""Rows of a dense matrix whose LU factors and condition estimate take some 0.3 ms."""

Kind = tuple[object, ...]
"""Factors of one kind on one pattern are about equally large."""


@final
@dataclass(frozen=True, slots=True)
class Prepared:
    """A factor, how it was chosen, and what had to be done for it in this call.

    Attributes:
        ref: where the factor is.
        choice: the method and the reason.
        symbolic_hit, factor_hit: nothing was analysed, nothing was factorized.
        seconds_queued, seconds_analyze, seconds_factor: spent for this call.
        stale: the factor is of older values, and only preconditions the solve.
        built_as: the spec of the factor at `ref`.
    """

    ref: FactorRef
    choice: Choice
    symbolic_hit: bool
    factor_hit: bool
    seconds_queued: float
    seconds_analyze: float
    seconds_factor: float
    built_as: FactorSpec
    stale: Stale | None = None


@final
class Preparer:
    """Chooses a method, and has it analysed and factorized at most once.

    Args:
        cache: what is known already.
        scheduler: whose workers build what is not.
        device: where methods compute that can.
        telemetry: counts what was built.
        unfit: methods to do without, and why.
    """

    def __init__(
        self,
        cache: FactorCache[FactorRef],
        scheduler: Scheduler,
        device: str,
        telemetry: Telemetry,
        unfit: Mapping[str, str],
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._device = device
        self._telemetry = telemetry
        self._unfit = unfit
        self.reuse = Reuse(cache)
        self._seen: WeakKeyDictionary[PatternEntry[FactorRef], dict[Kind, int]] = WeakKeyDictionary()

    def prepare(
        self, entry: MatrixEntry[FactorRef], options: Options, *, has_x0: bool, context: CallContext
    ) -> Prepared:
        """The factor for a call on `entry`, which the caller keeps pinned.

        Raises:
            InvalidOptionError: an option that does not exist or is not used.
            NotSupportedError: the method is not offered here.
            SingularMatrixError, NotPositiveDefiniteError: the matrix has no such factor.
            DeadlineError, CancelledError, MemoryBudgetError, QueueFullError: not now.
            DeviceOutOfMemoryError: the device has no room, and the method cannot do without it.
            WouldWaitError: `context` must not wait, and there is something to build.
        """
        if entry.pattern.base is None:
            self._check_fit(options.method, options.method)
        first = choice = self._choose(entry, options, has_x0=has_x0)
        if entry.pattern.base is not None:
            self._check_fit(options.method, choice.spec.method)
            return self._update(entry, self._under(entry.pattern.base, choice, options, context), context)
        if options.reuse is not None:
            found, why = self._older(entry, choice)
            if found is not None:
                return found
            choice = replace(choice, reason=why or choice.reason)
        prepared = self._within_room(entry, choice, options, self._device, context)
        if first.most_fill is not None or (
            ROWS[first.spec.method].only_cuda and prepared.choice.spec.method != first.spec.method
        ):
            # The analysis has decided, or the device, once for all calls on these values.
            entry.choices[options, has_x0] = replace(prepared.choice, most_fill=None)
        if options.reuse is not None and not prepared.factor_hit:
            self.reuse.built(entry, prepared.built_as, prepared.seconds_factor)
        return prepared

    def at_hand(self, entry: MatrixEntry[FactorRef], options: Options, *, has_x0: bool) -> FactorRef | None:
        """The factor that `prepare` would find without building or waiting; None: it might have to."""
        if options.reuse is not None or options.recycle is not None or entry.pattern.base is not None:
            return None  # the bytes of an update's factor do not tell what a solve with S costs
        if not entry.factors:
            return None
        try:
            # The first adjoint solve finds no choice that was made for it, and yet its factor.
            choice = self._choose(entry, options, has_x0=has_x0)
        except BacksolveError:
            return None  # `prepare` will say what is wrong
        held = entry.factors.get(choice.spec)
        return None if held is None or held.away else held.ref

    def substitute(self, entry: MatrixEntry[FactorRef], choice: Choice, context: CallContext) -> Prepared:
        """The factor of another choice than the first, for a matrix that the first could not solve.

        Raises:
            As `prepare`.
        """
        if entry.pattern.base is not None:
            return self._update(entry, self._factor(entry.pattern.base, choice, context), context)
        return self._factor(entry, choice, context)

    def recycling(self, entry: MatrixEntry[FactorRef], count: int, context: CallContext) -> Symbolic:
        """What is kept of earlier solves on the pattern, empty at first; it counts and goes with the pattern.

        Raises:
            InvalidOptionError: of a batch, or more vectors than rows.
            DeadlineError, CancelledError, MemoryBudgetError, QueueFullError: not now.
        """
        operand = entry.operand
        if operand.batch is not None:
            raise InvalidOptionError("recycle is for single matrices, not for a batch: leave it out", option="recycle")
        if count > max(operand.n, 1):
            raise InvalidOptionError(
                f"recycle asks for {count} vectors, the matrix has {operand.n} rows: ask for fewer", option="recycle"
            )
        dtype = operand.wide_dtype

        def empty() -> Symbolic:
            from ..engine.krylov.recycling import Recycling  # noqa: PLC0415  (few calls recycle)

            return Recycling(general(entry.pattern.pattern), count, dtype)

        key = ("recycle", count, dtype.name)
        found = self._cache.get_symbolic(entry.pattern, key, lambda: self._scheduler.order(empty), context)
        return found.value

    def _choose(self, entry: MatrixEntry[FactorRef], options: Options, *, has_x0: bool) -> Choice:
        """`choose`, remembered with the matrix: a cached solve should not weigh the candidates again.

        Of an update it is the choice for the matrix that it stands on.
        """
        known = entry.choices
        found = known.get((options, has_x0))
        if found is None:
            base = entry.pattern.base
            if base is None:
                found = choose(entry.structure, options, has_x0=has_x0, device=self._device)
            else:
                with _of_base():
                    found = choose_for_update(base.structure, options, has_x0=has_x0)
            while found.fallback is not None and found.spec.method in self._unfit:
                found = found.fallback
            if len(known) >= _MOST_CHOICES:
                known.clear()
            known[options, has_x0] = found
        return found

    def _check_fit(self, asked: str, method: str) -> None:
        if asked != AUTO and method in self._unfit:
            raise NotSupportedError(
                f"method {method!r} is installed but not offered: {self._unfit[method]}; use another method, or 'auto'"
            )

    def _within_room(
        self, entry: MatrixEntry[FactorRef], choice: Choice, options: Options, device: str, context: CallContext
    ) -> Prepared:
        """The factor of a choice, or what takes less room where the caller leaves the method open."""
        try:
            return self._factor(entry, choice, context)
        except MemoryBudgetError as error:
            smaller = None
            if options.method == AUTO:
                why = f"no room for a factor by method {choice.spec.method!r}"
                smaller = choose_iterative(entry.structure, options, device, why)
            elif ROWS[choice.spec.method].least_squares and choice.fallback is not None:
                smaller = choice.fallback
            if smaller is None or smaller.spec == choice.spec:
                raise error
            return self._factor(entry, smaller, context)

    def _under(self, base: MatrixEntry[FactorRef], choice: Choice, options: Options, context: CallContext) -> Prepared:
        """The factor of S, for an update of it."""
        with _of_base():
            return self._within_room(base, choice, options, CPU, context)

    def _update(self, entry: MatrixEntry[FactorRef], under: Prepared, context: CallContext) -> Prepared:
        """The factor of an update on the factor of S, on the worker that holds that one.

        It counts as a hit if S was factorized already: nothing else here is a factorization.
        """
        assert entry.pattern.base is not None
        spec, operand = update_spec(under.built_as), entry.operand
        reason = f"update of rank {operand.wide[0]['U'].shape[1]} on a factor of S; {under.choice.reason}"
        choice = Choice(spec, reason, under.choice.fallback)
        held = self._cache.factor(entry, spec)
        if held is not None:
            return replace(under, ref=held, choice=choice, built_as=spec)
        if context.at_once:
            raise WouldWaitError
        made = self._cache.get_factor(
            entry,
            spec,
            lambda: self._scheduler.order_update(under.ref, operand, spec, context),
            context,
            predicted_nbytes(operand),
            (entry.pattern.base, under.built_as),
        )
        self._keep_place(made, context)
        return replace(
            under,
            ref=made.value,
            choice=choice,
            built_as=spec,
            seconds_queued=under.seconds_queued + made.seconds_queued,
            seconds_factor=under.seconds_factor + made.seconds_run,
        )

    def _older(self, entry: MatrixEntry[FactorRef], choice: Choice) -> tuple[Prepared | None, str]:
        """A factor of older values by any method of the choice, or why none is used."""
        if entry.operand.batch is not None:
            return None, "of a batch no factor of older values is used: factorized anew"
        why, each = "", choice
        while True:
            stale, reason = self.reuse.consider(entry, each.spec)
            if stale is not None:
                return _preconditioned(stale, each), ""
            why = why or reason
            if each.fallback is None:
                return None, why
            each = each.fallback

    def _factor(self, entry: MatrixEntry[FactorRef], choice: Choice, context: CallContext) -> Prepared:
        """A factor of these very values, by the first method of the choice that has one."""
        vacated = False
        while True:
            try:
                return self._build(entry, choice, context)
            except DeviceOutOfMemoryError:
                # Others' factors go first; when there are none that could, the host takes the work.
                if not vacated and self.vacate_device():
                    vacated = True
                elif _has_host(choice):
                    choice = _on_host(choice)
                elif choice.fallback is not None:
                    choice = _instead(choice, choice.fallback, "has no room")
                else:
                    raise
            except NotSupportedError:
                if not ROWS[choice.spec.method].only_cuda or choice.fallback is None:
                    raise
                choice = _instead(choice, choice.fallback, "cannot do it")
            except (NotPositiveDefiniteError, SingularMatrixError):
                # Only the factorization itself could tell; the cache remembers that it did.
                least_squares = ROWS[choice.spec.method].least_squares
                # What stands in for fill alone is no better off, but for LSMR, which minimises whatever the rank is.
                if choice.fallback is None or (choice.most_fill is not None and not least_squares):
                    raise
                choice = choice.fallback

    def vacate_device(self) -> bool:
        """Take everything unused from the device; False when nothing was there."""
        return self._cache.vacate_device()

    def _build(self, entry: MatrixEntry[FactorRef], choice: Choice, context: CallContext) -> Prepared:
        held = self._cache.factor(entry, choice.spec)
        if held is not None:
            return Prepared(held, choice, True, True, 0.0, 0.0, 0.0, choice.spec)
        here = context.at_once
        if here and not small_enough(entry.operand):
            raise WouldWaitError
        symbolic = self._cache.get_symbolic(
            entry.pattern,
            choice.spec.analysis,
            lambda: self._analyze(choice, entry, here=here),
            context,
        )
        self._keep_place(symbolic, context)
        if choice.most_fill is not None and choice.fallback is not None:
            fill = symbolic.value.predicted_fill()
            if fill is None or fill > choice.most_fill:
                behind = self._build(entry, choice.fallback, context)
                return replace(
                    behind,
                    seconds_queued=behind.seconds_queued + symbolic.seconds_queued,
                    seconds_analyze=behind.seconds_analyze + symbolic.seconds_run,
                )
        factor = self._cache.get_factor(
            entry,
            choice.spec,
            lambda: self._scheduler.order_factor(
                symbolic.value, entry.operand, choice.spec, context=context, here=here
            ),
            context,
            self._predicted_bytes(entry, choice, symbolic.value),
        )
        self._keep_place(factor, context)
        self._seen.setdefault(entry.pattern, {})[_kind(choice, entry)] = (
            factor.value.device_nbytes or factor.value.nbytes
        )
        self._count(symbolic, factor, choice)
        return Prepared(
            ref=factor.value,
            choice=choice,
            symbolic_hit=symbolic.lookup == "hit",
            factor_hit=factor.lookup == "hit",
            seconds_queued=symbolic.seconds_queued + factor.seconds_queued,
            seconds_analyze=symbolic.seconds_run,
            seconds_factor=factor.seconds_run,
            built_as=choice.spec,
        )

    def _predicted_bytes(self, entry: MatrixEntry[FactorRef], choice: Choice, symbolic: Symbolic) -> int:
        """Room to set aside before factorizing: as much as the last such factor took, else as the analysis foretells.

        Of the first factor of a method that foretells nothing, nothing is known.
        """
        seen = self._seen.setdefault(entry.pattern, {}).get(_kind(choice, entry))
        if seen is not None:
            return seen
        predicted = systems(entry.operand) * (symbolic.predicted_nbytes(choice.spec.precision) or 0)
        if choice.spec.device != CPU:
            predicted -= entry.operand.values.nbytes  # the copy of its process, which lies on the host
        return max(predicted, 0)

    def _analyze(self, choice: Choice, entry: MatrixEntry[FactorRef], *, here: bool) -> Order[Symbolic]:
        self._telemetry.count("analyses")
        pattern = general(entry.pattern.pattern)
        return self._scheduler.order_analysis(choice.spec, pattern, tenant=entry.tenant, here=here)

    def _keep_place(self, found: Found[Any], context: CallContext) -> None:
        """What a call has waited for was not for nothing: it is not turned away before its next job."""
        if found.lookup != "hit":
            self._scheduler.keep_place(context)

    def _count(self, symbolic: Found[Symbolic], factor: Found[FactorRef], choice: Choice) -> None:
        if symbolic.lookup == "miss":
            self._telemetry.phase("analyze", symbolic.seconds_run)
        if factor.lookup == "miss":
            self._telemetry.phase("factor", factor.seconds_run)


def small_enough(operand: Operand) -> bool:
    """Whether a matrix is factorized sooner than the work is handed to another thread, and on any thread."""
    return operand.pattern.layout == "dense" and operand.batch is None and operand.n <= _SMALL_DENSE


@contextmanager
def _of_base() -> Iterator[None]:
    """Say of a matrix that is found singular here that it is the one under an update."""
    try:
        yield
    except SingularMatrixError as error:
        raise SingularMatrixError(
            "S is singular, so that no update can be solved with its factor: move a part of U V^H or of the "
            "diagonal into S, or solve S + U V^H written out",
            **error.details,
        ) from error


def _has_host(choice: Choice) -> bool:
    return choice.spec.device != CPU and not ROWS[choice.spec.method].only_cuda


def _on_host(choice: Choice) -> Choice:
    """The same method on the CPU."""
    return Choice(
        replace(choice.spec, device=CPU),
        f"{choice.reason}; on the CPU, since {choice.spec.device} has no room",
        None if choice.fallback is None else _on_host(choice.fallback),
    )


def _instead(choice: Choice, fallback: Choice, why: str) -> Choice:
    """What stands behind a method that a device alone has."""
    return replace(fallback, reason=f"{choice.spec.method} on {choice.spec.device} {why}: {fallback.reason}")


def _kind(choice: Choice, entry: MatrixEntry[FactorRef]) -> Kind:
    return (*choice.spec.analysis, choice.spec.precision, systems(entry.operand))


def _preconditioned(stale: Stale, choice: Choice) -> Prepared:
    """New values on an old factor: nothing is built."""
    spec = choice.spec
    wide = np.promote_types(spec.precision, np.float64).name
    krylov = FactorSpec("fgmres", f"stale({spec.method})", wide, spec.device)
    return Prepared(stale.ref, Choice(krylov, stale.reason), True, True, 0.0, 0.0, 0.0, spec, stale)
