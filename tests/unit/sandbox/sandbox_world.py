"""What the emulator's tests share: a hand-set clock, keys made once, and a client for a served GitHub."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    import subprocess

    import httpx

    from broker.sandbox.github import EmulatedApp, EmulatedGitHub, EmulatedInstallation, RunningGitHub

START = 1_800_000_000.0


@functools.cache
def rsa_key(number: int) -> rsa.RSAPrivateKey:
    """Keys are slow to make and never secret here: each is made once a run."""
    return rsa.generate_private_key(65537, 2048)


class HandClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> float:
        return self.at


@dataclass
class World:
    """A served emulator and what a test needs to speak to it."""

    github: EmulatedGitHub
    clock: HandClock
    app: EmulatedApp
    pem: str
    installation: EmulatedInstallation
    server: RunningGitHub
    http: httpx.Client

    def jwt(self, *, key: Any = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        now = int(self.clock.at)
        payload = {"iat": now - 60, "exp": now + 540, "iss": self.app.client_id} | claims
        kept = {name: value for name, value in payload.items() if value != "omit"}
        # not jwt.encode: that checks the claims
        return jwt.PyJWS().encode(json.dumps(kept).encode(), key or rsa_key(0), "RS256", headers=headers)

    def as_app(self, **claims: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.jwt(**claims)}"}

    def mint(self, body: Any = None, *, installation: int | None = None, **extra: str) -> httpx.Response:
        number = installation or self.installation.id
        path = f"/app/installations/{number}/access_tokens"
        content = {} if body is None else {"json": body}
        return self.http.post(path, headers=self.as_app() | extra, **content)

    def token(self, body: Any = None) -> str:
        text: str = self.mint(body).json()["token"]
        return text


class Git(Protocol):
    """Run git with a clean configuration; ``token`` is offered by a credential helper."""

    def __call__(
        self, *arguments: str, token: str | None = None, user: str = "x-access-token"
    ) -> subprocess.CompletedProcess[str]: ...


def as_token(text: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {text}"}
