"""Rate-distortion plots: solid lines with markers are measured in this run, dashed ones are published."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nic.bench.codecs import NAMES
from nic.bench.metrics import METRICS
from nic.bench.results import Row

__all__ = ["INK", "PAPER", "draw", "overview"]

Key = tuple[str, str]  # kind and codec

INK = "#1b1b1b"  # not black, which matplotlib leaves out of an SVG: report.py looks for it
PAPER = "#ffffff"
NIC = "#d55e00"
# The other colours of Okabe and Ito, "Color Universal Design", 2008, that are seen on white, and three more. Their
# number and that of the markers, and of the dashes, have no common divisor, so that pairs repeat late.
COLOURS = ("#a6611a", "#009e73", "#cc79a7", "#e69f00", "#7b5cc4", "#56b4e9", "#0072b2", "#7f7f7f")
MARKERS = ("s", "^", "D", "v", "P", "X", "<")
DASHES = ((4, 1.5), (1.2, 1.2), (7, 2), (5, 1.5, 1.2, 1.5), (8, 1.5, 1.2, 1.5, 1.2, 1.5))
RATES = (0.05, 2.0)  # bpp: where the axis ends, unless measured curves end earlier, or start elsewhere
MARGIN = 1.12  # of the axis of rates
TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "svg.fonttype": "none",
}


def draw(curves: list[Row], metric: str, folder: Path) -> None:
    """One metric over the rate, as rd_<metric>.png and .svg; `curves` has one row for each codec and setting."""
    _save(curves, [metric], folder / f"rd_{metric}", (9, 5.2))


def overview(curves: list[Row], folder: Path) -> None:
    """PSNR beside LPIPS, or beside MS-SSIM where there is no LPIPS, as rd.png and rd.svg."""
    known = [name for name in ("psnr", "lpips", "ms_ssim_db") if any(row.get(name) is not None for row in curves)]
    _save(curves, known[:2], folder / "rd", (13, 5.2))


def _save(curves: list[Row], metrics: list[str], stem: Path, size: tuple[float, float]) -> None:
    # A salt of its own for each plot keeps ids apart where one page holds several.
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": stem.name}):
        figure = Figure(figsize=size, layout="constrained")
        lines: dict[Key, Line2D] = {}
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            lines |= _plot(axes, curves, metric)
        published = any(kind == "published" for kind, _ in lines)
        figure.legend(
            handles=list(lines.values()),
            loc="outside right center",
            title="solid: measured\ndashed: published" if published else None,
            frameon=False,
            handlelength=3.2,
            fontsize="small",
            title_fontsize="small",
        )
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(stem.with_suffix(".png"), dpi=140)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def _plot(axes: Axes, curves: list[Row], metric: str) -> dict[Key, Line2D]:
    """Draws the curves that have the metric; their lines, best first in the middle of the rates."""
    points = {key: _points(curves, key, metric) for key in _keys(curves)}
    points = {key: values for key, values in points.items() if values.size}
    labels = {(row["kind"], row["codec"]): row["label"] for row in curves}
    styles = _styles(curves)
    lines = {}
    for key, (rates, values) in points.items():
        (lines[key],) = axes.plot(rates, values, label=labels[key].replace("$", r"\$"), **styles[key])

    measured = [rates for (kind, _), (rates, _) in points.items() if kind == "measured"]
    rates = np.concatenate(measured or [np.array(RATES)])
    high = min(RATES[1], rates.max()) if rates.min() < RATES[1] else rates.max()
    low = min(rates.min(), high / 2)
    axes.set_xscale("log")
    axes.set_xlim(low / MARGIN, high * MARGIN)
    ticks = [tick for tick in TICKS if low / MARGIN <= tick <= high * MARGIN]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("bits per pixel")
    axes.grid(color="#808080", alpha=0.25)
    axes.set_ylim(*_span(points.values(), np.geomspace(low, high, 100)))

    shown = METRICS[metric]
    label = f"{shown.label} [{shown.unit}]" if shown.unit else shown.label
    axes.set_ylabel(label if shown.higher_is_better else f"{label}: lower is better, the axis points down")
    if not shown.higher_is_better:
        axes.invert_yaxis()
    middle = np.sqrt(low * high)
    best_first = sorted(lines, key=lambda key: _at(points[key], middle), reverse=shown.higher_is_better)
    return {key: lines[key] for key in best_first}


def _keys(curves: list[Row]) -> list[Key]:
    return list(dict.fromkeys((row["kind"], row["codec"]) for row in curves))


def _points(curves: list[Row], key: Key, metric: str) -> np.ndarray:
    """[2, n] float64: the rates, rising, and the metric there."""
    rows = [row for row in curves if (row["kind"], row["codec"]) == key and row.get(metric) is not None]
    return np.array(sorted((row["bpp"], row[metric]) for row in rows if math.isfinite(row[metric])), dtype=float).T


def _at(points: np.ndarray, rates: np.ndarray | float) -> np.ndarray:
    """The metric at some rates on straight lines between the points; beyond them that of the nearest."""
    values: np.ndarray = np.interp(np.log(rates), np.log(points[0]), points[1])
    return values


def _span(curves: Iterable[np.ndarray], rates: np.ndarray) -> tuple[float, float]:
    """The least and the greatest value that any curve has at these rates, with a margin."""
    inside = [_at(points, rates[(rates >= points[0, 0]) & (rates <= points[0, -1])]) for points in curves]
    inside += [points[1, (points[0] >= rates[0]) & (points[0] <= rates[-1])] for points in curves]
    values = np.concatenate(inside)
    margin = 0.03 * (values.max() - values.min()) or 0.5
    return values.min() - margin, values.max() + margin


def _styles(curves: list[Row]) -> dict[Key, dict[str, Any]]:
    """How each curve looks, by its codec's place among all known ones: the same in every plot and every run."""
    keys = _keys(curves)
    published = [key for key in keys if key[0] == "published"]
    others = [name for name in NAMES if name != "nic"]
    others += [codec for kind, codec in keys if kind == "measured" and codec not in NAMES]
    styles: dict[Key, dict[str, Any]] = {}
    for i, key in enumerate(published):
        style = {"color": COLOURS[i % len(COLOURS)], "dashes": DASHES[i % len(DASHES)]}
        styles[key] = style | {"linewidth": 1.2, "zorder": 2}
    for i, codec in enumerate(others):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        styles["measured", codec] = style | {"linewidth": 1.5, "markersize": 4.5, "zorder": 3}
    styles["measured", "nic"] = {"color": NIC, "marker": "o", "linewidth": 3, "markersize": 6.5, "zorder": 4}
    return styles
