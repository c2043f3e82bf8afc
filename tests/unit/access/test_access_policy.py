# ruff: noqa: E501 - a table of wrong patterns
"""Policy, against a model that shares no code with it."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.access.keys import PresentedKey
from broker.access.policy import (
    MAX_PATTERNS,
    authenticate,
    authorize,
    parse_patterns,
    reaches,
    reaches_all_of,
    require_admin,
)
from broker.errors import ForbiddenError, InvalidApiKeyError, InvalidRequestError
from broker.model import ApiKeyRecord, RepositoryName, Role, Scope

HOST = "github.com"


def record(
    *patterns: str,
    permissions: tuple[str, ...] = ("contents", "metadata"),
    role: Role = Role.CALLER,
    expires_at: int | None = None,
    revoked_at: int | None = None,
) -> ApiKeyRecord:
    return ApiKeyRecord(
        "AAAAAAAAAAAA", "00", "n", role, parse_patterns(patterns) if patterns else (), permissions, 0, "t",
        expires_at=expires_at, revoked_at=revoked_at,
    )  # fmt: skip


def scope(*names: str, permissions: tuple[str, ...] = ("contents", "metadata")) -> Scope:
    return Scope.of_repositories(HOST, [RepositoryName.parse(name) for name in names], permissions)


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("acme/widgets", "acme/widgets", True),
        ("ACME/Widgets", "acme/widgets", True),
        ("acme/widgets", "Acme/WIDGETS", True),
        ("acme/widgets", "acme/widgets2", False),
        ("acme/widgets", "acme/widget", False),
        ("acme/widgets", "acme2/widgets", False),
        ("acme/*", "acme/anything.at-all_", True),
        ("acme/*", "acme-evil/widgets", False),
        ("acme/*", "acm/widgets", False),
        ("acme/svc-*", "acme/svc-", True),
        ("acme/svc-*", "acme/SVC-a", True),
        ("acme/svc-*", "acme/svc", False),
        ("acme/svc-*", "acme/a-svc-b", False),
        ("acme/s.c-*", "acme/sxc-a", False),
        ("acme/[ab]*", None, False),
        ("*/*", "who/ever", True),
    ],
)
def test_patterns(pattern: str, name: str | None, allowed: bool) -> None:
    if name is None:
        with pytest.raises(InvalidRequestError):
            parse_patterns([pattern])
        return
    caller = record(pattern)
    if allowed:
        assert authorize(caller, scope(name), allowed_owners=None).key_id == caller.id
    else:
        with pytest.raises(ForbiddenError) as caught:
            authorize(caller, scope(name), allowed_owners=None)
        assert name.partition("/")[2] not in caught.value.public


@pytest.mark.parametrize(
    "wrong",
    [
        "", "*", "acme", "acme/", "/widgets", "*/widgets", "*/svc-*", "ac*/widgets", "ac*/*", "acme/*x", "acme/a*b",
        "acme/**", "acme/a/b", "acme/*/b", "acme/ widgets", "acme/wid\ngets", "acme/*\n", "-acme/x", "acme/.", "acme/..",
        "acme/é", "acmé/x", "a" * 40 + "/x", "acme/" + "a" * 101, "acme/?", "https://github.com/acme/x", "**/*",
    ],
)  # fmt: skip
def test_what_is_no_pattern(wrong: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_patterns([wrong])


def test_patterns_are_needed_and_bounded() -> None:
    with pytest.raises(InvalidRequestError):
        parse_patterns([])
    assert len(parse_patterns([f"acme/r{number}" for number in range(MAX_PATTERNS)])) == MAX_PATTERNS
    with pytest.raises(InvalidRequestError):
        parse_patterns([f"acme/r{number}" for number in range(MAX_PATTERNS + 1)])


PARTS = st.text("aAbB-", min_size=1, max_size=3).filter(lambda text: text[0] != "-")
NAMES = st.text("aAbB-._", min_size=1, max_size=4).filter(
    lambda text: text not in {".", ".."} and not text.lower().endswith((".git", ".wiki"))
)
PATTERNS = st.one_of(
    st.just("*/*"),
    st.builds(lambda owner: f"{owner}/*", PARTS),
    st.builds(lambda owner, prefix: f"{owner}/{prefix}*", PARTS, NAMES),
    st.builds(lambda owner, name: f"{owner}/{name}", PARTS, NAMES),
)


def model_allows(pattern: str, owner: str, name: str) -> bool:
    """Compare the two halves apart, so that ``*`` cannot cross the slash."""
    left, right = pattern.lower().split("/")
    return fnmatchcase(owner.lower(), left) and fnmatchcase(name.lower(), right)


@given(st.lists(PATTERNS, min_size=1, max_size=4), PARTS, NAMES)
def test_policy_agrees_with_the_model(patterns: list[str], owner: str, name: str) -> None:
    expected = any(model_allows(pattern, owner, name) for pattern in patterns)
    assert reaches(parse_patterns(patterns), f"{owner}/{name}".lower()) == expected


@given(st.lists(PATTERNS, min_size=1, max_size=4), PARTS, st.lists(NAMES, min_size=1, max_size=3))
def test_every_repository_of_a_scope_must_be_covered(
    patterns: list[str], owner: str, names: list[str]
) -> None:
    expected = all(any(model_allows(pattern, owner, name) for pattern in patterns) for name in names)
    try:
        authorize(record(*patterns), scope(*(f"{owner}/{name}" for name in names)), allowed_owners=None)
        allowed = True
    except ForbiddenError:
        allowed = False
    assert allowed == expected


@given(st.lists(PATTERNS, min_size=1, max_size=4), PARTS)
def test_all_of_an_owner_needs_all_of_an_owner(patterns: list[str], owner: str) -> None:
    """No sum of prefixes is the whole: only ``owner/*`` and ``*/*`` are."""
    expected = bool({f"{owner.lower()}/*", "*/*"} & {pattern.lower() for pattern in patterns})
    assert reaches_all_of(parse_patterns(patterns), owner.lower()) == expected
    wanted = Scope.of_owner(HOST, owner, ("metadata",))
    if expected:
        authorize(record(*patterns), wanted, allowed_owners=None)
    else:
        with pytest.raises(ForbiddenError):
            authorize(record(*patterns), wanted, allowed_owners=None)


def test_permissions_have_a_ceiling() -> None:
    caller = record("acme/*", permissions=("contents",))
    for asked in (("contents",), ("contents", "metadata"), ("metadata",)):
        authorize(caller, scope("acme/x", permissions=asked), allowed_owners=None)
    with pytest.raises(ForbiddenError):
        authorize(caller, scope("acme/x", permissions=("contents", "issues")), allowed_owners=None)


def test_only_allowed_owners_are_served() -> None:
    caller = record("*/*")
    authorize(caller, scope("Acme/x"), allowed_owners=frozenset({"acme"}))
    for wanted in (scope("stranger/x"), Scope.of_owner(HOST, "stranger", ("metadata",))):
        with pytest.raises(ForbiddenError):
            authorize(caller, wanted, allowed_owners=frozenset({"acme"}))
    with pytest.raises(ForbiddenError):
        authorize(caller, scope("acme/x"), allowed_owners=frozenset())


def test_one_answer_for_every_bad_key() -> None:
    good = PresentedKey("AAAAAAAAAAAA", "00")
    texts = set()
    for presented, found in (
        (good, None),
        (PresentedKey("AAAAAAAAAAAA", "01"), record("a/b")),
        (good, record("a/b", expires_at=100)),
        (good, record("a/b", revoked_at=100)),
        (good, record("a/b", revoked_at=101)),  # by a clock that was ahead of the one that the store has now
        (good, record("a/b", revoked_at=50, expires_at=200)),
    ):
        with pytest.raises(InvalidApiKeyError) as caught:
            authenticate(presented, found, now=100)
        texts.add(caught.value.public)
    assert len(texts) == 1
    assert authenticate(good, record("a/b", expires_at=101), now=100).id == "AAAAAAAAAAAA"


def test_admins_only() -> None:
    require_admin(record(role=Role.ADMIN))
    with pytest.raises(ForbiddenError):
        require_admin(record("*/*"))
