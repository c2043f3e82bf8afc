"""The options that say what a token must be like, for the commands that ask for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click

from broker_cli.tokens import MAX_MIN_TTL_S

if TYPE_CHECKING:
    from collections.abc import Callable

Decorated = TypeVar("Decorated", bound="Callable[..., object]")


def wish_options(command: Decorated) -> Decorated:
    """Add `--owner`, `--permission`, `--min-ttl` and `--refresh`."""
    for option in (
        click.option(
            "--refresh", is_flag=True, help="Ask for a new token even if the broker has a good one."
        ),
        click.option(
            "--min-ttl",
            type=click.IntRange(0, MAX_MIN_TTL_S),
            metavar="SECONDS",
            help=f"The least life the token must have left, 0 to {MAX_MIN_TTL_S}.",
        ),
        click.option(
            "--permission",
            "permissions",
            multiple=True,
            metavar="NAME=read",
            help="Give the token this permission only; may be repeated. [contents=read]",
        ),
        click.option(
            "--owner", metavar="OWNER", help="All repositories of this owner, in place of single ones."
        ),
    ):
        command = option(command)
    return command
