"""Sparse LU by KLU, bound by ctypes: the library inside the package nbklu (LGPL-2.1+; extra "klu")."""
