"""TensorFlow for the suite of all frameworks."""

from typing import Any

import numpy as np
import tensorflow as tf

from backsolve.tensorflow import lstsq, solve, spsolve
from frameworks.adapters import Adapter, Function
from frameworks.cases import Case


class TensorFlow(Adapter):
    name = "tensorflow"
    maps = False

    def array(self, numbers: np.ndarray) -> Any:
        return tf.constant(numbers)

    def spsolve(self, values: Any, case: Case, b: Any, **options: Any) -> Any:
        return spsolve(values, case.pattern, b, **options)

    def dense_solve(self, values: Any, case: Case, b: Any, **options: Any) -> Any:
        return solve(values, b, **options)

    def reference(self, case: Case) -> Function:
        n = case.pattern.n
        # Gathered, so that any batch may stand in front: each place of A names its entry, or the zero after the last.
        entry = np.full((n, n), case.pattern.nnz)
        entry[case.pattern.rows, case.pattern.indices] = np.arange(case.pattern.nnz)

        def f(values: Any, b: Any) -> Any:
            if case.sparse:
                values = tf.gather(tf.concat([values, tf.zeros_like(values[..., :1])], -1), entry, axis=-1)
            A = {"N": values, "T": tf.linalg.matrix_transpose(values), "H": tf.linalg.adjoint(values)}[case.trans]
            return tf.linalg.solve(A, b) if case.columns else tf.linalg.solve(A, b[..., None])[..., 0]

        return f

    def minimise(self, **options: Any) -> Function:
        return lambda A, b: lstsq(A, b, **options)

    def normal_equations(self) -> Function:
        def f(A: Any, b: Any) -> Any:
            return tf.linalg.solve(tf.linalg.matmul(A, A, adjoint_a=True), tf.linalg.matmul(A, b, adjoint_a=True))

        return f

    def _loss(self, f: Function, case: Case, values: Any, b: Any) -> Any:
        x = f(values, b)
        fourth, first = case.weights
        return tf.reduce_sum(fourth * tf.math.real(x * tf.math.conj(x)) ** 2 + first * tf.math.real(x))

    def _inputs(self, case: Case, values: np.ndarray | None) -> list[Any]:
        return [self.array(case.values if values is None else values), self.array(case.b)]

    def grad(self, f: Function, case: Case, values: np.ndarray | None = None) -> list[np.ndarray]:
        inputs = self._inputs(case, values)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = self._loss(f, case, *inputs)
        return [np.asarray(g) for g in tape.gradient(loss, inputs)]

    def hvp(self, f: Function, case: Case, values: np.ndarray | None = None) -> list[np.ndarray]:
        inputs = self._inputs(case, values)
        directions = self.array(case.values_direction), self.array(case.b_direction)
        with tf.GradientTape() as outer:
            outer.watch(inputs)
            with tf.GradientTape() as inner:
                inner.watch(inputs)
                loss = self._loss(f, case, *inputs)
            gradients = inner.gradient(loss, inputs)
            along = tf.add_n(
                [tf.reduce_sum(tf.math.real(tf.math.conj(g) * d)) for g, d in zip(gradients, directions, strict=True)]
            )
        return [np.asarray(g) for g in outer.gradient(along, inputs)]

    def jvp(self, f: Function, case: Case) -> np.ndarray:
        inputs = self._inputs(case, None)
        directions = [self.array(case.values_direction), self.array(case.b_direction)]
        with tf.autodiff.ForwardAccumulator(inputs, directions) as accumulator:
            x = f(*inputs)
        return np.asarray(accumulator.jvp(x))

    def vmap(self, f: Function, values: np.ndarray, b: np.ndarray, mapped: tuple[bool, bool]) -> np.ndarray:
        fixed = self.array(values), self.array(b)
        over = [each for each, on in zip(fixed, mapped, strict=True) if on]

        def one(given: Any) -> Any:
            rest = iter(given)
            return f(*(next(rest) if on else each for each, on in zip(fixed, mapped, strict=True)))

        return np.asarray(tf.vectorized_map(one, over))

    def compiled(self, f: Function) -> Function:
        return tf.function(f)
