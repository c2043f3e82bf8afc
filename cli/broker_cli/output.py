"""The only writer: results to stdout, everything else to stderr, cleaned and without secrets."""

from __future__ import annotations

import sys

from broker_cli.errors import BrokerCliError

MAX_LINE = 1500


def plain(text: str) -> str:
    """Return text from elsewhere as one line that does nothing to a terminal and shows no credential."""
    import re  # noqa: PLC0415

    line = " ".join(text.split())
    line = "".join(character for character in line if character.isprintable())
    # API keys (ghbk_), GitHub's tokens (ghs_, gho_ ...) of any length, and credentials in a URL.
    line = re.sub(r"(gh[a-z]{1,2}|github_pat)_[A-Za-z0-9._-]{16,}", r"\1_[hidden]", line)
    line = re.sub(r"://[^/\s@]*@", "://[hidden]@", line)
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..."


def say(message: str) -> None:
    """Write one line to stderr; a stderr that is gone is no reason to fail."""
    try:
        sys.stderr.write(f"broker-cli: {plain(message)}\n")
        sys.stderr.flush()
    except (OSError, AttributeError, UnicodeError):
        return


def write_result(text: str) -> None:
    r"""Write a result and ``\n`` to stdout as UTF-8, whatever the locale.

    Raises:
        BrokenPipeError: the reader went away.
        BrokerCliError: stdout can't be written (closed, disk full).
    """
    if sys.stdout is None:
        raise BrokerCliError("stdout is closed: there is nowhere to write the result")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(f"{text}\n".encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BrokerCliError(f"cannot write the result to stdout: {error.strerror}") from None


def write_json(value: object) -> None:
    """Write a JSON document to stdout; non-ASCII is escaped, so nothing in it can steer a terminal."""
    import json  # noqa: PLC0415

    write_result(json.dumps(value, indent=2))
