"""Messages of a process worker as bytes: a solve and its answer compactly, everything else pickled.

A pickle of these two records, there and back, costs as much as a solve of a hundred rows.
"""

import pickle
import struct
from typing import Any

import numpy as np

from backsolve.types import DTYPES, TRANS, Status

from ..engine.answer import Answer
from ..engine.base import Controls
from .messages import Answered, Solve

Place = tuple[int, str, tuple[int, ...]]
"""(offset, dtype, shape) of an array in the arena."""

_PICKLED, _SOLVE, _ANSWERED = range(3)

_PLAIN = Controls()
_ASK = struct.Struct("<BBBBQQQ")
"""Kind, element type, `trans`, then the factor's number, rows and columns."""

_TELL = struct.Struct("<BBBBQQIId")
"""Kind, element type, whether a condition is told, status, rows, columns, iterations, refinements, condition."""

_CODES = {dtype.str: code for code, dtype in enumerate(DTYPES)}
_MOST_COUNT = 2**32


def encode(message: object, layout: list[Place]) -> bytes:
    """One message with the places of its arrays."""
    packed: bytes | None = None
    if len(layout) == 1 and layout[0][0] == 0 and len(layout[0][2]) == 2 and layout[0][1] in _CODES:
        if isinstance(message, Solve):
            packed = _asked(message, layout[0])
        elif isinstance(message, Answered):
            packed = _told(message.answer, layout[0])
    if packed is None:
        return bytes([_PICKLED]) + pickle.dumps((message, layout), pickle.HIGHEST_PROTOCOL)
    return packed


def decode(body: bytearray) -> tuple[Any, list[Place]]:
    """What `encode` was given."""
    if body[0] == _SOLVE:
        _, code, trans, _, factor, rows, columns = _ASK.unpack(body)
        return Solve(factor, TRANS[trans], _PLAIN), [(0, DTYPES[code].str, (rows, columns))]
    if body[0] == _ANSWERED:
        return _heard(body)
    message, layout = pickle.loads(memoryview(body)[1:])
    return message, layout


def _asked(message: Solve, place: Place) -> bytes | None:
    """None: it has options that the compact form has no room for."""
    if message.controls.x0 is not None or message.controls != _PLAIN:
        return None
    return _ASK.pack(_SOLVE, _CODES[place[1]], TRANS.index(message.trans), 0, message.factor, *place[2])


def _told(answer: Answer, place: Place) -> bytes | None:
    """None: of several systems or statuses, or with figures that the compact form has no room for."""
    if len(answer.statuses) != 1 or len(set(answer.statuses[0])) != 1:
        return None
    if answer.inverse_norm is not None or answer.note is not None:
        return None
    iterations, refinements = answer.iterations[0], answer.refinements
    columns = place[2][1]
    if answer.relative_residual.shape != (1, columns) or max(iterations, refinements) >= _MOST_COUNT:
        return None
    head = _TELL.pack(
        *(_ANSWERED, _CODES[place[1]], answer.condition is not None, answer.statuses[0][0].value),
        *(*place[2], iterations, refinements, answer.condition or 0.0),
    )
    return head + answer.relative_residual.tobytes() + answer.backward_error.tobytes()


def _heard(body: bytearray) -> tuple[Answered, list[Place]]:
    _, code, has_condition, status, rows, columns, iterations, refinements, condition = _TELL.unpack_from(body)
    figures = np.frombuffer(body, np.float64, 2 * columns, _TELL.size).reshape(2, 1, columns)
    answer = Answer(
        x=_NOTHING,
        statuses=((Status(status),) * columns,),
        iterations=(iterations,),
        refinements=refinements,
        relative_residual=figures[0],
        backward_error=figures[1],
        condition=condition if has_condition else None,
    )
    return Answered(answer), [(0, DTYPES[code].str, (rows, columns))]


_NOTHING = np.empty(0)
