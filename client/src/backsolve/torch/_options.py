"""The keyword arguments that a layer keeps."""

from typing import TypedDict

from .._session import Timeout
from ..client import Client
from ..types import OnFailure, Trans
from ._request import Observer


class SolveOptions(TypedDict, total=False):
    """Options of `backsolve.torch.solve` that do not change from call to call."""

    method: str
    trans: Trans
    rtol: float | None
    atol: float | None
    maxiter: int | None
    preconditioner: str | None
    refine: int | None
    client: Client | None
    timeout: Timeout
    on_failure: OnFailure
    observe: Observer | None
