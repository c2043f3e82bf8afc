"""The client over real HTTP against the strict emulated GitHub."""

from __future__ import annotations

import ipaddress
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from broker.clock import SystemClock
from broker.errors import (
    GitHubRateLimitedError,
    GitHubRejectedAppError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InstallationGoneError,
    InstallationSuspendedError,
    NotInstalledError,
    PermissionNotGrantedError,
    UntrustedReplyError,
)
from broker.github.app_jwt import Signer
from broker.github.client import GitHubClient
from broker.github.private_key import AppPrivateKey
from broker.model import RepositoryName
from broker.sandbox.github import EmulatedApp, EmulatedGitHub, EmulatedInstallation, Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from broker.model import MintedToken
    from broker.sandbox.github import RunningGitHub

    Keys = tuple[AppPrivateKey, ...]
    RsaKeys = tuple[rsa.RSAPrivateKey, ...]
    MakeClient = Callable[..., GitHubClient]


@pytest.fixture
def served() -> Iterator[tuple[EmulatedGitHub, RunningGitHub]]:
    with EmulatedGitHub() as github, github.serve(api_prefix="/api/v3") as server:
        yield github, server


@pytest.fixture
def github(served: Any, rsa_keys: RsaKeys) -> EmulatedGitHub:
    github, _ = served
    app = github.add_app(slug="broker", owner="ops", permissions={"contents": "read", "issues": "write"})
    app.new_private_key(rsa_keys[0])
    github.add_repository("Acme/App")
    github.add_repository("Acme/Lib")
    github.add_repository("Acme/Hidden")
    return github


@pytest.fixture
def app(github: EmulatedGitHub) -> EmulatedApp:
    return next(iter(github.apps.values()))


@pytest.fixture
def acme(github: EmulatedGitHub, app: EmulatedApp) -> EmulatedInstallation:
    return github.install(app, "Acme", repositories=["App", "Lib"])


@pytest.fixture
async def connect(
    served: Any, github: EmulatedGitHub, app: EmulatedApp, keys: Keys, sleeps: Any
) -> AsyncIterator[MakeClient]:
    _, server = served
    opened = []

    def make(*, signer: Signer = None, **changes: Any) -> GitHubClient:
        clock = SystemClock()
        given = {
            "base_url": server.api_url,
            "web_url": server.url,
            "signer": signer or Signer(issuer=app.client_id, keys=keys[:1], clock=clock),
            "clock": clock,
            "sleep": sleeps,
        }
        opened.append(GitHubClient(**(given | changes)))
        return opened[-1]

    yield make
    for client in opened:
        await client.close()


def mint(
    client: GitHubClient,
    installation: EmulatedInstallation,
    repositories: Any = ("app",),
    permissions: Any = ("contents", "metadata"),
) -> Awaitable[MintedToken]:
    return client.mint(installation.id, repositories=repositories, permissions=permissions)


async def test_the_whole_life_of_a_token(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation, app: EmulatedApp
) -> None:
    client = connect()
    who = await client.app()
    assert (who.id, who.slug, who.owner) == (app.app_id, "broker", "ops")
    found = await client.repository_installation(RepositoryName("acme", "APP"))
    assert (found.id, found.login, found.selection, found.suspended) == (acme.id, "Acme", "selected", False)
    assert await client.owner_installation("acme") == found
    assert await client.installation(found.id) == found
    shapes = set()
    for _ in range(2):
        minted = await mint(client, acme)
        assert minted.repositories == ("Acme/App",)
        assert minted.permissions == {"contents": "read", "metadata": "read"}
        assert abs(minted.expires_at - minted.github_now - 3600) < 3
        shapes.add(minted.token.reveal().count("."))
        page = await client.installation_repositories(minted.token, page=1)
        assert [each.full_name for each in page.repositories] == ["Acme/App"]
        assert page.next_page is None
        await client.revoke(minted.token)
        await client.revoke(minted.token)
    assert shapes == {0, 2}
    assert github.live_tokens() == []


async def test_a_whole_installation_on_purpose(connect: MakeClient, acme: EmulatedInstallation) -> None:
    minted = await mint(connect(), acme, repositories=None)
    assert minted.repositories is None
    assert minted.permissions == {"contents": "read", "metadata": "read"}


async def test_a_user_and_nobody(connect: MakeClient, github: EmulatedGitHub, app: EmulatedApp) -> None:
    github.add_account("alice", kind="User")
    github.install(app, "alice")
    client = connect()
    assert (await client.owner_installation("Alice")).login == "alice"
    for owner in ("nobody", "ops"):
        with pytest.raises(NotInstalledError):
            await client.owner_installation(owner)


async def test_what_the_installation_does_not_reach(connect: MakeClient, acme: EmulatedInstallation) -> None:
    client = connect()
    for name in ("Acme/Hidden", "Acme/none", "nobody/none"):
        with pytest.raises(NotInstalledError):
            await client.repository_installation(RepositoryName.parse(name))
    with pytest.raises(NotInstalledError):
        await mint(client, acme, repositories=["App", "Hidden"])
    with pytest.raises(PermissionNotGrantedError):
        await mint(client, acme, permissions=["contents", "actions"])


async def test_a_renamed_repository_is_not_followed(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    github.rename_repository("Acme/App", "New")
    with pytest.raises(NotInstalledError) as caught:
        await connect().repository_installation(RepositoryName("Acme", "App"))
    assert "renamed" in caught.value.public
    assert github.count("repo_installation_by_id") == 0


async def test_stale_and_suspended(
    connect: MakeClient, github: EmulatedGitHub, app: EmulatedApp, acme: EmulatedInstallation
) -> None:
    client = connect()
    github.suspend(acme)
    with pytest.raises(InstallationSuspendedError):
        await mint(client, acme)
    assert (await client.owner_installation("acme")).suspended
    github.uninstall(acme)
    for call in (mint(client, acme), client.installation(acme.id)):
        with pytest.raises(InstallationGoneError):
            await call
    again = github.install(app, "Acme")
    assert await mint(client, again)


async def test_all_installations_over_pages(
    connect: MakeClient, github: EmulatedGitHub, app: EmulatedApp
) -> None:
    for number in range(205):
        github.install(app, f"org-{number}")
    github.add_account("big", kind="Enterprise")
    github.install(app, "big")
    found = await connect().installations()
    assert {each.login for each in found} == {f"org-{number}" for number in range(205)}
    assert github.count("installations") == 3


async def test_all_repositories_over_pages(
    connect: MakeClient, github: EmulatedGitHub, app: EmulatedApp
) -> None:
    for number in range(120):
        github.add_repository(f"wide/r{number}")
    installation = github.install(app, "wide")
    client = connect()
    token = (await mint(client, installation, repositories=None)).token
    first = await client.installation_repositories(token, page=1)
    second = await client.installation_repositories(token, page=first.next_page)
    assert (len(first.repositories), len(second.repositories), second.next_page) == (100, 20, None)


# who the app is


async def test_a_rotated_key_is_found_and_kept(
    *,
    connect: MakeClient,
    github: EmulatedGitHub,
    app: EmulatedApp,
    keys: Keys,
    rsa_keys: RsaKeys,
    acme: EmulatedInstallation,
) -> None:
    """Old key first in the settings, already deleted at GitHub."""
    app.public_keys.clear()
    app.new_private_key(rsa_keys[2])
    signer = Signer(issuer=str(app.app_id), keys=keys, clock=SystemClock())
    client = connect(signer=signer)
    await mint(client, acme)
    await mint(client, acme)
    assert github.count("mint") == 4
    assert signer.active == 2


async def test_no_key_is_the_apps(
    connect: MakeClient, app: EmulatedApp, rsa_keys: RsaKeys, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    signer = Signer(issuer=app.client_id, keys=keys[1:], clock=SystemClock())
    with pytest.raises(GitHubRejectedAppError, match="no configured private key"):
        await connect(signer=signer).app()


@pytest.mark.parametrize("off", [-600, 600, -75, 3600])
async def test_a_clock_that_is_off_does_no_harm(
    *,
    connect: MakeClient,
    github: EmulatedGitHub,
    acme: EmulatedInstallation,
    app: EmulatedApp,
    keys: Keys,
    off: float,
) -> None:
    github.clock_skew_s = off
    signer = Signer(issuer=app.client_id, keys=keys[:1], clock=SystemClock())
    client = connect(signer=signer)
    minted = await mint(client, acme)
    assert abs(minted.github_now - time.time() - off) < 5
    assert abs(client.observed_skew_s - off) < 5
    assert abs(signer.clock_skew_s - off) < 5
    calls = github.count()
    await mint(client, acme)
    assert github.count() == calls + 1


async def test_a_key_that_has_not_propagated(connect: MakeClient, app: EmulatedApp, sleeps: Any) -> None:
    app.public_keys[0].propagated = False

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            app.propagate_keys()

    assert await connect(sleep=sleep).app()
    assert sleeps == [2.0, 2.0]
    app.public_keys[0].propagated = False
    with pytest.raises(GitHubRejectedAppError, match="public key"):
        await connect().app()


@pytest.mark.parametrize("issuer", ["999", "Iv23liNOBODY"])
async def test_a_wrong_issuer(connect: MakeClient, github: EmulatedGitHub, keys: Keys, issuer: str) -> None:
    signer = Signer(issuer=issuer, keys=keys, clock=SystemClock())
    with pytest.raises(GitHubRejectedAppError, match="client id or app id"):
        await connect(signer=signer).app()
    assert github.count() == 1


# limits


@pytest.mark.parametrize(
    ("fault", "low", "high"),
    [
        (Fault.primary_limit(reset_in_s=90), 88, 91),
        (Fault.primary_limit(status=429, reset_in_s=90_000), 3600, 3600),
        (Fault.secondary_limit(retry_after_s=17), 17, 17),
        (Fault.secondary_limit(status=429, retry_after_s=17), 17, 17),
        (Fault.secondary_limit(retry_after_s=None), 60, 60),
        (Fault.secondary_limit(status=429, retry_after_s=None), 60, 60),
        (Fault.abuse(retry_after_s=5), 5, 5),
        (Fault.abuse(retry_after_s=None), 60, 60),
    ],
)
@pytest.mark.parametrize("skew", [0, 600])
async def test_every_way_of_saying_wait(
    *,
    connect: MakeClient,
    github: EmulatedGitHub,
    acme: EmulatedInstallation,
    fault: Fault,
    low: Any,
    high: Any,
    skew: Any,
) -> None:
    github.clock_skew_s = skew
    client = connect()
    await client.app()
    github.clear_calls()
    github.faults.add(fault)
    with pytest.raises(GitHubRateLimitedError) as caught:
        await mint(client, acme)
    assert low <= caught.value.retry_after_s <= high
    assert github.count() == 1


async def test_an_installations_own_limit(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    client = connect()
    token = (await mint(client, acme)).token
    github.rate_limit = 0
    with pytest.raises(GitHubRateLimitedError) as caught:
        await client.installation_repositories(token, page=1)
    assert not caught.value.whole_app
    assert caught.value.retry_after_s > 60


# trouble on the way


@pytest.mark.parametrize(
    "fault",
    [
        Fault.unicorn(times=2),
        Fault.unicorn(status=503, times=2),
        Fault(status=500, times=2),
        Fault(reset=True, times=2),
        Fault(truncate=True, times=2),
        Fault.lost_reply(times=2),
    ],
    ids=["502 page", "503 page", "500", "reset", "truncated", "lost reply"],
)
async def test_passing_trouble_is_outlived(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation, fault: Fault
) -> None:
    github.faults.add(fault)
    assert (await mint(connect(), acme)).repositories == ("Acme/App",)
    assert github.count("mint") == 3


async def test_lasting_trouble_is_told(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    fault = github.faults.add(Fault.unicorn())
    client = connect(retries=2)
    with pytest.raises(GitHubUnavailableError):
        await mint(client, acme)
    assert github.count() == 3
    assert client.last_error_code == "github_unavailable"
    github.faults.remove(fault)
    await mint(client, acme)
    assert client.last_error_code is None


async def test_slow_replies_time_out(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    github.faults.add(Fault(delay_s=0.6, times=1))
    github.faults.add(Fault(route="mint", delay_s=0.6, times=1))
    client = connect(attempt_timeout_s=0.2)
    assert await client.app()
    assert await mint(client, acme)
    github.faults.add(Fault(delay_s=0.6))
    with pytest.raises(GitHubTimeoutError):
        await connect(attempt_timeout_s=0.2, budget_s=0.3).app()


async def test_nobody_listens(connect: MakeClient, served: Any, sleeps: Any) -> None:
    client = connect(base_url="http://127.0.0.1:1")
    with pytest.raises(GitHubUnavailableError, match="ConnectError"):
        await client.app()
    assert len(sleeps) == 3


async def test_a_reply_beyond_all_measure(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    github.faults.add(Fault(route="app", rewrite=lambda body: body | {"pad": "x" * 2_000_000}))
    with pytest.raises(UntrustedReplyError):
        await connect().app()
    github.faults.add(Fault(route="mint", rewrite=lambda body: body | {"pad": "x" * 9_000_000}))
    with pytest.raises(UntrustedReplyError):
        await mint(connect(), acme)
    assert github.live_tokens() == []


async def test_a_reply_that_makes_no_sense_leaves_no_token(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    for change in ({"expires_at": None}, {"permissions": "all"}, {"repositories": "all"}):
        github.faults.add(Fault(route="mint", times=1, rewrite=lambda body, change=change: body | change))
        with pytest.raises(UntrustedReplyError):
            await mint(connect(), acme)
    assert github.live_tokens() == []
    assert len(github.tokens) == 3


async def test_more_than_asked_is_passed_on_for_the_issuer_to_judge(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    github.over_grant_permissions = {"issues": "write"}
    github.over_grant_repositories = ["Acme/Hidden"]
    minted = await mint(connect(), acme)
    assert minted.permissions["issues"] == "write"
    assert set(minted.repositories) == {"Acme/App", "Acme/Hidden"}


async def test_a_young_token_that_lags(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation, sleeps: Any
) -> None:
    github.lag_uses = 2
    client = connect()
    token = (await mint(client, acme)).token
    assert (await client.installation_repositories(token, page=1)).repositories
    assert sleeps == [1.0, 2.0]
    other = (await mint(client, acme)).token
    await client.revoke(other)
    assert [each.text for each in github.live_tokens()] == [token.reveal()]


async def test_git_itself_is_asked(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    github.add_repository("Acme/Code", create_git=True)
    github.set_selection(acme, ["App", "Lib", "Code"])
    client = connect()
    code = (await mint(client, acme, repositories=["Code"])).token
    app = (await mint(client, acme, repositories=["App"])).token
    assert await client.probe_git(code, "Acme/Code") is True
    assert await client.probe_git(app, "Acme/Code") is False
    await client.revoke(code)
    assert await client.probe_git(code, "Acme/Code") is False


async def test_no_secret_ever_in_an_address_or_a_body(
    connect: MakeClient, github: EmulatedGitHub, acme: EmulatedInstallation
) -> None:
    client = connect()
    token = (await mint(client, acme)).token
    await client.installation_repositories(token, page=1)
    await client.probe_git(token, "Acme/App")
    await client.revoke(token)
    for call in github.calls:
        assert "ghs_" not in call.path + call.query + str(call.body)
        assert "eyJ" not in call.path + call.query + str(call.body)
        assert call.headers.get("user-agent")
        assert "cookie" not in call.headers


async def test_a_foreign_key_of_ours_says_nothing_of_itself(connect: MakeClient, app: EmulatedApp) -> None:
    stranger = AppPrivateKey(rsa.generate_private_key(65537, 2048))
    signer = Signer(issuer=app.client_id, keys=[stranger], clock=SystemClock())
    with pytest.raises(GitHubRejectedAppError) as caught:
        await connect(signer=signer).app()
    assert "eyJ" not in str(caught.value)


async def test_a_private_authority_is_trusted_only_when_named(
    connect: MakeClient, github: EmulatedGitHub, rsa_keys: RsaKeys, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    key.write_bytes(rsa_keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, rsa_keys[1].public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(host, critical=False)
        .sign(rsa_keys[1], SHA256())
    )
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    with github.serve(certfile=certificate, keyfile=key) as server:
        client = connect(base_url=server.api_url, ca_file=str(certificate))
        assert (await client.app()).slug == "broker"
        await client.close()
        with pytest.raises(GitHubUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(base_url=server.api_url, retries=0).app()
