"""A SavedModel holds no solve: in another process it says so, eagerly and from a model of Keras."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from backsolve import Client
from backsolve.tensorflow import LinearSolve, solve
from support.tf_tensors import close, dense, numbers, reference

A, B = dense(281_640_937), numbers(90_412_765, (5,))

LOAD = """
import sys
import tensorflow as tf
for path in sys.argv[1:]:
    loaded = tf.saved_model.load(path)
    try:
        print(loaded.answer(tf.eye(5, dtype=tf.float64), tf.ones([5], tf.float64)))
    except tf.errors.OpError as error:
        print(str(error).replace("\\n", " "))
"""


# TensorFlow's own writer asks objects of Keras for attributes that warn.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_process_is_told_what_is_missing(tmp_path: Path, embedded: Client) -> None:
    signature = [tf.TensorSpec([5, 5], tf.float64), tf.TensorSpec([5], tf.float64)]
    by_function: Any = tf.Module()
    by_function.answer = tf.function(lambda A, b: solve(A, b, client=embedded), input_signature=signature)
    by_layer: Any = tf.Module()
    by_layer.answer = tf.function(LinearSolve(client=embedded), input_signature=signature)
    paths = []
    for name, module in (("function", by_function), ("layer", by_layer)):
        paths.append(str(tmp_path / name))
        tf.saved_model.save(module, paths[-1])
        close(module.answer(A, B), reference(A, B))
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", LOAD, *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert ["which_no_SavedModel_holds__build_the_model_from_its_code" in line for line in said] == [True, True]
