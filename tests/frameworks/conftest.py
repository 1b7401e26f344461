"""The frameworks as a parameter."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from frameworks.adapters import Adapter, adapter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow writes about itself while it is imported


@pytest.fixture(params=["torch", "jax", "tensorflow"])
def framework(request: pytest.FixtureRequest) -> Iterator[Adapter]:
    """Each framework in turn, JAX with 64-bit types."""
    with ExitStack() as stack:
        if request.param == "jax":
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield adapter(request.param)
