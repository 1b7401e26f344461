"""Least squares in each framework, beside its own normal equations; what a gradient costs is the same."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from backsolve import Client
from frameworks.adapters import Adapter
from frameworks.cases import Case
from frameworks.judging import GRADIENTS, PRODUCTS, VALUES, error
from support.systems import random_like

M, N, K = 8, 5, 2
COUNTED = ("factorizations", "solves", "adjoint_solves", "tangent_solves", "columns", "uploads")


@dataclass(frozen=True)
class Tall(Case):
    """More equations than unknowns, dense."""

    @cached_property
    def values(self) -> np.ndarray:
        return random_like((M, N), self.dtype, 504_817_263) + 3 * np.eye(M, N, dtype=self.dtype)

    @cached_property
    def b(self) -> np.ndarray:
        return random_like((M, K), self.dtype, 71_338_902)

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(712_054_386)
        return rng.uniform(0.2, 1.5, (N, K)), rng.standard_normal((N, K))


CASES = [Tall(False, (), (K,), "N", dtype) for dtype in ("float64", "complex128")]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.dtype)


@each_case
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own rules are loaded through it
def test_values_and_derivatives(framework: Adapter, case: Case, embedded: Client) -> None:
    ours, theirs = framework.minimise(client=embedded), framework.normal_equations()
    assert error(framework(ours, case), framework(theirs, case)) <= VALUES
    for derivative, bound in ((framework.grad, GRADIENTS), (framework.hvp, PRODUCTS)):
        pairs = zip(derivative(ours, case), derivative(theirs, case), strict=True)
        assert [error(*pair) <= bound for pair in pairs] == [True, True]
    assert error(framework.jvp(ours, case), framework.jvp(theirs, case)) <= GRADIENTS


def _grown(client: Client, action: Any) -> list[int]:
    before = client.stats()
    action()
    after = client.stats()
    return [int(after[name] - before[name]) for name in COUNTED]


def test_what_it_costs(framework: Adapter, client: Client) -> None:
    """One factorization, and a request for x; two more for the gradient of A."""
    case, ours = CASES[0], framework.minimise(client=client)
    framework.grad(ours, case, case.fresh())
    counts = _grown(client, lambda: framework.grad(ours, case, case.fresh()))
    assert counts[:4] == [1, 1, 2, 0]
    assert counts[4:] == [3 * K, 1]
