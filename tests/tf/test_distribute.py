"""Replicas of a `tf.distribute` strategy share one client, and so one factor."""

import json
import os
import subprocess
import sys

import pytest

REPLICAS = """
import json
import numpy as np
import tensorflow as tf
# Devices can be divided only before TensorFlow has used them.
(host,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(host, [tf.config.LogicalDeviceConfiguration()] * 2)

from backsolve import Client
from backsolve.tensorflow import solve

rng = np.random.default_rng(473_910_285)
A, many = rng.standard_normal((5, 5)) + 5 * np.eye(5), rng.standard_normal((4, 5))
client = Client("embedded")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    variable = tf.Variable(A)


def gradient(f, matrix, b):
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        loss = tf.reduce_sum(f(matrix, tf.transpose(b)) ** 3)
    return tape.gradient(loss, matrix)


@tf.function
def total(b):
    each = strategy.run(lambda b: gradient(lambda A, b: solve(A, b, client=client), variable, b), args=(b,))
    return strategy.reduce("SUM", each, axis=None)


(b,) = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(many).batch(4))
ours = total(b)
truth = gradient(tf.linalg.solve, tf.constant(A), tf.constant(many))
error = float(tf.reduce_max(tf.abs(ours - truth)) / tf.reduce_max(tf.abs(truth)))
print(json.dumps([strategy.num_replicas_in_sync, error, client.stats()["factorizations"]]))
"""


def test_mirrored_replicas() -> None:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", REPLICAS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    replicas, error, factorizations = json.loads(done.stdout.splitlines()[-1])
    assert replicas == 2
    assert error == pytest.approx(0.0, abs=1e-12)
    assert factorizations == 1
