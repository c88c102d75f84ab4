"""What leaving out groups of latents, or vectors of the extreme mode's bases, saves and costs.

    python benchmarks/masks.py PICTURES -o benchmarks/results

Pictures are compressed at one quality of each mode with rising mask rates. Writes masks.csv with the means.
"""

import argparse
from datetime import date
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image
from tqdm import tqdm

import nic
from nic.bench.measure import write_csv
from nic.bench.metrics import Meter
from nic.bench.results import Row

RESULTS = Path(__file__).parent / "results"
QUALITIES = {"fidelity": 50, "extreme": 100}
RATES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="folder of PNG files")
    parser.add_argument("--every", type=int, default=1, help="only every so many pictures [%(default)s]")
    parser.add_argument("--metric-weights", type=Path, help="folder of LPIPS's backbone, as for nic bench")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="[%(default)s]")
    arguments = parser.parse_args()
    paths = sorted(arguments.pictures.glob("*.png"))[:: arguments.every]
    if not paths:
        parser.error(f"no PNG files in {arguments.pictures}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    pictures = [Image.open(path).convert("RGB") for path in paths]
    meter = Meter(["psnr", "lpips"], arguments.metric_weights)
    rows = [measure(pictures, mode, rate, meter) for mode in QUALITIES for rate in tqdm(RATES, desc=mode)]
    write_csv(arguments.output / "masks.csv", [row | {"date": str(date.today())} for row in rows])


def measure(pictures: list[Image.Image], mode: str, mask_rate: float, meter: Meter) -> Row:
    """Means over the pictures of bits per pixel, PSNR and LPIPS."""
    rows = []
    for picture in pictures:
        data = nic.encode(np.asarray(picture), quality=QUALITIES[mode], effort=1, mode=mode, mask_rate=mask_rate)
        decoded = nic.decode(data)
        rows.append({"bpp": 8 * len(data) / (picture.width * picture.height)} | meter.measure(picture, decoded))
    means = {name: round(fmean(row[name] for row in rows), 5) for name in rows[0]}
    return {
        "mode": mode,
        "mask_rate": mask_rate,
        "quality": QUALITIES[mode],
        "pictures": len(rows),
        "model": nic.info(data)["model_id"],
    } | means


if __name__ == "__main__":
    main()
