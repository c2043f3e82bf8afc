"""OpenAPI 3.1, made from the same models that check the requests; pure."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from broker.web.errors import TITLES
from broker.web.wire import (
    KeyAnswer,
    ProblemAnswer,
    ReadyAnswer,
    RepositoriesAnswer,
    TokenAnswer,
    TokenBody,
)

_REF: Final = "#/components/schemas/{model}"
_MODELS: Final = (KeyAnswer, ProblemAnswer, ReadyAnswer, RepositoriesAnswer, TokenAnswer, TokenBody)


def _content(model: type[BaseModel], kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _problems(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {
            "description": "a problem; `code` tells which",
            "content": _content(ProblemAnswer, "application/problem+json"),
        }
        for status in statuses
    }


def _operation(
    name: str,
    summary: str,
    answer: type[BaseModel],
    problems: tuple[int, ...],
    *,
    body: type[BaseModel] | None = None,
    query: Mapping[str, Mapping[str, Any]] | None = None,
    public: bool = False,
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "done", "content": _content(answer)}, **_problems(*problems)},
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    if query:
        operation["parameters"] = [
            {"name": key, "in": "query", "required": False, "schema": dict(schema)}
            for key, schema in query.items()
        ]
    if public:
        operation["security"] = []
    return operation


_PAGE: Final[Mapping[str, Mapping[str, Any]]] = {
    "cursor": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
}


def document() -> dict[str, Any]:
    """Return the document."""
    _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GitHub App token broker",
            "version": version("github-token-broker"),
            "description": "Mints short-lived, read-only, repository-scoped GitHub tokens. Problem codes: "
            + ", ".join(f"`{code}`" for code in sorted(TITLES)),
        },
        "security": [{"apiKey": []}],
        "components": {
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "`ghbk_<id>_<secret><check>`"}
            },
            "schemas": schemas["$defs"],
        },
        "paths": {
            "/v1/github/token": {
                "post": _operation(
                    "issueToken",
                    "A read-only token for some repositories of one owner",
                    TokenAnswer,
                    (400, 401, 403, 404, 413, 415, 422, 429, 502, 503, 504),
                    body=TokenBody,
                )
            },
            "/v1/github/repositories": {
                "get": _operation(
                    "listRepositories",
                    "Repositories that the app reaches and this key may ask for",
                    RepositoriesAnswer,
                    (401, 422, 429, 502, 503, 504),
                    query=_PAGE,
                )
            },
            "/v1/whoami": {
                "get": _operation("whoAmI", "The caller's own record", KeyAnswer, (401, 422, 429, 503))
            },
            "/livez": {"get": _operation("live", "The process answers", ReadyAnswer, (), public=True)},
            "/readyz": {
                "get": _operation("ready", "State of the parts", ReadyAnswer, (), public=True)
                | {
                    "responses": {
                        status: {"description": what, "content": _content(ReadyAnswer)}
                        for status, what in (("200", "ready"), ("503", "the store has not answered yet"))
                    }
                }
            },
        },
    }
