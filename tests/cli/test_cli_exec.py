"""`broker-cli exec`: the child's environment, exit status, signals, and nothing run without a token."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_stage import SECRET, TOKEN, problem

if TYPE_CHECKING:
    from cli_stage import FakeBroker, Here, Run

DUMP = (
    "import json, os, signal, sys\n"
    "ignored = [n for n in ('SIGPIPE', 'SIGXFSZ', 'SIGINT', 'SIGTERM')\n"
    "           if signal.getsignal(getattr(signal, n)) == signal.SIG_IGN]\n"
    "blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
    "open('dump', 'w').write(json.dumps({'env': dict(os.environ), 'argv': sys.argv[1:],\n"
    "    'ignored': ignored, 'blocked': blocked, 'pid': os.getpid(), 'stdin': sys.stdin.read()}))\n"
)


def executed(run: Run, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [run.command, "exec", "--repo", "acme/etl", *arguments],
        env=run.with_(**environment),
        cwd=run.home,
        input="from stdin",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_child_has_the_token_and_nothing_of_ours(run: Run, broker: FakeBroker) -> None:
    words = ["a b", "--json", "-v", "--", "$HOME", ""]
    done = executed(
        run, "--", sys.executable, "-c", DUMP, *words,
        GITHUB_TOKEN="old", GH_TOKEN="old", BROKER_CA_FILE=None, BROKER_SOMETHING="x", OTHER="kept",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert broker.seen[0].json == {"repositories": ["acme/etl"]}
    dump = json.loads((run.home / "dump").read_text())
    assert dump["env"]["GITHUB_TOKEN"] == dump["env"]["GH_TOKEN"] == TOKEN
    assert dump["env"]["OTHER"] == "kept"
    assert not [name for name in dump["env"] if name.startswith("BROKER_")]
    assert SECRET not in json.dumps(dump)
    assert dump["argv"] == words
    assert dump["stdin"] == "from stdin"
    assert dump["blocked"] == []
    # Python itself ignores SIGPIPE and SIGXFSZ as it starts: what a program finds is seen in the next test.
    assert not set(dump["ignored"]) & {"SIGINT", "SIGTERM"}


def test_the_child_finds_no_signal_ignored(run: Run) -> None:
    done = executed(run, "--", "cat", "/proc/self/status")
    ignored = next(line for line in done.stdout.splitlines() if line.startswith("SigIgn:"))
    assert int(ignored.split()[1], 16) == 0


@pytest.mark.parametrize("status", [0, 1, 3, 77])
def test_the_exit_status_is_the_childs(run: Run, status: int) -> None:
    assert executed(run, "--", "sh", "-c", f"exit {status}").returncode == status


def test_a_child_that_died_of_a_signal_looks_so(run: Run) -> None:
    assert executed(run, "--", "sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL


def test_a_signal_reaches_the_child(run: Run) -> None:
    script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [run.command, "exec", "--repo", "a/b", "--", "sh", "-c", script],
        env=run.with_(),
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 42


def test_the_separator_may_be_left_out(run: Run) -> None:
    assert executed(run, "sh", "-c", "exit 5").returncode == 5


def test_without_a_token_nothing_is_run(here: Here, broker: FakeBroker) -> None:
    broker.answers = [problem(403, "forbidden")]
    ran = here("exec", "--repo", "acme/etl", "--", "touch", str(here.home / "ran"))
    assert (ran.code, ran.out, len(ran.lines)) == (1, "", 1)
    assert not (here.home / "ran").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--"],
        ["--repo", "a/b"],
        ["--repo", "a/b", "--"],
        ["--", "true"],
        ["--repo", "a/b", "--repo", "c/d", "--", "true"],
        ["--repo", "a/b", "--owner", "a", "--", "true"],
        ["--nope", "--", "true"],
    ],
)
def test_wrong_usage_is_2_and_nothing_is_sent(here: Here, broker: FakeBroker, words: list[str]) -> None:
    ran = here("exec", *words)
    assert (ran.code, ran.out, len(ran.lines), broker.seen) == (2, "", 1, [])


def test_what_can_not_be_run_is_127_and_126_as_in_a_shell(run: Run) -> None:
    (run.home / "plain").write_text("")
    for command, status in (("no-such-command", 127), ("./plain", 126), ("/", 126)):
        done = executed(run, "--", command)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (status, "", 1)


def test_several_repositories_and_wishes(run: Run, broker: FakeBroker) -> None:
    done = executed(
        run, "--repo", "acme/lib", "--min-ttl", "3000", "--permission", "metadata=read", "--", "true"
    )
    assert done.returncode == 0, done.stderr
    assert broker.seen[0].json == {
        "repositories": ["acme/etl", "acme/lib"],
        "permissions": {"metadata": "read"},
        "min_ttl": 3000,
    }


def test_the_token_is_in_no_command_line(run: Run) -> None:
    with subprocess.Popen(
        [run.command, "exec", "--repo", "a/b", "--", "sh", "-c", "echo ready; sleep 30"],
        env=run.with_(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        shown = b"".join(_command_line(entry) for entry in Path("/proc").iterdir())
        os.killpg(process.pid, signal.SIGKILL)
    assert b"sleep 30" in shown.replace(b"\0", b" ")
    assert TOKEN.encode() not in shown


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
