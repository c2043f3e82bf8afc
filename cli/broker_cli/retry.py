"""When to try again: exponential backoff with full jitter, and what `Retry-After` asks for; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TRANSIENT_STATUSES = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
LEAST_TRY_S = 0.2


def backoff_s(failures: int) -> float:
    """Return the pause in seconds after so many failures (1 at least)."""
    import random  # noqa: PLC0415

    ceiling = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
    return random.uniform(0, ceiling)  # noqa: S311 - spreads load, keeps no secret


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a reply asks to wait, or None if it does not say so intelligibly.

    A date is counted from the reply's own `Date`, so that a local clock that is off does no harm.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    moment = _epoch_s(text)
    if moment is None:
        return None
    sent = _epoch_s(headers.get("date", ""))
    if sent is None:
        import time  # noqa: PLC0415

        sent = time.time()  # noqa: TID251 - no other clock is at hand, and only a pause depends on it
    return max(0.0, moment - sent)


def pause_s(*, failures: int, asked_s: float | None, left_s: float) -> float | None:
    """Return how long to wait before the next try, or None if there is no time for one."""
    jitter = backoff_s(failures)
    if asked_s is None:
        return None if left_s < LEAST_TRY_S else min(jitter, left_s * 0.75)
    if asked_s + LEAST_TRY_S > left_s:
        return None
    return asked_s + min(jitter, (left_s - asked_s) / 2)


def _epoch_s(text: str) -> float | None:
    """Return an HTTP date as seconds since 1970."""
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
