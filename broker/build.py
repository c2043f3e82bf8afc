"""Composition root: settings → the object graph → the ASGI app. Building does no I/O.

Resources open and close in the app's lifespan.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from broker import client_wheels
from broker import settings as broker_settings
from broker.access.limits import RateLimiter
from broker.audit import Auditor
from broker.clock import SystemClock
from broker.errors import BrokerError, GitHubError, SettingsError, StoreError
from broker.github.app_jwt import Signer
from broker.github.client import GitHubClient
from broker.github.webhook import SignatureCheck, parse_delivery
from broker.issuing.admins import AdminGate, AuditTrail
from broker.issuing.ending import Ender
from broker.issuing.hooks import HookReactor
from broker.issuing.installations import Installations
from broker.issuing.keys import KeyRegister
from broker.issuing.minting import Minter, MintSettings
from broker.issuing.owners import Owners
from broker.issuing.repositories import RepositoryList
from broker.issuing.tokens import Issuer, IssueSettings
from broker.issuing.turns import Turns
from broker.metrics import CONTENT_TYPE, PrometheusMeter
from broker.model import ApiKeyRecord, App, Role, Secret
from broker.observe import configure_logging
from broker.ports import Clock
from broker.settings import Settings
from broker.store.backend import Backend
from broker.store.metered import metered
from broker.store.redis import RedisBackend
from broker.store.seal import KeyEncryptionKey
from broker.store.sealed import SealedStore
from broker.store.sqlite import SqliteBackend
from broker.watch import Watch
from broker.web.admin import Admin
from broker.web.metrics import MetricsPage
from broker.web.middleware import Edge, not_found
from broker.web.openapi import document
from broker.web.prefect_compat import PrefectCompat
from broker.web.probes import Probes
from broker.web.simple_index import SimpleIndex
from broker.web.tokens import Tokens, json_response
from broker.web.webhooks import Webhooks

_log = logging.getLogger(__name__)

CALLS_TOTAL: Final = 48
CALLS_PER_OWNER: Final = 16
"""Calls to GitHub at once, per process; its own limit is 100 concurrent for one installation."""

_SWEEP_S: Final = 60.0
_APP_RETRY_S: Final = 15.0


def build_backend(settings: Settings, clock: Clock | None = None) -> Backend:
    """Return the raw store that ``BROKER_STORE_URL`` names.

    Raises:
        SettingsError: it names none.
    """
    url = settings.store_url.get_secret_value().strip()
    if url.startswith(("redis", "rediss")):
        return RedisBackend(
            Secret(url),
            audit_retention_s=settings.audit_retention,
            audit_max_events=settings.audit_max_events,
        )
    return SqliteBackend(
        sqlite_path(url),
        audit_retention_s=settings.audit_retention,
        audit_max_events=settings.audit_max_events,
        clock=clock,
    )


def sqlite_path(url: str) -> Path:
    """Return the file of ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

    Raises:
        SettingsError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may hold the value
        parts = urlsplit("")
    named = parts.path.startswith("/") and len(parts.path) > 1
    if parts.scheme != "sqlite" or parts.netloc or not named or parts.query:
        known = "sqlite:///FILE (sqlite:////FILE for an absolute path), redis://, redis+sentinel://"
        raise SettingsError([f"BROKER_STORE_URL: write {known} or redis+cluster:// (rediss for TLS)"])
    return Path(parts.path[1:])


def build_keks(settings: Settings) -> list[KeyEncryptionKey]:
    """Return the keys that wrap the store's data key: the configured ones, else one per private key."""
    configured = settings.encryption_secrets()
    if configured:
        return [KeyEncryptionKey.of_secret(one, origin="BROKER_ENCRYPTION_KEYS") for one in configured]
    return [
        KeyEncryptionKey.of_secret(key.pkcs8_der(), origin="BROKER_GITHUB_PRIVATE_KEY")
        for key in settings.private_keys()
    ]


def bootstrap_admin(settings: Settings) -> ApiKeyRecord | None:
    """Return the record that stands for ``BROKER_ADMIN_KEY``: an admin who may have no tokens itself."""
    key = settings.bootstrap_key()
    if key is None:
        return None
    return ApiKeyRecord(
        id=key.id,
        sha256=key.sha256,
        name="BROKER_ADMIN_KEY",
        role=Role.ADMIN,
        repositories=(),
        permissions=(),
        created_at=0,
        created_by="settings",
    )


@dataclass(slots=True)
class _AppInfo:
    """Who the app is, once GitHub has told."""

    app: App | None = None


@dataclass(frozen=True, slots=True)
class Broker:
    """The object graph of one process."""

    settings: Settings
    store: SealedStore
    github: GitHubClient
    signer: Signer
    installations: Installations
    minter: Minter
    auditor: Auditor
    issuer: Issuer
    repositories: RepositoryList
    gate: AdminGate
    keys: KeyRegister
    ender: Ender
    owners: Owners
    hooks: HookReactor
    about: _AppInfo
    meter: PrometheusMeter
    watch: Watch

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open what has to be open; on the way out finish what runs and write what is pending."""
        await self.github.open()
        await self.store.open()
        self.installations.start()
        self.auditor.start()
        self.ender.start()
        self.hooks.start()
        background = [
            asyncio.create_task(self._meet_github(), name="meet-github"),
            asyncio.create_task(self._sweep(), name="store-sweep"),
            asyncio.create_task(self.watch.run(), name="watch"),
        ]
        try:
            yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.hooks.stop()
            await self.ender.stop()
            await self.minter.stop()
            await self.installations.stop()
            await self.auditor.stop()
            await self.store.close()
            await self.github.close()

    async def _meet_github(self) -> None:
        """Ask who the app is: opens the connection, learns the install page, shows a wrong key early."""
        while self.about.app is None:
            try:
                self.about.app = await self.github.app()
            except GitHubError as error:
                _log.error(
                    "GitHub did not tell who the app is", extra={"code": error.code, "cause": str(error)}
                )
                await asyncio.sleep(_APP_RETRY_S)
            else:
                _log.info("serving as app %s", self.about.app.slug, extra={"app_id": self.about.app.id})

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            with contextlib.suppress(StoreError):
                if lead := await self.store.lease("job:sweep"):
                    await self.store.sweep()
                    await self.store.release(lead)


def install_page(settings: Settings, app: App) -> str:
    """Return the page where owners install the app or add repositories.

    GitHub Enterprise Server has it under ``/github-apps/`` ("Sharing your GitHub App").
    """
    host = urlsplit(settings.github_url).hostname or ""
    folder = "apps" if host == "github.com" or host.endswith(".ghe.com") else "github-apps"
    return f"{settings.github_url}/{folder}/{app.slug}/installations/new"


def build(settings: Settings, *, clock: Clock | None = None, meter: PrometheusMeter | None = None) -> Broker:
    """Return the object graph; connects to nothing.

    ``meter`` is this process's own if somebody else shows it too.

    Raises:
        SettingsError: something that only shows when the parts are put together.
    """
    clock = clock or SystemClock()
    meter = meter or build_meter(settings)
    about = _AppInfo()
    signer = Signer(issuer=settings.issuer, keys=settings.private_keys(), clock=clock)
    github = GitHubClient(
        base_url=settings.github_api_url,
        web_url=settings.github_url,
        signer=signer,
        clock=clock,
        ca_file=str(settings.github_ca_file) if settings.github_ca_file else None,
        proxy_url=settings.proxy_url.get_secret_value() if settings.proxy_url else None,
        on_call=meter.github_call,
    )
    store = SealedStore(metered(build_backend(settings, clock), meter.store_step), build_keks(settings))
    allowed = frozenset(settings.allowed_owners) or None
    host = settings.github_host
    turns = Turns(total=CALLS_TOTAL, per_owner=CALLS_PER_OWNER)
    installations = Installations(
        store,
        github,
        turns,
        host=host,
        ttl_s=settings.installation_ttl,
        cooldown_s=settings.failure_cooldown,
    )

    def grant_hint() -> str | None:
        return (
            None
            if about.app is None
            else f"Install it or add repositories: {install_page(settings, about.app)}"
        )

    minter = Minter(
        store,
        github,
        installations,
        turns,
        MintSettings(
            cooldown_s=settings.failure_cooldown,
            budget_per_minute=settings.mint_budget,
            accept_implicit=frozenset(settings.accept_implicit_permissions),
            probe_git=settings.probe_new_tokens == "git",
        ),
        grant_hint=grant_hint,
        meter=meter,
    )
    auditor = Auditor(store, meter)
    bootstrap = bootstrap_admin(settings)
    limits = RateLimiter(store)
    issuer = Issuer(
        store,
        admin=bootstrap,
        minter=minter,
        installations=installations,
        limits=limits,
        auditor=auditor,
        settings=IssueSettings(
            min_ttl_s=settings.token_min_ttl,
            refresh_ahead_s=settings.token_refresh_ahead,
            timeout_s=settings.request_timeout,
            allowed_owners=allowed,
        ),
    )
    repositories = RepositoryList(
        store,
        github,
        minter,
        installations,
        turns,
        host=host,
        allowed_owners=allowed,
        timeout_s=settings.request_timeout,
    )
    return Broker(
        settings=settings,
        store=store,
        github=github,
        signer=signer,
        installations=installations,
        minter=minter,
        auditor=auditor,
        issuer=issuer,
        repositories=repositories,
        gate=AdminGate(issuer, limits, auditor),
        keys=KeyRegister(store, bootstrap_id=bootstrap.id if bootstrap else None, log=auditor.log),
        ender=Ender(store, github, auditor, meter),
        owners=Owners(store, github, installations, auditor, timeout_s=settings.request_timeout),
        hooks=HookReactor(store, auditor),
        about=about,
        meter=meter,
        watch=Watch(
            store,
            meter,
            clock,
            waiters=lambda: minter.waiting,
            skew_s=lambda: github.observed_skew_s,
        ),
    )


def build_app(broker: Broker) -> ASGIApp:
    """Return the ASGI app of a broker; its lifespan opens and closes the broker."""
    release = version("github-token-broker")

    def about() -> dict[str, str | None]:
        app = broker.about.app
        return {
            "version": release,
            "github_url": broker.settings.github_url,
            "install_url": None if app is None else install_page(broker.settings, app),
        }

    tokens = Tokens(broker.issuer, broker.repositories, host=broker.settings.github_host, about=about)
    admin = Admin(
        gate=broker.gate,
        keys=broker.keys,
        ender=broker.ender,
        owners=broker.owners,
        trail=AuditTrail(broker.store),
        app=lambda: broker.about.app,
    )
    secrets = broker.settings.webhook_secrets()
    webhooks = Webhooks(
        broker.store,
        broker.auditor,
        signature=(lambda: SignatureCheck(secrets)) if secrets else None,
        parse=parse_delivery,
        queued=broker.hooks.wake,
        meter=broker.meter,
    )

    def can_sign() -> bool:
        try:
            return bool(broker.signer.app_jwt())
        except BrokerError:
            return False

    probes = Probes(broker.store, broker.github, can_sign)
    described = json_response(document()).body  # once: it is long, and anyone may ask for it

    async def openapi(request: Request) -> Response:
        del request
        return Response(described, media_type="application/json")

    @asynccontextmanager
    async def lifespan(app: Router) -> AsyncIterator[None]:
        del app
        async with broker.running():
            yield

    routes = [
        Route("/v1/github/token", tokens.token, methods=["POST"]),
        Route("/v1/git/askpass", tokens.askpass, methods=["GET"]),
        Route("/v1/github/repositories", tokens.repositories, methods=["GET"]),
        Route("/v1/whoami", tokens.whoami, methods=["GET"]),
        *admin.routes(),
        Route("/webhooks/github", webhooks.github, methods=["POST"]),
        Route("/livez", probes.live, methods=["GET"]),
        Route("/readyz", probes.ready, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        *([] if broker.settings.metrics_port else MetricsPage(broker.meter.text, CONTENT_TYPE).routes()),
        *SimpleIndex(client_wheels.load).routes(),
        *PrefectCompat(tokens, broker.issuer, broker.repositories).routes(),
    ]
    # Not a Starlette(): its error middleware would answer before the edge does.
    router = Router(routes=routes, lifespan=lifespan, redirect_slashes=False, default=not_found)
    networks = [ipaddress.ip_network(one) for one in broker.settings.trusted_proxies]
    return Edge(router, networks, broker.meter)


def build_meter(settings: Settings) -> PrometheusMeter:
    """Return the meter of this process, which is one of several workers if it was started as such."""
    return PrometheusMeter(
        store=settings.store_url.get_secret_value().strip().partition(":")[0],
        shared=broker_settings.workers_metrics_folder() if settings.workers > 1 else None,
    )


def app_from_environment(meter: PrometheusMeter | None = None) -> ASGIApp:
    """Return the app as the environment describes it; what a worker process runs."""
    settings = broker_settings.load()
    configure_logging(form=settings.log_format, level=settings.log_level)
    os.umask(0o077)
    return build_app(build(settings, meter=meter))
