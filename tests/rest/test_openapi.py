"""The OpenAPI document: whole, consistent, and true of the routes and of what they answer."""

import re
from typing import Any

import pytest

from backsolve_service.rest.app import _table
from backsolve_service.rest.handlers import Handlers
from backsolve_service.rest.openapi import document
from backsolve_service.rest.uploads import READERS
from support.rest import ask, ask_json

DOCUMENT = document()
SCHEMAS = DOCUMENT["components"]["schemas"]
METHODS = ("get", "put", "post", "delete", "head")


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        home, name = schema["$ref"].rsplit("/", 1)
        assert home == "#/components/schemas"
        schema = SCHEMAS[name]
    return schema


def check(value: Any, schema: dict[str, Any], where: str = "") -> None:
    """The part of JSON Schema that the document uses."""
    schema = resolve(schema)
    if "oneOf" in schema:
        fitting = [option for option in schema["oneOf"] if fits(value, option)]
        assert len(fitting) == 1, f"{where}: {len(fitting)} of oneOf fit"
    if "enum" in schema:
        assert value in schema["enum"], where
    kinds = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool}
    if schema.get("type") in kinds:
        assert isinstance(value, kinds[schema["type"]]), f"{where} is not {schema['type']}"
    if schema.get("type") == "null":
        assert value is None, where
    if "pattern" in schema:
        assert re.search(schema["pattern"], value), where
    if isinstance(value, list) and "items" in schema:
        for item in value:
            check(item, schema["items"], f"{where}[]")
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", ())) <= set(value), where
        for key, item in value.items():
            if key in properties:
                check(item, properties[key], f"{where}.{key}")
            else:
                assert schema.get("additionalProperties", True) is not False, f"{where} has {key}"


def fits(value: Any, schema: dict[str, Any]) -> bool:
    try:
        check(value, schema)
    except AssertionError:
        return False
    return True


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, item[method]) for path, item in DOCUMENT["paths"].items() for method in METHODS if method in item
    ]


def test_it_names_every_route_and_no_other() -> None:
    table = _table(Handlers.__new__(Handlers), {})
    routes = {(path, method.lower()) for path, by_method in table for method in by_method}
    assert {(path, method) for path, method, _ in operations()} == routes


def test_every_reference_resolves_and_every_schema_is_used() -> None:
    used: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                resolve(node)
                used.add(node["$ref"].rsplit("/", 1)[1])
            for item in node.values():
                walk(item)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(DOCUMENT)
    assert used == set(SCHEMAS)


def test_operations_are_complete() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    for path, method, operation in operations():
        assert operation["summary"], path
        assert operation["responses"], path
        for status, response in operation["responses"].items():
            assert re.fullmatch("[1-5][0-9][0-9]", status)
            assert response["description"]
        declared = {p["name"] for p in (*operation["parameters"], *DOCUMENT["paths"][path].get("parameters", ()))}
        assert set(re.findall(r"{(\w+)}", path)) <= declared
        for parameter in operation["parameters"]:
            assert parameter["in"] in ("header", "query", "path")
            assert parameter["schema"]
        if method in ("post", "put"):
            assert operation["requestBody"]["content"], path
            assert "415" in operation["responses"]
            assert "413" in operation["responses"]
    assert set(DOCUMENT["paths"]["/v1/matrices"]["post"]["requestBody"]["content"]) == set(READERS)


def examples() -> list[tuple[str, Any, dict[str, Any]]]:
    found = []
    for path, _, operation in operations():
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (media for body in bodies for media in body.get("content", {}).values()):
            values = [example["value"] for example in content.get("examples", {}).values()]
            values += [content["example"]] if "example" in content else []
            found += [(path, value, content["schema"]) for value in values]
    return found


def test_every_example_fits_its_schema() -> None:
    assert len(examples()) > 20
    for path, example, schema in examples():
        check(example, schema, path)


def test_request_examples_are_answered_as_documented(port: int) -> None:
    bodies = DOCUMENT["paths"]["/v1/solve"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for name, example in bodies.items():
        reply = ask_json(port, "/v1/solve", example["value"])
        schema = DOCUMENT["paths"]["/v1/solve"]["post"]["responses"][str(reply.status)]["content"]
        # The matrix that two of them name is not held here (`test_json_forms.py` has them solved).
        assert reply.status == (404 if name in ("by reference", "update") else 200), name
        check(reply.json(), schema[reply.headers["content-type"]]["schema"], name)


@pytest.mark.parametrize("path", [path for path, method, _ in operations() if method == "get"])
def test_pages_are_as_documented(port: int, path: str) -> None:
    reply = ask(port, "GET", path)
    content = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]
    kind = reply.headers["content-type"].partition(";")[0]
    assert reply.status == 200
    if kind == "application/json":
        check(reply.json(), content[kind]["schema"], path)
    else:
        assert kind in content


def test_the_page_is_the_document(port: int) -> None:
    assert ask(port, "GET", "/openapi.json").json() == DOCUMENT
    assert DOCUMENT["openapi"] == "3.1.0"
