"""Lists as a person reads them: aligned columns, nothing in them that could steer a terminal."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from typing import TYPE_CHECKING

from broker_cli.output import plain, write_result

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GAP = 2
LEAST = 8
MAX_CELL = 400


def text_of(value: object, *, absent: str = "-") -> str:
    """Return a member of an answer in words."""
    if value is None or value in ("", [], {}):
        return absent
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(text_of(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{text_of(name)}: {text_of(level)}" for name, level in value.items())
    return plain(str(value))


def write_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows below their titles; on a terminal no line is longer than it is wide."""
    cells = [[_cut(text, MAX_CELL) for text in row] for row in (titles, *rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    if sys.stdout is not None and sys.stdout.isatty():
        _fit(widths, shutil.get_terminal_size().columns)
    write_result("\n".join(_line(row, widths) for row in cells))


def write_record(members: Iterable[tuple[str, str]]) -> None:
    """Write what is known of one thing, a member a line."""
    lines = list(members)
    width = max(len(name) for name, _ in lines) + GAP
    write_result("\n".join(f"{name + ':':<{width}}{value}" for name, value in lines))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cut = [_cut(text, width) for text, width in zip(row, widths, strict=True)]
    padded = [text + " " * (width - _width(text)) for text, width in zip(cut, widths, strict=True)]
    return (" " * GAP).join(padded).rstrip()


def _fit(widths: list[int], room: int) -> None:
    """Take from the widest columns until a line has room."""
    while sum(widths) + GAP * (len(widths) - 1) > room and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 3:
        text = text[:-1]
    return f"{text}..."
