"""git's credential helper protocol: a token for git, or silence; reads stdin, no click.

The protocol is in gitcredentials(7) and git-credential(1): `name=value` lines, to the end of the input or an
empty line. What is not ours is answered with nothing and exit status 0, and git asks its next helper.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from broker_cli.errors import RefusedError, UsageError
from broker_cli.names import parse_repository

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_cli.settings import Flags
    from broker_cli.tokens import Answer

MAX_INPUT_BYTES = 64 * 1024
USERNAME = "x-access-token"
# `git` is what people write into URLs that they copy from ssh ones; any other name is somebody's account.
USERNAMES = frozenset({"", USERNAME, "git"})


class Place(NamedTuple):
    """A repository on a host, as git asks for it."""

    host: str
    repository: str


class Description(NamedTuple):
    """What git wrote: the values that are given once, and those of the lists."""

    values: dict[str, str]
    capabilities: Sequence[str]


def answer_git(flags: Flags, verb: str) -> None:
    """Do what git asks for: `get`, `store` (nothing: the broker keeps tokens) or `erase`.

    Raises:
        BrokerCliError: the broker is out of reach, or settings or key are no good; nothing was printed.
    """
    description = parse_description(sys.stdin.buffer.read(MAX_INPUT_BYTES + 1))
    place = None if description is None else find_place(description.values)
    if description is None or place is None:
        return
    if verb == "get":
        _get(flags, place, description.capabilities)
    elif verb == "erase":
        _erase(place, description.values)


def parse_description(content: bytes) -> Description | None:
    """Return what git wrote, or None if it is not of the protocol."""
    if len(content) > MAX_INPUT_BYTES or b"\0" in content:
        return None
    values: dict[str, str] = {}
    capabilities: list[str] = []
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return None
    for line in lines:
        if not line:
            break
        name, equals, value = line.partition("=")
        if not equals:
            return None
        if name == "capability[]":
            capabilities.append(value)
        values[name] = value
    return Description(values, capabilities)


def find_place(values: dict[str, str]) -> Place | None:
    """Return the repository that git wants to reach, or None if it is not for us.

    https only (http for this very machine), and only with a path (`credential.useHttpPath`): without one a
    token would have to be good for everything on the host.
    """
    protocol, host, path = (values.get(name, "") for name in ("protocol", "host", "path"))
    if not protocol or not host or not path or values.get("username", "") not in USERNAMES:
        return None
    # git-lfs asks for its own endpoint below the repository.
    path = re.sub(r"(?<=.)/info/lfs(?:/.*)?\Z", "", path, flags=re.DOTALL)
    try:
        found, repository = parse_repository(f"{protocol}://{host}/{path}")
    except UsageError:
        return None
    return None if found is None else Place(found, repository)


def _get(flags: Flags, place: Place, capabilities: Sequence[str]) -> None:
    from broker_cli.output import say, write_result  # noqa: PLC0415

    try:
        answer = _fresh_answer(flags, place)
    except RefusedError as refusal:
        if refusal.code != "unknown_host":  # of another host nothing is said: it is not ours
            say(f"no token for {place.repository}, left to git's next helper: {refusal}")
        return
    lines = [f"username={USERNAME}", f"password={answer.token}"]
    if (expiry := _expiry(answer)) is not None:
        lines.append(f"password_expiry_utc={expiry}")
    if "authtype" in capabilities:
        # `ephemeral` tells storing helpers to leave it alone; it belongs to this capability (git 2.46).
        lines = ["capability[]=authtype", *lines, "ephemeral=1"]
    write_result("\n".join(lines))


def _fresh_answer(flags: Flags, place: Place) -> Answer:
    """Return the broker's token; minted anew if git had this very one refused."""
    from broker_cli.api import open_broker  # noqa: PLC0415
    from broker_cli.refused_tokens import find_refused, forget_refused  # noqa: PLC0415
    from broker_cli.tokens import ask_token  # noqa: PLC0415

    request: dict[str, object] = {"repositories": [place.repository], "host": place.host}
    refused = find_refused(place)
    with open_broker(flags) as broker:
        answer = ask_token(broker, request)
        if refused is None:
            return answer
        if refused.is_of(answer.token):
            answer = ask_token(broker, {**request, "refresh": True})
        if not refused.is_of(answer.token):
            forget_refused(place)
        return answer


def _erase(place: Place, values: dict[str, str]) -> None:
    """Note that a token was refused, so that the next `get` has another minted."""
    from broker_cli.refused_tokens import note_refused  # noqa: PLC0415

    if password := values.get("password"):
        note_refused(place, password)


def _expiry(answer: Answer) -> int | None:
    """Return when a token ends, in seconds since 1970, or None if the broker did not say intelligibly."""
    from datetime import datetime  # noqa: PLC0415

    try:
        moment = datetime.fromisoformat(str(answer.document.get("expires_at")))
    except ValueError:
        return None
    return None if moment.tzinfo is None else int(moment.timestamp())
