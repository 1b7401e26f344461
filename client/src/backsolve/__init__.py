"""Differentiable linear solves, local or served.

    import backsolve
    x = backsolve.Client().solve(A, b).x

Names are loaded when they are first used, so that importing the package costs next to nothing
and `backsolve.errors` and `backsolve.types` need only NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_client import AsyncClient as AsyncClient
    from .async_client import AsyncFactorized as AsyncFactorized
    from .client import Client as Client
    from .errors import BacksolveError as BacksolveError
    from .factorized import Factorized as Factorized
    from .pattern import Pattern as Pattern
    from .structured import Circulant as Circulant
    from .structured import Kronecker as Kronecker
    from .structured import LowRankPlusDiagonal as LowRankPlusDiagonal
    from .structured import LowRankUpdate as LowRankUpdate
    from .structured import Toeplitz as Toeplitz
    from .types import Certificate as Certificate
    from .types import Gradients as Gradients
    from .types import ReplicaState as ReplicaState
    from .types import Solution as Solution
    from .types import Status as Status

__version__ = "0.1.0"

_HOME = {
    "AsyncClient": "async_client",
    "AsyncFactorized": "async_client",
    "BacksolveError": "errors",
    "Certificate": "types",
    "Circulant": "structured",
    "Client": "client",
    "Factorized": "factorized",
    "Gradients": "types",
    "Kronecker": "structured",
    "LowRankPlusDiagonal": "structured",
    "LowRankUpdate": "structured",
    "Pattern": "pattern",
    "ReplicaState": "types",
    "Solution": "types",
    "Status": "types",
    "Toeplitz": "structured",
}

__all__ = [
    "AsyncClient",
    "AsyncFactorized",
    "BacksolveError",
    "Certificate",
    "Circulant",
    "Client",
    "Factorized",
    "Gradients",
    "Kronecker",
    "LowRankPlusDiagonal",
    "LowRankUpdate",
    "Pattern",
    "ReplicaState",
    "Solution",
    "Status",
    "Toeplitz",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
