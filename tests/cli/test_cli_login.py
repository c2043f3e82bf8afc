"""`broker-cli login` and `logout`: what is kept, where, and only after the broker knew the key."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from cli_stage import KEY, KEY_ID, SECRET, WHOAMI, Say, problem

if TYPE_CHECKING:
    from pathlib import Path

    from cli_stage import FakeBroker, Here, Run


@pytest.fixture
def alone(here: Here, broker: FakeBroker) -> Here:
    """The client without a key in the environment."""
    here.monkeypatch.delenv("BROKER_API_KEY")
    here.monkeypatch.delenv("BROKER_API_URL")
    broker.answers = [Say(200, WHOAMI)]
    return here


def profile(home: Path) -> Path:
    return home / ".config" / "broker-cli" / "profile.json"


def test_the_key_from_stdin_is_checked_and_kept(alone: Here, broker: FakeBroker) -> None:
    ran = alone("login", "--api-url", f"{broker.url}/", stdin=f"{KEY}\n".encode())
    assert (ran.code, ran.out, len(ran.lines)) == (0, "", 1), ran.err
    assert KEY_ID in ran.err
    (seen,) = broker.seen
    assert (seen.method, seen.path, seen.headers["Authorization"]) == ("GET", "/v1/whoami", f"Bearer {KEY}")
    kept = profile(alone.home)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert json.loads(kept.read_text()) == {
        "version": 1,
        "api_url": broker.url,
        "api_key": KEY,
        "ca_file": None,
    }
    assert [entry.name for entry in kept.parent.iterdir()] == ["profile.json"]
    # Without anything in the environment the next command finds all it needs.
    assert alone("whoami").code == 0
    assert broker.seen[1].headers["Authorization"] == f"Bearer {KEY}"


def test_the_profiles_key_goes_nowhere_else(alone: Here, broker: FakeBroker) -> None:
    alone("login", "--api-url", broker.url, stdin=KEY.encode())
    broker.seen.clear()
    for other in (broker.url.replace("127.0.0.1", "localhost"), f"{broker.url}/other"):
        ran = alone("whoami", "--api-url", other)
        assert (ran.code, broker.seen) == (3, [])


@pytest.mark.parametrize("before", [None, "an older profile"])
@pytest.mark.parametrize(
    ("answer", "key", "code"),
    [
        (problem(401, "invalid_api_key"), KEY, 3),
        (problem(503, "store_unavailable"), KEY, 4),
        (Say(200, {"id": "x"}), KEY, 4),
        (Say(200, WHOAMI), KEY[:-1], 3),
        (Say(200, WHOAMI), "", 2),
        (Say(200, WHOAMI), " \n", 2),
        (Say(200, WHOAMI), "é" * 68, 3),
    ],
)
def test_nothing_is_written_unless_the_broker_knew_the_key(  # noqa: PLR0917 - three are the table's
    alone: Here, broker: FakeBroker, before: str | None, answer: Say, key: str, code: int
) -> None:
    if before is not None:
        profile(alone.home).parent.mkdir(parents=True)
        profile(alone.home).write_text(before)
        profile(alone.home).chmod(0o600)
    broker.answers = [answer]
    alone.monkeypatch.setenv("BROKER_API_URL", broker.url)
    ran = alone("login", "--api-url", broker.url, "--timeout", "0.3", stdin=key.encode())
    assert (ran.code, ran.out, len(ran.lines)) == (code, "", 1), ran.err
    if before is None:
        assert not profile(alone.home).exists()
    else:
        assert profile(alone.home).read_text() == before


def test_a_damaged_profile_can_be_replaced(alone: Here, broker: FakeBroker) -> None:
    profile(alone.home).parent.mkdir(parents=True)
    profile(alone.home).write_text("{")
    profile(alone.home).chmod(0o644)
    assert alone("login", "--api-url", broker.url, stdin=KEY.encode()).code == 0
    assert stat.S_IMODE(profile(alone.home).stat().st_mode) == 0o600
    assert alone("whoami").code == 0


def test_a_profile_that_is_a_link_is_not_written_through(alone: Here, broker: FakeBroker) -> None:
    profile(alone.home).parent.mkdir(parents=True)
    elsewhere = alone.home / "elsewhere"
    elsewhere.write_text("x")
    profile(alone.home).symlink_to(elsewhere)
    ran = alone("login", "--api-url", broker.url, stdin=KEY.encode())
    assert ran.code == 2
    assert elsewhere.read_text() == "x"


def test_the_key_is_no_argument(alone: Here, broker: FakeBroker) -> None:
    for words in ([KEY], ["--api-key", KEY], ["--key", KEY]):
        ran = alone("login", "--api-url", broker.url, *words)
        assert (ran.code, broker.seen) == (2, [])


def test_the_environment_that_comes_first_is_told(here: Here, broker: FakeBroker) -> None:
    broker.answers = [Say(200, WHOAMI)]
    ran = here("login", stdin=KEY.encode())
    assert (ran.code, len(ran.lines)) == (0, 3)
    assert "BROKER_API_KEY is set here" in ran.err


def test_no_address_is_2(alone: Here) -> None:
    ran = alone("login", stdin=KEY.encode())
    assert (ran.code, len(ran.lines)) == (2, 1)
    assert "--api-url" in ran.err


def test_logout_removes_the_profile_readable_or_not(alone: Here, broker: FakeBroker) -> None:
    alone("login", "--api-url", broker.url, stdin=KEY.encode())
    profile(alone.home).chmod(0o644)
    ran = alone("logout")
    assert (ran.code, ran.out, len(ran.lines)) == (0, "", 1)
    assert not profile(alone.home).exists()
    again = alone("logout")
    assert (again.code, again.out, len(again.lines)) == (0, "", 1)
    assert alone("whoami").code == 2


def test_a_ca_file_is_kept_as_a_whole_path(alone: Here, broker: FakeBroker) -> None:
    (alone.home / "ca.pem").write_text("")
    ran = alone("login", "--api-url", broker.url, "--ca-file", "ca.pem", stdin=KEY.encode())
    assert ran.code == 0, ran.err
    assert json.loads(profile(alone.home).read_text())["ca_file"] == str(alone.home / "ca.pem")


def test_at_a_terminal_the_key_is_asked_for_without_echo(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(200, WHOAMI)]
    near, far = pty.openpty()
    environment = run.with_(BROKER_API_KEY=None)
    with subprocess.Popen(
        [run.command, "login"],
        env=environment,
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
    ) as process:
        os.close(far)
        shown = b""
        while b"API key for" not in shown:
            shown += os.read(near, 1000)
        time.sleep(0.2)  # until it has switched the echo off: nothing tells that from outside
        os.write(near, f"{KEY}\n".encode())
        assert process.wait(30) == 0
        while True:
            try:
                shown += os.read(near, 1000)
            except OSError:
                break
    os.close(near)
    assert SECRET.encode() not in shown
    assert b"logged in" in shown
    assert KEY in profile(run.home).read_text()
