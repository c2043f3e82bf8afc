"""``broker demo``: shows the whole way without a GitHub account."""

import importlib
import importlib.util

import click


@click.command("demo")
@click.option("--serve", is_flag=True, help="Stay up afterwards and print the lines to paste.")
def command(*, serve: bool) -> None:
    """See it work, with nothing but this clone and git.

    An emulated GitHub, the real service, the real client, a private repository cloned.
    """
    if importlib.util.find_spec("broker.sandbox") is None:
        raise click.ClickException("the demo is not part of this image; run it from a clone")
    if importlib.util.find_spec("broker_cli") is None:
        raise click.ClickException("the demo needs the client too; run it from a clone: uv run broker demo")
    demo = importlib.import_module("broker.sandbox.demo")
    try:
        demo.run(serve=serve)
    except demo.DemoError as error:
        raise click.ClickException(str(error)) from None
