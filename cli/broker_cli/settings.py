"""Which broker, which key, which way: flags before environment before profile; reads both and files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from broker_cli.api_key import ApiKey, verify_api_key
from broker_cli.endpoint import Endpoint, is_loopback, parse_endpoint
from broker_cli.errors import ApiKeyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_cli.profile import Profile
    from broker_cli.proxy import Proxy

DEFAULT_TIMEOUT_S = 30.0
MAX_KEY_FILE_BYTES = 4096


class Flags:
    """What the command line says about the connection; None where it says nothing."""

    def __init__(self) -> None:
        self.api_url: str | None = None
        self.ca_file: str | None = None
        self.timeout: float | None = None
        self.verbose = False


class GivenKey(NamedTuple):
    """A key as somebody gave it, not yet looked at, and where it came from."""

    unverified: str
    source: str

    def __repr__(self) -> str:
        return f"GivenKey({self.source})"


class Route(NamedTuple):
    """Where the broker is, and the way there."""

    endpoint: Endpoint
    endpoint_source: str
    ca_file: str | None
    proxy: Proxy | None


class Settings(NamedTuple):
    """All that a request needs to know; every part checked."""

    endpoint: Endpoint
    endpoint_source: str
    key: ApiKey
    key_source: str
    ca_file: str | None
    proxy: Proxy | None
    timeout_s: float
    verbose: bool

    @property
    def route(self) -> Route:
        """Where the broker is, and the way there."""
        return Route(self.endpoint, self.endpoint_source, self.ca_file, self.proxy)


def load_settings(flags: Flags, *, key: GivenKey | None = None) -> Settings:
    """Return the settings of this process.

    The profile is looked at only for what flags and environment leave open. Its key goes to the address it
    was stored with and nowhere else.

    Args:
        flags: what the command line says.
        key: a key to use in place of the one from environment or profile.

    Raises:
        UsageError: a setting is missing, contradictory or malformed, or the profile is not safe.
        ApiKeyError: there is no key for this address, or it is malformed.
    """
    environment = _environment()
    given = key or _key_of(environment)
    profile = _profile(environment) if given is None or not _url_of(flags, environment).url else None
    route = _route(flags, environment, profile)
    if given is None:
        given = _profile_key(profile, route.endpoint, environment)
    return Settings(
        endpoint=route.endpoint,
        endpoint_source=route.endpoint_source,
        key=verify_api_key(given.unverified, source=given.source),
        key_source=given.source,
        ca_file=route.ca_file,
        proxy=route.proxy,
        timeout_s=flags.timeout or DEFAULT_TIMEOUT_S,
        verbose=flags.verbose,
    )


def load_route(flags: Flags) -> Route:
    """Return where the broker is, for what needs no key; the profile counts only if nothing else says it.

    Raises:
        UsageError: a setting is missing or malformed, or the profile is not safe.
    """
    environment = _environment()
    return _route(flags, environment, None if _url_of(flags, environment).url else _profile(environment))


def environment_for_child(token: str) -> dict[str, str]:
    """Return this process's environment for a child: the token in it, and nothing of ours.

    `gh` reads `GH_TOKEN` first: one that was there before would win over ours, so both names are set.
    """
    kept = {name: value for name, value in _environment().items() if not name.startswith("BROKER_")}
    return {**kept, "GITHUB_TOKEN": token, "GH_TOKEN": token}


def profile_location() -> str:
    """Return where this user's profile is, whether there is one or not."""
    from broker_cli.profile import profile_path  # noqa: PLC0415

    return profile_path(_environment().get("XDG_CONFIG_HOME", ""))


def cache_folder() -> str:
    """Return this user's folder for what may be lost; it may not exist."""
    home = _environment().get("XDG_CACHE_HOME", "")
    # As XDG says, a path that is not absolute is ignored. os.path: pathlib costs 5 ms to load.
    if not os.path.isabs(home):  # noqa: PTH117
        home = os.path.expanduser("~/.cache")  # noqa: PTH111
    return os.path.join(home, "broker-cli")  # noqa: PTH118


def overriding_variables() -> list[str]:
    """Return the names of the variables that are set and come before the profile."""
    names = ("BROKER_API_URL", "BROKER_API_KEY", "BROKER_API_KEY_FILE")
    return [name for name in names if _environment().get(name)]


def completion_asked() -> str:
    """Return what a shell asks for when it completes a command line, else nothing."""
    return _environment().get("_BROKER_CLI_COMPLETE", "")


def _environment() -> Mapping[str, str]:
    """Return the environment: the one place in the client that reads it."""
    return os.environ  # noqa: TID251 - this is the client's settings module


def _profile(environment: Mapping[str, str]) -> Profile | None:
    from broker_cli.profile import find_profile, profile_path  # noqa: PLC0415

    return find_profile(profile_path(environment.get("XDG_CONFIG_HOME", "")))


class _Url(NamedTuple):
    url: str
    source: str


def _url_of(flags: Flags, environment: Mapping[str, str]) -> _Url:
    """Return the address that flags or environment give, unverified."""
    return _Url(*_first((flags.api_url, "--api-url"), (environment.get("BROKER_API_URL"), "BROKER_API_URL")))


def _allows_insecure(environment: Mapping[str, str]) -> bool:
    return environment.get("BROKER_ALLOW_INSECURE") == "1"


def _home_of(profile: Profile, environment: Mapping[str, str]) -> Endpoint:
    """Return the address that a profile's key was stored with."""
    return parse_endpoint(
        profile.api_url,
        source=f"the profile {profile.path}",
        allow_insecure=_allows_insecure(environment),
    )


def _route(flags: Flags, environment: Mapping[str, str], profile: Profile | None) -> Route:
    """Return where the broker is and the way there; the profile is for what is left open."""
    url, source = _url_of(flags, environment)
    home = None if profile is None else _home_of(profile, environment)
    if url:
        endpoint = parse_endpoint(url, source=source, allow_insecure=_allows_insecure(environment))
    elif profile is not None and home is not None:
        endpoint, source = home, f"the profile {profile.path}"
    else:
        raise UsageError(
            "BROKER_API_URL is not set: set it to your broker's address, or give --api-url,"
            " or keep address and key with 'broker-cli login'"
        )
    ca_file = flags.ca_file or environment.get("BROKER_CA_FILE") or None
    if ca_file is None and profile is not None and home == endpoint:
        ca_file = profile.ca_file
    return Route(endpoint, source, ca_file, _proxy_to(endpoint, environment))


def _first(*candidates: tuple[str | None, str]) -> tuple[str, str]:
    """Return the first value that is there, with the name of its source."""
    for value, source in candidates:
        if value:
            return value, source
    return "", ""


def _key_of(environment: Mapping[str, str]) -> GivenKey | None:
    """Return the key that the environment gives, unverified."""
    key, path = environment.get("BROKER_API_KEY"), environment.get("BROKER_API_KEY_FILE")
    if key and path:
        raise UsageError("BROKER_API_KEY and BROKER_API_KEY_FILE are both set: keep one")
    if key:
        return GivenKey(key, "BROKER_API_KEY")
    if path:
        return GivenKey(_read_key_file(path), f"the file {path} (BROKER_API_KEY_FILE)")
    return None


def _read_key_file(path: str) -> str:
    """Return a key file's text without the white space around it.

    Its mode is not looked at: orchestrators mount such files readable to a group and guard the mount.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs 5 ms to load
            content = file.read(MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read the file {path} (BROKER_API_KEY_FILE): {error.strerror}") from None
    except ValueError:
        raise UsageError("BROKER_API_KEY_FILE is no path") from None
    text = content.decode("ascii", "replace").strip()
    if not text:
        raise ApiKeyError(f"the file {path} (BROKER_API_KEY_FILE) is empty: put the API key into it")
    return text


def _proxy_to(endpoint: Endpoint, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy on the way to an address; to this very machine there is never one."""
    if is_loopback(endpoint.host):
        return None
    from broker_cli.proxy import choose_proxy  # noqa: PLC0415

    return choose_proxy(endpoint, environment)


def _profile_key(profile: Profile | None, endpoint: Endpoint, environment: Mapping[str, str]) -> GivenKey:
    """Return the profile's key, unverified, if it was stored for this very address."""
    if profile is None or not profile.unverified_api_key:
        raise ApiKeyError(
            f"there is no API key for {endpoint.url}: set BROKER_API_KEY or BROKER_API_KEY_FILE,"
            " or run 'broker-cli login'"
        )
    home = _home_of(profile, environment)
    if home != endpoint:
        raise ApiKeyError(
            f"there is no API key for {endpoint.url}: the profile {profile.path} has one for {home.url} only,"
            " and it is not sent elsewhere; set BROKER_API_KEY or BROKER_API_KEY_FILE"
        )
    return GivenKey(profile.unverified_api_key, f"the profile {profile.path}")
