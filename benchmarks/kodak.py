"""Rate and distortion of nic, JPEG and WebP over a folder of photographs.

    python benchmarks/kodak.py IMAGES_DIR -o benchmarks/results

Writes kodak_images.csv (one row a photograph and setting), kodak.csv (their means), the plots kodak.png and kodak.svg
drawn from it, and kodak.md, which is also printed: the table in README.md.
"""

import argparse
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import bjontegaard
import numpy as np
import torch
from coders import decode, encode
from matplotlib.figure import Figure
from metrics import ms_ssim, psnr
from PIL import Image
from report import RESULTS, Row, provenance, write_csv
from scipy.interpolate import PchipInterpolator
from tqdm import tqdm

QUALITIES = {
    "nic": (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100),
    "JPEG": (1, 4, 7, 10, 15, 22, 32, 45, 60, 75, 85),
    "WebP": (0, 4, 10, 20, 30, 45, 60, 75, 85, 92),
}
BPPS = (0.15, 0.25, 0.4, 0.5, 0.6)  # where the summary compares
PROCESSES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, metavar="IMAGES_DIR", help="folder of PNG photographs")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="[%(default)s]")
    arguments = parser.parse_args()
    run = provenance()
    rows = [row | run for row in measure_all(sorted(arguments.images.glob("*.png")))]
    means = mean_rows(rows)
    write_csv(arguments.output / "kodak_images.csv", rows)
    write_csv(arguments.output / "kodak.csv", means)
    plot(means, arguments.output)
    (arguments.output / "kodak.md").write_text(summary(means))
    print(summary(means), end="")


def measure_all(paths: list[Path]) -> Iterator[Row]:
    """Every photograph with every coder, in parallel, in this order."""
    jobs = [(path, coder) for coder in QUALITIES for path in paths]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        for rows in tqdm(pool.imap(measure, jobs), total=len(jobs), unit="job"):
            yield from rows


def measure(job: tuple[Path, str]) -> list[Row]:
    """One photograph with one coder at all its qualities."""
    path, coder = job
    torch.set_num_threads(1)
    image = Image.open(path).convert("RGB")
    rows = []
    for quality in QUALITIES[coder]:
        data = encode(image, coder, quality)
        decoded = decode(data)
        rows.append(
            {
                "image": path.stem,
                "codec": coder,
                "setting": quality,
                "bytes": len(data),
                "bpp": round(8 * len(data) / (image.width * image.height), 5),
                "psnr": round(psnr(image, decoded), 4),
                "ms_ssim": round(ms_ssim(image, decoded), 6),
            }
        )
    return rows


def mean_rows(rows: list[Row]) -> list[Row]:
    """One row for each codec and setting: means over the photographs of bpp, PSNR in dB, and MS-SSIM."""
    means = []
    for codec, qualities in QUALITIES.items():
        for quality in qualities:
            group = [row for row in rows if (row["codec"], row["setting"]) == (codec, quality)]
            values = {name: round(fmean(row[name] for row in group), 5) for name in ("bpp", "psnr", "ms_ssim")}
            run = {name: group[0][name] for name in ("model_id", "date", "versions")}
            means.append({"codec": codec, "setting": quality, **values, "images": len(group), **run})
    return means


def curve(means: list[Row], codec: str, metric: str = "psnr") -> tuple[np.ndarray, np.ndarray]:
    """The rates in bpp and the metric of one codec, as the settings are ordered; rows as measured or as read."""
    points = [(float(row["bpp"]), float(row[metric])) for row in means if row["codec"] == codec]
    rates, values = zip(*points, strict=True)
    return np.array(rates), np.array(values)


def summary(means: list[Row]) -> str:
    """PSNR of each codec at equal rates, and nic's BD-rates, in Markdown."""
    curves = {codec: curve(means, codec) for codec in QUALITIES}
    lines = ["| bpp | nic | JPEG | WebP | nic − JPEG |", "|---|---|---|---|---|"]
    for bpp in BPPS:
        values = {codec: psnr_at(*points, bpp) for codec, points in curves.items()}
        cells = [*(f"{value:.2f}" for value in values.values()), f"{values['nic'] - values['JPEG']:+.2f}"]
        lines.append(f"| {bpp} | " + " | ".join("–" if cell.endswith("nan") else cell for cell in cells) + " |")
    nic, *others = curves
    bd_rates = " and ".join(f"{bd_rate(curves[other], curves[nic]):+.1f} % against {other}" for other in others)
    row = means[0]
    lines += [
        "",
        f"RGB PSNR in dB, mean of {row['images']} photographs. BD-rate of nic: {bd_rates}; less is better.",
        f"Model `{row['model_id']}`, {row['date']}; {row['versions']}.",
    ]
    return "\n".join(lines) + "\n"


def psnr_at(rates: np.ndarray, psnrs: np.ndarray, bpp: float) -> float:
    """The PSNR at a rate, by piecewise cubic interpolation over the logarithm of the rate; NaN outside the curve."""
    return float(PchipInterpolator(np.log(rates), psnrs, extrapolate=False)(np.log(bpp)))


def bd_rate(anchor: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """How many per cent more bits `test` takes than `anchor` at equal PSNR, over the PSNRs that both reach.

    Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with PCHIP interpolation.
    """
    return bjontegaard.bd_rate(*anchor, *test, method="pchip", require_matching_points=False, min_overlap=0)


def plot(means: list[Row], folder: Path) -> None:
    """Both metrics over the rate, as kodak.png and kodak.svg."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for codec in QUALITIES:
        left.plot(*curve(means, codec), "o-", markersize=4, label=codec)
        rates, similarity = curve(means, codec, "ms_ssim")
        right.plot(rates, -10 * np.log10(1 - similarity), "o-", markersize=4, label=codec)
    left.set_ylabel("RGB PSNR [dB]")
    right.set_ylabel("MS-SSIM [dB]: −10 log10(1 − MS-SSIM)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
        axes.minorticks_off()
        axes.set_xlabel("bits per pixel")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Mean of {means[0]['images']} photographs, model {means[0]['model_id']}, {means[0]['date']}")
    figure.savefig(folder / "kodak.png", dpi=120)
    figure.savefig(folder / "kodak.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
