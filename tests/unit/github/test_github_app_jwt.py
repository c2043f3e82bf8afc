from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt
import pytest

from broker.github.app_jwt import Signer, sign

if TYPE_CHECKING:
    from broker.github.private_key import AppPrivateKey

    Keys = tuple[AppPrivateKey, ...]


NOW = 1_795_000_000.75


def claims(text: str, key: Any) -> dict:
    assert jwt.get_unverified_header(text)["alg"] == "RS256"
    return jwt.decode(
        text, key.rsa.public_key(), algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
    )


def test_claims_are_whole_numbers_and_the_issuer_is_stripped_text(keys: Keys) -> None:
    said = claims(sign(issuer=" 1234\n", key=keys[0], now=NOW), keys[0])
    assert said == {"iat": 1_794_999_940, "exp": 1_795_000_540, "iss": "1234"}
    assert all(type(said[name]) is int for name in ("iat", "exp"))


@pytest.mark.parametrize("issuer", ["", " ", "\n"])
def test_an_empty_issuer_is_refused(keys: Keys, clock: Any, issuer: str) -> None:
    with pytest.raises(ValueError, match="issuer"):
        sign(issuer=issuer, key=keys[0], now=NOW)
    with pytest.raises(ValueError, match="issuer"):
        Signer(issuer=issuer, keys=keys, clock=clock)
    with pytest.raises(ValueError, match="key"):
        Signer(issuer="1", keys=[], clock=clock)


def test_a_jwt_is_kept_for_eight_minutes(keys: Keys, clock: Any) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    first = signer.app_jwt()
    clock.time += 479
    assert signer.app_jwt() == first
    clock.time += 1
    second = signer.app_jwt()
    assert claims(second, keys[0])["exp"] == int(clock.time) + 540


def test_a_clock_that_is_set_back_does_not_keep_a_jwt_alive(keys: Keys, clock: Any) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    first = signer.app_jwt()
    clock.time -= 3600
    assert signer.app_jwt() != first


def test_times_follow_githubs_clock_once_learned(keys: Keys, clock: Any) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    signer.app_jwt()
    assert signer.clock_skew_s == 0
    signer.learn_clock(clock.time - 600)
    assert signer.clock_skew_s == -600
    assert claims(signer.app_jwt(), keys[0])["iat"] == int(clock.time) - 660
    clock.time += 100
    signer.learn_clock(clock.time)
    assert signer.clock_skew_s == 0


def test_the_key_that_works_is_used(keys: Keys, clock: Any) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    assert signer.active == 0
    claims(signer.app_jwt(), keys[0])
    claims(signer.signed(1).text, keys[1])
    signer.keep(1)
    assert signer.active == 1
    claims(signer.app_jwt(), keys[1])
    assert "eyJ" not in repr(signer.signed(1))


def test_keys_are_replaced_under_calls_that_run(keys: Keys, clock: Any) -> None:
    """A number belongs to one key for ever; a JWT of one that is gone is made by the one in use."""
    signer = Signer(issuer="1", keys=keys[:2], clock=clock)
    signer.keep(1)
    old = signer.signed(0)
    signer.replace([keys[2], keys[1]])
    assert signer.numbers == (2, 1)
    assert signer.active == 2
    claims(signer.app_jwt(), keys[2])
    claims(signer.signed(1).text, keys[1])
    assert signer.signed(0).key_index == 2
    signer.keep(old.key_index)  # GitHub's late answer to a call of before
    assert signer.active == 2
    assert signer.fingerprint(1) == keys[1].fingerprint
    assert signer.fingerprint(0) == keys[2].fingerprint
    with pytest.raises(ValueError, match="key"):
        signer.replace([])
    claims(signer.app_jwt(), keys[2])
    signer.replace(keys[:1])
    assert signer.numbers == (3,)
