"""`github setup`, and what a shell is told that completes a command line."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from cli_stage import WHOAMI, Say

if TYPE_CHECKING:
    from cli_stage import FakeBroker, Here, Run

PAGE = "https://github.com/apps/x/installations/new"


def about(**change: object) -> Say:
    return Say(200, {**WHOAMI, "broker": {**WHOAMI["broker"], **change}})  # type: ignore[dict-item]


def test_print_prints_the_page_and_opens_nothing(run: Run, broker: FakeBroker) -> None:
    broker.answers = [about()]
    ran = run("github", "setup", "--print", BROWSER="touch opened %s")
    assert (ran.code, ran.out, ran.err) == (0, f"{PAGE}\n", "")
    assert not (run.home / "opened").exists()


def test_the_browser_gets_the_page(run: Run, broker: FakeBroker) -> None:
    broker.answers = [about()]
    browser = run.home / "browser"
    browser.write_text('#!/bin/sh\nprintf %s "$1" > "$HOME/opened"\n')
    browser.chmod(0o755)
    ran = run("github", "setup", BROWSER=f"{browser} %s")
    assert (ran.code, ran.out) == (0, "")
    assert PAGE in ran.err
    assert (run.home / "opened").read_text() == PAGE


def test_without_a_browser_the_page_is_printed(run: Run, broker: FakeBroker) -> None:
    broker.answers = [about()]
    ran = run("github", "setup", BROWSER="/no/such/browser %s", PATH=str(run.home))
    assert (ran.code, ran.out, len(ran.lines)) == (0, f"{PAGE}\n", 1)


@pytest.mark.parametrize(
    "page",
    [
        "https://evil.example/apps/x",
        "http://github.com/apps/x",
        "https://github.com@evil.example/x",
        "https://github.com:8443/x",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "--help",
        "https://github.com/\x1b[31m",
        7,
    ],
)
def test_a_page_that_is_not_on_the_github_host_is_not_opened(
    here: Here, broker: FakeBroker, page: object
) -> None:
    here.monkeypatch.setenv("BROWSER", "touch opened")
    broker.answers = [about(install_url=page)]
    for words in ([], ["--print"]):
        ran = here("github", "setup", *words)
        assert (ran.code, ran.out, len(ran.lines)) == (4, "", 1)
    assert list(here.home.iterdir()) == []


def test_a_broker_that_does_not_know_the_page_yet(here: Here, broker: FakeBroker) -> None:
    broker.answers = [about(install_url=None)]
    ran = here("github", "setup")
    assert (ran.code, ran.out, len(ran.lines)) == (4, "", 1)
    assert "try again" in ran.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"github", "exec", "setup-git", "login", "doctor", "admin"}),
        ("github ", {"token", "ls", "setup"}),
        ("github token --min", {"--min-ttl"}),
        ("git-credential ", {"get", "store", "erase"}),
        ("admin keys ro", {"rotate"}),
        ("nope ", {"github"}),  # as click has it: not an error
    ],
)
def test_completion(here: Here, words: str, expected: set[str]) -> None:
    here.monkeypatch.setenv("_BROKER_CLI_COMPLETE", "bash_complete")
    here.monkeypatch.setenv("COMP_WORDS", f"broker-cli {words}")
    here.monkeypatch.setenv("COMP_CWORD", str(len(f"broker-cli {words}".split(" ")) - 1))
    ran = here()
    assert (ran.code, ran.err) == (0, "")
    found = {line.partition(",")[2] for line in ran.out.splitlines()}
    assert expected <= found


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_for_other_shells(here: Here, shell: str) -> None:
    here.monkeypatch.setenv("_BROKER_CLI_COMPLETE", f"{shell}_source")
    ran = here()
    assert (ran.code, ran.err) == (0, "")
    assert f"_BROKER_CLI_COMPLETE={shell}_complete" in ran.out


def test_bash_itself_completes(run: Run) -> None:
    script = (
        f'PATH="{run.command.rpartition("/")[0]}:$PATH"\n'
        'eval "$(_BROKER_CLI_COMPLETE=bash_source broker-cli)"\n'
        "COMP_WORDS=(broker-cli github to); COMP_CWORD=2\n"
        "_broker_cli_completion broker-cli\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script], env=run.with_(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "token\n", "")
