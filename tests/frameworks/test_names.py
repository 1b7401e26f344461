"""The three adapters have the same names, and these the same parameters, but for what is told here with its reason."""

import inspect
from importlib import import_module
from typing import Any

import pytest

MODULES = ("torch", "jax", "tensorflow")

STRUCTURED = ("Circulant", "Kronecker", "LowRankPlusDiagonal", "LowRankUpdate", "Toeplitz")
SHARED = (*STRUCTURED, "HessianProducts", "gnvp", "hvp", "jacobian", "lstsq", "solve", "splstsq", "spsolve")
"""Written down, so that the tests of one framework are collected where the others are not installed."""

ALONE = {
    "LinearSolve": ({"torch", "tensorflow"}, "a layer: JAX has none of its own, its libraries call the function"),
    "Stats": ({"jax"}, "what compiled code can return in place of a certificate: arrays"),
}
"""Names that not all have: who has them, and why."""

DIFFERENT = {
    ("jax", "solve", "on_failure"): "by default it depends on whether the code is compiled: None",
    ("jax", "spsolve", "on_failure"): "the same",
    ("jax", "lstsq", "on_failure"): "the same",
    ("jax", "splstsq", "on_failure"): "the same",
}
"""Parameters whose default differs, and why."""


def _module(name: str) -> Any:
    return import_module(f"backsolve.{name}")


def _parameters(named: Any) -> dict[str, tuple[Any, Any]]:
    """Kind and default of each parameter, without the `self` of a class."""
    return {each.name: (each.kind, each.default) for each in inspect.signature(named).parameters.values()}


def test_all_have_the_same_names() -> None:
    have = {name: set(_module(name).__all__) for name in MODULES}
    for public in set.union(*have.values()):
        owners = {name for name in MODULES if public in have[name]}
        assert owners == ALONE.get(public, (set(MODULES), ""))[0], public
    assert set.intersection(*have.values()) == set(SHARED)


@pytest.mark.parametrize("public", SHARED)
def test_parameters_are_the_same(public: str) -> None:
    expected = _parameters(getattr(_module("torch"), public))
    for name in MODULES[1:]:
        found = _parameters(getattr(_module(name), public))
        assert list(found) == list(expected)
        for parameter, (kind, default) in found.items():
            assert kind == expected[parameter][0], parameter
            same = default == expected[parameter][1]
            assert same != ((name, public, parameter) in DIFFERENT), parameter


@pytest.mark.parametrize("name", MODULES)
def test_options_of_every_call_are_the_same(name: str) -> None:
    """Those that do not change from call to call, for which each adapter has a type."""
    options = import_module(f"backsolve.{name}._options").SolveOptions.__annotations__
    assert set(options) == set(import_module("backsolve.torch._options").SolveOptions.__annotations__)
    taken = _parameters(_module(name).solve)
    assert {"client", "timeout", "on_failure", "observe"} == set(taken) & set(options)


@pytest.mark.parametrize("kind", STRUCTURED)
def test_structured_matrices_have_the_same_members(kind: str) -> None:
    def members(name: str) -> set[str]:
        given = {each for each in dir(getattr(_module(name), kind)) if not each.startswith("_")}
        return given - {"tree_flatten", "tree_unflatten"}  # what makes one of JAX's pytrees

    assert members("torch") == members("jax") == members("tensorflow")
    assert {"pattern", "shape", "batch", "dtype", "values", "matvec", "to_dense"} <= members("torch")
