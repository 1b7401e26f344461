"""A bounded mix of calls over both transports, after which a server has used most of what it has."""

import numpy as np
from scipy.sparse import csr_array

from backsolve import Client
from loadtests.micro.ways import laplacian

SIDE = 100
ROWS = 800
BULK = 1_000_000
SEED = 218_640_793


def serve_mix(urls: dict[str, str], rounds: int = 3) -> int:
    """Dense and sparse, direct and iterative, cached and with new values, batches, bulk; forward and backward.

    Args:
        urls: of one server, by transport.
        rounds: how often all of it, over each transport.

    Returns:
        How many calls were made; each answer's residual was checked by the client's certificate.
    """
    rng = np.random.default_rng(SEED)
    sparse = laplacian(SIDE)
    dense = rng.standard_normal((ROWS, ROWS)) + ROWS * np.eye(ROWS)
    batch = rng.standard_normal((64, 100, 100)) + 100 * np.eye(100)
    diagonal = csr_array((1 + rng.random(BULK), np.arange(BULK), np.arange(BULK + 1)), shape=(BULK, BULK))
    calls = 0
    for url in urls.values():
        with Client(url) as client:
            for _ in range(rounds):
                new = csr_array(
                    (sparse.data * (1 + 0.1 * rng.random(sparse.nnz)), sparse.indices, sparse.indptr), sparse.shape
                )
                for A in (sparse, new, dense, diagonal):
                    b = rng.standard_normal(A.shape[0])
                    client.vjp(A, client.solve(A, b).x, b)
                    calls += 2
                client.solve(sparse, rng.standard_normal(sparse.shape[0]), method="cg", rtol=1e-8)
                client.solve(new, rng.standard_normal(sparse.shape[0]), method="gmres", preconditioner="ilu")
                client.solve(batch, rng.standard_normal((64, 100)))
                client.solve(dense, rng.standard_normal((ROWS, 32)))
                calls += 4
    return calls
