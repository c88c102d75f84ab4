"""What the encoder's search gains, and what it takes.

    python benchmarks/effort.py --data TRAIN -o benchmarks/results

Photographs of the validation split are compressed into real files at several efforts. Writes effort.csv and prints
each effort's BD-rate and encoding time against effort 1.
"""

import argparse
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import fmean

import bjontegaard
from tqdm import tqdm

from nic.bench.measure import write_csv
from nic.bench.results import Row
from nic.encoder import PictureEncoder
from nic.loaded import load_model
from nic.models.training.data import read_photos
from nic.pixels import Picture

RESULTS = Path(__file__).parent / "results"
LEVELS = (40, 90, 140, 190, 230)
EFFORTS = (1, 2, 3, 4, 5, 6, 7, 8, 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True, help="pictures, as in nic train")
    parser.add_argument("--photos", type=int, default=8, help="validation photographs [%(default)s]")
    parser.add_argument("--efforts", type=int, nargs="+", default=EFFORTS, metavar="EFFORT")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="[%(default)s]")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    pictures = [Picture(photo) for photo in read_photos(arguments.data, "val")[: arguments.photos]]
    if not pictures:
        parser.error("--data has no folder named val")
    model = load_model("fidelity", "cpu")
    run = {"photos": len(pictures), "model": model.id.hex(), "date": date.today().isoformat()}
    work = [(effort, level) for effort in arguments.efforts for level in LEVELS]
    rows = [measure(pictures, effort, level) | run for effort, level in tqdm(work)]
    write_csv(arguments.output / "effort.csv", rows)
    curves: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        curves[row["effort"]].append(row)
    base = curves[arguments.efforts[0]]
    for effort, curve in curves.items():
        ratio = sum(row["seconds"] for row in curve) / sum(row["seconds"] for row in base)
        print(f"effort {effort}: BD-rate {bd_rate(base, curve):+.2f} %, encoding time x {ratio:.1f}")


def measure(pictures: list[Picture], effort: int, level: int) -> Row:
    """Mean bpp, PSNR (dB) and processor seconds of encoding at one quality level."""
    model = load_model("fidelity", "cpu")
    bpps, psnrs, seconds = [], [], []
    for picture in pictures:
        encoder = PictureEncoder(picture, model, effort)
        start = time.process_time()
        size = encoder.size_at(level)
        seconds.append(time.process_time() - start)
        height, width = picture.pixels.shape[:2]
        bpps.append(8 * size / (height * width))
        psnrs.append(encoder.psnr_at(level))
    means = {"bpp": round(fmean(bpps), 5), "psnr": round(fmean(psnrs), 4), "seconds": round(fmean(seconds), 3)}
    return {"effort": effort, "level": level} | means


def bd_rate(anchor: list[Row], test: list[Row]) -> float:
    points = [[row[name] for row in curve] for curve in (anchor, test) for name in ("bpp", "psnr")]
    return float(bjontegaard.bd_rate(*points, "pchip", require_matching_points=False, min_overlap=0))


if __name__ == "__main__":
    main()
