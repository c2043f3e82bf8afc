"""The seam between HTTP and the emulator's routes: exchange in, reply or refusal out; no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from broker.sandbox.journal import Call
    from broker.sandbox.state import EmulatedApp, EmulatedToken, State

OLDER_VERSION, LATEST_VERSION = "2022-11-28", "2026-03-10"
API_VERSIONS = (OLDER_VERSION, LATEST_VERSION)

JSON_TYPE = "application/json; charset=utf-8"


@dataclass(slots=True)
class Reply:
    """What goes back: bytes and headers (names in lower case)."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, status: int, value: Any, headers: dict[str, str] | None = None) -> Reply:  # noqa: ANN401 - JSON
        """Return ``value`` as JSON."""
        return cls(status, json.dumps(value).encode(), {"content-type": JSON_TYPE, **(headers or {})})


class RefusalError(Exception):
    """GitHub's "no", with the status and the message it gives."""

    def __init__(
        self, status: int, message: str, *, docs: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.docs = docs
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the emulator is reached: roots without trailing slash."""

    api: str
    web: str
    docs: str


@dataclass(slots=True)
class Exchange:
    """One request on its way through a route.

    Attributes:
        state: what GitHub knows; the caller holds its lock.
        call: the entry in the journal.
        urls: roots for links.
        version: of the API, as selected by the request.
        parameters: the path's, percent-decoded.
        body: of the request, raw.
        app: who signed the JWT, on routes that take one.
        token: the installation token, where one came and is good.
    """

    state: State
    call: Call
    urls: Urls
    version: str
    parameters: dict[str, str]
    body: bytes
    app: EmulatedApp | None = None
    token: EmulatedToken | None = None

    @property
    def signer(self) -> EmulatedApp:
        """The app of the JWT; only on routes that take one."""
        assert self.app is not None  # noqa: S101 - the front has authenticated
        return self.app

    @property
    def bearer(self) -> EmulatedToken:
        """The installation token; only on routes that take one."""
        assert self.token is not None  # noqa: S101 - the front has authenticated
        return self.token

    def query(self, name: str) -> str | None:
        """Return the last value of a query parameter."""
        values = parse_qs(self.call.query, keep_blank_values=True).get(name)
        return values[-1] if values else None


Deferred = Callable[[], Awaitable[Reply]]
Handler = Callable[[Exchange], Reply | Deferred]
CredentialNeeded = Literal["jwt", "token", "optional", "own"]


class Route:
    """A method and a path with ``{parameters}``, by name.

    Args:
        name: how faults and the journal call it.
        method: of HTTP; HEAD goes with GET.
        template: path below the root, ``{x}`` matching one segment.
        handler: runs under the state's lock; returns the reply, or what makes it without the lock.
        credential: ``jwt`` and ``token`` are needed, ``optional`` may come, ``own`` is the handler's.
        surface: below the API's prefix, or on the web host.
    """

    def __init__(
        self,
        name: str,
        method: str,
        template: str,
        handler: Handler,
        *,
        credential: CredentialNeeded,
        surface: Literal["api", "web"] = "api",
    ) -> None:
        self.name = name
        self.method = method
        self.handler = handler
        self.credential = credential
        self.surface = surface
        pieces = re.split(r"\{(\w+)\}", template)
        self._pattern = re.compile(
            "".join(
                f"(?P<{piece}>[^/]+?)" if index % 2 else re.escape(piece)
                for index, piece in enumerate(pieces)
            )
        )

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """Return the parameters, still percent-encoded, if this route is meant."""
        if ("GET" if method == "HEAD" else method) != self.method:
            return None
        found = self._pattern.fullmatch(path)
        return found.groupdict() if found else None
