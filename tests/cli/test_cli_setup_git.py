"""`broker-cli setup-git`: git's configuration before and after, as git itself reads it."""

from __future__ import annotations

import shlex
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cli_stage import KEY, TOKEN, WHOAMI, Say

from broker_cli.git_setup import is_ours

if TYPE_CHECKING:
    from pathlib import Path

    from cli_stage import FakeBroker, Here, Run

URL = "https://github.com"


@pytest.fixture
def git_here(here: Here, broker: FakeBroker) -> Here:
    broker.answers = [Say(200, WHOAMI)]
    here.monkeypatch.setattr("sys.argv", [str(here.home / "bin" / "broker-cli")])
    return here


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def helpers(url: str = URL) -> list[str]:
    return git("config", "--get-all", f"credential.{url}.helper")


def config(home: Path) -> str:
    path = home / ".gitconfig"
    return path.read_text() if path.exists() else ""


def test_the_helper_is_written_for_the_brokers_host_and_others_are_reset(git_here: Here) -> None:
    git("config", "--global", "credential.helper", "store")
    ran = git_here("setup-git")
    assert (ran.code, ran.out, len(ran.lines)) == (0, "", 1), ran.err
    assert helpers() == ["", f"!{git_here.home}/bin/broker-cli git-credential"]
    assert git("config", "--get", f"credential.{URL}.useHttpPath") == ["true"]
    assert KEY not in config(git_here.home)
    # Other hosts keep what they had.
    assert git("config", "--get-urlmatch", "credential.helper", "https://gitlab.com") == ["store"]


def test_again_changes_nothing(git_here: Here) -> None:
    git_here("setup-git")
    before = config(git_here.home)
    ran = git_here("setup-git")
    assert (ran.code, len(ran.lines)) == (0, 1)
    assert "no change" in ran.err
    assert config(git_here.home) == before


def test_a_newer_place_of_this_program_replaces_the_older(git_here: Here) -> None:
    git_here("setup-git")
    git_here.monkeypatch.setattr("sys.argv", ["/opt/new place/broker-cli"])
    git_here("setup-git", "--api-url", "http://127.0.0.1:9", "--host", "github.com")
    assert helpers() == ["", "!'/opt/new place/broker-cli' --api-url http://127.0.0.1:9 git-credential"]


def test_as_a_module_the_interpreter_is_named(git_here: Here) -> None:
    git_here.monkeypatch.setattr("sys.argv", ["/x/broker_cli/__main__.py"])
    git_here("setup-git")
    assert helpers()[-1] == f"!{shlex.quote(sys.executable)} -m broker_cli git-credential"


@pytest.mark.parametrize("others", [[], ["store"], ["", "!gh auth git-credential"]])
def test_undo_brings_back_what_was_there(git_here: Here, others: list[str]) -> None:
    for other in others:
        git("config", "--global", "--add", f"credential.{URL}.helper", other)
    before = config(git_here.home)
    git_here("setup-git")
    assert helpers()[: len(others)] == others
    ran = git_here("setup-git", "--undo")
    assert (ran.code, ran.out, len(ran.lines)) == (0, "", 1)
    assert config(git_here.home) == before
    again = git_here("setup-git", "--undo")
    assert again.code == 0
    assert "no change" in again.err
    assert config(git_here.home) == before


def test_the_file_is_the_one_that_was_asked_for(git_here: Here, broker: FakeBroker) -> None:
    git("init", "-q", str(git_here.home / "clone"))
    elsewhere = git_here.home / "elsewhere"
    git_here.monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(elsewhere))
    git_here("setup-git")
    assert "broker-cli" in elsewhere.read_text()
    assert config(git_here.home) == ""
    git_here("setup-git", "--undo")
    assert elsewhere.read_text() == ""
    git_here.monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(git_here.home / "system"))
    git_here("setup-git", "--system")
    assert "broker-cli" in (git_here.home / "system").read_text()
    assert elsewhere.read_text() == ""
    ran = git_here("setup-git", "--local")
    assert ran.code == 2  # not in a repository
    assert len(ran.lines) == 1
    git_here.monkeypatch.chdir(git_here.home / "clone")
    assert git_here("setup-git", "--local").code == 0
    assert "broker-cli" in (git_here.home / "clone" / ".git" / "config").read_text()


def test_the_host_can_be_given_and_then_nobody_is_asked(git_here: Here, broker: FakeBroker) -> None:
    git_here.monkeypatch.delenv("BROKER_API_KEY")
    git_here.monkeypatch.delenv("BROKER_API_URL")
    assert git_here("setup-git", "--host", "ghe.example:8443").code == 0
    assert helpers("https://ghe.example:8443")[-1].endswith("git-credential")
    assert git_here("setup-git", "--host", "http://127.0.0.1:3000").code == 0
    assert helpers("http://127.0.0.1:3000")[-1].endswith("git-credential")
    assert broker.seen == []


@pytest.mark.parametrize(
    "host", ["", "http://github.com", "github.com/acme", "https://x@github.com", "a b", "x\n[y]"]
)
def test_a_host_that_is_none_is_2(git_here: Here, host: str) -> None:
    ran = git_here("setup-git", "--host", host)
    assert (ran.code, ran.out, len(ran.lines)) == (2, "", 1)
    assert config(git_here.home) == ""


@pytest.mark.parametrize("url", ["http://github.com", "github.com", "", "https://x\n[y]"])
def test_an_address_from_the_broker_that_is_none_is_not_written(
    git_here: Here, broker: FakeBroker, url: str
) -> None:
    broker.answers = [Say(200, {**WHOAMI, "broker": {**WHOAMI["broker"], "github_url": url}})]  # type: ignore[dict-item]
    ran = git_here("setup-git")
    assert (ran.code, len(ran.lines)) == (4, 1)
    assert config(git_here.home) == ""


def test_without_git(git_here: Here) -> None:
    git_here.monkeypatch.setenv("PATH", str(git_here.home))
    ran = git_here("setup-git")
    assert (ran.code, len(ran.lines)) == (2, 1)
    assert "git" in ran.err


def test_a_configuration_that_cannot_be_written(git_here: Here) -> None:
    git_here.monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(git_here.home / "no" / "such" / "folder"))
    ran = git_here("setup-git")
    assert (ran.code, len(ran.lines)) == (2, 1)


def test_a_run_from_uvs_cache_is_warned_of(git_here: Here) -> None:
    git_here.monkeypatch.setattr("sys.prefix", "/home/user/.cache/uv/archive-v0/x")
    assert "uv tool install" in git_here("setup-git").err


@pytest.mark.parametrize(
    ("helper", "ours"),
    [
        ("!/opt/broker-cli git-credential", True),
        ("!broker-cli git-credential", True),
        ("!'/a b/python3' -m broker_cli --api-url https://x git-credential", True),
        ("!/usr/bin/gh auth git-credential", False),
        ("broker-cli git-credential", False),
        ("!broker-cli", False),
        ("!broker-cli 'git-credential", False),
        ("store", False),
        ("", False),
    ],
)
def test_which_helpers_are_ours(helper: str, ours: bool) -> None:
    assert is_ours(helper) == ours


def test_git_itself_gets_its_credential_from_what_was_written(run: Run, broker: FakeBroker) -> None:
    """The whole way through git: `git credential fill`, with a storing helper that must not see the token."""
    broker.answers = [Say(200, WHOAMI)]
    environment = run.with_(GIT_CONFIG_NOSYSTEM="1", GIT_TERMINAL_PROMPT="0")
    subprocess.run(["git", "config", "--global", "credential.helper", "store"], env=environment, check=True)
    assert run("setup-git", GIT_CONFIG_NOSYSTEM="1").code == 0
    broker.answers = [Say(200, {**broker_answer(), "expires_at": "2090-01-01T00:00:00Z"})]

    def credential(verb: str, text: str) -> str:
        return subprocess.run(
            ["git", "credential", verb],
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    filled = credential("fill", "url=https://github.com/acme/etl.git\n\n")
    assert f"username=x-access-token\npassword={TOKEN}\n" in filled
    credential("approve", filled)
    assert not (run.home / ".git-credentials").exists()
    credential("reject", filled)
    (note,) = (run.home / ".cache" / "broker-cli" / "refused").iterdir()
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    broker.seen.clear()
    credential("fill", "url=https://github.com/acme/etl.git\n\n")
    assert [one.json.get("refresh") for one in broker.seen] == [None, True]


def broker_answer() -> dict[str, object]:
    return {"token": TOKEN, "permissions": {"contents": "read", "metadata": "read"}}
