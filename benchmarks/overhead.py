"""How far .nic files are above the ideal code length of the symbols in them.

    python benchmarks/overhead.py PICTURES -o benchmarks/results

Writes overhead.csv and prints the maximum. Exits with 1 if a file is longer than 1.001 times its ideal length plus 64
bytes: that is the target for what the container and the range coder may cost.
"""

import argparse
import sys
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image
from tqdm import tqdm

import nic
from nic import codec
from nic.bench import codecs
from nic.bench.measure import write_csv
from nic.bench.results import Row
from nic.bitstream.container import unpack
from nic.bitstream.entropy import Decoder

RESULTS = Path(__file__).parent / "results"
QUALITIES = (10, 30, 50, 70, 90)
CODER_SHARE = 0.001
CONTAINER_BYTES = 64


class CountingDecoder(Decoder):
    """A decoder that adds up what a perfect coder would have spent on the symbols it reads."""

    total_bits = 0.0

    def get(self, classes: np.ndarray) -> np.ndarray:
        symbols = super().get(classes)
        CountingDecoder.total_bits += self._tables.cost(symbols, classes)
        return symbols


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="folder of PNG files")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="[%(default)s]")
    arguments = parser.parse_args()
    paths = sorted(arguments.pictures.glob("*.png"))
    if not paths:
        parser.error(f"no PNG files in {arguments.pictures}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    run = {"version": codecs.load("nic").version, "date": date.today().isoformat()}
    jobs = [(path, quality) for path in paths for quality in QUALITIES]
    rows = [measure(path, quality) | run for path, quality in tqdm(jobs, unit="file")]
    write_csv(arguments.output / "overhead.csv", rows)
    for column, unit in (("coder_percent", "%"), ("coder_bytes", "bytes"), ("file_bytes_above", "bytes")):
        worst = max(rows, key=lambda row: row[column])
        print(f"maximum {column}: {worst[column]} {unit} ({worst['image']} at quality {worst['quality']})")
    sys.exit(any(row["file_bytes_above"] > CODER_SHARE * row["ideal_bytes"] + CONTAINER_BYTES for row in rows))


def measure(path: Path, quality: int) -> Row:
    """Bytes of one file: ideal, payload of its cells, whole; and how far the latter two are above the first."""
    data = nic.encode(Image.open(path).convert("RGB"), quality=quality)
    payload = sum(map(len, unpack(data).cells))
    ideal = ideal_bytes(data)
    return {
        "image": path.stem,
        "quality": quality,
        "file_bytes": len(data),
        "payload_bytes": payload,
        "ideal_bytes": round(ideal, 1),
        "coder_bytes": round(payload - ideal, 1),
        "coder_percent": round(100 * (payload / ideal - 1), 3),
        "file_bytes_above": round(len(data) - ideal, 1),
    }


def ideal_bytes(data: bytes) -> float:
    """The sum of −log2(frequency / 2^24) over all symbols of a file, in bytes."""
    CountingDecoder.total_bits = 0.0
    with mock.patch("nic.cells.Decoder", CountingDecoder):
        codec.verify(data)
    return CountingDecoder.total_bits / 8


if __name__ == "__main__":
    main()
