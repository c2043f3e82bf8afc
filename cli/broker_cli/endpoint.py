"""The broker's address: parsed, normalised, and refused where a key must not travel; no I/O."""

from __future__ import annotations

from typing import NamedTuple

from broker_cli.errors import UsageError

DEFAULT_PORTS = {"http": 80, "https": 443}


class Endpoint(NamedTuple):
    """Where the broker is. Two that are equal are the same place for a key."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host, and port unless it is the scheme's own, as in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address in its one spelling, without a slash at the end."""
        return f"{self.scheme}://{self.authority}{self.path}"


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine: `localhost`, 127.0.0.0/8 or ::1."""
    if host.lower() in {"localhost", "127.0.0.1", "::1"}:
        return True
    if host[:1].isalpha() and ":" not in host:  # a name: nothing to parse
        return False
    from ipaddress import ip_address  # noqa: PLC0415

    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback


def is_host(text: str) -> bool:
    """Tell whether a text, in lower case, is a host's name or address (IPv6 without brackets)."""
    import re  # noqa: PLC0415

    if ":" in text:
        from ipaddress import IPv6Address  # noqa: PLC0415

        try:
            return IPv6Address(text).scope_id is None
        except ValueError:
            return False
    label = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
    return re.fullmatch(rf"(?=.{{1,253}}\Z){label}(?:\.{label})*", text) is not None


def parse_endpoint(text: str, *, source: str, allow_insecure: bool) -> Endpoint:
    """Return the broker's address from a setting.

    Args:
        text: the URL; may have a path (a broker behind a gateway), no query, fragment or credentials.
        source: the name of the setting, for the message.
        allow_insecure: whether plain http to another machine is accepted.

    Raises:
        UsageError: no such URL, or plain http to another machine.
    """
    from urllib.parse import urlsplit  # noqa: PLC0415

    def wrong(why: str) -> UsageError:
        return UsageError(f"{source} is not usable: {why}; give it like https://broker.example.com")

    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise wrong("it has spaces, control or non-ASCII characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong("it is no URL") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise wrong("it must start with https://")
    if "@" in parts.netloc:
        raise wrong("credentials do not belong in it (the API key goes into BROKER_API_KEY)")
    if "?" in text or "#" in text:
        raise wrong("it has a query or a fragment")
    if not is_host(host) or port == 0:
        raise wrong("its host or port is malformed")
    path = parts.path.rstrip("/")
    if any(part in {".", ".."} for part in path.split("/")) or "//" in path:
        raise wrong("its path is malformed")
    if parts.scheme == "http" and not allow_insecure and not is_loopback(host):
        raise UsageError(
            f"{source} is plain http to another machine, which would show the API key and the token to"
            " the network: use https, or set BROKER_ALLOW_INSECURE=1 if that is understood"
        )
    return Endpoint(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path)
