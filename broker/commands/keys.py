"""``broker keys``: API keys straight on the store, by the same atomic steps as the API."""

import getpass
import json
from typing import Any

import click

from broker import settings as broker_settings
from broker.access.keys import KEY_ID, generate
from broker.commands.opened import with_store
from broker.issuing.keys import KeyPolicy, KeyRegister
from broker.model import Role
from broker.store.sealed import SealedStore
from broker.web.tokens import key_answer
from broker.wording import rfc3339

BY = "broker keys"


@click.group("keys")
def command() -> None:
    """Make, list and revoke API keys, straight on the store."""


@command.command("generate")
def generate_() -> None:
    """Print a new key in the right form; needs no store (for BROKER_ADMIN_KEY)."""
    key, _ = generate()
    click.echo(key.reveal())


@command.command("create")
@click.option("--name", required=True, help="What or who the key is for; appears in the audit.")
@click.option(
    "--repository",
    "repositories",
    multiple=True,
    metavar="PATTERN",
    help="owner/repo, owner/*, owner/prefix-* or */*; may be given again.",
)
@click.option("--admin", is_flag=True, help="May administer the broker as well.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    metavar="NAME[=read]",
    help="The most that it may ask for; default contents and metadata.",
)
@click.option("--expires-in", metavar="90d", help="After which it ends: 12h, 90d; default never.")
@click.option("--rate-limit", type=click.IntRange(1, 1_000_000), help="Requests a minute; default no limit.")
def create(
    *,
    name: str,
    repositories: tuple[str, ...],
    admin: bool,
    permissions: tuple[str, ...],
    expires_in: str | None,
    rate_limit: int | None,
) -> None:
    """Make a key and print it, alone, on stdout. It is shown this one time."""
    if not repositories and not admin:
        raise click.UsageError("--repository is needed, such as --repository 'acme/*'")
    seconds: Any = None
    if expires_in is not None and expires_in.strip().isdecimal():
        raise click.BadParameter("90 of what? Write 90d or 12h.", param_hint="--expires-in")
    if expires_in is not None:
        try:
            seconds = broker_settings.parse_duration(expires_in)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--expires-in") from None
    wanted = {one.partition("=")[0]: one.partition("=")[2] or "read" for one in permissions}

    async def work(store: SealedStore) -> str:
        policy = KeyPolicy.parse(
            name=name,
            role=Role.ADMIN if admin else Role.CALLER,
            repositories=repositories,
            permissions=wanted or None,
            rate_limit_per_minute=rate_limit,
        )
        key, record = await KeyRegister(store).create(policy, by=f"{BY} ({_user()})", expires_in_s=seconds)
        ends = "never ends" if record.expires_at is None else f"ends {rfc3339(record.expires_at)}"
        click.echo(
            f"key {record.id} for {', '.join(record.repositories) or 'administering'}, {ends}", err=True
        )
        return key.reveal()

    click.echo(with_store(work))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_(*, as_json: bool) -> None:
    """List keys, oldest first."""

    async def work(store: SealedStore) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        cursor = None
        while True:
            page = await KeyRegister(store).list(cursor=cursor, limit=200)
            found += [key_answer(entry.record, entry.last_used_at) for entry in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return found

    for row in with_store(work):
        if as_json:
            click.echo(json.dumps(row))
            continue
        ended = row["revoked_at"] and f"revoked {row['revoked_at']}"
        expires = row["expires_at"] and f"expires {row['expires_at']}"
        patterns = row["repositories"]
        shown = ",".join(map(str, patterns)) if isinstance(patterns, list) else ""
        used = row["last_used_at"] or "never used"
        click.echo(
            "  ".join(
                str(part)
                for part in (row["id"], row["role"], row["name"], shown or "-", ended or expires or "-", used)
            )
        )


@command.command("revoke")
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revoke a key by its id (the 12 characters after ghbk_), at once and on every replica."""
    if not KEY_ID.fullmatch(key_id):
        raise click.BadParameter("a key id is the 12 characters after ghbk_", param_hint="KEY_ID")
    with_store(lambda store: KeyRegister(store).revoke(key_id, by=f"{BY} ({_user()})"))
    click.echo(f"{key_id} is revoked", err=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"
