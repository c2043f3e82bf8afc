"""Policy: what a key may ask for; pure.

A decision is made on one snapshot of the caller's record, on every request, before any cached token
is opened and before GitHub is asked.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from broker.access.keys import PresentedKey
from broker.errors import ForbiddenError, InvalidApiKeyError, InvalidRequestError
from broker.model import ApiKeyRecord, Grant, Role, Scope, parse_owner

MAX_PATTERNS: Final = 1000
_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{0,99}\*|[A-Za-z0-9._-]{1,100}", re.ASCII)


@lru_cache(maxsize=4096)
def parse_pattern(text: str) -> tuple[str, str]:
    """Return owner and name of ``owner/repo``, ``owner/*``, ``owner/prefix-*`` or ``*/*``, lower case.

    Raises:
        InvalidRequestError: it is none of these.
    """
    owner, _, name = text.partition("/")
    if text == "*/*":
        return "*", "*"
    if not _NAME_PATTERN.fullmatch(name) or name in {".", ".."}:
        raise InvalidRequestError(
            public="repositories: a pattern is owner/repo, owner/*, owner/prefix-* or */*."
        )
    return parse_owner(owner).lower(), name.lower()


def parse_patterns(texts: Iterable[str]) -> tuple[str, ...]:
    """Return patterns, checked, in lower case, each once.

    Raises:
        InvalidRequestError: none at all, too many, or one is malformed.
    """
    patterns = tuple(dict.fromkeys("/".join(parse_pattern(text)) for text in texts))
    if not patterns:
        raise InvalidRequestError(public="repositories: at least one pattern is needed.")
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequestError(public=f"repositories: at most {MAX_PATTERNS} patterns.")
    return patterns


def reaches(patterns: tuple[str, ...], repository_key: str) -> bool:
    """Return whether one of ``patterns`` covers the lower-case ``owner/name``."""
    whole, beginnings = _compiled(patterns)
    return repository_key in whole or repository_key.startswith(beginnings)


@lru_cache(1024)
def _compiled(patterns: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the names that patterns hold whole, and the beginnings of those with ``*``."""
    parsed = [parse_pattern(pattern) for pattern in patterns]
    if ("*", "*") in parsed:
        return frozenset(), ("",)
    whole = frozenset(f"{owner}/{name}" for owner, name in parsed if not name.endswith("*"))
    return whole, tuple(f"{owner}/{name[:-1]}" for owner, name in parsed if name.endswith("*"))


def reaches_all_of(patterns: Sequence[str], owner: str) -> bool:
    """Return whether ``patterns`` cover every repository of the lower-case ``owner``."""
    return any(parse_pattern(pattern) in {("*", "*"), (owner, "*")} for pattern in patterns)


def authenticate(presented: PresentedKey, record: ApiKeyRecord | None, *, now: float) -> ApiKeyRecord:
    """Return the record if the key is that key and has not ended.

    Args:
        presented: what the caller showed.
        record: what the store holds under that id.
        now: store time, Unix seconds.

    Raises:
        InvalidApiKeyError: one answer for unknown, wrong, expired and revoked.
    """
    if record is None:
        raise InvalidApiKeyError("an unknown key")
    if not presented.matches(record.sha256):
        raise InvalidApiKeyError("a wrong secret for a known key id")
    if record.ended(now):
        raise InvalidApiKeyError("a revoked or expired key")
    return record


def authorize(caller: ApiKeyRecord, scope: Scope, *, allowed_owners: frozenset[str] | None) -> Grant:
    """Return the grant if the caller's policy covers all of ``scope``.

    Args:
        caller: an authenticated caller.
        scope: what is asked for.
        allowed_owners: lower-case owners that this broker serves at all; None for every one.

    Raises:
        ForbiddenError: it does not. The text tells nothing about what exists.
    """
    if allowed_owners is not None and scope.owner not in allowed_owners:
        raise ForbiddenError(f"owner {scope.owner} is not in BROKER_ALLOWED_OWNERS")
    _covered(caller.repositories, caller.permissions, scope)
    return Grant(caller.id, caller.name, scope)


@lru_cache(256)
def _covered(patterns: tuple[str, ...], permissions: tuple[str, ...], scope: Scope) -> None:
    """Return if a policy covers all of ``scope``; the same question has the same answer.

    Raises:
        ForbiddenError: it does not; that is not remembered.
    """
    if scope.repositories is None:
        if not reaches_all_of(patterns, scope.owner):
            raise ForbiddenError(
                f"the key's patterns do not cover {scope.owner}/*",
                public="This key may not have a token for all repositories of that owner.",
            )
    else:
        for name in scope.repositories:
            if not reaches(patterns, name):
                raise ForbiddenError(f"the key's patterns do not cover {name}")
    beyond = sorted(set(scope.permissions) - set(permissions) - {"metadata"})
    if beyond:
        raise ForbiddenError(
            f"the key's permissions do not cover {', '.join(beyond)}",
            public="This key's policy does not allow one of the permissions asked for.",
        )


def require_admin(caller: ApiKeyRecord) -> None:
    """Let admins through.

    Raises:
        ForbiddenError: the caller is none.
    """
    if caller.role is not Role.ADMIN:
        raise ForbiddenError("not an admin key", public="This needs an admin key.")
