"""`github token --output` and `--watch`: whole files for their owner alone, kept through an outage."""

from __future__ import annotations

import gc
import json
import os
import signal
import stat
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest
from cli_stage import ANSWER, KEY, TOKEN, Say, problem

from broker_cli import files, keeping
from broker_cli.api_key import check_digits
from broker_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    from cli_stage import FakeBroker, Here, Run

_OTHER = KEY[:5] + "Other1dOther" + KEY[17:-6]
OTHER_KEY = _OTHER + check_digits(_OTHER)
NEXT = {**ANSWER, "token": "ghs_next_" + "N" * 60, "expires_at": "2026-11-22T11:00:00Z"}


def test_the_file_is_the_owners_alone_and_stdout_stays_empty(here: Here) -> None:
    before = os.umask(0)
    try:
        ran = here("github", "token", "acme/etl", "--output", "token")
    finally:
        os.umask(before)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    path = here.home / "token"
    assert path.read_text() == f"{TOKEN}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(here.home.iterdir()) == [path]


def test_a_strict_umask_does_not_lock_the_owner_out(here: Here) -> None:
    before = os.umask(0o777)
    try:
        assert here("github", "token", "acme/etl", "--output", "token").code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((here.home / "token").stat().st_mode) == 0o600


def test_an_older_file_is_replaced_not_written_into(here: Here) -> None:
    path, other = here.home / "token", here.home / "other"
    path.write_text("old")
    path.chmod(0o644)
    os.link(path, other)
    assert here("github", "token", "acme/etl", "--json", "--output", str(path)).code == 0
    assert json.loads(path.read_text()) == ANSWER
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert other.read_text() == "old"


@pytest.mark.parametrize("answer", [problem(404, "not_installed"), Say(200, {}), Say(200, b"x")])
def test_without_a_token_the_file_stays_as_it_was(here: Here, broker: FakeBroker, answer: Say) -> None:
    (here.home / "token").write_text("old")
    broker.answers = [answer]
    assert here("github", "token", "acme/etl", "--output", "token").code in {1, 4}
    assert (here.home / "token").read_text() == "old"
    assert [entry.name for entry in here.home.iterdir()] == ["token"]


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("elsewhere")
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    "make",
    [
        make_link,
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.mkdir(),
        os.mkfifo,
    ],
)
def test_what_is_no_file_is_left_alone(here: Here, make: Callable[[Path], None]) -> None:
    path = here.home / "token"
    make(path)
    before = {entry.name: entry.lstat() for entry in here.home.iterdir()}
    ran = here("github", "token", "acme/etl", "--output", "token")
    assert (ran.code, ran.out, len(ran.lines)) == (2, "", 1)
    assert {entry.name: entry.lstat() for entry in here.home.iterdir()} == before


@pytest.mark.parametrize("path", ["no/such/folder/token", "/proc/token", "a\0b", "x" * 300])
def test_a_file_that_cannot_be_written_is_2(here: Here, path: str) -> None:
    ran = here("github", "token", "acme/etl", "--output", path)
    assert (ran.code, ran.out, len(ran.lines)) == (2, "", 1)
    assert list(here.home.iterdir()) == []


def test_a_draft_that_is_planted_is_not_written_through(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: b"\0" * count)
    draft = tmp_path / f".token.{'00' * 8}"
    (tmp_path / "elsewhere").write_text("elsewhere")
    draft.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        files.write_whole(str(tmp_path / "token"), b"secret")
    assert (tmp_path / "elsewhere").read_text() == "elsewhere"
    assert draft.is_symlink()


def test_a_failing_write_leaves_no_draft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "token").write_text("old")
    with pytest.raises(UsageError, match="No space left"):
        files.write_whole(str(tmp_path / "token"), b"secret")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("token", "old")]


def test_watch_demands_output(here: Here, broker: FakeBroker) -> None:
    ran = here("github", "token", "acme/etl", "--watch")
    assert (ran.code, len(ran.lines), broker.seen) == (2, 1, [])
    assert "--output" in ran.err


# -- --watch: the process itself ------------------------------------------------------------------------


@pytest.fixture
def watching(run: Run) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [run.command, "github", "token", "acme/etl", "--output", "token", "--watch", *arguments],
            env=run.with_(),
            cwd=run.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_watch_writes_says_so_and_ends_with_0_on_sigterm(
    run: Run, broker: FakeBroker, watching: Callable[..., subprocess.Popen[str]]
) -> None:
    process = watching()
    assert "token holds a token until 2026-11-22T10:00:00Z" in first_line(process)
    assert (run.home / "token").read_text() == f"{TOKEN}\n"
    assert broker.seen[0].json == {"repositories": ["acme/etl"], "min_ttl": 900}
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert (run.home / "token").read_text() == f"{TOKEN}\n"


def test_watch_ends_with_0_also_in_the_middle_of_a_request(
    broker: FakeBroker, watching: Callable[..., subprocess.Popen[str]]
) -> None:
    def trickle(handler: object) -> None:
        wfile = handler.wfile  # type: ignore[attr-defined]
        wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        wfile.flush()
        broker.hang.wait(20)

    broker.answers = [Say(act=trickle)]
    process = watching()
    while not broker.seen:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=15)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("answer", "code"), [(problem(404, "not_installed"), 1), (problem(401, "invalid_api_key"), 3)]
)
def test_watch_ends_where_the_broker_refuses_at_the_first(
    here: Here, broker: FakeBroker, answer: Say, code: int
) -> None:
    broker.answers = [answer]
    before = signal.getsignal(signal.SIGTERM)
    try:
        ran = here("github", "token", "acme/etl", "--output", "token", "--watch")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ran.code, ran.out, len(ran.lines)) == (code, "", 1)
    assert not (here.home / "token").exists()


# -- --watch: its rounds, with the time between them taken out ------------------------------------------


@pytest.fixture
def rounds(here: Here, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Pauses as they are made; the one past `limit` is answered with SIGTERM."""
    pauses: list[float] = []

    class Time:
        @staticmethod
        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 4:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(keeping, "time", Time)
    before = signal.getsignal(signal.SIGTERM)
    yield pauses
    signal.signal(signal.SIGTERM, before)


def test_watch_writes_each_new_token_and_asks_for_refresh_once(
    here: Here, broker: FakeBroker, rounds: list[float]
) -> None:
    broker.answers = [Say(200, ANSWER), Say(200, ANSWER), Say(200, NEXT)]
    ran = here(
        "github", "token", "acme/etl", "--refresh", "--min-ttl", "1200", "--output", "token", "--watch"
    )
    assert (ran.code, ran.out) == (0, "")
    assert (here.home / "token").read_text() == f"{NEXT['token']}\n"
    assert [one.json.get("refresh") for one in broker.seen] == [True, None, None, None]
    assert {one.json["min_ttl"] for one in broker.seen} == {1200}
    assert len(ran.lines) == 2  # one for each token
    # Asked for well before the least life has passed.
    assert all(pause <= 900 - 300 for pause in rounds)


def test_watch_keeps_the_last_good_file_through_an_outage_and_recovers(
    here: Here, broker: FakeBroker, rounds: list[float]
) -> None:
    broker.answers = [
        Say(200, ANSWER),
        Say(500, {}),
        problem(401, "invalid_api_key"),  # later an admin may mend it
        Say(200, NEXT),
    ]
    ran = here("github", "token", "acme/etl", "--output", "token", "--watch")
    assert (ran.code, ran.out) == (0, "")
    assert [("is not refreshed" in line) for line in ran.lines] == [False, True, True, False]
    assert all("2026-11-22T10:00:00Z" in line for line in ran.lines[:3])
    assert (here.home / "token").read_text() == f"{NEXT['token']}\n"
    assert all(5 <= pause <= 60 for pause in rounds[1:3])


def test_watch_waits_for_a_broker_that_is_not_there_yet(
    here: Here, broker: FakeBroker, rounds: list[float]
) -> None:
    broker.answers = [Say(500, {}), Say(200, ANSWER)]
    (here.home / "token").write_text("of an earlier run")
    ran = here("github", "token", "acme/etl", "--output", "token", "--watch")
    assert ran.code == 0
    assert "no token in it from this run" in ran.lines[0]
    assert (here.home / "token").read_text() == f"{TOKEN}\n"


def test_watch_takes_up_a_key_file_that_was_replaced(
    here: Here, broker: FakeBroker, rounds: list[float]
) -> None:
    key_file = here.home / "key"
    key_file.write_text(KEY)
    here.monkeypatch.delenv("BROKER_API_KEY")
    here.monkeypatch.setenv("BROKER_API_KEY_FILE", str(key_file))

    def answer_and_take_the_key_away(handler: BaseHTTPRequestHandler) -> None:
        body = json.dumps(ANSWER).encode()
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        key_file.write_text(OTHER_KEY if len(broker.seen) > 1 else "")

    broker.answers = [Say(act=answer_and_take_the_key_away)]
    real_say = keeping.say

    def say_and_mend(message: str) -> None:
        real_say(message)
        if "is empty" in message:
            key_file.write_text(OTHER_KEY)

    here.monkeypatch.setattr(keeping, "say", say_and_mend)
    ran = here("github", "token", "acme/etl", "--output", "token", "--watch")
    assert ran.code == 0
    assert [line for line in ran.lines if "is empty" in line]
    sent = [one.headers["Authorization"].removeprefix("Bearer ") for one in broker.seen]
    assert sent[0] == KEY
    assert set(sent[1:]) == {OTHER_KEY}


def test_watch_collects_garbage_as_other_commands_do_not(here: Here, rounds: list[float]) -> None:
    gc.disable()  # as the process does when it starts
    try:
        here("github", "token", "acme/etl", "--output", "token", "--watch")
        assert gc.isenabled()
    finally:
        gc.enable()


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    contents = [letter * 70_000 for letter in (b"a", b"b")]
    files.write_whole(str(path), contents[0])
    done = threading.Event()

    def write() -> None:
        for n in range(60):
            files.write_whole(str(path), contents[n % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in contents
    writer.join()
