"""API keys: the form that the contract spells out, against code of the test's own."""

import hashlib
import re
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.access import keys
from broker.errors import InvalidApiKeyError

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
VECTOR = "ghbk_0Aa1Bb2Cc3Dd_Zz9Yy8Xx7Ww6Vv5Uu4Tt3Ss2Rr1Qq0PpABCDEFGHIJK4VLgCY"
VECTOR_SHA256 = "d6c4c248e4fb244c5d458530738ffc9f675420963c7b54cc776c765af71263fd"
PADDED = "ghbk_pad000000407_777777777777777777777777777777777777777777700ghKE"


def check_of(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), []
    while number:
        number, rest = divmod(number, 62)
        digits.append(BASE62[rest])
    return "".join(reversed(digits)).rjust(6, "0")


def test_a_fixed_key_is_read_as_the_contract_says() -> None:
    found = keys.parse(VECTOR)
    assert (found.id, found.sha256) == ("0Aa1Bb2Cc3Dd", VECTOR_SHA256)


def test_the_check_is_padded_on_the_left() -> None:
    assert PADDED[-6:].startswith("00")
    assert keys.parse(PADDED).sha256 == hashlib.sha256(PADDED.encode()).hexdigest()


@given(st.text(BASE62, min_size=12, max_size=12), st.text(BASE62, min_size=43, max_size=43))
def test_every_key_of_the_form_is_taken(key_id: str, secret: str) -> None:
    body = f"ghbk_{key_id}_{secret}"
    assert keys.parse(body + check_of(body)).id == key_id
    assert keys.checksum(body) == check_of(body)


@given(st.integers(0, len(VECTOR) - 1), st.sampled_from(BASE62 + "_-é\n\x00 "))
def test_one_wrong_character_is_noticed(position: int, instead: str) -> None:
    wrong = VECTOR[:position] + instead + VECTOR[position + 1 :]
    if wrong == VECTOR:
        return
    with pytest.raises(InvalidApiKeyError) as caught:
        keys.parse(wrong)
    assert wrong[18:61] not in str(caught.value) + caught.value.public


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "ghbk_",
        VECTOR + "\n",
        " " + VECTOR,
        VECTOR[:-1],
        VECTOR + "0",
        VECTOR.lower(),
        VECTOR.replace("ghbk", "ghbx"),
        VECTOR.replace("_", "-"),
        "ghbk_" + "0" * 12 + "_" + "0" * 49,
        "ghbk_" + "\u0660" * 12 + "_" + "0" * 49,  # digits, but of another script
        "ghp_" + "a" * 36,
    ],
)
def test_what_is_not_the_form_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidApiKeyError):
        keys.parse(wrong)


def test_new_keys_have_the_form_and_differ() -> None:
    made = [keys.generate() for _ in range(50)]
    assert len({presented.id for _, presented in made}) == 50
    for secret, presented in made:
        text = secret.reveal()
        assert re.fullmatch(r"ghbk_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", text)
        assert text[-6:] == check_of(text[:-6])
        assert presented.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert text not in repr(secret) + str(secret) + repr(presented)
        assert text[18:] not in repr(presented)


def test_a_digest_matches_itself_only() -> None:
    found = keys.parse(VECTOR)
    assert found.matches(VECTOR_SHA256)
    assert not found.matches(VECTOR_SHA256[:-1] + "0")
    assert not found.matches("")
    assert not found.matches("é" * 64)
