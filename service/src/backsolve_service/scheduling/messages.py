"""What a process worker is asked, and what it answers; arrays travel beside the message (`channel.py`).

Every request but `Release` and `Move` has one reply: `Analyzed`, `Factored`, `Answered` or `Failed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from backsolve.pattern import DensePattern, StructuredPattern
from backsolve.types import Trans

from ..engine.answer import Answer
from ..engine.base import Controls, FactorSpec, Pivots


@final
@dataclass(frozen=True, slots=True)
class Ready:
    """The first word of a new process."""


@final
@dataclass(frozen=True, slots=True)
class Analyze:
    """Analyse a pattern and keep the outcome; arrays: `indptr`, `indices` of a sparse pattern, else none.

    Attributes:
        symbolic: number to keep it under.
        spec: whose method is to analyse.
        pattern: the pattern, or the shape of a sparse one.
    """

    symbolic: int
    spec: FactorSpec
    pattern: DensePattern | StructuredPattern | tuple[int, int]


@final
@dataclass(frozen=True, slots=True)
class Analyzed:
    """What `Symbolic` tells of itself.

    Attributes:
        nbytes: beside its pattern.
        predicted: bytes of a factor by its precision, where the analysis foretells them.
    """

    nbytes: int
    predicted: Mapping[str, int | None]


@final
@dataclass(frozen=True, slots=True)
class Factorize:
    """Factorize values on a pattern that was analysed, and keep the factor; arrays: the values.

    Attributes:
        factor: number to keep it under.
        symbolic: number of what was analysed.
        spec: what to build.
    """

    factor: int
    symbolic: int
    spec: FactorSpec


@final
@dataclass(frozen=True, slots=True)
class Update:
    """Build the factor of an update on a factor that is held, and keep it; arrays: U and V in one vector.

    Attributes:
        factor: number to keep it under.
        base: number of the factor of S.
        dims: sizes of the update.
    """

    factor: int
    base: int
    dims: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Factored:
    """Attributes: those of the factor that `FactorRef` tells."""

    nbytes: int
    device_nbytes: int
    movable: bool
    direct: bool
    max_columns: int
    note: str | None
    pivots: Pivots


@final
@dataclass(frozen=True, slots=True)
class Solve:
    """Solve with a factor; arrays: the right-hand sides, and the first iterate if there is one.

    Attributes:
        factor: its number.
        trans: which operator.
        controls: the solve spec.
        instead: before the other arrays come values on the factor's pattern: solve with those, and let the factor
            precondition them.
    """

    factor: int
    trans: Trans
    controls: Controls
    instead: bool = False


@final
@dataclass(frozen=True, slots=True)
class Answered:
    """Arrays: x, which is missing in `answer`."""

    answer: Answer


@final
@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed.

    Attributes:
        error: what the caller is told.
        trace: what the log is told; empty for an error that a caller can understand.
    """

    error: BaseException
    trace: str = ""


@final
@dataclass(frozen=True, slots=True)
class Release:
    """Forget symbolics and factors, by their numbers, and the arena if that is asked; there is no reply."""

    numbers: tuple[int, ...]
    arena: bool = False


@final
@dataclass(frozen=True, slots=True)
class Move:
    """Copy the numbers of a factor to another device, if it is there and has room; there is no reply."""

    factor: int
    device: str


Request = Analyze | Factorize | Update | Solve
Reply = Analyzed | Factored | Answered | Failed
