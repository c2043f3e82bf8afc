"""The options that every command which talks to the broker has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import click

from broker_cli.settings import DEFAULT_TIMEOUT_S, Flags

if TYPE_CHECKING:
    from collections.abc import Callable

Decorated = TypeVar("Decorated", bound="Callable[..., object]")


def connection_options(command: Decorated) -> Decorated:
    """Add `--api-url`, `--ca-file`, `--timeout` and `--verbose`, before or after the command's name."""
    for option in (
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="Tell on stderr what happens.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True, max=86400),
            metavar="SECONDS",
            expose_value=False,
            callback=_keep,
            help=f"For the whole command, with all its tries. [{DEFAULT_TIMEOUT_S:g}]",
        ),
        click.option(
            "--ca-file",
            metavar="FILE",
            expose_value=False,
            callback=_keep,
            help="Trust the CAs in this PEM file only. [BROKER_CA_FILE]",
        ),
        click.option(
            "--api-url",
            metavar="URL",
            expose_value=False,
            callback=_keep,
            help="The broker's address. [BROKER_API_URL]",
        ),
    ):
        command = option(command)
    return command


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    """Put a flag that was given where the command finds it; the one nearest to the command wins."""
    flags = context.ensure_object(Flags)
    if isinstance(value, float) and math.isnan(value):
        raise click.BadParameter("that is no number of seconds", context, parameter)
    if value is not None and value is not False and parameter.name is not None:
        setattr(flags, parameter.name, value)
