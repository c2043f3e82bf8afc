"""The record of every call that reached the emulator; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

AuthorizationKind = Literal["none", "jwt", "token", "basic", "other"]


@dataclass(slots=True)
class Call:
    """One request, written down when it arrives; ``status`` follows with the reply.

    Attributes:
        method: of HTTP.
        path: as sent, without the API prefix, still percent-encoded.
        query: the raw query string.
        route: name of the route (``mint``, ``app``, ``git_refs``), or ``unknown``.
        at: epoch seconds by the emulator's clock.
        authorization: which kind of credential came with it.
        credential: what followed the scheme in the header.
        headers: of the request, names in lower case.
        body: the parsed JSON, or None.
        installation_id: of the path or of the token, once known.
        status: None until replied, and for ever if the connection was cut.
        took_s: seconds from its arrival to its reply, latency and all; None until replied.
    """

    method: str
    path: str
    query: str
    route: str
    at: float
    authorization: AuthorizationKind
    credential: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: Any = None
    installation_id: int | None = None
    status: int | None = None
    took_s: float | None = None


def authorization_kind(header: str | None) -> tuple[AuthorizationKind, str]:
    """Return the kind of an ``Authorization`` header and the credential in it."""
    if header is None:
        return "none", ""
    scheme, _, credential = header.partition(" ")
    credential = credential.strip()
    match scheme.lower():
        case "bearer":
            return ("token" if credential.startswith("ghs_") else "jwt"), credential
        case "token":
            return "token", credential
        case "basic":
            return "basic", credential
        case _:
            return "other", credential
