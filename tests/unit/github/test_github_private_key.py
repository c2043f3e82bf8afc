from __future__ import annotations

import base64
import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import PrivateKeyError
from broker.github.private_key import AppPrivateKey, parse_private_key, parse_private_keys

if TYPE_CHECKING:
    Keys = tuple[AppPrivateKey, ...]
    RsaKeys = tuple[rsa.RSAPrivateKey, ...]


def pem(key: Any, kind: Any = PrivateFormat.TraditionalOpenSSL, encryption: Any = None) -> str:
    return key.private_bytes(Encoding.PEM, kind, encryption or NoEncryption()).decode()


FORMS = {
    "as downloaded": lambda text: text,
    "no last newline": str.strip,
    "blank around": lambda text: f"\n  {text}\n\n",
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR": lambda text: text.replace("\n", "\r"),
    "escapes": lambda text: text.replace("\n", "\\n"),
    "CRLF escapes": lambda text: text.replace("\n", "\\r\\n"),
    "quoted escapes": lambda text: '"' + text.replace("\n", "\\n") + '"',
    "single quotes": lambda text: f"'{text}'",
    "blanks for newlines": lambda text: text.replace("\n", " "),
    "indented": lambda text: text.replace("\n", "\n    "),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(text.encode()).decode(),
    "quoted base64": lambda text: '"' + base64.b64encode(text.encode()).decode() + '"\n',
    "base64 of CRLF": lambda text: base64.b64encode(text.replace("\n", "\r\n").encode()).decode(),
    "byte order mark": lambda text: "\ufeff" + text,
    "bytes": str.encode,
    "bytes with byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", [PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8])
def test_every_usual_form_gives_the_same_key(rsa_keys: RsaKeys, keys: Keys, kind: Any, form: Any) -> None:
    parsed = parse_private_key(form(pem(rsa_keys[0], kind)))
    assert parsed == keys[0]
    assert parsed.pkcs8_der() == keys[0].pkcs8_der()
    assert parse_private_keys(form(pem(rsa_keys[0], kind))) == (keys[0],)


def test_pkcs8_der_is_the_canonical_form(rsa_keys: RsaKeys, keys: Keys) -> None:
    der = keys[0].pkcs8_der()
    again = serialization.load_der_private_key(der, None)
    assert again.private_numbers() == rsa_keys[0].private_numbers()


def test_fingerprint_is_that_of_github(rsa_keys: RsaKeys, keys: Keys) -> None:
    """``openssl rsa -in K -pubout -outform DER | openssl sha256 -binary | openssl base64``."""
    text = rsa_keys[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    der = base64.b64decode("".join(text.splitlines()[1:-1]))
    digest = __import__("hashlib").sha256(der).digest()
    assert keys[0].fingerprint == "SHA256:" + base64.b64encode(digest).decode()


def refused(text: str) -> str:
    with pytest.raises(PrivateKeyError) as caught:
        parse_private_key(text)
    error = caught.value
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return str(error)


def test_refusals_name_what_was_pasted(rsa_keys: RsaKeys) -> None:
    key = rsa_keys[0]
    other = dsa.generate_private_key(2048)
    locked = BestAvailableEncryption(b"secret")
    public = key.public_key()
    cases = {
        "encrypted": [pem(key, encryption=locked), pem(key, PrivateFormat.PKCS8, locked)],
        "OPENSSH": [
            pem(key, PrivateFormat.OpenSSH),
            pem(ed25519.Ed25519PrivateKey.generate(), PrivateFormat.OpenSSH),
        ],
        "EC key": [
            pem(ec.generate_private_key(ec.SECP256R1())),
            pem(ec.generate_private_key(ec.SECP256R1()), PrivateFormat.PKCS8),
        ],
        "Ed25519": [pem(ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8)],
        "DSA": [pem(other), pem(other, PrivateFormat.PKCS8)],
        "public key": [
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        ],
        "certificate": ["-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"],
        "2048": [pem(rsa.generate_private_key(65537, 1024))],  # noqa: S505 - it has to be refused
        "several": [pem(key) + pem(rsa_keys[1])],
        "cut off": [pem(key)[:400], pem(key) + "-----BEGIN RSA PRIVATE KEY-----"],
        "damaged": [pem(key).replace(pem(key).splitlines()[3], ""), pem(key).replace("MII", "???")],
        "empty": ["", "  \n", '""', b"", "\\n"],
        "not a private key": [
            "hello",
            "/etc/key.pem",
            b"\xff\xfe\x00",
            "é",
            "aGVsbG8=",
            "-----BEGIN PGP MESSAGE-----\nx\n-----END PGP MESSAGE-----",
        ],
    }
    for word, texts in cases.items():
        for text in texts:
            assert word in refused(text), text[:60]


def test_no_error_and_no_repr_holds_key_text(rsa_keys: RsaKeys, keys: Keys) -> None:
    text = pem(rsa_keys[0])
    lines = text.splitlines()[1:-1]
    for broken in (
        text[:700],
        text.replace(lines[3], "?" * 64),
        text + text,
        lines[0],
        text.replace("RSA", "EC"),
    ):
        shown = refused(broken)
        assert not any(line[:16] in shown for line in lines)
    assert repr(keys[0]) == str(keys[0]) == f"AppPrivateKey({keys[0].fingerprint})"


def test_a_key_is_not_copied_or_pickled(keys: Keys) -> None:
    for spread in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            spread(keys[0])


def test_several_keys_in_order_each_once(rsa_keys: RsaKeys, keys: Keys) -> None:
    texts = [pem(key) for key in rsa_keys]
    packed = ",".join(base64.b64encode(text.encode()).decode() for text in (*texts, texts[0]))
    for text in ("".join(texts) + texts[0], packed, ",".join(texts)):
        assert parse_private_keys(text) == keys


@pytest.mark.parametrize("text", ["", ",", "hello,", "aGVsbG8=,aGVsbG8="])
def test_several_keys_are_each_checked(text: str) -> None:
    with pytest.raises(PrivateKeyError):
        parse_private_keys(text)


@given(
    st.one_of(
        st.text(),
        st.binary(),
        st.text().map(lambda t: f"-----BEGIN RSA PRIVATE KEY-----{t}-----END RSA PRIVATE KEY-----"),
    )
)
def test_nothing_else_is_ever_raised(text: str) -> None:
    for parse in (parse_private_key, parse_private_keys):
        with pytest.raises(PrivateKeyError):
            parse(text)
