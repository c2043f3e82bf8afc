"""`broker-cli admin`: what is sent, what is printed, what is tried again; against a played broker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from cli_stage import KEY, KEY_ID, Say, problem

from broker_cli.durations import parse_duration_s
from broker_cli.errors import UsageError
from broker_cli.tables import text_of, write_table

if TYPE_CHECKING:
    from cli_stage import FakeBroker, Run

RECORD: dict[str, Any] = {
    "id": "N3wK3yN3wK3y",
    "name": "nightly \x1b[31mjob",
    "role": "caller",
    "repositories": ["acme/*", "other/x"],
    "permissions": {"contents": "read", "metadata": "read"},
    "created_at": "2026-11-01T00:00:00Z",
    "created_by": "key K3y1dK3y1dAB (ops)",
    "expires_at": "2027-11-01T00:00:00Z",
    "revoked_at": None,
    "last_used_at": None,
    "rate_limit_per_minute": 60,
}
NEW_KEY = "ghbk_N3wK3yN3wK3y_" + "n" * 43 + "000000"
OUTCOME: dict[str, Any] = {"revoked": 2, "failed": 1, "pending": 0, "remaining": []}
COMMANDS = [
    ["admin", "keys", "create"],
    ["admin", "keys", "list"],
    ["admin", "keys", "show"],
    ["admin", "keys", "update"],
    ["admin", "keys", "rotate"],
    ["admin", "keys", "revoke"],
    ["admin", "revoke"],
    ["admin", "block"],
    ["admin", "unblock"],
    ["admin", "blocks"],
    ["admin", "owners", "accept"],
    ["admin", "installations", "list"],
    ["admin", "installations", "sync"],
    ["admin", "audit"],
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_help_teaches_and_needs_no_settings(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments, "--help", BROKER_API_URL=None, BROKER_API_KEY=None)
    assert (ran.code, ran.err) == (0, "")
    assert "Examples:\n" in ran.out
    assert all(len(line) <= 110 for line in ran.out.splitlines())


@pytest.mark.parametrize("arguments", [["admin"], ["admin", "keys"], ["admin", "owners"]])
def test_a_group_alone_shows_its_help(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert "Commands:" in ran.err


def test_create_prints_the_key_alone(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(201, {**RECORD, "key": NEW_KEY})]
    ran = run(
        *(
            "admin",
            "keys",
            "create",
            "--name",
            "nightly job",
            "--repository",
            "acme/*",
            "--repository",
            "other/x",
        ),
        *("--permission", "contents=read", "--expires-at", "2027-11-01T00:00:00Z", "--rate-limit", "60"),
    )
    assert (ran.code, ran.out) == (0, f"{NEW_KEY}\n")
    assert len(ran.lines) == 1
    assert RECORD["id"] in ran.err
    assert RECORD["expires_at"] in ran.err
    assert NEW_KEY not in ran.err
    [seen] = broker.seen
    assert (seen.method, seen.path) == ("POST", "/v1/admin/keys")
    assert seen.json == {
        "name": "nightly job",
        "repositories": ["acme/*", "other/x"],
        "permissions": {"contents": "read"},
        "expires_at": "2027-11-01T00:00:00Z",
        "rate_limit_per_minute": 60,
    }


def test_create_an_admin_that_ends(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(201, {**RECORD, "key": NEW_KEY})]
    ran = run("admin", "keys", "create", "--name", "ops", "--admin", "--expires-in", "2d", "--json")
    assert json.loads(ran.out)["key"] == NEW_KEY
    sent = broker.seen[0].json
    assert (sent["role"], sent["repositories"]) == ("admin", [])
    moment = time.mktime(time.strptime(sent["expires_at"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert abs(moment - time.time() - 2 * 86400) < 60


@pytest.mark.parametrize(
    "arguments",
    [
        ["keys", "create"],
        ["keys", "create", "--name", "x"],
        ["keys", "create", "--name", "x", "--repository", "a/*", "--expires-in", "soon"],
        ["keys", "create", "--name", "x", "--repository", "a/*", "--permission", "contents=write"],
        ["keys", "create", "--name", "x", "--repository", "a/*", "--expires-in", "1d", "--expires-at", "x"],
        ["keys", "create", "--name", "x", "--repository", "a/*", "--rate-limit", "0"],
        ["keys", "show"],
        ["keys", "show", "x"],
        ["keys", "show", KEY],
        ["keys", "show", "../../healthz"],
        ["keys", "update", KEY_ID],
        ["keys", "update", KEY_ID, "--no-expiry", "--expires-in", "1d"],
        ["keys", "update", KEY_ID, "--no-rate-limit", "--rate-limit", "1"],
        ["keys", "rotate", KEY_ID, "--overlap", "8d"],
        ["keys", "rotate", KEY_ID, "--overlap", "-1"],
        ["keys", "revoke", KEY_ID, "--tokens", "all"],
        ["revoke", "--reason", "x"],
        ["revoke", "--owner", "acme"],
        ["revoke", "--owner", "acme", "--all", "--reason", "x"],
        ["revoke", "--token-sha256", "ghs_token", "--reason", "x"],
        ["revoke", "--repository", "acme", "--reason", "x"],
        ["revoke", "--installation", "0", "--reason", "x"],
        ["block", "acme/etl"],
        ["block", "a b", "--reason", "x"],
        ["unblock", "acme/.."],
        ["owners", "accept", "a/b"],
        ["audit", "--key", KEY],
        ["audit", "--follow", "--until", "2026-11-22T10:00:00Z"],
        ["audit", "--follow", "--order", "asc"],
        ["audit", "--limit", "-1"],
        ["audit", "--repository", "acme"],
    ],
)
def test_wrong_usage_is_2_and_nothing_is_sent(run: Run, broker: FakeBroker, arguments: list[str]) -> None:
    ran = run("admin", *arguments)
    assert (ran.code, ran.out, len(ran.lines), broker.seen) == (2, "", 1, [])


def test_list_is_a_table(run: Run, broker: FakeBroker) -> None:
    other = {
        **RECORD,
        "id": "0th3r0th3rAB",
        "name": "b",
        "revoked_at": "2026-11-02T00:00:00Z",
        "expires_at": None,
    }
    broker.answers = [
        Say(200, {"keys": [RECORD], "next_cursor": "1"}),
        Say(200, {"keys": [other], "next_cursor": None}),
    ]
    ran = run("admin", "keys", "list")
    assert (ran.code, ran.err) == (0, "")
    titles, first, second = ran.out.splitlines()
    assert "\x1b" not in ran.out
    assert titles.split() == ["ID", "NAME", "ROLE", "REPOSITORIES", "PERMISSIONS", "STATE", "LAST", "USED"]
    assert titles.index("ROLE") == first.index("caller") == second.index("caller")
    assert "acme/*, other/x" in first
    assert "until 2027-11-01T00:00:00Z" in first
    assert "revoked 2026-11-02T00:00:00Z" in second
    broker.answers = [Say(200, {"keys": [RECORD], "next_cursor": None})]
    assert json.loads(run("admin", "keys", "list", "--json").out) == {"keys": [RECORD]}
    broker.answers = [Say(200, {"keys": [], "next_cursor": None})]
    assert run("admin", "keys", "list").out == ""


def test_show_update_rotate_revoke(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(200, RECORD)]
    ran = run("admin", "keys", "show", RECORD["id"])
    assert "nightly [31mjob (N3wK3yN3wK3y)" in ran.out
    assert json.loads(run("admin", "keys", "show", RECORD["id"], "--json").out) == RECORD
    run("admin", "keys", "update", RECORD["id"], "--name", "x", "--repository", "a/b", "--no-expiry")
    run("admin", "keys", "update", RECORD["id"], "--no-rate-limit", "--permission", "issues=read")
    assert [(one.method, one.path, one.json) for one in broker.seen[2:]] == [
        (
            "PATCH",
            f"/v1/admin/keys/{RECORD['id']}",
            {"name": "x", "repositories": ["a/b"], "expires_at": None},
        ),
        (
            "PATCH",
            f"/v1/admin/keys/{RECORD['id']}",
            {"permissions": {"issues": "read"}, "rate_limit_per_minute": None},
        ),
    ]
    broker.answers = [Say(201, {**RECORD, "key": NEW_KEY})]
    broker.seen.clear()
    assert run("admin", "keys", "rotate", RECORD["id"], "--overlap", "1h").out == f"{NEW_KEY}\n"
    assert broker.seen[0].json == {"overlap_seconds": 3600}
    broker.answers = [Say(200, OUTCOME)]
    ran = run("admin", "keys", "revoke", RECORD["id"])
    assert (ran.code, ran.out) == (0, "")
    ran = run("admin", "keys", "revoke", RECORD["id"], "--tokens", "revoke")
    assert ran.out == "revoked 2, failed 1, pending 0\n"
    assert [(one.method, one.path) for one in broker.seen[1:]] == [
        ("DELETE", f"/v1/admin/keys/{RECORD['id']}?tokens=keep"),
        ("DELETE", f"/v1/admin/keys/{RECORD['id']}?tokens=revoke"),
    ]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (["--repository", "https://github.com/acme/etl.git"], {"repository": "acme/etl"}),
        (["--owner", "acme"], {"owner": "acme"}),
        (["--installation", "7"], {"installation_id": 7}),
        (["--token-sha256", "A" * 43 + "="], {"token_sha256": "A" * 43 + "="}),
        (["--all"], {"all": True}),
        (["--all", "--yes"], {"all": True}),
    ],
)
def test_revoke(run: Run, broker: FakeBroker, options: list[str], sent: dict[str, Any]) -> None:
    remaining = [{"token_sha256": "A" * 43 + "=", "expires_at": "2026-11-22T10:00:00Z"}]
    broker.answers = [Say(200, {**OUTCOME, "remaining": remaining})]
    ran = run("admin", "revoke", *options, "--reason", "leaked")
    assert (ran.code, ran.out) == (0, "revoked 2, failed 1, pending 0\n")
    assert (len(ran.lines), "2026-11-22T10:00:00Z" in ran.err) == (1, True)
    [seen] = broker.seen
    assert (seen.method, seen.path, seen.json) == (
        "POST",
        "/v1/admin/revocations",
        {**sent, "reason": "leaked"},
    )
    assert (
        json.loads(run("admin", "revoke", *options, "--reason", "x", "--json").out)["remaining"] == remaining
    )


@pytest.mark.parametrize(("typed", "code"), [(b"yes\n", 0), (b"y\n", 2), (b"\n", 2), (b"\x04", 2)])
def test_revoke_all_asks_at_a_terminal(run: Run, broker: FakeBroker, typed: bytes, code: int) -> None:
    broker.answers = [Say(200, OUTCOME)]
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [run.command, "admin", "revoke", "--all", "--reason", "x"],
            env=run.with_(),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(ours, typed)
        out, err = process.communicate(timeout=20)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == code, err
    assert b"every live token" in err
    assert (out != b"", len(broker.seen)) == ((True, 1) if code == 0 else (False, 0))


def test_blocks(run: Run, broker: FakeBroker) -> None:
    entry = {"owner": "acme", "repository": "acme/etl", "by": KEY_ID, "reason": "r", "created_at": "t"}
    broker.answers = [Say(200, OUTCOME)]
    assert run("admin", "block", "acme/etl", "--reason", "incident").code == 0
    assert (
        run("admin", "block", "acme", "--reason", "incident", "--json").out
        == f"{json.dumps(OUTCOME, indent=2)}\n"
    )
    broker.answers = [Say(204, b"")]
    ran = run("admin", "unblock", "acme/etl")
    assert (ran.code, ran.out) == (0, "")
    assert [(one.method, one.path) for one in broker.seen] == [
        ("PUT", "/v1/admin/blocks/acme/etl"),
        ("PUT", "/v1/admin/blocks/acme"),
        ("DELETE", "/v1/admin/blocks/acme/etl"),
    ]
    assert broker.seen[0].json == {"reason": "incident"}
    broker.answers = [Say(200, {"blocks": [entry], "next_cursor": None})]
    assert run("admin", "blocks").out.splitlines()[1].split() == ["acme/etl", KEY_ID, "t", "r"]
    assert json.loads(run("admin", "blocks", "--json").out) == {"blocks": [entry]}
    broker.answers = [problem(404, "not_found", "That is not blocked.")]
    ran = run("admin", "unblock", "acme/etl")
    assert (ran.code, "BROKER_API_URL" in ran.err) == (1, False)


def test_installations_and_owners(run: Run, broker: FakeBroker) -> None:
    entry = {
        "id": 7,
        "app": {"id": 1, "slug": "x"},
        "owner": "acme",
        "account_id": 9,
        "repository_selection": "all",
        "suspended": False,
        "permissions": {"contents": "read"},
        "live_tokens": 0,
        "checked_at": "2026-11-22T10:00:00Z",
        "foreign": False,
        "blocked_reason": None,
    }
    broker.answers = [Say(200, {"installations": [entry], "next_cursor": None})]
    row = run("admin", "installations", "list").out.splitlines()[1]
    assert row.split() == ["acme", "7", "all", "no", "0", "2026-11-22T10:00:00Z", "contents:", "read", "-"]
    broker.answers = [Say(200, {"unchanged": 1, "added": 2, "changed": 3, "removed": 4})]
    assert run("admin", "installations", "sync").out == "unchanged 1, added 2, changed 3, removed 4\n"
    broker.answers = [Say(200, entry)]
    ran = run("admin", "owners", "accept", "acme")
    assert (ran.code, ran.out, "account 9" in ran.err) == (0, "", True)
    assert json.loads(run("admin", "owners", "accept", "acme", "--json").out) == entry


# -- trying again -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_may_have_made_a_key_is_not_sent_again(run: Run, broker: FakeBroker, status: int) -> None:
    for command in (
        ["create", "--name", "x", "--repository", "a/*"],
        ["rotate", KEY_ID],
    ):
        broker.answers = [
            problem(status, "store_unavailable", Retry_After="1"),
            Say(201, {**RECORD, "key": NEW_KEY}),
        ]
        broker.seen.clear()
        ran = run("admin", "keys", *command)
        assert (ran.code, len(broker.seen), len(ran.lines)) == (4, 1, 1)
        assert "keys list" in ran.err


def test_a_cut_connection_may_have_made_a_key(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(act=lambda _: None)]
    ran = run("admin", "keys", "create", "--name", "x", "--repository", "a/*")
    assert (ran.code, len(broker.seen)) == (4, 1)
    assert "keys list" in ran.err


def test_a_limit_made_no_key(run: Run, broker: FakeBroker) -> None:
    broker.answers = [problem(429, "rate_limited", Retry_After="1"), Say(201, {**RECORD, "key": NEW_KEY})]
    ran = run("admin", "keys", "create", "--name", "x", "--repository", "a/*")
    assert (ran.code, ran.out, len(broker.seen)) == (0, f"{NEW_KEY}\n", 2)


def test_a_refused_connection_is_tried_again(run: Run) -> None:
    started = time.monotonic()
    ran = run(
        *("admin", "keys", "create", "--name", "x", "--repository", "a/*", "--timeout", "2"),
        BROKER_API_URL="http://127.0.0.1:9",
    )
    assert ran.code == 4
    assert "tries" in ran.err
    assert "keys list" not in ran.err
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "arguments",
    [
        ["revoke", "--all", "--reason", "x"],
        ["block", "acme", "--reason", "x"],
        ["keys", "revoke", KEY_ID, "--tokens", "revoke"],
    ],
)
def test_what_ends_something_is_sent_again(run: Run, broker: FakeBroker, arguments: list[str]) -> None:
    broker.answers = [Say(act=lambda _: None), problem(503, "store_unavailable"), Say(200, OUTCOME)]
    ran = run("admin", *arguments)
    assert (ran.code, len(broker.seen)) == (0, 3)


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((401, "invalid_api_key"), 3),
        ((403, "forbidden"), 1),
        ((409, "conflict"), 1),
        ((422, "invalid_request"), 1),
    ],
)
@pytest.mark.parametrize(
    "arguments", [["keys", "list"], ["revoke", "--all", "--reason", "x"], ["audit", "-f"]]
)
def test_refusals(
    run: Run, broker: FakeBroker, refusal: tuple[int, str], expected: int, arguments: list[str]
) -> None:
    broker.answers = [problem(*refusal)]
    ran = run("admin", *arguments)
    assert (ran.code, len(ran.lines), len(broker.seen)) == (expected, 1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["keys", "list"],
        ["keys", "show", KEY_ID],
        ["keys", "rotate", KEY_ID],
        ["revoke", "--all", "--reason", "x"],
        ["installations", "sync"],
        ["owners", "accept", "acme"],
        ["audit"],
    ],
)
@pytest.mark.parametrize("body", [{}, [], "x", b"\xff"])
def test_an_answer_that_makes_no_sense_is_4(
    run: Run, broker: FakeBroker, arguments: list[str], body: object
) -> None:
    broker.answers = [Say(201 if "rotate" in arguments else 200, body)]
    ran = run("admin", *arguments)
    assert (ran.code, len(ran.lines)) == (4, 1)


# -- the audit ----------------------------------------------------------------------------------


def event(number: int, **more: object) -> dict[str, object]:
    return {
        "id": str(number),
        "time": "2026-11-22T10:00:00Z",
        "event": "token.issued",
        "key_id": KEY_ID,
        "repositories": ["acme/etl"],
        **more,
    }


def events(*numbers: int, cursor: str | None) -> Say:
    return Say(200, {"events": [event(one) for one in numbers], "next_cursor": cursor})


def test_audit_filters_and_pages(run: Run, broker: FakeBroker) -> None:
    broker.answers = [events(5, 4, cursor="4"), events(cursor="2"), events(1, cursor=None)]
    ran = run(
        *("admin", "audit", "--key", KEY_ID, "--repository", "acme/etl", "--event", "token.issued"),
        *("--request-id", "a.b", "--since", "2026-11-22T10:00:00+01:00", "--until", "x", "--json"),
    )
    assert [json.loads(line)["id"] for line in ran.out.splitlines()] == ["5", "4", "1"]
    assert broker.seen[0].path == (
        f"/v1/admin/audit?key={KEY_ID}&repository=acme%2Fetl&event=token.issued&request_id=a.b"
        "&since=2026-11-22T10%3A00%3A00%2B01%3A00&until=x&order=desc&limit=50"
    )
    assert broker.seen[1].path.endswith("&limit=48&cursor=4")


def test_audit_stops_at_its_limit(run: Run, broker: FakeBroker) -> None:
    broker.answers = [events(5, 4, cursor="4")]
    assert len(run("admin", "audit", "--limit", "2").out.splitlines()) == 2
    assert len(broker.seen) == 1


def test_audit_oldest_first_ends_where_nothing_is_new(run: Run, broker: FakeBroker) -> None:
    broker.answers = [events(1, 2, cursor="2"), events(3, cursor="3"), events(cursor="3")]
    ran = run("admin", "audit", "--order", "asc", "--limit", "0", "--json")
    assert [json.loads(line)["id"] for line in ran.out.splitlines()] == ["1", "2", "3"]


def test_audit_lines_are_clean(run: Run, broker: FakeBroker) -> None:
    broker.answers = [
        Say(200, {"events": [event(1, reason="a\x1b[2J\nb", key_name="ops")], "next_cursor": None})
    ]
    [line] = run("admin", "audit").out.splitlines()
    assert line.split() == [
        "2026-11-22T10:00:00Z",
        "token.issued",
        KEY_ID,
        "acme/etl",
        "reason=a[2J",
        "b",
        "key_name=ops",
    ]


def follow(run: Run, *options: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [run.command, "admin", "audit", "--follow", "--json", *options],
        env=run.with_(),
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def test_follow_goes_on_after_trouble_until_ctrl_c(run: Run, broker: FakeBroker) -> None:
    broker.answers = [
        events(2, cursor="2"),
        events(2, 1, cursor=None),
        events(3, cursor="3"),
        events(cursor="3"),
        *[problem(503, "store_unavailable")] * 2,
        Say(act=lambda _: None),
        events(4, cursor="4"),
        events(cursor="4"),
    ]
    process = follow(run, "--timeout", "1")
    assert process.stdout is not None
    seen = [json.loads(process.stdout.readline())["id"] for _ in range(4)]
    assert seen == ["1", "2", "3", "4"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    paths = [one.path for one in broker.seen]
    assert "order=desc&limit=1" in paths[0]
    assert "order=desc&limit=10" in paths[1]
    assert "order=asc&limit=200&cursor=2" in paths[2]
    assert all("cursor=3" in path for path in paths[3:7])


def test_follow_ends_when_nobody_reads(run: Run, broker: FakeBroker) -> None:
    broker.answers = [events(cursor=None)]
    read, write = os.pipe()
    process = follow(run, stdout=write)
    os.close(write)
    while len(broker.seen) < 3:
        time.sleep(0.01)
    os.close(read)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (141, b"")


def test_follow_begins_at_a_time(run: Run, broker: FakeBroker) -> None:
    broker.answers = [events(1, cursor="1"), events(cursor="1")]
    process = follow(run, "--since", "2026-11-22T10:00:00Z")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["id"] == "1"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.communicate()
    assert "order=asc" in broker.seen[0].path
    assert "since=" in broker.seen[0].path


def test_follow_of_what_has_not_happened_yet_begins_at_the_newest_event(run: Run, broker: FakeBroker) -> None:
    broker.answers = [
        events(9, cursor="8"),
        events(cursor=None),
        events(10, cursor="10"),
        events(cursor="10"),
    ]
    process = follow(run, "--event", "block.set")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["id"] == "10"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.communicate()
    paths = [one.path for one in broker.seen]
    assert paths[0] == "/v1/admin/audit?order=desc&limit=1"
    assert "event=block.set" in paths[1]
    assert "event=block.set" in paths[2]
    assert paths[2].endswith("cursor=9")


# -- words --------------------------------------------------------------------------------------


def test_durations() -> None:
    assert [parse_duration_s(text, option="x") for text in ("0", "45s", "30m", "12h", "90d", "2w")] == [
        0,
        45,
        1800,
        43200,
        7776000,
        1209600,
    ]
    for text in ("", "-1", "1.5h", "1y", "1 d", "99999999999d", "9999999999w", "\u0663d"):
        with pytest.raises(UsageError):
            parse_duration_s(text, option="x")


def test_tables(capfd: pytest.CaptureFixture[str]) -> None:
    assert text_of(None) == text_of("") == text_of([]) == text_of({}) == "-"
    assert (text_of(False), text_of(True), text_of(0)) == ("no", "yes", "0")
    write_table(("A", "B"), [("\u6771\u4eac", "x"), ("ab", "y")])
    lines = capfd.readouterr().out.splitlines()
    assert lines == ["A     B", "\u6771\u4eac  x", "ab    y"]
    write_table(("A",), [("x" * 1000,)])
    assert len(capfd.readouterr().out.splitlines()[1]) == 400


def test_a_table_fits_the_terminal(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(200, {"keys": [{**RECORD, "name": "n" * 150}], "next_cursor": None})]
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [run.command, "admin", "keys", "list"],
            env=run.with_(COLUMNS="100"),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            check=True,
            timeout=20,
        )
        lines = os.read(ours, 10_000).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)
    assert len(lines) == 2
    assert all(len(line) <= 100 for line in lines)
    assert "nnn..." in lines[1]


def test_getting_a_token_loads_nothing_of_this(run: Run) -> None:
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
    assert not {one for one in loaded if one.startswith("broker_cli.commands.admin")}
    assert not loaded & {"broker_cli.tables", "broker_cli.durations", "shutil", "unicodedata"}
