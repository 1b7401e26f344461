"""The same cases in each framework, against its own dense solve: values, gradients, second derivatives, tangents."""

import numpy as np
import pytest

from backsolve import Client
from frameworks.adapters import Adapter
from frameworks.cases import CASES, SMALL, Case
from frameworks.judging import GRADIENTS, PRODUCTS, VALUES, error


@pytest.fixture(scope="module", autouse=True)
def _one_engine(kept: None) -> None:
    """Worker threads start once."""


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own rules are loaded through it
def test_values_and_derivatives(framework: Adapter, case: Case, embedded: Client) -> None:
    """One test for all of a case: most of the time goes into what the frameworks compile for its shapes."""
    ours, theirs = framework.solve(case, embedded), framework.reference(case)
    errors = {"x": error(framework(ours, case), framework(theirs, case))}
    for name, derivative in (("gradient", framework.grad), ("product", framework.hvp)):
        pairs = zip(("A", "b"), derivative(ours, case), derivative(theirs, case), strict=True)
        errors |= {f"{name} of {of}": error(*pair) for of, *pair in pairs}
    errors["tangent"] = error(framework.jvp(ours, case), framework.jvp(theirs, case))
    bounds = {"x": VALUES, "gradient": GRADIENTS, "product": PRODUCTS, "tangent": GRADIENTS}
    assert len(errors) == 6
    assert {name: each for name, each in errors.items() if not each <= bounds[name.split()[0]]} == {}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_single_precision_stays_single(framework: Adapter, case: Case, embedded: Client) -> None:
    f, reference = framework.solve(case, embedded), framework.reference(case)
    bound = 50 * np.finfo(np.float32).eps
    assert error(framework(f, case), framework(reference, case)) <= bound
    pairs = zip(framework.grad(f, case), framework.grad(reference, case), strict=True)
    assert [error(*pair) <= 4 * bound for pair in pairs] == [True, True]


@pytest.mark.parametrize("mapped", [(False, True), (True, False), (True, True)], ids=["b", "values", "both"])
@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.filterwarnings("ignore:.*while_loop.*")
def test_maps(
    framework: Adapter, sparse: bool, columns: tuple[int, ...], mapped: tuple[bool, bool], embedded: Client
) -> None:
    one, many = Case(sparse, (), columns), Case(sparse, (4,), columns)
    values, b = (m if on else o for m, o, on in zip((many.values, many.b), (one.values, one.b), mapped, strict=True))
    x = framework.vmap(framework.solve(one, embedded), values, b, mapped)
    looped = [
        np.asarray(
            framework.reference(one)(
                *map(framework.array, (values[k] if mapped[0] else values, b[k] if mapped[1] else b))
            )
        )
        for k in range(4)
    ]
    assert error(x, np.stack(looped)) <= VALUES


@pytest.mark.parametrize("case", [Case(False), Case(True), Case(True, (2,), (3,), "H", "complex128")], ids=str)
def test_compiled(framework: Adapter, case: Case, embedded: Client) -> None:
    compiled, reference = framework.compiled(framework.solve(case, embedded)), framework.reference(case)
    assert error(framework(compiled, case), framework(reference, case)) <= VALUES
    pairs = zip(framework.grad(compiled, case), framework.grad(reference, case), strict=True)
    assert [error(*pair) <= GRADIENTS for pair in pairs] == [True, True]
