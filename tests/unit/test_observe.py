"""Logs: no secret at any level, one line an event, whatever the values hold."""

import json
import logging
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from broker.access.keys import generate
from broker.observe import ConsoleFormatter, JsonFormatter
from broker.redaction import redact
from broker.sandbox import token_text

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJJdjIzIn0.c2lnbmF0dXJl-_x"
LEGACY = token_text.legacy()
STATELESS = token_text.stateless(app_id=1, installation_id=2, issued_at=1, expires_at=3601)
KEY = generate()[0].reveal()
PEM = (
    rsa.generate_private_key(65537, 2048)
    .private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    .decode()
)
SECRETS = {
    "legacy token": (LEGACY, LEGACY[4:]),
    "stateless token": (STATELESS, STATELESS[-60:]),
    "token with dots and dashes": ("ghs_" + "a-b.c_d-" * 6, "a-b.c_d"),
    "token of a user": ("ghu_" + "A1" * 18, "A1A1A1"),
    "key": (KEY, KEY[18:]),
    "app jwt": (JWT, "c2lnbmF0dXJl"),
    "pem": (PEM, PEM.splitlines()[3]),
    "pem, escaped": (PEM.replace("\n", "\\n"), PEM.splitlines()[3]),
    "pem, cut off": (PEM[:500], PEM.splitlines()[3]),
    "bearer": ("Authorization: Bearer some-opaque.secret", "some-opaque"),
    "basic": ("authorization: Basic eDp5c2VjcmV0", "eDp5c2VjcmV0"),
    "token scheme": ("Authorization: token 0123456789abcdef0123", "0123456789abcdef"),
    "header in a dict": ("{'authorization': 'Bearer some-opaque.secret'}", "some-opaque"),
    "header as bytes": ("(b'authorization', b'Bearer some-opaque.secret')", "some-opaque"),
    "url": ("https://x-access-token:pass-word@github.com/a/b.git", "pass-word"),
    "redis url": ("redis://:hunter2hunter2@10.0.0.1:6379/0?prefix=a", "hunter2"),
    "redis url with at": ("rediss://user:p@ss@wordy@redis.example.com/0", "wordy"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_taken_out(name: str) -> None:
    text, core = SECRETS[name]
    for around in ("{}", "before {} after", 'x="{}"', "[{}]", "{},{}"):
        assert core not in redact(around.replace("{}", text))


@pytest.mark.parametrize(
    "text", ["acme/widgets", "https://github.com/acme/widgets", "a:b@c", "key id 0Aa1Bb2Cc3Dd"]
)
def test_the_rest_stays(text: str) -> None:
    assert redact(text) == text


def record(
    message: str, *arguments: object, error: BaseException | None = None, **extra: Any
) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("broker.x", logging.INFO, "f", 1, message, arguments, info)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()], ids=["json", "console"])
@pytest.mark.parametrize("name", SECRETS)
def test_no_way_into_a_log_line(formatter: logging.Formatter, name: str) -> None:
    text, core = SECRETS[name]
    try:
        raise ValueError(f"it was {text}")  # noqa: TRY301
    except ValueError as error:
        ways = [
            record(text),
            record("%s", text),
            record("x", cause=text),
            record("x", deep={"a": [text, {"b": text}]}),
            record("x", thing=ValueError(text)),
            record("x", raw=text.encode()),
            record("x", audit={"event": "token.denied", "reason": text, "repositories": [text]}),
            record("x", error=error),
        ]
    for way in ways:
        line = formatter.format(way)
        assert core not in line
        if isinstance(formatter, JsonFormatter):
            assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("name", SECRETS)
def test_a_json_line_stays_json_and_keeps_its_other_fields(name: str) -> None:
    text, _ = SECRETS[name]
    found = json.loads(JsonFormatter().format(record("x", cause=text, zone="z1")))
    assert (found["message"], found["zone"]) == ("x", "z1")


@given(st.text(), st.text())
def test_one_event_is_one_line(message: str, value: str) -> None:
    """Nobody forges a line, moves the cursor or hides text with what is in a name or a reason."""
    for formatter in (JsonFormatter(), ConsoleFormatter()):
        line = formatter.format(record("%s", message, client=value, audit={"event": "e", "reason": value}))
        assert len(line.splitlines()) == 1
        assert line.isprintable() or all(ord(char) >= 0xA0 or char.isprintable() for char in line)


def test_control_characters_of_a_traceback_reach_no_terminal() -> None:
    try:
        raise ValueError("a\x1b[2Jb\rc\u2028d")  # noqa: TRY301
    except ValueError:
        made = record("x")
        made.exc_info = sys.exc_info()
    shown = ConsoleFormatter().format(made)
    assert "\n" in shown
    assert not {"\x1b", "\r", "\u2028"} & set(shown)


def test_the_audit_is_flat_on_the_line() -> None:
    line = JsonFormatter().format(record("token.issued", audit={"event": "token.issued", "key_id": "k"}))
    found = json.loads(line)
    assert (found["event"], found["key_id"]) == ("token.issued", "k")
    assert "audit" not in found


def test_fields_of_the_caller_cannot_replace_ours() -> None:
    found = json.loads(JsonFormatter().format(record("true", audit={"message": "false", "level": "debug"})))
    assert (found["message"], found["level"]) == ("true", "info")
