"""Matrices in every accepted format, and hostile ones: a problem, never a crash or a huge allocation."""

import io
import json
import zipfile

import numpy as np
import pytest
from scipy.io import mmwrite
from scipy.sparse import coo_array, csc_array, csr_array, random_array, save_npz

from backsolve._rest.body import MEDIA_TYPE, encode
from backsolve.canonical import canonicalise
from backsolve.errors import BacksolveError, PayloadTooLargeError
from backsolve_service.rest.uploads import READERS, read_matrix
from support.rest import ask, ask_json

LIMIT = 1 << 20


def matrix(dtype: str = "float64") -> csr_array:
    rng = np.random.default_rng(927_130_446)
    a = csr_array(random_array((30, 30), density=0.1, rng=rng) + 5 * np.eye(30))
    return (a * (1 + 2j)).astype(dtype) if np.dtype(dtype).kind == "c" else a.astype(dtype)


def npz(a: object) -> bytes:
    stream = io.BytesIO()
    save_npz(stream, a)
    return stream.getvalue()


def market(a: object, **how: str) -> bytes:
    stream = io.BytesIO()
    mmwrite(stream, a, precision=17, **how)
    return stream.getvalue()


def bulk(a: csr_array) -> bytes:
    body = encode({"values": a.data, "indptr": a.indptr, "indices": a.indices}, {})
    return b"".join(body.parts)


def written(a: csr_array) -> bytes:
    arrays = {"indptr": a.indptr.tolist(), "indices": a.indices.tolist(), "values": a.data.tolist()}
    return json.dumps({"shape": list(a.shape), **arrays}).encode()


FORMS = {
    "npz-csr": ("application/x-npz", npz),
    "npz-csc": ("application/zip", lambda a: npz(csc_array(a))),
    "npz-coo": ("application/x-npz", lambda a: npz(coo_array(a))),
    "matrix-market": ("application/x-matrix-market", market),
    "matrix-market-text": ("text/plain", market),
    "safetensors": (MEDIA_TYPE, bulk),
    "json": ("application/json", written),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_matrix_has_the_same_digests(port: int, form: str) -> None:
    a = matrix()
    kind, write = FORMS[form]
    reply = ask(port, "POST", "/v1/matrices", write(a), kind)
    assert reply.status in (200, 201), reply.body
    expected = canonicalise(a).matrix.ref
    assert reply.json()["ref"] == expected.key
    assert reply.json()["pattern"] == expected.pattern.hex()
    assert reply.json()["nnz"] == a.nnz
    solved = ask_json(port, "/v1/solve", {"matrix": {"ref": expected.key}, "b": [1.0] * 30})
    np.testing.assert_allclose(a @ solved.json()["x"], np.ones(30), rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "complex128"])
def test_element_types_survive_an_archive(dtype: str) -> None:
    a = matrix(dtype)
    read = read_matrix("application/x-npz", np.frombuffer(npz(a), np.uint8), LIMIT)
    assert read.dtype == dtype
    assert read.ref == canonicalise(a).matrix.ref


def test_a_complex_batch_and_a_dense_matrix_in_bulk(port: int) -> None:
    a = matrix("complex128")
    batch = np.stack([a.data, 2 * a.data])
    body = encode({"values": batch, "indptr": a.indptr, "indices": a.indices}, {"shape": [30, 30]})
    reply = ask(port, "POST", "/v1/matrices", b"".join(body.parts), MEDIA_TYPE).json()
    assert (reply["batch"], reply["dtype"], reply["layout"]) == (2, "complex128", "csr")
    reply = ask(port, "POST", "/v1/matrices", b"".join(encode({"values": np.eye(4)}, {}).parts), MEDIA_TYPE).json()
    assert (reply["batch"], reply["shape"], reply["layout"]) == (None, [4, 4], "dense")


@pytest.mark.parametrize("symmetry", ["symmetric", "skew-symmetric", "hermitian"])
@pytest.mark.parametrize("layout", [csr_array, np.asarray])
def test_matrix_market_symmetries(symmetry: str, layout: type) -> None:
    rng = np.random.default_rng(184_205_577)
    square = rng.standard_normal((6, 6)) + (1j * rng.standard_normal((6, 6)) if symmetry == "hermitian" else 0)
    a = square - square.T if symmetry.startswith("skew") else square + square.conj().T
    text = market(layout(a), symmetry=symmetry)
    assert symmetry.encode() in text.split(b"\n")[0]
    read = read_matrix("text/plain", np.frombuffer(text, np.uint8), LIMIT)
    values = read.values if read.pattern.layout == "dense" else _dense(read)
    np.testing.assert_allclose(values, a, rtol=1e-15)


def _dense(read: object) -> np.ndarray:
    return csr_array((read.values, read.pattern.indices, read.pattern.indptr), shape=read.pattern.shape).toarray()


def test_second_upload_is_told_apart(port: int) -> None:
    body = bulk(matrix() * 3.5)
    assert ask(port, "POST", "/v1/matrices", body, MEDIA_TYPE).status == 201
    reply = ask(port, "POST", "/v1/matrices", body, MEDIA_TYPE)
    assert reply.status == 200
    assert reply.headers["location"] == f"/v1/matrices/{reply.json()['ref']}"


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return stream.getvalue()


def npy(array: np.ndarray, **how: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


def csr_members(**changes: np.ndarray) -> dict[str, bytes]:
    arrays = {
        "format": np.array(b"csr"),
        "shape": np.array([2, 2]),
        "data": np.array([1.0, 2.0]),
        "indices": np.array([0, 1]),
        "indptr": np.array([0, 1, 2]),
    }
    return {name: npy(array) for name, array in {**arrays, **changes}.items()}


HOSTILE = {
    "market-announces-too-much": (
        "text/plain",
        b"%%MatrixMarket matrix coordinate real general\n9 9 99999999999\n1 1 1\n",
        "MALFORMED",
    ),
    "market-huge-dense": ("text/plain", b"%%MatrixMarket matrix array real general\n99999 99999\n1\n", "MALFORMED"),
    "market-huge-rows": (
        "text/plain",
        b"%%MatrixMarket matrix coordinate real general\n99999999999 99999999999 1\n1 1 1\n",
        "PAYLOAD_TOO_LARGE",
    ),
    "market-pattern": (
        "text/plain",
        b"%%MatrixMarket matrix coordinate pattern general\n1 1 1\n1 1\n",
        "INVALID_DTYPE",
    ),
    "market-outside": (
        "text/plain",
        b"%%MatrixMarket matrix coordinate real general\n2 2 1\n3 1 1.0\n",
        "MALFORMED",
    ),
    "market-words": ("text/plain", b"hello, world", "MALFORMED"),
    "market-bad-number": (
        "text/plain",
        b"%%MatrixMarket matrix coordinate real general\n2 2 1\n1 1 seven\n",
        "MALFORMED",
    ),
    "npz-pickle": (
        "application/x-npz",
        archive(**{**csr_members(), "data": npy(np.array([{}, {}]), allow_pickle=True)}),
        "INVALID_DTYPE",
    ),
    "npz-bomb": ("application/x-npz", archive(**csr_members(data=np.zeros(1 << 20))), "PAYLOAD_TOO_LARGE"),
    "npz-other-arrays": ("application/x-npz", archive(a=npy(np.eye(3))), "MALFORMED"),
    "npz-lacks-indices": (
        "application/x-npz",
        archive(**{k: v for k, v in csr_members().items() if k != "indices"}),
        "MALFORMED",
    ),
    "npz-header-lies": (
        "application/x-npz",
        archive(**{**csr_members(), "data": npy(np.zeros(4)).replace(b"(4,), }   ", b"(400000,), }")}),
        "MALFORMED",
    ),
    "npz-bsr": ("application/x-npz", archive(**csr_members(format=np.array(b"bsr"))), "NOT_SUPPORTED"),
    "npz-outside": ("application/x-npz", archive(**csr_members(indices=np.array([0, 7]))), "INVALID_PATTERN"),
    "npz-csc-outside": (
        "application/x-npz",
        archive(**csr_members(format=np.array(b"csc"), indices=np.array([0, -3]))),
        "INVALID_PATTERN",
    ),
    "npz-huge-shape": (
        "application/x-npz",
        archive(**csr_members(shape=np.array([1 << 30, 1 << 30]))),
        "PAYLOAD_TOO_LARGE",
    ),
    "npz-float-indices": ("application/x-npz", archive(**csr_members(indices=np.array([0.0, 1.0]))), "INVALID_PATTERN"),
    "npz-not-a-zip": ("application/x-npz", b"PK\x03\x04 nonsense", "MALFORMED"),
    "npz-half": ("application/x-npz", npz(matrix())[:-40], "MALFORMED"),
    "bulk-no-values": (MEDIA_TYPE, b"".join(encode({"b": np.ones(3)}, {}).parts), "MALFORMED"),
    "bulk-values-only": (
        MEDIA_TYPE,
        b"".join(encode({"values": np.ones(3)}, {"values_only": True}).parts),
        "MALFORMED",
    ),
    "bulk-broken-indptr": (
        MEDIA_TYPE,
        b"".join(encode({"values": np.ones(2), "indptr": np.array([0, 2, 1]), "indices": np.array([0, 1])}, {}).parts),
        "INVALID_PATTERN",
    ),
    "json-ref": ("application/json", b'{"ref": "x"}', "INVALID_OPTION"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_uploads_have_their_own_reason(case: str) -> None:
    kind, body, reason = HOSTILE[case]
    with pytest.raises(BacksolveError) as caught:
        read_matrix(kind, np.frombuffer(body, np.uint8), LIMIT)
    assert caught.value.code.name == reason, caught.value
    if isinstance(caught.value, PayloadTooLargeError):
        assert int(caught.value.details["size"]) > int(caught.value.details["limit"]) == LIMIT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_uploads_never_raise_anything_else(form: str) -> None:
    kind, write = FORMS[form]
    good = np.frombuffer(write(matrix()), np.uint8)
    rng = np.random.default_rng(662_901_835)
    refused = 0
    for _ in range(150):
        body = good.copy()
        for position in rng.integers(0, body.size, rng.integers(1, 6)):
            body[position] = rng.integers(0, 256)
        if rng.random() < 0.3:
            body = body[: rng.integers(0, body.size)]
        try:
            read_matrix(kind, body, LIMIT)
        except BacksolveError:
            refused += 1
    assert refused > 20


def test_every_reader_is_tested() -> None:
    assert {kind for kind, _ in FORMS.values()} == set(READERS)


def test_hostile_upload_over_the_wire(port: int) -> None:
    reply = ask(port, "POST", "/v1/matrices", archive(**csr_members(data=np.zeros(16 << 20))), "application/zip")
    assert (reply.status, reply.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")
    assert ask(port, "POST", "/v1/matrices", bulk(matrix()), MEDIA_TYPE).status in (200, 201)
