"""The largest of many, which decides powers of two and backward errors."""

import numpy as np
import pytest

from backsolve_service.engine.scaling import largest, magnitude

RNG = np.random.default_rng(417)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 127, 128, 129, 1000, 4097])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_the_largest_of_each_column_wherever_it_is(rows, columns, count):
    a = RNG.random((count, rows, columns))
    for row in {0, rows // 3, rows // 2, rows - 1}:
        b = a.copy()
        b[:, row] += 1
        np.testing.assert_array_equal(largest(b.copy(), 1), b.max(axis=1))
        np.testing.assert_array_equal(largest(b[0].copy(), 0), b[0].max(axis=0))


@pytest.mark.parametrize("row", [0, 99, 100, 199, 200])
def test_nan_is_the_largest(row):
    a = RNG.random((2, 201, 3))
    a[1, row, 2] = np.nan
    found = largest(a.copy(), 1)
    assert np.isnan(found[1, 2])
    assert np.isfinite(found).sum() == 5


def test_magnitude_leaves_what_it_measures_as_it_is():
    for a in (RNG.standard_normal((1, 300, 2)), RNG.standard_normal((1, 300, 2)) * (1 + 2j)):
        before = a.copy()
        found = magnitude(a, 1)
        np.testing.assert_array_equal(a, before)
        np.testing.assert_array_equal(found, np.maximum(np.abs(a.real), np.abs(a.imag)).max(axis=1))
