"""Sparse Cholesky by CHOLMOD as the system packages it, bound by ctypes."""
