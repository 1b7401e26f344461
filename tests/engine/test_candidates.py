"""What `method="auto"` chooses, and that it says why."""

import numpy as np
import pytest
from scipy.sparse import block_diag

from backsolve.types import Options
from backsolve_service.engine.candidates import candidates, spreading
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS
from backsolve_service.engine.select import choose, choose_iterative
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import array, matrix, poisson
from loadtests.engine.problems import circuit, grid


def structure_of(m):
    return inspect(inspect_pattern(m.pattern), Operand(m))


def sparse(a):
    return matrix("csr", np.asarray(a))


def picked(structure, **options):
    return choose(structure, Options(**options), has_x0=False, device="cpu")


def family(problem):
    a = problem.draw(np.random.default_rng(88_620_143))
    from backsolve.matrix import Matrix
    from backsolve.pattern import Pattern

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
    assert choice.fallback.spec.method == "superlu"
    assert picked(plane).spec.method == "superlu"
    assert picked(cube, refine=1).spec.method == "superlu"  # an option of direct methods
    assert picked(cube, preconditioner="jacobi").spec.preconditioner == "jacobi"


def test_hubs_do_not_make_a_circuit_look_like_a_cube():
    structure = family(circuit(45_000, np.random.default_rng(51_920_044)))
    assert structure.facts.width is None
    assert picked(structure).spec.method == "superlu"


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
