"""What the public ``prefect-cloud`` client asks for a GitHub token: the same decisions as ``/v1``."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.issuing.repositories import RepositoryList
from broker.issuing.tokens import Issuer
from broker.web.tokens import NO_STORE, Tokens, json_response, origin_of
from broker.web.wire import MAX_PAGE, PrefectTokenBody, parse_body, presented_key, query_values, read_body

_ACCOUNT: Final = "/api/accounts/{account}/integrations/github"


class PrefectCompat:
    """Prefect Cloud's two endpoints; the account in the path may be any, the API key decides.

    Args:
        tokens: issues.
        issuer: knows callers.
        repositories: lists.
    """

    def __init__(self, tokens: Tokens, issuer: Issuer, repositories: RepositoryList) -> None:
        self._tokens = tokens
        self._issuer = issuer
        self._repositories = repositories

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(f"{_ACCOUNT}/token", self.token, methods=["POST"]),
            Route(f"{_ACCOUNT}/repositories", self.repositories, methods=["GET"]),
        ]

    async def token(self, request: Request) -> Response:
        """``POST …/integrations/github/token``.

        The client gives up after 5 s and tries again; the mint goes on meanwhile.
        """

        async def name() -> str:
            query_values(request, ())
            body = parse_body(PrefectTokenBody, await read_body(request.scope, request.receive))
            return f"{body.owner}/{body.repository}"

        issued = await self._tokens.issue_for(request, presented_key(request.scope), name)
        return json_response({"token": issued.token.token.reveal()}, headers=NO_STORE)

    async def repositories(self, request: Request) -> Response:
        """``GET …/integrations/github/repositories``: all in one list, as that client knows no pages."""
        caller = await self._issuer.admitted(presented_key(request.scope), origin_of(request.scope))
        query_values(request, ())
        names: list[str] = []
        cursor: str | None = None
        while True:
            page = await self._repositories.page(caller, cursor=cursor, limit=MAX_PAGE)
            names += [one.repository.full_name for one in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return json_response({"repositories": names}, headers=NO_STORE)
