"""Addresses of GitHub's own pages, of all its products; pure, no I/O."""

from typing import Final
from urllib.parse import quote, urlsplit

GITHUB: Final = "https://github.com"
GITHUB_API: Final = "https://api.github.com"


def api(web_url: str) -> str:
    """Return the REST API of a GitHub.

    github.com has it at ``api.github.com``, GHE.com at ``api.SUB.ghe.com``, Enterprise Server below
    ``/api/v3``.
    """
    if not on_premises(web_url):
        scheme, _, rest = web_url.partition("://")
        return f"{scheme}://api.{rest}"
    return f"{web_url}/api/v3"


def on_premises(web_url: str) -> bool:
    """Return whether this is GitHub Enterprise Server, on a host of its own."""
    host = urlsplit(web_url).hostname or ""
    return host != "github.com" and not host.endswith(".ghe.com")


def install(web_url: str, slug: str) -> str:
    """Return the page where owners install the app or add repositories.

    Enterprise Server has it under ``/github-apps/`` ("Sharing your GitHub App").
    """
    folder = "github-apps" if on_premises(web_url) else "apps"
    return f"{web_url}/{folder}/{quote(slug, safe='')}/installations/new"


def new_app(web_url: str, org: str | None) -> str:
    """Return the page that takes an app's manifest ("Registering a GitHub App from a manifest")."""
    return f"{_settings(web_url, org)}/apps/new"


def app(web_url: str, slug: str, *, org: str | None) -> str:
    """Return the app's own settings page; ``/permissions`` and ``/advanced`` are below it."""
    return f"{_settings(web_url, org)}/apps/{quote(slug, safe='')}"


def _settings(web_url: str, org: str | None) -> str:
    return f"{web_url}/settings" if org is None else f"{web_url}/organizations/{quote(org, safe='')}/settings"
