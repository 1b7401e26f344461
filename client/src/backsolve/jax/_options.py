"""The keyword arguments of the adapter beside arrays."""

from .. import options
from .._adapter.request import Observer
from ..client import Client
from ..retry import Timeout
from ..types import OnFailure


class SolveOptions(options.SolveOptions, total=False):
    """Options of `backsolve.jax.solve` that do not change from call to call.

    All are fixed when a function is traced: under `jit` none of them can be an argument of it, unless a static one.
    Beside those of every solve (`backsolve.options.SolveOptions`):

    Attributes:
        client: by default a process-wide one (`BACKSOLVE_URL`, or the engine in this process).
        timeout: seconds for each request; by default the client's.
        on_failure: when an answer misses its tolerance, in the forward or the backward: "raise",
            "warn" or "nan". By default "raise" outside of `jit`, "nan" in compiled code.
        observe: called as `observe(phase, certificate)` after every request, those of a backward
            included; phase is "solve", "adjoint" or "tangent". In compiled code it is called by a thread of
            JAX's, and as often as JAX runs the solve, which drops those that nobody needs.
    """

    client: Client | None
    timeout: Timeout
    on_failure: OnFailure | None
    observe: Observer | None
