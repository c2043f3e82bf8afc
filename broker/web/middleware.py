"""Plain ASGI around the routes: request id, client address, problems; no ``BaseHTTPMiddleware``."""

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.errors import (
    BrokerError,
    GitHubTimeoutError,
    MethodNotAllowedError,
    NotFoundError,
    RateLimitedError,
    RequestError,
)
from broker.observe import REQUEST_ID
from broker.ports import Meter
from broker.redaction import holds_secret
from broker.web.errors import new_request_id, problem

ENDING: Final = "GitHub did not answer before this replica of the broker had to end. Ask again."

_log = logging.getLogger(__name__)
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_BY_STATUS: Final[dict[int, type[BrokerError]]] = {404: NotFoundError, 405: MethodNotAllowedError}
OTHER_ROUTE: Final = "other"
"""How the metrics call all paths that no route knows: a label must not grow with what strangers ask for."""

CLIENT_GONE: Final = 499
"""How the metrics call the status of a request whose client left before there was one."""

MAX_AT_ONCE: Final = 1024
"""Requests in work at once, in a process; well below the connections, so that a probe finds room."""

_PROBES: Final = frozenset({"/livez", "/readyz"})

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(peer: str | None, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> str | None:
    """Return the client: the rightmost address of ``X-Forwarded-For`` and the peer that is not trusted.

    Args:
        peer: who connected.
        forwarded: values of ``X-Forwarded-For``, in order.
        trusted: proxies whose word is believed.
    """
    if peer is None or not _trusted(peer, trusted):
        return peer
    hops = [hop.strip() for hop in b",".join(forwarded).decode("latin-1").split(",") if hop.strip()]
    found = peer
    for hop in reversed(hops):
        try:
            ipaddress.ip_address(hop)
        except ValueError:
            return found  # whoever wrote this is not to be believed any further
        found = hop
        if not _trusted(hop, trusted):
            break
    return found


def _trusted(address: str, networks: Sequence[Network]) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in networks if network.version == ip.version)


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what no route knows.

    Raises:
        NotFoundError: always.
    """
    del receive, send
    if scope["type"] != "lifespan":
        raise NotFoundError


@dataclass(slots=True)
class _Answer:
    """What a request was answered with: ``code`` of a problem; status 0 while there is no answer."""

    status: int = 0
    code: str | None = None


class Direct:
    """A plain ASGI function as Starlette's routes take it: they call objects, and wrap functions."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._app(scope, receive, send)


@dataclass(slots=True)
class _Work:
    """How many requests are in work."""

    running: int = 0


class _WaitingForClient:
    """While we wait for a client to send or to read, its request holds a connection and nobody's place.

    Anyone can begin a request and not end it: that must not keep out who is ready.
    """

    def __init__(self, work: _Work) -> None:
        self._work = work

    def __enter__(self) -> None:
        self._work.running -= 1

    def __exit__(self, *error: object) -> None:
        self._work.running += 1


class Edge:
    """Gives every request an id and a client address, and every error an answer.

    Args:
        app: the routes.
        trusted_proxies: networks whose ``X-Forwarded-For`` is believed.
        meter: counts requests.
        draining: tells whether the process is about to end: then each answer is its connection's last.
        direct: routes without parameters that are found without asking each route in turn, which costs as
            much as the rest of a warm request.
    """

    def __init__(
        self,
        app: ASGIApp,
        trusted_proxies: Sequence[Network],
        meter: Meter | None = None,
        *,
        draining: Callable[[], bool] = lambda: False,
        direct: Iterable[Route] = (),
    ) -> None:
        self._app = app
        self._direct = {(method, route.path): route for route in direct for method in route.methods or ()}
        self._trusted = tuple(trusted_proxies)
        self._meter = meter or Meter()
        self._draining = draining
        self._work = _Work()
        self._waiting = _WaitingForClient(self._work)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        shown = self._introduce(scope)
        given = _Answer()
        outside = REQUEST_ID.set(shown)
        try:
            await self._serve(scope, receive, send, shown, given)
        finally:
            REQUEST_ID.reset(outside)
            route = scope.get("route")
            self._meter.request(
                route=OTHER_ROUTE if route is None else route.path,
                status=given.status or CLIENT_GONE,
                code=given.code,
                seconds=time.perf_counter() - began,
            )

    async def _serve(self, scope: Scope, receive: Receive, send: Send, shown: str, given: _Answer) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                given.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", shown.encode())]
                if self._draining():
                    message["headers"].append((b"connection", b"close"))
            with self._waiting:
                await send(message)

        self._work.running += 1
        try:
            self._find_room(scope)
            await self._routed(scope, self._hearing(scope, receive), answer)
        except BrokerError as error:
            _tell(error)
            await self._problem(error, shown, answer, given)
        except ClientDisconnect:
            pass  # nobody is there to answer
        except HTTPException as error:
            kind = _BY_STATUS.get(error.status_code, RequestError)
            await self._problem(kind(), shown, answer, given, extra=error.headers)
        except Exception as error:
            _log.exception("a request failed unexpectedly")
            if given.status:
                raise
            await self._problem(BrokerError(str(type(error))), shown, answer, given)
        finally:
            self._work.running -= 1

    def _hearing(self, scope: Scope, receive: Receive) -> Receive:
        """Return how the request is heard; whoever has sent all of it needs room again."""

        async def hear() -> Message:
            with self._waiting:
                message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                self._find_room(scope)
            return message

        return hear

    def _find_room(self, scope: Scope) -> None:
        """Let a request in.

        Raises:
            RateLimitedError: too many are in work, and it is no probe.
        """
        if self._work.running > MAX_AT_ONCE and scope["path"] not in _PROBES:
            raise RateLimitedError(
                "too many requests at once",
                public="Too many requests at once. Try again.",
                retry_after_s=1.0,
            )

    async def _routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if route := self._direct.get((scope.get("method", ""), scope.get("path", ""))):
            scope["route"], app = route, route.app
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._draining():
                raise
            # A drain ran out of time; what still runs then waits for GitHub.
            raise GitHubTimeoutError("the process ends", public=ENDING) from None

    def _introduce(self, scope: Scope) -> str:
        """Note the request's id and the client's address in the scope; return the id."""
        request_id = b""
        forwarded = []
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"x-forwarded-for":
                forwarded.append(value)
        shown = _shown(request_id)
        peer = scope["client"][0] if scope.get("client") else None
        scope["app"] = self  # routes raise instead of answering when they see an app around them
        state = scope.setdefault("state", {})
        state["request_id"] = shown
        state["client_ip"] = client_address(peer, forwarded, self._trusted) if self._trusted else peer
        return shown

    async def _problem(
        self,
        error: BrokerError,
        request_id: str,
        send: Send,
        given: _Answer,
        *,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        if given.status:
            raise error
        given.code = error.code
        status, headers, body = problem(error, request_id)
        headers |= {name.lower(): value for name, value in (extra or {}).items()}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


def _shown(request_id: bytes) -> str:
    """Return the caller's request id, or a new one: it goes into the audit, so a key sent as one must not."""
    if _REQUEST_ID.fullmatch(request_id) and not holds_secret(text := request_id.decode()):
        return text
    return new_request_id()


def _tell(error: BrokerError) -> None:
    """Tell the operator what the caller is not told."""
    if str(error) != error.public:
        _log.debug("refused", extra={"code": error.code, "cause": str(error)})
