"""Sealing: AES-256-GCM around everything that is stored; pure, no I/O.

A random data key seals all records. It is stored only wrapped, once per key-encryption key (KEK), so
that keys rotate without rewriting a record. A blob is ``v1 | data key number | nonce | ciphertext``;
its associated data names the kind, the store and the entry, so that no blob opens as another.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION: Final = 1
WRAP_PREFIX: Final = "dk:"
ADOPT_PREFIX: Final = "adopt:"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_HEADER_BYTES: Final = 3
_TAG_BYTES: Final = 16
_OPENED: Final = 256
"""So many opened entries of each kind are remembered. One with a token takes about 2 KiB."""

Opened = TypeVar("Opened")


class SealError(Exception):
    """The blob is not what it is said to be: changed, cut, moved, or sealed by another key."""


class Kind(StrEnum):
    """What a blob is; each kind has its own subkey."""

    __hash__ = str.__hash__
    """Of members too, as they are strings; what ``Enum`` has is Python, and asked six times a request."""

    TOKEN = "token"  # noqa: S105 - a kind's name
    KEY = "key"
    OWNER = "owner"
    NAME = "name"
    BLOCK = "block"
    HOOK = "hook"


def _derive(secret: bytes, info: str) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=None, info=info.encode()).derive(secret)


@dataclass(frozen=True, slots=True, repr=False)
class KeyEncryptionKey:
    """A key that wraps data keys. ``fingerprint`` names it in the store and in logs."""

    secret: bytes
    fingerprint: str
    origin: str

    @classmethod
    def of_secret(cls, secret: bytes, *, origin: str) -> "KeyEncryptionKey":
        """Return the KEK derived from a configured encryption key or a private key's PKCS#8 DER.

        Args:
            secret: at least 32 bytes of high entropy.
            origin: the setting it came from, for messages.
        """
        kek = _derive(secret, "github-token-broker kek v1")
        return cls(kek, hashlib.sha256(b"fingerprint" + kek).hexdigest()[:16], origin)

    def __repr__(self) -> str:
        return f"KeyEncryptionKey({self.fingerprint})"

    def wrap(self, number: int, data_key: bytes, store_id: bytes) -> bytes:
        """Return ``data_key`` sealed for the store."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self.secret).encrypt(nonce, data_key, self._context(number, store_id))

    def unwrap(self, number: int, wrapped: bytes, store_id: bytes) -> bytes:
        """Return the data key.

        Raises:
            SealError: changed, or of another store.
        """
        try:
            return AESGCM(self.secret).decrypt(
                wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], self._context(number, store_id)
            )
        except (InvalidTag, ValueError) as error:
            raise SealError("a data key's wrap does not open") from error

    def adopt(self, store_id: bytes, at: float) -> bytes:
        """Return proof that whoever has this key adopted the store at ``at`` (Unix seconds, store time)."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._adopting().encrypt(nonce, repr(at).encode(), b"adopt|" + store_id)

    def adopted_at(self, proof: bytes, store_id: bytes) -> float:
        """Return when the store was adopted.

        Raises:
            SealError: not made with this key, or for another store.
        """
        try:
            plain = self._adopting().decrypt(proof[:_NONCE_BYTES], proof[_NONCE_BYTES:], b"adopt|" + store_id)
            return float(plain)
        except (InvalidTag, ValueError) as error:
            raise SealError("an adoption was not made with our key, or is another store's") from error

    def _adopting(self) -> AESGCM:
        return AESGCM(_derive(self.secret, "github-token-broker adopt v1"))

    @property
    def adoption(self) -> str:
        """Return the name under which the store keeps the adoption that this key proves."""
        return f"{ADOPT_PREFIX}{self.fingerprint}"

    def field(self, number: int) -> str:
        """Return the name under which the store keeps this wrap."""
        return f"{WRAP_PREFIX}{number}:{self.fingerprint}"

    @staticmethod
    def _context(number: int, store_id: bytes) -> bytes:
        return b"|".join((b"data key", str(number).encode(), store_id))


def new_data_key() -> bytes:
    """Return a random data key."""
    return os.urandom(_KEY_BYTES)


def wrap_numbers(fields: Mapping[str, bytes]) -> dict[int, list[str]]:
    """Return data key numbers and the KEK fingerprints that wrap each, from fields of the state."""
    found: dict[int, list[str]] = {}
    for name in fields:
        if name.startswith(WRAP_PREFIX):
            number, _, fingerprint = name.removeprefix(WRAP_PREFIX).partition(":")
            if number.isdecimal() and fingerprint:
                found.setdefault(int(number), []).append(fingerprint)
    return found


class Sealer:
    """Seals and opens blobs of one store with its data keys.

    Args:
        store_id: the store's random id, part of every blob's identity.
        data_keys: number to key; the highest number seals, all of them open.
    """

    def __init__(self, store_id: bytes, data_keys: Mapping[int, bytes]) -> None:
        self._store_id = store_id
        self._current = max(data_keys)
        self._ciphers = {
            (number, kind): AESGCM(_derive(key, f"github-token-broker {kind} v1"))
            for number, key in data_keys.items()
            for kind in Kind
        }
        self._opened = {kind: lru_cache(_OPENED)(self._open_anew) for kind in Kind}

    def lacks(self, blobs: Iterable[bytes]) -> bool:
        """Return whether one of ``blobs`` says that a data key sealed it which is not among ours."""
        return any(
            len(blob) >= _HEADER_BYTES
            and blob[0] == VERSION
            and (int.from_bytes(blob[1:_HEADER_BYTES], "big"), Kind.KEY) not in self._ciphers
            for blob in blobs
        )

    def newest(self, blob: bytes) -> bool:
        """Return whether ``blob`` says that the newest data key sealed it."""
        return blob[:_HEADER_BYTES] == bytes((VERSION,)) + self._current.to_bytes(2, "big")

    def seal(self, kind: Kind, identity: str, plain: bytes) -> bytes:
        """Return ``plain`` sealed as the entry ``identity`` of ``kind``."""
        nonce = os.urandom(_NONCE_BYTES)
        header = bytes((VERSION,)) + self._current.to_bytes(2, "big")
        cipher = self._ciphers[self._current, kind]
        return header + nonce + cipher.encrypt(nonce, plain, self._context(header, kind, identity))

    def opened(self, kind: Kind, identity: str, blob: bytes, parse: Callable[[str, bytes], Opened]) -> Opened:
        """Return ``parse(identity, plain text)``; for the same bytes under the same name it is done once.

        Opening and parsing are pure, so what they gave for these very bytes is still right. Whether it may be
        *used* is decided anew each time, on what was read beside it.

        Raises:
            SealError: as ``open``; nothing of that is remembered.
        """
        found: Opened = self._opened[kind](kind, identity, blob, parse)
        return found

    def _open_anew(
        self, kind: Kind, identity: str, blob: bytes, parse: Callable[[str, bytes], Opened]
    ) -> Opened:
        return parse(identity, self.open(kind, identity, blob))

    def open(self, kind: Kind, identity: str, blob: bytes) -> bytes:
        """Return the plain text of the entry ``identity``.

        Raises:
            SealError: the blob is not that entry of this store, or was changed.
        """
        header, body = blob[:_HEADER_BYTES], blob[_HEADER_BYTES:]
        if len(body) < _NONCE_BYTES + _TAG_BYTES or header[0] != VERSION:
            raise SealError(f"a {kind} entry is cut or of an unknown version")
        cipher = self._ciphers.get((int.from_bytes(header[1:], "big"), kind))
        if cipher is None:
            raise SealError(f"a {kind} entry is sealed by a data key that this process does not have")
        try:
            return cipher.decrypt(
                body[:_NONCE_BYTES], body[_NONCE_BYTES:], self._context(header, kind, identity)
            )
        except InvalidTag as error:
            raise SealError(f"a {kind} entry does not open under its name") from error

    def _context(self, header: bytes, kind: Kind, identity: str) -> bytes:
        return b"|".join((header, kind.encode(), self._store_id, identity.encode()))


def open_data_keys(
    copies: Sequence[Mapping[str, bytes]],
    store_id: bytes,
    keks: Sequence[KeyEncryptionKey],
    *,
    least: int = 0,
) -> dict[int, bytes]:
    """Return every data key that a configured KEK can open.

    Args:
        copies: the places where wraps lie; one that is damaged in one place may be whole in another.
        store_id: the store's.
        keks: the configured ones.
        least: data keys with a lower number are left closed: a reseal has dropped them.

    Raises:
        SealError: a data key that no configured KEK opens; the text names the fingerprints that would.
    """
    opened: dict[int, bytes] = {}
    for number, fingerprints in wrap_numbers({name: b"" for copy in copies for name in copy}).items():
        if number < least:
            continue
        for kek, copy in itertools.product(keks, copies):
            with contextlib.suppress(KeyError, SealError):
                opened[number] = kek.unwrap(number, copy[kek.field(number)], store_id)
                break
        else:
            wanted = ", ".join(sorted(fingerprints))
            had = ", ".join(kek.fingerprint for kek in keks)
            raise SealError(
                f"data key {number} is wrapped by the key(s) {wanted}; configured: {had}. "
                "Configure the old key next to the new one."
            )
    if not opened:
        raise SealError("the store holds no data key")
    return opened
