"""Composition root: settings → the object graph → the ASGI app. Building does no I/O.

Resources open and close in the app's lifespan.
"""

import asyncio
import contextlib
import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final, clear_overloads
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
from broker.github import pages
from broker.github.app_jwt import Signer
from broker.github.client import GitHubClient
from broker.github.webhook import SignatureCheck, parse_delivery
from broker.issuing.admins import AdminGate, AuditTrail
from broker.issuing.ending import Ender
from broker.issuing.hooks import HookReactor
from broker.issuing.installations import Installations
from broker.issuing.keys import KeyRegister
from broker.issuing.minting import DRAIN_S, Minter, MintSettings
from broker.issuing.owners import Owners
from broker.issuing.repositories import RepositoryList
from broker.issuing.tokens import Issuer, IssueSettings
from broker.issuing.turns import Turns
from broker.metrics import CONTENT_TYPE, PrometheusMeter
from broker.model import ApiKeyRecord, App, Role, Secret
from broker.ports import Clock
from broker.reload import SecretWatch
from broker.settings import Settings
from broker.store.backend import Backend
from broker.store.metered import metered
from broker.store.seal import KeyEncryptionKey
from broker.store.sealed import SealedStore
from broker.threads import in_thread
from broker.tls import TlsIdentity
from broker.watch import Watch
from broker.web.admin import Admin
from broker.web.metrics import MetricsPage
from broker.web.middleware import Direct, Edge, not_found
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
_HURRIED_S: Final = 0.5
_WRITE_S: Final = 2.0
_CLOSE_S: Final = 0.5
_CANCEL_AGAIN_S: Final = 0.05


def build_backend(settings: Settings, clock: Clock | None = None) -> Backend:
    """Return the raw store that ``BROKER_STORE_URL`` names.

    Raises:
        SettingsError: it names none.
    """
    url = settings.store_url.get_secret_value().strip()
    if url.startswith(("redis", "rediss")):
        from broker.store.redis import RedisBackend  # noqa: PLC0415 - 20 MiB that SQLite has no use for

        clear_overloads()  # redis-py has hundreds, 9 MiB that only get_overloads() would ask for
        return RedisBackend(
            Secret(url),
            audit_retention_s=settings.audit_retention,
            audit_max_events=settings.audit_max_events,
        )
    from broker.store.sqlite import SqliteBackend  # noqa: PLC0415 - 1 MiB that Redis has no use for

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


@dataclass(slots=True)
class Life:
    """Whether the process is on its way out.

    Attributes:
        draining: it takes nothing new, and ends when all that runs is done.
        hurried: it was told a second time, so it waits for nobody.
        unfinished: something could not be finished or written.
    """

    draining: bool = False
    hurried: bool = False
    unfinished: bool = False


@dataclass(slots=True)
class _WebhookSecrets:
    """The webhook secrets as they are now."""

    now: tuple[Secret, ...]


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
    webhook_secrets: _WebhookSecrets
    tls: TlsIdentity | None
    life: Life = field(default_factory=Life)

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
            asyncio.create_task(self.secret_watch().run(), name="secret-files"),
        ]
        try:
            yield
        finally:
            while left := [task for task in background if not task.done()]:
                # Again, should what was awaited take the cancellation for its own: the wait_for of Python
                # 3.11 does, when its answer comes in that very moment.
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)
            await self._wind_up()

    async def _wind_up(self) -> None:
        """Finish what runs, write what is pending, close; each within its time, whatever hangs.

        Counts and last uses come after what may still add to them, and the store is closed after all.
        """
        wait_s = _HURRIED_S if self.life.hurried else DRAIN_S
        whole = await asyncio.gather(
            _within(wait_s + 1, self.hooks.stop(), "work on webhooks"),
            _within(wait_s + 1, self.ender.stop(within_s=wait_s), "revocations"),
            _within(wait_s + 2, self.minter.stop(within_s=wait_s), "mints"),
            _within(wait_s + 1, self.installations.stop(), "installations"),
        )
        written = await _within(_WRITE_S, self._write_counts(), "writing counts")
        self.life.unfinished = self.life.unfinished or not (written and all(whole))
        await _within(_CLOSE_S, self.store.close(), "closing the store")
        await _within(_CLOSE_S, self.github.close(), "closing connections to GitHub")

    async def _write_counts(self) -> None:
        if not await self.auditor.stop():
            self.life.unfinished = True

    def secret_watch(self) -> SecretWatch:
        """Return what takes over secrets that change in their files."""
        return SecretWatch(self.settings, use=self.use, use_tls=self._use_tls)

    def _use_tls(self, context: ssl.SSLContext) -> None:
        if self.tls is not None:
            self.tls.use(context)

    async def use(self, settings: Settings) -> None:
        """Go by the secrets of ``settings`` from now on; nothing else of them counts.

        Raises:
            StoreError: the store did not take the wraps of new keys: call it again. The rest is done.
        """
        keys = await in_thread(settings.private_keys)  # 37 ms a key, during which nobody waits
        fingerprints = [key.fingerprint for key in keys]
        if fingerprints != [self.signer.fingerprint(number) for number in self.signer.numbers]:
            self.signer.replace(keys)
            _log.warning("private keys taken over from their files", extra={"fingerprints": fingerprints})
        secrets = settings.webhook_secrets()
        if [one.reveal() for one in secrets] != [one.reveal() for one in self.webhook_secrets.now]:
            self.webhook_secrets.now = secrets
            _log.warning("webhook secrets taken over from their files", extra={"secrets": len(secrets)})
        bootstrap = bootstrap_admin(settings)
        if bootstrap != self.issuer.admin:
            self.issuer.admin = bootstrap
            self.keys.use_bootstrap(bootstrap.id if bootstrap else None)
            _log.warning("BROKER_ADMIN_KEY taken over from its file")
        keks = await in_thread(build_keks, settings)
        if keks != list(self.store.keks):
            await self.store.use_keks(keks)
            _log.warning(
                "keys that wrap the store's data key taken over",
                extra={"fingerprints": [kek.fingerprint for kek in keks]},
            )

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


async def _within(seconds: float, work: Coroutine[object, object, None], what: str) -> bool:
    """Do something at the end of the process, but not for longer than this; return whether it is done."""
    task = asyncio.create_task(work)
    _, late = await asyncio.wait([task], timeout=seconds)
    if late:
        task.cancel()
        _log.error("%s did not end in time", what)
    elif not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s did not end well", what, exc_info=error)
    else:
        return True
    return False


def install_page(settings: Settings, app: App) -> str:
    """Return the page where owners install the app or add repositories."""
    return pages.install(settings.github_url, app.slug)


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
    certificate = settings.tls_context()
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
        webhook_secrets=_WebhookSecrets(settings.webhook_secrets()),
        tls=None if certificate is None else TlsIdentity(certificate),
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
    secrets = broker.webhook_secrets
    webhooks = Webhooks(
        broker.store,
        broker.auditor,
        signature=(lambda: SignatureCheck(secrets.now)) if secrets.now else None,
        parse=parse_delivery,
        queued=broker.hooks.wake,
        meter=broker.meter,
    )

    def can_sign() -> bool:
        try:
            return bool(broker.signer.app_jwt())
        except BrokerError:
            return False

    def draining() -> bool:
        return broker.life.draining

    probes = Probes(broker.store, broker.github, can_sign, draining=draining)
    described = cache(lambda: json_response(document()).body)  # once (25 ms): anyone may ask for it

    async def openapi(request: Request) -> Response:
        del request
        return Response(described(), media_type="application/json")

    @asynccontextmanager
    async def lifespan(app: Router) -> AsyncIterator[None]:
        del app
        async with broker.running():
            yield

    token = Route("/v1/github/token", Direct(tokens.token), methods=["POST"])
    routes = [
        token,
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
    return Edge(router, networks, broker.meter, draining=draining, direct=[token])


def build_meter(settings: Settings) -> PrometheusMeter:
    """Return the meter of this process, which is one of several workers if it was started as such."""
    return PrometheusMeter(
        store=settings.store_url.get_secret_value().strip().partition(":")[0],
        shared=broker_settings.workers_metrics_folder() if settings.workers > 1 else None,
    )
