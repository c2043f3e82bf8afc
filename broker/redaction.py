"""Redaction: takes out of any text what looks like a secret of this product; pure."""

import re
from typing import Final

_REDACTIONS: Final = (
    # As keys.PATTERN, but also one that was cut short: 42 of 43 characters are a secret too.
    (re.compile(r"ghbk_[0-9A-Za-z]{12}_[0-9A-Za-z]+"), "ghbk_[redacted]"),
    # No length or alphabet of a GitHub token is promised; today's hold dots, dashes and underscores.
    (re.compile(r"gh[a-z]_[A-Za-z0-9._-]{20,}"), "ghs_[redacted]"),
    (re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "[redacted JWT]"),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        "[redacted key]",
    ),
    (
        re.compile(
            r"(?i)\b(authorization|proxy-authorization)(['\"]?\s*[:=,]\s*(?:b?['\"])?)\S+(?:\s+[^\s'\",]+)?"
        ),
        r"\1\2[redacted]",
    ),
    (re.compile(r"(://)[^/\s:@]{0,1000}:[^/\s]{1,2000}@"), r"\1[redacted]@"),
)


def redact(text: str) -> str:
    """Return ``text`` without anything that looks like a secret of this product."""
    for pattern, instead in _REDACTIONS:
        text = pattern.sub(instead, text)
    return text


def holds_secret(text: str) -> bool:
    """Return whether something in ``text`` looks like a secret of this product."""
    return redact(text) != text
