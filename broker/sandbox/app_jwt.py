"""Judge an app's JWT as GitHub does, message by message; no I/O."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from broker.sandbox.exchange import RefusalError

if TYPE_CHECKING:
    from broker.sandbox.state import EmulatedApp, State

UNDECODABLE = "A JSON web token could not be decoded"
NO_ISSUER = "Missing 'issuer' claim ('iss') in assertion"
ISSUER_NOT_INTEGER = "'Issuer' claim ('iss') must be an Integer"
NO_SUCH_APP = "Integration not found"
NO_PUBLIC_KEY = "Integration must generate a public key"
EXPIRED = (
    "'Expiration time' claim ('exp') must be a numeric value representing the future time at which "
    "the assertion expires"
)
TOO_FAR = "'Expiration time' claim ('exp') is too far in the future"
BAD_ISSUED_AT = (
    "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
)

LONGEST_LIFE_S = 600


def authenticate(state: State, unverified_jwt: str) -> EmulatedApp:
    """Return the app that signed this JWT.

    The times are held against the emulator's own clock, without leeway; ``exp`` may be 600 s ahead.

    Raises:
        RefusalError: 401 with the message of the rule that is broken; 404 for an unknown app id.
    """
    header, payload, signed, signature = _parse(unverified_jwt)
    if header.get("alg") != "RS256" or "crit" in header:
        _refuse(UNDECODABLE)
    app = _issuer(state, payload)
    keys = [key for key in app.public_keys if key.propagated]
    if not keys:
        _refuse(NO_PUBLIC_KEY)
    if not any(_verifies(key.public_key, signature, signed) for key in keys):
        _refuse(UNDECODABLE)
    now = state.now()
    expires, issued = payload.get("exp"), payload.get("iat")
    if type(expires) is not int or expires <= now:
        _refuse(EXPIRED)
    if expires - now > LONGEST_LIFE_S:
        _refuse(TOO_FAR)
    if type(issued) is not int or issued > now:
        _refuse(BAD_ISSUED_AT)
    return app


def _refuse(message: str, status: int = 401) -> NoReturn:
    raise RefusalError(status, message)


def _parse(unverified_jwt: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    parts = unverified_jwt.split(".")
    if len(parts) != 3 or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in parts):
        _refuse(UNDECODABLE)
    try:
        decoded = [base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_") for part in parts]
        header, payload = json.loads(decoded[0]), json.loads(decoded[1])
    except (binascii.Error, ValueError, RecursionError):
        _refuse(UNDECODABLE)
    if not isinstance(header, dict) or not isinstance(payload, dict):
        _refuse(UNDECODABLE)
    return header, payload, f"{parts[0]}.{parts[1]}".encode(), decoded[2]


def _issuer(state: State, payload: dict[str, Any]) -> EmulatedApp:
    issuer = payload.get("iss")
    if issuer is None:
        _refuse(NO_ISSUER)
    if isinstance(issuer, str) and state.client_id_as_issuer:
        for app in state.apps.values():
            if app.client_id == issuer:
                return app
    text = str(issuer) if type(issuer) is int else issuer
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,19}", text):
        _refuse(ISSUER_NOT_INTEGER)
    found = state.apps.get(int(text))
    if found is None:
        _refuse(NO_SUCH_APP, status=404)
    return found


def _verifies(key: Any, signature: bytes, signed: bytes) -> bool:  # noqa: ANN401 - RSAPublicKey
    try:
        key.verify(signature, signed, PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True
