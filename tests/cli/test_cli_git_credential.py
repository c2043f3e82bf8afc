"""`broker-cli git-credential`: what git asks, what it is answered, and when with silence."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest
from cli_stage import ANSWER, TOKEN, Say, problem

from broker_cli.git_credential import find_place, parse_description

if TYPE_CHECKING:
    from pathlib import Path

    from cli_stage import FakeBroker, Here, Ran

OTHER_TOKEN = "ghs_another_" + "Z" * 60
# 2026-11-22T10:00:00Z, the expiry of ANSWER.
EXPIRY = 1795341600


def description(**values: str) -> bytes:
    given = {"protocol": "https", "host": "github.com", "path": "acme/etl.git", **values}
    return "".join(f"{name}={value}\n" for name, value in given.items() if value).encode() + b"\n"


def ask(here: Here, verb: str = "get", **values: str) -> Ran:
    return here("git-credential", verb, stdin=description(**values))


def test_a_token_with_its_expiry(here: Here, broker: FakeBroker) -> None:
    ran = ask(here)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"username=x-access-token\npassword={TOKEN}\npassword_expiry_utc={EXPIRY}\n"
    (seen,) = broker.seen
    assert seen.json == {"repositories": ["acme/etl"], "host": "github.com"}


@pytest.mark.parametrize(
    ("values", "repository", "host"),
    [
        ({"path": "acme/etl"}, "acme/etl", "github.com"),
        ({"path": "acme/etl.git/"}, "acme/etl", "github.com"),
        ({"path": "acme/etl.git/info/lfs"}, "acme/etl", "github.com"),
        ({"path": "acme/etl/info/lfs"}, "acme/etl", "github.com"),
        ({"path": "acme/etl.git/info/lfs/objects/batch"}, "acme/etl", "github.com"),
        ({"path": "info/lfs"}, "info/lfs", "github.com"),
        ({"username": "x-access-token"}, "acme/etl", "github.com"),
        ({"username": "git"}, "acme/etl", "github.com"),
        ({"host": "GitHub.com"}, "acme/etl", "github.com"),
        ({"host": "github.com:443"}, "acme/etl", "github.com"),
        ({"host": "ghe.example:8443"}, "acme/etl", "ghe.example:8443"),
        ({"protocol": "http", "host": "127.0.0.1:3000"}, "acme/etl", "127.0.0.1:3000"),
        ({"protocol": "http", "host": "localhost"}, "acme/etl", "localhost"),
    ],
)
def test_what_the_broker_is_asked_for(
    here: Here, broker: FakeBroker, values: dict[str, str], repository: str, host: str
) -> None:
    assert ask(here, **values).code == 0
    assert broker.seen[0].json == {"repositories": [repository], "host": host}


@pytest.mark.parametrize(
    "values",
    [
        {"path": ""},
        {"host": ""},
        {"protocol": ""},
        {"protocol": "http"},
        {"protocol": "http", "host": "127.0.0.1.example.com"},
        {"protocol": "ssh"},
        {"protocol": "cert", "host": ""},
        {"protocol": "https://evil.example/?", "host": "github.com"},
        {"host": "github.com@evil.example"},
        {"host": "github.com/evil"},
        {"host": "github.com#x"},
        {"username": "octocat"},
        {"path": "acme"},
        {"path": "acme/etl/tree/main"},
        {"path": "acme/etl.wiki.git"},
        {"path": "acme/../x"},
        {"path": "acme/etl?x=1"},
        {"path": "acme/e%74l"},
        {"path": "/info/lfs"},
        {"path": "x/info/lfs"},
        {"path": "acme/étl"},
    ],
)
def test_what_is_not_for_us_is_silence_and_0_and_nothing_is_sent(
    here: Here, broker: FakeBroker, values: dict[str, str]
) -> None:
    for verb in ("get", "erase"):
        ran = ask(here, verb, password="hunter2hunter2", **values)
        assert (ran.code, ran.out, ran.err, broker.seen) == (0, "", "", [])
    assert not (here.home / ".cache").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"nonsense",
        b"protocol=https\nhost=github.com\npath=a/b\0c\n",
        b"\xff=\xff\n",
        b"x" * 70_000,
    ],
)
def test_what_is_not_of_the_protocol_is_silence(here: Here, broker: FakeBroker, content: bytes) -> None:
    for verb in ("get", "store", "erase"):
        ran = here("git-credential", verb, stdin=content)
        assert (ran.code, ran.out, ran.err, broker.seen) == (0, "", "", [])


def test_without_a_newline_at_the_end(here: Here) -> None:
    assert TOKEN in here("git-credential", "get", stdin=description().rstrip(b"\n")).out


def test_another_host_falls_through_silently(here: Here, broker: FakeBroker) -> None:
    broker.answers = [problem(404, "unknown_host")]
    ran = ask(here, host="gitlab.example")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize(("status", "code"), [(404, "not_installed"), (403, "forbidden"), (403, "blocked")])
def test_a_refusal_falls_through_and_says_why(here: Here, broker: FakeBroker, status: int, code: str) -> None:
    broker.answers = [problem(status, code, "Install it: https://github.com/apps/x/installations/new")]
    ran = ask(here)
    assert (ran.code, ran.out, len(ran.lines)) == (0, "", 1)
    assert "acme/etl" in ran.err
    assert "https://github.com/apps/x/installations/new" in ran.err


def test_trouble_is_one_line_and_an_exit_status(here: Here, broker: FakeBroker) -> None:
    broker.answers = [problem(401, "invalid_api_key")]
    ran = ask(here)
    assert (ran.code, ran.out, len(ran.lines)) == (3, "", 1)
    here.monkeypatch.delenv("BROKER_API_KEY")
    ran = ask(here)
    assert (ran.code, ran.out, len(ran.lines)) == (3, "", 1)
    here.monkeypatch.delenv("BROKER_API_URL")
    ran = ask(here)
    assert (ran.code, ran.out, len(ran.lines)) == (2, "", 1)
    assert ask(here, "erase", password="x").code == 0
    assert ask(here, path="").code == 0


def test_ephemeral_only_where_git_offers_the_capability(here: Here) -> None:
    offered = b"capability[]=authtype\ncapability[]=state\n" + description()
    lines = here("git-credential", "get", stdin=offered).out.splitlines()
    assert lines[0] == "capability[]=authtype"  # before what depends on it
    assert lines[1:3] == ["username=x-access-token", f"password={TOKEN}"]
    assert lines[-1] == "ephemeral=1"
    assert not any(line.startswith(("authtype=", "credential=", "state")) for line in lines)
    assert "ephemeral" not in here("git-credential", "get", stdin=b"capability[]=state\n" + description()).out


@pytest.mark.parametrize("expires_at", [None, "soon", "2026-11-22T10:00:00", 7])
def test_an_expiry_that_is_none_is_left_out(here: Here, broker: FakeBroker, expires_at: object) -> None:
    broker.answers = [Say(200, {**ANSWER, "expires_at": expires_at})]
    assert ask(here).out == f"username=x-access-token\npassword={TOKEN}\n"


@pytest.mark.parametrize("token", ["ghs_a\nurl=https://evil.example", "ghs_a b", "ghs_a\0", "", None])
def test_a_token_that_would_change_the_protocol_is_refused(
    here: Here, broker: FakeBroker, token: object
) -> None:
    broker.answers = [Say(200, {**ANSWER, "token": token})]
    ran = ask(here)
    assert (ran.code, ran.out) == (4, "")


def test_store_keeps_nothing(here: Here, broker: FakeBroker) -> None:
    ran = ask(here, "store", username="x-access-token", password=TOKEN)
    assert (ran.code, ran.out, ran.err, broker.seen) == (0, "", "", [])
    assert list(here.home.iterdir()) == []


def notes(home: Path) -> list[Path]:
    folder = home / ".cache" / "broker-cli" / "refused"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_after_erase_the_next_get_has_another_minted_once(here: Here, broker: FakeBroker) -> None:
    assert ask(here, "erase", username="x-access-token", password=TOKEN).code == 0
    assert broker.seen == []
    (note,) = notes(here.home)
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    assert stat.S_IMODE(note.parent.stat().st_mode) == 0o700
    assert note.read_text() == hashlib.sha256(TOKEN.encode()).hexdigest()
    broker.answers = [Say(200, ANSWER), Say(200, {**ANSWER, "token": OTHER_TOKEN})]
    # As git's own spelling may differ from one call to the next.
    assert f"password={OTHER_TOKEN}\n" in ask(here, path="Acme/ETL.git/info/lfs").out
    assert [one.json.get("refresh") for one in broker.seen] == [None, True]
    assert notes(here.home) == []
    broker.seen.clear()
    ask(here)
    assert [one.json.get("refresh") for one in broker.seen] == [None]


def test_a_token_that_was_replaced_meanwhile_costs_no_mint(here: Here, broker: FakeBroker) -> None:
    ask(here, "erase", password=OTHER_TOKEN)
    assert f"password={TOKEN}\n" in ask(here).out
    assert len(broker.seen) == 1
    assert notes(here.home) == []


def test_the_note_stays_while_the_broker_can_give_no_other(here: Here, broker: FakeBroker) -> None:
    ask(here, "erase", password=TOKEN)
    assert f"password={TOKEN}\n" in ask(here).out
    assert len(broker.seen) == 2
    assert len(notes(here.home)) == 1


def test_another_repository_is_not_refreshed(here: Here, broker: FakeBroker) -> None:
    ask(here, "erase", password=TOKEN)
    ask(here, path="acme/other.git")
    ask(here, host="ghe.example")
    assert ["refresh" in one.json for one in broker.seen] == [False, False]


def test_old_notes_are_dropped(here: Here) -> None:
    ask(here, "erase", password=TOKEN)
    (old,) = notes(here.home)
    past = time.time() - 7200
    os.utime(old, (past, past))
    ask(here, "erase", password=TOKEN, path="acme/other.git")
    assert [note.name for note in notes(here.home)] == ["github.com+acme+other"]


@pytest.mark.parametrize("content", ["", "short", "x" * 100])
def test_a_damaged_note_is_no_note(here: Here, broker: FakeBroker, content: str) -> None:
    ask(here, "erase", password=TOKEN)
    notes(here.home)[0].write_text(content)
    assert ask(here).code == 0
    assert len(broker.seen) == 1


def test_a_cache_that_cannot_be_written_is_no_error(here: Here) -> None:
    (here.home / "file").write_text("")
    here.monkeypatch.setenv("XDG_CACHE_HOME", str(here.home / "file"))
    for verb in ("erase", "get"):
        ran = ask(here, verb, password=TOKEN)
        assert (ran.code, ran.err) == (0, "")


def test_a_note_that_is_a_link_is_not_followed(here: Here, broker: FakeBroker) -> None:
    ask(here, "erase", password=TOKEN)
    (note,) = notes(here.home)
    elsewhere = here.home / "elsewhere"
    note.rename(elsewhere)
    note.symlink_to(elsewhere)
    ask(here)
    assert len(broker.seen) == 1


def test_parsing_keeps_what_is_after_the_first_equals_sign() -> None:
    found = parse_description(b"path=a=b\nx=\ncapability[]=a\ncapability[]=b\n\nprotocol=late\n")
    assert found is not None
    assert found.values == {"path": "a=b", "x": "", "capability[]": "b"}
    assert found.capabilities == ["a", "b"]
    assert find_place(found.values) is None
