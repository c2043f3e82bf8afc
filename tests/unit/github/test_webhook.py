"""Signatures and payloads of webhooks: what is forgotten because of which delivery."""

import hashlib
import hmac
import json
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import MalformedRequestError, UnsupportedMediaTypeError
from broker.github.webhook import MOST_REPOSITORIES, SignatureCheck, parse_delivery
from broker.model import Secret, Target, TargetKind
from broker.ports import HookWork

GUID = "72d3162e-cc78-11e3-81ab-4c9367dc0958"
ACME: dict[str, Any] = {"login": "Acme", "id": 9001, "type": "Organization"}


def signature(secret: str, body: bytes) -> bytes:
    return b"sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest().encode()


def parse(
    event: str, payload: Any, *, content_type: str = "application/json", guid: str = GUID
) -> HookWork | None:
    body = json.dumps(payload).encode()
    return parse_delivery(event=event, guid=guid, content_type=content_type, body=body)


def dropped(event: str, payload: Any) -> set[str]:
    work = parse(event, payload)
    return set() if work is None else {target.name for target in work.drops}


def voided(event: str, payload: Any) -> set[str]:
    work = parse(event, payload)
    return set() if work is None else set(work.voids)


# -- signatures ------------------------------------------------------------------------------------


def test_githubs_own_test_vector() -> None:
    """The values of "Validating webhook deliveries", in pieces as they may arrive."""
    check = SignatureCheck([Secret("It's a Secret to Everybody")])
    for piece in (b"Hello", b", ", b"", b"World!"):
        check.update(piece)
    good = b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert check.verify(good)
    assert check.verify(good)  # asking does not end it
    check.update(b"\n")
    assert not check.verify(good)


@pytest.mark.parametrize("signing", ["old", "new", "ключ 🔑"])
def test_each_of_several_secrets_is_good(signing: str) -> None:
    check = SignatureCheck([Secret("new"), Secret("old"), Secret("ключ 🔑")])
    check.update(b"body")
    assert check.verify(signature(signing, b"body"))
    assert not check.verify(signature("other", b"body"))


def test_without_a_secret_nothing_is_good() -> None:
    check = SignatureCheck([])
    check.update(b"body")
    assert not check.verify(signature("", b"body"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: None,
        lambda _: b"",
        lambda good: good[7:],
        lambda good: good + b"\n",
        lambda good: b" " + good,
        lambda good: good.upper(),
        lambda good: b"sha256=" + good[7:].upper(),
        lambda good: good[:-1],
        lambda good: good + b"0",
        lambda good: good.replace(b"sha256", b"sha1"),
        lambda _: b"sha1=" + hmac.new(b"s", b"body", hashlib.sha1).hexdigest().encode(),
        lambda good: good[:-1] + "é".encode(),
        lambda _: b"sha256=" + b"g" * 64,
    ],
)
def test_only_one_form_of_the_header_is_good(spoil: Any) -> None:
    check = SignatureCheck([Secret("s")])
    check.update(b"body")
    good = signature("s", b"body")
    assert check.well_formed(good)
    assert not check.well_formed(spoil(good))
    assert not check.verify(spoil(good))


@given(st.binary(max_size=200), st.one_of(st.none(), st.binary(max_size=100)))
def test_no_header_crashes_the_check(body: bytes, header: bytes | None) -> None:
    check = SignatureCheck([Secret("s"), Secret("t")])
    check.update(body)
    assert not check.verify(header)


# -- what is forgotten -----------------------------------------------------------------------------


def short(*names: str) -> list[dict[str, Any]]:
    return [{"id": 1, "node_id": "R_1", "name": n.partition("/")[2], "full_name": n} for n in names]


def installed(action: str, **more: Any) -> dict[str, Any]:
    return {"action": action, "installation": {"id": 50, "account": ACME, "created_at": 1525109898}} | more


@pytest.mark.parametrize(
    "action",
    ["created", "deleted", "suspend", "unsuspend", "new_permissions_accepted", "some_new_action", None, 7],
)
def test_whatever_happens_to_an_installation_drops_its_owner(action: Any) -> None:
    work = parse("installation", installed(action, repositories=short("Acme/a")))
    assert work is not None
    assert work.drops == (Target(TargetKind.OWNER, "acme"),)
    assert work.voids == ("acme",)
    assert (work.installation_id, work.guid) == (50, GUID)
    known = isinstance(action, str)
    assert work.event == (f"installation.{action}" if known else "installation")


@pytest.mark.parametrize(
    "account",
    [None, {}, {"slug": "big-corp", "id": 3}, {"login": None}, {"login": "a/b"}, {"login": ["x"]}, "acme", 7],
)
def test_an_account_without_a_login_leaves_the_installations_id(account: Any) -> None:
    for event in ("installation", "installation_repositories"):
        work = parse(event, {"action": "deleted", "installation": {"id": 50, "account": account}})
        assert work is not None
        assert (work.drops, work.voids, work.installation_id) == ((), (), 50)
        assert parse(event, {"action": "deleted", "installation": {"account": account}}) is None


@pytest.mark.parametrize("number", [True, 0, -1, 2**63, 1.5, "50", None, [50]])
def test_ids_that_are_none(number: Any) -> None:
    payload = {"action": "deleted", "installation": {"id": number, "account": ACME}}
    work = parse("installation", payload)
    assert work is not None
    assert work.installation_id is None
    assert work.drops == (Target(TargetKind.OWNER, "acme"),)


def selection(action: str, added: Any = (), removed: Any = (), now: str = "selected") -> dict[str, Any]:
    return installed(
        action,
        repository_selection=now,
        repositories_added=added if not isinstance(added, tuple) else short(*added),
        repositories_removed=removed if not isinstance(removed, tuple) else short(*removed),
    )


def test_repositories_that_are_added_void_failures_only() -> None:
    payload = selection("added", added=("Acme/a", "Acme/b"))
    assert dropped("installation_repositories", payload) == set()
    assert voided("installation_repositories", payload) == {"acme"}


def test_repositories_that_are_removed_are_dropped() -> None:
    payload = selection("removed", removed=("Acme/A", "acme/b"))
    assert dropped("installation_repositories", payload) == {"acme/a", "acme/b"}
    both = selection("added", added=("Acme/a",), removed=("Acme/c",))
    assert dropped("installation_repositories", both) == {"acme/c"}


@pytest.mark.parametrize(
    "payload",
    [
        selection("removed"),  # all -> selected: GitHub names nothing
        selection("added", added=("Acme/a",), now="all"),
        selection("added"),
        selection("removed", removed=None),
        selection("removed", removed={"full_name": "acme/a"}),
        selection("removed", removed=[{"name": "a"}]),
        selection("some_new_action", removed=("acme/a",)),
        selection("removed", removed=[{"full_name": "acme/../etc"}, {"full_name": "acme/a"}]),
    ],
)
def test_a_selection_that_is_not_plain_drops_the_owner(payload: dict[str, Any]) -> None:
    assert "acme" in dropped("installation_repositories", payload)


def test_many_repositories_drop_their_owner_instead() -> None:
    many = tuple(f"acme/r{n}" for n in range(MOST_REPOSITORIES + 1))
    assert dropped("installation_repositories", selection("removed", removed=many)) == {"acme"}
    fewer = dropped("installation_repositories", selection("removed", removed=many[1:]))
    assert fewer == set(many[1:])


@pytest.mark.parametrize("change", ["login", "slug"])
def test_a_renamed_account_drops_both_names(change: str) -> None:
    payload = {
        "action": "renamed",
        "account": ACME,
        "target_type": "Organization",
        "changes": {change: {"from": "Old-Acme"}},
        "installation": {"id": 50, "node_id": "x"},
    }
    assert dropped("installation_target", payload) == {"acme", "old-acme"}
    assert dropped("installation_target", payload | {"action": "other"}) == set()
    assert dropped("installation_target", payload | {"account": {"slug": "ent"}}) == {"ent", "old-acme"}


def test_organizations() -> None:
    renamed = {"action": "renamed", "changes": {"login": {"from": "Old"}}, "organization": ACME}
    assert dropped("organization", renamed) == {"old", "acme"}
    assert dropped("organization", {"action": "deleted", "organization": ACME}) == {"acme"}
    assert parse("organization", {"action": "member_added", "organization": ACME}) is None
    no_name = parse("organization", {"action": "deleted", "installation": {"id": 7}})
    assert no_name is not None
    assert (no_name.drops, no_name.installation_id) == ((), 7)


REPOSITORY = {"id": 1, "name": "New", "full_name": "Acme/New", "owner": ACME}


@pytest.mark.parametrize(
    "action", ["deleted", "privatized", "publicized", "archived", "unarchived", "renamed", "transferred"]
)
def test_repositories_are_dropped_by_name(action: str) -> None:
    payload = {"action": action, "repository": REPOSITORY, "installation": {"id": 50}}
    assert dropped("repository", payload) == {"acme/new"}
    assert parse("repository", payload | {"repository": None}) is None
    assert parse("repository", payload | {"repository": {"full_name": "a/b/c"}}) is None


def test_old_names_of_repositories_are_dropped_too() -> None:
    renamed = {
        "action": "renamed",
        "repository": REPOSITORY,
        "changes": {"repository": {"name": {"from": "Old"}}},
    }
    assert dropped("repository", renamed) == {"acme/new", "acme/old"}
    for kind in ("user", "organization"):
        moved = {
            "action": "transferred",
            "repository": REPOSITORY,
            "changes": {"owner": {"from": {kind: {"login": "Giver", "id": 2}}}},
        }
        assert dropped("repository", moved) == {"acme/new", "giver/new"}
    for old in ("..", "a/b", 7, None, {"x": 1}):
        odd = renamed | {"changes": {"repository": {"name": {"from": old}}}}
        assert dropped("repository", odd) == {"acme/new"}


def test_public() -> None:
    assert dropped("public", {"repository": REPOSITORY}) == {"acme/new"}
    work = parse("public", {"repository": REPOSITORY})
    assert work is not None
    assert work.event == "public"


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("ping", {"zen": "x", "hook_id": 1, "hook": {"app_id": 1}}),
        ("github_app_authorization", {"action": "revoked", "sender": ACME}),
        ("security_advisory", {"action": "published"}),
        ("meta", {"action": "deleted", "hook_id": 1}),
        ("push", {"ref": "refs/heads/main", "repository": REPOSITORY, "installation": {"id": 50}}),
        ("repository", {"action": "created", "repository": REPOSITORY, "installation": {"id": 50}}),
        ("repository", {"action": "edited", "repository": REPOSITORY}),
        ("an_event_of_next_year", {"action": "deleted", "installation": {"id": 50, "account": ACME}}),
    ],
)
def test_everything_else_is_politely_ignored(event: str, payload: dict[str, Any]) -> None:
    assert parse(event, payload) is None


# -- what is no delivery ---------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["", "Installation", "a b", "ping\n", "x" * 65, "../x", "é", "1"])
def test_event_names(event: str) -> None:
    with pytest.raises(MalformedRequestError, match="X-GitHub-Event"):
        parse(event, {})


@pytest.mark.parametrize("guid", ["", "a" * 65, "a b", "x\n", "é", "a_b", "\x00"])
def test_delivery_ids(guid: str) -> None:
    with pytest.raises(MalformedRequestError, match="X-GitHub-Delivery"):
        parse("ping", {}, guid=guid)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{",
        b"{}x",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"a":1' + b"0" * 5000 + b"}",
        b'{"a":' * 100_000,
        b"[" * 100_000,
        "{}".encode("utf-16"),
    ],
)
def test_bodies_that_are_no_payload(body: bytes) -> None:
    for event in ("ping", "installation"):
        with pytest.raises(MalformedRequestError):
            parse_delivery(event=event, guid=GUID, content_type="application/json", body=body)


def form(text: str, *, event: str = "installation") -> HookWork | None:
    kind = "application/x-www-form-urlencoded"
    return parse_delivery(event=event, guid=GUID, content_type=kind, body=text.encode())


def test_forms() -> None:
    payload = json.dumps(installed("deleted", note="a+b & c=d é ü"))
    expected = parse("installation", installed("deleted"))
    assert form(urlencode({"payload": payload})) == expected
    assert form(f"payload={quote_plus(payload)}&other=1") == expected
    for broken in (
        "",
        "payload=",
        payload,
        f"Payload={quote_plus(payload)}",
        f"payload={quote_plus(payload)}&payload={quote_plus(payload)}",
        "payload=%ff",
        f"payload={quote_plus(payload)}" + "&x=1" * 20,
        f"payload={payload}é",
    ):
        with pytest.raises(MalformedRequestError):
            form(broken)


def test_another_content_type() -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        parse("ping", {}, content_type="text/plain")
    assert parse("ping", {}, content_type="Application/JSON; charset=utf-8") is None


# -- anything at all -------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "action",
                    "installation",
                    "account",
                    "login",
                    "slug",
                    "id",
                    "repositories_added",
                    "repositories_removed",
                    "repository_selection",
                    "repository",
                    "full_name",
                    "changes",
                    "name",
                    "from",
                    "owner",
                    "user",
                    "organization",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)
EVENTS = [
    "installation",
    "installation_repositories",
    "installation_target",
    "repository",
    "public",
    "organization",
    "ping",
]
ACTIONS = ["created", "deleted", "added", "removed", "renamed", "transferred", "archived", "odd"]


@given(st.sampled_from(EVENTS), st.sampled_from(ACTIONS), st.dictionaries(st.text(max_size=5), JSON_VALUES))
def test_no_json_crashes_the_parser(event: str, action: str, payload: dict[str, Any]) -> None:
    check_work(parse(event, payload))
    check_work(parse(event, payload | {"action": action}))


@given(
    st.sampled_from(EVENTS),
    st.sampled_from(ACTIONS),
    st.fixed_dictionaries(
        {},
        optional={
            "installation": JSON_VALUES
            | st.fixed_dictionaries({"id": st.integers(), "account": JSON_VALUES}),
            "changes": JSON_VALUES,
            "repository": JSON_VALUES | st.fixed_dictionaries({"full_name": st.text(max_size=20)}),
            "repositories_removed": JSON_VALUES | st.lists(st.fixed_dictionaries({"full_name": JSON_VALUES})),
            "repositories_added": JSON_VALUES,
            "repository_selection": JSON_VALUES,
            "account": JSON_VALUES,
            "organization": JSON_VALUES,
        },
    ),
)
def test_no_shape_of_known_fields_crashes_the_parser(event: str, action: str, payload: Any) -> None:
    check_work(parse(event, payload | {"action": action}))


@given(st.text(max_size=70), st.text(max_size=70), st.binary(max_size=300))
def test_no_bytes_crash_the_parser(event: str, guid: str, body: bytes) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        for name in (event, "installation"):
            try:
                check_work(parse_delivery(event=name, guid=guid, content_type=kind, body=body))
            except MalformedRequestError:
                continue


def check_work(work: HookWork | None) -> None:
    """Only owners and repositories in lower case are ever dropped, and never nothing at all."""
    if work is None:
        return
    assert work.drops or work.voids or work.installation_id
    assert len(work.drops) <= MOST_REPOSITORIES + 5
    for target in work.drops:
        assert target.kind in {TargetKind.OWNER, TargetKind.REPOSITORY}
        assert target.name == target.name.lower()
        assert target.name.isascii()
        assert ("/" in target.name) == (target.kind is TargetKind.REPOSITORY)
    json.dumps([work.event, work.guid])
