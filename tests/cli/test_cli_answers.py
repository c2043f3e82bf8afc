"""Each refusal and failure of the broker: exit status, message, tries."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest
from cli_stage import ANSWER, KEY, KEY_ID, TOKEN, Say, problem

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from cli_stage import FakeBroker, Run


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "invalid_request", 1),
        (401, "invalid_api_key", 3),
        (403, "forbidden", 1),
        (403, "blocked", 1),
        (403, "installation_suspended", 1),
        (403, "permission_not_granted", 1),
        (404, "not_installed", 1),
        (404, "unknown_host", 1),
        (404, "not_found", 1),
        (405, "method_not_allowed", 1),
        (409, "conflict", 1),
        (413, "payload_too_large", 1),
        (415, "unsupported_media_type", 1),
        (422, "not_read_only", 1),
        (422, "invalid_request", 1),
        (418, "teapot", 1),
        (408, "request_timeout", 4),
        (500, "internal_error", 4),
        (501, "not_implemented", 4),
    ],
)
def test_a_status_becomes_an_exit_status_at_the_first_try(
    run: Run, broker: FakeBroker, status: int, code: str, expected: int
) -> None:
    broker.answers = [problem(status, code, "What went wrong.")]
    ran = run("github", "token", "a/b")
    assert (ran.code, len(ran.lines), len(broker.seen)) == (expected, 1, 1)
    for part in ("What went wrong", code, str(status), "from-the-broker"):
        assert part in ran.err


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_is_transient_is_tried_again(run: Run, broker: FakeBroker, status: int) -> None:
    broker.answers = [
        problem(status, "store_unavailable"),
        problem(status, "store_unavailable"),
        Say(200, ANSWER),
    ]
    ran = run("github", "token", "a/b")
    assert (ran.code, ran.out, ran.err) == (0, f"{TOKEN}\n", "")
    assert len(broker.seen) == 3
    assert len({seen.headers["X-Request-Id"] for seen in broker.seen}) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_stays_transient_is_4_within_the_timeout(run: Run, broker: FakeBroker, status: int) -> None:
    broker.answers = [problem(status, "github_unavailable", "GitHub is away.")]
    started = time.monotonic()
    ran = run("github", "token", "a/b", "--timeout", "1.5")
    assert time.monotonic() - started < 3
    assert (ran.code, len(ran.lines)) == (4, 1)
    assert len(broker.seen) > 1
    assert "GitHub is away" in ran.err
    assert "gave up after" in ran.err


def test_retry_after_in_seconds_is_heeded(run: Run, broker: FakeBroker) -> None:
    broker.answers = [problem(429, "rate_limited", Retry_After="1"), Say(200, ANSWER)]
    started = time.monotonic()
    assert run("github", "token", "a/b").code == 0
    assert time.monotonic() - started >= 1


def test_retry_after_as_a_date_is_counted_from_the_replys_own_date(run: Run, broker: FakeBroker) -> None:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(503)
        handler.send_header("Date", formatdate(1_000_000, usegmt=True))
        handler.send_header("Retry-After", formatdate(1_000_001, usegmt=True))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    broker.answers = [Say(act=act), Say(200, ANSWER)]
    started = time.monotonic()
    assert run("github", "token", "a/b").code == 0
    assert 1 <= time.monotonic() - started < 5


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_retry_after_beyond_the_timeout_stops_at_once(run: Run, broker: FakeBroker, form: str) -> None:
    wait = "3660" if form == "seconds" else formatdate(time.time() + 3660, usegmt=True)
    broker.answers = [problem(503, "github_rate_limited", "GitHub's limit.", Retry_After=wait)]
    started = time.monotonic()
    ran = run("github", "token", "a/b")
    assert time.monotonic() - started < 3
    assert (ran.code, len(broker.seen)) == (4, 1)
    assert "asks to wait 3" in ran.err
    assert "--timeout 30 s" in ran.err


@pytest.mark.parametrize("wait", ["soon", "-1", "", "²", "1e9", "Fri, 99 Foo 2026"])
def test_a_retry_after_that_makes_no_sense_is_ignored(run: Run, broker: FakeBroker, wait: str) -> None:
    answer = problem(503, "store_unavailable", Retry_After=wait.encode().decode("latin-1"))
    broker.answers = [answer, Say(200, ANSWER)]
    assert run("github", "token", "a/b").code == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_key_follows_a_redirect(run: Run, broker: FakeBroker, status: int) -> None:
    where = f"{broker.url.replace('://', '://u:pw1234@')}/elsewhere?token=hunter2#x"
    broker.answers = [Say(status, b"", {"Location": where}), Say(200, ANSWER)]
    ran = run("github", "token", "a/b")
    assert (ran.code, len(ran.lines), len(broker.seen)) == (2, 1, 1)
    assert f"{broker.url}/elsewhere" in ran.err
    assert "hunter2" not in ran.err
    assert "pw1234" not in ran.err


def test_304_and_a_redirect_to_nowhere(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(304, b"")]
    assert run("whoami").code == 2


@pytest.mark.parametrize(
    ("source", "named"),
    [("environment", "BROKER_API_KEY"), ("file", "key.txt"), ("profile", "profile.json")],
)
def test_401_names_where_the_key_came_from(run: Run, broker: FakeBroker, source: str, named: str) -> None:

    environment: dict[str, str | None] = {}
    if source == "file":
        (run.home / "key.txt").write_text(f"{KEY}\n")
        environment = {"BROKER_API_KEY": None, "BROKER_API_KEY_FILE": str(run.home / "key.txt")}
    elif source == "profile":
        profile = run.home / ".config" / "broker-cli" / "profile.json"
        profile.parent.mkdir(parents=True)
        profile.write_text(json.dumps({"version": 1, "api_url": broker.url, "api_key": KEY}))
        profile.chmod(0o600)
        environment = {"BROKER_API_KEY": None}
    broker.answers = [problem(401, "invalid_api_key")]
    ran = run("whoami", **environment)
    assert ran.code == 3
    assert named in ran.err
    assert KEY_ID in ran.err


def test_not_installed_shows_the_install_link(run: Run, broker: FakeBroker) -> None:
    link = "https://github.com/apps/acme-broker/installations/new"
    broker.answers = [problem(404, "not_installed", f"Install the app: {link}")]
    assert link in run("github", "token", "a/b").err


def test_forbidden_names_the_key_and_the_admin(run: Run, broker: FakeBroker) -> None:
    broker.answers = [problem(403, "forbidden")]
    ran = run("github", "token", "a/b")
    assert KEY_ID in ran.err
    assert "admin" in ran.err


def test_a_refusal_is_cleaned_and_bounded(run: Run, broker: FakeBroker) -> None:
    detail = f"\x1b[2J\x07 evil\r\nbroker-cli: all fine \u202e {KEY} {TOKEN} " + "x" * 100_000
    broker.answers = [problem(403, "forbidden", detail)]
    ran = run("github", "token", "a/b", "-v")
    assert ran.code == 1
    assert len(ran.err) < 3000
    assert "\x1b" not in ran.err
    assert "\u202e" not in ran.err


@pytest.mark.parametrize("status", [403, 404, 500])
@pytest.mark.parametrize(
    "body", [b"<html><h1>Blocked by corp</h1></html>", b"", b"[]", b'{"error": "x"}', b"{"]
)
def test_an_answer_that_is_not_the_brokers_is_short(
    run: Run, broker: FakeBroker, status: int, body: bytes
) -> None:
    broker.answers = [Say(status, body, kind="text/html; charset=utf-8")]
    ran = run("github", "token", "a/b")
    assert (ran.code, len(ran.lines)) == (4 if status == 500 else 1, 1)
    assert "not the broker's own" in ran.err
    assert "<h1>" not in ran.err
    assert broker.seen[0].headers["X-Request-Id"] in ran.err


def test_an_endless_body_is_cut(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(200, b'{"token": "' + b"x" * 1_100_000 + b'"}')]
    ran = run("github", "token", "a/b")
    assert (ran.code, len(broker.seen)) == (4, 1)
    assert "1 MiB" in ran.err


def test_an_answer_cut_off_is_tried_again(run: Run, broker: FakeBroker) -> None:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"token": "abc"}')

    broker.answers = [Say(act=act), Say(200, ANSWER)]
    assert run("github", "token", "a/b").out == f"{TOKEN}\n"


def test_a_chunked_answer_is_read(run: Run, broker: FakeBroker) -> None:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b'9\r\n{"token":\r\n6\r\n"abc"}\r\n0\r\n\r\n')

    broker.answers = [Say(act=act)]
    assert run("github", "token", "a/b").out == "abc\n"


def test_a_connection_without_an_answer_is_tried_again(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(act=lambda _: None), Say(200, ANSWER)]
    assert run("github", "token", "a/b").code == 0


def test_what_is_not_http_is_4_at_once(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(act=lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n") and None)]
    ran = run("github", "token", "a/b")
    assert (ran.code, len(broker.seen)) == (4, 1)
    assert "not HTTP" in ran.err


def test_a_broker_that_never_answers_is_4_in_time(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(act=lambda _: broker.hang.wait(20) and None)]
    started = time.monotonic()
    ran = run("github", "token", "a/b", "--timeout", "1")
    assert 1 <= time.monotonic() - started < 3
    assert (ran.code, len(ran.lines)) == (4, 1)
    assert "--timeout 1 s" in ran.err


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_trickle_of_bytes_does_not_outlast_the_timeout(run: Run, broker: FakeBroker, start: bytes) -> None:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start or b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not broker.hang.wait(0.1):
            handler.wfile.write(b"x")

    broker.answers = [Say(act=act)]
    started = time.monotonic()
    assert run("github", "token", "a/b", "--timeout", "1").code == 4
    assert time.monotonic() - started < 3


def test_nobody_listening_is_tried_until_the_timeout(run: Run, broker: FakeBroker) -> None:
    broker.close()
    ran = run("github", "token", "a/b", "--timeout", "1", "-v")
    assert ran.code == 4
    assert ran.err.count("Connection refused") > 1


def test_a_broker_that_comes_up_late_is_found(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(act=lambda _: None)] * 3 + [Say(200, ANSWER)]
    assert run("github", "token", "a/b", "--timeout", "10").code == 0
