"""Rule 1 on what GitHub returns, as a table; and GitHub's clock out of a reply."""

import base64
import hashlib

import pytest

from broker.errors import UntrustedReplyError
from broker.issuing.minted import check_minted
from broker.issuing.minting import gh_offset
from broker.model import LiveToken, MintedToken, RepositoryName, Scope, Secret

ONE = Scope.of_repositories("github.com", [RepositoryName.parse("Acme/Widgets")], ("contents", "metadata"))
WIDE = Scope.of_owner("github.com", "acme", ("contents", "metadata"))
SHA256 = base64.b64encode(hashlib.sha256(b"ghs_x").digest()).decode()
READ = {"contents": "read", "metadata": "read"}


def checked(
    scope: Scope = ONE,
    *,
    permissions: dict[str, str] | None = None,
    repositories: tuple[str, ...] | None = ("acme/widgets",),
    selection: str | None = "selected",
    accept: frozenset[str] = frozenset(),
) -> LiveToken:
    minted = MintedToken(
        Secret("ghs_x"), 3600.0, READ if permissions is None else permissions, repositories, selection, 0.0
    )
    return check_minted(minted, scope, installation_id=7, epoch=3, accept_implicit=accept)


def test_what_was_asked_for_is_taken() -> None:
    token = checked()
    assert (token.repositories, token.permissions) == (("acme/widgets",), ("contents", "metadata"))
    assert (token.installation_id, token.epoch, token.scope_id) == (7, 3, ONE.id)
    assert (token.token.reveal(), token.sha256, token.expires_at) == ("ghs_x", SHA256, 3600.0)


@pytest.mark.parametrize("permissions", [{"contents": "read"}, READ])
def test_metadata_is_never_a_reason(permissions: dict[str, str]) -> None:
    checked(permissions=permissions)
    unasked = Scope.of_repositories("github.com", [RepositoryName.parse("acme/widgets")], ("contents",))
    assert checked(unasked, permissions=permissions).permissions == tuple(permissions)


@pytest.mark.parametrize(
    "permissions",
    [
        {**READ, "contents": "write"},
        {**READ, "metadata": "write"},
        {**READ, "issues": "read"},
        {**READ, "issues": "write"},
        {**READ, "administration": "admin"},
        {**READ, "contents": "READ"},
        {**READ, "contents": ""},
        {"metadata": "read"},
        {},
    ],
)
def test_other_permissions_are_refused(permissions: dict[str, str]) -> None:
    for scope in (ONE, WIDE):
        with pytest.raises(UntrustedReplyError):
            checked(scope, permissions=permissions, repositories=None if scope is WIDE else ("acme/widgets",))


def test_an_implicit_read_permission_needs_its_name_in_the_settings() -> None:
    more = {**READ, "extra": "read"}
    with pytest.raises(UntrustedReplyError, match="BROKER_ACCEPT_IMPLICIT_PERMISSIONS"):
        checked(permissions=more, accept=frozenset({"other"}))
    assert checked(permissions=more, accept=frozenset({"extra"})).permissions == (
        "contents", "extra", "metadata",
    )  # fmt: skip
    with pytest.raises(UntrustedReplyError):  # naming it does not make a level above read acceptable
        checked(permissions={**READ, "extra": "write"}, accept=frozenset({"extra"}))


@pytest.mark.parametrize(
    ("repositories", "selection"),
    [
        (None, "selected"),
        (None, "all"),
        (("acme/widgets",), "all"),
        ((), "selected"),
        (("acme/gadgets",), "selected"),
        (("acme/widgets", "acme/gadgets"), "selected"),
        (("acme/widgets", "acme/widgets"), "selected"),
        (("stranger/widgets",), "selected"),
    ],
)
def test_other_repositories_are_refused(repositories: tuple[str, ...] | None, selection: str) -> None:
    with pytest.raises(UntrustedReplyError):
        checked(repositories=repositories, selection=selection)


def test_canonical_spelling_is_kept() -> None:
    assert checked(repositories=("ACME/Widgets",)).repositories == ("ACME/Widgets",)


def test_an_owner_wide_token_reaches_no_other_owner() -> None:
    assert checked(WIDE, repositories=None, selection="all").repositories is None
    assert checked(WIDE, repositories=("Acme/a", "acme/b"), selection="selected").repositories is None
    with pytest.raises(UntrustedReplyError):
        checked(WIDE, repositories=("acme/a", "stranger/b"), selection="all")


@pytest.mark.parametrize(
    ("date", "expires", "store", "offset"),
    [
        (1000.0, 4600.0, 1000.0, 0.0),
        (1600.0, 5200.0, 1000.0, 600.0),
        (400.0, 4000.0, 1000.0, -600.0),
        (None, 5200.0, 1000.0, 600.0),  # no Date: a token lives an hour
        (10.0, 4600.0, 1000.0, 0.0),  # a Date that a proxy made up
        (1000.0, 4900.0, 1000.0, 0.0),  # five minutes apart is still believed
        (1000.0, 4901.0, 1000.0, 301.0),
        (1000.0, 1600.0, 1000.0, 0.0),  # tokens that live ten minutes only
    ],
)
def test_githubs_clock(date: float | None, expires: float, store: float, offset: float) -> None:
    minted = MintedToken(Secret("x"), expires, READ, None, None, date)
    assert gh_offset(minted, store_now=store) == offset
