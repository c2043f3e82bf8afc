"""Which egress proxy a request takes; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from broker_cli.endpoint import Endpoint, is_host
from broker_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PORT = 80


class Proxy(NamedTuple):
    """An HTTP proxy, and the value of `Proxy-Authorization` if it wants one."""

    host: str
    port: int
    authorization: str | None

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


def choose_proxy(endpoint: Endpoint, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy that the environment names for an address that is not this very machine.

    `https_proxy`, `http_proxy` and `no_proxy` count, lower case before upper case. `HTTP_PROXY` is ignored
    where `REQUEST_METHOD` is set: under CGI a request's header could set it.

    Raises:
        UsageError: the variable holds no usable proxy.
    """
    name = f"{endpoint.scheme}_proxy"
    text = environment.get(name, "")
    if not text and not (endpoint.scheme == "http" and "REQUEST_METHOD" in environment):
        name = name.upper()
        text = environment.get(name, "")
    no_proxy = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if not text or _is_exempt(endpoint, no_proxy):
        return None
    return _parse(text, name)


def _parse(text: str, name: str) -> Proxy:
    """Return the proxy of `[http://][user:password@]host[:port]`."""
    from urllib.parse import unquote_to_bytes, urlsplit  # noqa: PLC0415

    wrong = UsageError(f"{name} is no usable proxy: give it like http://proxy.example.com:3128")
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme != "http":
        raise UsageError(
            f"{name} names a proxy that is not spoken to over http://: only such proxies are supported"
        )
    if not is_host(host) or port == 0:
        raise wrong
    authorization = None
    if parts.username is not None:
        from base64 import b64encode  # noqa: PLC0415

        credentials = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
        authorization = f"Basic {b64encode(credentials).decode()}"
    return Proxy(host, port or DEFAULT_PORT, authorization)


def _is_exempt(endpoint: Endpoint, no_proxy: str) -> bool:
    """Tell whether `no_proxy` names the host: `*`, a host or a domain above it, an address or a network."""
    for entry in no_proxy.lower().replace(" ", ",").split(","):
        if not entry:
            continue
        if entry == "*" or _in_network(endpoint.host, entry):
            return True
        name, colon, port = entry.rpartition(":")
        if colon and port.isdecimal() and not name.endswith(":") and ":" not in name.strip("[]"):
            if int(port) != endpoint.port:
                continue
        else:
            name = entry
        name = name.strip("[]").removeprefix("*").removeprefix(".")
        if name and (endpoint.host == name or endpoint.host.endswith(f".{name}")):
            return True
    return False


def _in_network(host: str, entry: str) -> bool:
    """Tell whether a host that is an address lies in the network that an entry names."""
    from ipaddress import ip_address, ip_network  # noqa: PLC0415

    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False
