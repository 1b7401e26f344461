"""Properties that every preconditioner must have, and what each must gain."""

import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array, random_array

from backsolve import Client
from backsolve.errors import InvalidOptionError, NotPositiveDefiniteError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.options import preconditioner_spec
from backsolve_service.engine.precond import amg, elimination
from backsolve_service.engine.precond.chebyshev import Chebyshev
from backsolve_service.engine.precond.elimination import eliminate
from backsolve_service.engine.precond.ic import IncompleteCholesky
from backsolve_service.engine.precond.triangle import Triangle
from backsolve_service.engine.registry import PRECONDITIONERS, precondition
from engine.table import array, factor_of, matrix, numbers, poisson

DEFINITE = [name for name, row in PRECONDITIONERS.items() if row.definite]
GENERAL = [
    "none",
    "jacobi",
    "block_jacobi(size=6)",
    "ssor(omega=0.7)",
    "ilu",
    "ilut(drop=0.1,fill=3)",
    "amg",
    "amg(kind=sa)",
]
EVERY = [*(f"{name}:definite" for name in PRECONDITIONERS), *(f"{name}:general" for name in GENERAL)]

each = pytest.mark.parametrize("case", EVERY)
each_definite = pytest.mark.parametrize("name", [*DEFINITE, "amg(kind=sa)", "ssor(omega=1.7)", "block_jacobi(size=3)"])
each_layout = pytest.mark.parametrize("layout", ["csr", "dense"])
each_dtype = pytest.mark.parametrize("dtype", ["float64", "complex128"])


def build(name, a):
    return precondition(preconditioner_spec(name), a)


def plain(side):
    """The 5-point Laplacian."""
    m = poisson(side)
    return csr_array((m.values, m.pattern.indices, m.pattern.indptr), shape=m.pattern.shape)


def grid(side, dtype="float64"):
    """The same in units that differ from row to row, with phases where it is complex: Hermitian positive definite."""
    a = plain(side)
    s = 1 + np.random.default_rng(61_448_027).random(side * side)
    phase = np.exp(1j * np.arange(side * side)) if dtype == "complex128" else np.ones(side * side)
    return csr_array(diags_array(s * phase) @ a @ diags_array(s * phase.conj())).astype(dtype)


def unsymmetric(side, dtype="float64"):
    """Convection and diffusion: an M-matrix that is not symmetric."""
    a = grid(side, dtype)
    wind = diags_array([-0.8, 0.8], offsets=[-1, 0], shape=a.shape) * float(abs(a).max()) / 4
    out = csr_array(a + wind).astype(dtype)
    out.sort_indices()
    return out


def of_case(case, layout, dtype):
    name, kind = case.split(":")
    a = grid(11, dtype) if kind == "definite" else unsymmetric(11, dtype)
    return build(name, a.toarray() if layout == "dense" else a), a


def solved(name, a, b, method="cg", **controls):
    got = answer(factor_of(method, canonical(a), preconditioner_spec(name)), b, "N", Controls(**controls))
    assert got.statuses == ((Status.OK,) * b.shape[1],)
    return got


def canonical(a):
    """A sparse array as the engine takes it."""
    return Matrix(Pattern.from_csr(a), a.data)


def inverse(m, n, dtype):
    """M⁻¹ as a full array."""
    return m.apply(np.eye(n, dtype=dtype)).T


@each
@each_layout
@each_dtype
def test_it_is_linear(case, layout, dtype):
    m, a = of_case(case, layout, dtype)
    u, v = numbers((2, 3, a.shape[0]), dtype, 730_115_902)
    factor = 0.7 - 1.9j if dtype == "complex128" else -1.9
    together = m.apply(u + factor * v)
    np.testing.assert_allclose(together, m.apply(u) + factor * m.apply(v), rtol=1e-10, atol=1e-12)
    assert together.dtype == np.dtype(dtype)
    # One row alone gets what it got in the block.
    np.testing.assert_allclose(m.apply(u[1:2])[0], m.apply(u)[1], rtol=1e-11, atol=1e-13)


@each
@each_layout
@each_dtype
def test_the_adjoint_is_the_adjoint(case, layout, dtype):
    """⟨M⁻¹x, y⟩ = ⟨x, M⁻ᴴy⟩."""
    m, a = of_case(case, layout, dtype)
    x, y = numbers((2, 1, a.shape[0]), dtype, 33_904_418)
    left, right = np.vdot(m.apply(x), y), np.vdot(x, m.apply_adjoint(y))
    assert left == pytest.approx(right, rel=1e-10)


@each_definite
@each_layout
@each_dtype
def test_it_is_hermitian_and_positive(name, layout, dtype):
    a = grid(9, dtype)
    m = inverse(build(name, a.toarray() if layout == "dense" else a), 81, dtype)
    np.testing.assert_allclose(m, m.conj().T, rtol=0, atol=1e-13 * np.abs(m).max())
    assert np.linalg.eigvalsh((m + m.conj().T) / 2).min() > 0


@each_layout
@each_dtype
@pytest.mark.parametrize("name", DEFINITE)
def test_both_layouts_and_both_ways_into_a_solve_agree(name, layout, dtype):
    """CG with M reaches the direct solution."""
    a = grid(12, dtype).toarray()
    b = numbers((144, 2), dtype, 12_775_031)
    f = factor_of("cg", matrix(layout, a), preconditioner_spec(name))
    expected = np.linalg.solve(a, b)
    np.testing.assert_allclose(answer(f, b, "N", Controls(rtol=1e-12)).x, expected, rtol=0, atol=1e-9)


@each
@each_layout
def test_inputs_stay_as_they_are_and_memory_is_counted(case, layout):
    name, kind = case.split(":")
    a = grid(11) if kind == "definite" else unsymmetric(11)
    given = a.toarray() if layout == "dense" else a
    held = given if layout == "dense" else given.data
    held.flags.writeable = False
    m = build(name, given)
    rows = numbers((2, 121), "float64", 5_003_117)
    rows.flags.writeable = False
    kept = rows.copy()
    m.apply(rows), m.apply_adjoint(rows)
    np.testing.assert_array_equal(rows, kept)
    assert m.nbytes == 0 if name == "none" else 121 * 8 <= m.nbytes < 121 * 121 * 20


@pytest.mark.parametrize("name", PRECONDITIONERS)
@each_layout
@each_dtype
def test_small_matrices(name, layout, dtype):
    for n in (0, 1, 2):
        full = 4 * np.eye(n, dtype=dtype)
        m = build(name, full if layout == "dense" else csr_array(full))
        rows = numbers((3, n), dtype, 72_190_044)
        got = m.apply(rows)
        assert got.shape == (3, n)
        np.testing.assert_allclose(got, rows if name == "none" else rows / 4, rtol=1e-12)
        assert m.apply(rows[:0]).shape == m.apply_adjoint(rows[:0]).shape == (0, n)


@pytest.mark.parametrize("name", [name for name in PRECONDITIONERS if name != "none"])
@each_dtype
def test_a_diagonal_matrix_is_inverted(name, dtype):
    d = 1 + np.random.default_rng(9_114_203).random(300) * 1e3
    m = build(name, csr_array(diags_array(d.astype(dtype))))
    rows = numbers((2, 300), dtype, 8_814_022)
    np.testing.assert_allclose(m.apply(rows), rows / d, rtol=1e-9)


@each
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_it_scales_with_the_matrix(case, scale):
    name, kind = case.split(":")
    a = grid(8) if kind == "definite" else unsymmetric(8)
    rows = numbers((2, 64), "float64", 29_115_703)
    plain = build(name, a).apply(rows)
    scaled = build(name, csr_array(a * scale)).apply(rows)
    np.testing.assert_allclose(scaled if name == "none" else scaled * scale, plain, rtol=1e-9)


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_wide_indices_serve_as_well(name):
    a = grid(8)
    wide = csr_array((a.data, a.indices.astype(np.int64), a.indptr.astype(np.int64)), shape=a.shape)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    rows = numbers((2, 64), "float64", 9_300_471)
    np.testing.assert_allclose(build(name, wide).apply(rows), build(name, a).apply(rows), rtol=1e-13)


@pytest.mark.parametrize("name", ["ic", "ssor", "amg", "chebyshev"])
def test_strong_ones_lower_the_iterations(name):
    a, b = grid(40), numbers((1600, 1), "float64", 4_408_113)
    plain, strong = solved("jacobi", a, b), solved(name, a, b)
    assert strong.iterations[0] < 0.6 * plain.iterations[0]
    np.testing.assert_allclose(strong.x, plain.x, rtol=0, atol=1e-7 * np.abs(plain.x).max())


def test_low_rank_takes_out_few_large_eigenvalues():
    rng = np.random.default_rng(620_914_553)
    q = np.linalg.qr(rng.standard_normal((200, 8)))[0]
    a = csr_array(np.eye(200) + q @ np.diag(np.geomspace(1e3, 1e6, 8)) @ q.T + np.diag(rng.random(200)))
    b = numbers((200, 1), "float64", 83_015_560)
    a = csr_array((a + a.T) / 2)
    counts = {name: solved(name, a, b).iterations[0] for name in ("jacobi", "low_rank(rank=2)", "low_rank(rank=8)")}
    assert counts["low_rank(rank=8)"] < 0.5 * counts["jacobi"]
    assert counts["low_rank(rank=8)"] < counts["low_rank(rank=2)"]


@pytest.mark.parametrize("kind", ["rs", "sa"])
def test_multigrid_iterations_hardly_grow(kind):
    counts = [solved(f"amg(kind={kind})", plain(side), np.ones((side**2, 1))).iterations[0] for side in (32, 64, 128)]
    assert max(counts) <= 1.5 * counts[0]


def test_multigrid_really_has_levels():
    m = amg.AlgebraicMultigrid(unsymmetric(11), "auto")
    assert len(m._levels) >= 1
    sa = amg.AlgebraicMultigrid(unsymmetric(16, "complex128"), "auto")
    assert len(sa._levels) >= 1


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", ["ilu", "ilut", "ssor", "amg", "block_jacobi(size=11)"])
@pytest.mark.parametrize("trans", ["N", "H"])
def test_unsymmetric_systems_gain(name, dtype, trans):
    a, b = unsymmetric(20, dtype), numbers((400, 1), dtype, 515_904_118)
    m = matrix("csr", a.toarray())
    counts = {}
    for each_name in ("jacobi", name):
        got = answer(factor_of("gmres", m, preconditioner_spec(each_name)), b, trans, Controls(rtol=1e-9))
        assert got.statuses == ((Status.OK,),)
        counts[each_name] = got.iterations[0]
    assert counts[name] < counts["jacobi"]


def test_the_triangle_adds_nothing_and_pivots_nowhere():
    rng = np.random.default_rng(300_871_245)
    a = random_array((150, 150), density=0.05, rng=rng, format="csr")
    for half in (np.tril(a.toarray(), -1), np.triu(a.toarray(), 1)):
        # Diagonal entries below the others: pivoting would move away from them.
        full = half + np.diag(np.full(150, 0.5 * np.abs(half).max()))
        t = Triangle(csr_array(full), "ssor")
        np.testing.assert_array_equal(t._lu.perm_r[t._lu.perm_c.argsort()], np.arange(150))
        # L and U both count the diagonal; SuperLU keeps small dense blocks.
        assert t._lu.nnz <= 3 * np.count_nonzero(full)
        rows = rng.standard_normal((2, 150))
        for trans, op in (("N", full), ("T", full.T)):
            x = t.solve(rows, trans)
            gap = np.abs(op @ x.T - rows.T).max(axis=0)
            assert np.all(gap <= 1e-12 * (np.abs(op).sum(axis=1).max() * np.abs(x).max(axis=1)))


def reference_ilu(full, stored):
    """ILU(0) of a full array by the textbook: rows one after the other."""
    out = full.copy()
    for i in range(1, out.shape[0]):
        for k in np.flatnonzero(stored[i, :i]):
            out[i, k] /= out[k, k]
            inside = stored[i, k + 1 :]
            out[i, k + 1 :] -= np.where(inside & stored[k, k + 1 :], out[i, k] * out[k, k + 1 :], 0)
    return out


@each_dtype
@pytest.mark.parametrize("kind", ["random", "arrow", "chain", "grid"])
def test_elimination_agrees_with_the_textbook(kind, dtype):
    n = 60
    full = numbers((n, n), dtype, 18_820_734)
    rng = np.random.default_rng(77_401_882)
    stored = {
        "random": rng.random((n, n)) < 0.1,
        "arrow": (np.arange(n) == 0) | (np.arange(n)[:, None] == 0),
        "chain": np.abs(np.arange(n) - np.arange(n)[:, None]) == 1,
        "grid": grid(8).toarray()[:n, :n] != 0,
    }[kind] | np.eye(n, dtype=bool)
    full = np.where(stored, full, 0) + 20 * np.eye(n)
    got = csr_array(full)
    got.data = eliminate(got)
    np.testing.assert_allclose(got.toarray(), reference_ilu(full, stored), rtol=1e-13, atol=1e-14)


@each_dtype
def test_incomplete_cholesky_reproduces_the_pattern(dtype):
    a = grid(14, dtype)
    m = IncompleteCholesky(a)
    assert m.shift == 0
    product = np.linalg.inv(inverse(m, 196, dtype))
    stored = a.toarray() != 0
    np.testing.assert_allclose(product[stored], a.toarray()[stored], rtol=1e-11)
    assert np.abs(product[~stored]).max() > 0.01


def test_incomplete_cholesky_is_shifted_where_it_breaks_down():
    """Kershaw's matrix: positive definite, and its IC(0) has a negative pivot."""
    a = np.array([[3.0, -2, 0, 2], [-2, 3, -2, 0], [0, -2, 3, -2], [2, 0, -2, 3]])
    assert np.linalg.eigvalsh(a).min() > 0
    big = csr_array(np.kron(np.eye(30), a))
    m = IncompleteCholesky(big)
    assert m.shift > 0
    full = inverse(m, 120, "float64")
    assert np.linalg.eigvalsh(full).min() > 0
    solved("ic", big, numbers((120, 1), "float64", 91_140_287))
    with Client() as client:
        reason = client.solve(big, np.ones(120), method="cg", preconditioner="ic").stats.reason
        assert f"built with {m.shift:.1g} of the diagonal added" in reason
        harmless = client.solve(big + 4 * csr_array(np.eye(120)), np.ones(120), method="cg", preconditioner="ic")
        assert "diagonal added" not in harmless.stats.reason


def test_of_a_batch_it_is_told_how_many_were_shifted():
    kershaw = np.array([[3.0, -2, 0, 2], [-2, 3, -2, 0], [0, -2, 3, -2], [2, 0, -2, 3]])
    big = np.kron(np.eye(30), kershaw)
    three = np.stack([big, big + 4 * np.eye(120), 2 * big])
    note = factor_of("cg", matrix("csr", three), "ic").note
    assert note is not None
    assert note.endswith("(2 of 3 systems)")
    assert factor_of("cg", matrix("csr", three), "jacobi").note is None


@pytest.mark.parametrize("name", ["ic", "chebyshev", "low_rank"])
def test_matrices_that_are_not_hermitian_are_refused(name):
    with pytest.raises(NotPositiveDefiniteError, match="not Hermitian"):
        build(name, unsymmetric(5))
    a = grid(5)
    a.setdiag(np.where(np.arange(25) == 7, -1.0, a.diagonal()))
    with pytest.raises(NotPositiveDefiniteError, match="entry 7") as caught:
        build(name, a)
    assert caught.value.details["column"] == "7"


@pytest.mark.parametrize("name", ["ic", "chebyshev", "low_rank"])
@pytest.mark.parametrize("size", [1e200, 1e300])
@each_layout
def test_what_is_beyond_all_bounds_beside_the_diagonal_is_refused(name, size, layout):
    """Its squares overflow, or its product with the scaling does."""
    a = np.array([[1e-9, -size], [-size, 8.0]])
    with pytest.raises(NotPositiveDefiniteError, match=r"beyond all bounds.*jacobi"):
        build(name, a if layout == "dense" else csr_array(a))


@pytest.mark.parametrize("name", ["ic", "chebyshev"])
def test_an_indefinite_matrix_still_gets_a_definite_one(name):
    """MINRES may use it: positive by construction as long as the diagonal is."""
    a = grid(10)
    shifted = csr_array(a - 0.5 * diags_array(a.diagonal()))
    assert np.linalg.eigvalsh(shifted.toarray()).min() < 0
    m = inverse(build(name, shifted), 100, "float64")
    assert np.linalg.eigvalsh((m + m.T) / 2).min() > 0


def test_low_rank_refuses_an_indefinite_matrix():
    a = np.eye(30) + 3 * (np.eye(30, k=1) + np.eye(30, k=-1))
    with pytest.raises(NotPositiveDefiniteError, match="low_rank"):
        build("low_rank(rank=30)", a)


@pytest.mark.parametrize("name", ["block_jacobi(size=2)", "ssor", "ilu", "ilut", "amg"])
@each_layout
def test_zero_pivots_are_named(name, layout):
    a = np.diag([1.0, 2.0, 0.0, 0.0, 5.0, 6.0])
    with pytest.raises(SingularMatrixError, match=r"exactly singular.*pivot") as caught:
        build(name, a if layout == "dense" else csr_array(a))
    assert caught.value.details["kind"] == "numeric"


def test_a_pivot_that_elimination_makes_zero_is_named():
    a = np.eye(9)
    a[3:5, 3:5] = 1.0
    with pytest.raises(SingularMatrixError, match="column 4"):
        build("ilu", csr_array(a))
    # Stored zeros are entries, and pivots of zero.
    stored = csr_array(np.diag(np.arange(1.0, 9.0)))
    stored.data[5] = 0
    with pytest.raises(SingularMatrixError, match="column 5"):
        build("ilu", stored)


def test_only_pivoting_serves_a_zero_diagonal():
    a = array("zero_diagonal", "float64")
    with pytest.raises(SingularMatrixError, match="ilut"):
        build("ilu", csr_array(a))
    solved("ilut", csr_array(a), numbers((40, 1), "float64", 66_031_114), method="gmres")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("block_jacobi(size=2)", "block_jacobi(size=16)"),
        ("ssor(omega=1.0)", "ssor(omega=1.6)"),
        ("ilut(drop=1e-4)", "ilut(drop=0.2)"),
        ("ilut(drop=1e-9,fill=1)", "ilut(drop=1e-9,fill=20)"),
        ("chebyshev(degree=2)", "chebyshev(degree=9)"),
        ("amg(kind=rs)", "amg(kind=sa)"),
        ("low_rank(rank=2)", "low_rank(rank=12)"),
    ],
)
def test_every_parameter_changes_what_it_should(one, other):
    a = grid(16)
    rows = numbers((1, 256), "float64", 44_108_872)
    assert not np.allclose(build(one, a).apply(rows), build(other, a).apply(rows), rtol=1e-6)


def test_more_of_a_parameter_is_a_better_inverse():
    a, b = grid(30), numbers((900, 1), "float64", 20_877_341)
    for worse, better in (
        ("chebyshev(degree=2)", "chebyshev(degree=8)"),
        ("block_jacobi(size=1)", "block_jacobi(size=60)"),
    ):
        assert solved(better, a, b).iterations[0] < solved(worse, a, b).iterations[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block_jacobi(size=0)", "size.*from 1 to 1024"),
        ("ssor(omega=2)", r"omega.*from 0\.01 to 1\.99"),
        ("ilut(drop=-1)", "drop.*from 0 to 1"),
        ("ilut(fill=0.5)", "fill.*from 1 to 1000"),
        ("chebyshev(degree=65)", "degree.*from 1 to 64"),
        ("chebyshev(degree=2.5)", "degree.*whole number"),
        ("amg(kind=gmg)", "kind.*one of auto, rs, sa"),
        ("low_rank(rank=0)", "rank.*from 1 to 512"),
        ("ic(shift=1)", "takes none"),
    ],
)
def test_parameters_out_of_range_are_refused(text, message):
    with pytest.raises(InvalidOptionError, match=message):
        preconditioner_spec(text)


def test_ruge_stueben_takes_no_complex_matrix():
    with pytest.raises(InvalidOptionError, match="kind=sa"):
        build("amg(kind=rs)", grid(5, "complex128"))


def test_multigrid_draws_no_random_numbers():
    rows = numbers((1, 400), "float64", 81_201)
    for kind in ("rs", "sa"):
        first, second = (build(f"amg(kind={kind})", unsymmetric(20)).apply(rows) for _ in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["ssor", "ic", "chebyshev", "amg", "amg(kind=sa)", "block_jacobi(size=4)"])
def test_rows_in_units_far_apart_are_no_obstacle(name):
    """Hermitian scaling by powers of two is undone exactly, up to what the library rounds."""
    a = plain(16)
    powers = np.random.default_rng(83_115_207).integers(-200, 200, size=256)
    s = np.ldexp(1.0, powers)
    rows = numbers((2, 256), "float64", 60_224_871)
    far = build(name, csr_array(diags_array(s) @ a @ diags_array(s))).apply(rows * s) * s
    np.testing.assert_allclose(far, build(name, a).apply(rows), rtol=0, atol=1e-9 * np.abs(far).max())


def test_multigrid_writes_nothing(capfd):
    """Where classical interpolation would divide by zero, PyAMG writes to the standard output."""
    n = 200
    near, far = np.eye(n, k=1) + np.eye(n, k=-1), np.eye(n, k=100) + np.eye(n, k=-100)
    # In each row the diagonal and the one weak connection cancel.
    build("amg", csr_array(np.eye(n) - 10 * near - far))
    assert capfd.readouterr() == ("", "")


@each_dtype
def test_ssor_is_its_formula(dtype):
    a, omega = unsymmetric(6, dtype).toarray(), 1.3
    if dtype == "complex128":
        a = a + 1j * np.diag(np.arange(36.0))
    d = np.diag(a.diagonal())
    lower, upper = d + omega * np.tril(a, -1), d + omega * np.triu(a, 1)
    m = lower @ np.linalg.inv(d) @ upper / (omega * (2 - omega))
    built, rows = build(f"ssor(omega={omega})", csr_array(a)), numbers((2, 36), dtype, 50_118_734)
    np.testing.assert_allclose(built.apply(rows).T, np.linalg.solve(m, rows.T), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(built.apply_adjoint(rows).T, np.linalg.solve(m.conj().T, rows.T), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_the_residual_polynomial_is_that_of_chebyshev(degree):
    """1 - λ p(λ) = T((c - λ) / r) / T(c / r), T of degree + 1."""
    a = plain(7)
    m = Chebyshev(a, degree)
    assert 0 < m._low <= m._high
    values, vectors = np.linalg.eigh(a.toarray() / 4)
    assert values.max() <= m._high
    centre, radius = (m._high + m._low) / 2, (m._high - m._low) / 2
    t = np.polynomial.chebyshev.Chebyshev.basis(degree + 1)
    outside = np.cosh((degree + 1) * np.arccosh(centre / radius))
    ratio = (centre - values) / radius
    inside = np.where(ratio <= 1, t(np.minimum(ratio, 1)), np.cosh((degree + 1) * np.arccosh(np.maximum(ratio, 1))))
    expected = vectors @ np.diag((1 - inside / outside) / values) @ vectors.T / 4
    np.testing.assert_allclose(inverse(m, 49, "float64"), expected, rtol=0, atol=1e-12)


def test_elimination_in_many_parts_is_the_same(monkeypatch):
    a = grid(9)
    whole = elimination.eliminate(a)
    monkeypatch.setattr(elimination, "_CHUNK", 3)
    np.testing.assert_array_equal(elimination.eliminate(a), whole)
