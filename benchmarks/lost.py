"""What lost indices of the extreme mode cost, filled in by its recovery network, smoothly, or from the nearest.

    python benchmarks/lost.py PICTURES -o benchmarks/results

Of every picture, 5, 10 and 20 % of the indices are lost: at random, or in squares of 8x8 (128x128 pixels). Files lose
whole cells; pictures of less than 1024 pixels are one cell, so this drops indices of a decoded file. Writes lost.csv,
and prints means of LPIPS against the original, and how much higher they are than without loss.
"""

import argparse
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nic.bench.measure import write_csv
from nic.bench.metrics import Meter
from nic.bench.results import Row
from nic.bitstream.container import unpack
from nic.decoder import PictureDecoder
from nic.encoder import PictureEncoder
from nic.loaded import load_model
from nic.models.prior import UNIT
from nic.models.recovery import nearest_fill, smooth_fill
from nic.models.store import ExtremeModel
from nic.pixels import Picture

RESULTS = Path(__file__).parent / "results"
RATES = (0.05, 0.1, 0.2)
SQUARE = 8  # positions a side of what is lost together
# latents [1, D, h, w] with zeros where they are not known, known [h, w] bool, codewords -> latents
Fill = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="folder of PNG files")
    parser.add_argument("--every", type=int, default=1, help="only every so many pictures [%(default)s]")
    parser.add_argument("--quality", type=float, default=60, help="0 to 100 [%(default)s]")
    parser.add_argument("--metric-weights", type=Path, help="folder of LPIPS's backbone, as for nic bench")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="[%(default)s]")
    arguments = parser.parse_args()
    paths = sorted(arguments.pictures.glob("*.png"))[:: arguments.every]
    if not paths:
        parser.error(f"no PNG files in {arguments.pictures}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = load_model("extreme", "cpu")
    assert isinstance(model, ExtremeModel) and model.recovery
    fills: dict[str, Fill] = {"recovery": model.recovery.fill, "smooth": smooth, "nearest": nearest}
    meter = Meter(["lpips"], arguments.metric_weights)
    rows: list[Row] = []
    for path in tqdm(paths):
        rows += measure(model, path, arguments.quality, fills, meter)
    write_csv(
        arguments.output / "lost.csv", [row | {"model": model.id.hex(), "date": str(date.today())} for row in rows]
    )
    print(table(rows))


def measure(model: ExtremeModel, path: Path, quality: float, fills: dict[str, Fill], meter: Meter) -> list[Row]:
    """LPIPS of one picture without loss and with each kind of loss and filling."""
    with Image.open(path) as image:
        original = image.convert("RGB")
    data, latents = PictureEncoder(Picture(np.asarray(original)), model).encode(round(quality * 2.52))
    header = unpack(data).header
    codewords = model.codewords[model.book(header.quality)] / UNIT

    def lpips(decoded: Tensor) -> float:
        pixels, _ = PictureDecoder(header, device="cpu").pixels(decoded)
        return meter.measure(original, Image.fromarray(pixels))["lpips"]

    rows: list[Row] = [{"picture": path.name, "loss": "none", "rate": 0.0, "fill": "", "lpips": lpips(latents)}]
    generator = np.random.default_rng(0)
    for loss, size in (("random", 1), ("squares", SQUARE)):
        for rate in RATES:
            known = torch.from_numpy(keep(generator, latents.shape[2:], rate, size))
            for name, fill in fills.items():
                value = lpips(fill(torch.where(known, latents, 0), known, codewords))
                rows.append({"picture": path.name, "loss": loss, "rate": rate, "fill": name, "lpips": value})
    return rows


def keep(generator: np.random.Generator, shape: tuple[int, ...], rate: float, size: int) -> np.ndarray:
    """Which positions are known: bool, lost in squares of ``size`` until ``rate`` of them are."""
    blocks = tuple(-(-side // size) for side in shape)
    lost = np.zeros(blocks, bool).ravel()
    lost[generator.permutation(lost.size)[: max(1, round(rate * lost.size))]] = True
    return ~lost.reshape(blocks).repeat(size, 0).repeat(size, 1)[: shape[0], : shape[1]]


def smooth(latents: Tensor, known: Tensor, codewords: Tensor) -> Tensor:
    return smooth_fill(latents, known[None])


def nearest(latents: Tensor, known: Tensor, codewords: Tensor) -> Tensor:
    return nearest_fill(latents, known[None])


def table(rows: list[Row]) -> str:
    whole = fmean(row["lpips"] for row in rows if row["loss"] == "none")
    lines = ["| lost | recovery | smooth | nearest |", "|---|---|---|---|"]
    for loss in ("random", "squares"):
        for rate in RATES:
            same = [row for row in rows if (row["loss"], row["rate"]) == (loss, rate)]
            values = (
                fmean(row["lpips"] for row in same if row["fill"] == name) for name in ("recovery", "smooth", "nearest")
            )
            cells = (f"{value:.4f} ({value / whole - 1:+.1%})" for value in values)
            lines.append(f"| {loss} {rate:.0%} | {' | '.join(cells)} |")
    return "\n".join([f"LPIPS without loss: {whole:.4f}", "", *lines])


if __name__ == "__main__":
    main()
