"""The TensorFlow side of `compare_libraries.py`: its tapes, and backsolve; it has no sparse solve of its own."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import tensorflow as tf

import backsolve
import backsolve.tensorflow
from compare_system import Floats, Frame, Library, Solve, System, counters


@final
class TensorFlowFrame(Frame):
    """`tf.GradientTape` for gradients, nested for Hessians; `tf.autodiff.ForwardAccumulator`; `tf.vectorized_map`."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.values, self.b, self.weights = (tf.constant(a) for a in (system.values, system.b, system.weights))
        self.directions = [tf.constant(a) for a in (system.values_direction, system.b_direction)]
        self.place = np.stack([system.rows, system.indices], axis=1)

    def dense_solve(self, values: Any, b: Any) -> Any:
        full = tf.scatter_nd(self.place, values, [self.system.n, self.system.n])
        return tf.linalg.solve(full, b[:, None])[:, 0]

    def _gradient(self, solve: Solve, inputs: list[Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(self.weights * solve(*inputs) ** 3)
        found: list[Any] = tape.gradient(loss, inputs)
        return found

    def answer(self, solve: Solve, values: Floats, b: Floats) -> Floats:
        return np.asarray(solve(tf.constant(values), tf.constant(b)), np.float64)

    def gradient(self, solve: Solve) -> Floats:
        return np.concatenate([np.asarray(g, np.float64) for g in self._gradient(solve, [self.values, self.b])])

    def hvp(self, solve: Solve) -> Floats:
        with tf.GradientTape() as tape:
            tape.watch(self.values)
            gradient = self._gradient(solve, [self.values, self.b])[0]
            along = tf.reduce_sum(gradient * self.directions[0])
        return np.asarray(tape.gradient(along, self.values), np.float64)

    def jvp(self, solve: Solve) -> Floats:
        with tf.autodiff.ForwardAccumulator([self.values, self.b], self.directions) as accumulator:
            x = solve(self.values, self.b)
        return np.asarray(accumulator.jvp(x), np.float64)

    def vmap_b(self, solve: Solve, many: Floats) -> Floats:
        return np.asarray(tf.vectorized_map(lambda b: solve(self.values, b), tf.constant(many)), np.float64)

    def vmap_values(self, solve: Solve, many: Floats) -> Floats:
        return np.asarray(tf.vectorized_map(lambda values: solve(values, self.b), tf.constant(many)), np.float64)


@final
class Backsolve(Library):
    """`backsolve.tensorflow.spsolve(values, pattern, b)`, solved where BACKSOLVE_URL says, else in this process."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.client = backsolve.Client()
        self.pattern = backsolve.Pattern(system.indptr, system.indices, (system.n, system.n))

    def solve(self, values: Any, b: Any) -> Any:
        return backsolve.tensorflow.spsolve(values, self.pattern, b, client=self.client)

    def work(self, gradient: Callable[[], Any]) -> str:
        return counters(self.client, gradient)
