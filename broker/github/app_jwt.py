"""App JWTs: how the app says who it is; no I/O, the time is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jwt

from broker.github.private_key import AppPrivateKey
from broker.ports import Clock

BACKDATED_S: Final = 60
LIFETIME_S: Final = 540
"""GitHub takes ``exp`` at most 600 s ahead of its own clock; exactly 600 fails now and then."""

REUSED_S: Final = 480


def sign(*, issuer: str, key: AppPrivateKey, now: float) -> str:
    """Return an RS256 app JWT valid from ``now - 60 s`` to ``now + 540 s`` (Unix seconds).

    Args:
        issuer: client id or app id; sent as text, which both kinds accept.
        key: one of the app's private keys.
        now: GitHub's time as well as it is known.

    Raises:
        ValueError: the issuer is empty.

    See "Generating a JSON Web Token (JWT) for a GitHub App": whole seconds only, ``iat`` in the past.
    """
    issuer = issuer.strip()
    if not issuer:
        raise ValueError("the app JWT needs an issuer: the app's client id or app id")
    claims = {"iat": int(now) - BACKDATED_S, "exp": int(now) + LIFETIME_S, "iss": issuer}
    return jwt.encode(claims, key.rsa, algorithm="RS256")


@dataclass(frozen=True, slots=True)
class SignedJwt:
    """A JWT and the number of the key that signed it. Its repr holds no JWT."""

    text: str
    key_index: int
    signed_at: float

    def __repr__(self) -> str:
        return f"SignedJwt(key_index={self.key_index})"


class Signer:
    """Makes app JWTs with the key that works, by GitHub's clock.

    Which key works and how far the clock is off are learned by the client from GitHub's answers. Each key
    has a number that is never given again, so that a call which is under way while the keys are replaced
    does not take one for another.

    Args:
        issuer: client id or app id.
        keys: private keys of the app, the preferred one first.
        clock: local wall time.

    Raises:
        ValueError: no issuer or no key.
    """

    def __init__(self, *, issuer: str, keys: Sequence[AppPrivateKey], clock: Clock) -> None:
        if not issuer.strip():
            raise ValueError("the app JWT needs an issuer: the app's client id or app id")
        self._issuer = issuer
        self._clock = clock
        self._keys: dict[int, AppPrivateKey] = {}
        self._next_number = 0
        self._active = 0
        self._offset_s = 0.0
        self._cached: dict[int, SignedJwt] = {}
        self.replace(keys)

    def replace(self, keys: Sequence[AppPrivateKey]) -> None:
        """Sign with these keys from now on, the first one first.

        Raises:
            ValueError: there is none; the old ones stay.
        """
        if not keys:
            raise ValueError("the app JWT needs a private key")
        known = {key: number for number, key in self._keys.items()}
        numbered: dict[int, AppPrivateKey] = {}
        for key in keys:
            number = known.get(key)
            if number is None:
                number = self._next_number
                self._next_number += 1
            numbered[number] = key
        self._keys = numbered
        self._active = next(iter(numbered))
        self._cached = {number: jwt for number, jwt in self._cached.items() if number in numbered}

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the configured keys, in order."""
        return tuple(self._keys)

    @property
    def active(self) -> int:
        """Number of the key in use."""
        return self._active

    def fingerprint(self, number: int) -> str:
        """Return the public fingerprint of a key; of the one in use if that key is gone."""
        return self._keys.get(number, self._keys[self._active]).fingerprint

    @property
    def clock_skew_s(self) -> float:
        """Seconds added to the local clock, learned from a JWT that GitHub refused; 0 until then."""
        return self._offset_s

    def app_jwt(self) -> str:
        """Return a JWT of the key in use, up to 8 minutes old."""
        return self.signed(self._active).text

    def signed(self, key_index: int) -> SignedJwt:
        """Return a JWT of one of the keys, up to 8 minutes old; of the one in use if that key is gone."""
        if key_index not in self._keys:
            key_index = self._active
        now = self._clock.now() + self._offset_s
        cached = self._cached.get(key_index)
        # A clock that was set back would else keep a JWT for longer than it lives.
        if cached is None or not 0 <= now - cached.signed_at < REUSED_S:
            text = sign(issuer=self._issuer, key=self._keys[key_index], now=now)
            cached = self._cached[key_index] = SignedJwt(text, key_index, now)
        return cached

    def keep(self, key_index: int) -> None:
        """Use this key from now on, if it is still configured: GitHub has accepted it."""
        if key_index in self._keys:
            self._active = key_index

    def learn_clock(self, github_now: float) -> None:
        """Sign by GitHub's clock from now on.

        Args:
            github_now: the ``Date`` of a reply that came just now, Unix seconds.
        """
        self._offset_s = github_now - self._clock.now()
        self._cached.clear()
