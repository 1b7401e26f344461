"""CHOLMOD by our own binding: its records, copies of one analysis, orderings, pivots that are not positive, threads."""

import ctypes
import gc
import re
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array, eye_array, kron

from backsolve.errors import (
    InternalError,
    InvalidOptionError,
    MemoryBudgetError,
    NotPositiveDefiniteError,
    NotSupportedError,
)
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct.cholmod import library
from backsolve_service.engine.direct.cholmod import solver as module
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS, check_installed, solver
from engine.table import array, factor_of, matrix, numbers, op, poisson

needs_cholmod = pytest.mark.skipif(
    not library.installed(), reason=f"the system's package {library.PACKAGE} is not installed"
)
HEADER = next(
    (path for name in ("cholmod_core.h", "cholmod.h") if (path := Path("/usr/include/suitesparse", name)).exists()),
    None,
)


def spec(ordering=None):
    return FactorSpec("cholmod", None, "float64", "cpu", ordering)


def cube(side):
    """The 7-point Laplacian on a cube of `side`³ inner points."""
    t = diags_array([-np.ones(side - 1), 2 * np.ones(side), -np.ones(side - 1)], offsets=[-1, 0, 1])
    i = eye_array(side)
    a = csr_array(kron(kron(t, i), i) + kron(kron(i, t), i) + kron(kron(i, i), t))
    a.sum_duplicates()
    a.sort_indices()
    return Matrix(Pattern.from_csr(a), a.data)


MESHES = {"columns": lambda: poisson(9), "blocks": lambda: cube(11)}
"""One whose factor is kept by columns, and one whose factor is kept in dense blocks."""

each_kind = pytest.mark.parametrize("kind", MESHES)


def complexed(m, seed=40_772_118):
    """D A Dᴴ with random phases D: Hermitian, not symmetric, as definite as A."""
    phases = np.exp(2j * np.pi * np.random.default_rng(seed).random(m.n))
    return Matrix(m.pattern, m.values * phases[m.pattern.rows] * phases[m.pattern.indices].conj())


# --- the library ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(HEADER is None, reason="the header of libsuitesparse-dev is not installed")
@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("common", library.Common),
        ("sparse", library.Sparse),
        ("dense", library.Dense),
        ("factor", library.Factor),
    ],
)
def test_the_records_have_the_header_s_fields_in_the_header_s_order(name, record):
    text = re.sub(r"/\*.*?\*/|//[^\n]*|^\s*#[^\n]*", " ", HEADER.read_text(), flags=re.S | re.M)
    body = re.search(rf"typedef struct cholmod_{name}_struct\s*\{{(.*?)\}}\s*cholmod_{name}\s*;", text, re.S)[1]
    method = re.search(r"struct cholmod_method_struct\s*\{(.*?)\}", body, re.S)
    if method is not None:
        inner = ctypes.sizeof(library.Method)
        assert fields(library.Method) == declared(method[1])
        body = body.replace(method[0], f"METHOD{inner}").replace("CHOLMOD_MAXMETHODS + 1", "10")
    ours = [each for each in fields(record) if each[0] != "room"]
    theirs = declared(body)[: len(ours)]
    renamed = {"xworkbytes": "xworksize", "other_5": "dtype", "Flag": "flag", "Head": "head"}
    renamed |= {"Xwork": "xwork", "Iwork": "iwork", "Perm": "perm", "ColCount": "col_count", "IPerm": "iperm"}
    renamed |= {"useGPU": "use_gpu"}
    assert ours == [(renamed.get(name, name), size) for name, size in theirs]


def fields(record):
    return [(name, ctypes.sizeof(kind)) for name, kind in record._fields_]


def declared(body):
    """Name and size of each field of a struct."""
    sizes = {"size_t": 8, "double": 8, "int": 4, "SuiteSparse_long": 8, "int64_t": 8, "float": 4}
    found = []
    for line in filter(None, (" ".join(part.split()) for part in body.split(";"))):
        if "(*" in line:
            found.append((re.search(r"\(\*\s*(\w+)", line)[1], 8))
            continue
        kind, _, name = line.partition(" ")
        bare, _, length = name.strip().lstrip("* ").partition("[")
        size = int(kind[6:]) if kind.startswith("METHOD") else 8 if "*" in name else sizes.get(kind, 8)
        found.append((bare.strip(), size * (int(length.rstrip("] ")) if length.strip("] ").isdigit() else 1)))
    return found


@needs_cholmod
def test_nothing_is_written_beyond_the_record():
    with library.session(library.load()) as common:
        held = bytes(common)[library.Common.room.offset :]
    assert not held[-2048:].strip(b"\0"), "the library's record is not much longer than what is known of it"


class Altered:
    """The library with one function replaced."""

    def __init__(self, name, function):
        self.real = library.load()
        setattr(self, name, function)

    def __getattr__(self, name):
        return getattr(self.real, name)


def shifted(common):
    """A start that finds its fields eight bytes further on."""
    library.load().cholmod_l_start(common)
    at = ctypes.addressof(common)
    ctypes.memmove(at + 144 + 8, at + 144, 2600)
    return 1


@needs_cholmod
def test_records_that_lie_otherwise_are_noticed():
    assert library.as_expected(library.load())
    made = Altered("cholmod_l_start", shifted)
    made.cholmod_l_finish = lambda common: 1
    assert not library.as_expected(made)
    # A factorization that gives nothing, and one whose order is not the one that was asked for.
    assert not library.as_expected(Altered("cholmod_l_factorize", lambda a, made, common: 1))

    def reordered(a, order, *rest):
        del order
        wrong = np.array([0, 2, 1, 3], dtype=np.int64)
        return library.load().cholmod_l_analyze_p(a, library.address(wrong), *rest)

    assert not library.as_expected(Altered("cholmod_l_analyze_p", reordered))


@pytest.mark.parametrize("release", [(2, 1, 2), (3, 1, 0), (5, 4, 0), (6, 0, 0), (0, 0, 0)])
def test_another_release_is_refused(release):
    with pytest.raises(NotSupportedError, match=r"releases 3\.0 to 5\.3"):
        library.check_release(release)
    library.check_release((3, 0, 14))
    library.check_release((5, 3, 1))


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [(-2, MemoryBudgetError, "do not fit"), (-3, NotSupportedError, "can count"), (-4, InternalError, "status -4")],
)
def test_every_status_has_its_error(status, error, text):
    common = library.Common(status=status)
    with pytest.raises(error, match=text.replace("do not fit", "does not fit")):
        library.check(common)
    for fine in (0, 1, 2):
        library.check(library.Common(status=fine))


@needs_cholmod
def test_it_is_found_by_name():
    assert find_library("cholmod")


@pytest.mark.skipif(library.installed(), reason="it is installed")
def test_who_has_it_not_is_told_the_system_s_package():
    with pytest.raises(NotSupportedError, match="apt-get install libcholmod3"):
        check_installed("method", "cholmod", ROWS["cholmod"])


# --- factors ----------------------------------------------------------------------------------------------------------


@needs_cholmod
@each_kind
@pytest.mark.parametrize("make", [lambda m: m, complexed], ids=["real", "complex"])
def test_both_kinds_of_factor_solve(kind, make):
    m = make(MESHES[kind]())
    f = factor_of("cholmod", m)
    assert f.handles[0]._analysis.supernodal == (kind == "blocks")
    a = csr_array((m.values, m.pattern.indices, m.pattern.indptr), shape=m.pattern.shape)
    b = numbers((m.n, 3), m.dtype.name, 551_903_227)
    for trans, of in (("N", a), ("T", a.T), ("H", a.conj().T)):
        np.testing.assert_allclose(of @ f.solve(b, trans, Controls()).x, b, atol=1e-11)


@needs_cholmod
@each_kind
def test_factors_of_a_pattern_share_its_analysis_and_none_is_overwritten(kind):
    method, m = solver("cholmod"), MESHES[kind]()
    symbolic = method.analyze(m.pattern, spec())
    scales = (1.0, 3.0, 0.25)
    factors = [method.factorize(symbolic, Operand(Matrix(m.pattern, m.values * scale)), spec()) for scale in scales]
    factors.append(method.factorize(symbolic, Operand(complexed(m)), spec()))
    b = numbers((m.n, 1), "float64", 118_820_953)
    x = answer(factors[0], b, "N", Controls()).x
    for scale, f in zip(scales, factors, strict=False):
        np.testing.assert_allclose(scale * answer(f, b, "N", Controls()).x, x, rtol=1e-12)
    del symbolic, factors[1:]
    gc.collect()
    np.testing.assert_array_equal(answer(factors[0], b, "N", Controls()).x, x)


@needs_cholmod
@each_kind
@pytest.mark.parametrize("make", [lambda m: m, complexed], ids=["real", "complex"])
def test_a_pivot_that_is_not_positive_is_named_by_its_column(kind, make):
    m = make(MESHES[kind]())
    diagonal = np.flatnonzero(m.pattern.rows == m.pattern.indices)
    for column in (0, 7, m.n // 2, m.n - 1):
        for entry in (-0.5, 0.0):
            values = m.values.copy()
            values[diagonal[column]] = entry
            # The other columns alone make a definite matrix, so no pivot but this one can fail.
            with pytest.raises(NotPositiveDefiniteError, match=f"column {column}\\)") as caught:
                factor_of("cholmod", Matrix(m.pattern, values))
            assert caught.value.details["column"] == str(column)


@needs_cholmod
def test_a_column_without_a_diagonal_entry_is_no_accident():
    a = array("definite", "float64")
    a[5, 5] = 0.0
    with pytest.raises(NotPositiveDefiniteError) as caught:
        factor_of("cholmod", matrix("csr", a))
    assert caught.value.details["column"] == "5"


@needs_cholmod
def test_an_upper_triangle_that_is_another_is_refused():
    """CHOLMOD reads the lower one alone, and would not know."""
    a = array("definite", "float64")
    i, j = np.argwhere(np.triu(a, 1))[3]
    a[i, j] *= 1.5
    with pytest.raises(NotPositiveDefiniteError, match="Hermitian"):
        factor_of("cholmod", matrix("csr", a))


@needs_cholmod
def test_a_batch_has_a_status_for_each_system():
    a = array("definite", "complex128")
    broken, crooked = a.copy(), a.copy()
    broken[9, 9] = -1
    crooked[np.tril(a, -1) != 0] *= 1.01
    missing = np.where(a != 0, np.nan, 0)
    f = factor_of("cholmod", matrix("csr", np.stack([a, broken, 2 * a, crooked, missing])))
    b = numbers((5, 40, 2), "complex128", 771_002_994)
    got = answer(f, b, "T", Controls())
    refused = (Status.NOT_POSITIVE_DEFINITE,) * 2
    fine = (Status.OK,) * 2
    assert got.statuses == (fine, refused, fine, refused, (Status.NONFINITE_INPUT,) * 2)
    np.testing.assert_allclose(op(a, "T") @ got.x[0], b[0], atol=1e-10)
    np.testing.assert_allclose(op(2 * a, "T") @ got.x[2], b[2], atol=1e-10)


@needs_cholmod
@each_kind
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_bytes_are_foreseen_exactly(kind, dtype):
    m = MESHES[kind]()
    m = Matrix(m.pattern, m.values.astype(dtype))
    method = solver("cholmod")
    symbolic = method.analyze(m.pattern, spec())
    f = method.factorize(symbolic, Operand(m), spec())
    assert symbolic.predicted_nbytes(dtype) == f.nbytes
    with library.session(library.load()) as common:
        before = common.memory_inuse
        copy = library.load().cholmod_l_copy_factor(f.handles[0]._handle, common)
        taken = common.memory_inuse - before
        library.load().cholmod_l_free_factor(ctypes.byref(copy), common)
        assert common.memory_inuse == before
    # Nothing is spared for entries that come later.
    made = f.handles[0]._handle.contents
    assert made.is_super or made.nzmax == symbolic.analysis.entries
    # CHOLMOD counts its record as well, and an entry or two behind the end of each array.
    assert taken - 300 < f.nbytes <= taken


@needs_cholmod
def test_memory_is_given_back():
    method, m = solver("cholmod"), cube(11)
    b = numbers((m.n, 32), "float64", 660_128_417)

    def held():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def once():
        symbolic = method.analyze(m.pattern, spec())
        f = method.factorize(symbolic, Operand(m), spec())
        for _ in range(4):
            f.solve(b, "N", Controls())
        return f.nbytes

    size = max(once() for _ in range(5))
    before = held()
    for _ in range(60):
        once()
    assert held() - before < 10 * size


@needs_cholmod
def test_the_blas_is_used_by_one_thread_at_a_time():
    """The system's may keep one buffer for all: what another thread computes with it meanwhile is wrong."""
    held = []

    def watched(name):
        real = getattr(library.load(), name)

        def call(*given):
            held.append((name, library.LOCK._is_owned()))
            return real(*given)

        return call

    m = cube(11)
    symbolic = solver("cholmod").analyze(m.pattern, spec())
    symbolic.analysis._library = Altered("cholmod_l_factorize", watched("cholmod_l_factorize"))
    symbolic.analysis._library.cholmod_l_solve = watched("cholmod_l_solve")
    f = solver("cholmod").factorize(symbolic, Operand(m), spec())
    f.solve(numbers((m.n, 1), "float64", 8_215_603), "N", Controls())
    assert held == [("cholmod_l_factorize", True), ("cholmod_l_solve", True)]


@needs_cholmod
@each_kind
def test_threads_factorize_and_solve_at_once(kind):
    method, m = solver("cholmod"), MESHES[kind]()
    symbolic = method.analyze(m.pattern, spec())
    b = [numbers((m.n, 2), "float64", 4_410_277 + index) for index in range(6)]
    shared = method.factorize(symbolic, Operand(m), spec())
    alone = [shared.solve(each, "N", Controls()).x for each in b]

    def work(index):
        own = method.factorize(symbolic, Operand(Matrix(m.pattern, 4.0**index * m.values)), spec())
        found = [(shared.solve(b[index], "N", Controls()).x, own.solve(b[index], "N", Controls()).x) for _ in range(8)]
        return index, found

    with ThreadPoolExecutor(6) as pool:
        for index, found in pool.map(work, range(6)):
            for from_shared, from_own in found:
                np.testing.assert_array_equal(from_shared, alone[index])
                np.testing.assert_array_equal(4.0**index * from_own, alone[index])  # a power of four rounds nothing


# --- orderings --------------------------------------------------------------------------------------------------------


@needs_cholmod
def test_orderings_by_name():
    method, m = solver("cholmod"), cube(11)
    b = numbers((m.n, 1), "float64", 93_751_008)
    made = {name: method.analyze(m.pattern, spec(name)) for name in ("mmd", "nd", "auto")}
    assert [made[name].kind for name in made] == ["mmd", "nd", "mmd"]
    assert made["nd"].analysis.entries != made["mmd"].analysis.entries
    for symbolic in made.values():
        f = method.factorize(symbolic, Operand(m), spec())
        assert answer(f, b, "N", Controls()).backward_error.max() < 1e-15
    with pytest.raises(InvalidOptionError, match="'mmd' or 'nd'"):
        method.analyze(m.pattern, spec("colamd"))


@needs_cholmod
def test_dissection_is_tried_where_it_may_pay_and_taken_where_it_does(monkeypatch):
    monkeypatch.setattr(module, "dissection_nanoseconds", lambda entries: 0.0)
    method = solver("cholmod")
    spatial, chain = method.analyze(cube(15).pattern, spec("auto")), method.analyze(poisson(1).pattern, spec("auto"))
    assert (spatial.kind, chain.kind) == ("nd", "mmd")
