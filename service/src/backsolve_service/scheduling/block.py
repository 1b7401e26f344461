"""Several callers' right-hand sides as the columns of one, and the answer's columns as theirs."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from backsolve.types import Array

from ..engine.answer import Answer


def stacked(columns: Sequence[Array]) -> Array:
    """`[n, k]` arrays side by side, in C order; a single one as it is."""
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def parted(whole: Answer, columns: Sequence[Array]) -> list[Answer]:
    """The answer of a block as those of its callers, whose `[n, k]` right-hand sides were put together."""
    if len(columns) == 1:
        return [whole]
    ends = list(accumulate(column.shape[1] for column in columns))
    return [split(whole, start, stop) for start, stop in pairwise([0, *ends])]


def split(whole: Answer, start: int, stop: int) -> Answer:
    """The columns of one caller, copied: a view would keep everybody's answer alive.

    What `Answer` tells of a whole system (iterations, refinements, the condition) stays the block's.
    """
    return replace(
        whole,
        x=np.ascontiguousarray(whole.x[:, start:stop]),
        statuses=tuple(system[start:stop] for system in whole.statuses),
        relative_residual=whole.relative_residual[:, start:stop].copy(),
        backward_error=whole.backward_error[:, start:stop].copy(),
    )
