"""What stands between this machine and a token, one look after the other; network, files and `git config`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from broker_cli import __version__
from broker_cli.about import about_broker
from broker_cli.api import open_broker
from broker_cli.errors import BrokerCliError, UnreachableError
from broker_cli.git_setup import effective_helpers, git_version, is_ours, uses_path
from broker_cli.settings import load_route, load_settings
from broker_cli.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_cli.about import About
    from broker_cli.settings import Flags, Route
    from broker_cli.transport import Reply

LIMIT_S = 10.0
SKEW_S = 60.0
SOON_S = 14 * 86400


class Verdict(Enum):
    """How bad a finding is."""

    GOOD = 1
    HINT = 2
    WRONG = 3


class Finding(NamedTuple):
    """One thing looked at, what to do about it, and the exit status it stands for."""

    verdict: Verdict
    text: str
    next_step: str = ""
    status: int = 0


def examine(flags: Flags) -> Iterator[Finding]:
    """Yield what is found, from this program to the broker and git."""
    yield from _program()
    try:
        route = load_route(flags)
    except BrokerCliError as error:
        yield _wrong(error)
        return
    yield Finding(Verdict.GOOD, f"the broker is {route.endpoint.url} (from {route.endpoint_source})")
    has_key = True
    try:
        settings = load_settings(flags)
    except BrokerCliError as error:
        has_key = False
        yield _wrong(error)
    else:
        route = settings.route  # with the CA file of a profile that has the key
        yield Finding(Verdict.GOOD, f"the API key is {settings.key.id} (from {settings.key_source})")
    try:
        reply = _probe(route)
    except BrokerCliError as error:
        yield _wrong(error)
        return
    yield from _broker(route, reply)
    if has_key:
        yield from _key(flags)


def _program() -> Iterator[Finding]:
    """Look at which program this is, and which one PATH would start."""
    here = os.path.realpath(sys.argv[0])
    yield Finding(Verdict.GOOD, f"broker-cli {__version__} at {here}")
    found = shutil.which("broker-cli")
    if found is None:
        yield Finding(
            Verdict.HINT, "no broker-cli is on PATH", "add the folder that it was installed to, for your jobs"
        )
    elif os.path.realpath(found) != here and here.endswith("/broker-cli"):
        yield Finding(
            Verdict.HINT,
            f"PATH starts another broker-cli, {found}",
            "see whose it is: on the public index the name broker-cli is somebody else's project",
        )


def _probe(route: Route) -> Reply:
    """Return the broker's `/readyz`, which needs no key.

    Raises:
        BrokerCliError: no answer, with its cause: name look-up, connection, TLS, proxy.
    """
    transport = Transport(route.endpoint, proxy=route.proxy, ca_file=route.ca_file)
    try:
        headers = {"Accept": "application/json", "User-Agent": f"broker-cli/{__version__}"}
        return transport.exchange("GET", "/readyz", headers=headers, body=None, limit_s=LIMIT_S)
    finally:
        transport.close()


def _broker(route: Route, reply: Reply) -> Iterator[Finding]:
    """Look at what the broker says of itself, and at the time it gives."""
    checks, status = _checks(reply)
    if checks is None:
        yield Finding(
            Verdict.WRONG,
            f"{route.endpoint.url} answers, but not as a broker does (HTTP {reply.status})",
            f"correct the address in {route.endpoint_source}, or look at what stands between",
            UnreachableError.exit_code,
        )
        return
    if status != "ok":
        bad = [f"{name}: {state}" for name, state in checks.items() if state not in {"ok", "unknown"}]
        yield Finding(
            Verdict.WRONG,
            f"the broker is up but {status} ({', '.join(bad) or 'it does not say why'})",
            "tell its operator: its log and 'broker check' say more",
            UnreachableError.exit_code,
        )
    else:
        yield Finding(Verdict.GOOD, "the broker is up and well")
    skew_s = _skew_s(reply)
    if skew_s is not None and abs(skew_s) > SKEW_S:
        way = "behind" if skew_s > 0 else "ahead of"
        yield Finding(
            Verdict.HINT,
            f"this machine's clock is {abs(skew_s):.0f} s {way} the broker's",
            "set it right (NTP): git reads the token's expiry by it, and so do certificates",
        )


def _key(flags: Flags) -> Iterator[Finding]:
    """Look at what the broker says of the key, and whether versions and git fit."""
    try:
        with open_broker(flags) as broker:
            about = about_broker(broker)
    except BrokerCliError as error:
        yield _wrong(error)
        return
    yield Finding(Verdict.GOOD, f"the broker knows the key as {about.key_name}")
    yield from _expiry(about)
    if about.version != __version__:
        yield Finding(
            Verdict.HINT,
            f"the broker is version {about.version}, this client {__version__}",
            "install the client of the broker's version",
        )
    if about.install_url is None:
        yield Finding(
            Verdict.HINT,
            "the broker has not heard from GitHub which app it is",
            "try again in a minute; if it lasts, tell its operator",
        )
    yield from _git(about.github_url)


def _expiry(about: About) -> Iterator[Finding]:
    from datetime import datetime  # noqa: PLC0415

    if about.expires_at is None:
        return
    now_s = time.time()  # noqa: TID251 - only a hint depends on this clock
    try:
        left_s = datetime.fromisoformat(about.expires_at).timestamp() - now_s
    except ValueError:
        return
    if left_s < SOON_S:
        yield Finding(
            Verdict.HINT,
            f"the key expires {about.expires_at}",
            "ask the broker's admin for a new one (broker-cli admin keys rotate)",
        )


def _git(url: str) -> Iterator[Finding]:
    """Look at whether git gets its tokens from here: a hint only, as not everybody wants that."""
    try:
        version, helpers, path = git_version(), effective_helpers(url), uses_path(url)
    except BrokerCliError as error:
        yield Finding(Verdict.HINT, str(error))
        return
    ours = [helper for helper in helpers if is_ours(helper)]
    if not ours:
        yield Finding(
            Verdict.HINT,
            f"git does not get its tokens for {url} from the broker",
            "run 'broker-cli setup-git', if it should",
        )
    elif len(helpers) > 1:
        yield Finding(
            Verdict.HINT,
            f"git asks other helpers for {url} as well, and they may store the token",
            "run 'broker-cli setup-git' again, and see 'git config --get-all --show-origin"
            f" credential.{url}.helper'",
        )
    elif not path:
        yield Finding(
            Verdict.WRONG,
            f"git does not name the repository when it asks for {url} (useHttpPath), so it gets no token",
            "run 'broker-cli setup-git' again",
            2,
        )
    elif (program := ours[0].removeprefix("!").split()[0]) and shutil.which(program) is None:
        yield Finding(
            Verdict.WRONG,
            f"git's helper {program} is not there any more",
            "run 'broker-cli setup-git' again",
            2,
        )
    else:
        yield Finding(Verdict.GOOD, f"git gets its tokens for {url} from the broker ({version})")


def _checks(reply: Reply) -> tuple[dict[str, str] | None, str]:
    """Return the states in a body of `/readyz`, or None if it is none."""
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None, ""
    checks = document.get("checks") if isinstance(document, dict) else None
    if not isinstance(checks, dict):
        return None, ""
    return {str(name): str(state) for name, state in checks.items()}, str(document.get("status"))


def _skew_s(reply: Reply) -> float | None:
    """Return how many seconds the broker's clock is ahead of this one."""
    try:
        there = parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return there - time.time()  # noqa: TID251 - this clock is what is being looked at


def _wrong(error: BrokerCliError) -> Finding:
    """Return an error as a finding: its text holds the next step."""
    return Finding(Verdict.WRONG, str(error), status=error.exit_code)
