"""GitHub App private keys: reads the many ways in which people paste them; pure, no I/O."""

import base64
import binascii
import hashlib
import re
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from broker.errors import PrivateKeyError

MIN_RSA_BITS: Final = 2048
"""RFC 7518 section 3.3 asks for at least this with RS256; GitHub's own downloads have it."""

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----(.*?)-----END \1-----", re.DOTALL)
_BEGIN = "-----BEGIN "
_REFUSED_LABELS: Final = {
    "ENCRYPTED PRIVATE KEY": "the private key is encrypted; decrypt it first (openssl pkcs8 -in KEY)",
    "OPENSSH PRIVATE KEY": "this is an OPENSSH private key, not the RSA key that GitHub gave for the app",
    "EC PRIVATE KEY": "this is an EC key; app JWTs need RSA",
    "EC PARAMETERS": "this is an EC key; app JWTs need RSA",
    "DSA PRIVATE KEY": "this is a DSA key; app JWTs need RSA",
    "PUBLIC KEY": "this is a public key; the private key is needed",
    "RSA PUBLIC KEY": "this is a public key; the private key is needed",
    "CERTIFICATE": "this is a certificate; the private key is needed",
    "CERTIFICATE REQUEST": "this is a certificate request; the private key is needed",
}
_NOT_A_KEY = "this is not a private key in PEM form (it begins with -----BEGIN RSA PRIVATE KEY-----)"


class AppPrivateKey:
    """An RSA key that signs app JWTs. It shows its public fingerprint and nothing else."""

    __slots__ = ("_key", "fingerprint")

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.fingerprint = "SHA256:" + base64.b64encode(hashlib.sha256(spki).digest()).decode()
        """As GitHub shows it ("Managing private keys for GitHub Apps"): of the public half."""

    @property
    def rsa(self) -> rsa.RSAPrivateKey:
        """The key object, for the one expression that signs."""
        return self._key

    def pkcs8_der(self) -> bytes:
        """Return the unencrypted PKCS#8 DER: one form whatever the input was, to derive keys from."""
        return self._key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def __repr__(self) -> str:
        return f"AppPrivateKey({self.fingerprint})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AppPrivateKey) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> str:
        raise TypeError("a private key is not to be copied about")


def parse_private_key(text: str | bytes) -> AppPrivateKey:
    r"""Return the one private key in ``text``.

    Takes PEM (PKCS#1 as GitHub gives it, or PKCS#8) with real line breaks, literal ``\n``, CRLF,
    blanks instead of line breaks, quotes around it; or base64 of such a file.

    Raises:
        PrivateKeyError: it is not one usable key; the text names the reason, never the key.
    """
    keys = _parse(_normalised(text))
    if len(keys) > 1:
        raise PrivateKeyError("there are several keys in one text where one is expected")
    return keys[0]


def parse_private_keys(text: str | bytes) -> tuple[AppPrivateKey, ...]:
    """Return the private keys in ``text``, in order and each once: PEM blocks or base64 items.

    Raises:
        PrivateKeyError: there is none, or one of them is not usable.
    """
    found: list[AppPrivateKey] = []
    for item in _normalised(text).split(",") if _BEGIN not in _normalised(text) else [_normalised(text)]:
        found += _parse(_normalised(item))
    return tuple(dict.fromkeys(found))


def _normalised(text: str | bytes) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise PrivateKeyError(_NOT_A_KEY) from None
    text = text.strip().removeprefix("\ufeff")
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    for line_end in ("\\r\\n", "\\n", "\\r", "\r\n", "\r"):
        text = text.replace(line_end, "\n")
    return text.strip()


def _parse(text: str) -> list[AppPrivateKey]:
    if not text:
        raise PrivateKeyError("the private key is empty")
    if _BEGIN not in text:
        text = _normalised(_base64_decoded(text, _NOT_A_KEY))
        if _BEGIN not in text:
            raise PrivateKeyError(_NOT_A_KEY)
    blocks = _BLOCK.findall(text)
    for label, body in blocks:
        if label in _REFUSED_LABELS:
            raise PrivateKeyError(_REFUSED_LABELS[label])
        if "ENCRYPTED" in body:
            raise PrivateKeyError(_REFUSED_LABELS["ENCRYPTED PRIVATE KEY"])
        if label not in {"RSA PRIVATE KEY", "PRIVATE KEY"}:
            raise PrivateKeyError(_NOT_A_KEY)
    if len(blocks) != text.count(_BEGIN):
        raise PrivateKeyError("the private key is cut off: its -----END line is missing or another")
    return [_loaded(body) for _, body in blocks]


def _base64_decoded(text: str, reason: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()).encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise PrivateKeyError(reason) from None


def _loaded(body: str) -> AppPrivateKey:
    broken = "the private key is damaged: what is between its BEGIN and END lines cannot be read"
    der = _base64_decoded(body, broken)
    try:
        key = serialization.load_der_private_key(der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's text is left out: it may quote what it was given.
        raise PrivateKeyError(broken) from None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        raise PrivateKeyError(_REFUSED_LABELS["EC PRIVATE KEY"])
    if isinstance(key, dsa.DSAPrivateKey):
        raise PrivateKeyError(_REFUSED_LABELS["DSA PRIVATE KEY"])
    if not isinstance(key, rsa.RSAPrivateKey):
        raise PrivateKeyError("this is not an RSA key (Ed25519 or another kind); app JWTs need RSA")
    if key.key_size < MIN_RSA_BITS:
        raise PrivateKeyError(f"the RSA key has fewer than {MIN_RSA_BITS} bits")
    return AppPrivateKey(key)
