"""Matrices that many tests solve with."""

import numpy as np
from scipy import sparse


def laplacian(m: int, dtype: str = "float64") -> sparse.csr_array:
    """5-point Laplacian of an m x m grid: symmetric positive definite."""
    line = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(m, m))
    eye = sparse.eye_array(m)
    a = sparse.csr_array(sparse.kron(line, eye) + sparse.kron(eye, line)).astype(dtype)
    a.sum_duplicates()
    return a


def convection(m: int, dtype: str = "float64", seed: int = 417_203_957) -> sparse.csr_array:
    """The same grid with a random drift: nonsymmetric, nonsingular; complex types get complex entries."""
    rng = np.random.default_rng(seed)
    a = laplacian(m)
    a.data = a.data * (1 + 0.4 * rng.standard_normal(a.nnz))
    if np.dtype(dtype).kind == "c":
        a = a.astype(np.complex128)
        a.data = a.data + 0.3j * rng.standard_normal(a.nnz)
    a = sparse.csr_array(a + 4 * sparse.eye_array(m * m)).astype(dtype)
    a.sum_duplicates()
    return a


def dense(n: int, dtype: str = "float64", seed: int = 805_316_442) -> np.ndarray:
    """A well-conditioned nonsymmetric dense matrix."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, n)) / np.sqrt(n) + 3 * np.eye(n)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal((n, n)) / np.sqrt(n)
    return a.astype(dtype)


def random_like(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Normal random numbers of any of the four element types."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


def op(a: object, trans: str) -> np.ndarray:
    """The dense operator that `trans` names."""
    full = a.toarray() if sparse.issparse(a) else np.asarray(a)
    if trans == "N":
        return full
    return full.swapaxes(-1, -2) if trans == "T" else full.conj().swapaxes(-1, -2)
