"""What the broker tells of itself with `/v1/whoami`: version, GitHub's address, the install page."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from broker_cli.endpoint import parse_endpoint
from broker_cli.errors import UsageError

if TYPE_CHECKING:
    from broker_cli.api import Broker


class About(NamedTuple):
    """Whose key it is, and what a client has to know of the broker."""

    key_name: str
    key_id: str
    expires_at: str | None
    version: str
    github_url: str
    install_url: str | None


def about_broker(broker: Broker) -> About:
    """Return what the broker says of the key and itself.

    Raises:
        BrokerCliError: any of its kinds; also if the broker is too old to say.
    """
    record = broker.get("/v1/whoami")
    about = record.get("broker")
    key_id, name, expires_at = (record.get(member) for member in ("id", "name", "expires_at"))
    if not isinstance(key_id, str) or not isinstance(name, str) or not isinstance(expires_at, str | None):
        raise broker.unexpected("it is no key's record")
    if not isinstance(about, dict):
        raise broker.unexpected("it does not say which GitHub it serves")
    version, github_url, install_url = (about.get(part) for part in ("version", "github_url", "install_url"))
    if not isinstance(version, str) or not isinstance(github_url, str):
        raise broker.unexpected("it does not say which GitHub it serves")
    if install_url is not None and not (isinstance(install_url, str) and install_url.isprintable()):
        raise broker.unexpected("an install page that is no address")
    try:
        github = parse_endpoint(github_url, source="GitHub's address", allow_insecure=False)
    except UsageError:
        raise broker.unexpected("a GitHub address that is none") from None
    return About(name, key_id, expires_at, version, github.url, install_url)
