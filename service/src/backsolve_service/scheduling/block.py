"""Several callers' right-hand sides as the columns of one, and the answer's columns as theirs."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from backsolve.types import Array, Trans

from ..engine.answer import Answer
from ..engine.base import Controls
from .worker import FactorRef


def block_key(ref: FactorRef, rhs: Array, trans: Trans, controls: Controls) -> Hashable | None:
    """What right-hand sides must have in common to be solved together; None: solved alone.

    The element type belongs to it: in a wider block a float32 answer would have other digits.
    A first iterate and a batch on one pattern are never shared.
    """
    if controls.x0 is not None or ref.batch is not None or not 0 < rhs.shape[-1] < ref.max_columns:
        return None
    return (ref.id, trans, rhs.dtype, controls)


def stacked(columns: Sequence[Array]) -> Array:
    """`[n, k]` arrays side by side, in C order; a single one as it is."""
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


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
