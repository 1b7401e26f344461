"""Which ordering a sparse pattern gets, that every one solves, and that the fill is foretold."""

import os
import signal
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, diags_array, eye_array, kron
from scipy.sparse.linalg import spilu

from backsolve.errors import InvalidOptionError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct import fill, graph
from backsolve_service.engine.direct.fill import column_counts
from backsolve_service.engine.direct.graph import graph_of, minimum_degree, nested_dissection
from backsolve_service.engine.direct.ordering import predicted_fill
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import array, matrix, numbers, op, poisson

KINDS = ("mmd", "nd", "colamd")


def spec(ordering, method="superlu"):
    return FactorSpec(method, None, "float64", "cpu", ordering=ordering)


def cube(side):
    """The 7-point Laplacian."""
    line = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    i = eye_array(side)
    a = (kron(kron(line, i), i) + kron(kron(i, line), i) + kron(kron(i, i), line)).tocsr()
    a.eliminate_zeros()
    a.sort_indices()
    return Matrix(Pattern.from_csr(a), a.data)


def scattered(n, share, seed):
    """A pattern without locality or symmetry, but for its diagonal."""
    stored = np.random.default_rng(seed).random((n, n)) < share
    np.fill_diagonal(stored, True)
    a = csr_array(np.where(stored, -1.0, 0.0) + n * np.eye(n))
    return Matrix(Pattern.from_csr(a), a.data)


def eliminated(graph, order):
    """Column counts the slow way: elimination on a full array of booleans."""
    n = graph.n
    stored = csr_array((np.ones(graph.indices.size), graph.indices, graph.indptr), shape=(n, n)).toarray() != 0
    stored = stored[order][:, order]
    for k in range(n):
        below = np.flatnonzero(stored[k + 1 :, k]) + k + 1
        stored[np.ix_(below, below)] = True
    return np.tril(stored).sum(axis=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", ["general", "indefinite", "zero_diagonal"])
@pytest.mark.parametrize("trans", TRANS)
def test_every_ordering_solves(kind, structure, trans):
    a = array(structure, "complex128")
    m = matrix("csr", a)
    b = numbers((40, 2), "complex128", 31_774_065)
    symbolic = solver("superlu").analyze(m.pattern, spec(kind))
    assert symbolic.kind == kind
    got = answer(solver("superlu").factorize(symbolic, Operand(m), spec(kind)), b, trans, Controls())
    assert got.statuses == ((Status.OK,) * 2,)
    np.testing.assert_allclose(got.x, np.linalg.solve(op(a, trans), b), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_cholesky_takes_every_ordering(kind):
    a = array("definite", "float64")
    m = matrix("csr", a)
    chosen = solver("cholesky")
    made = chosen.factorize(chosen.analyze(m.pattern, spec(kind, "cholesky")), Operand(m), spec(kind, "cholesky"))
    b = numbers((40, 1), "float64", 31_774_066)
    np.testing.assert_allclose(answer(made, b, "N", Controls()).x, np.linalg.solve(a, b), rtol=1e-9, atol=1e-11)


@given(
    n=st.integers(0, 45),
    share=st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.6]),
    seed=st.integers(0, 2**32 - 1),
    order_with=st.sampled_from([minimum_degree, None]),
    least_share=st.sampled_from([0.0, 0.3, 2.0]),
)
@settings(deadline=None, max_examples=200)
def test_column_counts_are_those_of_elimination(n, share, seed, order_with, least_share):
    """Wherever the vectorised rounds give way to the elimination tree: never, on the way, at once."""
    pattern = scattered(n, share, seed).pattern
    graph = graph_of(pattern, inspect_pattern(pattern))
    order = np.random.default_rng(seed).permutation(n) if order_with is None else order_with(graph)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "_LEAST_SHARE", least_share)
        np.testing.assert_array_equal(column_counts(graph, order), eliminated(graph, order))


@pytest.mark.parametrize("order", [np.arange(60), np.arange(60)[::-1]], ids=["forward", "backward"])
def test_counts_of_a_chain_and_of_an_arrow(order):
    """The deepest tree there is, and the worst fill: one column a generation."""
    chain = diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(60, 60)).tocsr()
    arrow = np.eye(60)
    arrow[0] = arrow[:, 0] = 1
    for a in (chain, csr_array(arrow)):
        pattern = Pattern.from_csr(a)
        graph = graph_of(pattern, inspect_pattern(pattern))
        np.testing.assert_array_equal(column_counts(graph, order), eliminated(graph, order))


@pytest.mark.parametrize("hubs", [1, 3])
def test_rows_that_reach_a_good_part_of_all_others_are_eliminated_last(hubs, monkeypatch):
    """Minimum degree does not see them: it would look at all of their neighbours in every step."""
    seen = []

    def watched(a, **options):
        seen.append(int(np.diff(a.indptr).max()))
        return spilu(a, **options)

    monkeypatch.setattr(graph, "spilu", watched)
    n = 3000
    a = (diags_array([1.0, 4.0, 1.0], offsets=[-1, 0, 1], shape=(n, n))).tolil()
    places = np.random.default_rng(507_711_624).choice(n, hubs, replace=False)
    for place in places:
        a[place, :] = 0.5
        a[:, place] = 0.5
        a[place, place] = 2.0 * n
    a = a.tocsr()
    pattern = Pattern.from_csr(a)
    order = minimum_degree(graph_of(pattern, inspect_pattern(pattern)))
    assert sorted(order[-hubs:]) == sorted(places)
    assert sorted(order) == list(range(n))
    assert seen == [3]
    # The rest is a chain in pieces: L has its two diagonals and a row for each hub.
    got = solver("superlu").analyze(pattern, spec("auto"))
    assert predicted_fill(got) <= 2 * (2 + hubs) * n
    f = solver("superlu").factorize(got, Operand(Matrix(pattern, a.data)), spec("auto"))
    b = numbers((n, 1), "float64", 88_124_705)
    solved = answer(f, b, "N", Controls())
    assert solved.statuses == ((Status.OK,),)
    np.testing.assert_allclose(a @ solved.x, b, atol=1e-9)


@pytest.mark.parametrize("kind", ["mmd", "nd"])
@pytest.mark.parametrize("m", [poisson(30), cube(9)], ids=["square", "cube"])
def test_the_fill_of_a_symmetric_pattern_is_foretold(kind, m):
    symbolic = solver("superlu").analyze(m.pattern, spec(kind))
    made = solver("superlu").factorize(symbolic, Operand(m), spec(kind))
    # Supernodes may store a few zeros on top.
    assert predicted_fill(symbolic) == pytest.approx(made.handles[0].nnz, rel=0.02)
    assert symbolic.predicted_nbytes("float64") == pytest.approx(made.nbytes, rel=0.02)
    assert symbolic.predicted_nbytes("float32") == predicted_fill(symbolic) * 8


@pytest.mark.parametrize("kind", ["mmd", "nd"])
def test_the_fill_of_an_unsymmetric_pattern_is_foretold_from_above(kind):
    m = scattered(300, 0.01, 660_128)
    symbolic = solver("superlu").analyze(m.pattern, spec(kind))
    made = solver("superlu").factorize(symbolic, Operand(m), spec(kind))
    assert made.handles[0].nnz <= predicted_fill(symbolic) < 2 * made.handles[0].nnz


def test_a_pivoted_ordering_foretells_nothing():
    symbolic = solver("superlu").analyze(poisson(9).pattern, spec("colamd"))
    assert predicted_fill(symbolic) is None
    assert symbolic.predicted_nbytes("float64") is None


def test_dense_factors_are_as_large_as_their_matrix():
    assert solver("lu").analyze(matrix("dense", np.eye(30)).pattern).predicted_nbytes("complex64") == 30 * 30 * 8


@pytest.mark.parametrize(("m", "kind"), [(poisson(60), "mmd"), (cube(26), "nd"), (scattered(200, 0.03, 91_204), "mmd")])
def test_dissection_is_tried_where_it_pays(m, kind):
    automatic = solver("superlu").analyze(m.pattern)
    assert automatic.kind == kind
    if kind == "nd":
        assert predicted_fill(automatic) < predicted_fill(solver("superlu").analyze(m.pattern, spec("mmd")))


def test_patterns_without_diagonal_or_symmetry_are_ordered_with_their_values():
    m = matrix("csr", array("zero_diagonal", "float64"))
    assert solver("superlu").analyze(m.pattern).kind == "colamd"


def test_nested_dissection_is_reproducible():
    pattern = cube(8).pattern
    graph = graph_of(pattern, inspect_pattern(pattern))
    np.testing.assert_array_equal(nested_dissection(graph), nested_dissection(graph))


def test_the_ordering_is_part_of_the_spec_and_of_the_analysis():
    def pick(layout, **options):
        m = matrix(layout, array("definite", "float64"))
        structure = inspect(inspect_pattern(m.pattern), Operand(m))
        return choose(structure, Options(**options), has_x0=False, device="cpu").spec

    assert pick("csr", ordering="nd").analysis == ("superlu", "nd", "cpu", None)
    assert pick("csr", method="cholesky", ordering="mmd").analysis == ("cholesky", "mmd", "cpu", None)
    assert pick("csr").analysis == ("superlu", "auto", "cpu", None)
    with pytest.raises(InvalidOptionError, match="dense"):
        pick("dense", method="cholesky", ordering="nd")
    with pytest.raises(InvalidOptionError, match="does not use ordering"):
        pick("csr", method="cg", ordering="nd")
    with pytest.raises(InvalidOptionError, match="did you mean 'mmd'"):
        pick("csr", ordering="amd")


def test_dissection_leaves_the_programs_signals_alone():
    """A wait must still be broken off by SIGTERM: METIS in this process would leave it restartable."""

    class ToldError(Exception):
        pass

    def tell(number, frame):
        raise ToldError

    lock = threading.Lock()
    lock.acquire()
    rescue = threading.Timer(15, lock.release)
    before = signal.signal(signal.SIGTERM, tell)
    try:
        chosen = solver("superlu")
        pattern = poisson(12).pattern
        chosen.analyze(pattern, FactorSpec("superlu", None, "float64", "cpu", ordering="nd"))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        # Without a timeout: a wait with one is broken off whatever the flags of the signal are.
        rescue.start()
        with pytest.raises(ToldError):
            lock.acquire()
        assert not rescue.finished.is_set(), "SIGTERM was heard of only when the wait had ended"
    finally:
        rescue.cancel()
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_dissection_of_small_graphs_is_a_permutation(n):
    pattern = scattered(n, 0.1, 77_201_946).pattern
    np.testing.assert_array_equal(np.sort(nested_dissection(graph_of(pattern, inspect_pattern(pattern)))), np.arange(n))
