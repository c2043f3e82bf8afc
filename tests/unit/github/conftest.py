"""Keys, clocks and clients for the tests of ``broker.github``; and each test proves that nothing leaks."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.github.app_jwt import Signer
from broker.github.client import GitHubClient
from broker.github.private_key import AppPrivateKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Keys = tuple[AppPrivateKey, ...]
    RsaKeys = tuple[rsa.RSAPrivateKey, ...]


NOW = 1_795_000_000.0
SECRET = re.compile(
    r"gh[a-z]_[A-Za-z0-9._-]{8,}|eyJ[A-Za-z0-9_-]{8,}|PRIVATE KEY-----|[Bb]earer |eC1hY2Nlc3MtdG9rZW"
)


class FakeClock:
    """A clock that tests turn."""

    def __init__(self, now: float = NOW) -> None:
        self.time = now

    def now(self) -> float:
        return self.time


class Sleeps(list):
    """Waits that take no time, written down."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture(scope="session")
def rsa_keys() -> tuple[rsa.RSAPrivateKey, ...]:
    return tuple(rsa.generate_private_key(65537, 2048) for _ in range(3))


@pytest.fixture(scope="session")
def keys(rsa_keys: RsaKeys) -> tuple[AppPrivateKey, ...]:
    return tuple(AppPrivateKey(key) for key in rsa_keys)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
def signer(keys: Keys, clock: Any) -> Signer:
    return Signer(issuer="Iv23liABCDEF", keys=keys[:1], clock=clock)


@pytest.fixture
def make_client(signer: Signer, clock: Any, sleeps: Any) -> Callable[..., GitHubClient]:
    def make(transport: Any = None, **changes: Any) -> GitHubClient:
        given = {
            "base_url": "https://github.test/api/v3",
            "web_url": "https://github.test",
            "signer": signer,
            "clock": clock,
            "transport": transport,
            "sleep": sleeps,
            "jitter": lambda: 1.0,
        }
        return GitHubClient(**(given | changes))

    return make


@pytest.fixture(autouse=True)
def no_secret_in_any_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No token, JWT or key is in any record of any logger, at any level."""
    caplog.set_level(logging.DEBUG)
    yield
    formatter = logging.Formatter()
    for when in ("setup", "call"):
        for record in caplog.get_records(when):
            assert not SECRET.search(formatter.format(record)), record.name
