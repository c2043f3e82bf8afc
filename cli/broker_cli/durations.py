"""Lengths of time as a user types them; no I/O."""

from __future__ import annotations

import re

from broker_cli.errors import UsageError

UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration_s(text: str, *, option: str) -> int:
    """Return the seconds of `90d`, `12h`, `30m`, `45s` or a bare number.

    Raises:
        UsageError: it is none of these, or longer than a hundred years.
    """
    match = re.fullmatch(r"([0-9]{1,10})([smhdw]?)", text)
    seconds = int(match[1]) * UNITS_S[match[2]] if match else -1
    if not 0 <= seconds <= 36525 * 86400:
        raise UsageError(f"{option} {text[:40]!r} is no length of time: give it like 90d, 12h or 30m")
    return seconds
