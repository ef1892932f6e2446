"""Rewards of tokens as a heat map over the text, as a picture and as HTML, and of answers as a scatter plot.

Everything is drawn from what implicit_reward.measure stored. Colours are a diverging map that is safe for colour-blind
readers; where a reward is negative the token is underlined, so that the sign is seen in grey, too.
"""

from __future__ import annotations

import html
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.patches import Rectangle

from c3po_utils.figures.plain_text import NO_MATHJAX
from c3po_utils.figures.style import COLUMN, TEXT, legend_below, look, style
from c3po_utils.figures.text_layout import TYPE, drawable, signed, width, wrap

HEADINGS = {
    ("in_scope", "revised"): "in scope, $y^+$",
    ("in_scope", "baseline"): "in scope, $y^-$",
    ("near_scope", "baseline"): "near scope",
    ("out_of_scope", "baseline"): "out of scope",
}
MARKS = (("o", "#1A1A1A"), ("X", "#B2182B"), ("^", "#C9A86A"), ("s", "#6A8CAF"))  # splits; colours of no method
LIMIT = 3.0  # nats at which the colours end
COLORS = ScalarMappable(Normalize(-LIMIT, LIMIT), "PuOr_r")
LINE = 0.145  # inches a line
NAME, GAP = 0.95, 0.4  # inches of the first column, and between columns (for the sum)
MATH = TYPE | {"parse_math": True}
FAINT = 0.3  # nats below which a negative reward isn't underlined
CSS = """<style>
.reward-map { border-collapse: collapse; font: 14px/1.7 sans-serif; }
table.reward-map th, table.reward-map td { border-top: 1px solid #bbb; padding: 6px 10px; vertical-align: top; }
table.reward-map th, table.reward-map td { text-align: left !important; max-width: 30em; }
.reward-map span { white-space: pre-wrap; padding: 1px 0; }
.reward-map small { color: #777; }
</style>"""


@style()
def reward_map(stored: dict[str, Any]) -> Axes:
    """The typical answers with each token on the colour of its reward: the true one left, the learned one right."""
    room = (TEXT - NAME) / 2 - GAP
    rows = [(answer, _lines(answer["tokens"], room)) for answer in stored["maps"]]
    total = 1.6 + sum(len(lines) + 2.1 for _, lines in rows)
    figure, ax = plt.subplots(figsize=(TEXT, total * LINE + 0.5), layout="none")
    ax.set_position([0, 0.5 / figure.get_figheight(), 1, 1 - 0.5 / figure.get_figheight()])
    ax.set(xlim=(0, TEXT), ylim=(total, 0))  # inches across, lines down
    ax.set_axis_off()
    places = {"true": NAME, "learned": NAME + room + GAP}
    learned = rf"learned by {look(stored['method']).label}, $\log\,\pi_\theta/\pi_0$"
    for left, head in zip(places.values(), (r"true reward, $\log\,\pi^+/\pi^-$", learned), strict=True):
        ax.text(left, 0.9, head, color="#666666", **MATH)
    top = 1.3
    for answer, lines in rows:
        _draw_answer(ax, top, answer, lines, places)
        top += len(lines) + 2.1
    _color_bar(figure.add_axes((0.3, 0.3 / figure.get_figheight(), 0.4, 0.08 / figure.get_figheight())))
    plt.close(figure)
    return ax


def _draw_answer(ax: Axes, top: float, answer: dict, lines: list[list[int]], places: dict[str, float]) -> None:
    """A rule, the heading, the prompt, and per column the sum and the coloured tokens."""
    ax.axhline(top, color="#BBBBBB", linewidth=0.5)
    heading = HEADINGS[answer["split"], answer["answer"]]
    ax.text(0.06, top + 1.1, heading, **MATH)
    (prompt,) = wrap(answer["prompt"], TEXT - NAME, 1, "bold")
    ax.text(NAME, top + 1.1, prompt, weight="bold", **TYPE)
    for key, left in places.items():
        ax.text(left - 0.05, top + 2.2, signed(sum(answer[key])), ha="right", color="#777777", **TYPE)
        for number, line in enumerate(lines):
            shown = [drawable(answer["tokens"][i].strip("\n")) for i in line]
            shown[0] = shown[0].lstrip()
            _draw_line(ax, left, top + 2.2 + number, shown, [answer[key][i] for i in line])


def _draw_line(ax: Axes, left: float, baseline: float, tokens: list[str], rewards: list[float]) -> None:
    for token, reward in zip(tokens, rewards, strict=True):
        right, ink = left + width(token), _ink(reward)
        box = (left, baseline - 0.72), right - left, 0.96
        ax.add_patch(Rectangle(*box, facecolor=COLORS.to_rgba(reward), linewidth=0))
        ax.text(left, baseline, token, color=ink, **TYPE)
        if reward < -FAINT:
            ax.plot([left, right], [baseline + 0.14] * 2, color=ink, linewidth=0.5, solid_capstyle="butt")
        left = right


def _ink(reward: float) -> str:
    """Dark text, or white on the dark ends of the colours."""
    return "#FFFFFF" if np.dot(COLORS.to_rgba(reward)[:3], (0.299, 0.587, 0.114)) < 0.5 else "#1A1A1A"


def _lines(tokens: list[str], room: float) -> list[list[int]]:
    """Indices of the tokens of each line, no wider than `room` inches; a word's tokens stay together."""
    lines: list[list[int]] = [[]]
    for word in _words(tokens):
        text = "".join(tokens[i] for i in lines[-1] + word)
        if lines[-1] and ("\n" in tokens[word[0] - 1] or width(drawable(text.strip())) > room):
            lines.append([])
        lines[-1] += word
    return lines


def _words(tokens: list[str]) -> list[list[int]]:
    """Indices of the tokens of each word: one starts at white space, after a line's end, and before the end."""
    words: list[list[int]] = []
    for i, token in enumerate(tokens):
        if i == 0 or token[:1].isspace() or tokens[i - 1].endswith("\n"):
            words.append([])
        words[-1].append(i)
    return words


def _color_bar(ax: Axes) -> None:
    bar = ax.figure.colorbar(COLORS, cax=ax, orientation="horizontal", extend="both", ticks=[-3, -2, -1, 0, 1, 2, 3])
    bar.set_label("log-ratio of a token (nats); underlined: negative; at the left of each text: its sum", fontsize=6.3)
    bar.outline.set_linewidth(0.4)
    ax.tick_params(labelsize=6, length=2, pad=1)


def reward_map_html(stored: dict[str, Any]) -> str:
    """The heat map as one HTML table; a token's reward shows when the pointer rests on it."""
    learned = f"learned by {html.escape(look(stored['method']).name)}, log π<sub>θ</sub>/π₀"
    heads = "".join(f"<th>{head}</th>" for head in ("", "true reward, log π⁺/π⁻", learned))
    body = "".join(_html_row(answer) for answer in stored["maps"])
    steps = "".join(_html_token(f"&nbsp;{value:+.0f}&nbsp;", value) for value in np.arange(-LIMIT, LIMIT + 1))
    legend = f'<p class="reward-map">{steps} nats per token; underlined: negative; grey: the sum over the answer</p>'
    table = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'{CSS}<table class="reward-map {NO_MATHJAX}">{table}</table>{legend}'


def _html_row(answer: dict) -> str:
    heading = HEADINGS[answer["split"], answer["answer"]].replace("$y^+$", "y⁺").replace("$y^-$", "y⁻")
    cells = "".join(
        f"<td><small>{signed(sum(answer[key]))}</small> {_html_tokens(answer['tokens'], answer[key])}</td>"
        for key in ("true", "learned")
    )
    return f"<tr><th>{heading}<br><small>{html.escape(answer['prompt'])}</small></th>{cells}</tr>"


def _html_tokens(tokens: list[str], rewards: list[float]) -> str:
    return "".join(_html_token(html.escape(token), reward) for token, reward in zip(tokens, rewards, strict=True))


def _html_token(text: str, reward: float) -> str:
    line = "; text-decoration: underline" if reward < -FAINT else ""
    color = f"background: {to_hex(COLORS.to_rgba(reward))}; color: {_ink(reward)}"
    return f'<span style="{color}{line}" title="{reward:+.2f} nats">{text}</span>'


def by_group(stored: dict[str, Any]) -> pd.DataFrame:
    """Means of both rewards, in nats an answer, and their correlation over the answers, by split and answer."""
    groups = pd.DataFrame(stored["answers"]).groupby(["split", "answer"], sort=False)
    table = groups[["true", "learned"]].mean()
    table["correlation"] = groups.apply(lambda rows: rows["true"].corr(rows["learned"]))
    return table.assign(answers=groups.size()).reset_index()


@style()
def reward_scatter(stored: dict[str, Any]) -> Axes:
    """Each answer's learned reward on its true one, both summed over tokens, by split."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.6))
    table, handles = pd.DataFrame(stored["answers"]), []
    for axis_line in (ax.axhline, ax.axvline):
        axis_line(0, color="#777777", linewidth=0.6)
    for ((split, answer), label), (marker, color) in zip(HEADINGS.items(), MARKS, strict=True):
        rows = table[(table["split"] == split) & (table["answer"] == answer)]
        edge = {"ls": "none", "ms": 4, "mec": "#333333", "mew": 0.3, "alpha": 0.85}
        handles += ax.plot(rows["true"], rows["learned"], marker=marker, color=color, label=label, **edge)
    ax.set(xlabel=r"true reward, $\log\,\pi^+/\pi^-$ (nats)", ylabel=r"learned, $\log\,\pi_\theta/\pi_0$ (nats)")
    legend_below(figure, handles, "a dot per answer")
    plt.close(figure)
    return ax
