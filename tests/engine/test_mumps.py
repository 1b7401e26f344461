"""MUMPS by our own binding: its record, shared orders, put-off pivots, and its error codes."""

import ctypes
import re
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest

from backsolve.errors import InternalError, MemoryBudgetError, NotSupportedError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct.mumps import library
from backsolve_service.engine.direct.mumps.instance import Instance
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS, check_installed, solver
from engine.table import array, factor_of, matrix, numbers, op, poisson

needs_mumps = pytest.mark.skipif(
    not library.installed(), reason=f"the system's package {library.PACKAGE} is not installed"
)
HEADER = Path("/usr/include/dmumps_c.h")


def one(dtype="float64"):
    ones = np.ones(1, dtype=np.int32)
    return Instance(dtype, 1, ones, ones, mirrored=False)


@needs_mumps
@pytest.mark.parametrize("dtype", library.LETTERS)
def test_the_version_is_where_the_layout_puts_it_and_nothing_lies_beyond(dtype):
    made = one(dtype)._record
    assert bytes(made.version_number).startswith(b"5.5.")
    assert not bytes(made)[type(made).beyond.offset :].strip(b"\0"), "the library's record is no longer than ours"


@needs_mumps
@pytest.mark.parametrize("told", [b"5.6.2", b"", b"\xff\xfe", b"15.5.1"])
def test_another_release_is_refused(told):
    made = library.record("float64")
    made.version_number = told
    with pytest.raises(NotSupportedError, match=library.PACKAGE):
        library.check_version(made)


@pytest.mark.skipif(not HEADER.exists(), reason="the header of libmumps-seq-dev is not installed")
def test_the_record_has_the_header_s_fields_in_the_header_s_order():
    body = re.search(r"typedef struct \{(.*?)\} DMUMPS_STRUC_C", HEADER.read_text(), re.S)[1]
    body = re.sub(r"/\*.*?\*/", " ", body, flags=re.S)
    sizes = {"MUMPS_INT": 4, "MUMPS_INT8": 8, "DMUMPS_REAL": 8, "char": 1}
    theirs = []
    for line in filter(None, (part.strip() for part in body.split(";"))):
        kind, _, names = line.partition(" ")
        for name in names.split(","):
            bare, _, length = name.strip().lstrip("* ").partition("[")
            count = eval(length.rstrip("]").replace("MUMPS_VERSION_MAX_LEN", "30")) if length else 1
            theirs.append((bare, 8 if "*" in name else sizes[kind] * count))
    ours = [(name, ctypes.sizeof(kind)) for name, kind in library.DoubleRecord._fields_]
    assert ours[:-1] == theirs


@needs_mumps
def test_all_four_libraries_are_found_by_name():
    assert all(find_library(f"{letter}mumps_seq-5.5") for letter in "sdcz")


@needs_mumps
@pytest.mark.parametrize(
    ("structure", "dtype", "mirrored"),
    [
        ("general", "float64", False),
        ("definite", "float32", True),
        ("symmetric", "complex128", True),
        # A complex Hermitian matrix does not equal its transpose, and MUMPS has nothing for it.
        ("indefinite", "complex64", False),
        ("zero_diagonal", "float64", False),
    ],
)
def test_what_equals_its_transpose_is_factorized_as_one_triangle(structure, dtype, mirrored):
    a = array(structure, dtype)
    f = factor_of("mumps", matrix("csr", a))
    assert f.parts[0].instance._record.sym == 2 * mirrored
    b = numbers((40, 3), dtype, 302_774_811)
    for trans in "NTH":
        got = answer(f, b, trans, Controls())
        np.testing.assert_allclose(
            op(a, trans) @ got.x, b, atol=2e-4 if "64" not in dtype or dtype == "complex64" else 1e-10
        )


@needs_mumps
def test_factors_of_a_pattern_share_its_order_and_none_is_overwritten():
    method, m = solver("mumps"), poisson(9)
    symbolic = method.analyze(m.pattern)
    assert sorted(symbolic.order) == list(range(1, 82))
    spec = FactorSpec("mumps", None, "float64", "cpu")
    scales = (1.0, 3.0, 0.25)
    factors = [method.factorize(symbolic, Operand(Matrix(m.pattern, m.values * scale)), spec) for scale in scales]
    b = numbers((81, 1), "float64", 118_820_953)
    x = answer(factors[0], b, "N", Controls()).x
    for scale, f in zip(scales, factors, strict=True):
        np.testing.assert_allclose(scale * answer(f, b, "N", Controls()).x, x, rtol=1e-12)


@needs_mumps
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_stored_zeros_on_the_diagonal_are_no_pivots(dtype):
    a = array("zero_diagonal", dtype)
    stored = (a != 0) | np.eye(40, dtype=bool)
    m = matrix("csr", np.where(stored, 1.0, 0.0).astype(dtype))
    f = factor_of("mumps", Matrix(m.pattern, a[stored]))
    b = numbers((40, 1), dtype, 602_117_448)
    got = answer(f, b, "H", Controls())
    assert got.statuses == ((Status.OK,),)
    np.testing.assert_allclose(op(a, "H") @ got.x, b, atol=1e-10)


@needs_mumps
@pytest.mark.parametrize("structure", ["definite", "general"])
def test_a_zero_pivot_is_a_singular_matrix(structure):
    a = array(structure, "float64")
    pair = [4, 11]
    a[pair] = a[:, pair] = 0
    a[np.ix_(pair, pair)] = 1
    with pytest.raises(SingularMatrixError) as caught:
        factor_of("mumps", matrix("csr", a))
    assert caught.value.details["kind"] == "numeric"


@needs_mumps
def test_bytes_are_foreseen():
    m = poisson(60)
    values = m.values.copy()
    values[1] *= 2
    method = solver("mumps")
    symbolic = method.analyze(m.pattern)
    spec = FactorSpec("mumps", None, "float64", "cpu")
    whole = method.factorize(symbolic, Operand(Matrix(m.pattern, values)), spec)
    half = method.factorize(symbolic, Operand(m), spec)
    # It is the pattern's order that the factor was made in: another one fills in otherwise.
    assert whole.parts[0].instance.foreseen == pytest.approx((symbolic.entries, symbolic.integers), rel=0.02)
    assert symbolic.predicted_nbytes("float64") == pytest.approx(whole.nbytes, rel=0.2)
    assert half.nbytes < 0.9 * whole.nbytes


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (-6, SingularMatrixError, "zero pivot"),
        (-10, SingularMatrixError, "zero pivot"),
        (-9, MemoryBudgetError, "do not fit in memory"),
        (-13, MemoryBudgetError, "do not fit in memory"),
        (-51, NotSupportedError, "32-bit"),
        (-3, InternalError, "code -3"),
    ],
)
def test_every_code_has_its_error(code, error, text):
    with pytest.raises(error, match=text):
        library.check(code, "the analysis")
    library.check(0, "the analysis")
    library.check(4, "the analysis")  # a warning


@pytest.mark.skipif(library.installed(), reason="it is installed")
def test_who_has_it_not_is_told_the_system_s_package():
    with pytest.raises(NotSupportedError, match=r"apt-get install libmumps-seq-5\.5"):
        check_installed("method", "mumps", ROWS["mumps"])
