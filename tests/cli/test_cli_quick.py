"""The short way without click does what click does, over a table of command lines; and loads no click."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cli_stage import ANSWER, Say, problem

from broker_cli.__main__ import through_click
from broker_cli.errors import BrokerCliError
from broker_cli.output import say
from broker_cli.quick import find_quick

if TYPE_CHECKING:
    from cli_stage import FakeBroker, Here, Run

QUICK = [
    ["acme/etl"],
    ["acme/etl", "acme/lib.git", "ACME/ETL"],
    ["https://github.com/acme/etl.git"],
    ["acme/etl", "--json"],
    ["--json", "acme/etl", "--json"],
    ["--refresh", "acme/etl"],
    ["acme/etl", "--min-ttl", "1800"],
    ["--min-ttl", "0", "acme/etl", "--min-ttl", "0012", "--refresh", "--json"],
    ["acme/etl", "--min-ttl", "3300"],
    [],
    ["--json"],
    ["etl"],
    [""],
    ["acme/a", "other/b"],
    ["acme/etl\n"],
    ["acme/étl"],
    ["https://x:hunter2hunter2@github.com/acme/etl"],
]
FOR_CLICK = [
    ["--help"],
    ["acme/etl", "--help"],
    ["-v", "acme/etl"],
    ["acme/etl", "--verbose"],
    ["--owner", "acme"],
    ["acme/etl", "--permission", "contents=read"],
    ["acme/etl", "--timeout", "3"],
    ["acme/etl", "--api-url", "x"],
    ["acme/etl", "--output", "x"],
    ["acme/etl", "--watch"],
    ["acme/etl", "--min-ttl=1800"],
    ["acme/etl", "--min-ttl"],
    ["acme/etl", "--min-ttl", "3301"],
    ["acme/etl", "--min-ttl", "-1"],
    ["acme/etl", "--min-ttl", "+1"],
    ["acme/etl", "--min-ttl", "1_0"],
    ["acme/etl", "--min-ttl", " 1"],
    ["acme/etl", "--min-ttl", "\u0661"],
    ["acme/etl", "--min-ttl", ""],
    ["acme/etl", "--jso"],
    ["--", "acme/etl"],
    ["-"],
    ["acme/etl", "--nope"],
]


@pytest.mark.parametrize("words", QUICK)
@pytest.mark.parametrize("refused", [False, True])
def test_both_ways_end_the_same(here: Here, broker: FakeBroker, words: list[str], refused: bool) -> None:
    broker.answers = [problem(404, "not_installed") if refused else Say(200, ANSWER)]
    arguments = ["github", "token", *words]
    assert find_quick(arguments) is not None
    short = here(*arguments)
    asked = [(one.method, one.path, one.body, one.headers.keys()) for one in broker.seen]
    broker.seen.clear()
    try:
        code = through_click(arguments)
    except BrokerCliError as error:  # as the caller of both ways does
        say(str(error))
        code = error.exit_code
    out, err = here.capfd.readouterr()
    assert (short.code, short.out, short.err) == (code, out, err)
    assert asked == [(one.method, one.path, one.body, one.headers.keys()) for one in broker.seen]


@pytest.mark.parametrize("words", FOR_CLICK)
def test_what_is_not_plain_is_left_to_click(words: list[str]) -> None:
    assert find_quick(["github", "token", *words]) is None


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["github"],
        ["github", "ls"],
        ["-v", "github", "token", "a/b"],
        ["git-credential"],
        ["git-credential", "--help"],
        ["git-credential", "fill"],
        ["git-credential", "get", "-v"],
        ["git-credential", "get", "x"],
    ],
)
def test_other_commands_are_left_to_click(arguments: list[str]) -> None:
    assert find_quick(arguments) is None


@pytest.mark.parametrize("verb", ["get", "store", "erase"])
def test_both_ways_answer_git_the_same(here: Here, verb: str) -> None:
    description = b"protocol=https\nhost=github.com\npath=acme/etl.git\n\n"
    assert find_quick(["git-credential", verb]) is not None
    short, long = (
        here(*flags, "git-credential", verb, stdin=description) for flags in ([], ["--timeout", "30"])
    )
    assert (short.code, short.out, short.err) == (long.code, long.out, long.err)
    assert short.code == 0
    assert bool(short.out) == (verb == "get")


def test_the_short_way_loads_no_click_and_no_more_than_it_needs(run: Run) -> None:
    code = (
        "import json, sys\n"
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
    assert loaded & {"http.client"}
    unwanted = {"click", "ssl", "inspect", "pathlib", "hashlib", "subprocess"}
    assert loaded & unwanted == set()
