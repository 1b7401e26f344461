"""What people with curl send and get."""

import json

import numpy as np
import pytest
from scipy.sparse import csr_array

from support.rest import ask, ask_json

A = np.array([[4.0, 1.0, 0.0], [2.0, 5.0, 1.0], [0.0, 1.0, 3.0]])
B = np.array([1.0, -2.0, 0.5])
SPARSE = {"shape": [3, 3], "indptr": [0, 2, 5, 7], "indices": [0, 1, 0, 1, 2, 1, 2], "values": A[A != 0].tolist()}


@pytest.mark.parametrize("matrix", [{"values": A.tolist()}, SPARSE], ids=["dense", "csr"])
@pytest.mark.parametrize(("trans", "operator"), [("N", A), ("T", A.T)])
def test_solve_with_the_matrix_written_out(port: int, matrix: dict, trans: str, operator: np.ndarray) -> None:
    document = {"matrix": matrix, "b": B.tolist(), "options": {"trans": trans}}
    reply = ask_json(port, "/v1/solve", document)
    assert reply.status == 200, reply.body
    np.testing.assert_allclose(operator @ reply.json()["x"], B, rtol=1e-13)
    assert reply.json()["certificate"]["status"] == "OK"
    again = ask_json(port, "/v1/solve", {**document, "matrix": {"ref": reply.json()["ref"]}})
    assert again.json()["x"] == reply.json()["x"]
    assert again.json()["certificate"]["factor_hit"]


def test_unsorted_and_duplicated_entries_are_brought_into_canonical_form(port: int) -> None:
    matrix = {"shape": [2, 2], "indptr": [0, 3, 4], "indices": [1, 0, 0, 1], "values": [1.0, 3.0, 1.0, 2.0]}
    reply = ask_json(port, "/v1/solve", {"matrix": matrix, "b": [6.0, 2.0]})
    np.testing.assert_allclose(reply.json()["x"], [1.25, 1.0], rtol=1e-14)


def test_complex_numbers_are_pairs(port: int) -> None:
    a = A + 1j * A.T
    pairs = np.stack([a.real, a.imag], axis=-1).tolist()
    b = [[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]]
    reply = ask_json(port, "/v1/solve", {"dtype": "complex128", "matrix": {"values": pairs}, "b": b})
    x = np.array(reply.json()["x"]) @ [1, 1j]
    np.testing.assert_allclose(a @ x, np.array(b) @ [1, 1j], rtol=1e-13)
    assert reply.json()["dtype"] == "complex128"


def test_float32_stays_float32(port: int) -> None:
    reply = ask_json(port, "/v1/solve", {"dtype": "float32", "matrix": {"values": A.tolist()}, "b": B.tolist()})
    assert reply.json()["dtype"] == "float32"
    x = np.array(reply.json()["x"])
    np.testing.assert_array_equal(x, x.astype(np.float32))
    np.testing.assert_allclose(A @ x, B, atol=1e-5)


def test_columns_and_integers(port: int) -> None:
    reply = ask_json(port, "/v1/solve", {"matrix": {"values": [[2, 0], [0, 4]]}, "b": [[2, 4], [4, 8]]})
    np.testing.assert_allclose(reply.json()["x"], [[1.0, 2.0], [1.0, 2.0]], rtol=1e-14)


def test_empty_system(port: int) -> None:
    matrix = {"shape": [0, 0], "indptr": [0], "indices": [], "values": []}
    reply = ask_json(port, "/v1/solve", {"matrix": matrix, "b": []})
    assert (reply.status, reply.json()["x"]) == (200, [])


def test_vjp_and_jvp(port: int) -> None:
    g = np.array([0.25, -1.0, 2.0])
    x = np.linalg.solve(A, B)
    matrix = {"values": A.tolist()}
    pulled = ask_json(
        port, "/v1/vjp", {"matrix": matrix, "cotangent": g.tolist(), "want": ["b", "values"], "x": x.tolist()}
    ).json()
    lam = np.linalg.solve(A.T, g)
    np.testing.assert_allclose(pulled["b"], lam, rtol=1e-13)
    np.testing.assert_allclose(pulled["values"], -np.outer(lam, x), rtol=1e-12)
    only_b = ask_json(port, "/v1/vjp", {"matrix": matrix, "cotangent": g.tolist()}).json()
    assert only_b["values"] is None
    pushed = ask_json(port, "/v1/jvp", {"matrix": matrix, "b_tangent": g.tolist()}).json()
    np.testing.assert_allclose(A @ pushed["x"], g, rtol=1e-13)


STRUCTURED = {
    "low_rank": ([3, 1], {"d": [2.0, 3.0, 4.0], "U": [[1.0], [1.0], [0.5]], "V": [[1.0], [0.0], [2.0]]}),
    "kronecker": ([1, 3], {"A1": [[2.0]], "A2": A.tolist()}),
    "circulant": ([3], {"c": [4.0, 1.0, -0.5]}),
    "toeplitz": ([3], {"t": [0.5, 1.0, 4.0, -1.0, 2.0]}),
}


def entries_of(kind: str, parameters: dict) -> np.ndarray:
    """The dense matrix, by definition."""
    p = {name: np.array(value) for name, value in parameters.items()}
    if kind == "low_rank":
        return np.diag(p["d"]) + p["U"] @ p["V"].conj().T
    if kind == "kronecker":
        return np.kron(p["A1"], p["A2"])
    if kind == "circulant":
        return np.array([[p["c"][(i - j) % 3] for j in range(3)] for i in range(3)])
    return np.array([[p["t"][i - j + 2] for j in range(3)] for i in range(3)])


@pytest.mark.parametrize("kind", STRUCTURED)
def test_a_structured_matrix_is_written_by_its_parameters(port: int, kind: str) -> None:
    dims, parameters = STRUCTURED[kind]
    full = entries_of(kind, parameters)
    matrix = {"kind": kind, "dims": dims, "parameters": parameters}
    reply = ask_json(port, "/v1/solve", {"matrix": matrix, "b": B.tolist()}).json()
    np.testing.assert_allclose(full @ reply["x"], B, rtol=1e-12, atol=1e-12)
    uploaded = ask_json(port, "/v1/matrices", matrix).json()
    assert (uploaded["ref"], uploaded["layout"], uploaded["shape"]) == (reply["ref"], "structured", [3, 3])
    g = [0.25, -1.0, 2.0]
    document = {"matrix": {"ref": reply["ref"]}, "cotangent": g, "want": ["b", "values"], "x": reply["x"]}
    pulled = ask_json(port, "/v1/vjp", document).json()
    np.testing.assert_allclose(full.T @ pulled["b"], g, rtol=1e-12, atol=1e-12)
    # Along any direction of the parameters: ⟨gradient, dθ⟩ = ⟨g, dx⟩.
    direction = np.random.default_rng(440_918_207).standard_normal(len(pulled["values"])).tolist()
    moved = ask_json(port, "/v1/jvp", {"matrix": matrix, "x": reply["x"], "values_tangent": direction}).json()
    assert np.dot(pulled["values"], direction) == pytest.approx(np.dot(g, moved["x"]), rel=1e-10)


def test_a_batch_of_structured_matrices_and_complex_ones(port: int) -> None:
    parameters = STRUCTURED["low_rank"][1]
    other = {"d": [5.0, 3.0, 7.0], "U": [[1.0], [2.0], [3.0]], "V": [[0.0], [1.0], [1.0]]}
    both = {name: [parameters[name], other[name]] for name in other}
    matrix = {"kind": "low_rank", "dims": [3, 1], "parameters": both}
    reply = ask_json(port, "/v1/solve", {"matrix": matrix, "b": [B.tolist(), B.tolist()]}).json()
    assert [element["status"] for element in reply["certificate"]["elements"]] == ["OK", "OK"]
    for given, x in zip((parameters, other), reply["x"], strict=True):
        np.testing.assert_allclose(entries_of("low_rank", given) @ x, B, rtol=1e-12)
    matrix = {"kind": "circulant", "dims": [2], "parameters": {"c": [[3.0, 0.0], [0.0, 1.0]]}, "dtype": "complex128"}
    reply = ask_json(port, "/v1/solve", {"dtype": "complex128", "matrix": matrix, "b": [[1.0, 0.0], [0.0, 0.0]]}).json()
    x = np.array(reply["x"]) @ [1, 1j]
    np.testing.assert_allclose(np.array([[3, 1j], [1j, 3]]) @ x, [1, 0], rtol=1e-13, atol=1e-14)


LOW_RANK = {"kind": "low_rank", "dims": [3, 1], "parameters": STRUCTURED["low_rank"][1]}


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"kind": "hankel"}, "INVALID_PATTERN", "low_rank"),
        ({"kind": 7}, "MALFORMED", '"kind", a name'),
        ({"dims": "3"}, "MALFORMED", '"dims"'),
        ({"dims": [3]}, "INVALID_PATTERN", "dims (n, r)"),
        ({"dims": [3, 2]}, "INVALID_SHAPE", '"U" has shape (3, 1)'),
        ({"dims": [2**40, 1]}, "INVALID_PATTERN", "at most"),
        ({"parameters": [1.0]}, "MALFORMED", '"parameters"'),
        ({"parameters": {"d": [734.25, 1.0, 1.0]}}, "MALFORMED", '"U"'),
        ({"parameters": {**LOW_RANK["parameters"], "W": [1.0]}}, "INVALID_OPTION", "d, U, V"),
        ({"parameters": {**LOW_RANK["parameters"], "d": [[1.0, 2.0, 3.0]]}}, "INVALID_SHAPE", "same batch axis"),
        ({"parameters": {**LOW_RANK["parameters"], "d": [[[1.0, 2.0, 3.0]]]}}, "INVALID_SHAPE", '"d" has shape'),
        ({"values": [[1.0]]}, "INVALID_OPTION", "kind, dims, base, parameters"),
        ({"kind": "low_rank", "dtype": "int8"}, "INVALID_DTYPE", "float64"),
    ],
)
def test_faults_of_structured_matrices(port: int, change: dict, reason: str, words: str) -> None:
    reply = ask_json(port, "/v1/solve", {"matrix": {**LOW_RANK, **change}, "b": B.tolist()})
    assert reply.json()["reason"] == reason, reply.body
    assert words in reply.json()["detail"]
    assert "734" not in reply.json()["detail"]
    orphan = ask_json(port, "/v1/solve", {"matrix": {"dims": [3], "values": [1.0]}, "b": B.tolist()})
    assert "without" in orphan.json()["detail"]


def test_on_failure_raise_turns_a_status_into_a_problem(port: int) -> None:
    n = 40
    stencil = np.diag(np.full(n, 2.0)) - np.diag(np.ones(n - 1), 1) - np.diag(np.ones(n - 1), -1)
    matrix = csr_array(stencil)
    written = {
        "shape": [n, n],
        "indptr": matrix.indptr.tolist(),
        "indices": matrix.indices.tolist(),
        "values": matrix.data.tolist(),
    }
    b = np.random.default_rng(515_290_373).standard_normal(n)
    document = {"matrix": written, "b": b.tolist(), "options": {"method": "cg", "maxiter": 2}}
    returned = ask_json(port, "/v1/solve", document)
    assert (returned.status, returned.json()["certificate"]["status"]) == (200, "MAX_ITER")
    raised = ask_json(port, "/v1/solve?on_failure=raise", document)
    assert (raised.status, raised.json()["reason"]) == (422, "MAX_ITER")
    assert raised.headers["content-type"] == "application/problem+json"
    assert raised.json()["certificate"]["iterations"] == 2


@pytest.mark.parametrize(
    ("document", "reason", "words"),
    [
        ({"b": [1.0]}, "MALFORMED", "matrix"),
        ({"matrix": {"values": [[1.0]]}}, "MALFORMED", '"b"'),
        ({"matrix": {"values": [[1.0]]}, "b": [1.0], "optoins": {}}, "INVALID_OPTION", "did you mean 'options'"),
        ({"matrix": {"values": [[1.0]]}, "b": [1.0], "options": {"rtoll": 1}}, "INVALID_OPTION", "did you mean 'rtol'"),
        ({"matrix": {"values": [[1.0]]}, "b": [1.0], "options": {"maxiter": 1.5}}, "INVALID_OPTION", "whole number"),
        ({"matrix": {"values": [[1.0]]}, "b": [1.0], "options": {"trans": "X"}}, "INVALID_OPTION", "trans"),
        ({"matrix": {"values": [[1.0, 2.0]]}, "b": [1.0]}, "INVALID_SHAPE", "square"),
        ({"matrix": {"values": [[1.0], [2.0, 3.0]]}, "b": [1.0]}, "INVALID_SHAPE", "unequal"),
        ({"matrix": {"values": [["734.25"]]}, "b": [1.0]}, "INVALID_DTYPE", "not a number"),
        ({"matrix": {"values": [[None]]}, "b": [1.0]}, "INVALID_DTYPE", "not a number"),
        ({"matrix": {"values": [[1.0]]}, "b": [1.0], "dtype": "int8"}, "INVALID_DTYPE", "float64"),
        ({"matrix": {"values": [[1.0]]}, "b": [1.0], "dtype": "complex128"}, "INVALID_SHAPE", "pair"),
        ({"matrix": {"ref": "12"}, "b": [1.0]}, "MALFORMED", "hex"),
        ({"matrix": {"ref": f"{'ab' * 32}-{'cd' * 32}"}, "b": [1.0]}, "NEED_MATRIX", "send it"),
        ({"matrix": {**SPARSE, "indptr": [0, 2, 1, 7]}, "b": B.tolist()}, "INVALID_PATTERN", "indptr"),
        ({"matrix": {**SPARSE, "indices": [0, 9, 0, 1, 2, 1, 2]}, "b": B.tolist()}, "INVALID_PATTERN", "outside"),
        ({"matrix": {**SPARSE, "shape": [10**9, 10**9]}, "b": B.tolist()}, "INVALID_PATTERN", "indptr"),
        ({"matrix": {**SPARSE, "values": [1.0]}, "b": B.tolist()}, "INVALID_SHAPE", "values"),
        ({"matrix": {"values": [[1.0]]}, "b": [1.0, 2.0]}, "INVALID_SHAPE", "b has shape"),
        ({"matrix": {"values": [[1e999]]}, "b": [1.0]}, "MALFORMED", "NaN"),
        ([1.0], "MALFORMED", "object"),
    ],
)
def test_faults_have_their_own_reason_and_a_cure(port: int, document: object, reason: str, words: str) -> None:
    reply = ask_json(port, "/v1/solve", document)
    assert reply.json()["reason"] == reason, reply.body
    assert words in reply.json()["detail"]
    assert reply.status == reply.json()["status"]
    # The caller's numbers; the request's own random name may contain anything.
    assert "734" not in reply.body.decode().replace(reply.json()["request_id"], "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"matrix": {"values": [[1e999]]}, "b": [1.0]}'[:-1],
        b"[" * 100_000,
        b'{"b": 1, "b": 2}',
        b'{"b": ' + b"9" * 5000 + b"}",
        b'{"b": [NaN]}',
    ],
    ids=["empty", "cut", "not-utf8", "cut-late", "deep", "repeated-key", "long-integer", "nan"],
)
def test_what_is_not_strict_json_is_malformed(port: int, body: bytes) -> None:
    reply = ask(port, "POST", "/v1/solve", body, "application/json")
    assert (reply.status, reply.json()["reason"]) == (400, "MALFORMED")


def test_overflowing_numbers_are_nonfinite(port: int) -> None:
    body = b'{"matrix": {"values": [[1e999]]}, "b": [1.0]}'
    assert ask(port, "POST", "/v1/solve", body, "application/json").json()["reason"] == "NONFINITE_INPUT"


def test_large_json_is_refused_with_the_cure(port: int) -> None:
    body = json.dumps({"matrix": {"values": [[1.0]]}, "b": [1.0]}).encode() + b" " * (9 << 20)
    reply = ask(port, "POST", "/v1/solve", body, "application/json")
    assert (reply.status, reply.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")
    assert "application/x-safetensors" in reply.json()["detail"]


def test_numbers_that_are_not_finite_are_null_and_named() -> None:
    from dataclasses import replace

    from backsolve._transports.base import SolveReply
    from support.rest import CERTIFICATE, ToldPlane, serving

    told = SolveReply(np.array([1.0, np.nan, -np.inf]), replace(CERTIFICATE, backward_error=np.inf))
    with serving(ToldPlane(lambda call, context: told)) as server:
        document = {"matrix": {"ref": f"{'ab' * 32}-{'cd' * 32}"}, "b": [1.0, 2.0, 3.0]}
        reply = ask_json(server.port, "/v1/solve", document)
    assert reply.json()["x"] == [1.0, None, None]
    assert reply.json()["certificate"]["backward_error"] == "Infinity"
