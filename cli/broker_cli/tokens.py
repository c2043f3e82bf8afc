"""Asking for a token: the request, the answer checked; no click, so that the short way starts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from broker_cli.errors import UsageError
from broker_cli.names import parse_owner, parse_permissions, parse_repositories

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_cli.api import Broker
    from broker_cli.settings import Flags

MAX_MIN_TTL_S = 3300


class Answer(NamedTuple):
    """A token that may be passed on, and all that came with it."""

    token: str
    document: Mapping[str, object]

    def __repr__(self) -> str:
        return "Answer([hidden])"


def token_request(
    repositories: tuple[str, ...],
    *,
    owner: str | None = None,
    permissions: tuple[str, ...] = (),
    min_ttl_s: int | None = None,
    refresh: bool = False,
) -> dict[str, object]:
    """Return the body of a request for a token, from what the user typed.

    Raises:
        UsageError: no repository and no owner, or a name that GitHub would not allow.
    """
    request = _scope(repositories, owner)
    if permissions:
        request["permissions"] = parse_permissions(permissions)
    if min_ttl_s is not None:
        request["min_ttl"] = min_ttl_s
    if refresh:
        request["refresh"] = True
    return request


def ask_token(broker: Broker, request: Mapping[str, object]) -> Answer:
    """Return the broker's token for a request.

    Raises:
        BrokerCliError: any of its kinds; also for an answer that should not be passed on.
    """
    document = broker.post("/v1/github/token", request)
    text, granted = document.get("token"), document.get("permissions")
    # A token is opaque: no length, no alphabet. What it can't hold is what would end a line or a header.
    if not isinstance(text, str) or not text or not text.isprintable() or any(map(str.isspace, text)):
        raise broker.unexpected("it holds no token")
    if isinstance(granted, dict) and any(level != "read" for level in granted.values()):
        raise broker.unexpected("the token can do more than read, so it is not passed on")
    return Answer(text, document)


def get_token(flags: Flags, request: Mapping[str, object]) -> Answer:
    """Return one token, on a connection of its own.

    Raises:
        BrokerCliError: any of its kinds.
    """
    from broker_cli.api import open_broker  # noqa: PLC0415 - not needed for usage errors

    with open_broker(flags) as broker:
        return ask_token(broker, request)


def print_token(flags: Flags, request: Mapping[str, object], *, as_json: bool) -> None:
    """Print one token, or the whole answer, to stdout.

    Raises:
        BrokerCliError: any of its kinds.
    """
    from broker_cli.output import write_json, write_result  # noqa: PLC0415

    answer = get_token(flags, request)
    if as_json:
        write_json(answer.document)
    else:
        write_result(answer.token)


def _scope(repositories: tuple[str, ...], owner: str | None) -> dict[str, object]:
    """Return the members of the request that say which repositories the token is for."""
    if owner is not None:
        if repositories:
            raise UsageError("give repositories or --owner, not both")
        return {"owner": parse_owner(owner)}
    if not repositories:
        raise UsageError("name a repository (owner/repo), or an owner with --owner")
    host, names = parse_repositories(repositories)
    return {"repositories": names} if host is None else {"repositories": names, "host": host}
