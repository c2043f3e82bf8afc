"""Logs: one line an event, as JSON or for a terminal, redacted; writes to stderr."""

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Final, Literal

from broker.redaction import redact

_SUSPICIOUS: Final = re.compile(r"gh[a-z]+_|eyJ|PRIVATE KEY|://|authorization", re.IGNORECASE)
"""Every redaction needs one of these: a line without any is not looked at twice."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_IN_TRACE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


def _redacted(value: object) -> object:
    """Return what JSON can hold of ``value``, every text in it redacted before it is escaped."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        return {redact(str(name)): _redacted(held) for name, held in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(held) for held in value]
    return redact(str(value))


class _Formatter(logging.Formatter):
    """Gathers message, fields and traceback; children redact what they show."""

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        audit = extra.pop("audit", None)
        ours: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        found = {**ours, **extra, **(audit if isinstance(audit, dict) else {}), **ours}
        if record.exc_info:
            found["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return found


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        found = self.fields(record)
        line = json.dumps(found, default=str, separators=(",", ":"))
        return json.dumps(_redacted(found), separators=(",", ":")) if _SUSPICIOUS.search(line) else line


class ConsoleFormatter(_Formatter):
    """One line for people; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        found = self.fields(record)
        trace = found.pop("traceback", None)
        head = f"{str(found.pop('time'))[11:23]} {found.pop('level')!s:8} {found.pop('message')}"
        found.pop("logger")
        found.pop("event", None)
        line = " ".join([head, *(f"{name}={_plain(value)}" for name, value in found.items())])
        line = _CONTROL.sub(" ", redact(line))
        return f"{line}\n{_CONTROL_IN_TRACE.sub(' ', redact(str(trace)))}" if trace else line


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}:{level}" for name, level in value.items())
    return str(value)


def configure_logging(*, form: Literal["console", "json"] | None, level: str) -> None:
    """Send all logs of this process to stderr, redacted.

    Args:
        form: None is ``console`` on a terminal, else ``json``.
        level: least level of our own loggers; other libraries log from warning on (at debug: from
            info), because their info lines hold URLs.
    """
    handler = logging.StreamHandler(sys.stderr)
    chosen = form or ("console" if sys.stderr.isatty() else "json")
    handler.setFormatter(ConsoleFormatter() if chosen == "console" else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if level == "debug" else logging.WARNING)
    logging.getLogger("broker").setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel(level.upper())
