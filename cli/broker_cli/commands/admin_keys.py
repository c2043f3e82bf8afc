"""`broker-cli admin keys …`: makes, shows, changes and ends API keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import click

from broker_cli.api import open_broker
from broker_cli.commands.admin_outcome import check_outcome, write_outcome
from broker_cli.connection import connection_options
from broker_cli.durations import parse_duration_s
from broker_cli.errors import UsageError
from broker_cli.names import parse_permissions
from broker_cli.output import say, write_json, write_result
from broker_cli.tables import text_of, write_record, write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker_cli.api import Broker
    from broker_cli.settings import Flags

Decorated = TypeVar("Decorated", bound="Callable[..., object]")

PATH = "/v1/admin/keys"
MAX_OVERLAP_S = 7 * 86400
IN_DOUBT = (
    "it is not tried again, because the key may have been made all the same: look at 'broker-cli admin keys"
    " list', and revoke what nobody has"
)
ROTATION_IN_DOUBT = f"{IN_DOUBT}; if the old one ends with it, make a new one"


def _options(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_json_option = click.option("--json", "as_json", is_flag=True, help="Print what the broker answers, as JSON.")
_policy_options = _options(
    click.option(
        "--repository",
        "repositories",
        multiple=True,
        metavar="PATTERN",
        help="owner/repo, owner/*, owner/prefix-* or */*; may be repeated.",
    ),
    click.option(
        "--permission",
        "permissions",
        multiple=True,
        metavar="NAME=read",
        help="The most that the key may ask for; may be repeated. [contents=read]",
    ),
    click.option("--expires-in", metavar="TIME", help="When it ends, from now: 90d, 12h, 30m."),
    click.option("--expires-at", metavar="TIME", help="When it ends, like 2026-11-22T10:00:00Z."),
    click.option("--rate-limit", type=click.IntRange(1, 1_000_000), metavar="N", help="Requests a minute."),
)


@click.command(
    help="""Make a key. The key alone goes to stdout, this one time; its id and expiry to stderr.

    \b
    Examples:
      broker-cli admin keys create --name nightly --repository 'acme/*' --expires-in 90d
      broker-cli admin keys create --name ops --admin
    """
)
@click.option("--name", required=True, help="What or who the key is for; appears in the audit.")
@_policy_options
@click.option("--admin", is_flag=True, help="May administer the broker as well.")
@_json_option
@connection_options
@click.pass_obj
def create(
    flags: Flags,
    *,
    name: str,
    repositories: tuple[str, ...],
    permissions: tuple[str, ...],
    expires_in: str | None,
    expires_at: str | None,
    rate_limit: int | None,
    admin: bool,
    as_json: bool,
) -> None:
    """Make a key and print it."""
    if not repositories and not admin:
        raise UsageError("--repository is needed, such as --repository 'acme/*'")
    request = _policy(permissions, expires_in, expires_at, rate_limit)
    request |= {"name": name, "repositories": list(repositories)}
    if admin:
        request["role"] = "admin"
    with open_broker(flags) as broker:
        answer = _checked_key(broker, broker.post_once(PATH, request, doubt=IN_DOUBT))
    _write_key(answer, as_json=as_json)


@click.command(
    "list",
    help="""List the keys, oldest first.

    \b
    Examples:
      broker-cli admin keys list
      broker-cli admin keys list --json
    """,
)
@_json_option
@connection_options
@click.pass_obj
def list_(flags: Flags, *, as_json: bool) -> None:
    """Print all keys."""
    with open_broker(flags) as broker:
        keys = [_checked(broker, record) for record in broker.pages(PATH, "keys")]
    if as_json:
        write_json({"keys": keys})
    elif keys:
        titles = ("ID", "NAME", "ROLE", "REPOSITORIES", "PERMISSIONS", "STATE", "LAST USED")
        write_table(
            titles,
            [
                (
                    *(text_of(key.get(name)) for name in ("id", "name", "role", "repositories")),
                    ", ".join(_names(key.get("permissions"))) or "-",
                    _state(key),
                    text_of(key.get("last_used_at"), absent="never"),
                )
                for key in keys
            ],
        )


@click.command(
    help="""Show a key's record. ID is the 12 characters after ghbk_.

    \b
    Examples:
      broker-cli admin keys show 0aB3dE6gH9jK
    """
)
@click.argument("key_id", metavar="ID")
@_json_option
@connection_options
@click.pass_obj
def show(flags: Flags, *, key_id: str, as_json: bool) -> None:
    """Print one record."""
    path = _path(key_id)
    with open_broker(flags) as broker:
        record = _checked(broker, broker.get(path))
    _write_record(record, as_json=as_json)


@click.command(
    help="""Change what a key may do, at once and on every replica; what is not named stays.

    \b
    Examples:
      broker-cli admin keys update 0aB3dE6gH9jK --repository acme/etl --repository acme/shared
      broker-cli admin keys update 0aB3dE6gH9jK --expires-in 30d --no-rate-limit
    """
)
@click.argument("key_id", metavar="ID")
@click.option("--name", help="Its new name.")
@_policy_options
@click.option("--no-expiry", is_flag=True, help="It does not end by itself.")
@click.option("--no-rate-limit", is_flag=True, help="No limit of its own.")
@_json_option
@connection_options
@click.pass_obj
def update(
    flags: Flags,
    *,
    key_id: str,
    name: str | None,
    repositories: tuple[str, ...],
    permissions: tuple[str, ...],
    expires_in: str | None,
    expires_at: str | None,
    rate_limit: int | None,
    no_expiry: bool,
    no_rate_limit: bool,
    as_json: bool,
) -> None:
    """Change one key and print its record."""
    path = _path(key_id)
    if no_expiry and (expires_in or expires_at):
        raise UsageError("give --no-expiry or a time, not both")
    if no_rate_limit and rate_limit is not None:
        raise UsageError("give --no-rate-limit or --rate-limit, not both")
    request = _policy(permissions, expires_in, expires_at, rate_limit)
    if name is not None:
        request["name"] = name
    if repositories:
        request["repositories"] = list(repositories)
    if no_expiry:
        request["expires_at"] = None
    if no_rate_limit:
        request["rate_limit_per_minute"] = None
    if not request:
        raise UsageError("name at least one thing to change")
    with open_broker(flags) as broker:
        record = _checked(broker, broker.change("PATCH", path, request))
    _write_record(record, as_json=as_json)


@click.command(
    help="""Make a new key with the same policy, and end the old one, at once or after an overlap.

    The new key alone goes to stdout, this one time; its id and expiry to stderr.

    \b
    Examples:
      broker-cli admin keys rotate 0aB3dE6gH9jK --overlap 1d
    """
)
@click.argument("key_id", metavar="ID")
@click.option(
    "--overlap", default="0", metavar="TIME", help="For so long the old one works too, up to 7d. [0]"
)
@_json_option
@connection_options
@click.pass_obj
def rotate(flags: Flags, *, key_id: str, overlap: str, as_json: bool) -> None:
    """Rotate one key and print the new one."""
    path = _path(key_id)
    overlap_s = parse_duration_s(overlap, option="--overlap")
    if overlap_s > MAX_OVERLAP_S:
        raise UsageError("--overlap is at most 7d")
    with open_broker(flags) as broker:
        reply = broker.post_once(f"{path}/rotate", {"overlap_seconds": overlap_s}, doubt=ROTATION_IN_DOUBT)
        answer = _checked_key(broker, reply)
    _write_key(answer, as_json=as_json)


@click.command(
    help="""End a key, at once and on every replica.

    \b
    Examples:
      broker-cli admin keys revoke 0aB3dE6gH9jK
      broker-cli admin keys revoke 0aB3dE6gH9jK --tokens revoke
    """
)
@click.argument("key_id", metavar="ID")
@click.option(
    "--tokens",
    type=click.Choice(["keep", "revoke"]),
    default="keep",
    help="What becomes of the tokens that it was given and that still live. [keep]",
)
@_json_option
@connection_options
@click.pass_obj
def revoke(flags: Flags, *, key_id: str, tokens: str, as_json: bool) -> None:
    """Revoke one key and tell what became of its tokens."""
    path = _path(key_id)
    with open_broker(flags) as broker:
        answer = broker.change("DELETE", f"{path}?tokens={tokens}", None)
        check_outcome(broker, answer)
    say(f"key {key_id} is revoked")
    if as_json or tokens == "revoke":
        write_outcome(answer, as_json=as_json)


def _path(key_id: str) -> str:
    """Return the path of a key.

    Raises:
        UsageError: that is no key's id; a whole key is not repeated in the message.
    """
    if re.fullmatch(r"[0-9A-Za-z]{12}", key_id) is None:
        raise UsageError("a key's ID is the 12 characters after ghbk_, never the key itself")
    return f"{PATH}/{key_id}"


def _policy(
    permissions: tuple[str, ...], expires_in: str | None, expires_at: str | None, rate_limit: int | None
) -> dict[str, object]:
    """Return the members of a request that creation and change have in common."""
    if expires_in is not None and expires_at is not None:
        raise UsageError("give --expires-in or --expires-at, not both")
    request: dict[str, object] = {}
    if permissions:
        request["permissions"] = parse_permissions(permissions)
    if expires_in is not None:
        request["expires_at"] = _from_now(parse_duration_s(expires_in, option="--expires-in"))
    if expires_at is not None:
        request["expires_at"] = expires_at
    if rate_limit is not None:
        request["rate_limit_per_minute"] = rate_limit
    return request


def _from_now(seconds: int) -> str:
    import time  # noqa: PLC0415

    # The broker takes a moment, not a length; this machine's clock is the only one at hand.
    moment = time.gmtime(time.time() + seconds)  # noqa: TID251
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)


def _checked(broker: Broker, record: dict[str, object]) -> dict[str, object]:
    if not isinstance(record.get("id"), str):
        raise broker.unexpected("it is no key's record")
    return record


def _checked_key(broker: Broker, answer: dict[str, object]) -> dict[str, object]:
    key = answer.get("key")
    if not isinstance(key, str) or re.fullmatch(r"[0-9A-Za-z_]{20,200}", key) is None:
        raise broker.unexpected("it holds no key")
    return _checked(broker, answer)


def _write_key(answer: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        write_json(answer)
        return
    write_result(str(answer["key"]))
    expires = answer.get("expires_at")
    say(
        f"key {text_of(answer.get('id'))}, {'expires ' + text_of(expires) if expires else 'never expires'};"
        " it is not shown again"
    )


def _write_record(record: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        write_json(record)
        return
    write_record(
        [
            ("key", f"{text_of(record.get('name'))} ({text_of(record.get('id'))})"),
            ("role", text_of(record.get("role"))),
            ("repositories", text_of(record.get("repositories"))),
            ("permissions", text_of(record.get("permissions"))),
            ("created", f"{text_of(record.get('created_at'))} by {text_of(record.get('created_by'))}"),
            ("expires", text_of(record.get("expires_at"), absent="never")),
            ("revoked", text_of(record.get("revoked_at"), absent="no")),
            ("last used", text_of(record.get("last_used_at"), absent="never")),
            ("rate limit", text_of(record.get("rate_limit_per_minute"), absent="none of its own")),
        ]
    )


def _names(value: object) -> list[str]:
    return [text_of(name) for name in value] if isinstance(value, dict) else []


def _state(record: Mapping[str, object]) -> str:
    if record.get("revoked_at"):
        return f"revoked {text_of(record['revoked_at'])}"
    if record.get("expires_at"):
        return f"until {text_of(record['expires_at'])}"
    return "no end"
