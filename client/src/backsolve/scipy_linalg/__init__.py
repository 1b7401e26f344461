"""SciPy's sparse solvers, solved by backsolve: the names and signatures of `scipy.sparse.linalg`.

    from backsolve import scipy_linalg as spla   # was: import scipy.sparse.linalg as spla
    x = spla.spsolve(A, b)

`spsolve`, `factorized`, `splu`, `cg`, `gmres`, `bicgstab`, `minres` and `lsmr` are solved by the default client: on the
server that BACKSOLVE_URL names, else by the engine in this process. `using(client)` names another one. Every other name
is SciPy's own object, and computes where it is called.

What a service cannot do in SciPy's meaning is refused with what to do instead, never left out: a `LinearOperator` in
place of A or M, a matrix for M (name a preconditioner of the service: `M="ilu"`), a Python callback within an
iteration, SuperLU's own settings. docs/adr/0045 tells the reasons.
"""

from typing import Any

import scipy.sparse.linalg

from ._client import using
from ._direct import SuperLU, factorized, splu, spsolve
from ._iterative import bicgstab, cg, gmres, minres
from ._lsmr import lsmr

__all__ = ["SuperLU", "bicgstab", "cg", "factorized", "gmres", "lsmr", "minres", "splu", "spsolve", "using"]


def __getattr__(name: str) -> Any:
    """What is not served is SciPy's own."""
    if name.startswith("_") or not hasattr(scipy.sparse.linalg, name):
        raise AttributeError(f"neither module {__name__!r} nor scipy.sparse.linalg has an attribute {name!r}")
    return getattr(scipy.sparse.linalg, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(scipy.sparse.linalg)})
