"""`--output` and `--watch`: a token in a file, once or kept fresh until somebody stops it; writes, sleeps."""

from __future__ import annotations

import gc
import json
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from broker_cli.errors import BrokerCliError, UnreachableError
from broker_cli.files import write_whole
from broker_cli.output import say
from broker_cli.retry import backoff_s
from broker_cli.tokens import get_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_cli.settings import Flags
    from broker_cli.tokens import Answer

ROUND_S = 300.0
LEAST_LIFE_S = 900
FIRST_WAIT_S = 5.0


class _Stopped(BaseException):
    """SIGTERM came."""


def write_token(flags: Flags, request: Mapping[str, object], path: str, *, as_json: bool) -> None:
    """Write one token to a file.

    Raises:
        BrokerCliError: any of its kinds; the file is as it was then.
    """
    write_whole(path, _content(get_token(flags, request), as_json=as_json))


def keep_token(flags: Flags, request: Mapping[str, object], path: str, *, as_json: bool) -> None:
    """Keep a fresh token in a file until SIGTERM.

    The broker is asked every five minutes for a token with a quarter of an hour to live, which it has at
    hand: so a token in the file has at least ten minutes left, by the broker's clock and not by this one.
    While the broker can't be reached the file keeps its last token. A refusal at the very first is an
    error, as without `--watch`; later it is told and asked again, as an admin may be mending it.

    Raises:
        BrokerCliError: the broker refused at the first, or the file can't be written.
    """
    least_s = request.get("min_ttl", LEAST_LIFE_S)
    wanted = {**request, "min_ttl": least_s}
    first = {**wanted}
    wanted.pop("refresh", None)  # once is enough
    gc.enable()  # off for commands that end at once
    signal.signal(signal.SIGTERM, _stop)
    try:
        _keep(flags, first, wanted, path, as_json=as_json)
    except _Stopped:
        return


def _keep(
    flags: Flags, first: Mapping[str, object], wanted: Mapping[str, object], path: str, *, as_json: bool
) -> NoReturn:
    failures = 0
    until: str | None = None
    written = b""
    while True:
        try:
            # Settings and key are read anew: a key file may have been replaced meanwhile.
            answer = get_token(flags, first if until is None else wanted)
        except BrokerCliError as error:
            if until is None and not isinstance(error, UnreachableError):
                raise
            failures += 1
            kept = "there is no token in it from this run" if until is None else f"its token ends {until}"
            say(f"{path} is not refreshed, {kept}; trying again: {error}")
            time.sleep(FIRST_WAIT_S + backoff_s(failures) * 6)
            continue
        content = _content(answer, as_json=as_json)
        if content != written:
            write_whole(path, content)
            written = content
        ends = str(answer.document.get("expires_at"))
        if ends != until or failures:
            say(f"{path} holds a token until {ends}")
        until, failures = ends, 0
        time.sleep(ROUND_S)


def _content(answer: Answer, *, as_json: bool) -> bytes:
    """Return what stdout would get."""
    text = json.dumps(answer.document, indent=2) if as_json else answer.token
    return f"{text}\n".encode()


def _stop(*_: object) -> NoReturn:
    raise _Stopped
