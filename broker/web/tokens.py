"""What callers ask: tokens, repositories, who am I."""

import json
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as HttpScope

from broker.access.keys import PresentedKey
from broker.errors import InvalidRequestError, RequestError, UnknownHostError
from broker.issuing.repositories import RepositoryList
from broker.issuing.tokens import Issued, Issuer, Origin, TokenRequest
from broker.model import ApiKeyRecord, RepositoryName, Scope, parse_owner, parse_permissions
from broker.redaction import holds_secret
from broker.web.wire import (
    TokenBody,
    page_limit,
    parse_body,
    presented_key,
    presented_key_or_password,
    query_values,
    read_body,
)
from broker.wording import rfc3339

Parsed = TypeVar("Parsed")

NO_STORE: Final = {"cache-control": "no-store"}
_SECRETS_FROM: Final = 24
"""No secret of this product is shorter, most names of repositories are."""

_REMEMBERED: Final = 256
_REMEMBERED_BYTES: Final = 1024
"""So many bodies are remembered, and no longer ones."""

_FEW: Final = 20
"""So many repositories, at most, has a token whose part of the answer is remembered."""

_TOKEN_HEADERS: Final = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))


_encoder: Final = json.JSONEncoder(separators=(",", ":"))
_quoted: Final = json.encoder.encode_basestring_ascii


def encode(value: object) -> bytes:
    """Return ``value`` as JSON."""
    return _encoder.encode(value).encode()


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return ``value`` as JSON."""
    return Response(encode(value), status, headers, "application/json")


def origin_of(scope: HttpScope) -> Origin:
    """Return where a request comes from, as the edge found out."""
    state = scope["state"]
    return Origin(state["request_id"], state["client_ip"])


def key_answer(record: ApiKeyRecord, last_used_at: int | None) -> dict[str, object]:
    """Return a key's record as the contract shows it."""
    return {
        "id": record.id,
        "name": record.name,
        "role": record.role,
        "repositories": list(record.repositories),
        "permissions": dict.fromkeys(record.permissions, "read"),
        "created_at": rfc3339(record.created_at),
        "created_by": record.created_by,
        "expires_at": None if record.expires_at is None else rfc3339(record.expires_at),
        "revoked_at": None if record.revoked_at is None else rfc3339(record.revoked_at),
        "last_used_at": None if last_used_at is None else rfc3339(last_used_at),
        "rate_limit_per_minute": record.rate_limit_per_minute,
    }


def _of_field(field: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    """Return ``text`` parsed; the refusal names the field."""
    try:
        return parse(text)
    except InvalidRequestError as error:
        raise InvalidRequestError(public=f"{field}: {error.public}") from None


def _token_answer(issued: Issued) -> bytes:
    """Return a token as the contract shows it, as JSON."""
    token = issued.token
    few = token.repositories is None or len(token.repositories) <= _FEW
    render = _reach if few else _reach.__wrapped__
    reach = render(token.repositories, token.permissions, token.installation_id)
    secret, cached = _quoted(token.token.reveal()), "true" if issued.cached else "false"
    return (
        f'{{"token":{secret},"expires_at":"{rfc3339(token.expires_at)}",{reach},"cached":{cached}}}'.encode()
    )


@lru_cache(_REMEMBERED)
def _reach(repositories: tuple[str, ...] | None, permissions: tuple[str, ...], installation_id: int) -> str:
    """Return what most answers have in common with earlier ones, as members of a JSON object."""
    members = {
        "repositories": repositories,
        "permissions": dict.fromkeys(permissions, "read"),
        "installation_id": installation_id,
    }
    return _encoder.encode(members)[1:-1]


class Tokens:
    """The callers' endpoints.

    Args:
        issuer: issues.
        repositories: lists.
        host: the GitHub host that is served, lower case.
        about: the broker's version, the address of GitHub's pages and of the app's install page, as they
            are now (the app is not known before GitHub has answered once).
    """

    def __init__(
        self,
        issuer: Issuer,
        repositories: RepositoryList,
        *,
        host: str,
        about: Callable[[], dict[str, str | None]],
    ) -> None:
        self._issuer = issuer
        self._repositories = repositories
        self._host = host
        self._about = about
        # What a body means depends on nothing but its bytes; jobs send the same ones over and over.
        self._meant = lru_cache(_REMEMBERED)(self._parse)

    async def token(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        """``POST /v1/github/token``, as plain ASGI: of all routes this one is asked all the time."""
        presented, origin = presented_key(scope), origin_of(scope)
        try:
            if scope["query_string"]:
                query_values(Request(scope), ())
            body = await read_body(scope, receive)
            wanted = (self._meant if len(body) <= _REMEMBERED_BYTES else self._parse)(body)
        except RequestError as error:
            await self._issuer.refuse(presented, error, origin)
            raise
        answer = _token_answer(await self._issuer.issue(presented, wanted, origin))
        headers = [*_TOKEN_HEADERS, (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def askpass(self, request: Request) -> Response:
        """``GET /v1/git/askpass``: what git-sync reads; only a line feed ends a line."""

        async def name() -> str:
            return query_values(request, ("repository",)).get("repository", "")

        issued = await self.issue_for(request, presented_key_or_password(request.scope), name)
        text = f"username=x-access-token\npassword={issued.token.token.reveal()}\n"
        return Response(text, headers=NO_STORE, media_type="text/plain")

    async def issue_for(
        self, request: Request, presented: PresentedKey, name: Callable[[], Awaitable[str]]
    ) -> Issued:
        """Return a token of default permissions for the one repository that ``name`` reads from a request.

        A request that makes no sense is audited too.

        Raises:
            BrokerError: as ``Issuer.issue``.
        """
        origin = origin_of(request.scope)
        try:
            scope = self._scope("repository", [await name()], parse_permissions(None))
        except RequestError as error:
            await self._issuer.refuse(presented, error, origin)
            raise
        return await self._issuer.issue(presented, TokenRequest(scope), origin)

    def _scope(self, field: str, texts: list[str], permissions: tuple[str, ...]) -> Scope:
        names = [_of_field(field, RepositoryName.parse, text) for text in texts]
        # Only what has the form, and so the length, of a name is looked at: names go to GitHub and
        # into the audit.
        if any(len(text) >= _SECRETS_FROM and holds_secret(text) for text in texts):
            raise InvalidRequestError(public=f"{field}: a key or a token stands where a name should.")
        return Scope.of_repositories(self._host, names, permissions)

    def _parse(self, body: bytes) -> TokenRequest:
        return self._understood(parse_body(TokenBody, body))

    def _understood(self, body: TokenBody) -> TokenRequest:
        given = body.model_fields_set
        if ("repositories" in given) == ("owner" in given):
            raise InvalidRequestError(public="repositories: name some, or an owner instead, not both.")
        permissions = parse_permissions(body.permissions if "permissions" in given else None)
        if "repositories" in given:
            scope = self._scope("repositories", body.repositories, permissions)
        else:
            scope = Scope.of_owner(self._host, _of_field("owner", parse_owner, body.owner), permissions)
        if "host" in given and body.host.lower() != self._host:
            raise UnknownHostError
        return TokenRequest(scope, min_ttl_s=body.min_ttl, refresh=body.refresh)

    async def repositories(self, request: Request) -> Response:
        """``GET /v1/github/repositories``."""
        caller = await self._issuer.admitted(presented_key(request.scope), origin_of(request.scope))
        values = query_values(request, ("cursor", "limit"))
        page = await self._repositories.page(caller, cursor=values.get("cursor"), limit=page_limit(values))
        return json_response(
            {
                "repositories": [
                    {
                        "full_name": one.repository.full_name,
                        "private": one.repository.private,
                        "default_branch": one.repository.default_branch,
                        "archived": one.repository.archived,
                        "installation_id": one.installation_id,
                    }
                    for one in page.items
                ],
                "next_cursor": page.next_cursor,
            },
            headers=NO_STORE,
        )

    async def whoami(self, request: Request) -> Response:
        """``GET /v1/whoami``."""
        caller, last_used_at = await self._issuer.who(presented_key(request.scope), origin_of(request.scope))
        query_values(request, ())
        answer = {**key_answer(caller, last_used_at), "broker": self._about()}
        return json_response(answer, headers=NO_STORE)
