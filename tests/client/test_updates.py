"""Updates before they reach a server: their names, their two wires, and what neither takes."""

import pickle
from typing import Any

import numpy as np
import pytest

from backsolve._rest.body import Message, decode
from backsolve._rest.messages import put_base, put_body, read_put
from backsolve._rpc import calls
from backsolve._transports.base import PutCall
from backsolve.errors import (
    BacksolveError,
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    MalformedError,
)
from backsolve.fingerprint import fresh_ref, pattern_digest
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern, StructuredPattern
from backsolve.v1 import solver_pb2

S = Matrix(Pattern([0, 1, 3, 4], [0, 0, 1, 2], (3, 3)), np.arange(1.0, 5.0))
FULL = Matrix(DensePattern((3, 3)), np.arange(1.0, 10.0).reshape(3, 3))


def update(base: Matrix = S, k: int = 1, values: Any = None) -> Matrix:
    assert not isinstance(base.pattern, StructuredPattern)
    numbers = np.arange(6.0 * k) if values is None else values
    return Matrix(StructuredPattern("update", (3, k), base.pattern), numbers, base)


def test_digests_tell_bases_ranks_and_numbers_apart() -> None:
    other = Matrix(S.pattern, S.values + np.array([0, 0, 0, 1e-9]))
    several = [update(), update(other), update(FULL), update(k=2), update(values=np.arange(6.0)[::-1].copy())]
    several.append(Matrix(StructuredPattern("low_rank", (3, 1)), np.arange(9.0)))
    assert len({m.ref for m in several}) == len(several)
    assert len({m.ref.pattern for m in several}) == len(several) - 1  # the same S and sizes, other numbers
    again = update(Matrix(Pattern([0, 1, 3, 4], [0, 0, 1, 2], (3, 3)), np.arange(1.0, 5.0)))
    assert again.ref == fresh_ref(again) == update().ref
    with pytest.raises(InvalidPatternError, match="named with the matrix"):
        pattern_digest(update().pattern)


def test_a_change_of_the_base_is_seen_by_a_fresh_look() -> None:
    m = update(Matrix(S.pattern, S.values.copy()))
    named = m.ref
    assert m.base is not None
    m.base.values[0] = 7
    assert m.ref == named
    assert fresh_ref(m) != named


@pytest.mark.parametrize("base", [S, FULL], ids=["csr", "dense"])
def test_parameters_and_back(base: Matrix) -> None:
    m = update(base)
    assert m.parameters.shape == m.parameters_shape == (base.values.size + 6,)
    back = Matrix.of_parameters(m.pattern, m.parameters)
    assert back.ref == m.ref
    copied = m.copy()
    assert copied.ref == m.ref
    assert copied.base is not None
    assert not np.shares_memory(copied.values, m.values)
    assert not np.shares_memory(copied.base.values, base.values)


def test_a_pattern_survives_pickling() -> None:
    pattern = update().pattern
    again = pickle.loads(pickle.dumps(pattern))
    assert again.same_as(pattern)
    assert not again.same_as(update(FULL).pattern)
    assert not again.same_as(update(k=2).pattern)


@pytest.mark.parametrize("base", [S, FULL], ids=["csr", "dense"])
def test_uploads_survive_both_wires(base: Matrix) -> None:
    """S itself does not travel: its name does."""
    m = update(base)
    body = put_body(PutCall(m.ref, m))
    message = decode(np.frombuffer(b"".join(bytes(part) for part in body.parts), np.uint8))
    assert set(message.tensors) == {"values"}
    assert put_base(message) == base.ref
    pattern, values = read_put(message, base)
    assert pattern is not None
    assert Matrix(pattern, values, base).ref == m.ref
    request, arrays = calls.encode_put(PutCall(m.ref, m))
    assert set(arrays) == {"values"}
    assert calls.put_base(request) == base.ref
    assert calls.decode_put(request, arrays, None, base).matrix.ref == m.ref
    alone, arrays = calls.encode_put(PutCall(m.ref, m, values_only=True))
    assert calls.put_base(alone) is None
    assert calls.decode_put(alone, arrays, m.pattern, base).matrix.ref == m.ref


@pytest.mark.parametrize(
    ("document", "base", "error"),
    [
        ({"layout": "structured", "kind": "update", "dims": [3, 1]}, None, InvalidPatternError),
        ({"layout": "structured", "kind": "update", "dims": [3, 1], "base": 5}, None, MalformedError),
        ({"layout": "structured", "kind": "update", "dims": [3, 1], "base": "ab-cd"}, None, MalformedError),
        ({"layout": "structured", "kind": "circulant", "dims": [6], "base": S.ref.key}, S, InvalidPatternError),
        ({"layout": "structured", "kind": "update", "dims": [4, 1], "base": S.ref.key}, S, InvalidShapeError),
        ({"layout": "structured", "kind": "update", "dims": [3, 4], "base": S.ref.key}, S, InvalidPatternError),
        ({"layout": "structured", "kind": "update", "dims": [3], "base": S.ref.key}, S, InvalidPatternError),
        ({"layout": "structured", "kind": "update", "dims": [3, 1], "base": S.ref.key}, update(), InvalidPatternError),
        ({"layout": "dense", "shape": [2, 3], "base": S.ref.key}, S, InvalidOptionError),
        ({"values_only": True, "base": S.ref.key}, S, InvalidOptionError),
    ],
)
def test_what_rest_does_not_take(document: dict[str, Any], base: Matrix | None, error: type[BacksolveError]) -> None:
    message = Message({"values": np.arange(6.0)}, document)

    def read() -> None:
        put_base(message)
        read_put(message, base)

    with pytest.raises(error):
        read()


def test_what_grpc_does_not_take() -> None:
    def broken(base: Matrix | None = S, **fields: Any) -> Any:
        m = update()
        message, arrays = calls.encode_put(PutCall(m.ref, m))
        for name, value in fields.items():
            message.ClearField(name)
            if value is not None:
                setattr(message, name, value)
        calls.put_base(message)
        return calls.decode_put(message, arrays, m.pattern if message.values_only else None, base)

    for fields in (
        {"layout": solver_pb2.LAYOUT_DENSE, "kind": None, "dims": None},
        {"layout": 0, "n": 0, "kind": None, "dims": None, "values_only": True},
        {"n": 5},
    ):
        with pytest.raises(MalformedError):
            broken(**fields)
    with pytest.raises(InvalidPatternError, match="stands on another"):
        broken(base=None)
    with pytest.raises(InvalidPatternError, match="no other kind"):
        broken(kind="low_rank")
    message, _ = calls.encode_put(PutCall(update().ref, update()))
    message.base.values = b"short"
    with pytest.raises(MalformedError):
        calls.put_base(message)
