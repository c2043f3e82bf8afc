"""Make texts that look like installation tokens, in both of GitHub's shapes; no I/O."""

from __future__ import annotations

import base64
import json
import secrets
import zlib
from typing import Literal

TokenShape = Literal["legacy", "stateless", "mixed"]

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHORTEST, _LONGEST = 383, 600


def legacy() -> str:
    """Return ``ghs_`` and 36 characters, the last six being the base62 CRC32 of the thirty before."""
    body = "".join(secrets.choice(_BASE62) for _ in range(30))
    number, check = zlib.crc32(body.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        check = _BASE62[digit] + check
    return f"ghs_{body}{check.rjust(6, '0')}"


def stateless(*, app_id: int, installation_id: int, issued_at: int, expires_at: int) -> str:
    """Return ``ghs_<app id>_<JWT>`` of 383 to 600 characters that holds ``-``, ``_`` and two dots.

    The JWT is signed with noise: to everybody but GitHub it is opaque.
    """
    while True:
        header = {"alg": "ES256", "kid": secrets.token_hex(8), "typ": "JWT"}
        payload = {
            "aud": "api.github.com",
            "exp": expires_at,
            "iat": issued_at,
            "iss": "ghs-token-issuer",
            "jti": secrets.token_urlsafe(24 + secrets.randbelow(96)),
            "sub": f"app:{app_id}:installation:{installation_id}",
        }
        parts = (
            json.dumps(header).encode(),
            json.dumps(payload, separators=(",", ":")).encode(),
            secrets.token_bytes(64),
        )
        jwt = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
        text = f"ghs_{app_id}_{jwt}"
        if _SHORTEST <= len(text) <= _LONGEST and "-" in jwt and "_" in jwt:
            return text
