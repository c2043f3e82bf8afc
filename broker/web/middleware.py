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
        if "%" in hop:
            return found  # a zone is free text, and of the machine that wrote it alone
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


class Direct:
    """A plain ASGI function as Starlette's routes take it: they call objects, and wrap functions."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self.app(scope, receive, send)


@dataclass(slots=True)
class _Work:
    """How many requests are in work.

    While we wait for a client to send or to read, its request holds a connection and nobody's place: anyone
    can begin a request and not end it, and that must not keep out who is ready.
    """

    running: int = 0

    def begin(self, path: str) -> None:
        """Let a request in; it is in work from now on, also when it is turned away.

        Raises:
            RateLimitedError: as ``crowded``.
        """
        self.running += 1
        if self.running > MAX_AT_ONCE:
            self.crowded(path)

    def crowded(self, path: str) -> None:
        """Turn a request away that finds more than ``MAX_AT_ONCE`` in work.

        Raises:
            RateLimitedError: it is no probe.
        """
        if path not in _PROBES:
            raise RateLimitedError(
                "too many requests at once",
                public="Too many requests at once. Try again.",
                retry_after_s=1.0,
            )


class _Exchange:
    """One request as the routes hear it, and what it is answered with.

    Attributes:
        status: of the answer; 0 while there is none.
        code: of a problem.
    """

    __slots__ = ("_ending", "_path", "_receive", "_request_id", "_send", "_work", "code", "status")

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        path: str,
        request_id: str,
        work: _Work,
        ending: Callable[[], bool],
    ) -> None:
        self._receive = receive
        self._send = send
        self._path = path
        self._request_id = request_id
        self._work = work
        self._ending = ending
        self.status = 0
        self.code: str | None = None

    async def receive(self) -> Message:
        """Hear the client; whoever has sent all of a request needs room again."""
        work = self._work
        work.running -= 1
        try:
            message = await self._receive()
        finally:
            work.running += 1
        if (
            work.running > MAX_AT_ONCE
            and message["type"] == "http.request"
            and not message.get("more_body", False)
        ):
            work.crowded(self._path)
        return message

    async def send(self, message: Message) -> None:
        """Answer, with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self._request_id.encode())]
            if self._ending():
                message["headers"].append((b"connection", b"close"))
        work = self._work
        work.running -= 1
        try:
            await self._send(message)
        finally:
            work.running += 1

    async def problem(self, error: BrokerError, extra: Mapping[str, str] | None = None) -> None:
        """Answer with a problem.

        Raises:
            BrokerError: ``error``, if an answer has begun.
        """
        if self.status:
            raise error
        self.code = error.code
        status, headers, body = problem(error, self._request_id)
        headers |= {name.lower(): value for name, value in (extra or {}).items()}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


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
        self._direct = {
            (method, route.path): (route, route.app.app if isinstance(route.app, Direct) else route.app)
            for route in direct
            for method in route.methods or ()
        }
        self._trusted = tuple(trusted_proxies)
        self._meter = meter or Meter()
        self._draining = draining
        self._work = _Work()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = self._introduce(scope)
        work = self._work
        exchange = _Exchange(
            receive, send, path=scope["path"], request_id=request_id, work=work, ending=self._draining
        )
        outside = REQUEST_ID.set(request_id)
        try:
            work.begin(scope["path"])
            route, app = self._direct.get((scope["method"], scope["path"]), (None, self._app))
            if route is not None:
                scope["route"] = route
            await app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not self._draining():
                raise
            # A drain ran out of time; what still runs then waits for GitHub.
            ended = GitHubTimeoutError("the process ends", public=ENDING)
            _tell(ended)
            await exchange.problem(ended)
        except BrokerError as error:
            _tell(error)
            await exchange.problem(error)
        except ClientDisconnect:
            pass  # nobody is there to answer
        except HTTPException as error:
            kind = _BY_STATUS.get(error.status_code, RequestError)
            await exchange.problem(kind(), error.headers)
        except Exception as error:
            _log.exception("a request failed unexpectedly")
            if exchange.status:
                raise
            await exchange.problem(BrokerError(str(type(error))))
        finally:
            work.running -= 1
            REQUEST_ID.reset(outside)
            route = scope.get("route")
            self._meter.request(
                route=OTHER_ROUTE if route is None else route.path,
                status=exchange.status or CLIENT_GONE,
                code=exchange.code,
                seconds=time.perf_counter() - began,
            )

    def _introduce(self, scope: Scope) -> str:
        """Note the request's id and the client's address in the scope; return the id."""
        request_id = b""
        forwarded = []
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"x-forwarded-for":
                forwarded.append(value)
        shown = _shown(request_id) if request_id else new_request_id()
        peer = scope["client"][0] if scope.get("client") else None
        scope["app"] = self  # routes raise instead of answering when they see an app around them
        state = scope.setdefault("state", {})
        state["request_id"] = shown
        state["client_ip"] = client_address(peer, forwarded, self._trusted) if self._trusted else peer
        return shown


def _shown(request_id: bytes) -> str:
    """Return the caller's request id, or a new one: it goes into the audit, so a key sent as one must not."""
    if _REQUEST_ID.fullmatch(request_id) and not holds_secret(text := request_id.decode()):
        return text
    return new_request_id()


def _tell(error: BrokerError) -> None:
    """Tell the operator what the caller is not told."""
    if str(error) != error.public:
        _log.debug("refused", extra={"code": error.code, "cause": str(error)})
