"""Tables as text, JSON and a small bar chart in SVG; pure but for writing the file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

BAR, GAP, LEFT, WIDTH = 18, 8, 330, 420


@dataclass
class Table:
    """Rows of one benchmark; ``bar`` names the column that the plot shows."""

    title: str
    columns: tuple[str, ...]
    bar: str
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *values: object) -> None:
        self.rows.append(tuple(_shown(value) for value in values))

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [self.title, "  ".join(name.ljust(w) for name, w in zip(self.columns, widths, strict=True))]
        lines.append("  ".join("-" * width for width in widths))
        for row in self.rows:
            cells = [row[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells))
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def markdown(self) -> str:
        rows = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)


def write_plot(table: Table, path: Path) -> None:
    """Draw one bar a row."""
    column = table.columns.index(table.bar)
    bars = [(row[0], float(row[column])) for row in table.rows if row[column]]
    longest = max((value for _, value in bars), default=1.0) or 1.0
    height = 50 + len(bars) * (BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 90}" height="{height}">',
        '<style>text { font: 12px sans-serif }</style><rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="22">{escape(table.title)}: {escape(table.bar)}</text>',
    ]
    for place, (name, value) in enumerate(bars):
        top = 40 + place * (BAR + GAP)
        length = max(1.0, WIDTH * value / longest)
        parts.append(f'<text x="{LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" fill="#4477aa"/>')
        parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{top + 13}">{value:g}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
