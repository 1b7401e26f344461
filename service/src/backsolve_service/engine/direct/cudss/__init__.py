"""Sparse direct solves on a CUDA device: NVIDIA's cuDSS 1.0, bound by ctypes."""
