"""`AsyncClient` is `Client`, awaited: no call is missing, none has other arguments, none is written twice."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from backsolve import AsyncClient, AsyncFactorized, Client, Factorized
from backsolve._aio.facade import HEAVY_BYTES, weight
from backsolve.structured import LowRankPlusDiagonal

PAIRS = ((Client, AsyncClient), (Factorized, AsyncFactorized))
RENAMED = {"__enter__": "__aenter__", "__exit__": "__aexit__"}
OF_ITS_OWN = {"transport"}
"""What a class that blocks has alone: nothing is sent by it."""


def public(kind: type) -> dict[str, Any]:
    found = {name: value for name, value in vars(kind).items() if not name.startswith("_") or name in RENAMED}
    return {RENAMED.get(name, name): value for name, value in found.items() if name not in OF_ITS_OWN}


CALLS = [
    pytest.param(method, vars(awaited).get(name), id=f"{awaited.__name__}.{name}")
    for blocking, awaited in PAIRS
    for name, method in public(blocking).items()
    if inspect.isfunction(method)
]


@pytest.mark.parametrize(("method", "twin"), CALLS)
def test_each_call_has_an_awaited_twin(method: Callable[..., Any], twin: Callable[..., Any]) -> None:
    assert inspect.iscoroutinefunction(twin)
    of_this, of_that = inspect.signature(method), inspect.signature(twin)
    assert of_this.parameters == of_that.parameters
    if not method.__name__.startswith("__"):
        assert twin.__doc__ == method.__doc__
        assert twin.__qualname__.startswith("Async")


@pytest.mark.parametrize(("blocking", "awaited"), PAIRS)
def test_nothing_else_is_public(blocking: type, awaited: type) -> None:
    of_that = {name for name in vars(awaited) if not name.startswith("_") or name in RENAMED.values()}
    assert of_that == set(public(blocking))


def test_only_factorized_returns_something_else() -> None:
    for _, (method, twin) in ((case.id, case.values) for case in CALLS):
        of_this, of_that = (typing.get_type_hints(each).get("return") for each in (method, twin))
        others = {Factorized: AsyncFactorized, Client: AsyncClient}
        assert of_that == others.get(of_this, of_this)


def test_constructors_take_the_same() -> None:
    assert inspect.signature(Client).parameters == inspect.signature(AsyncClient).parameters


def test_weights() -> None:
    n = HEAVY_BYTES // 8
    assert weight(np.ones(n)) == HEAVY_BYTES
    assert weight(np.ones(n - 1)) < HEAVY_BYTES
    assert weight(sparse.eye_array(n, format="csr")) >= HEAVY_BYTES
    assert weight(sparse.eye_array(10, format="csr")) < HEAVY_BYTES
    assert weight([[1.0, 0.0], [0.0, 1.0]]) < HEAVY_BYTES
    assert weight([[0.0] * 500] * 500) >= HEAVY_BYTES
    assert weight(LowRankPlusDiagonal(np.ones(3), np.ones((3, 1)), np.ones((3, 1)))) >= HEAVY_BYTES
    assert sum(map(weight, (None, 1.0, "raise", 3, 1j))) == 0
