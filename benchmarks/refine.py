"""What refinement costs in PSNR and gains in LPIPS, DISTS and the Fréchet distance, over steps and strengths.

    python benchmarks/refine.py PICTURES --metric-weights FOLDER -o benchmarks/results

The middle 512x384 pixels in fidelity mode at its lowest rates and in extreme mode (effort 1), each unrefined, with 1 to
25 steps, and with 4 steps at half strength or made consistent. The Fréchet distance (Heusel et al., arXiv 1706.08500)
is that of features of VGG-16, the mean of its last convolution over patches of 64x64 pixels, 32 apart, between all
decoded and all original pictures. Also measured: the largest change of a colour's mean, and the PSNR when the result is
compressed and decompressed again as it was before. Writes refine.csv, one row for each setting, and draws refine.svg.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from nic import codec
from nic.bench.measure import write_csv
from nic.bench.metrics import Meter, load_dists, psnr, to_tensor
from nic.bench.results import Row
from nic.models import store
from nic.models.training.perceptual import Dists, moments
from nic.pixels import Picture
from nic.refine import Refinement

RESULTS = Path(__file__).parent / "results"
CODED = (("fidelity", 0.0), ("fidelity", 15.0), ("extreme", 50.0))  # modes and qualities
STEPS = (0, 1, 2, 4, 8, 25)
STRENGTHS = (0.5,)  # with 4 steps
SIZE = (512, 384)
PATCH = 4  # positions of VGG's last convolution: 64 pixels
METRICS = ("psnr", "lpips", "dists", "frechet")


@dataclass
class Setting:
    """One way to decode, and what is measured on each picture."""

    mode: str
    quality: float
    refinement: Refinement | None
    rows: list[dict[str, float]] = field(default_factory=list)
    patches: list[np.ndarray] = field(default_factory=list)  # features [n, 512]

    def label(self) -> dict[str, object]:
        steps, strength, consistent = 0, 0.0, False
        if self.refinement:
            steps, strength = self.refinement.steps, self.refinement.strength
            consistent = self.refinement.consistent
        return {
            "mode": self.mode, "quality": self.quality, "steps": steps, "strength": strength, "consistent": consistent
        }  # fmt: skip


def settings(mode: str, quality: float) -> Iterator[Setting]:
    for steps in STEPS:
        yield Setting(mode, quality, Refinement(steps, 1.0) if steps else None)
    for strength in STRENGTHS:
        yield Setting(mode, quality, Refinement(4, strength))
    yield Setting(mode, quality, Refinement(4, 1.0, consistent=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="folder of PNG files")
    parser.add_argument("--every", type=int, default=1, help="only every so many pictures [%(default)s]")
    parser.add_argument("--metric-weights", type=Path, help="folder of LPIPS's and DISTS's backbones, as for nic bench")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="[%(default)s]")
    arguments = parser.parse_args()
    paths = sorted(arguments.pictures.glob("*.png"))[:: arguments.every]
    if not paths:
        parser.error(f"no PNG files in {arguments.pictures}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    meter, dists = Meter(["lpips"], arguments.metric_weights), load_dists(arguments.metric_weights)
    tried = [setting for coded in CODED for setting in settings(*coded)]
    originals: list[np.ndarray] = []
    for path in tqdm(paths):
        with Image.open(path) as image:
            left, top = ((side - wanted) // 2 for side, wanted in zip(image.size, SIZE, strict=True))
            original = image.convert("RGB").crop((left, top, left + SIZE[0], top + SIZE[1]))
        with torch.inference_mode():
            originals.append(measure(original, tried, meter, dists))
    rows: list[Row] = []
    for setting in tried:
        means = {name: fmean(row[name] for row in setting.rows) for name in setting.rows[0]}
        distance = frechet(np.concatenate(setting.patches), np.concatenate(originals))
        rows.append(setting.label() | means | {"frechet": distance, "pictures": len(paths)})
    ids = {f"{name}_model": store.find(name)["id"] for name in ("fidelity", "extreme", "refiner")}
    write_csv(arguments.output / "refine.csv", [row | ids | {"date": str(date.today())} for row in rows])
    draw(rows, arguments.output / "refine.svg")
    print(table(rows))


def measure(original: Image.Image, tried: list[Setting], meter: Meter, dists: Dists) -> np.ndarray:
    """Adds a row and patches to each setting; returns the patches of the original."""
    features = list(dists.features(to_tensor(original)))
    wanted = [moments(x) for x in features]
    files: dict[tuple[str, float], bytes] = {}
    for setting in tried:
        coded = setting.mode, setting.quality
        if coded not in files:
            files[coded] = compress(np.asarray(original), setting)
            plain = codec.decompress(files[coded]).pixels
        pixels = codec.decompress(files[coded], refinement=setting.refinement).pixels
        decoded = Image.fromarray(pixels)
        found = list(dists.features(to_tensor(decoded)))
        again = codec.decompress(compress(pixels, setting))
        setting.rows.append(
            {
                "bpp": 8 * len(files[coded]) / (original.width * original.height),
                "psnr": psnr(original, decoded),
                "lpips": meter.measure(original, decoded)["lpips"],
                "dists": dists.compare(wanted, found).item(),
                "mean_shift": float(np.abs(pixels.mean((0, 1)) - plain.mean((0, 1))).max()),
                "psnr_again": psnr(original, Image.fromarray(again.pixels)),
            }
        )
        setting.patches.append(patches(found[-1]))
    return patches(features[-1])


def compress(pixels: np.ndarray, setting: Setting) -> bytes:
    return codec.compress(Picture(pixels), quality=setting.quality, mode=setting.mode, effort=1).data


def patches(activations: torch.Tensor) -> np.ndarray:
    """Means [n, C] over the patches of activations [1, C, h, w]."""
    means = F.avg_pool2d(activations, PATCH, PATCH // 2)[0]
    flat: np.ndarray = means.flatten(1).T.double().numpy()
    return flat


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of Gaussians that fit features [n, C] and [m, C]."""
    first, second = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * cross)


def draw(rows: list[Row], path: Path) -> None:
    """PSNR against each perceptual metric: steps joined by a line, strengths by a dashed one."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axis, metric in zip(axes, METRICS[1:], strict=True):
        for colour, (mode, quality) in enumerate(CODED):
            same = [row for row in rows if (row["mode"], row["quality"]) == (mode, quality) and not row["consistent"]]
            steps = [row for row in same if row["strength"] in (0.0, 1.0)]
            axis.plot(
                [r["psnr"] for r in steps],
                [r[metric] for r in steps],
                f"C{colour}o-",
                label=f"{mode}, {steps[0]['bpp']:.3f} bpp",
            )
            for row in steps:
                axis.annotate(
                    str(row["steps"]), (row["psnr"], row[metric]), xytext=(3, 3), textcoords="offset points", fontsize=7
                )
            strengths = [row for row in same if row["steps"] in (0, 4)]
            strengths.sort(key=lambda row: row["strength"])
            axis.plot([r["psnr"] for r in strengths], [r[metric] for r in strengths], f"C{colour}.--", linewidth=0.8)
        axis.set(xlabel="PSNR (dB)", ylabel={"lpips": "LPIPS", "dists": "DISTS", "frechet": "Fréchet distance"}[metric])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle("Refinement: numbers are steps; dashed, strengths 0 to 1 with 4 steps", fontsize=10)
    figure.savefig(path)


def table(rows: list[Row]) -> str:
    names = ("mode", "bpp", "steps", "strength", "consistent", *METRICS, "mean_shift", "psnr_again")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = (f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
