"""The JSON that GitHub shows for what the emulator knows; pure."""

from __future__ import annotations

import base64
import calendar
import time
from typing import TYPE_CHECKING, Any

from broker.sandbox.exchange import LATEST_VERSION

if TYPE_CHECKING:
    from broker.sandbox.exchange import Urls
    from broker.sandbox.state import (
        EmulatedAccount,
        EmulatedApp,
        EmulatedInstallation,
        EmulatedRepository,
        Quota,
    )

# "GET /app" never lists those: every app gets them
GLOBAL_EVENTS = frozenset({"installation_target", "meta", "security_advisory"})

_REPOSITORY_LINKS = (
    "archive:/{archive_format}{/ref}",
    "assignees:/assignees{/user}",
    "blobs:/git/blobs{/sha}",
    "branches:/branches{/branch}",
    "collaborators:/collaborators{/collaborator}",
    "comments:/comments{/number}",
    "commits:/commits{/sha}",
    "compare:/compare/{base}...{head}",
    "contents:/contents/{+path}",
    "contributors:/contributors",
    "deployments:/deployments",
    "downloads:/downloads",
    "events:/events",
    "forks:/forks",
    "git_commits:/git/commits{/sha}",
    "git_refs:/git/refs{/sha}",
    "git_tags:/git/tags{/sha}",
    "hooks:/hooks",
    "issue_comment:/issues/comments{/number}",
    "issue_events:/issues/events{/number}",
    "issues:/issues{/number}",
    "keys:/keys{/key_id}",
    "labels:/labels{/name}",
    "languages:/languages",
    "merges:/merges",
    "milestones:/milestones{/number}",
    "notifications:/notifications{?since,all,participating}",
    "pulls:/pulls{/number}",
    "releases:/releases{/id}",
    "stargazers:/stargazers",
    "statuses:/statuses/{sha}",
    "subscribers:/subscribers",
    "subscription:/subscription",
    "tags:/tags",
    "teams:/teams",
    "trees:/git/trees{/sha}",
)


def timestamp(at: float) -> str:
    """Return ``YYYY-MM-DDTHH:MM:SSZ`` of epoch seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def epoch(text: str) -> float | None:
    """Return the epoch seconds of ``YYYY-MM-DDTHH:MM:SSZ``, or None."""
    try:
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return None


def account(of: EmulatedAccount, urls: Urls) -> dict[str, Any]:
    """Return a user or organization; an enterprise has a slug and no login."""
    node = _node({"Organization": "O", "User": "U", "Enterprise": "E"}[of.kind], of.id)
    avatar = f"{urls.web}/avatars/{of.id}"
    if of.kind == "Enterprise":
        return {
            "id": of.id,
            "node_id": node,
            "slug": of.login,
            "name": of.login,
            "html_url": f"{urls.web}/enterprises/{of.login}",
            "avatar_url": avatar,
            "created_at": timestamp(of.created_at),
            "updated_at": timestamp(of.created_at),
        }
    api = f"{urls.api}/users/{of.login}"
    return {
        "login": of.login,
        "id": of.id,
        "node_id": node,
        "avatar_url": avatar,
        "gravatar_id": "",
        "url": api,
        "html_url": f"{urls.web}/{of.login}",
        "followers_url": f"{api}/followers",
        "following_url": f"{api}/following{{/other_user}}",
        "gists_url": f"{api}/gists{{/gist_id}}",
        "starred_url": f"{api}/starred{{/owner}}{{/repo}}",
        "subscriptions_url": f"{api}/subscriptions",
        "organizations_url": f"{api}/orgs",
        "repos_url": f"{api}/repos",
        "events_url": f"{api}/events{{/privacy}}",
        "received_events_url": f"{api}/received_events",
        "type": of.kind,
        "site_admin": False,
    }


def app(of: EmulatedApp, urls: Urls, *, installations: int) -> dict[str, Any]:
    """Return the integration that ``GET /app`` shows."""
    return {
        "id": of.app_id,
        "client_id": of.client_id,
        "slug": of.slug,
        "node_id": _node("A", of.app_id),
        "owner": account(of.owner, urls),
        "name": of.slug.replace("-", " ").title(),
        "description": "",
        "external_url": f"{urls.web}/{of.owner.login}",
        "html_url": f"{urls.web}/apps/{of.slug}",
        "created_at": timestamp(of.created_at),
        "updated_at": timestamp(of.created_at),
        "permissions": dict(of.permissions),
        "events": [event for event in of.events if event not in GLOBAL_EVENTS],
        "installations_count": installations,
    }


def installation(of: EmulatedInstallation, urls: Urls) -> dict[str, Any]:
    """Return an installation, suspended or not."""
    owner = of.account
    settings = (
        f"{urls.web}/settings/installations/{of.id}"
        if owner.kind == "User"
        else f"{urls.web}/{owner.kind.lower()}s/{owner.login}/settings/installations/{of.id}"
    )
    suspended = of.suspended_at is not None
    return {
        "id": of.id,
        "client_id": of.app.client_id,
        "account": account(owner, urls),
        "repository_selection": "all" if of.selection is None else "selected",
        "access_tokens_url": f"{urls.api}/app/installations/{of.id}/access_tokens",
        "repositories_url": f"{urls.api}/installation/repositories",
        "html_url": settings,
        "app_id": of.app.app_id,
        "app_slug": of.app.slug,
        "target_id": owner.id,
        "target_type": owner.kind,
        "permissions": dict(of.permissions),
        "events": [event for event in of.app.events if event not in GLOBAL_EVENTS],
        "created_at": timestamp(of.created_at),
        "updated_at": timestamp(of.updated_at),
        "single_file_name": None,
        "has_multiple_single_files": False,
        "single_file_paths": [],
        "suspended_by": account(of.app.owner, urls) if suspended else None,
        "suspended_at": None if of.suspended_at is None else timestamp(of.suspended_at),
    }


def repository(of: EmulatedRepository, urls: Urls, *, version: str) -> dict[str, Any]:
    """Return a full repository object of several KB; fields of old are gone in 2026-03-10."""
    api, html = f"{urls.api}/repos/{of.full_name}", f"{urls.web}/{of.full_name}"
    host = urls.web.partition("://")[2]
    created = timestamp(of.created_at)
    shown: dict[str, Any] = {
        "id": of.id,
        "node_id": _node("R", of.id),
        "name": of.name,
        "full_name": of.full_name,
        "private": of.private,
        "owner": account(of.owner, urls),
        "html_url": html,
        "description": None,
        "fork": False,
        "url": api,
    }
    for link in _REPOSITORY_LINKS:
        name, _, rest = link.partition(":")
        shown[f"{name}_url"] = api + rest
    shown |= {
        "created_at": created,
        "updated_at": created,
        "pushed_at": created,
        "git_url": f"git://{host}/{of.full_name}.git",
        "ssh_url": f"git@{host}:{of.full_name}.git",
        "clone_url": f"{html}.git",
        "svn_url": html,
        "homepage": None,
        "size": 1,
        "stargazers_count": 0,
        "watchers_count": 0,
        "language": None,
        "has_issues": True,
        "has_projects": True,
        "has_downloads": True,
        "has_wiki": True,
        "has_pages": False,
        "has_discussions": False,
        "forks_count": 0,
        "mirror_url": None,
        "archived": of.archived,
        "disabled": False,
        "open_issues_count": 0,
        "license": None,
        "allow_forking": True,
        "is_template": False,
        "web_commit_signoff_required": False,
        "topics": [],
        "visibility": "private" if of.private else "public",
        "forks": 0,
        "open_issues": 0,
        "watchers": 0,
        "default_branch": of.default_branch,
        "use_squash_pr_title_as_default": False,
        "permissions": {"admin": False, "maintain": False, "push": False, "triage": False, "pull": False},
    }
    if version == LATEST_VERSION:
        del shown["has_downloads"], shown["use_squash_pr_title_as_default"]
    return shown


def quota(of: Quota) -> dict[str, int]:
    """Return one bucket of ``GET /rate_limit``."""
    return {"limit": of.limit, "used": of.used, "remaining": of.remaining, "reset": of.reset}


def quota_headers(of: Quota) -> dict[str, str]:
    """Return the ``x-ratelimit-*`` headers."""
    headers = {f"x-ratelimit-{name}": str(value) for name, value in quota(of).items()}
    return headers | {"x-ratelimit-resource": "core"}


def _node(kind: str, number: int) -> str:
    return f"{kind}_kgDO{base64.urlsafe_b64encode(number.to_bytes(6, 'big')).decode()}"
