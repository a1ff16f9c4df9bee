"""Plots of a summary as SVG that takes its text color and font from the page."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mars2.report.summary import MethodSummary, Source, Summary

# Okabe and Ito's colors, told apart by the color-blind, on white and on black; controls are gray.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "osD^vPX*"
COINCIDE = 0.02  # closer points hide each other
_GRAY = "#8a8a8a"
_INK = "#010203"  # stands for the page's text color until the SVG is written

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mars2",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRAY,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
}


def interval_plot(summary: Summary, sources: Sequence[Source]) -> str:
    """Return an SVG of means and intervals: a panel a score, a line a method."""
    with mpl.rc_context(_STYLE):
        count = len(summary.methods)
        figure = Figure(
            figsize=(3.1 * len(sources) + 1.2, 0.34 * count + 0.95),
            layout=ConstrainedLayoutEngine(wspace=0.08),
        )
        panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
        for panel, source in zip(panels, sources, strict=True):
            for row, method in enumerate(summary.methods):
                _interval(panel, method, source, row, _color(summary, method))
            panel.set_title(source.heading, fontweight="bold", color=_INK)
            panel.set_ylim(count - 0.5, -0.5)
            panel.set_yticks(range(count), [method.label for method in summary.methods])
            panel.tick_params(axis="y", length=0)
            panel.spines["left"].set_visible(False)
            _scale(panel, source, "x")
        return _svg(figure, "interval")


def trade_off_plot(summary: Summary, subject: Source, style: Source) -> str:
    """Return an SVG of subject (y) against style accuracy (x): a point with intervals a method.

    Points that coincide are drawn in several sizes, so that each is seen.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.6, 4.4))
        axes = figure.add_axes((0.1, 0.12, 0.56, 0.84))  # square; the legend stands beside it
        drawn: list[tuple[float, float]] = []
        for number, method in enumerate(summary.methods):
            if subject not in method.scores or style not in method.scores:
                continue
            x, y = method.scores[style].average, method.scores[subject].average
            if x.value is None or y.value is None:
                continue
            below = sum(
                max(abs(x.value - left), abs(y.value - up)) < COINCIDE for left, up in drawn
            )
            drawn.append((x.value, y.value))
            color = _color(summary, method)
            for low, high, line in ((x.low, x.high, axes.hlines), (y.low, y.high, axes.vlines)):
                if low is not None and high is not None:
                    at = y.value if line == axes.hlines else x.value
                    line(at, low, high, color=color, linewidth=1.2, alpha=0.5)
            axes.plot(
                x.value,
                y.value,
                MARKERS[number % len(MARKERS)],
                color=color,
                markersize=8 + 5 * below,
                label=method.label,
                clip_on=False,
                zorder=3 - below / 100,
            )
        axes.set_xlabel("style right")
        axes.set_ylabel("subject right")
        _scale(axes, style, "x")
        _scale(axes, subject, "y")
        if axes.lines:
            axes.legend(loc="upper left", bbox_to_anchor=(1.04, 1), borderaxespad=0, frameon=False)
        return _svg(figure, "trade-off")


def _interval(panel: Axes, method: MethodSummary, source: Source, row: int, color: str) -> None:
    score = method.scores.get(source)
    if score is None or score.average.value is None:
        return
    if score.average.low is not None and score.average.high is not None:
        panel.hlines(row, score.average.low, score.average.high, color=color, linewidth=2.5)
    panel.plot(score.average.value, row, "o", color=color, markersize=7, clip_on=False, zorder=3)


def _scale(axes: Axes, source: Source, name: str) -> None:
    if not source.is_share:
        return
    ticks = [0, 0.25, 0.5, 0.75, 1]
    texts = [f"{tick:.0%}" for tick in ticks]
    if name == "x":
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks(ticks, texts)
    else:
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks(ticks, texts)


def _color(summary: Summary, method: MethodSummary) -> str:
    labels = [other.label for other in summary.methods if not other.control]
    return _GRAY if method.control else COLORS[labels.index(method.label) % len(COLORS)]


def _svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element: deterministic, scalable, its ids not those of others."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata=metadata,
        bbox_inches="tight",
        pad_inches=0.05,
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', _width, text, count=1)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would hold for the page
    text = re.sub(r"font-family: [^;]*;", "font-family: inherit;", text)
    return text.replace(_INK, "currentColor").strip()


def _width(match: re.Match[str]) -> str:
    points = float(match[2])
    return f'{match[1]} aria-hidden="true" style="width: {points * 4 / 3:.0f}px; max-width: 100%"'
