from __future__ import annotations

import json
import math
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import (
    BrokerError,
    GitHubError,
    GitHubRateLimitedError,
    GitHubRejectedAppError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InstallationGoneError,
    InstallationSuspendedError,
    InvalidRequestError,
    NotInstalledError,
    NotReadOnlyError,
    PermissionNotGrantedError,
    RenamedError,
    UntrustedReplyError,
)
from broker.github import wire
from broker.github.wire import JwtFault, Reply, Route
from broker.model import RepositoryName, Secret

NOW = 1_795_000_000
DATE = formatdate(NOW, usegmt=True)
BASES = ["https://api.github.com", "https://host/api/v3", "https://host/api/v3/", "https://api.acme.ghe.com"]


def reply(status: int = 200, body: Any = None, **headers: Any) -> Reply:
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"date": DATE, "x-github-request-id": "AB:12", **named}, raw)


def said(status: int, message: str, **headers: Any) -> Reply:
    return reply(status, {"message": message, "documentation_url": "https://docs.github.com/rest"}, **headers)


# requests


@pytest.mark.parametrize("base", BASES)
def test_addresses_are_joined_with_one_slash(base: str) -> None:
    root = base.rstrip("/")
    assert wire.get_app(base).url == f"{root}/app"
    assert wire.get_installation(base, 7).url == f"{root}/app/installations/7"
    name = RepositoryName.parse("Acme/web.site")
    assert wire.get_repository_installation(base, name).url == f"{root}/repos/Acme/web.site/installation"
    assert wire.get_owner_installation(base, "acme", user=False).url == f"{root}/orgs/acme/installation"
    assert wire.get_owner_installation(base, "acme_x", user=True).url == f"{root}/users/acme_x/installation"
    assert wire.get_installations(base, page=2).url == f"{root}/app/installations?per_page=100&page=2"
    assert wire.delete_token(base).url == f"{root}/installation/token"
    page = wire.get_installation_repositories(base, page=1)
    assert page.url == f"{root}/installation/repositories?per_page=100&page=1"
    refs = wire.get_git_refs("https://github.com/", "acme/app")
    assert refs.url == "https://github.com/acme/app.git/info/refs?service=git-upload-pack"


def test_segments_are_percent_encoded() -> None:
    assert wire.join("https://x/", "a/b", "..%2f", "é?#") == "https://x/a%2Fb/..%252f/%C3%A9%3F%23"


def test_every_api_call_has_githubs_headers() -> None:
    headers = wire.get_app("https://x").headers
    assert headers["Accept"] == "application/vnd.github+json"
    assert headers["X-GitHub-Api-Version"] == "2022-11-28"
    assert headers["User-Agent"]
    assert "Authorization" not in headers


@pytest.mark.parametrize("number", [0, -1, 2**63, True, False, 1.0, "1", None, math.nan])
def test_ids_that_github_cannot_have_given_are_refused(number: Any) -> None:
    with pytest.raises(InvalidRequestError):
        wire.parse_id(number)
    with pytest.raises(InvalidRequestError):
        wire.post_access_tokens("https://x", number, repositories=["a"], permissions=["contents"])


def test_ids_within_bounds() -> None:
    assert [wire.parse_id(n) for n in (1, 2**63 - 1)] == [1, 2**63 - 1]


@pytest.mark.parametrize("bad", ["..", ".", "a/b", "a%2fb", "a.git", "", "a b", "a\n", "é"])
def test_names_that_github_does_not_allow_never_reach_an_address(bad: str) -> None:
    for build in (
        lambda: wire.get_repository_installation("https://x", RepositoryName("acme", bad)),
        lambda: wire.get_git_refs("https://x", f"acme/{bad}"),
        lambda: wire.post_access_tokens("https://x", 1, repositories=[bad], permissions=["contents"]),
    ):
        with pytest.raises(InvalidRequestError):
            build()
    for owner in ("", "..", "a/b", "-a", "a b", "a\n"):
        with pytest.raises(InvalidRequestError):
            wire.get_owner_installation("https://x", owner, user=True)


def test_a_mint_names_its_repositories_and_permissions() -> None:
    request = wire.post_access_tokens(
        "https://x", 7, repositories=["b", "a"], permissions=["contents", "metadata"]
    )
    assert (request.method, request.url) == ("POST", "https://x/app/installations/7/access_tokens")
    assert json.loads(request.body) == {
        "repositories": ["b", "a"],
        "permissions": {"contents": "read", "metadata": "read"},
    }
    everything = wire.post_access_tokens("https://x", 7, repositories=None, permissions=["contents"])
    assert json.loads(everything.body) == {"permissions": {"contents": "read"}}


@pytest.mark.parametrize(
    ("repositories", "permissions"),
    [
        ([], ["contents"]),
        (None, []),
        (["a"], []),
        (["a"] * 501, ["contents"]),
        (["other-owner/a"], ["contents"]),
        (["a"], ["Contents"]),
        (["a"], [""]),
    ],
)
def test_an_empty_selection_is_never_sent(repositories: Any, permissions: Any) -> None:
    """To GitHub an empty list or map means everything."""
    with pytest.raises(InvalidRequestError):
        wire.post_access_tokens("https://x", 1, repositories=repositories, permissions=permissions)


# replies

MINTED = {
    "token": "ghs_" + "a" * 36,
    "expires_at": "2026-11-22T11:00:00Z",
    "permissions": {"contents": "read", "metadata": "read"},
    "repository_selection": "selected",
    "repositories": [{"full_name": "Acme/App", "more": 1}],
    "future": [],
}
INSTALLATION = {
    "id": 7,
    "account": {"id": 9, "login": "Acme"},
    "repository_selection": "all",
    "permissions": {"contents": "write", "enterprise_thing": "admin"},
    "suspended_at": None,
    "target_id": 9,
    "created_at": 1_500_000_000,
}
APP = {
    "id": 3,
    "slug": "broker",
    "owner": {"login": "acme"},
    "permissions": {"contents": "read"},
    "events": ["push"],
}
REPOSITORY = {"full_name": "Acme/App", "private": True, "archived": False, "default_branch": "main"}


def without(body: Any, name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def test_a_mint_is_parsed() -> None:
    minted = wire.parse_minted(reply(201, MINTED))
    assert minted.token == Secret("ghs_" + "a" * 36)
    assert minted.expires_at == 1_795_345_200
    assert minted.permissions == {"contents": "read", "metadata": "read"}
    assert minted.repositories == ("Acme/App",)
    assert (minted.selection, minted.github_now) == ("selected", NOW)
    bare = wire.parse_minted(
        reply(201, without(without(MINTED, "repositories"), "repository_selection"), date="?")
    )
    assert (bare.repositories, bare.selection, bare.github_now) == (None, None, None)
    assert wire.parse_minted(reply(201, MINTED | {"repositories": []})).repositories == ()


@pytest.mark.parametrize("token", ["x", "ghs_1_eyJ.a-b_c.d" + "z" * 600, "!~"])
def test_a_token_is_opaque(token: str) -> None:
    assert wire.parse_minted(reply(201, MINTED | {"token": token})).token.reveal() == token


@pytest.mark.parametrize("name", ["token", "expires_at", "permissions"])
def test_a_mint_without_what_matters_is_not_trusted(name: str) -> None:
    with pytest.raises(UntrustedReplyError):
        wire.parse_minted(reply(201, without(MINTED, name)))


@pytest.mark.parametrize(
    "change",
    [
        {"token": ""},
        {"token": 5},
        {"token": None},
        {"token": "a b"},
        {"token": "a\r\nb"},
        {"token": "é"},
        {"expires_at": True},
        {"expires_at": "soon"},
        {"expires_at": "2026-11-22T11:00:00"},
        {"expires_at": 1e300},
        {"expires_at": -1},
        {"expires_at": None},
        {"expires_at": [1]},
        {"permissions": []},
        {"permissions": {"contents": 1}},
        {"permissions": {"": "read"}},
        {"permissions": {"\ud800": "read"}},
        {"repositories": {}},
        {"repositories": ["a/b"]},
        {"repositories": [{"full_name": "a"}]},
        {"repositories": [{"full_name": 1}]},
        {"repository_selection": "most"},
        {"repository_selection": ["all"]},
    ],
)
def test_a_mint_of_wrong_types_is_not_trusted(change: Any) -> None:
    with pytest.raises(UntrustedReplyError) as caught:
        wire.parse_minted(reply(201, MINTED | change))
    assert "ghs_" not in str(caught.value)


def test_the_token_of_an_untrusted_reply_is_found_to_be_revoked() -> None:
    token = Secret(MINTED["token"])
    whole = reply(201, MINTED)
    assert wire.find_token(whole) == token
    assert wire.find_token(Reply(201, {}, whole.body[:100], cut=True)) == token
    assert wire.find_token(Reply(201, {}, whole.body[:100])) == token
    assert wire.find_token(Reply(201, {}, b'x "token" : "gh\\u0073_1" \xff', cut=True)) == Secret("ghs_1")
    for none in (b"", b"[]", b'{"token": 5}', b'{"token": "a b"}', b'"token": "\\x"', b'"token": "', b"\xff"):
        assert wire.find_token(Reply(201, {}, none)) is None


def test_an_installation_is_parsed() -> None:
    found = wire.parse_installation(reply(200, INSTALLATION), owner="ACME")
    assert (found.id, found.account_id, found.login, found.selection) == (7, 9, "Acme", "all")
    assert found.permissions == {"contents": "write", "enterprise_thing": "admin"}
    assert (found.suspended, found.checked_at) == (False, 0)


@pytest.mark.parametrize("at", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5+02:00", 1_700_000_000, 1.5])
def test_a_suspension_is_told_by_text_or_epoch(at: Any) -> None:
    assert wire.parse_installation(reply(200, INSTALLATION | {"suspended_at": at}), owner="acme").suspended


def test_the_installation_of_another_account_means_that_the_name_is_old() -> None:
    with pytest.raises(RenamedError):
        wire.parse_installation(reply(200, INSTALLATION), owner="acme-old")


def test_an_enterprise_has_no_login_that_an_owner_could_have() -> None:
    enterprise = INSTALLATION | {"account": {"id": 4, "slug": "acme"}, "target_type": "Enterprise"}
    nobody = INSTALLATION | {"account": None}
    found = wire.parse_installations(reply(200, [INSTALLATION, enterprise, nobody]))
    assert [(each.account_id, each.login) for each in found] == [
        (9, "Acme"),
        (4, "enterprises/acme"),
        (9, "accounts/9"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"id": 0},
        {"id": True},
        {"id": "7"},
        {"id": 2**63},
        {"account": {"id": 9}},
        {"account": {"id": 9, "login": "a b"}},
        {"account": None, "target_id": None},
        {"repository_selection": None},
        {"repository_selection": "none"},
        {"permissions": None},
        {"suspended_at": "yes"},
        {"suspended_at": False},
        {"account": {"login": "acme"}},
    ],
)
def test_an_installation_of_wrong_types_is_not_trusted(change: Any) -> None:
    with pytest.raises(UntrustedReplyError):
        wire.parse_installation(reply(200, INSTALLATION | change), owner="acme")
    with pytest.raises(UntrustedReplyError):
        wire.parse_installation_by_id(reply(200, INSTALLATION | change))
    with pytest.raises(UntrustedReplyError):
        wire.parse_installations(reply(200, [INSTALLATION | change]))


def test_an_app_is_parsed() -> None:
    app = wire.parse_app(reply(200, APP))
    assert (app.id, app.slug, app.owner, app.events, app.public) == (3, "broker", "acme", ("push",), None)
    assert wire.parse_app(reply(200, APP | {"owner": {"slug": "big"}, "public": True})).owner == "big"
    assert wire.parse_app(reply(200, APP | {"owner": None})).owner == ""
    for change in ({"id": None}, {"slug": 1}, {"permissions": []}, {"events": "push"}, {"events": [1]}):
        with pytest.raises(UntrustedReplyError):
            wire.parse_app(reply(200, APP | change))


def test_a_page_of_repositories_is_parsed() -> None:
    body = {"total_count": 2, "repositories": [REPOSITORY, REPOSITORY | {"full_name": "acme/.."}]}
    page = wire.parse_repository_page(reply(200, body), page=1)
    assert [(r.full_name, r.private, r.default_branch, r.archived) for r in page.repositories] == [
        ("Acme/App", True, "main", False)
    ]
    assert page.next_page is None


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"repositories": None},
        {"repositories": [1]},
        {"repositories": [REPOSITORY | {"private": 1}]},
        {"repositories": [REPOSITORY | {"archived": None}]},
        {"repositories": [REPOSITORY | {"default_branch": None}]},
        {"repositories": [REPOSITORY | {"full_name": None}]},
    ],
)
def test_a_page_of_wrong_types_is_not_trusted(body: Any) -> None:
    with pytest.raises(UntrustedReplyError):
        wire.parse_repository_page(reply(200, body), page=1)


@pytest.mark.parametrize(
    ("link", "count", "more"),
    [
        ('<https://evil.test/x?page=2>; rel="next", <https://evil.test/x?page=5>; rel="last"', 100, True),
        ("<https://x>; rel=next", 3, True),
        ('<https://x>; REL="last next"', 3, True),
        ('<https://x>; rel="prev", <https://x>; rel="first"', 100, False),
        ('<https://x?rel="next">; rel="nextish"', 100, False),
        (None, 100, True),
        (None, 99, False),
        (None, 0, False),
    ],
)
def test_only_the_presence_of_a_next_page_counts(link: str | None, count: int, more: bool) -> None:
    headers = {} if link is None else {"link": link}
    assert wire.has_next_page(reply(200, [], **headers), count) is more


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
shaped = st.builds(
    lambda base, changes: base | changes,
    st.sampled_from([MINTED, INSTALLATION, APP, {"repositories": [REPOSITORY]}]),
    st.dictionaries(st.sampled_from([*MINTED, *INSTALLATION, *APP]), json_values, max_size=3),
)
bodies = st.binary() | (json_values | shaped | st.lists(shaped, max_size=2)).map(
    lambda v: json.dumps(v).encode()
)


@given(bodies, st.booleans())
def test_no_body_breaks_a_parser(body: Any, cut: bool) -> None:
    got = Reply(200, {"date": DATE}, body, cut=cut)
    wire.find_token(got)
    for parse in (
        wire.parse_minted,
        wire.parse_app,
        wire.parse_installations,
        lambda each: wire.parse_installation(each, owner="acme"),
        lambda each: wire.parse_repository_page(each, page=1),
    ):
        try:
            parse(got)
        except (UntrustedReplyError, RenamedError):
            continue
        assert not cut


def test_deep_json_is_no_json() -> None:
    assert Reply(200, {}, b"[" * 100_000).json() is None
    assert Reply(200, {}, b"1" * 10_000).json() is None
    assert "ghs_" not in repr(reply(201, MINTED))


@pytest.mark.parametrize(
    "text", ["", "soon", "Sun, 99 Nov 2026 10:00:00 GMT", "9" * 400, "Sun, 22 Nov 99999 10:00:00 GMT", "\x00"]
)
def test_a_date_that_is_none(text: str) -> None:
    assert wire.parse_http_date(text) is None


def test_a_date() -> None:
    assert wire.parse_http_date(DATE) == NOW
    assert wire.parse_http_date(DATE.replace("GMT", "-0000")) == NOW


# refusals


def verdict(route: Route, got: Reply) -> GitHubError:
    error = wire.classify(route, got)
    assert error is not None
    return error


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_success_is_no_error(status: int) -> None:
    assert wire.classify(Route.MINT, reply(status)) is None


LIMITS = [
    ({"retry_after": "120"}, 120),
    ({"retry_after": " 7.5 "}, 7.5),
    ({"retry_after": formatdate(NOW + 90, usegmt=True)}, 90),
    ({"retry_after": formatdate(NOW - 90, usegmt=True)}, 1),
    ({"retry_after": "0"}, 1),
    ({"retry_after": "9" * 12}, 3600),
    ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW + 300)}, 300),
    ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW + 30_000)}, 3600),
    ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW - 30)}, 1),
    ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": "soon"}, 60),
    ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW + 300), "date": ""}, 60),
    ({"x_ratelimit_remaining": "0"}, 60),
    ({"retry_after": "whenever", "x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW + 5)}, 5),
    ({"retry_after": "5", "x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW + 50)}, 5),
]


@pytest.mark.parametrize("route", list(Route))
@pytest.mark.parametrize("status", [403, 422, 429])
@pytest.mark.parametrize(("headers", "wait"), LIMITS)
def test_a_rate_limit_is_told_by_its_headers_whatever_the_status(
    route: Route, status: int, headers: Any, wait: Any
) -> None:
    message = "There is at least one repository that does not exist"
    error = verdict(route, said(status, message, **headers))
    assert isinstance(error, GitHubRateLimitedError)
    assert error.retry_after_s == wait
    assert error.whole_app is route.by_app


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."),
        (403, "API rate limit exceeded for installation ID 5."),
        (403, "You have triggered an abuse detection mechanism."),
        (422, "Validation failed, or the endpoint has been spammed."),
        (429, "anything"),
    ],
)
def test_a_rate_limit_without_headers_waits_a_minute(status: int, message: str) -> None:
    error = verdict(Route.MINT, said(status, message, x_ratelimit_remaining="17"))
    assert isinstance(error, GitHubRateLimitedError)
    assert error.retry_after_s == 60
    assert error.whole_app is ("installation ID" not in message)


def test_429_without_a_body() -> None:
    assert isinstance(verdict(Route.APP, reply(429, b"<html>")), GitHubRateLimitedError)


FAULTS = [
    ("A JSON web token could not be decoded", JwtFault.KEY),
    ("Missing 'issuer' claim ('iss') in assertion", JwtFault.ISSUER),
    ("'Issuer' claim ('iss') must be an Integer", JwtFault.ISSUER),
    ("Integration must generate a public key", JwtFault.PENDING),
    (
        "'Expiration time' claim ('exp') must be a numeric value representing the future time at which",
        JwtFault.CLOCK,
    ),
    ("'Expiration time' claim ('exp') is too far in the future", JwtFault.CLOCK),
    (
        "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
        JwtFault.CLOCK,
    ),
    ("Bad credentials", JwtFault.KEY),
    ("Requires authentication", JwtFault.KEY),
]


@pytest.mark.parametrize(("message", "fault"), FAULTS)
@pytest.mark.parametrize("route", [route for route in Route if route.by_app])
def test_a_refused_jwt_names_its_cause(route: Route, message: str, fault: JwtFault) -> None:
    got = said(401, message)
    assert wire.jwt_fault(got) is fault
    error = verdict(route, got)
    assert isinstance(error, GitHubRejectedAppError)
    assert message in str(error)
    assert message not in error.public


def test_an_unknown_app_id_is_a_404() -> None:
    got = said(404, "Integration not found")
    assert wire.jwt_fault(got) is JwtFault.ISSUER
    for route in (Route.MINT, Route.APP, Route.REPOSITORY_INSTALLATION):
        assert isinstance(verdict(route, got), GitHubRejectedAppError)


VERDICTS = [
    (Route.MINT, said(403, "This installation has been suspended"), InstallationSuspendedError),
    (
        Route.REPOSITORY_INSTALLATION,
        said(403, "Sorry. Your account was SUSPENDED"),
        InstallationSuspendedError,
    ),
    (
        Route.REVOKE,
        said(403, "This installation owned by x suspended your access"),
        InstallationSuspendedError,
    ),
    (Route.APP, said(403, "This app was suspended"), GitHubRejectedAppError),
    (Route.MINT, said(403, "Forbidden"), GitHubRejectedAppError),
    (
        Route.MINT,
        said(403, "`acme` has an IP allow list enabled, and your IP address is not permitted"),
        GitHubRejectedAppError,
    ),
    (
        Route.INSTALLATION_REPOSITORIES,
        said(403, "Resource not accessible by integration"),
        PermissionNotGrantedError,
    ),
    (Route.INSTALLATION_REPOSITORIES, said(403, "no"), GitHubUnavailableError),
    (Route.MINT, reply(403, b"<html>Request forbidden by administrative rules."), GitHubUnavailableError),
    (Route.MINT, said(404, "Not Found"), InstallationGoneError),
    (Route.INSTALLATION, said(404, "Not Found"), InstallationGoneError),
    (Route.INSTALLATION_REPOSITORIES, said(404, "Not Found"), InstallationGoneError),
    (Route.OWNER_INSTALLATION, said(404, "Not Found"), NotInstalledError),
    (Route.REPOSITORY_INSTALLATION, said(404, "Not Found"), NotInstalledError),
    (Route.APP, said(404, "Not Found"), GitHubRejectedAppError),
    (Route.REVOKE, said(404, "Not Found"), GitHubUnavailableError),
    (Route.MINT, reply(404, b"<html>no such site"), GitHubUnavailableError),
    (Route.REPOSITORY_INSTALLATION, reply(404), GitHubUnavailableError),
    (Route.REPOSITORY_INSTALLATION, said(301, "Moved Permanently"), RenamedError),
    (Route.OWNER_INSTALLATION, said(307, "Temporary Redirect"), RenamedError),
    (Route.REPOSITORY_INSTALLATION, reply(301), RenamedError),
    (Route.REPOSITORY_INSTALLATION, reply(301, b"<html>moved to https"), GitHubUnavailableError),
    (Route.MINT, said(307, "Temporary Redirect"), GitHubUnavailableError),
    (
        Route.MINT,
        said(422, "The permissions requested are not granted to this installation."),
        PermissionNotGrantedError,
    ),
    (
        Route.MINT,
        said(
            422,
            "There is at least one repository that does not exist or is not accessible",
        ),
        NotInstalledError,
    ),
    (Route.MINT, said(422, "Validation Failed"), GitHubUnavailableError),
    (Route.MINT, reply(422, b"<html>"), GitHubUnavailableError),
    (Route.APP, said(422, "permissions repository"), GitHubUnavailableError),
    (Route.MINT, said(400, "Problems parsing JSON"), GitHubUnavailableError),
    (Route.APP, said(410, "Gone"), GitHubUnavailableError),
    (Route.APP, reply(304), GitHubUnavailableError),
    (Route.MINT, reply(500, b"<html>Unicorn!"), GitHubUnavailableError),
    (Route.MINT, said(502, "Server Error"), GitHubUnavailableError),
    (Route.MINT, reply(504, b"<html>"), GitHubTimeoutError),
    (Route.MINT, said(408, "timeout"), GitHubTimeoutError),
    (Route.INSTALLATION_REPOSITORIES, said(401, "Bad credentials"), GitHubUnavailableError),
]


@pytest.mark.parametrize(("route", "got", "kind"), VERDICTS)
def test_every_refusal_has_its_error(route: Route, got: Reply, kind: Any) -> None:
    error = verdict(route, got)
    assert type(error) is kind
    assert str(got.status) in str(error)
    assert "AB:12" in str(error)
    assert "http" not in error.public


def test_texts_tell_what_to_do() -> None:
    renamed = verdict(Route.REPOSITORY_INSTALLATION, said(301, "Moved Permanently"))
    assert "renamed or transferred on GitHub" in renamed.public
    assert isinstance(renamed, NotInstalledError)
    assert renamed.code == "not_installed"
    assert "add the repository" in verdict(Route.REPOSITORY_INSTALLATION, said(404, "Not Found")).public
    assert "IP allow list" in verdict(Route.MINT, said(403, "... IP allow list enabled ...")).public


def test_a_server_error_hands_on_how_long_to_wait() -> None:
    assert verdict(Route.MINT, reply(503, retry_after="30")).retry_after_s == 30
    assert verdict(Route.MINT, reply(503)).retry_after_s is None


@pytest.mark.parametrize(
    "message",
    [
        "\x1b[31mred\r\nnext: line\x00\u202e\u2028",
        "x" * 5000,
        "é" * 5000,
        "token ghs_" + "a" * 36,
        "jwt eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiIxIn0.c2ln-_nature",
        "ghp_" + "1" * 40,
        " " * 195 + "ghs_" + "a" * 36,
        "\ud800",
    ],
)
def test_githubs_words_are_made_fit_for_a_log(message: str) -> None:
    shown = str(verdict(Route.MINT, said(500, message, x_github_request_id="a\nb\x1b")))
    assert shown.isprintable()
    assert len(shown) < 400
    assert "aaaa" not in shown
    assert "nature" not in shown
    assert "1111" not in shown
    shown.encode()


header_names = st.sampled_from(
    ["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset", "date", "x-github-request-id", "location"]
)
header_values = (
    st.text(max_size=40) | st.sampled_from(["0", "-1", "1e999", "nan", "²", DATE]) | st.integers().map(str)
)
messages = st.text() | st.sampled_from(
    [message for message, _ in FAULTS] + [got.message for _, got, _ in VERDICTS if got.message]
)


@given(
    route=st.sampled_from(list(Route)),
    status=st.integers(100, 599),
    headers=st.dictionaries(header_names, header_values),
    body=bodies | messages.map(lambda text: json.dumps({"message": text}).encode()),
    cut=st.booleans(),
)
def test_whatever_comes_is_classified(route: Route, status: int, headers: Any, body: Any, cut: bool) -> None:
    error = wire.classify(route, Reply(status, headers, body, cut=cut))
    if 200 <= status < 300:
        assert error is None
        return
    assert isinstance(error, GitHubError)
    assert error.public in {
        type(error).public,
        wire.INSTALL_HINT,
        wire.SUSPENDED_HINT,
        wire.PERMISSION_HINT,
        wire.ALLOW_LIST_HINT,
    }
    assert error.retry_after_s is None or 1 <= error.retry_after_s <= 3600
    assert str(error).isprintable()
    assert len(str(error)) < 600


def test_levels_are_read_only_by_construction() -> None:
    assert issubclass(NotReadOnlyError, BrokerError)
    body = wire.post_access_tokens(
        "https://x", 1, repositories=["a"], permissions=["issues", "contents"]
    ).body
    assert set(json.loads(body)["permissions"].values()) == {"read"}
