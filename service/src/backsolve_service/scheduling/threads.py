"""What a thread that owns C memory must take care of: its exceptions, its dictionary, its allocator."""

import ctypes
from contextlib import suppress

from backsolve.errors import BacksolveError, InternalError


def delivered(error: BaseException) -> BaseException:
    """The exception as its waiter may have it.

    The locals of the frames it went through are cleared: they hold factors, which must die on
    their worker's thread. What would end a thread (SystemExit) ends no thread of a caller.
    """
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        seen.append(each)
        _clear_frames(each)
        each = each.__cause__ or each.__context__
    if isinstance(error, Exception):
        return error
    wrapped: BacksolveError = InternalError(f"the job raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


def _clear_frames(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None:
        with suppress(RuntimeError):  # still running: one of the worker's own
            trace.tb_frame.clear()
        trace = trace.tb_next


def trim() -> None:
    """Ask the allocator to give free pages back to the system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_thread_dict() -> None:
    """Let this thread's dictionary outlive the thread.

    SciPy keeps its list of SuperLU's memory there. When the dictionary goes while factors live
    (in every forked child, at the end of the interpreter), SciPy leaves an exception set in
    whatever code runs then: in a child it broke off the repair of `threading`.
    """
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThreadState_GetDict", ctypes.pythonapi))
    ctypes.pythonapi.Py_IncRef(ctypes.c_void_p(get()))
