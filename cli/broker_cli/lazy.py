"""A click group that imports a command only when it is called or listed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping


class LazyGroup(click.Group):
    """A group whose commands are given as `{"name": "package.module:attribute"}`."""

    def __init__(self, *, name: str, lazy: Mapping[str, str], help: str) -> None:  # noqa: A002 - click's word
        super().__init__(name=name, help=help, no_args_is_help=True)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order they were given in."""
        del ctx
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; an unknown one is told together with those there are."""
        place = self._lazy.get(cmd_name)
        if place is None:
            if not cmd_name.startswith("-") and not ctx.resilient_parsing:  # a shell completes: no errors
                ctx.fail(f"there is no command {cmd_name!r} here, only: {', '.join(self._lazy)}")
            return None
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(place)
        return command
