"""The graph of a sparse pattern, A + Aᵀ with a full diagonal, and the orderings of it that keep fill small."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from scipy.sparse import csc_array, csr_array, eye_array
from scipy.sparse.linalg import spilu

from backsolve.errors import NotSupportedError
from backsolve.pattern import IndexArray, Pattern

from ..structure import PatternFacts


@final
@dataclass(frozen=True, eq=False)
class Graph:
    """A symmetric pattern with a full diagonal, in CSR form (which is its CSC form)."""

    n: int
    indptr: IndexArray
    indices: IndexArray


def graph_of(pattern: Pattern, facts: PatternFacts) -> Graph:
    """The graph of a pattern whose entries 32-bit indices can count; shares memory where it is symmetric already."""
    indptr, indices = pattern.indptr, pattern.indices
    if not (facts.full_diagonal and facts.symmetric_pattern):
        ones = csr_array((np.ones(pattern.nnz, dtype=np.int8), indices, indptr), shape=pattern.shape)
        # Counts of int8 could cancel: 1 + 1 + 1 cannot.
        both = (ones + ones.T + eye_array(pattern.n, dtype=np.int8, format="csr")).tocsr()
        both.sort_indices()
        indptr, indices = both.indptr, both.indices
    return Graph(pattern.n, indptr.astype(np.intc, copy=False), indices.astype(np.intc, copy=False))


def minimum_degree(graph: Graph) -> IndexArray:
    """Multiple minimum degree, by SuperLU: the vertex that is eliminated i-th, `[n]`.

    An incomplete factorization that drops everything runs only the ordering; values that dominate
    the diagonal keep it from pivoting. Releases the interpreter's lock. Vertices that neighbour a good
    part of all others come last: every step would look at all of their neighbours again, and n = 1e5
    with one such row took a hundred times as long as its factorization.

    Sources: Liu, "Modification of the minimum-degree algorithm by multiple elimination", ACM TOMS
    11 (1985); Amestoy, Davis and Duff, "Algorithm 837: AMD", ACM TOMS 30 (2004), for the dense rows.
    """
    if graph.n == 0:
        return np.zeros(0, dtype=np.intc)
    degrees = np.diff(graph.indptr)
    hubs = degrees > max(_LEAST_HUB, _HUB * graph.n**0.5)
    if hubs.any():
        rest = np.flatnonzero(~hubs).astype(np.intc)
        last = np.flatnonzero(hubs).astype(np.intc)
        last = last[np.argsort(degrees[last], kind="stable")]
        return np.concatenate([rest[minimum_degree(_induced(graph, rest))], last])
    values = np.ones(graph.indices.size)
    columns = np.repeat(np.arange(graph.n, dtype=np.intc), np.diff(graph.indptr))
    values[columns == graph.indices] = 2.0 * graph.n
    dominant: Any = csc_array((values, graph.indices, graph.indptr), shape=(graph.n, graph.n))
    incomplete = spilu(
        dominant,
        permc_spec="MMD_AT_PLUS_A",
        drop_tol=1e10,
        fill_factor=1,
        diag_pivot_thresh=0,
        options={"SymmetricMode": True},
    )
    order: IndexArray = np.argsort(incomplete.perm_c).astype(np.intc)
    return order


_HUB, _LEAST_HUB = 10.0, 16
"""More neighbours than this times √n, and than the second, make a vertex that is ordered last: AMD's own figures."""


def _induced(graph: Graph, kept: IndexArray) -> Graph:
    """The graph on some of the vertices."""
    ones = np.ones(graph.indices.size, dtype=np.int8)
    part = csr_array((ones, graph.indices, graph.indptr), shape=(graph.n, graph.n))[kept][:, kept]
    part.sort_indices()
    return Graph(kept.size, part.indptr.astype(np.intc, copy=False), part.indices.astype(np.intc, copy=False))


def nested_dissection(graph: Graph) -> IndexArray:
    """Multilevel nested dissection, by METIS: the vertex that is eliminated i-th, `[n]`.

    Takes three to four times as long as minimum degree, and a quarter of a second for the process that
    METIS runs in (`dissect.py` says why): 0.6 s in all at half a million entries. The interpreter's
    lock is free meanwhile.

    Raises:
        NotSupportedError: that process could not be started, or failed.

    Source: Karypis and Kumar, "A fast and high quality multilevel scheme for partitioning irregular
    graphs", SIAM J. Sci. Comput. 20 (1998).
    """
    rows = np.repeat(np.arange(graph.n, dtype=np.intc), np.diff(graph.indptr))
    off = rows != graph.indices
    if not off.any():  # METIS divides by the number of vertices
        return np.arange(graph.n, dtype=np.intc)
    # Each row has lost its diagonal entry.
    starts = (graph.indptr - np.arange(graph.n + 1)).astype(np.intc)
    given = (np.array([graph.n, int(off.sum())], dtype=np.int64), starts, graph.indices[off].astype(np.intc))
    script = Path(__file__).with_name("dissect.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(script)],
            input=b"".join(part.tobytes() for part in given),
            capture_output=True,
            check=True,
            # Ctrl-C is for this program, which may still want its answer.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
    except (OSError, subprocess.CalledProcessError) as err:
        raise NotSupportedError(
            "nested dissection runs METIS in a process of its own, which could not be started or failed: "
            "use ordering 'mmd'"
        ) from err
    order: IndexArray = np.frombuffer(done.stdout, dtype=np.intc).copy()
    return order
