"""Digests of an upload, taken while its bytes arrive: they are in a core's cache then, and need not be read again."""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from backsolve.fingerprint import RunningDigest, Taken
from backsolve.types import Storage

LEAST_BYTES = 4 << 20
"""Smaller uploads are hashed when they are complete, in about a millisecond."""


@final
class UploadDigests:
    """Both digests of an announced matrix, as far as its bytes come in the order that they cover.

    Args:
        layout: of the pattern: csr, dense, structured.
        shape: of the matrix; None where values come alone.
        storage: of the matrix.
        announced: element type and shape of each tensor, by its name in the protocols.
    """

    def __init__(
        self,
        layout: str,
        shape: tuple[int, ...] | None,
        storage: Storage,
        announced: Mapping[str, tuple["np.dtype[Any]", tuple[int, ...]]],
    ) -> None:
        self._values = self._pattern = None
        if "values" in announced:
            self._values = RunningDigest.of_values(layout, *announced["values"])
        self._first_bytes = 0
        if shape is not None and {"indptr", "indices"} <= set(announced):
            (dtype, pointers), (_, indices) = announced["indptr"], announced["indices"]
            self._pattern = RunningDigest.of_csr(dtype, shape, int(np.prod(indices, dtype=np.int64)), storage)
            self._first_bytes = int(np.prod(pointers, dtype=np.int64)) * dtype.itemsize

    def add(self, name: str, data: NDArray[np.uint8]) -> None:
        """Take the next bytes of a tensor."""
        if name == "values" and self._values is not None:
            self._values.add(data)
        elif name in ("indptr", "indices") and self._pattern is not None:
            if (self._pattern.nbytes >= self._first_bytes) == (name == "indices"):
                self._pattern.add(data)
            else:
                self._pattern = None  # out of order: hashed when it is complete

    @property
    def taken(self) -> Taken:
        """What was taken; the data plane uses it if it is of the whole matrix."""
        return Taken(self._pattern, self._values)
