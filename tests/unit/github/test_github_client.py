"""The client against replies made by hand: what no strict GitHub would send, and what time does."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import ssl
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from broker.errors import (
    GitHubError,
    GitHubRateLimitedError,
    GitHubRejectedAppError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InvalidRequestError,
    NotInstalledError,
    RenamedError,
    SettingsError,
    UntrustedReplyError,
)
from broker.github import client as client_module
from broker.github.app_jwt import Signer
from broker.model import MintedToken, RepositoryName, Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from broker.github.client import GitHubClient
    from broker.github.private_key import AppPrivateKey
    from broker.ports import GitHub

    Handler = Callable[[httpx.Request], httpx.Response]
    Keys = tuple[AppPrivateKey, ...]
    MakeClient = Callable[..., GitHubClient]


TOKEN = "ghs_7_eyJhbGciOi.eyJpc3Mi-_.c2lnbmF0dXJl"
MINTED = {
    "token": TOKEN,
    "expires_at": "2026-11-22T11:00:00Z",
    "permissions": {"contents": "read", "metadata": "read"},
    "repositories": [{"full_name": "acme/app"}],
    "repository_selection": "selected",
}
APP = {
    "id": 3,
    "slug": "broker",
    "owner": {"login": "acme"},
    "permissions": {"contents": "read"},
    "events": [],
}
INSTALLATION = {
    "id": 7,
    "account": {"id": 9, "login": "acme"},
    "repository_selection": "all",
    "permissions": {"contents": "read"},
    "suspended_at": None,
}
DECODE = "A JSON web token could not be decoded"
EXPIRED = "'Expiration time' claim ('exp') must be a numeric value representing the future time"


class Chunks(httpx.AsyncByteStream):
    """A body that comes in pieces; counts what was taken."""

    def __init__(self, *chunks: bytes, fault: Exception | None = None, wait_s: float = 0.0) -> None:
        self.chunks, self.fault, self.wait_s, self.taken, self.closed = chunks, fault, wait_s, 0, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            await asyncio.sleep(self.wait_s)
            self.taken += 1
            yield chunk
        if self.fault:
            raise self.fault

    async def aclose(self) -> None:
        self.closed = True


class Script(httpx.AsyncBaseTransport):
    """Answers in order, the last one for ever; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.seen = list(answers), []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer


def reply(status: int = 200, body: Any = None, headers: Any = None, *, stream: Any = None) -> Handler:
    def fresh(_request: object) -> httpx.Response:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return httpx.Response(status, headers=headers or {}, stream=stream or Chunks(raw))

    return fresh


def refusal(status: int, message: str, **headers: Any) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return reply(status, {"message": message}, named)


def page_of(items: Any, *, link: str | None = None) -> Handler:
    return reply(200, items, {"link": link} if link else {})


def mint(client: GitHubClient, **changes: Any) -> Awaitable[MintedToken]:
    return client.mint(
        **({"installation_id": 7, "repositories": ["app"], "permissions": ["contents"]} | changes)
    )


def clean(error: BaseException) -> None:
    while error is not None:
        for text in (str(error), repr(error), getattr(error, "public", "")):
            assert "ghs_" not in text
            assert "eyJ" not in text
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


async def test_it_is_the_port(make_client: MakeClient) -> None:
    port: GitHub = make_client(Script(reply(200, APP)))
    assert (await port.app()).slug == "broker"


async def test_an_in_memory_transport_works_too(make_client: MakeClient) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(201, json=MINTED, headers={"date": formatdate(1_795_000_000, usegmt=True)})

    minted = await mint(make_client(httpx.MockTransport(handle)))
    assert minted.github_now == 1_795_000_000


async def test_the_credential_is_in_a_header_and_nowhere_else(
    make_client: MakeClient, signer: Signer
) -> None:
    script = Script(reply(201, MINTED))
    await mint(make_client(script))
    request = script.seen[0]
    assert request.headers["authorization"] == f"Bearer {signer.app_jwt()}"
    assert str(request.url) == "https://github.test/api/v3/app/installations/7/access_tokens"
    assert request.headers["x-github-api-version"] == "2022-11-28"
    assert json.loads(request.content) == {"repositories": ["app"], "permissions": {"contents": "read"}}


@pytest.mark.parametrize(
    "changes",
    [{"repositories": []}, {"permissions": []}, {"repositories": ["a/b"]}, {"installation_id": True}],
)
async def test_a_selection_that_means_everything_is_never_sent(make_client: MakeClient, changes: Any) -> None:
    script = Script(reply(201, MINTED))
    with pytest.raises(InvalidRequestError):
        await mint(make_client(script), **changes)
    assert script.seen == []


# transport


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone"),
        httpx.PoolTimeout("full"),
        reply(500),
        reply(502, b"<html>Unicorn!"),
        reply(503, b""),
        reply(504),
        reply(200, stream=Chunks(b'{"id":', fault=httpx.ReadError("cut"))),
    ],
)
async def test_what_fails_in_transport_is_tried_again(
    make_client: MakeClient, sleeps: Any, failure: Any
) -> None:
    script = Script(failure, failure, reply(201, MINTED))
    minted = await mint(make_client(script))
    assert minted.token == Secret(TOKEN)
    assert sleeps == [0.5, 1.0]


async def test_jitter_is_full(make_client: MakeClient, sleeps: Any) -> None:
    client = make_client(Script(reply(500), reply(200, APP)), jitter=lambda: 0.0)
    await client.app()
    assert sleeps == [0.0]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("refused"), GitHubUnavailableError),
        (httpx.ReadTimeout("slow"), GitHubTimeoutError),
        (reply(500), GitHubUnavailableError),
        (reply(504), GitHubTimeoutError),
        (httpx.TooManyRedirects("x"), GitHubUnavailableError),
        (ssl.SSLError("bad"), GitHubUnavailableError),
        (httpx.LocalProtocolError("Illegal header b'Bearer eyJabc'"), GitHubUnavailableError),
    ],
)
async def test_retries_end(make_client: MakeClient, sleeps: Any, failure: Any, kind: Any) -> None:
    script = Script(failure)
    with pytest.raises(GitHubError) as caught:
        await make_client(script, retries=2).app()
    assert type(caught.value) is kind
    assert len(script.seen) == 3
    clean(caught.value)


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 429])
async def test_a_verdict_is_not_tried_again(make_client: MakeClient, status: int) -> None:
    script = Script(refusal(status, "no"))
    with pytest.raises(GitHubError):
        await mint(make_client(script))
    assert len(script.seen) == 1


async def test_retry_after_of_a_503_is_heeded(make_client: MakeClient, sleeps: Any) -> None:
    await make_client(Script(reply(503, headers={"retry-after": "7"}), reply(200, APP))).app()
    assert sleeps == [7.0]


async def test_a_wait_beyond_the_budget_is_handed_on(make_client: MakeClient, sleeps: Any) -> None:
    script = Script(reply(503, headers={"retry-after": "40"}))
    with pytest.raises(GitHubUnavailableError) as caught:
        await make_client(script).app()
    assert caught.value.retry_after_s == 40
    assert (len(script.seen), sleeps) == (1, [])


async def test_a_drip_does_not_outlast_the_attempt(make_client: MakeClient) -> None:
    drip = reply(200, stream=Chunks(*[b" "] * 1000, wait_s=0.01))
    started = asyncio.get_running_loop().time()
    with pytest.raises(GitHubTimeoutError):
        await make_client(Script(drip), attempt_timeout_s=0.05, retries=1).app()
    assert asyncio.get_running_loop().time() - started < 1


async def test_the_budget_bounds_all_attempts(make_client: MakeClient) -> None:
    drip = reply(200, stream=Chunks(*[b" "] * 1000, wait_s=0.01))
    script = Script(drip)
    with pytest.raises(GitHubTimeoutError):
        await make_client(script, attempt_timeout_s=10, budget_s=0.05, jitter=lambda: 0.0).app()
    assert len(script.seen) == 1


async def test_a_caller_who_leaves_is_not_held(make_client: MakeClient) -> None:
    client = make_client(Script(reply(200, stream=Chunks(b"x", wait_s=30))))
    task = asyncio.create_task(client.app())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# bodies


async def test_a_reply_without_end_is_cut(make_client: MakeClient) -> None:
    stream = Chunks(*[b"x" * 65536] * 1000)
    with pytest.raises(UntrustedReplyError):
        await make_client(Script(reply(200, stream=stream))).app()
    assert stream.taken == 17
    assert stream.closed


async def test_a_small_reply_that_unpacks_to_a_huge_one_is_cut(make_client: MakeClient) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    with pytest.raises(UntrustedReplyError):
        await make_client(Script(reply(200, bomb, {"content-encoding": "gzip"}))).app()


async def test_packed_replies_are_read(make_client: MakeClient) -> None:
    packed = gzip.compress(json.dumps(APP).encode())
    stream = Chunks(packed[:9], packed[9:40], packed[40:])
    assert (
        await make_client(Script(reply(200, headers={"content-encoding": "gzip"}, stream=stream))).app()
    ).id == 3


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"no gzip", {"content-encoding": "gzip"}),
        (b"x", {"content-encoding": "br"}),
        (b"<html>", {}),
        (b"", {}),
        (b'{"id": 3', {}),
        (b"\xff", {}),
        (b"[]", {}),
        (b"null", {}),
    ],
)
async def test_a_success_that_is_none_is_not_trusted(
    make_client: MakeClient, body: Any, headers: Any
) -> None:
    script = Script(reply(200, body, headers))
    with pytest.raises(UntrustedReplyError):
        await make_client(script).app()
    assert len(script.seen) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"expires_at": "soon"},
        {"permissions": None},
        {"repositories": [5]},
        {"repositories": [{"full_name": "acme/app", "pad": "x" * 9_000_000}]},
    ],
)
async def test_a_token_that_cannot_be_trusted_is_revoked_first(make_client: MakeClient, change: Any) -> None:
    script = Script(reply(201, MINTED | change), reply(204))
    with pytest.raises(UntrustedReplyError) as caught:
        await mint(make_client(script))
    assert [request.method for request in script.seen] == ["POST", "DELETE"]
    assert script.seen[1].headers["authorization"] == f"Bearer {TOKEN}"
    assert str(script.seen[1].url) == "https://github.test/api/v3/installation/token"
    clean(caught.value)


async def test_a_revocation_that_fails_does_not_hide_the_cause(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(reply(201, MINTED | {"expires_at": 0}), reply(403, {"message": f"no {TOKEN}"}))
    with pytest.raises(UntrustedReplyError):
        await mint(make_client(script))
    assert "could not be revoked" in caplog.text


async def test_without_a_token_there_is_nothing_to_revoke(make_client: MakeClient) -> None:
    script = Script(reply(201, {"token": "a\nb"}))
    with pytest.raises(UntrustedReplyError):
        await mint(make_client(script))
    assert len(script.seen) == 1


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_a_gateway_that_quotes_the_request_leaks_nothing(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """The credential is struck out of error bodies, whatever its alphabet."""
    odd = Secret("t~o!k$e%n-of-an-alphabet-nobody-knows")

    def echo(request: httpx.Request) -> httpx.Response:
        return reply(status, {"message": f"you sent {request.headers['authorization']}"})(request)

    client = make_client(Script(echo), retries=0)
    for call in (client.revoke(odd), client.installation_repositories(odd, page=1), mint(client)):
        with pytest.raises(GitHubError) as caught:
            await call
        clean(caught.value)
        assert "alphabet" not in str(caught.value)
    assert "alphabet" not in caplog.text


# redirects and addresses


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(make_client: MakeClient, status: int) -> None:
    script = Script(reply(status, {"message": "Moved"}, {"location": "https://evil.test/"}))
    client = make_client(script)
    for call in (
        client.app(),
        client.repository_installation(RepositoryName("acme", "app")),
        client.owner_installation("acme"),
        mint(client),
        client.revoke(Secret(TOKEN)),
        client.installation_repositories(Secret(TOKEN), page=1),
        client.probe_git(Secret(TOKEN), "acme/app"),
    ):
        with pytest.raises(GitHubError):
            await call
    assert {request.url.host for request in script.seen} == {"github.test"}


async def test_a_renamed_name_is_told_as_such(make_client: MakeClient) -> None:
    client = make_client(Script(reply(301, {"message": "Moved Permanently", "url": "https://evil.test"})))
    with pytest.raises(NotInstalledError, match="Moved") as caught:
        await client.repository_installation(RepositoryName("acme", "old"))
    assert "renamed or transferred on GitHub" in caught.value.public
    script = Script(reply(301, {"message": "Moved Permanently"}))
    with pytest.raises(RenamedError):
        await make_client(script).owner_installation("acme")
    assert len(script.seen) == 1


async def test_no_cookie_is_kept(make_client: MakeClient) -> None:
    script = Script(reply(200, APP, {"set-cookie": "a=b; path=/"}))
    client = make_client(script)
    await client.app()
    await client.app()
    assert "cookie" not in script.seen[1].headers


# looking up


async def test_an_owner_is_an_organization_or_a_user(make_client: MakeClient) -> None:
    script = Script(refusal(404, "Not Found"), reply(200, INSTALLATION))
    found = await make_client(script).owner_installation("Acme")
    assert found.login == "acme"
    assert [request.url.path for request in script.seen] == [
        "/api/v3/orgs/Acme/installation",
        "/api/v3/users/Acme/installation",
    ]


async def test_an_owner_who_is_neither(make_client: MakeClient) -> None:
    with pytest.raises(NotInstalledError):
        await make_client(Script(refusal(404, "Not Found"))).owner_installation("acme")


async def test_the_installation_of_another_owner_is_refused(make_client: MakeClient) -> None:
    client = make_client(Script(reply(200, INSTALLATION)))
    with pytest.raises(RenamedError):
        await client.owner_installation("old-acme")
    with pytest.raises(RenamedError):
        await client.repository_installation(RepositoryName("old-acme", "app"))


# pages


def installation(number: Any) -> dict[str, Any]:
    return INSTALLATION | {"id": number, "account": {"id": number, "login": f"o{number}"}}


async def test_pages_are_asked_for_and_each_installation_counts_once(make_client: MakeClient) -> None:
    link = '<https://evil.test/steal?page=2>; rel="next"'
    script = Script(
        page_of([installation(1), installation(2)], link=link),
        page_of([installation(2), installation(3)], link='<https://evil.test/>; rel="prev"'),
    )
    found = await make_client(script).installations()
    assert [each.id for each in found] == [1, 2, 3]
    assert [str(request.url) for request in script.seen] == [
        f"https://github.test/api/v3/app/installations?per_page=100&page={page}" for page in (1, 2)
    ]


async def test_a_full_page_without_link_is_followed(make_client: MakeClient) -> None:
    script = Script(page_of([installation(n) for n in range(1, 101)]), page_of([]))
    assert len(await make_client(script).installations()) == 100
    assert len(script.seen) == 2


async def test_pages_that_never_end_do_end(make_client: MakeClient) -> None:
    script = Script(page_of([installation(1)], link='<x>; rel="next"'))
    with pytest.raises(UntrustedReplyError, match="does not end"):
        await make_client(script).installations()
    assert len(script.seen) == 2
    numbers = iter(range(1, 10_000))

    def another(request: httpx.Request) -> httpx.Response:
        return page_of([installation(next(numbers))], link='<x>; rel="next"')(request)

    script = Script(another)
    with pytest.raises(UntrustedReplyError, match="does not end"):
        await make_client(script).installations()
    assert len(script.seen) == client_module.MAX_PAGES


async def test_a_page_of_repositories_names_the_next(make_client: MakeClient) -> None:
    repository = {"full_name": "acme/app", "private": True, "archived": False, "default_branch": "main"}
    script = Script(reply(200, {"repositories": [repository]}, {"link": '<x>; rel="next"'}))
    page = await make_client(script).installation_repositories(Secret(TOKEN), page=4)
    assert page.next_page == 5
    assert script.seen[0].url.query == b"per_page=100&page=4"


# repairs of the app JWT


async def test_a_key_that_works_is_found_and_kept(
    make_client: MakeClient, keys: Keys, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    good = signer.signed(2).text

    def judge(request: httpx.Request) -> httpx.Response:
        accepted = request.headers["authorization"] == f"Bearer {good}"
        return (reply(200, APP) if accepted else refusal(401, DECODE))(request)

    script = Script(judge)
    client = make_client(script, signer=signer)
    await client.app()
    await client.app()
    assert len(script.seen) == 4
    assert signer.active == 2
    assert keys[2].fingerprint in caplog.text


async def test_no_key_works(make_client: MakeClient, keys: Keys, clock: Any) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    script = Script(refusal(401, DECODE, x_github_request_id="AB:1"))
    with pytest.raises(GitHubRejectedAppError, match="no configured private key") as caught:
        await make_client(script, signer=signer).app()
    assert "AB:1" in str(caught.value)
    assert len(script.seen) == 3
    assert signer.active == 0


@pytest.mark.parametrize("no", [refusal(401, DECODE), refusal(404, "Integration not found")])
async def test_an_app_that_was_refused_does_not_keep_asking(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, no: Any
) -> None:
    """GitHub locks out whoever keeps failing: for some seconds the answer is repeated, not asked for."""
    script = Script(no)
    client = make_client(script)
    for _ in range(5):
        with pytest.raises(GitHubRejectedAppError, match="GitHub, app: 40"):
            await client.app()
    assert len(script.seen) == 1
    monkeypatch.setattr(client_module, "REJECTED_FOR_S", 0.0)
    script.answers = [reply(200, APP)]
    assert await client.app()


async def test_a_refusal_of_the_app_is_forgotten_with_its_keys(
    make_client: MakeClient, keys: Keys, clock: Any
) -> None:
    script = Script(refusal(401, DECODE), reply(200, APP))
    signer = Signer(issuer="1", keys=keys[:1], clock=clock)
    client = make_client(script, signer=signer)
    with pytest.raises(GitHubRejectedAppError):
        await client.app()
    client._signer.replace(keys[1:2])
    assert await client.app()


@pytest.mark.parametrize(
    "no", [refusal(403, "Although you appear to have the correct … IP allow list"), reply(500)]
)
async def test_other_refusals_stop_nobody(make_client: MakeClient, no: Any) -> None:
    script = Script(no)
    client = make_client(script, retries=0)
    for _ in range(3):
        with pytest.raises(GitHubError):
            await client.app()
    assert len(script.seen) == 3


async def test_retries_come_out_of_a_purse(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long outage is met with little more than the calls themselves; success fills it again."""
    monkeypatch.setattr(client_module, "RETRY_REGAINED_EACH_S", 1e9)
    script = Script(reply(502))
    client = make_client(script)
    for _ in range(50):
        with pytest.raises(GitHubUnavailableError):
            await client.app()
    assert len(script.seen) == 50 + client_module.SPARE_RETRIES
    script.answers = [reply(200, APP)]
    for _ in range(6):
        await client.app()
    script.answers, script.seen = [reply(502)], []
    with pytest.raises(GitHubUnavailableError):
        await client.app()
    assert len(script.seen) == 4
    monkeypatch.setattr(client_module, "RETRY_REGAINED_EACH_S", 1e-3)
    await asyncio.sleep(0.05)
    script.answers, script.seen = [reply(502), reply(502), reply(502), reply(200, APP)], []
    assert await client.app()


async def test_many_calls_at_once_agree_on_the_key(make_client: MakeClient, keys: Keys, clock: Any) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    good = signer.signed(1).text

    def judge(request: httpx.Request) -> httpx.Response:
        accepted = request.headers["authorization"] == f"Bearer {good}"
        return (reply(200, APP) if accepted else refusal(401, DECODE))(request)

    client = make_client(Script(judge), signer=signer)
    await asyncio.gather(*(client.app() for _ in range(20)))
    assert signer.active == 1


async def test_a_verdict_proves_the_key(make_client: MakeClient, keys: Keys, clock: Any) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    script = Script(refusal(401, DECODE), refusal(404, "Not Found"))
    with pytest.raises(NotInstalledError):
        await make_client(script, signer=signer).repository_installation(RepositoryName("acme", "app"))
    assert signer.active == 1


@pytest.mark.parametrize(
    "after", [refusal(404, "Integration not found"), refusal(403, "rate limit"), reply(500)]
)
async def test_what_proves_no_key_keeps_none(
    make_client: MakeClient, keys: Keys, clock: Any, after: Any
) -> None:
    signer = Signer(issuer="1", keys=keys, clock=clock)
    with pytest.raises(GitHubError):
        await make_client(Script(refusal(401, DECODE), after), signer=signer).app()
    assert signer.active == 0


@pytest.mark.parametrize("off", [-600.0, 600.0, 86_400.0])
async def test_a_clock_that_is_off_is_repaired_once(
    make_client: MakeClient, signer: Signer, clock: Any, caplog: pytest.LogCaptureFixture, off: float
) -> None:
    date = formatdate(clock.time + off, usegmt=True)
    script = Script(refusal(401, EXPIRED, date=date), reply(200, APP))
    client = make_client(script)
    await client.app()
    assert signer.clock_skew_s == off
    assert client.observed_skew_s == off
    assert f"{off:+.0f} s" in caplog.text
    script = Script(refusal(401, EXPIRED, date=date))
    with pytest.raises(GitHubRejectedAppError, match="clocks differ"):
        await make_client(script).app()
    assert len(script.seen) == 2


async def test_without_a_date_the_clock_cannot_be_repaired(make_client: MakeClient) -> None:
    script = Script(refusal(401, EXPIRED))
    with pytest.raises(GitHubRejectedAppError):
        await make_client(script).app()
    assert len(script.seen) == 1


async def test_clock_then_key(make_client: MakeClient, keys: Keys, clock: Any) -> None:
    signer = Signer(issuer="1", keys=keys[:2], clock=clock)
    date = formatdate(clock.time + 700, usegmt=True)
    script = Script(refusal(401, DECODE), refusal(401, EXPIRED, date=date), reply(200, APP))
    await make_client(script, signer=signer).app()
    assert (signer.active, signer.clock_skew_s) == (1, 700)


async def test_a_key_that_github_does_not_know_yet_is_waited_for(
    make_client: MakeClient, sleeps: Any
) -> None:
    pending = refusal(401, "Integration must generate a public key")
    await make_client(Script(pending, pending, reply(200, APP))).app()
    assert sleeps == [2.0, 2.0]
    sleeps.clear()
    with pytest.raises(GitHubRejectedAppError, match="knows no public key"):
        await make_client(Script(pending)).app()
    assert sum(sleeps) == 10


@pytest.mark.parametrize(
    "got", [refusal(401, "'Issuer' claim ('iss') must be an Integer"), refusal(404, "Integration not found")]
)
async def test_a_wrong_issuer_is_not_repaired(
    make_client: MakeClient, keys: Keys, clock: Any, got: Any
) -> None:
    script = Script(got)
    with pytest.raises(GitHubRejectedAppError, match="client id or app id"):
        await make_client(script, signer=Signer(issuer="1", keys=keys, clock=clock)).app()
    assert len(script.seen) == 1


# tokens


async def test_a_dead_token_counts_as_revoked(make_client: MakeClient, sleeps: Any) -> None:
    script = Script(refusal(401, "Bad credentials"))
    client = make_client(script)
    await client.revoke(Secret(TOKEN))
    assert len(script.seen) == 1
    assert (client.last_error_code, sleeps) == (None, [])


async def test_a_token_just_minted_is_not_taken_for_dead(make_client: MakeClient, sleeps: Any) -> None:
    """GitHub may not know it everywhere yet, and a 401 would leave it alive."""
    dead = refusal(401, "Bad credentials")
    script = Script(reply(201, MINTED), dead, dead, reply(204))
    client = make_client(script)
    minted = await mint(client)
    await client.revoke(minted.token)
    assert [request.method for request in script.seen[1:]] == ["DELETE"] * 3
    assert sleeps == [1.0, 2.0]


async def test_only_young_tokens_are_remembered(make_client: MakeClient) -> None:
    numbers = iter(range(1000))

    def another(request: httpx.Request) -> httpx.Response:
        return reply(201, MINTED | {"token": f"ghs_{next(numbers)}"})(request)

    client = make_client(Script(another))
    first = (await mint(client)).token
    client._minted_at = {digest: at - 11 for digest, at in client._minted_at.items()}
    assert not client._is_young(first)
    await mint(client)
    assert len(client._minted_at) == 1


@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_a_revocation_that_failed_says_so(make_client: MakeClient, status: int) -> None:
    with pytest.raises(GitHubError):
        await make_client(Script(refusal(status, "no"))).revoke(Secret(TOKEN))


async def test_a_young_token_is_waited_for(make_client: MakeClient, sleeps: Any) -> None:
    lag = refusal(401, "Bad credentials")
    client = make_client(Script(lag, lag, reply(200, {"repositories": []})))
    assert (await client.installation_repositories(Secret(TOKEN), page=1)).repositories == ()
    assert sleeps == [1.0, 2.0]
    with pytest.raises(GitHubUnavailableError):
        await make_client(Script(lag)).installation_repositories(Secret(TOKEN), page=1)


async def test_a_token_that_no_header_can_carry_is_not_sent(make_client: MakeClient) -> None:
    script = Script(reply(204))
    for call in (
        make_client(script).revoke(Secret("a\nb")),
        make_client(script).probe_git(Secret(""), "acme/app"),
    ):
        with pytest.raises(UntrustedReplyError):
            await call
    assert script.seen == []


@pytest.mark.parametrize(("status", "accepted"), [(200, True), (401, False), (403, False), (404, False)])
async def test_git_is_asked_with_basic(make_client: MakeClient, status: int, accepted: Any) -> None:
    script = Script(reply(status, b"x" * 10_000_000))
    assert await make_client(script).probe_git(Secret(TOKEN), "acme/app") is accepted
    request = script.seen[0]
    assert str(request.url) == "https://github.test/acme/app.git/info/refs?service=git-upload-pack"
    assert request.headers["authorization"] == httpx.BasicAuth("x-access-token", TOKEN)._auth_header


@pytest.mark.parametrize(
    "failure", [reply(500), reply(429), reply(302), httpx.ConnectError("no"), httpx.ReadTimeout("no")]
)
async def test_git_that_gives_no_answer(make_client: MakeClient, failure: Any) -> None:
    script = Script(failure)
    with pytest.raises(GitHubUnavailableError):
        await make_client(script).probe_git(Secret(TOKEN), "acme/app")
    assert len(script.seen) == 1


# what others see


async def test_each_attempt_is_told(make_client: MakeClient, clock: Any) -> None:
    told = []
    limits = {"x-ratelimit-remaining": "41", "set-cookie": "secret", "x-github-request-id": "AB:1"}
    script = Script(reply(502), reply(200, APP, limits), refusal(404, "Not Found"), httpx.ConnectError("no"))
    client = make_client(script, on_call=lambda *call: told.append(call), retries=1)
    await client.app()
    assert (client.last_ok_at, client.last_error_code) == (clock.time, None)
    clock.time += 5
    with pytest.raises(NotInstalledError):
        await client.repository_installation(RepositoryName("acme", "app"))
    assert (client.last_ok_at, client.last_error_code) == (clock.time, None)
    with pytest.raises(GitHubUnavailableError):
        await client.app()
    assert client.last_error_code == "github_unavailable"
    assert [(route, outcome) for route, outcome, _, _ in told] == [
        ("app", "github_unavailable"),
        ("app", "ok"),
        ("repository_installation", "not_installed"),
        ("app", "github_unavailable"),
        ("app", "github_unavailable"),
    ]
    assert told[1][3] == {"x-ratelimit-remaining": "41", "x-github-request-id": "AB:1"}
    assert all(seconds >= 0 for _, _, seconds, _ in told)


async def test_a_limit_is_handed_on(make_client: MakeClient) -> None:
    client = make_client(Script(refusal(403, "secondary rate limit", retry_after="33")))
    with pytest.raises(GitHubRateLimitedError) as caught:
        await mint(client)
    assert (caught.value.retry_after_s, caught.value.whole_app) == (33, True)
    assert client.last_error_code == "github_rate_limited"


async def test_open_and_close(make_client: MakeClient, tmp_path: Path) -> None:
    async with make_client() as client:
        assert client._http is not None
    assert client._http is None
    await client.close()
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    for changes in (
        {"ca_file": str(broken)},
        {"ca_file": str(tmp_path / "none")},
        {"proxy_url": "ftp://user:geheim@x"},
    ):
        with pytest.raises(SettingsError) as caught:
            await make_client(**changes).open()
        assert "geheim" not in str(caught.value)


async def test_nothing_of_a_call_is_logged(make_client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("httpx").setLevel(logging.DEBUG)
    await mint(make_client(Script(reply(201, MINTED))))
    assert TOKEN not in caplog.text
