"""The process: help, version, unknown commands, signals, what is imported."""

from __future__ import annotations

import importlib.metadata
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from cli_stage import KEY, TOKEN, Say

import broker_cli
from broker_cli.__main__ import run as run_here
from broker_cli.api_key import check_digits, verify_api_key
from broker_cli.errors import ApiKeyError
from broker_cli.output import plain
from broker_cli.retry import backoff_s, pause_s, retry_after_s

if TYPE_CHECKING:
    from cli_stage import FakeBroker, Run


def test_version_is_the_distributions(run: Run) -> None:
    ran = run("--version", BROKER_API_URL=None, BROKER_API_KEY=None)
    assert ran.out == f"broker-cli {importlib.metadata.version('broker-cli')}\n"
    assert broker_cli.__version__ == importlib.metadata.version("broker-cli")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["github"],
        ["github", "token"],
        ["github", "ls"],
        ["github", "setup"],
        ["whoami"],
        ["login"],
        ["logout"],
        ["exec"],
        ["setup-git"],
        ["git-credential"],
        ["doctor"],
    ],
)
def test_help_teaches_and_needs_no_settings(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments, "--help", BROKER_API_URL=None, BROKER_API_KEY=None)
    assert (ran.code, ran.err) == (0, "")
    assert "broker-cli" in ran.out
    if arguments != ["github"]:
        assert "Examples:\n" in ran.out


@pytest.mark.parametrize("arguments", [[], ["github"]])
def test_no_command_shows_the_help_on_stderr(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert "Commands:" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokens"],
        ["github", "tokne"],
        ["--nope"],
        ["github", "--nope"],
        ["whoami", "x"],
        ["github", "ls", "--nope"],
        [""],
    ],
)
def test_what_is_unknown_is_2_in_one_line(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, len(ran.lines)) == (2, 1)
    assert "--help" in ran.err


def test_as_a_module(run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker_cli", "github", "token", "a/b"],
        env=run.with_(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{TOKEN}\n", b"")


def test_ctrl_c_is_130_and_quiet(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(act=lambda _: broker.hang.wait(20) and None)]
    process = subprocess.Popen(
        [run.command, "github", "token", "a/b"],
        env=run.with_(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not broker.seen:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_is_no_traceback(run: Run, stream: str) -> None:
    redirect = ">&-" if stream == "stdout" else "2>&-"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" github token a/b {redirect}', run.command],
        env=run.with_(),
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    if stream == "stdout":
        assert done.returncode == 4
        assert len(done.stderr.splitlines()) == 1
    else:
        assert (done.returncode, done.stdout.decode()) == (0, f"{TOKEN}\n")


def test_nothing_is_imported_that_a_call_over_plain_http_does_not_need(run: Run) -> None:
    code = (
        "import json, os, sys\n"
        "from broker_cli.__main__ import run\n"
        "run(['github', 'token', 'a/b'])\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=run.with_(COVERAGE_PROCESS_START=None, COVERAGE_PROCESS_CONFIG=None),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(done.stdout.splitlines()[1]))
    assert "http.client" in loaded
    assert not loaded & {
        "ssl",
        "tomllib",
        "pathlib",
        "secrets",
        "importlib.metadata",
        "broker_cli.profile",
        "broker_cli.proxy",
        "broker_cli.refusals",
        "broker_cli.commands.whoami",
        "broker",
        "httpx",
    }


def test_in_this_process(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROKER_API_URL", broker.url)
    monkeypatch.setenv("BROKER_API_KEY", KEY)
    assert run_here(["github", "token", "a/b"]) == 0
    assert capfd.readouterr() == (f"{TOKEN}\n", "")
    assert run_here(["--version"]) == 0
    assert run_here(["nope"]) == 2


def test_a_defect_is_one_line_without_its_text(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError(KEY)

    monkeypatch.setattr("broker_cli.__main__._run", broken)
    assert run_here([]) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert "unexpected RuntimeError at test_cli_process.py:" in err
    assert KEY not in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31m\r\nb\tc\x9b\u202e\u200b", "a[31m b c"),
        (f"x {KEY} y", "x ghbk_[hidden] y"),
        (f"x {TOKEN}", "x ghs_[hidden]"),
        ("github_pat_" + "a" * 40, "github_pat_[hidden]"),
        ("https://u:p@h/x", "https://[hidden]@h/x"),
        ("https://github.com/apps/x", "https://github.com/apps/x"),
    ],
)
def test_plain(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_the_check_digits_are_the_contracts() -> None:
    # CRC32 of "123456789" is 0xCBF43926, the check value of that CRC.
    assert int_of(check_digits("123456789")) == 0xCBF43926
    assert len(check_digits("")) == 6
    assert check_digits("") == "000000"


def int_of(digits: str) -> int:
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    number = 0
    for digit in digits:
        number = number * 62 + alphabet.index(digit)
    return number


def test_every_single_mistyped_character_is_noticed() -> None:
    assert verify_api_key(KEY, source="x").reveal() == KEY
    assert KEY not in repr(verify_api_key(KEY, source="x"))
    for place in range(len(KEY)):
        other = "A" if KEY[place] != "A" else "B"
        with pytest.raises(ApiKeyError):
            verify_api_key(KEY[:place] + other + KEY[place + 1 :], source="x")


def test_pauses() -> None:
    assert all(0 <= backoff_s(failures) <= min(8, 0.5 * 2 ** (failures - 1)) for failures in range(1, 50))
    assert backoff_s(10_000) <= 8
    assert pause_s(failures=1, asked_s=5, left_s=5) is None
    assert pause_s(failures=1, asked_s=None, left_s=0.1) is None
    pause = pause_s(failures=9, asked_s=5, left_s=6)
    assert pause is not None
    assert 5 <= pause <= 5.5
    assert retry_after_s({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 0
    assert retry_after_s({}) is None
