"""Sparse direct solves by MUMPS as Debian packages it, bound by ctypes."""
