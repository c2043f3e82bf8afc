"""``broker setup``: makes a GitHub App in the browser, keeps its secrets, waits until it works."""

import asyncio
import contextlib
import logging
import re
import secrets
import shlex
import socket
import sys
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import click
import uvicorn

from broker import settings as broker_settings
from broker.errors import BrokerError, InvalidRequestError, SetupError
from broker.github.manifest import LONGEST_NAME, parse_name, parse_webhook_url
from broker.model import parse_owner
from broker.setup.flow import Setup, Wish
from broker.setup.keeping import Keeping
from broker.setup.page import SetupPage, page_to_carry

_HOUR_S: Final = 3600.0
"""GitHub's code lives as long ("Registering a GitHub App from a manifest")."""

_LAST_LOOK_S: Final = 5.0
_SECRET_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@click.command("setup")
@click.option("--org", help="The organization that the app is to belong to; else it is your own account's.")
@click.option("--name", help="Name of the app, unique on all of GitHub; you may change it there.")
@click.option("--webhook-url", help="The broker's https address, if GitHub can reach it.")
@click.option("--github-url", help="GitHub Enterprise: https://HOST. Else BROKER_GITHUB_URL, or github.com.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("broker-app"),
    show_default=True,
    help="Folder for .env, the private key and the webhook secret.",
)
@click.option(
    "--kubernetes-secret", metavar="NAME", help="Write a Secret of that name and the chart's values instead."
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
@click.option("--no-browser", is_flag=True, help="Print the page's address and open nothing.")
@click.option(
    "--manual", is_flag=True, help="Listen nowhere: a file to open elsewhere, an address to paste back."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Of the local page; a random one else."
)
def command(
    *,
    org: str | None,
    name: str | None,
    webhook_url: str | None,
    github_url: str | None,
    output: Path,
    kubernetes_secret: str | None,
    force: bool,
    no_browser: bool,
    manual: bool,
    port: int,
) -> None:
    """Make a GitHub App for the broker: one click in the browser, then choose its repositories.

    The app may read contents and metadata, and nothing else. Its private key comes straight from GitHub
    into files that only you can read.
    """
    place = broker_settings.load_place(github_url)
    try:
        org = parse_owner(org) if org else None
        wish = Wish(
            place=place,
            org=org,
            name=parse_name(name or _name(org)),
            webhook_url=parse_webhook_url(webhook_url) if webhook_url else None,
        )
    except InvalidRequestError as error:
        raise click.UsageError(error.public) from None
    if kubernetes_secret and not _SECRET_NAME.fullmatch(kubernetes_secret):
        raise click.UsageError(f"{kubernetes_secret} is no name of a Secret")
    # The addresses that are asked hold a code that is worth the app's key for a moment.
    logging.disable(logging.CRITICAL)
    keeping = Keeping(output, place, kubernetes_secret=kubernetes_secret, force=force, manual=manual)
    try:
        keeping.prepare()
    except SetupError as error:
        raise click.UsageError(str(error)) from None
    try:
        asyncio.run(
            _by_hand(wish, keeping) if manual else _by_page(wish, keeping, port, open_it=not no_browser)
        )
    except KeyboardInterrupt:
        raise click.ClickException("stopped") from None
    except BrokerError as error:
        raise click.ClickException(str(error)) from None


def _name(org: str | None) -> str:
    """Return a name that is likely to be free: they are unique on all of GitHub."""
    if org is None:
        return f"token-broker-{secrets.token_hex(3)}"
    ending = "-token-broker"
    return f"{org[: LONGEST_NAME - len(ending)]}{ending}"


async def _by_page(wish: Wish, keeping: Keeping, port: int, *, open_it: bool) -> None:
    setup = Setup(wish, keeping.keep)
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise SetupError(f"port {port} cannot be had: {error.strerror}") from None
    port = listener.getsockname()[1]
    page = SetupPage(setup, port=port, kept=str(keeping.folder))
    async with _served(page, listener):
        click.echo(f"Open this page in a browser on this machine:\n\n  {page.url}\n")
        if open_it and _opened(page.url):
            click.echo("(It opens by itself now.)")
        else:
            click.echo(
                f"From another machine: ssh -L {port}:127.0.0.1:{port} THIS-HOST there, then open the same "
                "address.\n"
                "Without that: broker setup --manual."
            )
        try:
            async with asyncio.timeout(_HOUR_S):
                await setup.made.wait()
        except TimeoutError:
            raise SetupError("nobody came back from GitHub within the hour") from None
        if setup.failed is not None:
            await asyncio.sleep(0.5)  # the browser is being told too
            raise setup.failed
        await _finish(setup, keeping)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_LOOK_S):
                await page.seen_to_the_end.wait()


async def _by_hand(wish: Wish, keeping: Keeping) -> None:
    setup = Setup(wish, keeping.keep)
    # An address that nothing listens on: the browser shows it all the same, and no proxy gets to see it.
    redirect = f"http://127.0.0.1:{secrets.randbelow(10_000) + 50_000}/made"
    carried = keeping.carry(page_to_carry(setup, redirect))
    try:
        click.echo(
            f"1. Take {carried} to a machine with a browser, open it and go through with it.\n"
            "2. The browser ends at an address on 127.0.0.1 that does not open. Paste that whole address "
            "here."
        )
        # Not shown: the code in it is worth the app's key until it was used, a moment later.
        pasted = click.prompt("Address (not shown)", hide_input=True)
        query = parse_qs(urlsplit(pasted.strip()).query)
        state, code = query.get("state", [""])[-1], query.get("code", [""])[-1]
        if not state or not code:
            raise SetupError("that address has no code and state in it: paste all of it")
        await setup.redeem(state, code)
    finally:
        carried.unlink(missing_ok=True)
    await _finish(setup, keeping)


async def _finish(setup: Setup, keeping: Keeping) -> None:
    """Say what there is, wait for the installation, prove that it works, say what comes next."""
    new = setup.new
    if new is None:
        raise SetupError("the app is not made")
    _good(
        f"GitHub made the app {new.app.slug}, owned by {new.app.owner}; its secrets are in {keeping.folder}"
    )
    if setup.wish.webhook_url and new.webhook_secret is None:
        click.echo(
            "! GitHub gave no webhook secret: set one on the app's page, and BROKER_GITHUB_WEBHOOK_SECRET"
        )
    owner = ""
    try:
        await setup.wait_until_known()
        click.echo(f"Now install it on the repositories it may read:\n\n  {setup.install_page}\n")
        installation = await setup.wait_for_installation()
        owner = installation.login
        _good(f"installed on {owner}: {installation.selection} repositories")
        repository = await setup.first_token()
        if repository is None:
            click.echo("! it reaches no repository yet: add some on the same page")
        else:
            _good(
                f"a first token came, for {repository}: it could read and nothing else; it is revoked again"
            )
        setup.done.set()
    except (asyncio.CancelledError, KeyboardInterrupt):
        click.echo(f"\nNot finished. Its secrets are kept; install it later: {setup.install_page}")
        raise
    finally:
        _next(keeping, owner or setup.wish.org or "OWNER", webhook=new.webhook_secret is not None)


def _next(keeping: Keeping, owner: str, *, webhook: bool) -> None:
    """Print the commands to paste."""
    if keeping.kubernetes_secret:
        values = shlex.quote(str(keeping.folder / "values.yaml"))
        lines = [
            f"kubectl create -f {shlex.quote(str(keeping.folder / 'secret.yaml'))}",
            f"helm upgrade --install broker ./helm -f {values} --set store.existingSecret=NAME",
        ]
    else:
        run = _how_to_run(keeping.folder)
        lines = [
            f"cd {shlex.quote(str(keeping.folder))}",
            f"{run} check",
            f"{run} keys create --name first --repository '{owner}/*' --expires-in 90d",
            f"{run} serve",
        ]
    click.secho("\nNext:\n", bold=True)
    for line in lines:
        click.echo(f"  {line}")
    if keeping.kubernetes_secret:
        click.echo(f"\n{keeping.folder} holds the app's private key: delete it when the Secret is there.")
    elif not webhook:
        click.echo("\nWithout a webhook, changes on GitHub are noticed within BROKER_INSTALLATION_TTL.")


def _how_to_run(folder: Path) -> str:
    """Return how ``broker`` is called in that folder: in a clone uv finds it."""
    clone = Path(sys.prefix).parent
    if not (clone / "pyproject.toml").is_file():
        return "broker"
    if folder.absolute().is_relative_to(clone):
        return "uv run broker"
    return f"uv run --project {shlex.quote(str(clone))} broker"


def _good(text: str) -> None:
    click.echo(click.style("✓ ", fg="green") + text)


def _opened(url: str) -> bool:
    """Open a browser with windows; one for terminals would take this one away."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    return type(browser) is not webbrowser.GenericBrowser and browser.open(url)


@asynccontextmanager
async def _served(page: SetupPage, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        page.app(),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await task
        listener.close()
