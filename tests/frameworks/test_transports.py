"""Values and derivatives in each framework are right on every way in."""

import pytest

from backsolve import Client
from frameworks.adapters import Adapter
from frameworks.cases import Case
from frameworks.judging import GRADIENTS, PRODUCTS, VALUES, error


@pytest.mark.parametrize("case", [Case(False, (2,)), Case(True), Case(True, (), (3,), "H", "complex128")], ids=str)
def test_every_way_in(framework: Adapter, case: Case, client: Client) -> None:
    f, reference = framework.solve(case, client), framework.reference(case)
    assert error(framework(f, case), framework(reference, case)) <= VALUES
    for derivative, bound in ((framework.grad, GRADIENTS), (framework.hvp, PRODUCTS)):
        pairs = zip(derivative(f, case), derivative(reference, case), strict=True)
        assert [error(*pair) <= bound for pair in pairs] == [True, True]
