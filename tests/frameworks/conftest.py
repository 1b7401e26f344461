"""The frameworks as a parameter."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from frameworks.adapters import Adapter, adapter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow writes about itself while it is imported


def _double(jax: Any) -> Any:
    """What asks JAX for 64-bit types; before release 0.8 it was elsewhere."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64
    from jax.experimental import enable_x64

    return enable_x64


@pytest.fixture(params=["torch", "jax", "tensorflow"])
def framework(request: pytest.FixtureRequest) -> Iterator[Adapter]:
    """Each framework in turn, JAX with 64-bit types."""
    with ExitStack() as stack:
        if request.param == "jax":
            import jax

            stack.enter_context(_double(jax)(True))
        yield adapter(request.param)
