"""Owner, repository and permission names as a user types them; no I/O.

The rules are GitHub's: owner 1 to 39 of `[A-Za-z0-9-]` with at most one `_` (managed users), repository
1 to 100 of `[A-Za-z0-9._-]` but not `.`, `..` and without `.git` or `.wiki` at the end.
"""

from __future__ import annotations

import re

from broker_cli.endpoint import DEFAULT_PORTS, is_host, is_loopback
from broker_cli.errors import UsageError

MAX_OWNER = 39
MAX_REPOSITORIES = 500


def parse_owner(text: str) -> str:
    """Return an owner's name.

    Raises:
        UsageError: GitHub would not allow it.
    """
    if len(text) > MAX_OWNER or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*(?:_[A-Za-z0-9-]*)?", text) is None:
        raise UsageError(f"{_quoted(text)} is no owner's name on GitHub: letters, digits and '-', at most 39")
    return text


def parse_repository(text: str) -> tuple[str | None, str]:
    """Return `(host, "owner/repo")` of `owner/repo`, `owner/repo.git` or `https://host/owner/repo[.git]`.

    The host has its port unless that is the scheme's own. Credentials in a URL are refused rather than
    dropped: whoever types them should learn that they are in the process list now.

    Raises:
        UsageError: none of these forms, or a name that GitHub would not allow.
    """
    host, path = (None, text) if "://" not in text else _split_url(text)
    owner, slash, name = path.partition("/")
    if not slash or not owner:
        hint = " (of an ssh address, give owner/repo only)" if "@" in text or ":" in text else ""
        raise UsageError(
            f"{_quoted(text)} is no repository: give owner/repo or https://github.com/owner/repo{hint}"
        )
    parse_owner(owner)
    name = name[:-4] if name.lower().endswith(".git") else name
    if (
        re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) is None
        or name in {".", ".."}
        or name.lower().endswith((".git", ".wiki"))
    ):
        raise UsageError(
            f"{_quoted(text)} has no repository's name after the owner: letters, digits, '.', '_' and '-', at"
            " most 100, and not a wiki"
        )
    return host, f"{owner}/{name}"


def parse_repositories(texts: tuple[str, ...]) -> tuple[str | None, list[str]]:
    """Return `(host, ["owner/repo", ...])` of one call, each once, in order; host if a URL named it.

    Raises:
        UsageError: malformed, of two owners or two hosts, or more than the broker takes in one call.
    """
    found: dict[str, str] = {}
    hosts: set[str] = set()
    for text in texts:
        host, full_name = parse_repository(text)
        found.setdefault(full_name.lower(), full_name)
        if host is not None:
            hosts.add(host)
    if len(hosts) > 1:
        raise UsageError(f"repositories on two hosts ({', '.join(sorted(hosts))}): a token is good for one")
    owners = sorted({key.partition("/")[0] for key in found})
    if len(owners) > 1:
        raise UsageError(f"repositories of two owners ({', '.join(owners)}): ask for a token for each owner")
    if len(found) > MAX_REPOSITORIES:
        raise UsageError(f"{len(found)} repositories in one call: at most {MAX_REPOSITORIES}, or use --owner")
    return (hosts.pop() if hosts else None), list(found.values())


def parse_permissions(texts: tuple[str, ...]) -> dict[str, str]:
    """Return the permissions of `name=read` texts.

    Raises:
        UsageError: malformed, or a level other than `read`.
    """
    permissions: dict[str, str] = {}
    for text in texts:
        name, equals, level = text.partition("=")
        if not equals or re.fullmatch(r"[a-z][a-z_]{0,63}", name) is None:
            raise UsageError(f"--permission {_quoted(text)} is malformed: give it like contents=read")
        if level != "read":
            raise UsageError(f"--permission {_quoted(text)}: only read is possible, give {name}=read")
        permissions[name] = level
    return permissions


def _split_url(text: str) -> tuple[str, str]:
    """Return `(host, path)` of a repository's URL, path without slashes around it."""
    from urllib.parse import urlsplit  # noqa: PLC0415

    if "@" in text:
        raise UsageError(
            "a repository's URL with credentials in it is refused (a command line is visible to others on"
            " the machine): give owner/repo or https://github.com/owner/repo"
        )
    wrong = UsageError(f"{_quoted(text)} is no repository's URL: give it like https://github.com/owner/repo")
    if not text.isascii() or not text.isprintable() or any(character in text for character in " ?#\\"):
        raise wrong
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise UsageError(
            f"{_quoted(text)} is not an https URL: give owner/repo or https://github.com/owner/repo"
        )
    if not is_host(host) or port == 0:
        raise wrong
    host = f"[{host}]" if ":" in host else host
    if port not in {None, DEFAULT_PORTS[parts.scheme]}:
        host = f"{host}:{port}"
    return host, parts.path.removeprefix("/").removesuffix("/")


def _quoted(text: str) -> str:
    """Return what the user typed, cut to a readable length."""
    limit = 80
    return repr(text if len(text) <= limit else f"{text[:limit]}...")
