"""The report of a run as one HTML file that needs nothing else: plots, tables, and pictures side by side."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import jinja2
from markupsafe import Markup
from PIL import Image

from nic.bench import plots
from nic.bench.metrics import METRICS
from nic.bench.results import Results, Row

__all__ = ["write"]

TEMPLATE = Path(__file__).parent / "report.html.jinja"
THUMBNAIL = 88  # pixels


def write(results: Results, folder: Path) -> Path:
    """Draws the plot of each metric that was measured into the folder, and writes report.html around them."""
    labels = {row["codec"]: row["label"] for row in results.curves}
    measured = [row for row in results.curves if row["kind"] == "measured"]
    metrics = [name for name in METRICS if any(row.get(name) is not None for row in measured)]
    for metric in metrics:
        plots.draw(results.curves, metric, folder)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "signed": signed, "seconds": seconds}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        metrics={name: METRICS[name] for name in metrics},
        plots={name: inline(folder / f"rd_{name}.svg") for name in metrics},
        sources={row["label"]: row["source"] for row in results.curves if row["kind"] == "published"},
        tables={name: [row for row in results.table if row["metric"] == name] for name in metrics},
        bd={name: matrix(results.bd, name, list(labels)) for name in metrics},
        labels=labels,
        speed=speed(results.speed),
        chunks=chunk_shares(results.points),
        pictures=pictures(results.crops),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def seconds(value: float) -> str:
    """Three digits, in s or ms."""
    digits = f"{value:#.3g} s" if value >= 1 else f"{1000 * value:#.3g} ms"
    return digits.replace(". ", " ")


def inline(path: Path) -> Markup:
    """A plot as an element of the page: transparent, with text and axes in the page's colour."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :].replace(plots.INK, "currentColor").replace(f"fill: {plots.PAPER}", "fill: none")
    return Markup(svg)


def matrix(bd: list[Row], metric: str, codecs: list[str]) -> Row:
    """``anchors`` as ``codecs`` are ordered, ``rows``: codec -> anchor -> row, ``notes``: the rows that have one."""
    chosen = [row for row in bd if row["metric"] == metric]
    rows: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in chosen:
        rows[row["codec"]][row["anchor"]] = row
    anchors = [codec for codec in codecs if any(row["anchor"] == codec for row in chosen)]
    return {"anchors": anchors, "rows": rows, "notes": [row for row in chosen if row["note"]]}


def speed(rows: list[Row]) -> list[Row]:
    """One row a codec: codec, setting, bytes, and for each step its row, with ``ratio``: its wall time over JPEG's."""
    jpeg = {row["step"]: row["wall_s"] for row in rows if row["codec"] == "jpeg"}
    table: dict[str, Row] = {}
    for row in rows:
        ratio = row["wall_s"] / jpeg[row["step"]] if jpeg.get(row["step"]) else None
        codec = table.setdefault(row["codec"], {name: row[name] for name in ("codec", "setting", "bytes")})
        codec[row["step"]] = row | {"ratio": ratio}
    return list(table.values())


def chunk_shares(points: list[Row]) -> list[Row]:
    """Of the bytes of nic's files, what each chunk takes: mean, least and greatest share over all files."""
    files = []
    for row in points:
        words = (row.get("chunks") or "").split()
        sizes: dict[str, int] = defaultdict(int)
        for tag, size in zip(words[::2], words[1::2], strict=True):
            sizes[tag] += int(size)
        if sizes:
            files.append({tag: size / sum(sizes.values()) for tag, size in sizes.items()})
    shares = {
        tag: [file.get(tag, 0.0) for file in files] for tag in dict.fromkeys(tag for file in files for tag in file)
    }
    return [
        {"tag": tag, "mean": fmean(values), "least": min(values), "greatest": max(values), "files": len(values)}
        for tag, values in shares.items()
    ]


def pictures(crops: Iterable[Row]) -> list[Row]:
    """One row a picture: name, size, thumbnail, and ``data`` for the page's script.

    That is ``files``: name -> data URI, and ``rates``: for each target in bpp the codec, label, caption and file of
    what is there to compare.
    """
    rows: dict[str, Row] = {}
    for crop in sorted(crops, key=lambda crop: crop["target"]):
        path = Path(crop["file"])
        if crop["image"] not in rows:
            with Image.open(path) as image:
                head = {"name": crop["image"], "width": image.width, "height": image.height}
                rows[crop["image"]] = head | {"thumbnail": thumbnail(image), "data": {"files": {}, "rates": []}}
        data = rows[crop["image"]]["data"]
        if path.name not in data["files"]:
            data["files"][path.name] = data_uri(path.read_bytes())
        if not data["rates"] or data["rates"][-1]["target"] != crop["target"]:
            data["rates"].append({"target": crop["target"], "crops": []})
        shown = {"codec": crop["codec"], "label": crop["label"], "caption": caption(crop), "file": path.name}
        data["rates"][-1]["crops"].append(shown)
    return list(rows.values())


def caption(crop: Row) -> str:
    if crop["codec"] == "original":
        return "not compressed"
    parts = [f"{crop['bpp']:.3f} bpp"]
    parts += [f"{crop['psnr']:.2f} dB"] if crop["psnr"] is not None else []
    parts += [f"LPIPS {crop['lpips']:.3f}"] if crop["lpips"] is not None else []
    return " · ".join(parts)


def thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "webp", quality=80)
    return data_uri(file.getvalue())


def data_uri(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()
