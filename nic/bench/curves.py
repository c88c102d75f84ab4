"""Rate-distortion curves: means over the pictures, published ones, values at equal rates, Bjoentegaard deltas."""

import csv
import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import bjontegaard
import numpy as np
from scipy.interpolate import PchipInterpolator

from nic.bench import codecs
from nic.bench.metrics import METRICS
from nic.bench.results import Row

__all__ = ["RATES", "at_rates", "bjontegaard_deltas", "curve", "means", "published"]

PUBLISHED = Path(__file__).parent / "published.csv"
RATES = (0.1, 0.15, 0.25, 0.5, 0.75, 1.0)  # bpp, of the table at equal rates
FEWEST = 3  # points that make a curve
SOME_OVERLAP = 0.25  # of what both curves span; with less, a delta gets a note

Curve = tuple[np.ndarray, np.ndarray]  # rates in bpp, rising; values of a metric, rising or falling with them


def means(points: list[Row], labels: dict[str, str]) -> list[Row]:
    """One row a codec and setting: means over the pictures of bpp and of every metric, but of MS-SSIM in dB.

    That is computed from the mean MS-SSIM, and PSNR in dB is averaged, both as CompressAI does. A picture that lacks
    one of a codec's settings is left out of this codec's curve. ``labels``: codec -> its name in plots.
    """
    curves = []
    groups: dict[str, dict[float, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for point in points:
        if point["target"] is None:
            groups[point["codec"]][point["setting"]][point["image_hash"]] = point
    for codec, settings in groups.items():
        images = set.intersection(*(set(rows) for rows in settings.values()))
        for setting, rows in settings.items():
            chosen = [rows[image] for image in sorted(images)]
            if chosen:
                values = {name: mean([row.get(name) for row in chosen]) for name in ("bpp", *METRICS)}
                values["ms_ssim_db"] = decibels(values["ms_ssim"])
                head = {"codec": codec, "label": labels[codec], "kind": "measured", "setting": setting}
                curves.append(head | {"images": len(chosen)} | values | {"source": chosen[0]["version"]})
    order = {name: place for place, name in enumerate(codecs.NAMES)}
    return sorted(curves, key=lambda row: (order.get(row["codec"], len(order)), row["bpp"]))


def mean(values: list[float | None]) -> float | None:
    """Of all values; None where one is missing."""
    return None if None in values else round(fmean(values), 6)


def decibels(ms_ssim: float | None) -> float | None:
    return None if ms_ssim is None or ms_ssim >= 1 else round(-10 * math.log10(1 - ms_ssim), 4)


def published() -> list[Row]:
    """Curves on Kodak as their authors or others have published them; ``source`` tells where: rows as of `means`."""
    with PUBLISHED.open(newline="") as file:
        rows = []
        for row in csv.DictReader(file):
            values = {name: float(row[name]) if row.get(name) else None for name in ("bpp", *METRICS)}
            values["ms_ssim_db"] = decibels(values["ms_ssim"])
            head = {"codec": row["codec"], "label": row["codec"], "kind": "published", "setting": None}
            rows.append(head | {"images": 24} | values | {"source": row["source"]})
    return rows


def curve(curves: list[Row], codec: str, metric: str) -> Curve:
    """The points of a codec that improve the metric over all points of lower rates."""
    points = ((row["bpp"], row[metric]) for row in curves if row["codec"] == codec and row[metric] is not None)
    rows = sorted(point for point in points if math.isfinite(point[1]))  # a lossless point's PSNR is infinite
    sign = 1 if METRICS[metric].higher_is_better else -1
    kept: list[tuple[float, float]] = []
    for rate, value in rows:
        if not kept or (rate > kept[-1][0] and sign * value > sign * kept[-1][1]):
            kept.append((rate, value))
    rates, values = zip(*kept, strict=True) if kept else ((), ())
    return np.array(rates), np.array(values)


def at_rates(curves: list[Row], metrics: Sequence[str], rates: Sequence[float] = RATES) -> list[Row]:
    """Each codec's metrics at equal rates, by PCHIP over the logarithm of the rate; None outside its curve.

    Rows: codec, label, kind, metric, and one column a rate, named by it.
    """
    table = []
    for row in codecs_of(curves):
        for metric in metrics:
            bpps, values = curve(curves, row["codec"], metric)
            if len(bpps) >= FEWEST:
                at = PchipInterpolator(np.log(bpps), values, extrapolate=False)(np.log(rates))
                cells = {
                    str(rate): None if np.isnan(x) else round(float(x), 4) for rate, x in zip(rates, at, strict=True)
                }
                table.append(row | {"metric": metric} | cells)
    return table


def codecs_of(curves: list[Row]) -> list[Row]:
    """codec, label and kind of every codec, once and in order."""
    rows = {row["codec"]: {name: row[name] for name in ("codec", "label", "kind")} for row in curves}
    return list(rows.values())


def bjontegaard_deltas(curves: list[Row], metrics: Sequence[str]) -> list[Row]:
    """Every codec against every other one as anchor.

    Bjoentegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001; PCHIP interpolation, by
    the package bjontegaard. ``bd_rate`` is how many per cent more bits the codec takes than the anchor at an equal
    metric, averaged over the overlap ``low`` to ``high`` of what the two reach; ``bd_metric`` how much more of the
    metric it has at equal bits (for LPIPS and DISTS, less is better). Both are None, and ``note`` says why, where
    there is nothing to compare.
    """
    rows = []
    for metric, (test, anchor) in itertools.product(metrics, itertools.permutations(codecs_of(curves), 2)):
        if test["kind"] == anchor["kind"] == "published":
            continue
        ours, theirs = curve(curves, test["codec"], metric), curve(curves, anchor["codec"], metric)
        if min(len(ours[0]), len(theirs[0])) >= FEWEST:
            names = {"codec": test["codec"], "anchor": anchor["codec"], "metric": metric}
            rows.append(names | delta(theirs, ours, METRICS[metric].higher_is_better))
    return rows


def delta(anchor: Curve, test: Curve, higher_is_better: bool) -> Row:
    """bd_rate, bd_metric, low, high and note for two curves."""
    low = max(anchor[1].min(), test[1].min())
    high = min(anchor[1].max(), test[1].max())
    if low >= high:
        spans = " and ".join(f"{values.min():.4g} to {values.max():.4g}" for _, values in (anchor, test))
        return {"bd_rate": None, "bd_metric": None, "low": None, "high": None, "note": f"no overlap: {spans}"}
    share = (high - low) / (max(anchor[1].max(), test[1].max()) - min(anchor[1].min(), test[1].min()))
    sign = 1 if higher_is_better else -1
    (rates_a, values_a), (rates_t, values_t) = ((rates, sign * values) for rates, values in (anchor, test))
    options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rates without overlap: bd_psnr is NaN then
        gain = bjontegaard.bd_psnr(rates_a, values_a, rates_t, values_t, **options)
    return {
        "bd_rate": round(float(bjontegaard.bd_rate(rates_a, values_a, rates_t, values_t, **options)), 3),
        "bd_metric": None if np.isnan(gain) else round(float(sign * gain), 5),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "note": f"only {share:.0%} of the two curves overlap" if share < SOME_OVERLAP else "",
    }
