"""OpenAPI 3.1, made from the same models that check the requests; pure."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from broker.ports import Event
from broker.web.errors import TITLES
from broker.web.wire import (
    AuditAnswer,
    BlockAnswer,
    BlockBody,
    BlocksAnswer,
    InstallationAnswer,
    InstallationsAnswer,
    KeyAnswer,
    KeyBody,
    KeyPatch,
    KeysAnswer,
    NewKeyAnswer,
    NoBody,
    PrefectRepositoriesAnswer,
    PrefectTokenAnswer,
    PrefectTokenBody,
    ProblemAnswer,
    ReadyAnswer,
    RepositoriesAnswer,
    RevocationAnswer,
    RevocationBody,
    RotateBody,
    SyncAnswer,
    TokenAnswer,
    TokenBody,
    WebhookAnswer,
    WhoAmIAnswer,
)

_REF: Final = "#/components/schemas/{model}"
_MODELS: Final[tuple[type[BaseModel], ...]] = (
    AuditAnswer,
    BlockAnswer,
    BlockBody,
    BlocksAnswer,
    InstallationAnswer,
    InstallationsAnswer,
    KeyAnswer,
    KeyBody,
    KeyPatch,
    KeysAnswer,
    NewKeyAnswer,
    NoBody,
    PrefectRepositoriesAnswer,
    PrefectTokenAnswer,
    PrefectTokenBody,
    ProblemAnswer,
    ReadyAnswer,
    RepositoriesAnswer,
    RevocationAnswer,
    RevocationBody,
    RotateBody,
    SyncAnswer,
    TokenAnswer,
    TokenBody,
    WebhookAnswer,
    WhoAmIAnswer,
)


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
    answer: type[BaseModel] | None,
    problems: tuple[int, ...],
    *,
    status: int = 200,
    body: type[BaseModel] | None = None,
    body_required: bool = True,
    path: Sequence[str] = (),
    query: Mapping[str, Mapping[str, Any]] | None = None,
    public: bool = False,
) -> dict[str, Any]:
    done = {"description": "done"} | ({} if answer is None else {"content": _content(answer)})
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {str(status): done, **_problems(*problems)},
    }
    if body is not None:
        operation["requestBody"] = {"required": body_required, "content": _content(body)}
    parameters = [
        {"name": key, "in": "path", "required": True, "schema": {"type": "string"}} for key in path
    ] + [
        {"name": key, "in": "query", "required": False, "schema": dict(schema)}
        for key, schema in (query or {}).items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if public:
        operation["security"] = []
    return operation


_PAGE: Final[Mapping[str, Mapping[str, Any]]] = {
    "cursor": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
}


_READ: Final = (401, 403, 422, 429, 503)
_WRITE: Final = (400, 401, 403, 413, 415, 422, 429, 503)
_AUDIT: Final[Mapping[str, Mapping[str, Any]]] = {
    "key": {"type": "string", "description": "a key's id"},
    "repository": {"type": "string", "description": "`owner/repo`"},
    "event": {"type": "string", "enum": [str(event) for event in Event]},
    "request_id": {"type": "string"},
    "since": {"type": "string", "format": "date-time"},
    "until": {"type": "string", "format": "date-time", "description": "not included"},
    "order": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
    **_PAGE,
}


def _webhook() -> dict[str, Any]:
    operation = _operation(
        "receiveWebhook",
        "A signed delivery from GitHub; it can only make the broker forget what it has cached",
        WebhookAnswer,
        (400, 401, 413, 415, 503),
        public=True,
    )
    kept = {"description": "queued, or nothing to do", "content": _content(WebhookAnswer)}
    seen = {"description": "seen before", "content": _content(WebhookAnswer)}
    responses = operation["responses"] | {"200": seen, "202": kept}
    header = {"type": "string", "pattern": "^sha256=[0-9a-f]{64}$"}
    signature = {"name": "X-Hub-Signature-256", "in": "header", "required": True, "schema": header}
    return operation | {"responses": responses, "parameters": [signature]}


def _admin_paths() -> dict[str, Any]:
    return {
        "/v1/admin/keys": {
            "get": _operation("listKeys", "Keys, oldest first", KeysAnswer, _READ, query=_PAGE),
            "post": _operation(
                "createKey", "A new key, shown this one time", NewKeyAnswer, _WRITE, status=201, body=KeyBody
            ),
        },
        "/v1/admin/keys/{id}": {
            "get": _operation("showKey", "A key's record", KeyAnswer, (*_READ, 404), path=("id",)),
            "patch": _operation(
                "changeKey",
                "Change what a key may do, at once and on every replica",
                KeyAnswer,
                (*_WRITE, 404, 409),
                body=KeyPatch,
                path=("id",),
            ),
            "delete": _operation(
                "revokeKey",
                "End a key, at once and on every replica; with `revoke` also every live token it was handed",
                RevocationAnswer,
                (*_READ, 404, 409),
                path=("id",),
                query={"tokens": {"type": "string", "enum": ["keep", "revoke"], "default": "keep"}},
            ),
        },
        "/v1/admin/keys/{id}/rotate": {
            "post": _operation(
                "rotateKey",
                "A new key of the same policy; the old one ends, at once or after the overlap",
                NewKeyAnswer,
                (*_WRITE, 404, 409),
                status=201,
                body=RotateBody,
                body_required=False,
                path=("id",),
            )
        },
        "/v1/admin/revocations": {
            "post": _operation(
                "revoke",
                "End every live token in reach, at once here and within seconds at GitHub",
                RevocationAnswer,
                (*_WRITE, 404),
                body=RevocationBody,
            )
        },
        "/v1/admin/blocks": {
            "get": _operation("listBlocks", "What is blocked", BlocksAnswer, _READ, query=_PAGE)
        },
        "/v1/admin/blocks/{owner}": _block_methods("Owner", ("owner",)),
        "/v1/admin/blocks/{owner}/{repo}": _block_methods("Repository", ("owner", "repo")),
        "/v1/admin/installations": {
            "get": _operation(
                "listInstallations", "Where the app is installed", InstallationsAnswer, _READ, query=_PAGE
            )
        },
        "/v1/admin/installations/sync": {
            "post": _operation(
                "syncInstallations",
                "Read the installations from GitHub again",
                SyncAnswer,
                (*_WRITE, 502, 504),
                body=NoBody,
                body_required=False,
            )
        },
        "/v1/admin/owners/{owner}/accept": {
            "post": _operation(
                "acceptOwner",
                "Accept that another account has an owner's name now",
                InstallationAnswer,
                (*_WRITE, 404, 409),
                body=NoBody,
                body_required=False,
                path=("owner",),
            )
        },
        "/v1/admin/audit": {
            "get": _operation(
                "listEvents", "What was issued, refused and changed", AuditAnswer, _READ, query=_AUDIT
            )
        },
    }


def _block_methods(what: str, path: tuple[str, ...]) -> dict[str, Any]:
    return {
        "put": _operation(
            f"block{what}",
            "Forbid all tokens that reach it, and end those that live",
            RevocationAnswer,
            _WRITE,
            body=BlockBody,
            path=path,
        ),
        "get": _operation(f"show{what}Block", "A block", BlockAnswer, (*_READ, 404), path=path),
        "delete": _operation(f"unblock{what}", "Lift a block", None, (*_READ, 404), status=204, path=path),
    }


def _file(
    name: str, summary: str, *kinds: str, path: tuple[str, ...] = (), status: int = 200
) -> dict[str, Any]:
    """Return an operation of the client's index, open to all; installers may ask with HEAD as well."""
    problems = (404, 500) if path else ()
    operation = _operation(name, summary, None, problems, status=status, path=path, public=True)
    if kinds:
        operation["responses"][str(status)]["content"] = {kind: {} for kind in kinds}
    return operation


def _index_paths() -> dict[str, Any]:
    pages = ("text/html", "application/vnd.pypi.simple.v1+json")
    return {
        "/simple/": {"get": _file("listProjects", "The client's own Python index (PEP 503, 691)", *pages)},
        "/simple/{project}/": {
            "get": _file(
                "listWheels",
                "Wheels of `broker-cli`; 404 for every other project, so that installers go on",
                *pages,
                path=("project",),
            )
        },
        "/simple/{project}/{file}": {
            "get": _file(
                "downloadWheel",
                "A wheel, or with `.metadata` behind its name its metadata (PEP 658)",
                "application/octet-stream",
                "text/plain",
                path=("project", "file"),
            )
        },
        "/broker-cli/": {
            "get": _file("redirectToIndex", "Redirects to `/simple/broker-cli/`", status=301),
        },
    }


def _prefect_paths() -> dict[str, Any]:
    root = "/api/accounts/{account}/integrations/github"
    return {
        f"{root}/token": {
            "post": _operation(
                "issuePrefectToken",
                "As `/v1/github/token`, for the public `prefect-cloud` client; `account` may be any",
                PrefectTokenAnswer,
                (400, 401, 403, 404, 413, 415, 422, 429, 502, 503, 504),
                body=PrefectTokenBody,
                path=("account",),
            )
        },
        f"{root}/repositories": {
            "get": _operation(
                "listPrefectRepositories",
                "As `/v1/github/repositories` in one page, for the public `prefect-cloud` client",
                PrefectRepositoriesAnswer,
                (401, 422, 429, 502, 503, 504),
                path=("account",),
            )
        },
    }


def _askpass() -> dict[str, Any]:
    operation = _operation(
        "askpass",
        "A token as two lines, `username=` and `password=`: what git-sync's `--askpass-url` reads",
        None,
        (401, 403, 404, 422, 429, 502, 503, 504),
        query={"repository": {"type": "string", "description": "`owner/repo`"}},
    )
    operation["parameters"][0]["required"] = True
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return operation | {"security": [{"apiKey": []}, {"apiKeyAsPassword": []}]}


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
                "apiKey": {"type": "http", "scheme": "bearer", "description": "`ghbk_<id>_<secret><check>`"},
                "apiKeyAsPassword": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "the key is the password; the user may be any, or empty",
                },
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
                "get": _operation(
                    "whoAmI",
                    "The caller's own record, and what a client has to know to set itself up",
                    WhoAmIAnswer,
                    (401, 422, 429, 503),
                )
            },
            "/v1/git/askpass": {"get": _askpass()},
            **_admin_paths(),
            **_index_paths(),
            **_prefect_paths(),
            "/webhooks/github": {"post": _webhook()},
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
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Metrics of all workers; not here if they have a port of their own",
                    "security": [],
                    "responses": {
                        "200": {
                            "description": "Prometheus text",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        }
                    },
                }
            },
        },
    }
