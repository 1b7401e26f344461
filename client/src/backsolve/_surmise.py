"""By which digests a call names its matrix: taken before it is sent, or surmised then and taken while it is answered.

Values are hashed in every call, since the caller may have written to them, and of some MB that takes as long as a
solve. Mostly they are what they were when the same memory was hashed last. Where that was so in the last call of this
kind on this pattern, the call goes out by the digests of that time, and this side hashes while the other one works. No
answer is taken before its digests were found right: else it is thrown away, and the call is made by the right ones.
"""

from collections import OrderedDict
from collections.abc import Callable
from time import perf_counter
from typing import Final, final

from ._news import note
from .fingerprint import pattern_digest
from .matrix import Matrix
from .types import MatrixRef

_LEAST_BYTES: Final = 16 << 10
"""Smaller values are hashed in less time than it takes to surmise."""

_Place = tuple[int, int, bytes]
"""Address and size of values, and the digest of their pattern."""


@final
class Name:
    """The digests by which one call names its matrix.

    Args:
        matrix: what is named.
        surmised: what the call says until they are known; None: they are taken before it.
        learn: is told what they are, if they had to be taken for this call.

    Attributes:
        ref: what the call says.
        seconds: that taking the digests has cost this call.
    """

    __slots__ = ("_learn", "_matrix", "ref", "seconds")

    def __init__(
        self, matrix: Matrix, surmised: MatrixRef | None = None, learn: Callable[[MatrixRef], None] | None = None
    ) -> None:
        self._matrix, self._learn, self.seconds = matrix, learn, 0.0
        self.ref = surmised or self._taken()

    @property
    def meanwhile(self) -> Callable[[], None] | None:
        """What is to be done while the call is answered."""
        return None if self._matrix.hashed else self.check

    def check(self) -> None:
        """Take the digests, if nobody did."""
        self._taken()

    def _taken(self) -> MatrixRef:
        if self._matrix.hashed:
            return self._matrix.ref
        started = perf_counter()
        ref = self._matrix.ref
        self.seconds = perf_counter() - started
        if self._learn is not None:
            self._learn(ref)
        return ref


@final
class Surmises:
    """What was found at the addresses of values, and whether it would have been right to expect it there again.

    Tables of bounded size. Dict operations are atomic, so no lock is held.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[_Place, MatrixRef] = OrderedDict()
        self._right: OrderedDict[tuple[bytes, str], bool] = OrderedDict()

    def name(self, matrix: Matrix, kind: str, expects_new: Callable[[bytes], bool]) -> Name:
        """The name of a matrix in one call, whose digests are taken meanwhile if they can be.

        Args:
            matrix: what is named.
            kind: of the call.
            expects_new: whether values on a pattern will be new to the server, so that they are sent in any case.
        """
        if matrix.hashed or matrix.base is not None or matrix.values.nbytes < _LEAST_BYTES:
            return Name(matrix)
        pattern = pattern_digest(matrix.pattern)
        place = (matrix.values.__array_interface__["data"][0], matrix.values.nbytes, pattern)
        before = self._found.get(place)

        def learn(ref: MatrixRef) -> None:
            note(self._right, (pattern, kind), before == ref)
            note(self._found, place, ref)

        surmised = before if self._right.get((pattern, kind)) else None
        if surmised is None and expects_new(pattern):
            surmised = MatrixRef.unnamed(pattern)
        return Name(matrix, surmised, learn)
