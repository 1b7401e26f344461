"""The derivatives that every framework's wrapper is written in, where one of them needs no part of them."""

import numpy as np
import pytest

from backsolve._adapter.rules import Algebra, values_gradient
from backsolve.errors import NotSupportedError
from backsolve.kinds.base import NUMPY
from backsolve.pattern import DensePattern


def product(pattern, values, x, *, transposed):
    return (values.swapaxes(-1, -2) if transposed else values) @ x


def test_a_framework_that_transposes_its_tangents_is_told_so_when_a_gradient_is_asked_for():
    algebra = Algebra(NUMPY, product, np.conj, np.zeros_like)
    with pytest.raises(NotSupportedError, match="its own reverse mode"):
        values_gradient(algebra, DensePattern((2, 2)), "N", np.ones(2), np.ones(2), True)
