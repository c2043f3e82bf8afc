"""GitHub's REST routes for Apps and installation tokens, judged strictly; no I/O."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, urlencode

from broker.sandbox import shapes
from broker.sandbox.exchange import API_VERSIONS, LATEST_VERSION, RefusalError, Reply, Route
from broker.sandbox.state import LEVELS, Quota

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.sandbox.exchange import Exchange
    from broker.sandbox.state import (
        AccountKind,
        EmulatedInstallation,
        EmulatedRepository,
        EmulatedToken,
        Permissions,
    )

Item = TypeVar("Item")

NOT_GRANTED = "The permissions requested are not granted to this installation."
NOT_ACCESSIBLE = (
    "There is at least one repository that does not exist or is not accessible to the parent installation."
)
SUSPENDED = "This installation has been suspended"
BY_INTEGRATION = "Resource not accessible by integration"

MOST_REPOSITORIES = 500
_MINT_DOCS = "https://docs.github.com/rest/reference/apps#create-an-installation-access-token-for-an-app"
_REDIRECT_DOCS = "https://docs.github.com/rest/guides/best-practices-for-using-the-rest-api#follow-redirects"
_PAGE, _LARGEST_PAGE = 30, 100
_ANONYMOUS_LIMIT = 60
_READ_ONLY = frozenset({"organization_events", "organization_plan"})
_WRITE_ONLY = frozenset({"workflows", "profile"})


def routes() -> list[Route]:
    """Return the routes below the API's prefix."""
    installation = "/app/installations/{installation_id}"
    return [
        Route("app", "GET", "/app", _app, credential="jwt"),
        Route("installations", "GET", "/app/installations", _installations, credential="jwt"),
        Route("installation_requests", "GET", "/app/installation-requests", _requests, credential="jwt"),
        Route("installation", "GET", installation, _installation, credential="jwt"),
        Route("delete_installation", "DELETE", installation, _delete_installation, credential="jwt"),
        Route("suspend", "PUT", f"{installation}/suspended", _suspend, credential="jwt"),
        Route("unsuspend", "DELETE", f"{installation}/suspended", _unsuspend, credential="jwt"),
        Route("mint", "POST", f"{installation}/access_tokens", _mint, credential="jwt"),
        Route(
            "repo_installation",
            "GET",
            "/repos/{owner}/{repo}/installation",
            _repo_installation,
            credential="jwt",
        ),
        Route(
            "repo_installation_by_id",
            "GET",
            "/repositories/{repository_id}/installation",
            _repo_installation_by_id,
            credential="jwt",
        ),
        Route(
            "org_installation",
            "GET",
            "/orgs/{login}/installation",
            _account_installation("Organization"),
            credential="jwt",
        ),
        Route(
            "user_installation",
            "GET",
            "/users/{login}/installation",
            _account_installation("User"),
            credential="jwt",
        ),
        Route(
            "enterprise_installation",
            "GET",
            "/enterprises/{login}/installation",
            _account_installation("Enterprise"),
            credential="jwt",
        ),
        Route(
            "installation_repositories", "GET", "/installation/repositories", _reachable, credential="token"
        ),
        Route("revoke", "DELETE", "/installation/token", _revoke, credential="token"),
        Route("rate_limit", "GET", "/rate_limit", _rate_limit, credential="optional"),
        Route("meta", "GET", "/meta", _meta, credential="optional"),
        Route("versions", "GET", "/versions", _versions, credential="optional"),
        Route("app_by_slug", "GET", "/apps/{slug}", _app_by_slug, credential="optional"),
        Route("user", "GET", "/user", _user, credential="token"),
        Route("repo", "GET", "/repos/{owner}/{repo}", _repo, credential="optional"),
        Route("repo_by_id", "GET", "/repositories/{repository_id}", _repo_by_id, credential="optional"),
        Route("issues", "GET", "/repos/{owner}/{repo}/issues", _empty_list("issues"), credential="optional"),
        Route(
            "pulls", "GET", "/repos/{owner}/{repo}/pulls", _empty_list("pull_requests"), credential="optional"
        ),
    ]


# the app and its installations


def _app(exchange: Exchange) -> Reply:
    app = exchange.signer
    count = sum(i.app is app for i in exchange.state.installations.values())
    return Reply.of_json(200, shapes.app(app, exchange.urls, installations=count))


def _installations(exchange: Exchange) -> Reply:
    since = shapes.epoch(exchange.query("since") or "")
    mine = [
        i
        for _, i in sorted(exchange.state.installations.items())
        if i.app is exchange.signer and (since is None or i.updated_at >= since)
    ]
    page, headers = _page(exchange, mine)
    return Reply.of_json(200, [shapes.installation(i, exchange.urls) for i in page], headers)


def _requests(_exchange: Exchange) -> Reply:
    return Reply.of_json(200, [])


def _installation(exchange: Exchange) -> Reply:
    return Reply.of_json(200, shapes.installation(_own(exchange), exchange.urls))


def _delete_installation(exchange: Exchange) -> Reply:
    exchange.state.uninstall(_own(exchange))
    return Reply.of_json(202, {}) if exchange.version == LATEST_VERSION else Reply(204)


def _suspend(exchange: Exchange) -> Reply:
    exchange.state.suspend(_own(exchange))
    return Reply(204)


def _unsuspend(exchange: Exchange) -> Reply:
    exchange.state.unsuspend(_own(exchange))
    return Reply(204)


def _own(exchange: Exchange) -> EmulatedInstallation:
    number = _number(exchange.parameters["installation_id"])
    found = exchange.state.installations.get(number)
    if found is None or found.app is not exchange.signer:
        _not_found()
    exchange.call.installation_id = found.id
    return found


def _account_installation(kind: AccountKind) -> Callable[[Exchange], Reply]:
    def handler(exchange: Exchange) -> Reply:
        account = exchange.state.find_account(exchange.parameters["login"])
        if account is None or account.kind != kind:
            _not_found()
        found = exchange.state.find_installation(exchange.signer, account)
        if found is None:
            _not_found()
        exchange.call.installation_id = found.id
        return Reply.of_json(200, shapes.installation(found, exchange.urls))

    return handler


def _repo_installation(exchange: Exchange) -> Reply:
    name = "{owner}/{repo}".format_map(exchange.parameters)
    current = exchange.state.find_repository(name)
    if current is not None:
        return _installation_of(exchange, current)
    moved = exchange.state.find_moved(name)
    if moved is None:
        _not_found()
    # refuses with 404 what the app cannot see at its new place either
    _installation_of(exchange, moved)
    return _moved_permanently(exchange, moved, "/installation")


def _repo_installation_by_id(exchange: Exchange) -> Reply:
    found = exchange.state.repositories.get(_number(exchange.parameters["repository_id"]))
    if found is None:
        _not_found()
    return _installation_of(exchange, found)


def _installation_of(exchange: Exchange, repository: EmulatedRepository) -> Reply:
    found = exchange.state.find_installation(exchange.signer, repository.owner)
    if found is None or not found.covers(repository):
        _not_found()
    exchange.call.installation_id = found.id
    return Reply.of_json(200, shapes.installation(found, exchange.urls))


# minting


def _mint(exchange: Exchange) -> Reply:
    installation = _own(exchange)
    asked = _object(exchange.body)
    if installation.suspended_at is not None:
        raise RefusalError(403, SUSPENDED, docs=_MINT_DOCS)
    repositories = _asked_repositories(exchange, installation, asked)
    permissions = _asked_permissions(installation, asked)
    token = exchange.state.mint(installation, repositories=repositories, permissions=permissions)
    reply: dict[str, Any] = {
        "token": token.text,
        "expires_at": shapes.timestamp(token.expires_at),
        "permissions": dict(token.permissions),
        "repository_selection": "all"
        if token.repositories is None and installation.selection is None
        else "selected",
    }
    if "repositories" in asked or "repository_ids" in asked:
        reply["repositories"] = [
            shapes.repository(r, exchange.urls, version=exchange.version)
            for r in _reached(exchange, token, even_foreign=True)
        ]
    if "single_file" in token.permissions:
        reply |= {"single_file": None, "has_multiple_single_files": False, "single_file_paths": []}
    return Reply.of_json(201, reply)


def _object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusalError(400, "Problems parsing JSON", docs=_MINT_DOCS) from None
    if not isinstance(asked, dict):
        raise RefusalError(400, "Body should be a JSON object", docs=_MINT_DOCS)
    return asked


def _asked_repositories(
    exchange: Exchange, installation: EmulatedInstallation, asked: dict[str, Any]
) -> list[EmulatedRepository] | None:
    names, ids = asked.get("repositories", []), asked.get("repository_ids", [])
    for key, value, kind in (("repositories", names, str), ("repository_ids", ids, int)):
        if not isinstance(value, list):
            _invalid(f"For 'properties/{key}', {_ruby(value)} is not an array.")
        for item in value:
            if type(item) is not kind:
                wanted = "a string" if kind is str else "an integer"
                _invalid(f"For 'items', {_ruby(item)} is not {wanted}.")
    if names and ids:
        _invalid("Only one of 'repositories' and 'repository_ids' may be given.")
    if len(names) + len(ids) > MOST_REPOSITORIES:
        _invalid(f"No more than {MOST_REPOSITORIES} repositories may be given.")
    if not names and not ids:
        # an empty list means everything, as if it had been left out
        return None
    chosen: list[EmulatedRepository] = []
    for name in names:
        found = exchange.state.find_repository(f"{installation.account.login}/{name}")
        if found is not None and exchange.state.mint_names_case_sensitive and found.name != name:
            found = None
        chosen.append(_accessible(installation, found))
    chosen += [_accessible(installation, exchange.state.repositories.get(number)) for number in ids]
    return chosen


def _accessible(
    installation: EmulatedInstallation, repository: EmulatedRepository | None
) -> EmulatedRepository:
    if repository is None or not installation.covers(repository):
        raise RefusalError(422, NOT_ACCESSIBLE, docs=_MINT_DOCS)
    return repository


def _asked_permissions(installation: EmulatedInstallation, asked: dict[str, Any]) -> Permissions | None:
    permissions = asked.get("permissions", {})
    if not isinstance(permissions, dict):
        _invalid(f"For 'properties/permissions', {_ruby(permissions)} is not an object.")
    if not permissions:
        # an empty map means everything, as if it had been left out
        return None
    for name, level in permissions.items():
        granted = LEVELS.get(installation.permissions.get(name, ""), 0)
        wanted = LEVELS.get(level) if isinstance(level, str) else None
        if wanted is None or wanted > granted:
            raise RefusalError(422, NOT_GRANTED, docs=_MINT_DOCS)
        if (name in _WRITE_ONLY and level != "write") or (name in _READ_ONLY and level != "read"):
            raise RefusalError(422, NOT_GRANTED, docs=_MINT_DOCS)
    return {"metadata": "read", **permissions}


def _invalid(detail: str) -> NoReturn:
    raise RefusalError(422, f"Invalid request.\n\n{detail}", docs=_MINT_DOCS)


def _ruby(value: object) -> str:
    return "nil" if value is None else json.dumps(value)


# with an installation token


def _reachable(exchange: Exchange) -> Reply:
    token = exchange.bearer
    reached = _reached(exchange, token)
    page, headers = _page(exchange, reached)
    everything = token.repositories is None and token.installation.selection is None
    reply = {
        "total_count": len(reached),
        "repository_selection": "all" if everything else "selected",
        "repositories": [shapes.repository(r, exchange.urls, version=exchange.version) for r in page],
    }
    return Reply.of_json(200, reply, headers)


def _reached(
    exchange: Exchange, token: EmulatedToken, *, even_foreign: bool = False
) -> list[EmulatedRepository]:
    named = token.repositories or frozenset()
    return [
        r
        for _, r in sorted(exchange.state.repositories.items())
        if token.covers(r) or (even_foreign and r.id in named)
    ]


def _revoke(exchange: Exchange) -> Reply:
    exchange.bearer.revoked = True
    return Reply(204)


def _user(_exchange: Exchange) -> Reply:
    raise RefusalError(403, BY_INTEGRATION)


def _repo(exchange: Exchange) -> Reply:
    found = _visible(exchange, suffix="")
    if isinstance(found, Reply):
        return found
    return Reply.of_json(200, shapes.repository(found, exchange.urls, version=exchange.version))


def _repo_by_id(exchange: Exchange) -> Reply:
    found = exchange.state.repositories.get(_number(exchange.parameters["repository_id"]))
    if found is None or not _sees(exchange, found):
        _not_found()
    return Reply.of_json(200, shapes.repository(found, exchange.urls, version=exchange.version))


def _empty_list(permission: str) -> Callable[[Exchange], Reply]:
    def handler(exchange: Exchange) -> Reply:
        found = _visible(exchange, suffix=exchange.call.path[exchange.call.path.rindex("/") :])
        if isinstance(found, Reply):
            return found
        if found.private and not exchange.bearer.allows(permission):
            needs = {"x-accepted-github-permissions": f"{permission}=read"}
            raise RefusalError(403, BY_INTEGRATION, headers=needs)
        return Reply.of_json(200, [])

    return handler


def _visible(exchange: Exchange, *, suffix: str) -> EmulatedRepository | Reply:
    name = "{owner}/{repo}".format_map(exchange.parameters)
    current = exchange.state.find_repository(name)
    if current is not None and _sees(exchange, current):
        return current
    moved = exchange.state.find_moved(name)
    if moved is None or not _sees(exchange, moved):
        _not_found()
    return _moved_permanently(exchange, moved, suffix)


def _sees(exchange: Exchange, repository: EmulatedRepository) -> bool:
    if exchange.app is not None:
        raise RefusalError(401, "Bad credentials")
    return not repository.private or (exchange.token is not None and exchange.token.covers(repository))


# for anybody


def _rate_limit(exchange: Exchange) -> Reply:
    now = int(exchange.state.now())
    core: Quota | None = Quota(_ANONYMOUS_LIMIT, 0, now + 3600)
    if exchange.token is not None:
        core = exchange.state.quota(exchange.token.installation, spend=0)
    elif exchange.app is not None or exchange.state.rate_limit is None:
        core = None if exchange.state.rate_limit is None else Quota(exchange.state.rate_limit, 0, now + 3600)
    if core is None:
        raise RefusalError(404, "Rate limiting is not enabled.")
    bucket = shapes.quota(core)
    reply: dict[str, Any] = {
        "resources": {
            "core": bucket,
            "search": shapes.quota(Quota(30, 0, now + 60)),
            "graphql": shapes.quota(Quota(core.limit, 0, now + 3600)),
            "integration_manifest": shapes.quota(Quota(5000, 0, now + 3600)),
        }
    }
    if exchange.version != LATEST_VERSION:
        reply["rate"] = bucket
    return Reply.of_json(200, reply)


def _meta(_exchange: Exchange) -> Reply:
    loopback = ["127.0.0.0/8", "::1/128"]
    return Reply.of_json(
        200,
        {
            "verifiable_password_authentication": False,
            **dict.fromkeys(("hooks", "web", "api", "git", "packages", "pages", "importer"), loopback),
            "domains": {"website": ["127.0.0.1"]},
        },
    )


def _versions(_exchange: Exchange) -> Reply:
    return Reply.of_json(200, list(API_VERSIONS))


def _app_by_slug(exchange: Exchange) -> Reply:
    app = next((a for a in exchange.state.apps.values() if a.slug == exchange.parameters["slug"]), None)
    if app is None:
        _not_found()
    holder = exchange.app or (exchange.token.installation.app if exchange.token else None)
    if not app.public and holder is not app:
        _not_found()
    count = sum(i.app is app for i in exchange.state.installations.values())
    return Reply.of_json(200, shapes.app(app, exchange.urls, installations=count))


def _not_found() -> NoReturn:
    raise RefusalError(404, "Not Found")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        _not_found()
    return int(text)


def _moved_permanently(exchange: Exchange, repository: EmulatedRepository, suffix: str) -> Reply:
    # other methods than GET would get a 307; no route below a repository's name has one
    location = f"{exchange.urls.api}/repositories/{repository.id}{suffix}"
    body = {"message": "Moved Permanently", "url": location, "documentation_url": _REDIRECT_DOCS}
    return Reply.of_json(301, body, {"location": location})


def _page(exchange: Exchange, items: list[Item]) -> tuple[list[Item], dict[str, str]]:
    size = min(_positive(exchange.query("per_page"), _PAGE), _LARGEST_PAGE)
    page = _positive(exchange.query("page"), 1)
    last = max(1, -(-len(items) // size))
    others = [(k, v) for k, v in parse_qsl(exchange.call.query) if k != "page"]
    wanted = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
    if page <= 1:
        del wanted["prev"], wanted["first"]
    if page >= last:
        del wanted["next"], wanted["last"]
    links = [
        f'<{exchange.urls.api}{exchange.call.path}?{urlencode([*others, ("page", number)])}>; rel="{name}"'
        for name, number in wanted.items()
    ]
    return items[(page - 1) * size : page * size], ({"link": ", ".join(links)} if links else {})


def _positive(text: str | None, default: int) -> int:
    if text is None or not (text.isascii() and text.isdigit()):
        return default
    return max(1, int(text[:9]))
