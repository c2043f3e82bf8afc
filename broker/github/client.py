"""The only sender: GitHub's REST API over HTTP, with retries, repairs of the app JWT, and bounds.

Each call has one budget of time for all its attempts. From the inside out: ``_attempt`` sends once,
``_send`` tries again what failed in transport (5xx, connection, timeout), ``_as_app`` and
``_as_installation`` repair what a 401 may mean, and the public methods read the verdict.
"""

import asyncio
import hashlib
import logging
import random
import ssl
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import takewhile
from typing import Final, Self, TypeVar

import httpx

from broker.errors import (
    GitHubError,
    GitHubRejectedAppError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InstallationSuspendedError,
    NotInstalledError,
    PermissionNotGrantedError,
    RenamedError,
    SettingsError,
    UntrustedReplyError,
)
from broker.github import wire
from broker.github.app_jwt import SignedJwt, Signer
from broker.github.wire import JwtFault, Reply, Request, Route
from broker.model import (
    App,
    HookConfig,
    Installation,
    MintedToken,
    NewApp,
    RepositoryName,
    RepositoryPage,
    Secret,
)
from broker.ports import Clock

Parsed = TypeVar("Parsed")

OnCall = Callable[[str, str, float, Mapping[str, str]], None]
"""Called after each attempt: route, outcome (``ok`` or an error's code), seconds, some reply headers."""

MAX_PAGES: Final = 1000
MAX_CONNECTIONS: Final = 100
"""GitHub's secondary limit is 100 concurrent requests ("Rate limits for the REST API")."""

PENDING_KEY_DELAYS_S: Final = (2.0, 2.0, 2.0, 2.0, 2.0)
"""A key just registered is answered "must generate a public key" for some seconds."""

YOUNG_TOKEN_DELAYS_S: Final = (1.0, 2.0, 3.0)
"""A token just minted may be refused for some seconds, until GitHub's replicas know it."""

REJECTED_FOR_S: Final = 5.0
"""An app that GitHub has refused does not ask again for so long: GitHub locks out whoever keeps failing
("Authenticating to the REST API", failed login limit)."""

SPARE_RETRIES: Final = 20.0
RETRY_REGAINED_EACH_S: Final = 3.0
RETRY_PER_SUCCESS: Final = 0.5
"""Retries come out of a purse, so that an outage is met with little more than the calls themselves."""

YOUNG_TOKEN_S: Final = 10.0
PROBE_TIMEOUT_S: Final = 5.0
_BACKOFF_BASE_S: Final = 0.5
_BACKOFF_CAP_S: Final = 4.0
_SERVER_ERROR, _UNAUTHORIZED, _NOT_FOUND, _OK = 500, 401, 404, 200
_NOT_YET: Final = frozenset({401, 403, 404})
_FACTS: Final = (
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-used",
    "x-ratelimit-reset",
    "x-ratelimit-resource",
    "retry-after",
    "x-github-request-id",
)
_VERDICTS: Final = (NotInstalledError, InstallationSuspendedError, PermissionNotGrantedError)
"""Refusals that only an app whose JWT was accepted can get."""

_RANDOM: Final = random.SystemRandom()
_log = logging.getLogger(__name__)


class GitHubClient:
    """GitHub as the use cases need it; implements ``broker.ports.GitHub``.

    Every method raises a child of ``GitHubError``; names and ids that GitHub could not have allowed
    are an ``InvalidRequestError`` before anything is sent.

    Args:
        base_url: REST API, ``https://api.github.com`` or ``https://HOST/api/v3``.
        web_url: where git goes, ``https://github.com``.
        signer: makes the app JWTs and is told which key and clock GitHub accepts; None while there is
            no app yet.
        clock: local wall time.
        transport: the test seam; the network if None.
        ca_file: PEM of the only authorities that are trusted; the public ones if None.
        proxy_url: egress proxy.
        connect_timeout_s: to connect, or to get a connection out of the pool.
        attempt_timeout_s: one attempt, from connecting to the last byte.
        budget_s: one call with all its attempts.
        retries: tries after the first, of what failed in transport or with 5xx.
        on_call: told of every attempt.
        sleep: waits that many seconds.
        jitter: a number from 0 to 1.

    Attributes:
        last_ok_at: when GitHub last gave a proper answer, by the local clock; None before.
        last_error_code: code of the trouble since then; None if there was none.
        observed_skew_s: seconds that GitHub's clock was last seen ahead of the local one.
    """

    def __init__(
        self,
        *,
        base_url: str,
        web_url: str,
        signer: Signer | None,
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
        ca_file: str | None = None,
        proxy_url: str | None = None,
        connect_timeout_s: float = 5.0,
        attempt_timeout_s: float = 10.0,
        budget_s: float = 20.0,
        retries: int = 3,
        on_call: OnCall | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._base_url = base_url
        self._web_url = web_url
        self._app_signer = signer
        self._clock = clock
        self._transport = transport
        self._ca_file = ca_file
        self._proxy_url = proxy_url
        self._attempt_timeout_s = attempt_timeout_s
        self._budget_s = budget_s
        self._retries = retries
        self._on_call = on_call
        self._sleep = sleep
        self._jitter = jitter
        self._timeout = httpx.Timeout(
            attempt_timeout_s, connect=connect_timeout_s, pool=connect_timeout_s
        ).as_dict()
        self._http: httpx.AsyncBaseTransport | None = None
        self._minted_at: dict[bytes, float] = {}
        self._purse = _RetryPurse()
        self._rejected: _Rejection | None = None
        self.last_ok_at: float | None = None
        self.last_error_code: str | None = None
        self.observed_skew_s: float | None = None

    async def open(self) -> None:
        """Make the connection pool; connects to nothing yet. The first call does it otherwise.

        Raises:
            SettingsError: the CA file or the proxy's address cannot be used.
        """
        self._pool()

    async def close(self) -> None:
        """Close all connections."""
        pool, self._http = self._http, None
        if pool is not None:
            await pool.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def app(self) -> App:
        """Return who the app is.

        Raises:
            GitHubError: GitHub refused or failed.
        """
        return self._understood(wire.parse_app, await self._as_app(wire.get_app(self._base_url)))

    async def convert_manifest(self, code: str) -> NewApp:
        """Exchange the code of the manifest flow for the app and its secrets, which works once.

        Raises:
            CodeSpentError: GitHub does not know the code (any more).
            GitHubError: GitHub refused or failed.
        """
        request = wire.post_conversion(self._base_url, code)
        return self._understood(wire.parse_new_app, await self._as_nobody(request))

    async def is_public(self, slug: str) -> bool:
        """Return whether strangers can see the app, and so install it.

        Raises:
            GitHubError: GitHub refused or failed; without a credential it is soon tired of an address.
        """
        return (await self._as_nobody(wire.get_public_page(self._base_url, slug))).ok

    async def hook_config(self) -> HookConfig:
        """Return where the app's webhook goes.

        Raises:
            GitHubError: GitHub refused or failed.
        """
        return self._understood(
            wire.parse_hook_config, await self._as_app(wire.get_hook_config(self._base_url))
        )

    async def installation(self, installation_id: int) -> Installation:
        """Return an installation by its id (``checked_at`` is 0).

        Raises:
            InstallationGoneError: there is none of that id.
            GitHubError: GitHub refused or failed.
        """
        reply = await self._as_app(wire.get_installation(self._base_url, installation_id))
        return self._understood(wire.parse_installation_by_id, reply)

    async def repository_installation(self, repository: RepositoryName) -> Installation:
        """Return the installation that reaches a repository (``checked_at`` is 0).

        Raises:
            NotInstalledError: no such repository, the app is not on it, or it was renamed.
            GitHubError: GitHub refused or failed.
        """
        reply = await self._as_app(wire.get_repository_installation(self._base_url, repository))
        return self._understood(partial(wire.parse_installation, owner=repository.owner), reply)

    async def owner_installation(self, owner: str) -> Installation:
        """Return the installation on an organization or user (``checked_at`` is 0).

        Raises:
            NotInstalledError: there is none, or the account was renamed.
            GitHubError: GitHub refused or failed.
        """
        try:
            reply = await self._as_app(wire.get_owner_installation(self._base_url, owner, user=False))
        except RenamedError:
            raise
        except NotInstalledError:
            reply = await self._as_app(wire.get_owner_installation(self._base_url, owner, user=True))
        return self._understood(partial(wire.parse_installation, owner=owner), reply)

    async def installations(self) -> Sequence[Installation]:
        """Return all installations of the app on organizations and users, each once.

        One on an enterprise is left out: no repository belongs to it. The budget of time is for each page.

        Raises:
            UntrustedReplyError: there is no end to the pages.
            GitHubError: GitHub refused or failed.
        """
        found: dict[int, Installation] = {}
        for page in range(1, MAX_PAGES + 1):
            reply = await self._as_app(wire.get_installations(self._base_url, page=page))
            items = self._understood(wire.parse_installations, reply)
            before = len(found)
            # Pages shift while they are read, so an installation may come twice; the later one counts.
            found.update((item.id, item) for item in items)
            if not wire.has_next_page(reply, len(items)):
                return tuple(each for each in found.values() if "/" not in each.login)
            if len(found) == before:
                break
        raise UntrustedReplyError(f"GitHub's list of installations does not end (page {page})")

    async def mint(
        self,
        installation_id: int,
        *,
        repositories: Sequence[str] | None,
        permissions: Sequence[str],
    ) -> MintedToken:
        """Mint a token for bare repository names (None: deliberately all) at level read.

        A mint that timed out may have succeeded; it is tried again, and the lost token just expires.

        Raises:
            InstallationGoneError: 404, the installation id is stale.
            UntrustedReplyError: the reply makes no sense; the token in it was revoked if it could be read.
            GitHubError: GitHub refused or failed.
        """
        request = wire.post_access_tokens(
            self._base_url, installation_id, repositories=repositories, permissions=permissions
        )
        reply = await self._as_app(request)
        try:
            minted = self._understood(wire.parse_minted, reply)
        except UntrustedReplyError:
            token = wire.find_token(reply)
            if token is not None:
                await self._discard(token)
            raise
        self._remember(minted.token)
        return minted

    async def revoke(self, token: Secret) -> None:
        """End a token at GitHub; one that is already dead (401) counts as done.

        Raises:
            GitHubError: GitHub refused or failed, so the token may still live.
        """
        delays = YOUNG_TOKEN_DELAYS_S if self._is_young(token) else ()
        reply = await self._as_installation(wire.delete_token(self._base_url), token, delays)
        error = _trouble(Route.REVOKE, reply)
        if error is not None:
            raise error

    async def installation_repositories(self, token: Secret, *, page: int) -> RepositoryPage:
        """Return one page (100) of what an installation token reaches, ``page`` from 1.

        Raises:
            GitHubError: GitHub refused or failed.
        """
        request = wire.get_installation_repositories(self._base_url, page=page)
        # The token may have been minted by another replica, so its age is not known here.
        reply = await self._as_installation(request, token, YOUNG_TOKEN_DELAYS_S)
        error = _trouble(request.route, reply)
        if error is not None:
            raise error
        return self._understood(partial(wire.parse_repository_page, page=page), reply)

    async def probe_git(self, token: Secret, repository: str) -> bool:
        """Return whether git's own endpoint accepts the token for ``owner/name`` already.

        Raises:
            GitHubUnavailableError: it gave no answer to that; one attempt is all.
        """
        request = wire.get_git_refs(self._web_url, repository)
        basic = httpx.BasicAuth("x-access-token", _text(token))
        authorization = next(basic.auth_flow(httpx.Request("GET", request.url))).headers["Authorization"]
        deadline = asyncio.get_running_loop().time() + min(PROBE_TIMEOUT_S, self._budget_s)
        reply = await self._attempt(request, authorization, deadline)
        if reply.status == _OK:
            return True
        if reply.status in _NOT_YET:
            return False
        raise GitHubUnavailableError(wire.describe(request.route, reply))

    def _understood(self, parse: Callable[[Reply], Parsed], reply: Reply) -> Parsed:
        """Return what a success says; one that makes no sense is GitHub's trouble as much as a refusal."""
        try:
            return parse(reply)
        except UntrustedReplyError as error:
            self.last_error_code = error.code
            raise

    @property
    def _signer(self) -> Signer:
        if self._app_signer is None:
            raise SettingsError(["there is no GitHub App yet: broker setup makes one"])
        return self._app_signer

    async def _as_nobody(self, request: Request) -> Reply:
        """Send without a credential and return a success."""
        reply = await self._send(request, "", asyncio.get_running_loop().time() + self._budget_s)
        error = _trouble(request.route, reply)
        if error is not None:
            raise error
        return reply

    async def _as_app(self, request: Request) -> Reply:
        """Send as the app and return a success; mend the clock or the key that GitHub refused."""
        if self._rejected is not None and self._rejected.holds(self._signer.numbers):
            raise GitHubRejectedAppError(self._rejected.cause)
        deadline = asyncio.get_running_loop().time() + self._budget_s
        signed = self._signer.signed(self._signer.active)
        refused: set[int] = set()
        waits = iter(PENDING_KEY_DELAYS_S)
        clock_learned = False
        while True:
            reply = await self._send(request, f"Bearer {signed.text}", deadline)
            error = wire.classify(request.route, reply)
            if refused and (error is None or isinstance(error, _VERDICTS)):
                self._keep(signed)
            if error is None:
                return reply
            fault = wire.jwt_fault(reply)
            if fault is JwtFault.CLOCK and not clock_learned and reply.date is not None:
                clock_learned = True
                self._learn_clock(reply.date)
            elif fault is JwtFault.KEY and (other := self._other_key(signed, refused)) is not None:
                signed = self._signer.signed(other)
                continue
            elif fault is JwtFault.PENDING and (delay := next(waits, None)) is not None:
                await self._pause(delay, deadline, error)
            else:
                if fault in {JwtFault.KEY, JwtFault.ISSUER, JwtFault.PENDING}:
                    self._rejected = _Rejection(
                        str(error), self._signer.numbers, asyncio.get_running_loop().time()
                    )
                raise error
            signed = self._signer.signed(signed.key_index)

    def _other_key(self, signed: SignedJwt, refused: set[int]) -> int | None:
        """Return the next key to try: the one in use, if another call has just switched, else in order."""
        refused.add(signed.key_index)
        candidates = (self._signer.active, *self._signer.numbers)
        return next((index for index in candidates if index not in refused), None)

    def _keep(self, signed: SignedJwt) -> None:
        if signed.key_index != self._signer.active:
            self._signer.keep(signed.key_index)
            fingerprint = self._signer.fingerprint(signed.key_index)
            _log.warning("GitHub refused the private key in use; switched to %s", fingerprint)

    def _learn_clock(self, github_now: float) -> None:
        self._signer.learn_clock(github_now)
        _log.warning(
            "GitHub refused the app JWT for its times; signing by GitHub's clock, %+.0f s from the local one",
            self._signer.clock_skew_s,
        )

    async def _as_installation(self, request: Request, token: Secret, delays: Sequence[float]) -> Reply:
        """Send with an installation token; a 401 is tried again after each delay, then returned."""
        deadline = asyncio.get_running_loop().time() + self._budget_s
        authorization = f"Bearer {_text(token)}"
        for delay in delays:
            reply = await self._send(request, authorization, deadline)
            if reply.status != _UNAUTHORIZED or not self._in_time(delay, deadline):
                return reply
            await self._sleep(delay)
        return await self._send(request, authorization, deadline)

    async def _send(self, request: Request, authorization: str, deadline: float) -> Reply:
        """Return a reply below 500; try again what failed, with full jitter, until the deadline."""
        attempt = 0
        while True:
            error: GitHubError | None
            try:
                reply = await self._attempt(request, authorization, deadline)
            except UntrustedReplyError:
                raise
            except GitHubUnavailableError as failed:
                error = failed
            else:
                error = wire.classify(request.route, reply) if reply.status >= _SERVER_ERROR else None
                if error is None:
                    self._purse.earn()
                    return reply
            if attempt >= self._retries or not self._purse.spend():
                raise error
            asked = error.retry_after_s
            delay = self._jitter() * min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2**attempt)
            await self._pause(delay if asked is None else asked, deadline, error)
            attempt += 1

    async def _pause(self, delay: float, deadline: float, error: GitHubError) -> None:
        if not self._in_time(delay, deadline):
            raise error
        await self._sleep(delay)

    def _in_time(self, delay: float, deadline: float) -> bool:
        return asyncio.get_running_loop().time() + delay < deadline

    async def _attempt(self, request: Request, authorization: str, deadline: float) -> Reply:
        """Send once and read the reply within its limit.

        Raises:
            GitHubUnavailableError: no reply; nothing of the request is in the text.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout_at(min(deadline, started + self._attempt_timeout_s)):
                reply = await self._exchange(request, authorization)
        except (TimeoutError, httpx.TimeoutException):
            error: GitHubError = GitHubTimeoutError(f"GitHub, {request.route}: no answer in time")
        except (httpx.ConnectError, httpx.ReadError, httpx.ProxyError) as failed:
            error = GitHubUnavailableError(f"GitHub, {request.route}: {type(failed).__name__}: {failed}")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as failed:
            # Other texts may quote the request's headers, so only the kind is told.
            error = GitHubUnavailableError(f"GitHub, {request.route}: {type(failed).__name__}")
        except UntrustedReplyError as failed:
            error = failed
        else:
            self._note(request.route, reply, _trouble(request.route, reply), loop.time() - started)
            return reply
        self._note(request.route, None, error, loop.time() - started)
        raise error from None

    async def _exchange(self, request: Request, authorization: str) -> Reply:
        # The transport itself: no cookies, redirects or hooks, which take as long as a step of the store.
        outgoing = httpx.Request(
            request.method,
            _url(request.url),
            headers={**request.headers, **({"Authorization": authorization} if authorization else {})},
            content=request.body,
            extensions={"timeout": self._timeout},
        )
        response = await self._pool().handle_async_request(outgoing)
        try:
            body = await _read(response, request.limit) if request.limit else b""
        finally:
            await response.aclose()
        if not response.is_success:
            # A gateway that quotes the request must not carry the credential into a log.
            for secret in (authorization.partition(" ")[2], request.secret):
                body = body.replace(secret.encode(), b"[redacted]") if secret else body
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, body[: request.limit], cut=len(body) > request.limit)

    def _note(self, route: Route, reply: Reply | None, error: GitHubError | None, seconds: float) -> None:
        """Keep what the readiness page and the metrics tell of GitHub."""
        if route is not Route.GIT_PROBE:
            if error is None or isinstance(error, _VERDICTS):
                self.last_ok_at = self._clock.now()
                self.last_error_code = None
            else:
                self.last_error_code = error.code
        headers = {} if reply is None else reply.headers
        if reply is not None and reply.date is not None:
            self.observed_skew_s = reply.date - self._clock.now()
        if self._on_call is not None:
            facts = {name: headers[name] for name in _FACTS if name in headers}
            self._on_call(str(route), "ok" if error is None else error.code, seconds, facts)

    async def _discard(self, token: Secret) -> None:
        self._remember(token)
        try:
            await self.revoke(token)
        except GitHubError as error:
            _log.error("a minted token that cannot be trusted could not be revoked: %s", error)
        else:
            _log.warning("a minted token that cannot be trusted was revoked")

    def _remember(self, token: Secret) -> None:
        """Remember when a token was minted, while a 401 may still mean that GitHub does not know it yet."""
        now = asyncio.get_running_loop().time()
        old = list(takewhile(lambda one: now - self._minted_at[one] >= YOUNG_TOKEN_S, self._minted_at))
        for digest in old:
            del self._minted_at[digest]
        self._minted_at[_digest(token)] = now

    def _is_young(self, token: Secret) -> bool:
        at = self._minted_at.get(_digest(token))
        return at is not None and asyncio.get_running_loop().time() - at < YOUNG_TOKEN_S

    def _pool(self) -> httpx.AsyncBaseTransport:
        if self._http is None:
            try:
                self._http = self._transport or self._new_pool()
            except (OSError, ValueError, ImportError, httpx.InvalidURL):
                # ssl.SSLError is an OSError. The proxy's address may hold a password: not quoted.
                raise SettingsError(
                    ["BROKER_GITHUB_CA_FILE or BROKER_PROXY_URL: cannot be read or used"]
                ) from None
        return self._http

    def _new_pool(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=True if self._ca_file is None else ssl.create_default_context(cafile=self._ca_file),
            proxy=self._proxy_url,
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS, max_keepalive_connections=20, keepalive_expiry=30.0
            ),
            trust_env=False,
        )


class _RetryPurse:
    """So many retries are left; time and successes put some back."""

    def __init__(self) -> None:
        self._left = SPARE_RETRIES
        self._at = 0.0

    def earn(self) -> None:
        self._left = min(SPARE_RETRIES, self._left + RETRY_PER_SUCCESS)

    def spend(self) -> bool:
        """Take one; False if there is none."""
        now = asyncio.get_running_loop().time()
        self._left = min(SPARE_RETRIES, self._left + (now - self._at) / RETRY_REGAINED_EACH_S)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(frozen=True, slots=True)
class _Rejection:
    """GitHub's "no" to the app, and the numbers of the keys it was about."""

    cause: str
    keys: tuple[int, ...]
    at: float

    def holds(self, keys: tuple[int, ...]) -> bool:
        return keys == self.keys and asyncio.get_running_loop().time() - self.at < REJECTED_FOR_S


def _trouble(route: Route, reply: Reply) -> GitHubError | None:
    """Return the error that a reply means for its call, where some refusals are a good answer."""
    if route is Route.REVOKE and reply.status == _UNAUTHORIZED:
        return None
    if route is Route.GIT_PROBE and reply.status in _NOT_YET:
        return None
    if route is Route.PUBLIC_PAGE and reply.status == _NOT_FOUND and reply.message is not None:
        return None
    return wire.classify(route, reply)


def _digest(token: Secret) -> bytes:
    return hashlib.sha256(token.reveal().encode()).digest()


def _text(token: Secret) -> str:
    """Return the token's text for a header.

    Raises:
        UntrustedReplyError: it cannot stand in one.
    """
    if not wire.sendable(token):
        raise UntrustedReplyError("a token holds characters that no header can carry")
    return token.reveal()


@lru_cache(128)
def _url(text: str) -> httpx.URL:
    """Return an address taken apart; mints and revocations go to few, over and over."""
    return httpx.URL(text)


async def _read(response: httpx.Response, limit: int) -> bytes:
    """Return the decoded body, cut one byte above the limit: a small reply may unpack to a huge one."""
    if response.is_stream_consumed:  # an in-memory transport has read and decoded it already
        return response.content[: limit + 1]
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise UntrustedReplyError("GitHub's reply has a content encoding that was not asked for")
    inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            body += chunk if inflate is None else inflate.decompress(chunk, limit + 1 - len(body))
        except zlib.error:
            raise UntrustedReplyError("GitHub's reply could not be unpacked") from None
        if len(body) > limit:
            break
    return bytes(body[: limit + 1])
