"""The form of an API key and its check digits; no I/O."""

from __future__ import annotations

import zlib

from broker_cli.errors import ApiKeyError

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CHECK_LENGTH = 6
PART_LENGTHS = [4, 12, 43 + CHECK_LENGTH]


class ApiKey:
    """A key whose form and check digits are right; its text is taken out by `reveal` alone."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def id(self) -> str:
        """The public part, fit for logs."""
        return self._text.split("_")[1]

    def reveal(self) -> str:
        """Return the whole key, for the request's header only."""
        return self._text

    def __repr__(self) -> str:
        return f"ApiKey({self.id})"


def check_digits(text: str) -> str:
    """Return base62 of the CRC32 of `text`, most significant digit first, six characters."""
    number = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(CHECK_LENGTH):
        number, rest = divmod(number, len(ALPHABET))
        digits = ALPHABET[rest] + digits
    return digits


def verify_api_key(unverified: str, *, source: str) -> ApiKey:
    """Return the key, or tell what is wrong with its form, naming its source and never its text.

    Raises:
        ApiKeyError: it can't be a key: nothing should be sent.
    """
    # By hand: ghbk_[0-9A-Za-z]{12}_[0-9A-Za-z]{49} takes longer to compile than all the rest of this.
    parts = unverified.split("_")
    if (
        [len(part) for part in parts] != PART_LENGTHS
        or parts[0] != "ghbk"
        or not (parts[1] + parts[2]).isalnum()
        or not unverified.isascii()
    ):
        reason = (
            "white space around it" if unverified != unverified.strip() else "a key is ghbk_<id>_<secret>"
        )
        raise ApiKeyError(
            f"the API key from {source} is malformed ({reason}); nothing was sent: copy the key again"
        )
    body, check = unverified[:-CHECK_LENGTH], unverified[-CHECK_LENGTH:]
    if check_digits(body) != check:
        raise ApiKeyError(
            f"the API key from {source} is malformed (its check digits are wrong, so a character is"
            " missing or mistyped); nothing was sent: copy the key again"
        )
    return ApiKey(unverified)
