"""Checks of gradients, for the tests of whoever builds on solves.

    from backsolve.testing import gradcheck
    print(gradcheck(f, (A, b)))                  # raises GradcheckError, which says what is wrong

Knows PyTorch, JAX, TensorFlow and plain NumPy by the inputs that it is given, and imports no framework itself.
"""

from .gradcheck import gradcheck
from .report import GradcheckError, GradcheckReport

__all__ = ["GradcheckError", "GradcheckReport", "gradcheck"]
