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


def load_settings(flags: Flags) -> Settings:
    """Return the settings of this process.

    The profile is looked at only for what flags and environment leave open. Its key goes to the address it
    was stored with and nowhere else.

    Raises:
        UsageError: a setting is missing, contradictory or malformed, or the profile is not safe.
        ApiKeyError: there is no key for this address, or it is malformed.
    """
    # The one place in the client that reads the environment.
    environment: Mapping[str, str] = os.environ  # noqa: TID251 - this is the client's settings module
    allow_insecure = environment.get("BROKER_ALLOW_INSECURE") == "1"
    api_url, url_source = _first(
        (flags.api_url, "--api-url"), (environment.get("BROKER_API_URL"), "BROKER_API_URL")
    )
    given_key, key_source = _key_of(environment)
    profile: Profile | None = None
    if not api_url or given_key is None:
        from broker_cli.profile import find_profile, profile_path  # noqa: PLC0415

        profile = find_profile(profile_path(environment.get("XDG_CONFIG_HOME", "")))
    home: Endpoint | None = None
    if profile is not None:
        home = parse_endpoint(
            profile.api_url, source=f"the profile {profile.path}", allow_insecure=allow_insecure
        )
    if api_url:
        endpoint = parse_endpoint(api_url, source=url_source, allow_insecure=allow_insecure)
    elif profile is not None and home is not None:
        endpoint, url_source = home, f"the profile {profile.path}"
    else:
        raise UsageError("BROKER_API_URL is not set: set it to your broker's address, or give --api-url")
    if given_key is None:
        given_key, key_source = _profile_key(profile, home, endpoint)
    key = verify_api_key(given_key, source=key_source)
    ca_file = flags.ca_file or environment.get("BROKER_CA_FILE") or None
    if ca_file is None and profile is not None and home == endpoint:
        ca_file = profile.ca_file
    return Settings(
        endpoint=endpoint,
        endpoint_source=url_source,
        key=key,
        key_source=key_source,
        ca_file=ca_file,
        proxy=_proxy_to(endpoint, environment),
        timeout_s=flags.timeout or DEFAULT_TIMEOUT_S,
        verbose=flags.verbose,
    )


def _first(*candidates: tuple[str | None, str]) -> tuple[str, str]:
    """Return the first value that is there, with the name of its source."""
    for value, source in candidates:
        if value:
            return value, source
    return "", ""


def _key_of(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the key that the environment gives, unverified, and its source."""
    key, path = environment.get("BROKER_API_KEY"), environment.get("BROKER_API_KEY_FILE")
    if key and path:
        raise UsageError("BROKER_API_KEY and BROKER_API_KEY_FILE are both set: keep one")
    if key:
        return key, "BROKER_API_KEY"
    if path:
        return _read_key_file(path), f"the file {path} (BROKER_API_KEY_FILE)"
    return None, ""


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


def _profile_key(profile: Profile | None, home: Endpoint | None, endpoint: Endpoint) -> tuple[str, str]:
    """Return the profile's key, unverified, if it was stored for this very address."""
    if profile is None or home is None or not profile.unverified_api_key:
        raise ApiKeyError(
            f"there is no API key for {endpoint.url}: set BROKER_API_KEY or BROKER_API_KEY_FILE"
        )
    if home != endpoint:
        raise ApiKeyError(
            f"there is no API key for {endpoint.url}: the profile {profile.path} has one for {home.url} only,"
            " and it is not sent elsewhere; set BROKER_API_KEY or BROKER_API_KEY_FILE"
        )
    return profile.unverified_api_key, f"the profile {profile.path}"
