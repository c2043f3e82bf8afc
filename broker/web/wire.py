"""Bodies on the wire: strict models, and the one way in which a body or a header is read."""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from broker.access import keys
from broker.errors import (
    InvalidApiKeyError,
    InvalidRequestError,
    MalformedRequestError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)

MAX_BODY: Final = 64 * 1024
MAX_MIN_TTL_S: Final = 3300
MAX_PAGE: Final = 200
_LIMIT: Final = re.compile(r"[0-9]{1,3}", re.ASCII)
_BEARER: Final = b"bearer "

Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


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


class TokenAnswer(_Strict):
    """A token. It ends by itself at ``expires_at``."""

    token: str
    expires_at: str
    repositories: list[str] | None
    permissions: dict[str, str]
    installation_id: int
    cached: bool


class RepositoryAnswer(_Strict):
    """A repository that the caller may ask for."""

    full_name: str
    private: bool
    default_branch: str
    archived: bool
    installation_id: int


class RepositoriesAnswer(_Strict):
    """A page of repositories; it may be short and still have a cursor."""

    repositories: list[RepositoryAnswer]
    next_cursor: str | None


class KeyAnswer(_Strict):
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


class ReadyAnswer(_Strict):
    """What the background knows of the parts."""

    status: str
    checks: dict[str, str]


class ProblemAnswer(_Strict):
    """RFC 9457; ``code`` is the stable word."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


def presented_key(request: Request) -> keys.PresentedKey:
    """Return the key in the one ``Authorization: Bearer`` header.

    Raises:
        InvalidApiKeyError: none, more than one, another scheme, or a malformed key.
    """
    values = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if len(values) != 1 or not values[0].lower().startswith(_BEARER):
        raise InvalidApiKeyError("no single Authorization: Bearer header")
    try:
        return keys.parse(values[0][len(_BEARER) :].strip().decode("ascii"))
    except UnicodeDecodeError:
        raise InvalidApiKeyError("a key that is not ASCII") from None


async def read_body(request: Request, *, limit: int = MAX_BODY) -> bytes:
    """Return the body, never more than ``limit`` bytes of it in memory.

    Raises:
        PayloadTooLargeError: it is larger.
        UnsupportedMediaTypeError: it is encoded, or not declared as JSON.
    """
    headers = request.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaTypeError("a Content-Encoding")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise PayloadTooLargeError
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower()
    if kind.strip().lower() != "application/json" or charset not in {"", "charset=utf-8", 'charset="utf-8"'}:
        raise UnsupportedMediaTypeError(f"content type {kind[:60]!r}")
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise PayloadTooLargeError
        chunks.append(chunk)
    return b"".join(chunks)


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
