"""``broker check``: what is wrong, before a caller finds out; asks the store and GitHub."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from broker import settings as broker_settings
from broker.build import Broker, build, install_page, sqlite_path
from broker.errors import GitHubError, GitHubRejectedAppError, StoreError
from broker.model import App
from broker.settings import Settings

SKEW_S: Final = 30.0
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
    findings = [Finding("ok", f"GitHub knows the app as {app.slug} (id {app.id}, owner {app.owner})")]
    findings += _check_permissions(app)
    skew = broker.github.observed_skew_s
    if skew is not None and abs(skew) > SKEW_S:
        findings.append(
            Finding("warning", f"this host's clock is {-skew:+.0f} s off GitHub's: mend it (NTP)")
        )
    page = install_page(settings, app)
    if not installations:
        findings.append(Finding("warning", f"the app is installed nowhere yet: {page}"))
    for one in installations:
        if settings.allowed_owners and one.login.lower() not in settings.allowed_owners:
            findings.append(
                Finding("warning", f"installed on {one.login}, which BROKER_ALLOWED_OWNERS leaves out")
            )
        elif one.suspended:
            findings.append(
                Finding("warning", f"installed on {one.login}, suspended: an owner has to unsuspend it")
            )
        else:
            findings.append(Finding("ok", f"installed on {one.login}: {one.selection} repositories"))
    return findings


def _advice(error: GitHubError, settings: Settings) -> str:
    """Return what to do about GitHub's refusal of the app itself."""
    if not isinstance(error, GitHubRejectedAppError):
        return ""
    return (
        f". Is {settings.issuer} the app's id, and one of the keys above on its page? "
        "Else generate one there and set BROKER_GITHUB_PRIVATE_KEY_FILE"
    )


def _check_permissions(app: App) -> list[Finding]:
    findings = []
    beyond = sorted(f"{name}: {level}" for name, level in app.permissions.items() if level != "read")
    if beyond:
        findings.append(
            Finding(
                "warning", f"the app has more than read ({', '.join(beyond)}): take that away on its page"
            )
        )
    if "contents" not in app.permissions:
        findings.append(
            Finding("problem", "the app lacks the permission contents: read, without which nothing clones")
        )
    return findings
