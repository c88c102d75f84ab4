"""Every codec on every picture: encode, decode, compare. In parallel, and without repeating what is on disk."""

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from PIL import Image

from nic.bench import codecs
from nic.bench.metrics import METRICS, Meter
from nic.bench.results import Row
from nic.bitstream.container import chunks
from nic.errors import BadInput
from nic.pixels import load, to_pil
from nic.processes import pool_of

__all__ = ["Measured", "Plan", "Source", "crop_rows", "measure", "read_points", "read_rows", "read_source", "write_csv"]

CROP = 384  # pixels a side of the pictures in the report
QUICK_SIDE = 320
QUICK_SETTINGS = 4
TEXT = ("image", "image_hash", "codec", "version", "chunks", "date", "note", "source")  # even if it looks like a number
COLUMNS = ("image", "image_hash", "width", "height", "codec", "setting", "target", "bytes", "bpp", *METRICS)
COLUMNS += ("chunks", "version", "date")


@dataclass(frozen=True)
class Plan:
    """What to measure: ``targets`` are rates in bpp for the pictures of the report, beside each codec's own curve."""

    metrics: tuple[str, ...]
    targets: tuple[float, ...]
    weights: Path | None  # folder of the metrics' backbones
    folder: Path
    quick: bool

    def settings(self, codec: codecs.Codec) -> tuple[float, ...]:
        if not self.quick or len(codec.settings) <= QUICK_SETTINGS:
            return codec.settings
        last = len(codec.settings) - 1
        return tuple(codec.settings[round(i * last / (QUICK_SETTINGS - 1))] for i in range(QUICK_SETTINGS))


@dataclass(frozen=True)
class Source:
    """A picture that can be measured, by the hash of its pixels as they are measured."""

    path: Path
    name: str
    hash: str
    width: int
    height: int


def open_rgb(path: Path, quick: bool) -> Image.Image:
    """A picture as 8-bit RGB, upright; in a quick run its centre. Raises BadInput."""
    image = to_pil(load(path)).convert("RGB")
    return centre(image, QUICK_SIDE) if quick else image


def centre(image: Image.Image, side: int) -> Image.Image:
    width, height = min(image.width, side), min(image.height, side)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def read_source(path: Path, name: str, quick: bool, metrics: Sequence[str]) -> Source:
    """``name`` is how results call it. Raises BadInput for what cannot be read or is too small for the metrics."""
    image = open_rgb(path, quick)
    smallest, label = max((METRICS[metric].smallest, METRICS[metric].label) for metric in metrics)
    if min(image.size) < smallest:
        raise BadInput(f"{image.width}x{image.height} is too small: {label} needs {smallest} pixels a side")
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]
    return Source(path, name, digest, image.width, image.height)


@dataclass(frozen=True)
class Measured:
    """What one codec did on one picture: its rows, or in one line why there are none."""

    source: Source
    codec: str
    rows: list[Row]
    problem: str = ""


def measure(
    sources: Sequence[Source], names: Sequence[str], plan: Plan, jobs: int, known: list[Row]
) -> Iterator[Measured]:
    """All pictures with all codecs, as they become ready.

    A row has COLUMNS: ``setting`` the codec's own quality parameter, ``target`` the rate that was aimed at (None for
    points of the curve), ``bytes`` of the whole file, ``bpp`` 8 * bytes / pixels, ``chunks`` tag and bytes of each
    chunk of a .nic file. Rows in ``known`` that have what the plan asks for are taken over.
    """
    taken: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in known:
        taken[row["image_hash"], row["codec"], row["version"]].append(row)
    versions = {name: codecs.load(name).version for name in names}
    with pool_of(jobs, start_worker, plan.metrics, plan.weights) as pool:
        futures = {
            pool.submit(measure_one, source, name, plan, taken[source.hash, name, versions[name]]): (source, name)
            for source in sources
            for name in names
        }
        for future in as_completed(futures):
            source, name = futures[future]
            try:
                yield Measured(source, name, future.result())
            except BrokenProcessPool:
                raise
            except Exception as error:  # whatever a peer raises on this picture: the others go on
                yield Measured(source, name, [], " ".join(str(error).split()) or type(error).__name__)


meter: Meter


def start_worker(metrics: Sequence[str], weights: Path | None) -> None:
    """One thread a process: pictures run in parallel."""
    global meter
    torch.set_num_threads(1)
    meter = Meter(metrics, weights)


def measure_one(source: Source, name: str, plan: Plan, known: list[Row]) -> list[Row]:
    """One picture with one codec: its curve, then its targets."""
    curve = {row["setting"]: row for row in known if row["target"] is None and complete(row, plan)}
    aimed = {row["target"]: row for row in known if row["target"] is not None and complete(row, plan)}
    codec = codecs.load(name)
    settings = [setting for setting in plan.settings(codec) if setting not in curve]
    targets = [
        target for target in plan.targets if target not in aimed or not crop_path(plan, source, target, name).exists()
    ]
    rows = [curve[setting] for setting in plan.settings(codec) if setting in curve]
    rows += [aimed[target] for target in plan.targets if target not in targets]
    if not settings and not targets:
        return rows
    image = open_rgb(source.path, plan.quick)
    for setting in settings:
        row, _ = measure_file(source, image, codec, setting, codec.encode(image, setting))
        rows.append(row)
    sizes = {row["setting"]: row["bytes"] for row in rows}
    for target in targets:
        setting, data = codecs.at_rate(codec, image, target, sizes)
        row, decoded = measure_file(source, image, codec, setting, data)
        rows.append(row | {"target": target})
        for file, picture in ((crop_path(plan, source, target, name), decoded), (crop_path(plan, source), image)):
            centre(picture, CROP).save(file, lossless=True)
    return rows


def complete(row: Row, plan: Plan) -> bool:
    return all(row[metric] is not None for metric in plan.metrics)


def measure_file(
    source: Source, image: Image.Image, codec: codecs.Codec, setting: float, data: bytes
) -> tuple[Row, Image.Image]:
    decoded = codec.decode(data, image.size)
    values = meter.measure(image, decoded)
    parts = chunks(data) if codec.name.startswith("nic") else ()
    row = dict.fromkeys(COLUMNS) | {
        "image": source.name,
        "image_hash": source.hash,
        "width": image.width,
        "height": image.height,
        "codec": codec.name,
        "setting": float(setting),
        "bytes": len(data),
        "bpp": round(8 * len(data) / (image.width * image.height), 6),
        **{name: round(value, 6) if math.isfinite(value) else value for name, value in values.items()},
        "chunks": " ".join(f"{part.tag} {len(part.payload)}" for part in parts),
        "version": codec.version,
        "date": date.today().isoformat(),
    }
    return row, decoded


def crop_path(plan: Plan, source: Source, target: float | None = None, codec: str = "original") -> Path:
    name = f"{source.hash}-{codec}.webp" if target is None else f"{source.hash}-{target}-{codec}.webp"
    return plan.folder / "crops" / name


def crop_rows(sources: Sequence[Source], points: Sequence[Row], labels: dict[str, str], plan: Plan) -> list[Row]:
    """The pictures of the report: image, target, codec, label, bpp, psnr, lpips, file."""
    rows: list[Row] = []
    for source in sources:
        for target in plan.targets:
            original = {"codec": "original", "label": "original", "bpp": None, "psnr": None, "lpips": None}
            rows.append({"image": source.name, "target": target, **original, "file": crop_path(plan, source)})
            for row in points:
                if (row["image_hash"], row["target"]) == (source.hash, target):
                    columns = {name: row[name] for name in ("image", "target", "codec", "bpp", "psnr", "lpips")}
                    file = crop_path(plan, source, target, row["codec"])
                    rows.append(columns | {"label": labels[row["codec"]], "file": file})
    return [row for row in rows if row["file"].exists()]


def read_points(path: Path) -> list[Row]:
    """points.csv of an earlier run, or [] if there is none or it is another version's."""
    return [row for row in read_rows(path) if set(row) == set(COLUMNS)]


def read_rows(path: Path) -> list[Row]:
    """Rows that `write_csv` wrote: numbers, texts, and None for nothing. [] if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: parsed(name, value) for name, value in row.items()} for row in csv.DictReader(file)]


def parsed(column: str, text: str) -> float | int | str | None:
    if column in TEXT:
        return text
    if not text:
        return None
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


def write_csv(path: Path, rows: list[Row], columns: Sequence[str] | None = None) -> None:
    """Rows of equal columns, None as nothing; the file is replaced as a whole."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
