"""What `method="auto"` chooses, and that it says why."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import block_diag, csr_array, diags_array

from backsolve._transports.base import PutCall, SolveCall
from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Options
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.engine import select
from backsolve_service.engine.candidates import candidates, spreading
from backsolve_service.engine.direct.cudss import library
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS, methods
from backsolve_service.engine.select import choose, choose_iterative
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import absent, array, matrix, poisson
from loadtests.engine.problems import circuit, grid
from support.factors import caller


def structure_of(m):
    return inspect(inspect_pattern(m.pattern), Operand(m))


def sparse(a):
    return matrix("csr", np.asarray(a))


def picked(structure, **options):
    return choose(structure, Options(**options), has_x0=False, device="cpu")


def family(problem):
    a = problem.draw(np.random.default_rng(88_620_143))
    return structure_of(Matrix(Pattern.from_csr(a), a.data))


@pytest.mark.parametrize(
    ("m", "method", "reason"),
    [
        (sparse(np.diag([1.0, 2.0, 3.0])), "diagonal", "nothing off the diagonal"),
        (sparse(array("triangular", "float64")), "triangular", "substitution"),
        (matrix("dense", array("triangular", "float64")), "triangular", "substitution"),
        (sparse(np.eye(50) * 4 + np.eye(50, k=1) + np.eye(50, k=-1)), "banded", "narrow band"),
        (sparse(block_diag([array("general", "float64", n=30)] * 5).toarray()), "block_diagonal", "small blocks"),
        (poisson(30), "superlu", "sparse: LU"),
        (matrix("dense", array("definite", "complex128")), "cholesky", "positive diagonal"),
        (matrix("dense", array("indefinite", "float64")), "ldl", "LDL"),
    ],
)
def test_structure_decides(m, method, reason):
    choice = picked(structure_of(m))
    assert choice.spec.method == method
    assert reason in choice.reason


def test_complex_symmetric_is_not_hermitian():
    a = array("general", "complex128")
    choice = picked(structure_of(matrix("dense", a + a.T)))
    assert choice.spec.method == "ldl"
    assert "complex symmetric" in choice.reason


def test_a_large_cube_is_iterated_and_a_plane_is_factorized():
    cube, plane = family(grid((36, 36, 36))), family(grid((220, 220)))
    assert spreading(cube)
    assert not spreading(plane)
    choice = picked(cube)
    assert choice.spec.method == "cg"
    assert choice.spec.preconditioner.startswith("amg")
    assert choice.fallback is not None
    direct = "superlu" if absent("rslab_ldl") else "rslab_ldl"
    assert choice.fallback.spec.method == direct
    assert picked(plane).spec.method == "superlu"
    assert picked(cube, refine=1).spec.method == direct  # an option of direct methods
    assert picked(cube, preconditioner="jacobi").spec.preconditioner == "jacobi"


def test_on_a_device_large_sparse_factors_are_made_there(monkeypatch):
    monkeypatch.setattr(select, "check_device", lambda name: None)
    monkeypatch.setattr(library, "installed", lambda: True)

    def there(structure, **options):
        return choose(structure, Options(**options), has_x0=False, device="cuda:0")

    plane, cube = family(grid((150, 150))), family(grid((36, 36, 36)))
    choice = there(plane)
    assert (choice.spec.method, choice.spec.device) == ("cudss", "cuda:0")
    assert choice.reason.endswith("LU by cuDSS; on cuda:0")
    assert choice.fallback.spec.device == "cpu"
    assert choice.fallback.spec.method == "superlu"
    assert picked(plane).spec.method == "superlu"
    assert there(plane, ordering="mmd").spec.method == "superlu"  # which cuDSS does not use
    assert there(family(grid((60, 60)))).spec.method == "superlu"
    assert there(family(circuit(45_000, np.random.default_rng(51_920_044)))).spec.method in ("superlu", "klu")
    assert (there(cube).spec.method, there(cube).spec.device) == ("cg", "cuda:0")
    assert there(cube, refine=1).spec.method == "cudss"
    monkeypatch.setattr(library, "installed", lambda: False)
    assert there(plane).spec.method == "superlu"


def test_hubs_do_not_make_a_circuit_look_like_a_cube():
    structure = family(circuit(45_000, np.random.default_rng(51_920_044)))
    assert structure.facts.width is None
    assert picked(structure).spec.method in ("superlu", "klu")


def test_every_candidate_is_a_row_and_suits():
    for kind in ("general", "definite", "indefinite", "triangular"):
        for layout in ("dense", "csr"):
            structure = structure_of(matrix(layout, array(kind, "float64")))
            listed = list(candidates(structure))
            assert {each.method for each in listed} <= set(ROWS)
            assert all(layout in ROWS[each.method].layouts for each in listed)


def test_without_room_for_a_factor_an_iteration_is_chosen():
    definite = structure_of(poisson(20))
    choice = choose_iterative(definite, Options(), "cpu", "no room")
    assert choice.spec.method == "cg"
    assert choice.spec.preconditioner.startswith("amg")
    assert choice.reason == "no room: CG"
    general = structure_of(sparse(array("general", "float64")))
    choice = choose_iterative(general, Options(), "cpu", "no room")
    assert (choice.spec.method, choice.spec.preconditioner) == ("gmres", "ilu")
    assert choose_iterative(definite, Options(refine=1), "cpu", "no room") is None


def test_the_choice_depends_on_nothing_else():
    structure = structure_of(poisson(12))
    assert picked(structure) == picked(structure)


def network(n, far, seed=660_381_527):
    """A chain of `n` nodes with `far * n` edges between any two of them."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, n, size=(2, int(far * n)))
    a = csr_array((np.ones(ends.shape[1]), ends), shape=(n, n))
    a = diags_array([np.ones(n - 1), np.full(n, 9.0), np.ones(n - 1)], offsets=[-1, 0, 1]) + 0.1 * (a + a.T)
    a = csr_array(a)
    a.sort_indices()
    return Matrix(Pattern.from_csr(a), a.data)


@pytest.mark.skipif(absent("klu") is not None, reason=str(absent("klu")))
def test_a_network_is_left_to_klu_as_long_as_its_analysis_foretells_little_fill():
    structure = structure_of(network(3000, 0.2))
    choice = picked(structure)
    assert choice.spec.method == "klu"
    assert "circuit" in choice.reason
    assert choice.most_fill is not None
    assert choice.fallback.spec.method == "superlu"
    assert choice.fallback.reason.startswith("sparse: LU")
    assert choice.fallback.fallback is None
    # What KLU has no use for, and patterns that are no networks.
    assert picked(structure, ordering="colamd").spec.method == "superlu"
    assert picked(structure_of(network(500, 0.2))).spec.method == "superlu"
    assert picked(structure_of(poisson(60))).spec.method == "superlu"


def installed(monkeypatch, names):
    """Let these methods alone be installed."""
    monkeypatch.setattr("backsolve_service.engine.select.runs", lambda name, device: name in names)


def test_without_klu_a_network_goes_to_superlu(monkeypatch):
    installed(monkeypatch, ("superlu", "cg", "gmres"))
    choice = picked(structure_of(network(3000, 0.2)))
    assert (choice.spec.method, choice.fallback, choice.most_fill) == ("superlu", None, None)


@pytest.mark.skipif(absent("klu") is not None, reason=str(absent("klu")))
def test_the_analysis_decides_between_klu_and_superlu_once():
    """The fill of a chain with 0.2 n chords is small at 3000 rows; with 0.6 n of them it is not."""
    plane = DataPlane(PlaneConfig(workers=1))
    for far, method in ((0.02, "klu"), (0.6, "superlu")):
        m = network(3000, far)
        call = SolveCall(plane.put(PutCall(m.ref, m), caller()), Options(), np.ones(m.n))
        before = plane.stats()
        first, again = (plane.solve(call, caller()).certificate for _ in range(2))
        after = plane.stats()
        assert first.method == again.method == method
        assert first.backward_error < 1e-12
        assert again.factor_hit
        assert after["factorizations"] - before["factorizations"] == 1
        assert after["analyses"] - before["analyses"] == (1 if method == "klu" else 2)
    assert plane.close()


@pytest.mark.skipif(absent("klu") is not None, reason=str(absent("klu")))
def test_a_method_that_failed_its_self_test_is_not_chosen_either():
    plane = DataPlane(PlaneConfig(workers=1, unfit={"klu": "it failed"}))
    m = network(3000, 0.02)
    call = SolveCall(plane.put(PutCall(m.ref, m), caller()), Options(), np.ones(m.n))
    assert plane.solve(call, caller()).certificate.method == "superlu"
    assert plane.close()


def test_factors_that_fill_in_are_left_to_rslab_where_the_matrix_is_symmetric(monkeypatch):
    everything = ("rslab_ldl", "superlu", "cg", "gmres")
    installed(monkeypatch, everything)
    cube = family(grid((28, 28, 28)))  # too few rows for multigrid
    choice = picked(cube)
    assert choice.spec.method == "rslab_ldl"
    assert picked(replace(cube, symmetric=False, hermitian=False)).spec.method == "superlu"
    assert picked(family(grid((150, 150)))).spec.method == "superlu"
    installed(monkeypatch, everything[1:])
    assert picked(cube).spec.method == "superlu"


@pytest.mark.skipif(absent("klu") is not None, reason=str(absent("klu")))
def test_a_singular_network_is_called_singular_and_not_given_to_another_lu():
    m = network(3000, 0.02)
    values = m.values.copy()
    values[m.pattern.indptr[7] : m.pattern.indptr[8]] = 0.0
    m = Matrix(m.pattern, values)
    plane = DataPlane(PlaneConfig(workers=1))
    call = SolveCall(plane.put(PutCall(m.ref, m), caller()), Options(), np.ones(m.n))
    with pytest.raises(SingularMatrixError):
        plane.solve(call, caller())
    assert plane.stats()["analyses"] == 1
    assert plane.close()


@pytest.mark.parametrize(
    ("method", "layout"),
    [(name, layout) for name in methods() if ROWS[name].definite for layout in sorted(ROWS[name].layouts)],
)
@pytest.mark.parametrize("entry", [-1.0, -1e-9])
def test_a_definite_method_that_is_named_tells_which_diagonal_entry_is_not_positive(embedded, method, layout, entry):
    a = array("definite", "float64")
    a[17, 17] = entry
    with pytest.raises(NotPositiveDefiniteError, match="column 17") as refusal:
        embedded.solve(a if layout == "dense" else csr_array(a), np.ones(40), method=method)
    assert refusal.value.details["column"] == "17"
