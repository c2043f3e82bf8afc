"""Logs: no secret at any level, one line an event, whatever the values hold."""

import asyncio
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from broker.access.keys import generate
from broker.observe import (
    REQUEST_ID,
    ConsoleFormatter,
    JsonFormatter,
    Rendered,
    configure_logging,
    log_rendered,
)
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


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()], ids=["json", "console"])
@pytest.mark.parametrize("client_ip", [None, "192.0.2.7"])
def test_a_line_of_which_most_was_rendered_before_says_the_same(
    formatter: logging.Formatter, client_ip: str | None
) -> None:
    common = {"event": "token.issued", "key_name": f'a "name" of {LEGACY}', "repositories": ["acme/a"]}
    own = {"request_id": "r-1"} | ({} if client_ip is None else {"client_ip": client_ip})
    prepared = Rendered(Rendered.of(common).of_request("r-1", client_ip))
    again, first = record("token.issued", audit=prepared), record("token.issued", audit=own | common)
    again.created = first.created
    line = formatter.format(again)
    assert line == formatter.format(first)
    assert LEGACY not in line


def test_fields_of_the_caller_cannot_replace_ours() -> None:
    found = json.loads(JsonFormatter().format(record("true", audit={"message": "false", "level": "debug"})))
    assert (found["message"], found["level"]) == ("true", "info")


# -- the whole of it, as a process has it ----------------------------------------------------------

LOGGERS = ("broker", "broker.github.client", "uvicorn.error", "httpx", "redis", "asyncio", "somebody.else")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@pytest.fixture
def logging_of_a_process() -> Iterator[None]:
    """Put back what ``configure_logging`` changes for a whole process."""
    root = logging.getLogger()
    kept = (root.handlers[:], root.level, sys.excepthook, threading.excepthook)
    levels = {name: logging.getLogger(name).level for name in ("broker", "uvicorn.error")}
    yield
    root.handlers[:], level, sys.excepthook, threading.excepthook = kept
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    for name, one in levels.items():
        logging.getLogger(name).setLevel(one)


@pytest.mark.usefixtures("logging_of_a_process")
@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_no_logger_at_any_level_lets_a_secret_out(
    form: Literal["json", "console"], level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours and those of libraries: message, arguments, fields, exceptions with their causes."""
    configure_logging(form=form, level=level)
    for text, _ in SECRETS.values():
        for name in LOGGERS:
            for number in map(logging.getLevelName, LEVELS):
                logger = logging.getLogger(name)
                logger.log(number, text)
                logger.log(number, "%s of %r", text, {"x": text}, extra={"zone": text, "deep": [{"a": text}]})
            try:
                _fail(text)
            except ValueError:
                logging.getLogger(name).exception("it failed: %s", text)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("it failed") >= len(SECRETS) * len(LOGGERS)
    for text, core in SECRETS.values():
        assert core not in err, text[:10]


@pytest.mark.usefixtures("logging_of_a_process")
@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_without_a_record_says_what_one_with_a_record_does(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(form=form, level="info")
    log = logging.getLogger("broker.audit")
    members = Rendered.of({"event": "token.issued", "key_name": 'a "name"'}).of_request("r-1", "192.0.2.7")
    log_rendered(log, "token.issued", members)
    log.info("token.issued", extra={"audit": Rendered(members)})
    log.setLevel(logging.WARNING)
    log_rendered(log, "token.issued", members)
    log.setLevel(logging.NOTSET)
    first, second = capsys.readouterr().err.splitlines()
    time_of_day = re.compile(r"\d\d:\d\d:\d\d\.\d\d\d")
    assert time_of_day.sub("", first) == time_of_day.sub("", second)
    assert "192.0.2.7" in first


def _fail(text: str) -> None:
    try:
        raise KeyError(text)  # noqa: TRY301
    except KeyError as error:
        error.add_note(text)
        raise ValueError(f"because of {text}") from error


@pytest.mark.usefixtures("logging_of_a_process")
def test_what_nobody_caught_is_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(form="json", level="info")
    text, core = SECRETS["key"]
    try:
        _fail(text)
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=_fail, args=(text,))
    thread.start()
    thread.join()
    warnings.showwarning(f"a warning of {text}", UserWarning, "file.py", 1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines[:2]] == ["uncaught", "uncaught"]
    assert "ValueError" in lines[0]["traceback"]
    assert "a warning of" in lines[2]["message"]
    assert core not in json.dumps(lines)


# -- the request's id --------------------------------------------------------------------------------


async def test_a_line_has_the_id_of_the_request_that_is_served_also_from_a_task_it_began() -> None:
    async def line() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(JsonFormatter().format(record("x")))
        return found

    assert "request_id" not in await line()
    outside = REQUEST_ID.set("r-1")
    task = asyncio.create_task(line())
    assert (await line())["request_id"] == "r-1"
    REQUEST_ID.reset(outside)
    assert (await task)["request_id"] == "r-1"
    assert "request_id" not in await line()


def test_an_id_that_a_line_names_itself_stays() -> None:
    """A revocation that is worked off later tells the request that asked for it."""
    outside = REQUEST_ID.set("r-2")
    try:
        audit = {"event": "token.revoked", "request_id": "r-1"}
        assert json.loads(JsonFormatter().format(record("x", audit=audit)))["request_id"] == "r-1"
        assert json.loads(JsonFormatter().format(record("x", request_id="r-0")))["request_id"] == "r-0"
        assert "request_id=r-2" in ConsoleFormatter().format(record("x"))
    finally:
        REQUEST_ID.reset(outside)
