"""``broker check``: what is wrong, before a caller finds out; asks the store and GitHub."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from broker import settings as broker_settings
from broker.build import Broker, build, install_page, sqlite_path
from broker.errors import GitHubError, GitHubRejectedAppError, StoreError
from broker.github import pages
from broker.github.manifest import EVENTS, WEBHOOK_PATH
from broker.model import App, Installation
from broker.settings import Settings

SKEW_S: Final = 30.0
NEEDED: Final = {"contents": "nothing clones", "metadata": "no repository can be seen"}
_MARKS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``level`` is ok, warning or problem."""

    level: str
    text: str


@click.command("check")
def command() -> None:
    """See whether settings, store, key and GitHub are right; exit status 0 or 1."""
    settings = broker_settings.load()
    logging.disable(logging.CRITICAL)  # the findings say it all, once
    findings = asyncio.run(_check(settings))
    for finding in findings:
        mark, color = _MARKS[finding.level]
        click.echo(f"{click.style(mark, fg=color)} {finding.text}")
    if any(finding.level == "problem" for finding in findings):
        raise SystemExit(1)


async def _check(settings: Settings) -> list[Finding]:
    async with _opened(build(settings)) as broker:
        return [
            *_check_settings(settings),
            *await _check_store(broker),
            *await _check_github(broker),
        ]


@asynccontextmanager
async def _opened(broker: Broker) -> AsyncIterator[Broker]:
    await broker.github.open()
    try:
        yield broker
    finally:
        await broker.store.close()
        await broker.github.close()


def _check_settings(settings: Settings) -> list[Finding]:
    findings = [
        Finding("ok", f"private key {key.fingerprint}: compare it with the app's page")
        for key in settings.private_keys()
    ]
    findings += [Finding("warning", line) for line in broker_settings.unknown_variables()]
    if settings.admin_key is not None:
        findings.append(
            Finding("warning", "BROKER_ADMIN_KEY is set: make admin keys with it, then take it out")
        )
    env = Path(".env")
    if env.is_file() and env.stat().st_mode & 0o077:
        findings.append(Finding("warning", f"{env.absolute()} can be read by others: chmod 600"))
    loopback = broker_settings.is_loopback(settings.host)
    if not loopback and settings.tls_cert_file is None:
        findings.append(
            Finding("warning", f"listens on {settings.host} without TLS: put something with TLS before it")
        )
    return findings


async def _check_store(broker: Broker) -> list[Finding]:
    url = broker.settings.store_url.get_secret_value()
    name = str(sqlite_path(url).absolute()) if url.startswith("sqlite:") else url.partition(":")[0]
    if url.startswith("sqlite:") and not sqlite_path(url).exists():
        return [Finding("warning", f"store {name} does not exist yet: broker serve makes it")]
    await broker.store.open()
    try:
        warnings = await broker.store.warnings()
        page = await broker.store.list_keys(cursor=None, limit=1)
    except StoreError as error:
        return [Finding("problem", f"store: {error}")]
    findings = [Finding("ok", f"store {name} answers and opens")]
    findings += [Finding("warning", f"store: {line}") for line in warnings]
    if not page.items:
        findings.append(
            Finding(
                "warning", "there is no API key yet: broker keys create --name NAME --repository 'acme/*'"
            )
        )
    return findings


async def _check_github(broker: Broker) -> list[Finding]:
    settings = broker.settings
    try:
        app = await broker.github.app()
        installations = await broker.github.installations()
    except GitHubError as error:
        return [Finding("problem", f"GitHub at {settings.github_api_url}: {error}{_advice(error, settings)}")]
    page = _app_page(settings, app)
    findings = [
        Finding("ok", f"GitHub knows the app as {app.slug} (id {app.id}, owner {app.owner}): {page}"),
        *_check_permissions(app, page),
        *await _check_public(broker, app, page),
        *await _check_webhook(broker, app, page),
    ]
    skew = broker.github.observed_skew_s
    if skew is not None and abs(skew) > SKEW_S:
        findings.append(
            Finding("warning", f"this host's clock is {-skew:+.0f} s off GitHub's: mend it (NTP)")
        )
    if not installations:
        findings.append(
            Finding("warning", f"the app is installed nowhere yet: {install_page(settings, app)}")
        )
    for one in installations:
        findings += _check_installation(settings, app, one)
    return findings


def _app_page(settings: Settings, app: App) -> str:
    """Return the app's own settings page."""
    org = app.owner if app.owner_kind == "Organization" else None
    return pages.app(settings.github_url, app.slug, org=org)


def _check_installation(settings: Settings, app: App, one: Installation) -> list[Finding]:
    page = install_page(settings, app)  # which leads on to the installation where there is one
    if settings.allowed_owners and one.login.lower() not in settings.allowed_owners:
        return [Finding("warning", f"installed on {one.login}, which BROKER_ALLOWED_OWNERS leaves out")]
    if one.suspended:
        return [
            Finding("warning", f"installed on {one.login}, suspended: an owner has to unsuspend it: {page}")
        ]
    waiting = sorted(name for name in NEEDED if name in app.permissions and name not in one.permissions)
    if waiting:
        return [
            Finding(
                "problem",
                f"{one.login} has not granted {', '.join(waiting)} yet: an owner has to accept it: {page}",
            )
        ]
    return [Finding("ok", f"installed on {one.login}: {one.selection} repositories")]


def _advice(error: GitHubError, settings: Settings) -> str:
    """Return what to do about GitHub's refusal of the app itself."""
    if not isinstance(error, GitHubRejectedAppError):
        return ""
    return (
        f". Is {settings.issuer} the app's id, and one of the keys above on its page? "
        "Else generate one there and set BROKER_GITHUB_PRIVATE_KEY_FILE"
    )


def _check_permissions(app: App, page: str) -> list[Finding]:
    findings = []
    beyond = sorted(f"{name}: {level}" for name, level in app.permissions.items() if level != "read")
    if beyond:
        findings.append(
            Finding(
                "warning",
                f"the app has more than read ({', '.join(beyond)}): take that away on {page}/permissions",
            )
        )
    findings += [
        Finding(
            "problem",
            f"the app lacks the permission {name}: read, without which {why}: give it on {page}/permissions",
        )
        for name, why in NEEDED.items()
        if name not in app.permissions
    ]
    return findings


async def _check_public(broker: Broker, app: App, page: str) -> list[Finding]:
    """See whether strangers could install the app; GitHub tells it only by what it shows to nobody."""
    try:
        public = app.public if app.public is not None else await broker.github.is_public(app.slug)
    except GitHubError:
        return []  # an address that asks without a credential is soon told to wait
    if not public or broker.settings.allowed_owners:
        return []
    return [
        Finding(
            "warning",
            f"the app is public, so strangers may install it: make it private on {page}/advanced, "
            "or set BROKER_ALLOWED_OWNERS",
        )
    ]


async def _check_webhook(broker: Broker, app: App, page: str) -> list[Finding]:
    """Compare the app's webhook with what this broker can take."""
    configured = bool(broker.settings.webhook_secrets())
    try:
        hook = await broker.github.hook_config()
    except GitHubError as error:
        return [Finding("warning", f"GitHub did not tell the app's webhook: {error}")]
    said = []
    if configured and not hook.url:
        said.append(f"BROKER_GITHUB_WEBHOOK_SECRET is set, but the app has no webhook address: {page}")
    if hook.url and not configured:
        said.append(
            f"the app's webhook goes to {hook.url}, but BROKER_GITHUB_WEBHOOK_SECRET is not set: "
            f"set it, or switch the webhook off on {page}"
        )
    if hook.url and configured:
        if urlsplit(hook.url).path != WEBHOOK_PATH:
            said.append(f"the app's webhook goes to {hook.url}, not to {WEBHOOK_PATH} of a broker: {page}")
        if not hook.signed:
            said.append(f"the app's webhook has no secret, so every delivery is refused: set one on {page}")
        if not hook.verified:
            said.append(f"GitHub does not check the certificate of the app's webhook: {page}")
        missing = [event for event in EVENTS if event not in app.events]
        if missing:
            said.append(
                f"the app does not subscribe to {', '.join(missing)} (renames, transfers): "
                f"tick it on {page}/permissions"
            )
    return [Finding("warning", line) for line in said]
