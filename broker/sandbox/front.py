"""The ASGI front: journal, faults and latency around the routes, and GitHub's headers on every reply."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlette.requests import ClientDisconnect, Request

from broker.sandbox import app_jwt, shapes
from broker.sandbox.exchange import (
    API_VERSIONS,
    JSON_TYPE,
    OLDER_VERSION,
    Exchange,
    RefusalError,
    Reply,
    Route,
    Urls,
)
from broker.sandbox.git import GitRefusalError
from broker.sandbox.journal import Call, authorization_kind
from broker.sandbox.server import RESET_EXTENSION, WRITE_EXTENSION
from broker.sandbox.state import Standing

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from broker.sandbox.exchange import Deferred
    from broker.sandbox.faults import Fault
    from broker.sandbox.github import EmulatedGitHub

_MOST_BYTES = 64 * 1024 * 1024
_HOLD_POLL_S = 0.005
_NO_USER_AGENT = (
    "<html><head><title>403 Forbidden</title></head><body>Request forbidden by administrative rules. "
    "Please make sure your request has a User-Agent header "
    "(https://docs.github.com/en/rest/overview/resources-in-the-rest-api#user-agent-required). "
    "Check https://developer.github.com for other possible causes.</body></html>\n"
)


class Front:
    """One ASGI app for the API (under its prefix) and git (at the root)."""

    def __init__(self, github: EmulatedGitHub, *, api_prefix: str = "") -> None:
        self._github = github
        self._prefix = api_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI asks."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            request = Request(scope, receive)
            try:
                body = await _body(request)
            except ClientDisconnect:
                return
            await self._answer(request, body, send)

    async def _answer(self, request: Request, body: bytes | None, send: Send) -> None:
        begun = time.perf_counter()
        github = self._github
        surface, path = self._surface(request)
        route, parameters = self._route(surface, request.method, path)
        call = github.note(_call(request, route, path, body, at=github.now()))
        for observer in list(github.observers):
            observer(call)
        fault = github.faults.take(call)
        urls = self._urls(request)
        await asyncio.sleep(github.latency_s + github.route_latency_s.get(call.route, 0.0))
        if fault is not None and not fault.after_effect:
            await _wait(fault)
        if fault is not None and fault.replaces and not fault.after_effect:
            reply = fault.reply(docs_url=urls.docs)
        elif body is None:
            reply = _envelope(RefusalError(413, "Payload Too Large"), urls)
        else:
            reply = await self._work(call, route, parameters, body, urls)
        if fault is not None:
            if fault.after_effect:
                await _wait(fault)
                if fault.replaces:
                    reply = fault.reply(docs_url=urls.docs)
            if fault.rewrite is not None and reply.body:
                reply.body = json.dumps(fault.rewrite(json.loads(reply.body))).encode()
            reply.headers |= fault.extra_headers(github.now())
            if fault.reset:
                await _reset(request)
                return
        call.status = reply.status
        self._dress(reply, call, surface)
        await _send(request, reply, send, fault)
        call.took_s = time.perf_counter() - begun

    def _surface(self, request: Request) -> tuple[str, str]:
        # the path as sent: an encoded slash must stay within its segment
        path = request.scope.get("raw_path", request.scope["path"].encode()).decode("latin-1")
        if self._prefix:
            below = path.removeprefix(self._prefix)
            return ("api", below) if below != path and below.startswith("/") else ("web", path)
        web = any(
            route.surface == "web" and route.match(request.method, path) is not None
            for route in self._github.routes
        )
        return ("web" if web else "api"), path

    def _route(self, surface: str, method: str, path: str) -> tuple[Route | None, dict[str, str]]:
        for route in self._github.routes:
            if route.surface == surface:
                found = route.match(method, path)
                if found is not None:
                    return route, {name: unquote(value) for name, value in found.items()}
        return None, {}

    def _urls(self, request: Request) -> Urls:
        host = request.headers.get("host", "127.0.0.1")
        web = f"{request.scope['scheme']}://{host}"
        docs = "https://docs.github.com/rest"
        if self._prefix:
            docs = "https://docs.github.com/enterprise-server@3.17/rest"
        return Urls(api=web + self._prefix, web=web, docs=docs)

    async def _work(
        self, call: Call, route: Route | None, parameters: dict[str, str], body: bytes, urls: Urls
    ) -> Reply:
        try:
            with self._github.lock:
                done = self._handle(call, route, parameters, body, urls)
        except GitRefusalError as refusal:
            headers = {"content-type": "text/plain; charset=utf-8", **refusal.headers}
            return Reply(refusal.status, refusal.message.encode(), headers)
        except RefusalError as refusal:
            return _envelope(refusal, urls)
        return done if isinstance(done, Reply) else await done()

    def _handle(
        self, call: Call, route: Route | None, parameters: dict[str, str], body: bytes, urls: Urls
    ) -> Reply | Deferred:
        version = OLDER_VERSION
        if route is None or route.surface == "api":
            if not call.headers.get("user-agent"):
                return Reply(403, _NO_USER_AGENT.encode(), {"content-type": "text/html"})
            version = call.headers.get("x-github-api-version", OLDER_VERSION)
            if version not in API_VERSIONS:
                raise RefusalError(400, f"The API version {version!r} is not supported.")
        if route is None:
            raise RefusalError(404, "Not Found")
        exchange = Exchange(self._github, call, urls, version, parameters, body)
        headers: dict[str, str] = {}
        if route.credential != "own":
            headers = self._authenticate(exchange, route)
        try:
            done = route.handler(exchange)
        except RefusalError as refusal:
            refusal.headers = headers | refusal.headers
            raise
        if isinstance(done, Reply):
            done.headers = headers | done.headers
        return done

    def _authenticate(self, exchange: Exchange, route: Route) -> dict[str, str]:
        """Put app or token into the exchange; return the rate limit's headers.

        Raises:
            RefusalError: the credential is none that this route takes, or the quota is spent.
        """
        call = exchange.call
        scheme = call.headers.get("authorization", "").partition(" ")[0].lower()
        if route.credential == "jwt":
            if scheme != "bearer":
                raise RefusalError(401, app_jwt.UNDECODABLE)
            exchange.app = app_jwt.authenticate(self._github, call.credential)
            return {}
        if call.authorization == "none":
            if route.credential == "token":
                raise RefusalError(401, "Requires authentication")
            return {}
        if call.authorization == "jwt" and route.credential == "optional":
            exchange.app = app_jwt.authenticate(self._github, call.credential)
            return {}
        if scheme not in {"bearer", "token"}:
            raise RefusalError(401, "Bad credentials")
        return self._admit(exchange, free=route.name == "rate_limit")

    def _admit(self, exchange: Exchange, *, free: bool) -> dict[str, str]:
        call = exchange.call
        standing, token = self._github.present(call.credential)
        if token is not None:
            call.installation_id = token.installation_id
        if standing is Standing.LAGGING and call.path.startswith(("/repos/", "/repositories/")):
            raise RefusalError(404, "Not Found")
        if token is None or standing in {Standing.BAD, Standing.LAGGING}:
            raise RefusalError(401, "Bad credentials")
        if standing is Standing.SUSPENDED:
            since = shapes.timestamp(token.installation.suspended_at or 0)
            owner = token.installation.account.login
            message = f"This installation owned by {owner} suspended your access at {since}."
            raise RefusalError(403, message)
        exchange.token = token
        quota = self._github.quota(token.installation, spend=0 if free else 1)
        if quota is None:
            return {}
        headers = shapes.quota_headers(quota)
        if quota.used > quota.limit and not free:
            number = token.installation_id
            raise RefusalError(403, f"API rate limit exceeded for installation ID {number}.", headers=headers)
        return headers

    def _dress(self, reply: Reply, call: Call, surface: str) -> None:
        now = self._github.now()
        version = call.headers.get("x-github-api-version", OLDER_VERSION)
        common = {
            "date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now)),
            "server": "github.com",
            "x-github-request-id": ":".join(secrets.token_hex(2).upper() for _ in range(5)),
            "content-length": str(len(reply.body)),
        }
        if surface == "api":
            common["x-github-media-type"] = "github.v3; format=json"
            if version in API_VERSIONS:
                common["x-github-api-version-selected"] = version
        if reply.status == 204:
            del common["content-length"]
        reply.headers = common | reply.headers


def _call(request: Request, route: Route | None, path: str, body: bytes | None, *, at: float) -> Call:
    kind, credential = authorization_kind(request.headers.get("authorization"))
    parsed = None
    if body and "json" in request.headers.get("content-type", "json"):
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            parsed = None
    return Call(
        method=request.method,
        path=path,
        query=request.scope["query_string"].decode("latin-1"),
        route=route.name if route else "unknown",
        at=at,
        authorization=kind,
        credential=credential,
        headers=dict(request.headers),
        body=parsed,
    )


def _envelope(refusal: RefusalError, urls: Urls) -> Reply:
    body = {
        "message": refusal.message,
        "documentation_url": refusal.docs or urls.docs,
        "status": str(refusal.status),
    }
    return Reply(refusal.status, json.dumps(body).encode(), {"content-type": JSON_TYPE, **refusal.headers})


async def _body(request: Request) -> bytes | None:
    """Return the body, or None if it is too long for an emulator."""
    parts, length = [], 0
    async for chunk in request.stream():
        length += len(chunk)
        if length <= _MOST_BYTES:
            parts.append(chunk)
    return b"".join(parts) if length <= _MOST_BYTES else None


async def _wait(fault: Fault) -> None:
    while fault.stall is None and fault.hold is not None and not fault.hold.is_set():  # noqa: ASYNC110 - set from another thread
        await asyncio.sleep(_HOLD_POLL_S)
    await asyncio.sleep(fault.delay_s)


async def _reset(request: Request) -> None:
    cut: Callable[[], None] | None = request.scope.get("extensions", {}).get(RESET_EXTENSION)
    if cut is None:
        raise RuntimeError("only ThreadedServer can reset a connection")
    cut()
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stall(request: Request, reply: Reply, send: Send, fault: Fault) -> None:
    """Send half of the head, or the head and half of the body, then nothing more."""
    if fault.stall == "head":
        write = request.scope.get("extensions", {}).get(WRITE_EXTENSION)
        if write is None:
            raise RuntimeError("only ThreadedServer can write half a head")
        write(b"HTTP/1.1 200 OK\r\nserver: github.com\r\ncontent-ty")
    else:
        await _send_half(reply, send)
    gone = asyncio.ensure_future(request.receive())
    while not gone.done() and (fault.hold is None or not fault.hold.is_set()):
        await asyncio.wait([gone], timeout=_HOLD_POLL_S)
    gone.cancel()
    await _reset(request)


async def _send_half(reply: Reply, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    part = reply.body[: len(reply.body) // 2]
    await send({"type": "http.response.body", "body": part, "more_body": True})


async def _send(request: Request, reply: Reply, send: Send, fault: Fault | None) -> None:
    if fault is not None and fault.stall is not None:
        await _stall(request, reply, send, fault)
    elif fault is not None and fault.truncate:
        await _send_half(reply, send)
        # the transport writes at once what fits the socket's buffer; give the rest one turn
        await asyncio.sleep(0.01)
        await _reset(request)
    else:
        body = b"" if request.method == "HEAD" else reply.body
        headers = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in reply.headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
