"""GitHub's REST wire: builds requests, parses replies, classifies refusals; pure, no I/O.

No address out of a reply is ever used: the app JWT would travel with it. ``Link`` is only asked
whether there is a next page, ``Location`` is not read at all.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from broker.errors import (
    CodeSpentError,
    GitHubError,
    GitHubRateLimitedError,
    GitHubRejectedAppError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InstallationGoneError,
    InstallationSuspendedError,
    InvalidRequestError,
    NotInstalledError,
    PermissionNotGrantedError,
    RenamedError,
    UntrustedReplyError,
)
from broker.model import (
    MAX_REPOSITORIES,
    App,
    HookConfig,
    Installation,
    MintedToken,
    NewApp,
    Repository,
    RepositoryName,
    RepositoryPage,
    Secret,
    parse_owner,
    parse_permissions,
)

API_VERSION: Final = "2022-11-28"
"""Pinned to the oldest version that is still served, because an unsupported one is answered 400.

github.com and GHE.com serve 2022-11-28 and 2026-03-10; a GHES release serves those that existed when
it was made, so only the older one works everywhere. Nothing that is read here differs between them.
"""

USER_AGENT: Final = "github-token-broker"
"""Required: without one GitHub's edge answers 403 in HTML."""

PAGE_SIZE: Final = 100
LIST_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a reply that holds repositories: up to 500 objects of several KB each."""

REPLY_LIMIT: Final = 1024 * 1024
MIN_WAIT_S: Final = 1.0
DEFAULT_WAIT_S: Final = 60.0
"""What GitHub asks for when it names no time ("Best practices for using the REST API")."""

MAX_WAIT_S: Final = 3600.0
_MESSAGE_LENGTH: Final = 200
_MAX_TEXT: Final = 200
_MAX_TIME: Final = 253402300800.0
"""The year 10000, in Unix seconds."""

_OK, _MULTIPLE_CHOICES, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 300, 401, 403, 404
_UNPROCESSABLE, _TOO_MANY = 422, 429

_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_CODE = re.compile(r"[A-Za-z0-9_-]{8,200}")
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_REL_NEXT = re.compile(r';\s*rel\s*=\s*(?:"[^",;]*\bnext\b[^",;]*"|next\b)', re.IGNORECASE)
_CREDENTIAL = re.compile(r"(?:gh[a-z]_|github_pat_|eyJ)[A-Za-z0-9._-]{16,}")
_TOKEN_FIELD = re.compile(rb'"token"\s*:\s*("(?:[^"\\]|\\.){1,8192}")')
_LIMIT_WORDS: Final = ("rate limit", "abuse detection", "spammed")
_CLOCK_WORDS: Final = ("'exp'", "'iat'", "expiration time", "issued at")
_ISSUER_WORDS: Final = ("'iss'", "issuer", "integration not found")

INSTALL_HINT: Final = (
    "The app is not installed on this owner, or cannot reach this repository, or there is no such "
    "repository. An owner has to install the app there, or add the repository to its installation."
)
SUSPENDED_HINT: Final = "The owner has suspended the app. An owner has to unsuspend it on GitHub."
PERMISSION_HINT: Final = (
    "The owner has not granted the app a permission that was asked for. Ask for fewer permissions, or "
    "have an owner accept the app's new permissions on GitHub."
)
ALLOW_LIST_HINT: Final = (
    "GitHub refuses the broker's network address for this owner (IP allow list). "
    "The owner or the broker's operator has to act."
)


class Route(StrEnum):
    """The calls the broker makes; also the label of metrics."""

    APP = "app"
    INSTALLATION = "installation"
    REPOSITORY_INSTALLATION = "repository_installation"
    OWNER_INSTALLATION = "owner_installation"
    INSTALLATIONS = "installations"
    MINT = "mint"
    REVOKE = "revoke"
    INSTALLATION_REPOSITORIES = "installation_repositories"
    GIT_PROBE = "git_probe"
    HOOK_CONFIG = "hook_config"
    PUBLIC_PAGE = "public_page"
    CONVERT_MANIFEST = "convert_manifest"

    @property
    def by_app(self) -> bool:
        """Whether the app itself asks (JWT), not an installation (token) or nobody."""
        return self not in _OTHER_ROUTES


_OTHER_ROUTES: Final = frozenset(
    {
        Route.REVOKE,
        Route.INSTALLATION_REPOSITORIES,
        Route.GIT_PROBE,
        Route.PUBLIC_PAGE,
        Route.CONVERT_MANIFEST,
    }
)
_LOOK_UPS: Final = frozenset({Route.REPOSITORY_INSTALLATION, Route.OWNER_INSTALLATION})


class JwtFault(StrEnum):
    """Why GitHub refused an app JWT, as far as its message tells."""

    CLOCK = "clock"
    KEY = "key"
    PENDING = "pending"
    ISSUER = "issuer"


_CAUSES: Final = {
    JwtFault.CLOCK: "the clocks differ and could not be reconciled",
    JwtFault.KEY: "no configured private key is one of this app's",
    JwtFault.PENDING: "GitHub knows no public key of this app (yet)",
    JwtFault.ISSUER: "the client id or app id is not one of an app on this GitHub",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its credential.

    Attributes:
        secret: part of the address that may not come back in an error's text.
    """

    route: Route
    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str]
    body: bytes | None = None
    limit: int = REPLY_LIMIT
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. The body may hold a token, so the repr does not show it.

    Attributes:
        headers: names in lower case.
        body: at most the request's limit.
        cut: True when GitHub sent more than the limit.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    cut: bool = False

    @property
    def ok(self) -> bool:
        """Whether the status is one of success."""
        return _OK <= self.status < _MULTIPLE_CHOICES

    @property
    def date(self) -> float | None:
        """GitHub's clock, Unix seconds."""
        return parse_http_date(self.headers.get("date", ""))

    @property
    def request_id(self) -> str:
        """GitHub's id of the call, fit for a log."""
        return _printable(self.headers.get("x-github-request-id", ""))[:100]

    def json(self) -> object:
        """Return the parsed body, or None if it is not (all of) a JSON document."""
        if self.cut:
            return None
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def message(self) -> str | None:
        """GitHub's own ``message``, fit for a log; None if the body is not GitHub's error envelope."""
        document = self.json()
        text = document.get("message") if isinstance(document, dict) else None
        return _printable(text)[:_MESSAGE_LENGTH] if isinstance(text, str) else None


def _printable(text: str) -> str:
    """Return ``text`` without control, format and surrogate characters, and without credentials."""
    kept = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text[: 64 * 1024])
    return _CREDENTIAL.sub("[redacted]", kept)


# --- requests ------------------------------------------------------------------------------------


def join(base_url: str, *segments: str) -> str:
    """Return the base address and path segments, percent-encoded, joined with one slash each.

    ``urljoin`` would drop the ``v3`` of ``https://host/api/v3``.
    """
    return "/".join((base_url.rstrip("/"), *(quote(segment, safe="") for segment in segments)))


def parse_id(value: object) -> int:
    """Return an id that GitHub could have given.

    Raises:
        InvalidRequestError: it is not a positive integer below 2**63.
    """
    if not _is_id(value):
        raise InvalidRequestError(public="An id is a positive integer below 2**63.")
    return int(str(value))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _api(route: Route, method: str, url: str, *, body: bytes | None = None, limit: int) -> Request:
    headers = {
        "Accept": "application/vnd.github+json",
        "Accept-Encoding": "gzip",
        "User-Agent": USER_AGENT,
        "X-GitHub-Api-Version": API_VERSION,
    }
    if body is not None:
        headers["Content-Type"] = "application/json"
    return Request(route, method, url, headers, body, limit)


def get_app(base_url: str) -> Request:
    """``GET /app``."""
    return _api(Route.APP, "GET", join(base_url, "app"), limit=REPLY_LIMIT)


def get_repository_installation(base_url: str, repository: RepositoryName) -> Request:
    """``GET /repos/{owner}/{repo}/installation``.

    Raises:
        InvalidRequestError: the name is not one that GitHub allows.
    """
    name = RepositoryName.parse(str(repository))
    url = join(base_url, "repos", name.owner, name.name, "installation")
    return _api(Route.REPOSITORY_INSTALLATION, "GET", url, limit=REPLY_LIMIT)


def get_owner_installation(base_url: str, owner: str, *, user: bool) -> Request:
    """``GET /orgs/{org}/installation`` or ``GET /users/{username}/installation``.

    Raises:
        InvalidRequestError: the name is not one that GitHub allows.
    """
    url = join(base_url, "users" if user else "orgs", parse_owner(owner), "installation")
    return _api(Route.OWNER_INSTALLATION, "GET", url, limit=REPLY_LIMIT)


def get_installation(base_url: str, installation_id: int) -> Request:
    """``GET /app/installations/{id}``.

    Raises:
        InvalidRequestError: the id is not one that GitHub could have given.
    """
    url = join(base_url, "app", "installations", str(parse_id(installation_id)))
    return _api(Route.INSTALLATION, "GET", url, limit=REPLY_LIMIT)


def get_installations(base_url: str, *, page: int) -> Request:
    """``GET /app/installations``, 100 a page from 1."""
    url = f"{join(base_url, 'app', 'installations')}?per_page={PAGE_SIZE}&page={parse_id(page)}"
    return _api(Route.INSTALLATIONS, "GET", url, limit=LIST_LIMIT)


def post_access_tokens(
    base_url: str,
    installation_id: int,
    *,
    repositories: Sequence[str] | None,
    permissions: Sequence[str],
) -> Request:
    """``POST /app/installations/{id}/access_tokens``: bare repository names, every level ``read``.

    An empty list or map, like a missing one, means *everything* to GitHub, so neither is ever sent.

    Raises:
        InvalidRequestError: an empty list, more than 500 names, or a name that GitHub does not allow.
    """
    levels = dict.fromkeys(permissions, "read")
    parse_permissions(levels)
    wanted: dict[str, object] = {"permissions": levels}
    if repositories is not None:
        if not repositories or len(repositories) > MAX_REPOSITORIES:
            raise InvalidRequestError(public=f"repositories: at least one, at most {MAX_REPOSITORIES}.")
        for name in repositories:
            # "owner/app" in this field must never pass for "app": only a bare name parses here.
            RepositoryName.parse(f"owner/{name}")
        wanted["repositories"] = list(repositories)
    url = join(base_url, "app", "installations", str(parse_id(installation_id)), "access_tokens")
    return _api(Route.MINT, "POST", url, body=json.dumps(wanted).encode(), limit=LIST_LIMIT)


def delete_token(base_url: str) -> Request:
    """``DELETE /installation/token``: the token that authorizes it ends."""
    return _api(Route.REVOKE, "DELETE", join(base_url, "installation", "token"), limit=REPLY_LIMIT)


def get_installation_repositories(base_url: str, *, page: int) -> Request:
    """``GET /installation/repositories``, 100 a page from 1."""
    url = f"{join(base_url, 'installation', 'repositories')}?per_page={PAGE_SIZE}&page={parse_id(page)}"
    return _api(Route.INSTALLATION_REPOSITORIES, "GET", url, limit=LIST_LIMIT)


def get_git_refs(web_url: str, repository: str) -> Request:
    """What ``git ls-remote`` asks first.

    Raises:
        InvalidRequestError: the name is not one that GitHub allows.
    """
    name = RepositoryName.parse(repository)
    url = f"{join(web_url, name.owner, name.name)}.git/info/refs?service=git-upload-pack"
    return Request(Route.GIT_PROBE, "GET", url, {"Accept": "*/*", "User-Agent": USER_AGENT}, None, 0)


def get_hook_config(base_url: str) -> Request:
    """``GET /app/hook/config``: where the app's webhook goes."""
    return _api(Route.HOOK_CONFIG, "GET", join(base_url, "app", "hook", "config"), limit=REPLY_LIMIT)


def get_public_page(base_url: str, slug: str) -> Request:
    """``GET /apps/{app_slug}``: without a credential it is there for public apps only."""
    return _api(Route.PUBLIC_PAGE, "GET", join(base_url, "apps", slug), limit=REPLY_LIMIT)


def post_conversion(base_url: str, code: str) -> Request:
    """``POST /app-manifests/{code}/conversions``: the app and its secrets, once, without a credential.

    Raises:
        InvalidRequestError: the code is not one that GitHub could have given.
    """
    if not _CODE.fullmatch(code):
        raise InvalidRequestError(public="The code is not one that GitHub gives.")
    url = join(base_url, "app-manifests", code, "conversions")
    return replace(_api(Route.CONVERT_MANIFEST, "POST", url, limit=REPLY_LIMIT), secret=code)


def sendable(token: Secret) -> bool:
    """Return whether a token can stand in a header: all that is assumed of its alphabet."""
    return _PRINTABLE.fullmatch(token.reveal()) is not None


# --- replies -------------------------------------------------------------------------------------


@lru_cache(16)
def parse_http_date(text: str) -> float | None:
    """Return an HTTP date as Unix seconds, or None."""
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def parse_app(reply: Reply) -> App:
    """Return who the app is.

    Raises:
        UntrustedReplyError: the reply is not an app.
    """
    body = _object(reply.json(), "app")
    owner = body.get("owner")
    name = (owner.get("login") or owner.get("slug")) if isinstance(owner, dict) else None
    kind = owner.get("type") if isinstance(owner, dict) else None
    events = body.get("events", [])
    if not isinstance(events, list) or not all(isinstance(event, str) for event in events):
        raise _untrusted("app.events")
    public = body.get("public")
    return App(
        id=_id(body, "id"),
        slug=_text(body, "slug"),
        owner=name if isinstance(name, str) and _PRINTABLE.fullmatch(name) else "",
        permissions=_levels(body, "permissions"),
        events=tuple(events),
        public=public if isinstance(public, bool) else None,
        owner_kind=kind if isinstance(kind, str) and _PRINTABLE.fullmatch(kind) else "",
    )


def parse_hook_config(reply: Reply) -> HookConfig:
    """Return where the app's webhook goes; an app without one has no address.

    Raises:
        UntrustedReplyError: the reply is not a webhook's configuration.
    """
    body = _object(reply.json(), "hook config")
    url = body.get("url") or ""
    if not isinstance(url, str):
        raise _untrusted("hook.url")
    return HookConfig(
        url=_printable(url)[:_MAX_TEXT],
        signed=bool(body.get("secret")),
        verified=str(body.get("insecure_ssl", "0")) != "1",
    )


def parse_new_app(reply: Reply) -> NewApp:
    """Return the app that a manifest became, with the secrets that GitHub shows only now.

    Raises:
        UntrustedReplyError: the reply is not a new app.
    """
    body = _object(reply.json(), "new app")
    pem, secret = body.get("pem"), body.get("webhook_secret")
    if not isinstance(pem, str) or not pem.strip():
        raise _untrusted("pem")
    client_id = body.get("client_id")
    return NewApp(
        app=parse_app(reply),
        client_id=client_id if isinstance(client_id, str) and _PRINTABLE.fullmatch(client_id) else "",
        private_key=Secret(pem),
        webhook_secret=Secret(secret) if isinstance(secret, str) and secret else None,
    )


def parse_installation(reply: Reply, *, owner: str) -> Installation:
    """Return the installation that a look-up found on ``owner``.

    Raises:
        UntrustedReplyError: the reply is not an installation.
        RenamedError: it is one of another account: the name that was asked for is an old one.
    """
    found = _installation(_object(reply.json(), "installation"))
    if found.login.lower() != owner.lower():
        raise RenamedError("look-up: GitHub answered with the installation of another account")
    return found


def parse_installation_by_id(reply: Reply) -> Installation:
    """Return the installation of an id, whoever owns it; see ``parse_installations`` for enterprises.

    Raises:
        UntrustedReplyError: the reply is not an installation.
    """
    return _installation(_object(reply.json(), "installation"))


def parse_installations(reply: Reply) -> tuple[Installation, ...]:
    """Return a page of installations.

    One on an enterprise has no login; ``enterprises/<slug>`` stands in, which no owner can be called.

    Raises:
        UntrustedReplyError: the reply is not a list of installations.
    """
    body = reply.json()
    if not isinstance(body, list):
        raise _untrusted("installations")
    return tuple(_installation(_object(item, "installation")) for item in body)


def _installation(body: Mapping[str, object]) -> Installation:
    account = body.get("account")
    if isinstance(account, dict):
        account_id = _id(account, "id")
        if isinstance(account.get("login"), str):
            login = _text(account, "login")
        else:
            login = "enterprises/" + _text(account, "slug")
    else:
        # ``account`` is nullable; ``target_id`` names the same account.
        account_id = _id(body, "target_id")
        login = f"accounts/{account_id}"
    suspended_at = body.get("suspended_at")
    return Installation(
        id=_id(body, "id"),
        account_id=account_id,
        login=login,
        selection=_selection(body),
        permissions=_levels(body, "permissions"),
        suspended=suspended_at is not None and parse_time(suspended_at) > 0,
    )


def parse_minted(reply: Reply) -> MintedToken:
    """Return what a mint gave, not yet compared with what was asked for.

    Raises:
        UntrustedReplyError: something is missing or of a wrong type; ``find_token`` may find what to revoke.
    """
    body = _object(reply.json(), "token reply")
    token = body.get("token")
    if not isinstance(token, str) or not _PRINTABLE.fullmatch(token):
        raise _untrusted("token")
    expires_at = parse_time(body.get("expires_at"))
    echoed = body.get("repositories")
    if echoed is not None and not isinstance(echoed, list):
        raise _untrusted("repositories")
    return MintedToken(
        token=Secret(token),
        expires_at=expires_at,
        permissions=_levels(body, "permissions"),
        repositories=None if echoed is None else tuple(_full_name(item) for item in echoed),
        selection=None if body.get("repository_selection") is None else _selection(body),
        github_now=reply.date,
    )


def find_token(reply: Reply) -> Secret | None:
    """Return the token in a mint's reply that could not be trusted, or was cut, so that it can be revoked."""
    body = reply.json()
    text = body.get("token") if isinstance(body, dict) else None
    if not isinstance(text, str) and (found := _TOKEN_FIELD.search(reply.body)):
        try:
            text = json.loads(found[1])
        except ValueError:
            return None
    return Secret(text) if isinstance(text, str) and _PRINTABLE.fullmatch(text) else None


def parse_repository_page(reply: Reply, *, page: int) -> RepositoryPage:
    """Return a page of repositories; those whose names nobody could ask for are left out.

    Raises:
        UntrustedReplyError: the reply is not a page of repositories.
    """
    body = _object(reply.json(), "repositories reply")
    items = body.get("repositories")
    if not isinstance(items, list):
        raise _untrusted("repositories")
    found = []
    for item in items:
        repository = _object(item, "repository")
        try:
            full_name = str(RepositoryName.parse(_text(repository, "full_name")))
        except InvalidRequestError:
            continue
        flags = {}
        for name in ("private", "archived"):
            flag = repository.get(name)
            if not isinstance(flag, bool):
                raise _untrusted(f"repository.{name}")
            flags[name] = flag
        branch = repository.get("default_branch")
        if not isinstance(branch, str):
            raise _untrusted("repository.default_branch")
        found.append(Repository(full_name, flags["private"], _printable(branch), flags["archived"]))
    more = has_next_page(reply, len(items))
    return RepositoryPage(tuple(found), page + 1 if more else None)


def has_next_page(reply: Reply, count: int) -> bool:
    """Return whether to ask for the next page: ``Link`` says so, or it is gone and this page is full."""
    link = reply.headers.get("link")
    return count >= PAGE_SIZE if link is None else _REL_NEXT.search(link) is not None


def parse_time(value: object) -> float:
    """Return GitHub's ISO 8601 text, or epoch seconds, as Unix seconds.

    Raises:
        UntrustedReplyError: it is neither.
    """
    moment = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        moment = float(value) if abs(value) < _MAX_TIME else math.nan
    elif isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
            moment = parsed.timestamp() if parsed.tzinfo else math.nan
        except (ValueError, OverflowError):
            pass
    if not 0 < moment < _MAX_TIME:
        raise _untrusted("a time")
    return moment


def _untrusted(what: str) -> UntrustedReplyError:
    return UntrustedReplyError(f"GitHub's reply: {what} is missing, cut or of a wrong type")


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _untrusted(what)
    return value


def _id(body: Mapping[str, object], name: str) -> int:
    value = body.get(name)
    if not _is_id(value):
        raise _untrusted(name)
    return int(str(value))


def _text(body: Mapping[str, object], name: str) -> str:
    return _word(body.get(name), name)


def _word(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not _PRINTABLE.fullmatch(value):
        raise _untrusted(name)
    return value


def _selection(body: Mapping[str, object]) -> str:
    value = _text(body, "repository_selection")
    if value not in {"all", "selected"}:
        raise _untrusted("repository_selection")
    return value


def _levels(body: Mapping[str, object], name: str) -> dict[str, str]:
    """Return an open map of permissions: GitHub knows more names than its schema lists."""
    levels = body.get(name)
    if not isinstance(levels, dict):
        raise _untrusted(name)
    return {_word(key, name): _word(level, name) for key, level in levels.items()}


def _full_name(item: object) -> str:
    try:
        return str(RepositoryName.parse(_text(_object(item, "repository"), "full_name")))
    except InvalidRequestError:
        raise _untrusted("repository.full_name") from None


# --- refusals ------------------------------------------------------------------------------------


def jwt_fault(reply: Reply) -> JwtFault | None:
    """Return what was wrong with the app JWT; None if the reply does not speak of it.

    The messages are those collected from GitHub; one that is not known counts as the key's fault,
    because trying the other keys does no harm.
    """
    message = (reply.message or "").lower()
    if reply.status == _NOT_FOUND:
        return JwtFault.ISSUER if "integration not found" in message else None
    if reply.status != _UNAUTHORIZED:
        return None
    if "must generate a public key" in message:
        return JwtFault.PENDING
    if any(word in message for word in _CLOCK_WORDS):
        return JwtFault.CLOCK
    if any(word in message for word in _ISSUER_WORDS):
        return JwtFault.ISSUER
    return JwtFault.KEY


def describe(route: Route, reply: Reply) -> str:
    """Return the operator's line: call, status, GitHub's words and request id; no secret."""
    said = "no GitHub error body" if reply.message is None else f'"{reply.message}"'
    return f"GitHub, {route}: {reply.status} {said} (request id {reply.request_id or '-'})"


def classify(route: Route, reply: Reply) -> GitHubError | None:
    """Return the error that a reply means, or None for a success.

    Rate limits first, by headers: they hide behind 403, 429 and 422. A 404 or redirect is a verdict
    only in GitHub's own envelope; absence is never concluded from a proxy's page.
    """
    if reply.ok:
        return None
    detail = describe(route, reply)
    limited = _rate_limited(route, reply, detail)
    if limited is not None:
        return limited
    verdict = _VERDICTS.get(reply.status)
    error = verdict(route, reply, detail) if verdict else None
    return error or GitHubUnavailableError(detail, retry_after_s=_retry_after(reply))


def _rate_limited(route: Route, reply: Reply, detail: str) -> GitHubError | None:
    if reply.status not in {_FORBIDDEN, _UNPROCESSABLE, _TOO_MANY}:
        return None
    message = (reply.message or "").lower()
    wait = _retry_after(reply)
    if wait is None and reply.headers.get("x-ratelimit-remaining", "").strip() == "0":
        wait = _until_reset(reply)
    worded = reply.status == _TOO_MANY or any(word in message for word in _LIMIT_WORDS)
    if wait is None and not worded:
        return None
    return GitHubRateLimitedError(
        detail,
        retry_after_s=DEFAULT_WAIT_S if wait is None else wait,
        whole_app=route.by_app and "for installation id" not in message,
    )


def _retry_after(reply: Reply) -> float | None:
    """Return ``Retry-After`` (seconds or HTTP date) as seconds from now, within bounds."""
    text = reply.headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return _bounded(float(text))
    until, now = parse_http_date(text), reply.date
    return None if until is None or now is None else _bounded(until - now)


def _until_reset(reply: Reply) -> float:
    text, now = reply.headers.get("x-ratelimit-reset", "").strip(), reply.date
    if now is None or not _SECONDS.fullmatch(text):
        return DEFAULT_WAIT_S
    return _bounded(float(text) - now)


def _bounded(seconds: float) -> float:
    return min(max(seconds, MIN_WAIT_S), MAX_WAIT_S)


def _refused_jwt(route: Route, reply: Reply, detail: str) -> GitHubError | None:
    if not route.by_app:
        return None
    return GitHubRejectedAppError(f"{detail}: {_CAUSES[jwt_fault(reply) or JwtFault.KEY]}")


def _forbidden(route: Route, reply: Reply, detail: str) -> GitHubError | None:
    if reply.message is None:
        return None  # a proxy's page, or GitHub's edge
    message = reply.message.lower()
    if "ip allow list" in message or "ip address is not permitted" in message:
        return GitHubRejectedAppError(detail, public=ALLOW_LIST_HINT)
    if "suspended" in message and route not in {Route.APP, Route.INSTALLATIONS, Route.HOOK_CONFIG}:
        return InstallationSuspendedError(detail, public=SUSPENDED_HINT)
    if route.by_app:
        return GitHubRejectedAppError(detail)
    if "not accessible by integration" in message:
        return PermissionNotGrantedError(detail, public=PERMISSION_HINT)
    return None


def _not_found(route: Route, reply: Reply, detail: str) -> GitHubError | None:
    if reply.message is None:
        return None
    if jwt_fault(reply) is not None and route.by_app:
        return _refused_jwt(route, reply, detail)
    error: GitHubError | None = None
    if route in {Route.MINT, Route.INSTALLATION, Route.INSTALLATION_REPOSITORIES}:
        error = InstallationGoneError(detail, public=INSTALL_HINT)
    elif route in _LOOK_UPS:
        error = NotInstalledError(detail, public=INSTALL_HINT)
    elif route is Route.CONVERT_MANIFEST:
        error = CodeSpentError(detail)
    elif route in {Route.APP, Route.INSTALLATIONS, Route.HOOK_CONFIG}:
        error = GitHubRejectedAppError(f"{detail}: is the API address right?")
    return error


def _moved(route: Route, reply: Reply, detail: str) -> GitHubError | None:
    # A page that is not JSON is a proxy's, or a plain http address sent on to https.
    if route in _LOOK_UPS and (not reply.body or isinstance(reply.json(), dict)):
        return RenamedError(detail)
    return GitHubUnavailableError(f"{detail}: redirects are not followed; is the API address right?")


def _unprocessable(route: Route, reply: Reply, detail: str) -> GitHubError | None:
    message = (reply.message or "").lower()
    if route is not Route.MINT:
        return None
    if "permissions" in message:
        return PermissionNotGrantedError(detail, public=PERMISSION_HINT)
    if "repository" in message or "repositories" in message:
        return NotInstalledError(detail, public=INSTALL_HINT)
    return None


def _timed_out(_route: Route, reply: Reply, detail: str) -> GitHubError | None:
    return GitHubTimeoutError(detail, retry_after_s=_retry_after(reply))


_VERDICTS: Final[Mapping[int, Callable[[Route, Reply, str], GitHubError | None]]] = {
    301: _moved,
    302: _moved,
    303: _moved,
    307: _moved,
    308: _moved,
    _UNAUTHORIZED: _refused_jwt,
    _FORBIDDEN: _forbidden,
    _NOT_FOUND: _not_found,
    408: _timed_out,
    _UNPROCESSABLE: _unprocessable,
    504: _timed_out,
}
