"""The same cases in each framework, against its own dense solve: values, gradients, second derivatives, tangents."""

import numpy as np
import pytest

from backsolve import Client
from frameworks.adapters import Adapter
from frameworks.cases import CASES, SMALL, Case
from frameworks.judging import GRADIENTS, PRODUCTS, VALUES, error

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module", autouse=True)
def _one_engine(kept: None) -> None:
    """Worker threads start once."""


@every_case
def test_values(framework: Adapter, case: Case, embedded: Client) -> None:
    assert error(framework(framework.solve(case, embedded), case), framework(framework.reference(case), case)) <= VALUES


@every_case
def test_gradients(framework: Adapter, case: Case, embedded: Client) -> None:
    ours, theirs = (
        framework.grad(framework.solve(case, embedded), case),
        framework.grad(framework.reference(case), case),
    )
    assert [error(*pair) <= GRADIENTS for pair in zip(ours, theirs, strict=True)] == [True, True]


@every_case
def test_hessian_vector_products(framework: Adapter, case: Case, embedded: Client) -> None:
    ours, theirs = framework.hvp(framework.solve(case, embedded), case), framework.hvp(framework.reference(case), case)
    assert [error(*pair) <= PRODUCTS for pair in zip(ours, theirs, strict=True)] == [True, True]


@every_case
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own rules are loaded through it
def test_tangents(framework: Adapter, case: Case, embedded: Client) -> None:
    ours, theirs = (framework.jvp(f, case) for f in (framework.solve(case, embedded), framework.reference(case)))
    assert error(ours, theirs) <= GRADIENTS


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
