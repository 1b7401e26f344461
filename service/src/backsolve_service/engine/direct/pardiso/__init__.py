"""Sparse direct solves by PARDISO of Intel's MKL, bound by ctypes."""
