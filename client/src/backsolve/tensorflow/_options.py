"""The keyword arguments of the adapter beside tensors."""

from .. import options
from .._adapter.request import Observer
from ..client import Client
from ..retry import Timeout
from ..types import OnFailure


class SolveOptions(options.SolveOptions, total=False):
    """Options of `backsolve.tensorflow.solve` that do not change from call to call.

    Beside those of every solve (`backsolve.options.SolveOptions`):

    Attributes:
        client: by default a process-wide one (`BACKSOLVE_URL`, or the engine in this process).
        timeout: seconds for each request; by default the client's.
        on_failure: when an answer misses its tolerance, in the forward or the backward: "raise",
            "warn" or "nan".
        observe: called as `observe(phase, certificate)` after every request, those of gradients
            included; phase is "solve" or "adjoint". Inside `tf.function` it is called from
            TensorFlow's threads, whenever the graph solves.
    """

    client: Client | None
    timeout: Timeout
    on_failure: OnFailure
    observe: Observer | None
