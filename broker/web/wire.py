"""Bodies on the wire: strict models, and the one way in which a body or a header is read."""

import base64
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from broker.access import keys
from broker.errors import (
    InvalidApiKeyError,
    InvalidRequestError,
    MalformedRequestError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)
from broker.web.patience import Patience

MAX_BODY: Final = 64 * 1024
BODY_WITHIN_S: Final = 10.0
MAX_MIN_TTL_S: Final = 3300
MAX_PAGE: Final = 200
MAX_OVERLAP_S: Final = 7 * 86400
MAX_ID: Final = 2**53 - 1
WHOLE_BODY: Final = "broker.whole_body"
"""An ASGI extension of our server: the body, where all of it came with the head."""

_LIMIT: Final = re.compile(r"[0-9]{1,3}", re.ASCII)
_BEARER: Final = b"bearer "
_BASIC: Final = b"basic "
_BODIES: Final = Patience()
_CHARSETS: Final = frozenset({b"", b"charset=utf-8", b'charset="utf-8"'})

Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class _Described(_Strict):
    """What is answered: for the description only, so that no validator is made at start."""

    model_config = ConfigDict(defer_build=True)


class TokenBody(_Strict):
    """``POST /v1/github/token``: repositories of one owner, or all that an owner's installation reaches."""

    repositories: Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=500,
            description="`owner/repo`, all of one owner",
            examples=[["acme/widgets"]],
        ),
    ] = []
    owner: Annotated[
        str, Field(description="instead of `repositories`: everything that the app reaches there")
    ] = ""
    permissions: Annotated[
        dict[str, str],
        Field(description="name to level; the only level is `read`", examples=[{"contents": "read"}]),
    ] = {}
    min_ttl: Annotated[int, Field(ge=0, le=MAX_MIN_TTL_S, description="least remaining life in seconds")] = 0
    refresh: Annotated[bool, Field(description="mint anew even if a token is cached")] = False
    host: Annotated[str, Field(description="refused if it is not the host that this broker serves")] = ""


class TokenAnswer(_Described):
    """A token. It ends by itself at ``expires_at``."""

    token: str
    expires_at: str
    repositories: list[str] | None
    permissions: dict[str, str]
    installation_id: int
    cached: bool


class PrefectTokenBody(_Strict):
    """``POST /api/accounts/{account}/integrations/github/token``, as ``prefect-cloud`` sends it."""

    owner: Annotated[str, Field(examples=["acme"])]
    repository: Annotated[str, Field(description="without its owner", examples=["widgets"])]


class PrefectTokenAnswer(_Described):
    """A token for that repository."""

    token: str


class PrefectRepositoriesAnswer(_Described):
    """All of them, as ``owner/repo``; that client knows no pages."""

    repositories: list[str]


class RepositoryAnswer(_Described):
    """A repository that the caller may ask for."""

    full_name: str
    private: bool
    default_branch: str
    archived: bool
    installation_id: int


class RepositoriesAnswer(_Described):
    """A page of repositories; it may be short and still have a cursor."""

    repositories: list[RepositoryAnswer]
    next_cursor: str | None


class KeyAnswer(_Described):
    """A key's record, without its hash."""

    id: str
    name: str
    role: str
    repositories: list[str]
    permissions: dict[str, str]
    created_at: str
    created_by: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    rate_limit_per_minute: int | None


class BrokerAnswer(_Described):
    """What a client has to know of the broker to set itself up."""

    version: str
    github_url: str
    install_url: str | None


class WhoAmIAnswer(KeyAnswer):
    """The caller's own record, and whom it is talking to."""

    broker: BrokerAnswer


Patterns = Annotated[
    list[Annotated[str, Field(max_length=200)]],
    Field(
        max_length=1000,
        description="`owner/repo`, `owner/*`, `owner/prefix-*` or `*/*`",
        examples=[["acme/*"]],
    ),
]
Permissions = Annotated[
    dict[str, str],
    Field(description="the most that it may ask for; the only level is `read`"),
]
Expiry = Annotated[
    str | None,
    Field(max_length=40, description="RFC 3339, null for never", examples=["2026-11-22T10:00:00Z"]),
]
RateLimit = Annotated[
    int | None, Field(ge=1, le=1_000_000, description="requests a minute, null for no limit")
]
Name = Annotated[str, Field(min_length=1, max_length=200, description="what or who it is for")]
Reason = Annotated[str, Field(min_length=1, max_length=200, description="why; for the audit")]


class KeyBody(_Strict):
    """``POST /v1/admin/keys``. Only an admin key may have no repositories."""

    name: Name
    repositories: Patterns = []
    role: Literal["caller", "admin"] = "caller"
    permissions: Permissions = {}
    expires_at: Expiry = None
    rate_limit_per_minute: RateLimit = None


class KeyPatch(_Strict):
    """``PATCH /v1/admin/keys/{id}``: what is left out stays; at least one field."""

    name: Name = ""
    repositories: Patterns = []
    permissions: Permissions = {}
    expires_at: Expiry = None
    rate_limit_per_minute: RateLimit = None


class RotateBody(_Strict):
    """``POST /v1/admin/keys/{id}/rotate``."""

    overlap_seconds: Annotated[
        int, Field(ge=0, le=MAX_OVERLAP_S, description="for so long the old key works as well")
    ] = 0


class RevocationBody(_Strict):
    """``POST /v1/admin/revocations``: exactly one of what is to be revoked, and why."""

    repository: Annotated[str, Field(max_length=200, examples=["acme/widgets"])] = ""
    owner: Annotated[str, Field(max_length=100, examples=["acme"])] = ""
    installation_id: Annotated[int, Field(ge=1, le=MAX_ID)] = 0
    token_sha256: Annotated[
        str, Field(max_length=44, description="base64 of the token's SHA-256, GitHub's `hashed_token`")
    ] = ""
    all: Annotated[bool, Field(description="`true`: every live token")] = False
    reason: Reason


class BlockBody(_Strict):
    """``PUT /v1/admin/blocks/{owner}[/{repo}]``."""

    reason: Reason


class NoBody(_Strict):
    """Nothing: an empty body, or an empty object."""


class NewKeyAnswer(KeyAnswer):
    """A key's record, and the key itself this one time."""

    key: str


class KeysAnswer(_Described):
    """A page of keys, in order of their creation."""

    keys: list[KeyAnswer]
    next_cursor: str | None


class RemainingAnswer(_Described):
    """A token that still lives."""

    token_sha256: str
    expires_at: str


class RevocationAnswer(_Described):
    """What became of the tokens in reach; those that remain are worked off until dead or expired."""

    revoked: int
    failed: int
    pending: int
    remaining: Annotated[list[RemainingAnswer], Field(description="at most 100")]


class BlockAnswer(_Described):
    """A block of an owner, or of one repository."""

    owner: str
    repository: Annotated[str | None, Field(description="`owner/repo`; null for the whole owner")]
    by: str
    reason: str
    created_at: str


class BlocksAnswer(_Described):
    """A page of blocks: owners first, then repositories, in order of their names."""

    blocks: list[BlockAnswer]
    next_cursor: str | None


class AppAnswer(_Described):
    """The app."""

    id: int
    slug: str


class InstallationAnswer(_Described):
    """The app on one owner, as GitHub last told."""

    id: int
    app: Annotated[AppAnswer | None, Field(description="null until GitHub has told who the app is")]
    owner: str
    account_id: int
    repository_selection: str
    suspended: bool
    permissions: Annotated[dict[str, str], Field(description="what the owner granted")]
    live_tokens: Annotated[int | None, Field(description="null where they are not counted")]
    checked_at: str
    foreign: Annotated[bool, Field(description="another account than the one first seen under this name")]
    blocked_reason: Annotated[str | None, Field(description="null if tokens are issued")]


class InstallationsAnswer(_Described):
    """A page of installations, in order of their owners' names."""

    installations: list[InstallationAnswer]
    next_cursor: str | None


class SyncAnswer(_Described):
    """How many installations were found to be what."""

    unchanged: int
    added: int
    changed: int
    removed: int


class EventAnswer(BaseModel):
    """An audit event; which further fields it has depends on what happened."""

    model_config = ConfigDict(defer_build=True)

    id: str
    time: str
    event: str
    request_id: str | None = None
    key_id: str | None = None
    key_name: str | None = None
    owner: str | None = None
    client_ip: str | None = None
    repositories: list[str] | None = None
    permissions: dict[str, str] | None = None
    installation_id: int | None = None
    token_sha256: str | None = None
    expires_at: str | None = None
    cached: bool | None = None
    count: int | None = None
    code: str | None = None
    reason: str | None = None


class AuditAnswer(_Described):
    """A page of audit events; it may be short and still have a cursor.

    With `order=asc` the cursor is there even on the last page, for following: no events and the cursor
    that was given mean that nothing is new.
    """

    events: list[EventAnswer]
    next_cursor: str | None


class WebhookAnswer(_Described):
    """What became of a delivery: ``accepted``, ``ignored`` (nothing to forget) or ``duplicate``."""

    status: str


class ReadyAnswer(_Described):
    """What the background knows of the parts."""

    status: str
    checks: dict[str, str]


class ProblemAnswer(_Described):
    """RFC 9457; ``code`` is the stable word."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


def presented_key(scope: Scope) -> keys.PresentedKey:
    """Return the key in the one ``Authorization: Bearer`` header.

    Raises:
        InvalidApiKeyError: none, more than one, another scheme, or a malformed key.
    """
    value = _authorization(scope)
    if value[: len(_BEARER)].lower() != _BEARER:
        raise InvalidApiKeyError("no Authorization: Bearer header")
    return keys.parse(value[len(_BEARER) :].strip().decode("latin-1"))


def presented_key_or_password(scope: Scope) -> keys.PresentedKey:
    """Return the key in the one ``Authorization`` header: as ``Bearer``, or as the password of ``Basic``.

    Who the ``Basic`` user is does not matter; a URL's user information may have an empty one.

    Raises:
        InvalidApiKeyError: as ``presented_key``.
    """
    value = _authorization(scope)
    if not value.lower().startswith(_BASIC):
        return presented_key(scope)
    try:
        pair = base64.b64decode(value[len(_BASIC) :].strip(), validate=True)
    except ValueError:
        raise InvalidApiKeyError("Authorization: Basic that is not base64") from None
    return keys.parse(pair.partition(b":")[2].strip().decode("latin-1"))


def _authorization(scope: Scope) -> bytes:
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        raise InvalidApiKeyError("no single Authorization header")
    return values[0]


async def read_body(scope: Scope, receive: Receive, *, limit: int = MAX_BODY) -> bytes:
    """Return the body, never more than ``limit`` bytes of it in memory.

    Raises:
        PayloadTooLargeError: it is larger.
        UnsupportedMediaTypeError: it is encoded, or not declared as JSON.
    """
    _check_declared(scope, limit)
    if (extensions := scope.get("extensions")) and (whole := extensions.get(WHOLE_BODY)) is not None:
        if len(whole) > limit:
            raise PayloadTooLargeError
        here: bytes = whole
        return here
    body = bytearray()
    try:
        with _BODIES.at_most(BODY_WITHIN_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > limit:
                    raise PayloadTooLargeError
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise MalformedRequestError(public="The body did not arrive in time.") from None


def _check_declared(scope: Scope, limit: int) -> None:
    """Refuse a body by what its headers say of it."""
    declared = kind = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            declared = value
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise UnsupportedMediaTypeError("a Content-Encoding")
    if declared.isdigit() and int(declared) > limit:
        raise PayloadTooLargeError
    if kind != b"application/json" and not _is_json(kind):
        raise UnsupportedMediaTypeError(f"content type {kind[:60]!r}")


def _is_json(content_type: bytes) -> bool:
    kind, _, parameters = content_type.lower().partition(b";")
    return kind.strip() == b"application/json" and parameters.strip() in _CHARSETS


async def read_optional_body(request: Request) -> bytes:
    """Return the body of a call that needs none: an empty object if there is none.

    Raises:
        PayloadTooLargeError, UnsupportedMediaTypeError: as ``read_body``.
    """
    headers = request.headers
    if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
        return b"{}"
    return await read_body(request.scope, request.receive)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedRequestError(public="The body names a field twice.")
    return found


def _no_constant(name: str) -> float:
    raise MalformedRequestError(public=f"{name} is not JSON.")


def parse_body(model: type[Model], body: bytes) -> Model:
    """Return ``body`` as ``model``.

    Raises:
        MalformedRequestError: not one JSON object in UTF-8, or a field twice.
        InvalidRequestError: wrong shape or values; the text names the field and repeats no value.
    """
    try:
        found = json.loads(
            body.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise MalformedRequestError from None
    if not isinstance(found, dict):
        raise MalformedRequestError(public="The body has to be a JSON object.")
    try:
        return model.model_validate(found)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(_printable(str(part)) for part in problem["loc"]) or "body"
        raise InvalidRequestError(public=f"{where}: {problem['msg']}") from None


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() and char.isascii() else "?" for char in text[:60])


def query_values(request: Request, allowed: Iterable[str]) -> dict[str, str]:
    """Return the query's values.

    Raises:
        InvalidRequestError: a parameter that does not exist, or one given twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in allowed:
            raise InvalidRequestError(public=f"{_printable(name)}: there is no such parameter.")
        if name in found:
            raise InvalidRequestError(public=f"{name}: given twice.")
        found[name] = value
    return found


def page_limit(values: dict[str, str]) -> int:
    """Return ``limit`` of a query, 1 to 200, default 50.

    Raises:
        InvalidRequestError: it is anything else.
    """
    text = values.get("limit", "50")
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidRequestError(public=f"limit: a number from 1 to {MAX_PAGE}.")
    return int(text)
