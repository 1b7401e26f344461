"""What a solve says of itself, as arrays, so that it can be used inside `jit` and `vmap`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import jax
import numpy as np

from ..errors import InvalidOptionError
from ..types import Status

NAME_BYTES: Final = 48
"""Room for the name of a method."""


@final
@dataclass(frozen=True)
class Stats:
    """The certificate of a solve as a pytree of arrays: the fields are those of `backsolve.types.Certificate`.

    One number for each system, `[*batch]`, where not said otherwise; of many columns the worst. No gradient flows
    through it.

    Attributes:
        status: `[*batch]` int32, the values of `backsolve.types.Status`; 1 is OK.
        iterations: `[*batch]` int32.
        relative_residual, backward_error: `[*batch]`, in the real type of x.
        condition_estimate: one number for all; NaN where none was made.
        refinements: one int32 for all.
        factor_hit: one bool: nothing was factorized.
        method: the method's name in UTF-8, filled up with zeros, `[48]` uint8.

    Under `vmap` what is one for all has the mapped axis in front as well, where JAX puts it there.
    """

    status: jax.Array
    iterations: jax.Array
    relative_residual: jax.Array
    backward_error: jax.Array
    condition_estimate: jax.Array
    refinements: jax.Array
    factor_hit: jax.Array
    method: jax.Array

    @classmethod
    def of(cls, lead: tuple[int, ...], method: jax.Array, fields: Sequence[jax.Array]) -> "Stats":
        """Out of the outputs of the operation, for systems of the batch `lead`."""
        status, iterations, residual, backward, condition, refinements, hit = fields
        return cls(
            status.reshape(lead),
            iterations.reshape(lead),
            residual.reshape(lead),
            backward.reshape(lead),
            condition,
            refinements,
            hit,
            method,
        )

    @property
    def worst(self) -> Status:
        """The status of the worst system, as the certificate of a batch has it; OK of none. Outside of `jit` only.

        Raises:
            InvalidOptionError: inside `jit`, where there are no numbers yet: compare `status` there.
        """
        found = {Status(int(code)) for code in _numbers(self.status, "worst").reshape(-1)}
        return max(
            found,
            key=lambda status: status.value if status is not Status.ILL_CONDITIONED else 1.5,
            default=Status.OK,
        )

    @property
    def statuses(self) -> list[Status]:
        """The status of each system, batches in a row. Outside of `jit` only."""
        return [Status(int(code)) for code in _numbers(self.status, "statuses").reshape(-1)]

    @property
    def method_name(self) -> str:
        """The method that computed x, never "auto"; of several solves that of the first. Outside of `jit` only."""
        return decoded(_numbers(self.method, "method_name"))


jax.tree_util.register_dataclass(Stats)


def encoded(name: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A method's name as an array; one that has no room as no name."""
    text = name.encode()
    found = np.zeros(NAME_BYTES, np.uint8)
    if len(text) <= NAME_BYTES:
        found[: len(text)] = np.frombuffer(text, np.uint8)
    return found


def decoded(codes: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> str:
    """The inverse of `encoded`; of several the first."""
    return bytes(codes.reshape(-1, NAME_BYTES)[0]).rstrip(b"\0").decode()


def _numbers(array: jax.Array, name: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    if isinstance(array, jax.core.Tracer):
        raise InvalidOptionError(f"Stats.{name} needs numbers, which do not exist inside jit: return the Stats from it")
    return np.asarray(array)
