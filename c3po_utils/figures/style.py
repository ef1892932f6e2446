"""One look for every figure: type, a fixed colour, marker and hatch per method, and files that reproduce."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from c3po_utils.figures import plain_text
from c3po_utils.runs import files
from c3po_utils.training import BASE_RESAMPLED, registered

COLUMN, TEXT = 3.4, 6.8  # widths in inches: one column, and the whole text


class Look(NamedTuple):
    """How a method is shown everywhere; hatches tell bars apart in grey, markers dots, half-filled ones variants."""

    name: str
    color: str
    marker: str | tuple[int, int, int]
    hatch: str
    fill: str = "full"

    @property
    def label(self) -> str:
        """The name in figures."""
        return plain_text.label(self.name)


# Colours after Okabe and Ito; within a family (prompted, SCD, DPO, C3PO) they differ in lightness.
LOOKS = {
    "base": Look("Base", "#D9D9D9", "8", "O"),
    "base_resampled": Look("Base (resampled)", "#5A5A5A", "H", ""),
    "in_context": Look("In-Context", "#E69F00", "s", "////"),
    "in_context_cot": Look("In-Context + CoT", "#F5E663", "D", "\\\\\\\\"),
    "revised": Look("Revised", "#8A8A8A", "*", "||||"),
    "scd": Look("SCD", "#7CC4EE", "^", "...."),
    "scd_negatives": Look("SCD + Negatives", "#0072B2", "v", "xxxx"),
    "scd_mixed": Look("SCD, mixed in", "#5B7FA6", (6, 1, 0), "..xx"),
    "scd_kl": Look("SCD + KL", "#2E86C1", (5, 1, 18), "..--"),
    "scd_distilled": Look("SCD, distilled", "#1B4F72", (6, 1, 30), "xx.."),
    "dpo": Look("DPO", "#D55E00", "P", "----"),
    "dpo_negatives": Look("DPO + Negatives", "#8C2D04", "X", "++++"),
    "dpo_after_scd": Look("DPO after SCD", "#F4A582", "p", "//.."),
    "c3po": Look("C3PO", "#009E73", "o", ""),
    "c3po_nll": Look("C3PO + NLL", "#00463A", "h", "oo"),
    "c3po_kl": Look("C3PO-KL", "#E199C4", "<", "\\\\\\\\...."),
    "c3po_no_near": Look("C3PO without near", "#62C9AC", ">", "xx"),
    "c3po_no_out": Look("C3PO without out", "#7A3E83", "d", "||"),
    "c3po_after_scd_negatives": Look("C3PO after SCD + Neg.", "#332288", (4, 1, 0), "**"),
    "scd_gated": Look("gate + SCD", "#17BECF", (7, 1, 0), "oo.."),
    "scd_negatives_gated": Look("gate + SCD + Neg.", "#1F3A93", (3, 1, 90), "oo||"),
    "c3po_gated": Look("gate + C3PO", "#2CA02C", (3, 1, 270), "oo++"),
    "c3po_nll_gated": Look("gate + C3PO + NLL", "#6B8E23", (5, 1, 180), "oo**"),
}
VARIANTS = (("left", "/"), ("right", "\\"), ("top", "-"), ("bottom", "|"))
# What no known method has, for unknown names.
OTHER_MARKERS = ((4, 1, 45), (3, 1, 0), (3, 1, 180), (8, 1, 0), (5, 0, 180))
OTHER_HATCHES = ("++..", "O..", "--..", "||..", "xx--", "**..", "oo//", "O--")
# Lines by family, so that they can be told apart in grey.
DASHES = {"c3po": "-", "in_context": (0, (4, 1.5)), "scd": (0, (1, 1.2)), "dpo": (0, (5, 1, 1, 1))}
REFERENCES = ("base", BASE_RESAMPLED, "revised")  # not contestants: the untouched model, its noise, the revised answers


def look(method: str) -> Look:
    """A method's look, from its name alone.

    A variant has a shade of its method's colour, its marker half-filled, and its hatch with a stroke more: the same
    for that label with any method. An unknown name has a marker and a hatch that no known method has.
    """
    if method in LOOKS:
        return LOOKS[method]
    if known := LOOKS.get(registered(method)):
        label = method.partition("@")[2]
        code = zlib.adler32(label.encode())  # two sums, so that labels which differ little differ in both
        shade = sns.blend_palette(["#222222", known.color, "#FFFFFF"], 17).as_hex()[4 + (code >> 16) % 9]
        half, stroke = VARIANTS[code % 4]
        return Look(f"{known.name}, {label.replace(',', ', ')}", shade, known.marker, known.hatch + stroke, half)
    code = zlib.crc32(method.encode())
    color = sns.husl_palette(24, h=0.03, s=0.75, l=0.4 + 0.12 * (code // 24 % 3)).as_hex()[code % 24]
    return Look(method.replace("_", " "), color, OTHER_MARKERS[code // 72 % 5], OTHER_HATCHES[code // 360 % 8])


def mark(method: str) -> dict[str, Any]:
    """A method's dot, in plots and in legends."""
    shown = look(method)
    edge = {"markeredgecolor": "#333333", "markeredgewidth": 0.3, "markerfacecoloralt": "white"}
    return {"marker": shown.marker, "color": shown.color, "fillstyle": shown.fill, **edge}


def bar(method: str) -> dict[str, Any]:
    """A method's bar, and its legend entry: its colour, and its hatch in white where dark ink would not show."""
    shown = look(method)
    ink = "#333333" if np.dot(to_rgb(shown.color), (0.299, 0.587, 0.114)) > 0.42 else "#FFFFFF"  # by luma
    line = {"edgecolor": "#333333", "linewidth": 0.4, "hatch": shown.hatch, "hatchcolor": ink}
    return {"facecolor": shown.color, "label": shown.label, **line}


def dash(method: str) -> str | tuple:
    """A method's line style: its family's, or solid."""
    return next((line for family, line in DASHES.items() if method.startswith(family)), "-")


def ordered(methods: Iterable[str]) -> list[str]:
    """Distinct methods, the known ones first in the order of `LOOKS`, with their variants after them."""
    places = {name: place for place, name in enumerate(LOOKS)}
    return sorted(dict.fromkeys(methods), key=lambda name: (places.get(registered(name), len(LOOKS)), "@" in name))


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The figures' settings, as a context or a decorator: small sans type, light grid, embedded fonts."""
    settings = {
        **sns.axes_style("whitegrid"),
        "axes.edgecolor": "#444444",
        "axes.labelsize": 7.5,
        "axes.linewidth": 0.6,
        "axes.titlesize": 8,
        "errorbar.capsize": 1.5,
        "figure.constrained_layout.use": True,
        "figure.dpi": 150,
        "font.family": "DejaVu Sans",
        "font.size": 7.5,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.5,
        "hatch.linewidth": 0.4,
        "legend.fontsize": 6.8,
        "legend.title_fontsize": 6.3,
        "legend.frameon": False,
        "lines.linewidth": 1.0,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
    }
    with plt.rc_context(settings):
        yield


def legend_below(figure: Figure, handles: list, note: str) -> None:
    """A legend under the panels, titled with what the intervals are; the figure grows by its height."""
    columns = _columns([handle.get_label() for handle in handles], figure.get_figwidth())
    figure.set_figheight(figure.get_figheight() + 0.28 + 0.14 * -(-len(handles) // columns))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, title=note,
        columnspacing=1.2, handletextpad=0.5, handlelength=1.6, labelspacing=0.35,
    )  # fmt: skip


def _columns(labels: list[str], width: float) -> int:
    """The fewest rows' worth of columns that fit into `width` inches."""
    for rows in range(1, len(labels)):
        columns = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        if sum(0.38 + 0.052 * max(map(len, column)) for column in columns) <= width:
            return len(columns)
    return 1


def save(drawn: Figure | Axes | np.ndarray, folder: Path | str, name: str) -> list[Path]:
    """Write `name`.png (200 dpi) and `name`.pdf whole and atomically; equal figures give equal bytes.

    Nothing is clipped, fonts are embedded (type 42), and no date or version is written.
    """
    first = drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn
    figure = first if isinstance(first, Figure) else first.figure
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    paths = []
    with style():
        for kind, entries in metadata.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=200, bbox_inches="tight", pad_inches=0.03, metadata=entries)
            paths.append(files.write_atomic(Path(folder) / f"{name}.{kind}", buffer.getvalue()))
    return paths
