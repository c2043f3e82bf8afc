"""API keys: their form, check digits and digest; pure.

``ghbk_<id>_<secret><check>``: the id is public and appears in logs, the check digits let clients and
secret scanners tell a mistyped key from a real one without asking anybody.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from typing import Final, NamedTuple

from broker.errors import InvalidApiKeyError
from broker.model import Secret

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PATTERN: Final = r"ghbk_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}"
"""Finds a key in any text: what SECURITY.md gives to secret scanners."""

_ID_LENGTH: Final = 12
_SECRET_LENGTH: Final = 43
_CHECK_LENGTH: Final = 6
_PAIRS: Final = tuple(first + second for first in ALPHABET for second in ALPHABET)
"""Two base62 digits at a time."""

_REMEMBERED: Final = 4096
_well_formed: Final[dict[str, "PresentedKey"]] = {}
"""Keys whose form and check digits were right, by their digests: those of jobs come over and over."""

_KEY: Final = re.compile(r"ghbk_([0-9A-Za-z]{12})_[0-9A-Za-z]{49}", re.ASCII)
KEY_ID: Final = re.compile(r"[0-9A-Za-z]{12}", re.ASCII)


class PresentedKey(NamedTuple):
    """A well-formed key that somebody showed; whether it is known is not decided yet.

    Attributes:
        sha256: digest of the whole key, hex.
    """

    id: str
    sha256: str

    def matches(self, sha256: str) -> bool:
        """Compare with a stored digest in constant time."""
        return hmac.compare_digest(self.sha256.encode(), sha256.encode())


def checksum(body: str) -> str:
    """Return the six check digits of ``ghbk_<id>_<secret>``: base62 of its CRC32."""
    rest, last = divmod(zlib.crc32(body.encode()), len(_PAIRS))
    first, middle = divmod(rest, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[last]


def generate() -> tuple[Secret, PresentedKey]:
    """Return a new key and what is stored of it."""
    key_id = "".join(secrets.choice(ALPHABET) for _ in range(_ID_LENGTH))
    secret = "".join(secrets.choice(ALPHABET) for _ in range(_SECRET_LENGTH))
    body = f"ghbk_{key_id}_{secret}"
    text = body + checksum(body)
    return Secret(text), parse(text)


def parse(text: str) -> PresentedKey:
    """Return the key if its form and check digits are right.

    Raises:
        InvalidApiKeyError: they are not; the text of the error does not hold the key.
    """
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    presented = _well_formed.get(digest)
    if presented is None:
        match = _KEY.fullmatch(text)
        # No secret is compared: anyone who has the text can work out its check digits.
        if match is None or checksum(text[:-_CHECK_LENGTH]) != text[-_CHECK_LENGTH:]:
            raise InvalidApiKeyError("a malformed key, or its check digits are wrong")
        if len(_well_formed) >= _REMEMBERED:
            _well_formed.clear()
        presented = _well_formed[digest] = PresentedKey(match[1], digest)
    return presented
