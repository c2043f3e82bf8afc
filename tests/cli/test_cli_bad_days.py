"""Bad days on the way to the broker: what the user reads last, how soon, and the exit status."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from cli_stage import ANSWER, TOKEN, Say, problem

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from cli_stage import FakeBroker, Run

ARGUMENTS = ("github", "token", "a/b")
HTML = b"<html><body>502 Bad Gateway <script>alert(1)</script></body></html>"


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Send half of an answer, then a reset."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"token": "ghs_')
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def test_a_reset_in_the_middle_of_a_body_is_tried_again(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(act=reset), Say(act=reset), Say(200, ANSWER)]
    assert (run(*ARGUMENTS).out, len(broker.seen)) == (f"{TOKEN}\n", 3)


def test_resets_without_end_are_4_in_one_line(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(act=reset)]
    ran = run(*ARGUMENTS, "--timeout", "1")
    assert (ran.code, len(ran.lines)) == (4, 1)
    assert "gave up after" in ran.err
    assert broker.url in ran.err


@pytest.mark.parametrize(
    ("status", "code", "wait", "said"),
    [
        (429, "rate_limited", "3600", "start fewer runs at once"),
        (503, "store_unavailable", "40", "tell the broker's operator if it lasts"),
        (503, "github_rate_limited", "900", "GitHub asks to wait"),
    ],
)
def test_a_wait_beyond_the_timeout_is_told_at_once(  # noqa: PLR0917 - fixtures
    run: Run, broker: FakeBroker, status: int, code: str, wait: str, said: str
) -> None:
    """Whoever reads the log learns how long, and what to do, instead of a wait that leads nowhere."""
    broker.answers = [problem(status, code, Retry_After=wait)]
    started = time.monotonic()
    ran = run(*ARGUMENTS, "--timeout", "30")
    assert time.monotonic() - started < 10
    assert (ran.code, len(ran.lines), len(broker.seen)) == (4, 1, 1)
    for part in (said, f"asks to wait {wait} s", f"HTTP {status}", "from-the-broker"):
        assert part in ran.err


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (502, "github_unavailable", "see its status page"),
        (504, "github_unavailable", "see its status page"),
        (502, "github_rejected_app", "its GitHub App settings are wrong"),
    ],
)
def test_what_is_githubs_fault_is_said_to_be(
    run: Run, broker: FakeBroker, status: int, code: str, said: str
) -> None:
    broker.answers = [problem(status, code)]
    ran = run(*ARGUMENTS, "--timeout", "1")
    assert (ran.code, len(ran.lines)) == (4, 1)
    assert said in ran.err


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateways_page_is_tried_again_and_then_told_as_what_it_is(
    run: Run, broker: FakeBroker, status: int
) -> None:
    page = Say(status, HTML, kind="text/html")
    broker.answers = [page, page, Say(200, ANSWER)]
    assert run(*ARGUMENTS).out == f"{TOKEN}\n"
    broker.answers = [page]
    ran = run(*ARGUMENTS, "--timeout", "1")
    assert (ran.code, len(ran.lines)) == (4, 1)
    assert "not the broker's own (text/html)" in ran.err
    assert "proxy, gateway" in ran.err
    assert "script" not in ran.err


def test_a_login_page_in_the_way_is_no_token(run: Run, broker: FakeBroker) -> None:
    """A captive portal answers 200 to everything."""
    broker.answers = [Say(200, b"<html>Please log in</html>", kind="text/html")]
    ran = run(*ARGUMENTS)
    assert (ran.code, ran.out, len(ran.lines), len(broker.seen)) == (4, "", 1, 1)
    assert "unexpected answer" in ran.err
    assert "BROKER_API_URL" in ran.err


def test_a_replica_that_ends_is_not_noticed(run: Run, broker: FakeBroker) -> None:
    """What a draining broker says last: a 504 that closes the connection; another replica answers."""
    broker.answers = [problem(504, "github_unavailable", Connection="close"), Say(200, ANSWER)]
    ran = run(*ARGUMENTS)
    assert (ran.code, ran.out, ran.err) == (0, f"{TOKEN}\n", "")


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "answer"),
        (signal.SIGINT, "pause"),
        (signal.SIGTERM, "answer"),
        (signal.SIGHUP, "answer"),
    ],
)
def test_a_signal_ends_it_at_once_and_quietly(
    run: Run, broker: FakeBroker, number: signal.Signals, moment: str
) -> None:
    """While it waits for an answer, and while it waits for the next try; the status is the signal's."""
    if moment == "answer":
        broker.answers = [Say(act=lambda _: broker.hang.wait(20) and None)]
    else:
        broker.answers = [problem(503, "store_unavailable", Retry_After="20")]
    process = subprocess.Popen(
        [run.command, *ARGUMENTS], env=run.with_(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 20
    while not broker.seen and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    expected = 130 if number == signal.SIGINT else -number
    assert (process.returncode, out, err) == (expected, b"", b"")


@pytest.mark.parametrize("words", [("github", "token", "a/b"), ("github", "ls"), ("--help",)])
def test_a_reader_that_left_before_the_result(run: Run, broker: FakeBroker, words: tuple[str, ...]) -> None:
    """As in ``broker-cli … | true``: the status of SIGPIPE, and nothing on stderr."""
    if "ls" in words:
        broker.answers = [Say(200, {"repositories": [], "next_cursor": None})]
    script = f'{{ sleep 0.5; "$0" {" ".join(words)}; echo "status $?" >&2; }} | true'
    done = subprocess.run(
        ["sh", "-c", script, run.command], env=run.with_(), capture_output=True, timeout=30, check=False
    )
    nothing = "ls" in words  # an empty list is no output, so nobody is missed
    assert done.stderr.decode() == f"status {0 if nothing else 141}\n"
