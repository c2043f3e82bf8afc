"""`broker-cli github ls` and `broker-cli whoami`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cli_stage import Say

if TYPE_CHECKING:
    from cli_stage import FakeBroker, Run

RECORD = {
    "id": "K3y1dK3y1dAB",
    "name": "nightly \x1b[31mjob",
    "role": "caller",
    "repositories": ["acme/*", "other/x"],
    "permissions": {"contents": "read"},
    "created_at": "2026-11-01T00:00:00Z",
    "created_by": "admin",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
    "rate_limit_per_minute": 60,
}


def page(names: list[Any], cursor: Any) -> Say:
    return Say(
        200, {"repositories": [{"full_name": name, "private": True} for name in names], "next_cursor": cursor}
    )


def test_every_page_on_one_connection(run: Run, broker: FakeBroker) -> None:
    broker.answers = [page(["a/b", "a/c"], "x y&z/="), page([], "2"), page(["a/d"], None)]
    ran = run("github", "ls")
    assert (ran.code, ran.out, ran.err) == (0, "a/b\na/c\na/d\n", "")
    assert [seen.path.partition("?")[0] for seen in broker.seen] == ["/v1/github/repositories"] * 3
    assert "cursor=x%20y%26z%2F%3D" in broker.seen[1].path
    assert len({seen.connection for seen in broker.seen}) == 1
    assert len({seen.headers["X-Request-Id"] for seen in broker.seen}) == 1


def test_no_repository_prints_nothing(run: Run, broker: FakeBroker) -> None:
    broker.answers = [page([], None)]
    assert run("github", "ls").out == ""


def test_ls_json_joins_the_pages(run: Run, broker: FakeBroker) -> None:
    broker.answers = [page(["a/b"], "2"), page(["a/c"], None)]
    ran = run("github", "ls", "--json")
    assert [each["full_name"] for each in json.loads(ran.out)["repositories"]] == ["a/b", "a/c"]


def test_names_cannot_steer_the_terminal(run: Run, broker: FakeBroker) -> None:
    broker.answers = [page(["a/\x1b]0;x\x07b\nc"], None)]
    assert run("github", "ls").out == "a/]0;xb c\n"


@pytest.mark.parametrize(
    "pages",
    [
        [page(["a/b"], "1"), page(["a/c"], "1")],
        [page(["a/b"], "")],
        [page(["a/b"], 5)],
        [page(["a/b"], "a\nb")],
        [page([None], None)],
        [Say(200, {"next_cursor": None})],
        [Say(200, {"repositories": ["a/b"], "next_cursor": None})],
        [Say(200, {"repositories": {"a": 1}, "next_cursor": None})],
    ],
)
def test_a_list_that_makes_no_sense_is_4_and_prints_nothing(
    run: Run, broker: FakeBroker, pages: list[Say]
) -> None:
    broker.answers = pages
    ran = run("github", "ls")
    assert (ran.code, len(ran.lines)) == (4, 1)


def test_a_list_that_breaks_off_prints_nothing(run: Run, broker: FakeBroker) -> None:
    broker.answers = [page(["a/b"], "1"), Say(403, {"code": "forbidden", "detail": "No."})]
    assert run("github", "ls").code == 1


def test_a_connection_closed_between_pages_is_opened_again(run: Run, broker: FakeBroker) -> None:
    first = page(["a/b"], "1")
    first.headers = {"Connection": "close"}
    broker.answers = [first, page(["a/c"], None)]
    assert run("github", "ls").out == "a/b\na/c\n"
    assert len({seen.connection for seen in broker.seen}) == 2


def test_whoami_in_words(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(200, RECORD)]
    ran = run("whoami")
    assert (ran.code, ran.err) == (0, "")
    assert (broker.seen[0].method, broker.seen[0].path) == ("GET", "/v1/whoami")
    assert ran.out.splitlines()[:4] == [
        "key:          nightly [31mjob (K3y1dK3y1dAB)",
        "role:         caller",
        "repositories: acme/*, other/x",
        "permissions:  contents: read",
    ]
    assert "never" in ran.out
    assert "60" in ran.out


def test_whoami_json(run: Run, broker: FakeBroker) -> None:
    broker.answers = [Say(200, RECORD)]
    assert json.loads(run("whoami", "--json").out) == RECORD


@pytest.mark.parametrize("body", [{}, {"id": 5}, []])
def test_whoami_unexpected(run: Run, broker: FakeBroker, body: object) -> None:
    broker.answers = [Say(200, body)]
    assert run("whoami").code == 4
