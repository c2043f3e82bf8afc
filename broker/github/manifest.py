"""The manifest of the broker's GitHub App: what ``broker setup`` asks GitHub for; pure, no I/O.

"Registering a GitHub App from a manifest" in GitHub's docs lists the keys.
"""

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from broker.errors import InvalidRequestError

PERMISSIONS: Final = {"contents": "read", "metadata": "read"}
EVENTS: Final = ("repository",)
"""Renames and transfers; installation events come by themselves, and asking for them is an error."""

WEBHOOK_PATH: Final = "/webhooks/github"
LONGEST_NAME: Final = 34
_NOT_PUBLIC: Final = (".localhost", ".local", ".internal", ".invalid", ".test")


def manifest(*, name: str, homepage: str, redirect_url: str, webhook_url: str | None) -> dict[str, object]:
    """Return the manifest of an app that can read repositories and nothing else.

    There is no ``setup_url``: it would stay with the app when the local page is long gone. Without a webhook
    ``hook_attributes`` is left out, for GitHub refuses it without an address, also when it is not active.
    """
    found: dict[str, object] = {
        "name": name,
        "url": homepage,
        "description": "Gives short-lived, read-only tokens for repositories to jobs.",
        "public": False,
        "redirect_url": redirect_url,
        "default_permissions": dict(PERMISSIONS),
    }
    if webhook_url is not None:
        found["hook_attributes"] = {"url": webhook_url, "active": True}
        found["default_events"] = list(EVENTS)
    return found


def parse_webhook_url(text: str) -> str:
    """Return the address of webhooks; the broker's own path is added to a bare origin.

    Raises:
        InvalidRequestError: it is not https, or GitHub would refuse it as not on the public internet.
    """
    refused = "write an address such as https://broker.example.com/webhooks/github"
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise InvalidRequestError(public=refused) from None
    extras = parts.username or parts.password or parts.fragment
    if parts.scheme != "https" or not parts.hostname or port == 0 or extras:
        raise InvalidRequestError(public=refused)
    if not _public(parts.hostname or ""):
        raise InvalidRequestError(public=f"GitHub cannot reach {parts.hostname}: leave the webhook out")
    return parts.geturl() if parts.path.strip("/") else f"https://{parts.netloc}{WEBHOOK_PATH}"


def _public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(_NOT_PUBLIC)


def parse_name(text: str) -> str:
    """Return a name that GitHub could take for an app.

    Raises:
        InvalidRequestError: it is empty, too long or not printable.
    """
    name = text.strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InvalidRequestError(public=f"an app's name has 1 to {LONGEST_NAME} characters")
    return name
