"""Double precision for every test here, and only here: JAX's switch is one of the process."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """64-bit types, as JAX has them on request."""
    with jax.enable_x64(True):
        yield
