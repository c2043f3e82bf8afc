"""`broker-cli github token`: what is asked, what is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_stage import ANSWER, KEY, TOKEN, Say

if TYPE_CHECKING:
    from cli_stage import FakeBroker, Run


def test_the_token_and_one_newline_and_nothing_else(run: Run, broker: FakeBroker) -> None:
    ran = run("github", "token", "acme/etl")
    assert (ran.code, ran.out, ran.err) == (0, f"{TOKEN}\n", "")
    (seen,) = broker.seen
    assert (seen.method, seen.path) == ("POST", "/v1/github/token")
    assert seen.json == {"repositories": ["acme/etl"]}
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    assert seen.headers["Accept"] == "application/json"
    assert seen.headers["Content-Type"] == "application/json"
    assert re.fullmatch(r"broker-cli/\d+\.\d+\.\d+\S*", seen.headers["User-Agent"])
    assert re.fullmatch(r"[A-Za-z0-9._-]{16,128}", seen.headers["X-Request-Id"])


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("acme/etl", {"repositories": ["acme/etl"]}),
        ("Acme/Etl.git", {"repositories": ["Acme/Etl"]}),
        ("acme/etl.GIT", {"repositories": ["acme/etl"]}),
        ("acme/.github", {"repositories": ["acme/.github"]}),
        ("dev_corp/a.b-c_d", {"repositories": ["dev_corp/a.b-c_d"]}),
        ("legacy-/x", {"repositories": ["legacy-/x"]}),
        ("https://github.com/acme/etl", {"repositories": ["acme/etl"], "host": "github.com"}),
        ("https://GitHub.com/acme/etl.git", {"repositories": ["acme/etl"], "host": "github.com"}),
        ("https://github.com/acme/etl/", {"repositories": ["acme/etl"], "host": "github.com"}),
        ("https://github.com:443/acme/etl", {"repositories": ["acme/etl"], "host": "github.com"}),
        ("https://ghe.corp.example:8443/a/b", {"repositories": ["a/b"], "host": "ghe.corp.example:8443"}),
        ("http://127.0.0.1:9000/a/b.git", {"repositories": ["a/b"], "host": "127.0.0.1:9000"}),
        ("http://localhost/a/b.git", {"repositories": ["a/b"], "host": "localhost"}),
        ("https://[::1]:8443/a/b", {"repositories": ["a/b"], "host": "[::1]:8443"}),
        ("o" * 39 + "/" + "r" * 100, {"repositories": ["o" * 39 + "/" + "r" * 100]}),
    ],
)
def test_a_repository_in_each_form(
    run: Run, broker: FakeBroker, argument: str, expected: dict[str, object]
) -> None:
    assert run("github", "token", argument).code == 0
    assert broker.seen[0].json == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["acme/a", "acme/b"], {"repositories": ["acme/a", "acme/b"]}),
        (["acme/a", "ACME/A"], {"repositories": ["acme/a"]}),
        (["acme/a", "https://h.example/acme/b"], {"repositories": ["acme/a", "acme/b"], "host": "h.example"}),
        (["--owner", "acme"], {"owner": "acme"}),
        (
            ["a/b", "--permission", "contents=read", "--permission", "issues=read"],
            {"repositories": ["a/b"], "permissions": {"contents": "read", "issues": "read"}},
        ),
        (["a/b", "--min-ttl", "3300"], {"repositories": ["a/b"], "min_ttl": 3300}),
        (["a/b", "--min-ttl", "0"], {"repositories": ["a/b"], "min_ttl": 0}),
        (["--refresh", "a/b"], {"repositories": ["a/b"], "refresh": True}),
        ([f"acme/r{n}" for n in range(500)], {"repositories": [f"acme/r{n}" for n in range(500)]}),
    ],
)
def test_the_request(run: Run, broker: FakeBroker, arguments: list[str], expected: dict[str, object]) -> None:
    assert run("github", "token", *arguments).code == 0
    assert broker.seen[0].json == expected


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["etl"],
        ["/etl"],
        ["acme/"],
        ["acme/etl/tree"],
        ["acme/.."],
        ["acme/."],
        ["acme/.git"],
        ["acme/etl.wiki"],
        ["acme/etl.git.git"],
        ["acme/e tl"],
        ["acme/etl\n"],
        ["acme\n/etl"],
        ["acme/étl"],
        ["acme/e%74l"],
        ["-acme/etl"],
        ["--", "-acme/etl"],
        ["a__b/c"],
        ["a_b_c/d"],
        ["o" * 40 + "/r"],
        ["o/" + "r" * 101],
        ["git@github.com:acme/etl.git"],
        ["ssh://github.com/acme/etl"],
        ["http://github.com/acme/etl"],
        ["ftp://github.com/acme/etl"],
        ["https://github.com/acme"],
        ["https://github.com/acme/etl/tree/main"],
        ["https://github.com/acme/etl?x=1"],
        ["https://github.com/acme/etl#x"],
        ["https://github.com:0/acme/etl"],
        ["https://github.com:99999/acme/etl"],
        ["https:///acme/etl"],
        ["https://a..b/acme/etl"],
        ["https://[::1/acme/etl"],
        ["https://github.com\\@x/acme/etl"],
        ["acme/a", "other/b"],
        ["https://a.example/acme/a", "https://b.example/acme/b"],
        [f"acme/r{n}" for n in range(501)],
        ["acme/a", "--owner", "acme"],
        ["--owner", "acme/*"],
        ["--owner", ""],
        ["acme/a", "--permission", "contents=write"],
        ["acme/a", "--permission", "contents=admin"],
        ["acme/a", "--permission", "contents="],
        ["acme/a", "--permission", "contents"],
        ["acme/a", "--permission", "Contents=read"],
        ["acme/a", "--permission", "=read"],
        ["acme/a", "--min-ttl", "3301"],
        ["acme/a", "--min-ttl", "-1"],
        ["acme/a", "--min-ttl", "soon"],
        ["acme/a", "--timeout", "0"],
        ["acme/a", "--timeout", "nan"],
        ["acme/a", "--timeout", "inf"],
        ["acme/a", "--api-key", "x"],
        ["acme/a", "--output", ""],
        ["acme/a", "--watch"],
    ],
)
def test_wrong_usage_is_one_line_and_2_and_nothing_is_sent(
    run: Run, broker: FakeBroker, arguments: list[str]
) -> None:
    ran = run("github", "token", *arguments)
    assert (ran.code, len(ran.lines), broker.seen) == (2, 1, [])


@pytest.mark.parametrize(
    "userinfo", ["x-access-token:hunter2hunter2@", "hunter2hunter2@", ":hunter2hunter2@"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(
    run: Run, broker: FakeBroker, userinfo: str
) -> None:
    ran = run("github", "token", f"https://{userinfo}github.com/acme/etl", "-v")
    assert (ran.code, broker.seen) == (2, [])
    assert "hunter2" not in ran.err


def test_only_read_is_said(run: Run) -> None:
    assert "only read is possible" in run("github", "token", "a/b", "--permission", "contents=write").err


def test_a_key_typed_as_an_argument_is_not_repeated(run: Run) -> None:
    assert run("github", "token", KEY).code == 2
    assert run("github", "token", "a/b", f"--api-key={KEY}").code == 2


def test_json_is_the_whole_answer(run: Run, broker: FakeBroker) -> None:
    ran = run("github", "token", "acme/etl", "--json")
    assert json.loads(ran.out) == ANSWER


@pytest.mark.parametrize("token", ["a" * 40, "x", "ghs_" + "é" * 30, "a" * 5000])
def test_a_token_is_opaque(run: Run, broker: FakeBroker, token: str) -> None:
    broker.answers = [Say(200, {"token": token})]
    assert run("github", "token", "a/b").out == f"{token}\n"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"token": None},
        {"token": ""},
        {"token": 5},
        {"token": "a b"},
        {"token": "a\nb"},
        {"token": "a\x1b[31m"},
        {"token": "a\u2028b"},
        {"token": "a\ud800b"},
        {"token": "abc", "permissions": {"contents": "write"}},
        {"token": "abc", "permissions": {"contents": None}},
        [],
        "text",
        None,
        b"",
        b"<html>hello</html>",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"token": "abc"',
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_unexpected_answer_is_4_and_prints_no_token(
    run: Run, broker: FakeBroker, body: object, options: list[str]
) -> None:
    broker.answers = [Say(200, body)]
    ran = run("github", "token", "a/b", *options)
    assert (ran.code, len(ran.lines)) == (4, 1)
    assert "unexpected answer" in ran.err
    assert "<html>" not in ran.err


@pytest.mark.parametrize("status", [201, 202, 204])
def test_another_success_is_unexpected_as_well(run: Run, broker: FakeBroker, status: int) -> None:
    broker.answers = [Say(status, ANSWER if status != 204 else b"")]
    assert run("github", "token", "a/b").code == 4


def test_verbose_tells_on_stderr_without_secrets(run: Run, broker: FakeBroker) -> None:
    for arguments in (["-v", "github", "token", "a/b"], ["github", "token", "a/b", "-v"]):
        ran = run(*arguments)
        assert (ran.code, ran.out) == (0, f"{TOKEN}\n")
        assert broker.url in ran.err
        assert "BROKER_API_KEY" in ran.err


def test_a_reader_that_goes_away_is_quiet(run: Run) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [run.command, "github", "token", "a/b"],
        env=run.with_(),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_told_without_the_token(run: Run) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [run.command, "github", "token", "a/b"],
            env=run.with_(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 4
    assert b"No space left" in done.stderr
    assert TOKEN.encode() not in done.stderr
