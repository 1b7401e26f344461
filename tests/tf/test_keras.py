"""The layer: in functional models, trained, saved and loaded."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from backsolve import Client, Pattern
from backsolve.errors import InvalidOptionError
from backsolve.tensorflow import LinearSolve
from support.tf_tensors import close, dense, numbers, places, reference, scattered, sparse_pattern, values_on

PATTERN = sparse_pattern(640_218_375)
DIAGONAL = (6.0 * (PATTERN.rows == PATTERN.indices)).astype("float32")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Keras draws the weights of layers from a stream of the process; matrices are made of them."""
    keras.utils.set_random_seed(470_915_283)


def _model(**options: Any) -> Any:
    """Parameters in, the solution of a system out whose values are a trained function of them."""
    parameters = keras.Input((3,), name="parameters")
    b = keras.Input((5,), name="b")
    learned = keras.layers.Dense(PATTERN.nnz, bias_initializer=keras.initializers.Constant(0.0))(parameters)
    values = keras.layers.Rescaling(1.0, offset=DIAGONAL.tolist())(learned)
    return keras.Model([parameters, b], LinearSolve(PATTERN, **options)(values, b))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_the_layer_solves_in_the_type_it_is_given(embedded: Client, dtype: str) -> None:
    A, b = dense(219_480_375, dtype=dtype), numbers(905_167_238, (5,), dtype)
    x = LinearSolve(trans="H", client=embedded)(A, b)
    close(x, reference(A, b, "H"), rtol=1e-5 if dtype == "float32" else 1e-10)
    values = values_on(PATTERN, 47_190_826, (2,), dtype)
    many = numbers(318_652_907, (2, 5), dtype)
    x = LinearSolve(PATTERN, client=embedded)(values, many)
    close(x, reference(scattered(values, places(PATTERN), 5), many), rtol=1e-5 if dtype == "float32" else 1e-10)


def test_training_learns(embedded: Client) -> None:
    """By `fit`, whose step is a traced function, which Keras is told not to have compiled by XLA."""
    rng = np.random.default_rng(82_640_193)
    parameters, b = rng.standard_normal((64, 3)).astype("float32"), rng.standard_normal((64, 5)).astype("float32")
    target = _model(client=embedded).predict([parameters, b], verbose=0)
    model = _model(client=embedded)
    with pytest.warns(UserWarning, match="jit_compile"):
        model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=True)
    history = model.fit([parameters, b], target, epochs=12, batch_size=16, verbose=0).history["loss"]
    assert history[-1] < 0.2 * history[0]


# Keras hands TensorFlow's variables to NumPy, whose protocol they follow as it was before NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_a_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = _model(trans="T", rtol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    layer = loaded.layers[-1]
    assert layer.pattern.same_as(PATTERN)
    assert dict(layer.options) == {"trans": "T", "rtol": 1e-4}
    given = [numbers(770_183_425, (4, 3), "float32"), numbers(26_509_178, (4, 5), "float32")]
    close(loaded(given), model(given), rtol=1e-6)


def test_the_storage_of_a_pattern_is_kept() -> None:
    pattern = Pattern([0, 1, 3], [0, 0, 1], (2, 2), storage="lower")
    layer = LinearSolve.from_config(LinearSolve(pattern, method="cholesky").get_config())
    values, b = tf.constant([2.0, 1.0, 3.0]), tf.constant([5.0, 10.0])
    close(layer(values, b), tf.constant([1.0, 3.0]), rtol=1e-6)


def test_a_client_is_not_saved(embedded: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="BACKSOLVE_URL"):
        _model(client=embedded).save(tmp_path / "model.keras")


def test_symbolic_outputs_have_the_shape_of_b() -> None:
    A, b = keras.Input((5, 5), dtype="float64"), keras.Input((5, 3), dtype="float64")
    x = LinearSolve()(A, b)
    assert x.shape == (None, 5, 3)
    assert x.dtype == "float64"
    a, given = dense(583_019_264, (2,)), numbers(141_706_935, (2, 5, 3))
    close(keras.Model([A, b], x)([a, given]), reference(a, given))


def test_bad_options_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="unknown option 'tolerance'"):
        LinearSolve(tolerance=1e-3)
    with pytest.raises(InvalidOptionError, match="trans"):
        LinearSolve(trans="X")
    assert not LinearSolve().supports_jit
    assert LinearSolve(name="inner", trans="T").name == "inner"
    assert tf.executing_eagerly()
