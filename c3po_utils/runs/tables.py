"""Tables for a terminal: aligned columns, the longest text shortened to the width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTH = 100  # characters
GAP = "  "


def aligned(rows: Sequence[Mapping[str, str]], width: int = WIDTH) -> str:
    """The rows below their keys; numbers to the right. Texts of the widest columns are cut where a row is too long."""
    if not rows:
        return "(none)"
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    widths = _fitted({name: max(map(len, (name, *texts))) for name, texts in columns.items()}, width)
    numeric = {name for name, texts in columns.items() if all(text[:1].isdigit() or len(text) < 2 for text in texts)}
    lines = []
    for row in [{name: name for name in columns}, *rows]:
        cells = (_cut(row[name], widths[name]) for name in columns)
        padded = (
            cell.rjust(widths[name]) if name in numeric else cell.ljust(widths[name])
            for name, cell in zip(columns, cells, strict=True)
        )
        lines.append(GAP.join(padded).rstrip())
    return "\n".join(lines)


def _fitted(widths: dict[str, int], width: int) -> dict[str, int]:
    """The widths, the widest made narrower until all fit, none below its name's."""
    widths = dict(widths)
    while sum(widths.values()) + len(GAP) * (len(widths) - 1) > width:
        widest = max(widths, key=lambda name: widths[name])
        if widths[widest] <= len(widest):
            break
        widths[widest] -= 1
    return widths


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
