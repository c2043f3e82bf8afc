"""Reads ``BROKER_STORE_URL`` where it names a Redis; pure, and never repeats any part of the URL."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from broker.errors import SettingsError
from broker.model import Secret

VARIABLE: Final = "BROKER_STORE_URL"
_SCHEMES: Final = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_TLS_OPTIONS: Final = frozenset(
    {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs"}
)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HOST: Final = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")
_TRUTH: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_MAX_WAIT: Final = 9
_MAX_PORT: Final = 65535

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """Where the store is.

    Attributes:
        kind: single, sentinel or cluster.
        addresses: the server, the sentinels, or the cluster's seeds.
        service: what the sentinels call the primary.
        prefix: tells apart the brokers that share a Redis.
        wait: replicas that must have acknowledged a decision before it counts.
        tls: keyword arguments of redis-py's ``SSLConnection``, None for plain TCP.
    """

    kind: str
    addresses: tuple[Address, ...]
    service: str
    database: int
    username: str | None
    password: Secret | None
    sentinel_username: str | None
    sentinel_password: Secret | None
    prefix: str
    wait: int
    tls: Mapping[str, Any] | None = field(repr=False)

    @property
    def shown(self) -> str:
        """Hosts and ports, for logs."""
        return ",".join(f"{host}:{port}" for host, port in self.addresses)


def parse_redis_url(text: str) -> RedisTarget:
    """Return what a URL names.

    Raises:
        SettingsError: one line that names the variable and repeats nothing of the URL (a password with a
            stray ``@``, ``/`` or ``#`` may be anywhere in it).
    """
    try:
        parts = urlsplit(text)
    except ValueError:
        raise _wrong("is not a URL") from None
    if parts.scheme not in _SCHEMES:
        raise _wrong(f"needs one of the schemes {', '.join(f'{name}://' for name in _SCHEMES)}")
    if parts.fragment:
        raise _wrong("has a '#' in it; write %23 if it belongs to the password")
    kind, encrypted = _SCHEMES[parts.scheme]
    user, _, hosts = parts.netloc.rpartition("@")
    username, _, password = user.partition(":")
    service, database = _path(kind, parts.path.removeprefix("/"))
    options = _options(parts.query)
    target = RedisTarget(
        kind=kind,
        addresses=_addresses(hosts, kind),
        service=service,
        database=database,
        username=unquote(username) or None,
        password=Secret(unquote(password)) if password else None,
        sentinel_username=options.pop("sentinel_username", None),
        sentinel_password=_secret(options.pop("sentinel_password", None)),
        prefix=options.pop("prefix", "0"),
        wait=_wait(options.pop("wait", "0" if kind == "single" else "1")),
        tls=_tls(options) if encrypted else None,
    )
    if not _PREFIX.fullmatch(target.prefix):
        raise _wrong("option prefix: 1 to 64 of A-Z a-z 0-9 _ . -")
    if username and not password:
        raise _wrong("has a user without a password")
    if options:
        raise _wrong(
            "has an option that is none of prefix, wait, sentinel_username, sentinel_password, "
            "and with rediss ssl_check_hostname, " + ", ".join(sorted(_TLS_OPTIONS))
        )
    return target


def _wrong(what: str) -> SettingsError:
    return SettingsError([f"{VARIABLE} {what}."])


def _secret(text: str | None) -> Secret | None:
    return Secret(text) if text else None


def _options(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise _wrong("has options that are not name=value pairs joined by &") from None
    if len({name for name, _ in pairs}) != len(pairs):
        raise _wrong("has an option twice")
    return dict(pairs)


def _path(kind: str, path: str) -> tuple[str, int]:
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise _wrong("lacks the service's name after the sentinels: redis+sentinel://host:port/service")
    if path and not (path.isascii() and path.isdecimal()):
        raise _wrong("has a database that is not a number")
    if kind == "cluster" and int(path or 0):
        raise _wrong("names a database; a cluster has only 0")
    return unquote(service), int(path or 0)


def _addresses(hosts: str, kind: str) -> tuple[Address, ...]:
    default = 26379 if kind == "sentinel" else 6379
    found: list[Address] = []
    for item in hosts.split(","):
        host, colon, port = item.rpartition(":") if not item.endswith("]") else (item, "", "")
        if not colon:
            host, port = item, str(default)
        number = int(port) if port.isascii() and port.isdecimal() and len(port) <= len(str(_MAX_PORT)) else 0
        if not _HOST.fullmatch(host) or not 0 < number <= _MAX_PORT:
            raise _wrong("lacks host:port where it should be (escape @ / ? # in a password: %40 %2F %3F %23)")
        found.append((host.strip("[]"), number))
    if kind == "single" and len(found) > 1:
        raise _wrong("names several hosts; that takes redis+sentinel:// or redis+cluster://")
    return tuple(found)


def _wait(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _MAX_WAIT):
        raise _wrong(f"option wait: a number of replicas, 0 to {_MAX_WAIT}")
    return int(text)


def _tls(options: dict[str, str]) -> dict[str, Any]:
    """Take the TLS options out of ``options``."""
    chosen: dict[str, Any] = {name: options.pop(name) for name in sorted(_TLS_OPTIONS & options.keys())}
    if chosen.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
        raise _wrong("option ssl_cert_reqs: none, optional or required")
    check = options.pop("ssl_check_hostname", "true").lower()
    if check not in _TRUTH:
        raise _wrong("option ssl_check_hostname: true or false")
    chosen["ssl_check_hostname"] = _TRUTH[check]
    return chosen
