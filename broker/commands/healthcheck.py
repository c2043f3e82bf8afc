"""``broker healthcheck``: asks a broker whether it lives; for images that have no shell and no curl."""

import sys

import click
import httpx

from broker import settings as broker_settings

_TIMEOUT_S = 4.0


@click.command("healthcheck")
@click.argument("url", required=False)
def command(url: str | None) -> None:
    """Ask URL (default: /livez of the broker on this machine); exit 0 if the answer is 200."""
    url = url or f"{broker_settings.own_address()}/livez"
    try:
        # Nothing secret is sent or read, and a certificate is made for the public name, not for loopback.
        answer = httpx.get(url, timeout=_TIMEOUT_S, verify=False, trust_env=False)  # noqa: S501
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        click.echo(f"broker: {url}: {str(error) or type(error).__name__}", err=True)
        sys.exit(1)
    if answer.status_code != httpx.codes.OK:
        click.echo(f"broker: {url} answers {answer.status_code}", err=True)
        sys.exit(1)
