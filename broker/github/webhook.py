"""Webhooks as GitHub sends them: check the signature, read what is to be forgotten; pure, no I/O.

A delivery is a hint and never the truth: it only makes the broker forget what it has cached, and
GitHub's API decides what is so. What is used of a payload is checked strictly, all else is let be.
"Webhook events and payloads" and "Validating webhook deliveries" in GitHub's docs tell the rest.
"""

import contextlib
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from broker.errors import InvalidRequestError, MalformedRequestError, UnsupportedMediaTypeError
from broker.model import RepositoryName, Secret, Target, TargetKind, parse_owner
from broker.ports import HookWork

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
MOST_REPOSITORIES: Final = 50
"""A delivery that names more repositories drops their owner instead."""

_SIGNATURE: Final = re.compile(rb"sha256=[0-9a-f]{64}")
_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_GUID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
_MAX_ID: Final = 2**63
_MOST_FIELDS: Final = 16


class SignatureCheck:
    """HMAC-SHA256 over the raw bytes of one delivery, as they arrive.

    Args:
        secrets: any of them may have signed; with none nothing is ever good.
    """

    def __init__(self, secrets: Sequence[Secret]) -> None:
        self._macs = [hmac.new(secret.reveal().encode(), digestmod=hashlib.sha256) for secret in secrets]

    @staticmethod
    def well_formed(header: bytes | None) -> bool:
        """Return whether ``X-Hub-Signature-256`` could be good: known before the body is read."""
        return header is not None and _SIGNATURE.fullmatch(header) is not None

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        for mac in self._macs:
            mac.update(chunk)

    def verify(self, header: bytes | None) -> bool:
        """Return whether ``X-Hub-Signature-256`` is right for what came; all secrets are always tried."""
        if header is None or not _SIGNATURE.fullmatch(header):
            return False
        good = False
        for mac in self._macs:
            good |= hmac.compare_digest(b"sha256=" + mac.hexdigest().encode(), header)
        return good


def parse_delivery(*, event: str, guid: str, content_type: str, body: bytes) -> HookWork | None:
    """Return what a delivery makes the broker forget; None if that is nothing.

    Args:
        event: ``X-GitHub-Event``.
        guid: ``X-GitHub-Delivery``; a redelivery has the same.
        content_type: JSON, or a form with JSON in its field ``payload``.
        body: raw, its signature checked.

    Raises:
        MalformedRequestError: not a delivery.
        UnsupportedMediaTypeError: another content type.
    """
    if not _WORD.fullmatch(event):
        raise MalformedRequestError(public="X-GitHub-Event is missing or malformed.")
    if not _GUID.fullmatch(guid):
        raise MalformedRequestError(public="X-GitHub-Delivery is missing or malformed.")
    payload = _payload(content_type, body)
    read = _READERS.get(event)
    if read is None:
        return None
    action = payload.get("action")
    action = action if isinstance(action, str) and _WORD.fullmatch(action) else ""
    found = read(action, payload)
    number = _id(_dig(payload, "installation", "id"))
    if found is None or (not found and (number is None or not found.by_installation)):
        return None
    return HookWork(
        event=f"{event}.{action}" if action else event,
        guid=guid,
        drops=found.targets(),
        voids=tuple(sorted(found.voids)),
        installation_id=number,
    )


def _payload(content_type: str, body: bytes) -> Mapping[str, Any]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in {JSON, FORM}:
        raise UnsupportedMediaTypeError("a delivery is JSON or a form")
    try:
        text = body.decode("utf-8") if kind == JSON else _form_payload(body)
        # The hook does nothing, but it is Python: other threads get their turn while much is parsed.
        payload = json.loads(text, object_hook=lambda found: found)
    except (ValueError, RecursionError):
        raise MalformedRequestError from None
    if not isinstance(payload, dict):
        raise MalformedRequestError(public="The payload has to be a JSON object.")
    return payload


def _form_payload(body: bytes) -> str:
    fields = parse_qsl(
        body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
    )
    found = [value for name, value in fields if name == "payload"]
    if len(found) != 1:
        raise MalformedRequestError(public="The form needs exactly one field `payload`.")
    return found[0]


# -- what each event makes us forget ---------------------------------------------------------------


@dataclass(slots=True)
class _Forget:
    """What is to be forgotten, lower case.

    Attributes:
        by_installation: whether the installation's id says enough if no name does.
    """

    owners: set[str] = field(default_factory=set)
    repositories: set[str] = field(default_factory=set)
    voids: set[str] = field(default_factory=set)
    by_installation: bool = False

    def __bool__(self) -> bool:
        return bool(self.owners or self.repositories or self.voids)

    def targets(self) -> tuple[Target, ...]:
        if len(self.repositories) > MOST_REPOSITORIES:
            self.owners |= {name.partition("/")[0] for name in self.repositories}
            self.repositories = set()
        return (
            *(Target(TargetKind.OWNER, name) for name in sorted(self.owners)),
            *(Target(TargetKind.REPOSITORY, name) for name in sorted(self.repositories)),
        )


def _installation(action: str, payload: Mapping[str, Any]) -> _Forget:
    """Whatever happened to an installation, known action or not: its owner is looked at anew.

    ``account`` may be null, or an enterprise without ``login``: then the id has to do.
    """
    del action
    owners = _owners(_dig(payload, "installation", "account", "login"))
    return _Forget(owners=owners, voids=set(owners), by_installation=True)


def _installation_repositories(action: str, payload: Mapping[str, Any]) -> _Forget:
    """Repositories came or went. From all to selected GitHub says "removed" and names none.

    What came can only have failed before. Whatever is not plainly that drops the owner.
    """
    owners = _owners(_dig(payload, "installation", "account", "login"))
    gone = [_full_name(_dig(one, "full_name")) for one in _list(payload.get("repositories_removed"))]
    came = _list(payload.get("repositories_added"))
    plain_removal = action == "removed" and gone and None not in gone
    plain_addition = action == "added" and came and payload.get("repository_selection") != "all"
    return _Forget(
        owners=set() if plain_removal or plain_addition else owners,
        repositories=_names(*gone),
        voids=set(owners),
        by_installation=True,
    )


def _renamed_target(action: str, payload: Mapping[str, Any]) -> _Forget | None:
    if action != "renamed":
        return None
    return _Forget(
        owners=_owners(
            _dig(payload, "changes", "login", "from"),
            _dig(payload, "changes", "slug", "from"),
            _dig(payload, "account", "login"),
            _dig(payload, "account", "slug"),
            _dig(payload, "organization", "login"),
        ),
        by_installation=True,
    )


_REPOSITORY_ACTIONS: Final = frozenset(
    {"renamed", "transferred", "deleted", "privatized", "publicized", "archived", "unarchived"}
)


def _repository(action: str, payload: Mapping[str, Any]) -> _Forget | None:
    if action not in _REPOSITORY_ACTIONS:
        return None
    now = _full_name(_dig(payload, "repository", "full_name"))
    if now is None:
        return None
    owner, _, name = now.partition("/")
    names = {now}
    if action == "renamed":
        old = _dig(payload, "changes", "repository", "name", "from")
        names |= _names(_full_name(f"{owner}/{old}" if isinstance(old, str) else None))
    elif action == "transferred":  # told to the new owner only
        before = _dig(payload, "changes", "owner", "from")
        for old_owner in _owners(_dig(before, "user", "login"), _dig(before, "organization", "login")):
            names |= _names(_full_name(f"{old_owner}/{name}"))
    return _Forget(repositories=names)


def _public(action: str, payload: Mapping[str, Any]) -> _Forget:
    del action
    return _Forget(repositories=_names(_full_name(_dig(payload, "repository", "full_name"))))


def _organization(action: str, payload: Mapping[str, Any]) -> _Forget | None:
    if action not in {"renamed", "deleted"}:
        return None
    return _Forget(
        owners=_owners(
            _dig(payload, "changes", "login", "from"),
            _dig(payload, "organization", "login"),
        ),
        by_installation=True,
    )


_READERS: Final[Mapping[str, Callable[[str, Mapping[str, Any]], _Forget | None]]] = {
    "installation": _installation,
    "installation_repositories": _installation_repositories,
    "installation_target": _renamed_target,
    "repository": _repository,
    "public": _public,
    "organization": _organization,
}


# -- values of which nothing is known yet ----------------------------------------------------------


def _dig(value: object, *path: str) -> object:
    """Return what is at ``path`` in nested objects, None where there is none."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _owners(*logins: object) -> set[str]:
    """Return those that GitHub could allow as logins, lower case."""
    found = set()
    for login in logins:
        if isinstance(login, str):
            with contextlib.suppress(InvalidRequestError):
                found.add(parse_owner(login).lower())
    return found


def _full_name(text: object) -> str | None:
    """Return ``owner/name`` in lower case if GitHub could allow it."""
    if not isinstance(text, str):
        return None
    try:
        return RepositoryName.parse(text).key
    except InvalidRequestError:
        return None


def _names(*names: str | None) -> set[str]:
    return {name for name in names if name is not None}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _id(value: object) -> int | None:
    """Return an id of GitHub's: a whole number that a store can hold."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_ID:
        return value
    return None
