"""The OpenAPI document: valid, complete, and true to the routes."""

import json
import re
from collections.abc import Iterator
from typing import Any

from harness import World
from starlette.routing import Route, Router

from broker.build import build, build_app
from broker.web.middleware import Edge
from broker.web.openapi import document

DESCRIBES_ITSELF = ("/openapi.json", "get")


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def test_every_reference_resolves() -> None:
    made = document()
    references = {node["$ref"] for node in nodes(made) if isinstance(node.get("$ref"), str)}
    assert references
    for reference in references:
        target: Any = made
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert target
    used = {reference.rpartition("/")[2] for reference in references}
    assert used == set(made["components"]["schemas"])


def test_its_shape() -> None:
    made = document()
    assert made["openapi"].startswith("3.1.")
    assert {"title", "version"} <= set(made["info"])
    names = []
    for path, item in made["paths"].items():
        assert path.startswith("/")
        for method, operation in item.items():
            assert method in {"get", "post", "put", "patch", "delete"}
            names.append(operation["operationId"])
            assert operation["responses"]
            for status, answer in operation["responses"].items():
                assert 200 <= int(status) < 600
                assert answer["description"]
            for parameter in operation.get("parameters", []):
                assert {"name", "in", "schema"} <= set(parameter)
            for scheme in operation.get("security", []):
                assert set(scheme) <= set(made["components"]["securitySchemes"])
    assert len(names) == len(set(names))
    json.dumps(made)


async def test_it_names_every_route_and_no_other(world: World) -> None:
    edge = build_app(build(world.settings()))
    assert isinstance(edge, Edge)
    assert isinstance(edge._app, Router)
    routes = {
        (re.sub(r"\{\w+\}", "{}", route.path), method.lower())
        for route in edge._app.routes
        if isinstance(route, Route)
        for method in (route.methods or ())
        if method != "HEAD"
    }
    described = {
        (re.sub(r"\{\w+\}", "{}", path), method)
        for path, item in document()["paths"].items()
        for method in item
    }
    assert routes - {DESCRIBES_ITSELF} == described - {DESCRIBES_ITSELF}


def test_bodies_and_answers_are_strict() -> None:
    for name, schema in document()["components"]["schemas"].items():
        if name != "EventAnswer":  # audit events say more or less, by their kind
            assert schema["additionalProperties"] is False, name
