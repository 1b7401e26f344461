"""The process of a process worker: `python -m backsolve_service.scheduling.child`.

It imports the engine alone, serves one request after another, and ends when its owner does: it
reads the end of the stream when it is idle, and the kernel kills it when it is not.
"""

import contextlib
import ctypes
import faulthandler
import mmap
import os
import pickle
import signal
import socket
import sys
import traceback
from dataclasses import replace
from typing import final

import numpy as np

from backsolve.errors import BacksolveError, DeviceOutOfMemoryError, InternalError, MemoryBudgetError
from backsolve.kinds import UPDATE
from backsolve.matrix import Matrix, standing_on
from backsolve.pattern import AnyPattern, Pattern, StructuredPattern
from backsolve.types import DTYPES, Array

from ..engine.accelerator.faults import DeviceFaultError, is_fault
from ..engine.answer import answer
from ..engine.base import Factor, Symbolic
from ..engine.operand import Operand
from ..engine.precond.stale import preconditioned
from ..engine.restricted import solver_for
from ..engine.structured.update import factorize_update
from .channel import Channel
from .launch import DEVICE_FAULT_STATUS
from .messages import (
    Analyze,
    Analyzed,
    Answered,
    Factored,
    Factorize,
    Failed,
    Move,
    Ready,
    Release,
    Reply,
    Request,
    Solve,
    Update,
)
from .threads import trim

_PR_SET_PDEATHSIG = 1
_TRIM_BYTES = 64 << 20


@final
class Server:
    """Everything this process holds.

    Args:
        channel: to the owner.
        flag: one byte of shared memory, not 0 once nobody waits for the solve that runs.
    """

    def __init__(self, channel: Channel, flag: mmap.mmap) -> None:
        self._channel = channel
        self._flag = flag
        self._symbolics: dict[int, Symbolic] = {}
        self._factors: dict[int, Factor] = {}
        self._freed_bytes = 0

    def serve(self) -> int:
        """Answer requests until the owner closes the channel, or a device fails.

        Returns:
            The status to exit with.
        """
        while True:
            try:
                request, arrays = self._channel.receive()
            except (EOFError, OSError):
                return 0
            if isinstance(request, Release):
                del arrays
                self._release(request)
                continue
            if isinstance(request, Move):
                del arrays
                self._move(request)
                continue
            reply, results = self._reply(request, arrays)
            del arrays
            try:
                self._channel.send(reply, results)
            except OSError:
                return 0
            if isinstance(reply, Failed) and isinstance(reply.error, DeviceFaultError):
                return DEVICE_FAULT_STATUS  # nothing that is asked of the device here can succeed any more
            del reply, results

    def _reply(self, request: Request, arrays: list[Array]) -> tuple[Reply, list[list[Array]]]:
        try:
            if isinstance(request, Solve):
                return self._solve(request, arrays)
            if isinstance(request, Factorize):
                return self._factorize(request, arrays), []
            if isinstance(request, Update):
                return self._update(request, arrays), []
            return self._analyze(request, arrays), []
        except BaseException as error:
            return _failure(error), []

    def _analyze(self, request: Analyze, arrays: list[Array]) -> Analyzed:
        if isinstance(request.pattern, tuple):
            indptr, indices = arrays
            pattern: AnyPattern = Pattern(indptr, indices, request.pattern)
        else:
            pattern = request.pattern
        symbolic = solver_for(request.spec).analyze(pattern, request.spec)
        self._symbolics[request.symbolic] = symbolic
        predicted = {dtype.name: symbolic.predicted_nbytes(dtype.name) for dtype in DTYPES}
        return Analyzed(symbolic.nbytes, predicted)

    def _factorize(self, request: Factorize, arrays: list[Array]) -> Factored:
        symbolic = self._symbolics[request.symbolic]
        # The arena is the next message's: what a factor keeps is copied out of it.
        operand = Operand(Matrix(symbolic.pattern, np.array(arrays[0], copy=True)))
        return self._kept(request.factor, solver_for(request.spec).factorize(symbolic, operand, request.spec))

    def _update(self, request: Update, arrays: list[Array]) -> Factored:
        inner = self._factors[request.base]
        pattern = StructuredPattern(UPDATE.name, request.dims, standing_on(inner.operand.matrix))
        matrix = Matrix(pattern, np.array(arrays[0], copy=True), inner.operand.matrix)
        return self._kept(request.factor, factorize_update(inner, Operand(matrix, inner.operand)))

    def _kept(self, number: int, factor: Factor) -> Factored:
        self._factors[number] = factor
        told = (factor.device_nbytes, factor.movable, factor.direct, factor.max_columns, factor.note, factor.pivoting)
        return Factored(_held(factor), *told)

    def _solve(self, request: Solve, arrays: list[Array]) -> tuple[Answered, list[list[Array]]]:
        for array in arrays:
            array.flags.writeable = False
        factor = self._factors[request.factor]
        if request.instead:
            values, *arrays = arrays
            factor = preconditioned(factor, Operand(Matrix(factor.operand.pattern, values)))
        rhs = arrays[0]
        x0 = arrays[1] if len(arrays) > 1 else None
        controls = replace(request.controls, x0=x0, cancelled=lambda: self._flag[0] != 0)
        whole = answer(factor, rhs, request.trans, controls)
        return Answered(replace(whole, x=np.empty(0))), [[whole.x]]

    def _move(self, request: Move) -> None:
        """Copy a factor; where there is no room it stays, and is solved with where it is."""
        factor = self._factors.get(request.factor)
        if factor is not None:
            with contextlib.suppress(DeviceOutOfMemoryError, MemoryBudgetError):
                self._factors[request.factor] = factor.moved(request.device)

    def _release(self, request: Release) -> None:
        for number in request.numbers:
            self._symbolics.pop(number, None)
            factor = self._factors.pop(number, None)
            if factor is not None:
                self._freed_bytes += _held(factor)
                factor = None
        if request.arena:
            self._channel.forget_arena()
        if self._freed_bytes >= _TRIM_BYTES:
            self._freed_bytes = 0
            trim()


def _held(factor: Factor) -> int:
    """Bytes that go with a factor: this process has its own copy of the values."""
    return factor.nbytes + factor.operand.nbytes


def _failure(error: BaseException) -> Failed:
    plain = isinstance(error, BacksolveError) and not is_fault(error)
    trace = "" if plain else "".join(traceback.format_exception(error))
    if is_fault(error):
        return Failed(DeviceFaultError("the device failed, and everything on it is lost: its process ends"), trace)
    told = error.with_traceback(None)
    told.__cause__ = told.__context__ = None
    try:
        pickle.loads(pickle.dumps(told))
    except Exception:
        return Failed(InternalError(f"the job raised {type(error).__name__}"), trace)
    return Failed(told, trace)


def _die_with(parent: int) -> bool:
    """Have the kernel kill this process when its owner dies (Linux); False: it has died already."""
    # Ctrl-C and a stop of the group are the owner's business: it lets running calls end first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def main() -> int:
    """Serve the owner whose descriptors and process number are the arguments."""
    stream, flag, parent = (int(text) for text in sys.argv[1:4])
    if not _die_with(parent):
        return 0
    faulthandler.enable()
    channel = Channel(socket.socket(fileno=stream))
    memory = mmap.mmap(flag, mmap.PAGESIZE)
    os.close(flag)
    try:
        channel.send(Ready())
        return Server(channel, memory).serve()
    finally:
        channel.close()


if __name__ == "__main__":
    # Nothing is left to be put in order, and a library that crashes at exit would leave a false trace.
    os._exit(main())
