"""Every form of a matrix in `docs/json.md` and in the OpenAPI document: it is what the page says, and is solved."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backsolve.kinds import UPDATE, names
from backsolve_service.rest.openapi import EXAMPLE_REF, document
from support.rest import ask_json

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
SHOWN = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S)]
FORMS = list(zip(SHOWN[::2], SHOWN[1::2], strict=True))
S = FORMS[0][0]
KINDS = {*names(), UPDATE.name}
OF_THE_SERVER = document()["paths"]["/v1/solve"]["post"]["requestBody"]["content"]["application/json"]["examples"]


def standing(port: int, form: dict[str, Any]) -> dict[str, Any]:
    """The form with the ref of the S that the page means."""
    if "base" not in form:
        return form
    uploaded = ask_json(port, "/v1/matrices", S)
    assert uploaded.status in (200, 201), uploaded.body
    return {**form, "base": {"ref": uploaded.json()["ref"]}}


def test_the_page_has_every_kind() -> None:
    assert {form["kind"] for form, _ in FORMS if "kind" in form} == KINDS
    assert {"values", "indptr", "storage"} <= {key for form, _ in FORMS for key in form}
    table = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert table == KINDS


@pytest.mark.parametrize(("form", "full"), FORMS, ids=[form.get("kind", "entries") for form, _ in FORMS])
def test_a_form_of_the_page_stands_for_what_it_says(port: int, form: dict[str, Any], full: list[Any]) -> None:
    a = np.array(full, dtype=float)
    b = np.linspace(1, 2, a.shape[0])
    matrix = standing(port, form)
    reply = ask_json(port, "/v1/solve", {"matrix": matrix, "b": b.tolist()})
    assert reply.status == 200, reply.body
    np.testing.assert_allclose(a @ reply.json()["x"], b, rtol=1e-12, atol=1e-12)
    # Gradients and tangents go by what is stored.
    x, g = reply.json()["x"], np.linspace(-1, 1, a.shape[0])
    asked = {"matrix": {"ref": reply.json()["ref"]}, "cotangent": g.tolist(), "want": ["b", "values"], "x": x}
    pulled = ask_json(port, "/v1/vjp", asked).json()
    np.testing.assert_allclose(a.T @ pulled["b"], g, rtol=1e-11, atol=1e-11)
    values = np.array(pulled["values"])
    direction = np.random.default_rng(93_310_276).standard_normal(values.shape)
    moved = ask_json(port, "/v1/jvp", {"matrix": matrix, "x": x, "values_tangent": direction.tolist()}).json()
    assert np.vdot(values, direction) == pytest.approx(np.dot(g, moved["x"]), rel=1e-9)
    uploaded = ask_json(port, "/v1/matrices", matrix).json()
    assert uploaded["ref"] == reply.json()["ref"]


@pytest.mark.parametrize("name", OF_THE_SERVER)
def test_an_example_of_the_openapi_document_is_solved(port: int, name: str) -> None:
    asked = OF_THE_SERVER[name]["value"]
    if asked["matrix"].get("ref") == EXAMPLE_REF:
        assert ask_json(port, "/v1/solve", asked).json()["reason"] == "NEED_MATRIX"
        return
    reply = ask_json(port, "/v1/solve", {**asked, "matrix": standing(port, asked["matrix"])})
    assert reply.status == 200, reply.body
    assert reply.json()["certificate"]["status"] == "OK"


def test_the_openapi_document_has_every_kind() -> None:
    shown = {example["value"]["matrix"].get("kind") for example in OF_THE_SERVER.values()}
    assert shown >= KINDS


def test_updates_on_one_matrix_share_its_factor(port: int) -> None:
    rng = np.random.default_rng(55_013_822)
    s = rng.standard_normal((5, 5)) + 6 * np.eye(5)
    ref = ask_json(port, "/v1/solve", {"matrix": {"values": s.tolist()}, "b": [1.0] * 5}).json()["ref"]
    for _ in range(2):
        u, v, b = rng.standard_normal((5, 2)), rng.standard_normal((5, 2)), rng.standard_normal((5, 3))
        parts = {"U": u.tolist(), "V": v.tolist()}
        matrix = {"kind": "update", "base": {"ref": ref}, "dims": [5, 2], "parameters": parts}
        reply = ask_json(port, "/v1/solve", {"matrix": matrix, "b": b.tolist()}).json()
        np.testing.assert_allclose((s + u @ v.T) @ reply["x"], b, rtol=1e-11, atol=1e-11)
        assert reply["certificate"]["factor_hit"] is True
        assert reply["certificate"]["method"] == "update(lu)"


FORM = next(form for form, _ in FORMS if form.get("kind") == UPDATE.name)


@pytest.mark.parametrize(
    ("change", "options", "reason", "words"),
    [
        ({"base": None}, {}, "INVALID_PATTERN", "matrix"),
        ({"base": "S"}, {}, "MALFORMED", 'an object with the "ref" of S'),
        ({"base": {"values": [[1.0]]}}, {}, "MALFORMED", "send S to /v1/matrices first"),
        ({"base": {"ref": EXAMPLE_REF}}, {}, "NEED_MATRIX", "send it first"),
        ({"base": {"ref": EXAMPLE_REF, "shift": 1}}, {}, "INVALID_OPTION", '"base" has a key that is not known'),
        ({"base": {"ref": "x"}}, {}, "MALFORMED", "matrix"),
        ({"indptr": [0, 1]}, {}, "INVALID_OPTION", "a structured matrix has a key that is not known"),
        ({"parameters": {"U": [[[[1], [0], [0]]]], "V": [[[[0], [1], [0]]]]}}, {}, "INVALID_SHAPE", "(1, 1, 3, 1)"),
        ({"dtype": "float32"}, {}, "INVALID_DTYPE", "float32"),
        ({"dims": [2, 1], "parameters": {"U": [[1], [0]], "V": [[0], [1]]}}, {}, "INVALID_SHAPE", "S has shape"),
        ({"parameters": {"U": [[[1], [0], [0]]], "V": [[[0], [1], [0]]]}}, {}, "INVALID_SHAPE", "one by one"),
        ({"kind": "low_rank", "parameters": {"d": [1, 1, 1], **FORM["parameters"]}}, {}, "INVALID_PATTERN", ""),
        ({}, {"recycle": 2}, "INVALID_OPTION", "add U V^H to S"),
        ({}, {"nullspace": "constant"}, "INVALID_OPTION", "add U V^H to S"),
        ({}, {"reuse": "precondition"}, "INVALID_OPTION", "add U V^H to S"),
    ],
)
def test_faults_of_updates(port: int, change: dict[str, Any], options: dict[str, Any], reason: str, words: str) -> None:
    matrix = {key: value for key, value in {**standing(port, FORM), **change}.items() if value is not None}
    reply = ask_json(port, "/v1/solve", {"matrix": matrix, "b": [1.0, 2.0, 3.0], "options": options})
    assert reply.json()["reason"] == reason, reply.body
    assert words in reply.json()["detail"]


def test_a_first_iterate_is_refused_for_an_update(port: int) -> None:
    asked = {"matrix": standing(port, FORM), "b": [1.0, 2.0, 3.0], "x0": [1.0, 2.0, 3.0]}
    reply = ask_json(port, "/v1/solve", asked).json()
    assert (reply["reason"], "x0" in reply["detail"]) == ("INVALID_OPTION", True)
