"""The engine stays light until a method needs more."""

import subprocess
import sys

SPARSE_SOLVE = """
import sys
import numpy as np
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Options
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern

operand = Operand(Matrix(Pattern([0, 1, 2], [0, 1], (2, 2)), np.array([2.0, 4.0])))
for method in ("auto", "cholesky", "cg"):
    spec = choose(inspect(inspect_pattern(operand.pattern), operand), Options(method), has_x0=False, device="cpu").spec
    chosen = solver(spec.method)
    factor = chosen.factorize(chosen.analyze(operand.pattern), operand, spec)
    assert answer(factor, np.ones((2, 1)), "N", Controls()).x.tolist() == [[0.5], [0.25]]
"""


def test_a_sparse_solve_loads_no_torch():
    code = SPARSE_SOLVE + "raise SystemExit(bool('torch' in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_measure_sees_torch():
    code = SPARSE_SOLVE + "solver('lu'); raise SystemExit('torch' not in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
