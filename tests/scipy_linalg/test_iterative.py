"""What SciPy's own tests ask of `cg`, `gmres`, `bicgstab` and `minres`, and where the service promises more.

The systems are those of SciPy's tests or like them; which of them a method can solve is said beside each.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from backsolve.errors import InvalidOptionError, InvalidShapeError, NotSupportedError
from support.iterative import definite, random, residual
from support.systems import convection, dense, laplacian, random_like

ALL = ("cg", "minres", "bicgstab", "gmres")
HERMITIAN = ("minres", "bicgstab", "gmres")
GENERAL = ("bicgstab", "gmres")
SINGLE = {"float64": "float32", "complex128": "complex64"}


@dataclass(frozen=True)
class System:
    """A system, and the methods that it is for."""

    a: Any
    methods: tuple[str, ...]
    b: Any = None

    @property
    def rhs(self) -> np.ndarray:
        return np.arange(self.a.shape[0]).astype(self.a.dtype) if self.b is None else self.b


def _systems() -> dict[str, System]:
    line = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(40, 40)).tocsr()
    diagonal = sparse.diags_array([6.0, -5, 2, 7, -1, 10, 4, -3, -8, 9]).tocsr()
    lower = sparse.diags_array([2.0, -1.0], offsets=[0, -1], shape=(10, 10)).tocsr()
    real, complex_ = random(4, "f", 613_208_114), random(4, "c", 280_933_715)
    square, complex_square = random(9, "f", 437_615_002), random(9, "c", 950_716_344)
    found = {
        "line": System(line, ALL),
        "negative line": System(-line, HERMITIAN),
        "grid": System(laplacian(40), ALL),
        "indefinite diagonal": System(diagonal, HERMITIAN),
        "random": System(real, GENERAL),
        "random symmetric": System(real + real.T, HERMITIAN),
        "random definite": System(square @ square.T, ALL),
        "random complex": System(complex_, GENERAL),
        "random Hermitian": System(complex_ + complex_.conj().T, HERMITIAN),
        "random complex definite": System(complex_square @ complex_square.conj().T, ALL),
        "bidiagonal": System(lower, GENERAL),
    }
    singles = {f"{name}, single": System(s.a.astype(SINGLE[s.a.dtype.name]), s.methods) for name, s in found.items()}
    return {**found, **singles}


SYSTEMS = _systems()
CASES = [(name, method) for name, system in SYSTEMS.items() for method in system.methods]
each_case = pytest.mark.parametrize(("name", "method"), CASES, ids=[f"{n}-{m}" for n, m in CASES])
each_method = pytest.mark.parametrize("method", ALL)
with_atol = pytest.mark.parametrize("method", [m for m in ALL if m != "minres"])


# -- the stop rule ------------------------------------------------------------------------------


@each_case
def test_info_is_zero_where_the_residual_is_as_wanted(spla, name, method):
    system = SYSTEMS[name]
    rtol = 1e-2 if "single" in name else 1e-8
    x0 = 0 * system.rhs
    x, info = getattr(spla, method)(system.a, system.rhs, x0=x0, rtol=rtol)
    assert info == 0
    assert x.dtype == system.a.dtype
    assert residual(system.a, x, system.rhs) <= rtol * np.linalg.norm(system.rhs)
    assert_array_equal(x0, 0 * system.rhs)


@each_case
def test_one_iteration_is_not_enough_and_info_says_so(local, name, method):
    system = SYSTEMS[name]
    more = {"restart": 1} if method == "gmres" else {}  # a whole cycle could have room for the whole space
    _, info = getattr(local, method)(system.a, system.rhs, rtol=1e-12, maxiter=1, **more)
    assert info == 1


@each_case
def test_scipys_word_for_a_first_iterate(local, name, method):
    system = SYSTEMS[name]
    rtol, x0 = (1.5e-3 if "single" in name else 1e-8), "Mb"
    x, info = getattr(local, method)(system.a, system.rhs, x0=x0, rtol=rtol)
    assert info == 0
    assert residual(system.a, x, system.rhs) <= rtol * np.linalg.norm(system.rhs)


@with_atol
def test_any_pair_of_tolerances_is_kept(local, method):
    a, b = definite()
    b, tolerances = 1e3 * b, [0, *np.logspace(-9, 2, 7), np.inf]
    for rtol in tolerances:
        for atol in tolerances:
            if rtol == atol == 0:
                continue
            x, info = getattr(local, method)(a, b, rtol=rtol, atol=atol)
            assert info == 0
            assert residual(a, x, b) <= max(rtol * np.linalg.norm(b), atol)


@with_atol
def test_an_absolute_tolerance_stops_where_a_relative_one_would(local, method):
    """Not later, with an x that is better than was asked for."""
    a, b = laplacian(12), np.ones(144)
    relative, _ = getattr(local, method)(a, b, rtol=1e-3)
    absolute, info = getattr(local, method)(a, b, rtol=0, atol=1e-3 * np.linalg.norm(b))
    assert info == 0
    assert_array_equal(relative, absolute)


@each_method
def test_no_tolerance_at_all_is_not_met(local, method):
    a, b = definite()
    x, info = getattr(local, method)(a, b, rtol=0)
    assert info > 0
    assert residual(a, x, b) < 1e-13


@each_method
def test_looser_tolerances_take_fewer_iterations(embedded, local, method):
    a, b = laplacian(30), np.ones(900)
    for rtol in (1e-2, 1e-9):
        x, info = getattr(local, method)(a, b, rtol=rtol)
        assert info == 0
        reached = residual(a, x, b) / np.linalg.norm(b)
        assert rtol * 1e-2 < reached <= rtol or method == "minres"


@each_method
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_info_and_the_true_residual_agree(local, method, dtype):
    """Random systems and limits: 0 if and only if x is as wanted."""
    rng = np.random.default_rng(705_518_223)
    seen = set()
    for k in range(24):
        n = int(rng.integers(1, 40))
        a = dense(n, dtype, seed=410_667 + k)
        a = a @ a.conj().T if method in ("cg", "minres") else a
        b = (rng.standard_normal(n) * 10.0 ** rng.integers(-8, 8)).astype(dtype)
        rtol, limit = 10.0 ** rng.uniform(-7, -0.1), int(rng.integers(1, 12))
        more = {"restart": int(rng.integers(1, 6))} if method == "gmres" else {}
        x, info = getattr(local, method)(a, b, rtol=rtol, maxiter=limit, **more)
        reached, wanted = residual(a, x, b), rtol * np.linalg.norm(b.astype(np.result_type(dtype, np.float64)))
        if info == 0:
            assert reached <= wanted * (1 + 1e-12)
        else:
            assert reached > wanted
            assert info == limit or dtype in SINGLE.values() or method == "bicgstab"
        seen.add(info == 0)
    assert seen == {True, False}


@each_method
def test_rounding_to_single_precision_is_allowed_for(local, method):
    """The service iterates in double precision; what is judged is the x that is returned."""
    for k in range(40):
        a = dense(36, seed=220_417 + k)
        a = (a @ a.T if method in ("cg", "minres") else a).astype(np.float32)
        b = random_like((36,), "float32", 901_338 + k)
        x, info = getattr(local, method)(a, b, rtol=1e-7)
        assert info == 0
        assert residual(a, x, b) <= 1e-7 * np.linalg.norm(b.astype(np.float64))


@each_method
def test_a_real_system_takes_the_real_part_of_x0_and_warns(local, method):
    a, b = definite()
    with pytest.warns(np.exceptions.ComplexWarning):
        x, info = getattr(local, method)(a, b, x0=np.zeros(10) + 1j)
    assert (x.dtype, info) == (np.float64, 0)


@each_method
def test_a_zero_right_hand_side_gives_zero(local, method):
    a, _ = definite()
    b = np.zeros(10)
    for rtol in np.logspace(-10, 2, 7):
        for x0 in (None, np.ones(10)):
            x, info = getattr(local, method)(a, b, rtol=rtol, x0=x0)
            assert info == 0
            assert_array_equal(x, b)
    assert getattr(local, method)(np.zeros((0, 0)), np.zeros(0))[0].shape == (0,)


# -- first iterates and limits ------------------------------------------------------------------


@each_method
def test_a_first_iterate_helps_and_is_left_alone(spla, method):
    rng = np.random.default_rng(168_536_380)
    a = rng.random((10, 10))
    a, b, x0 = a @ a.T, rng.random(10), rng.random(10)
    for start in (None, x0, x0[:, None]):
        x, info = getattr(spla, method)(a, b[:, None], x0=start, rtol=1e-6)
        assert info == 0
        assert x.shape == (10,)
        assert residual(a, x, b) <= 1e-6 * np.linalg.norm(b)
    near = np.linalg.solve(a, b) * (1 + 1e-9)
    kept = near.copy()
    x, info = getattr(spla, method)(a, b, x0=near, rtol=1e-6, maxiter=1)
    assert info == 0
    assert_array_equal(x, kept)
    assert_array_equal(near, kept)


@each_method
def test_a_first_iterate_that_solves_the_system_is_returned(local, method):
    b = np.array([-1.0, -1.0])
    x, info = getattr(local, method)(np.eye(2), b, x0=b)
    assert info == 0
    assert_array_equal(x, b)


@each_method
@pytest.mark.parametrize("limit", [3, 7])
def test_maxiter_counts_what_it_counts_in_scipy(local, method, limit):
    """As many iterations give the same iterate: gmres counts cycles, bicgstab pairs of products."""
    a, b = (laplacian(12) if method in ("cg", "minres") else convection(12)), np.arange(144.0)
    more = {"restart": 2} if method == "gmres" else {}
    expected, there = getattr(scipy.sparse.linalg, method)(a, b, rtol=1e-14, maxiter=limit, **more)
    x, info = getattr(local, method)(a, b, rtol=1e-14, maxiter=limit, **more)
    assert (info, there) == (limit, limit)
    assert_allclose(x, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("method", "decades", "more", "per_row"),
    [("cg", 10, {}, 10), ("minres", 10, {}, 5), ("bicgstab", 6, {}, 10), ("gmres", 3, {"restart": 2}, 10)],
)
def test_default_limits_are_scipys(local, method, decades, more, per_row):
    """A system that is out of reach, so that the limit is met."""
    a = np.diag(np.logspace(0, decades, 60))
    assert getattr(local, method)(a, np.ones(60), rtol=1e-9, **more)[1] == 60 * per_row


@pytest.mark.parametrize("n", [8, 49])
def test_the_default_basis_is_scipys(local, n):
    a, b = dense(n) - 2 * np.eye(n), np.arange(n) + 1.0
    expected, there = scipy.sparse.linalg.gmres(a, b, rtol=1e-13, maxiter=1)
    x, info = local.gmres(a, b, rtol=1e-13, maxiter=1)
    assert info == there
    assert_allclose(x, expected, rtol=1e-6)


@each_method
def test_limits_that_allow_nothing_are_value_errors(local, method):
    for wrong in (0, -1, 1.5, "many"):
        with pytest.raises(ValueError, match=r"maxiter of .* must be an integer, 1 or more"):
            getattr(local, method)(*definite(), maxiter=wrong)
    assert getattr(local, method)(*definite(), maxiter=50.0)[1] == 0


@each_method
def test_only_the_first_three_arguments_have_places(local, method):
    a, b = definite()
    with pytest.raises(TypeError):
        getattr(local, method)(a, b, None, 1e-5)


@with_atol
@pytest.mark.parametrize("atol", ["legacy", None, -1, np.nan])
def test_tolerances_that_are_none_are_value_errors(local, method, atol):
    a, b = definite()
    with pytest.raises(ValueError, match="atol"):
        getattr(local, method)(a, b, atol=atol)
    with pytest.raises(InvalidOptionError, match="rtol"):
        getattr(local, method)(a, b, rtol=atol)


# -- matrices and vectors of every kind ---------------------------------------------------------


@each_method
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"])
def test_every_format_is_solved(local, method, form):
    a = laplacian(5).asformat(form)
    x, info = getattr(local, method)(a, np.ones(25), rtol=1e-9)
    assert info == 0
    assert_allclose(a @ x, np.ones(25), atol=1e-7)


@each_method
def test_integers_and_mixed_types_have_scipys_common_type(local, method):
    a = np.array([[4, 1, 0], [1, 3, 1], [0, 1, 5]])
    for matrix, b in [
        (a, [1, 2, 3]),
        (sparse.csr_array(a), np.array([1, 2, 3], dtype=np.int16)),
        (a.astype(np.float32), np.array([1, 2, 3])),
        (a.astype(np.float32), np.array([1, 2, 3], dtype=np.float32)),
        (a.astype(np.float16), np.array([1.0, 2, 3])),
        (a, np.array([1, 2j, 3])),
        (a.astype(np.float32), np.array([1, 2j, 3], dtype=np.complex64)),
    ]:
        expected, _ = scipy.sparse.linalg.cg(matrix, b)
        x, info = getattr(local, method)(matrix, b)
        assert info == 0
        assert x.dtype == expected.dtype
        assert_allclose(x, np.linalg.solve(a, np.asarray(b)), atol=1e-4)


@each_method
def test_shapes_that_do_not_fit_are_value_errors(local, method):
    a, b = definite()
    for matrix, rhs, x0 in [
        (a[:, :9], b, None),
        (a, b[:9], None),
        (a, np.ones((10, 2)), None),
        (a, b, b[:9]),
        (np.ones((2, 10, 10)), b, None),
    ]:
        with pytest.raises(InvalidShapeError):
            getattr(local, method)(matrix, rhs, x0=x0)
    with pytest.raises(InvalidOptionError, match="Mb"):
        getattr(local, method)(a, b, x0="bM")


# -- what cannot be sent ------------------------------------------------------------------------


@each_method
def test_a_linear_operator_is_refused_unless_it_wraps_a_matrix(local, method):
    a, b = definite()
    unknown = local.LinearOperator(a.shape, matvec=lambda v: a @ v, dtype=float)
    with pytest.raises(NotSupportedError, match=rf"scipy\.sparse\.linalg\.{method}"):
        getattr(local, method)(unknown, b)
    x, info = getattr(local, method)(local.aslinearoperator(a), b)
    assert info == 0
    assert residual(a, x, b) <= 1e-5 * np.linalg.norm(b)


@each_method
def test_a_preconditioner_is_named_and_not_sent(local, method):
    a, b = definite()
    inverse = np.linalg.inv(a)
    for M in (inverse, sparse.csr_array(inverse), local.aslinearoperator(inverse)):
        with pytest.raises(NotSupportedError, match=rf"M='jacobi'.*scipy\.sparse\.linalg\.{method}"):
            getattr(local, method)(a, b, M=M)
    x, info = getattr(local, method)(a, b, M="jacobi")
    assert info == 0
    assert residual(a, x, b) <= 1e-5 * np.linalg.norm(b)
    with pytest.raises(NotSupportedError, match="Mb"):
        getattr(local, method)(a, b, M="jacobi", x0="Mb")
    with pytest.raises(InvalidOptionError, match="not known"):
        getattr(local, method)(a, b, M="no such thing")


@each_method
def test_without_a_name_there_is_no_preconditioner_as_in_scipy(spla, client, method):
    scale = np.logspace(0, 3, 60)
    a = sparse.diags_array(scale).tocsr()  # with Jacobi one iteration would do
    _, info = getattr(spla, method)(a, np.ones(60), maxiter=1, **({"restart": 4} if method == "gmres" else {}))
    assert info == 1
    assert getattr(spla, method)(a, np.ones(60), maxiter=1, M="jacobi")[1] == 0


@each_method
def test_a_callback_within_the_iteration_is_refused(local, method):
    with pytest.raises(NotSupportedError, match="call"):
        getattr(local, method)(*definite(), callback=lambda x: None)
