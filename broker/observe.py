"""Logs: one line an event, as JSON or for a terminal, redacted; writes to stderr."""

import json
import logging
import re
import sys
import threading
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Final, Literal, TextIO

from broker.redaction import redact

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""The request that is being served: stands in each line that is logged meanwhile, whichever room logs it.

A task that a request begins (a mint, say) has it too, also when it goes on after the answer.
"""

_quoted: Final = json.encoder.encode_basestring_ascii
_JSON: Final = json.JSONEncoder(default=str, separators=(",", ":")).encode
_SUSPICIOUS: Final = ("gh", "eyj", "private key", "://", "authorization")
"""Every redaction needs one of these, in any case: a line without any is not looked at twice."""

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


@dataclass(frozen=True, slots=True)
class Rendered:
    """Fields of a line, of which most were rendered before, for many lines.

    Attributes:
        members: of a JSON object, without its braces, redacted.
    """

    members: str

    @classmethod
    def of(cls, common: dict[str, object]) -> "Rendered":
        """Return what lines have in common, rendered."""
        return cls(_json_line(common)[1:-1])

    def of_request(self, request_id: str, client_ip: str | None) -> str:
        """Return the members of one line; the edge has checked that a request's id holds no secret."""
        if client_ip is None:
            return f'"request_id":{_quoted(request_id)},{self.members}'
        return f'"request_id":{_quoted(request_id)},"client_ip":{_quoted(client_ip)},{self.members}'


def _json_line(fields: dict[str, object]) -> str:
    line = _JSON(fields)
    shown = line.lower()
    return _JSON(_redacted(fields)) if any(word in shown for word in _SUSPICIOUS) else line


@lru_cache(2)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _time(unix_s: float) -> str:
    """Return RFC 3339 UTC, to the millisecond."""
    return f"{_second(int(unix_s))}.{int(unix_s * 1000) % 1000:03d}+00:00"


class _Formatter(logging.Formatter):
    """Gathers message, fields and traceback; children redact what they show."""

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        audit = extra.pop("audit", None)
        if isinstance(audit, Rendered):
            audit = json.loads(f"{{{audit.members}}}")
        ours: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            extra.setdefault("request_id", request_id)
        found = {**ours, **extra, **(audit if isinstance(audit, dict) else {}), **ours}
        if record.exc_info:
            found["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return found


def _rendered(at: float, level: str, logger: str, message: str, members: str) -> str:
    return f'{{"time":"{_time(at)}","level":"{level}","logger":"{logger}","message":"{message}",{members}}}'


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        audit = vars(record).get("audit")
        if isinstance(audit, Rendered):
            return _rendered(record.created, record.levelname.lower(), record.name, record.msg, audit.members)
        return _json_line(self.fields(record))


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


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes to stderr; also lines that are whole already."""

    def write(self, line: str) -> None:
        """Write a line."""
        try:
            with self.lock or threading.RLock():
                self.stream.write(line + self.terminator)
                self.stream.flush()
        except Exception:  # noqa: BLE001 - as emit(): a log that fails must not fail what it tells of
            self.handleError(logging.makeLogRecord({"msg": line}))


def log_rendered(log: logging.Logger, message: str, members: str) -> None:
    """As ``log.info``, for lines of which there are many: a record is made only where something needs one.

    Nobody needs one where all logs of the process go to our own handler, as JSON.

    Args:
        log: the logger.
        message: what happened.
        members: the fields, as ``Rendered.of_request`` gives them.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    handlers = logging.root.handlers
    if (
        len(handlers) == 1
        and type(handlers[0]) is _LineHandler
        and type(handlers[0].formatter) is JsonFormatter
    ):
        now = time.time()  # noqa: TID251 - as in a LogRecord: it decides nothing
        handlers[0].write(_rendered(now, "info", log.name, message, members))
    else:
        extra = {"audit": Rendered(members)}
        log.handle(log.makeRecord(log.name, logging.INFO, "", 0, message, (), None, extra=extra))


def configure_logging(*, form: Literal["console", "json"] | None, level: str) -> None:
    """Send all logs of this process to stderr, redacted.

    Args:
        form: None is ``console`` on a terminal, else ``json``.
        level: least level of our own loggers; other libraries log from warning on (at debug: from
            info), because their info lines hold URLs.
    """
    # What our lines do not show need not be found out for each of them ("Optimization", logging HOWTO).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _LineHandler(sys.stderr)
    chosen = form or ("console" if sys.stderr.isatty() else "json")
    handler.setFormatter(ConsoleFormatter() if chosen == "console" else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if level == "debug" else logging.WARNING)
    logging.getLogger("broker").setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log what nobody caught: Python would print it as it is, with whatever its text holds."""
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("broker").critical("uncaught", exc_info=(kind, error, trace))
