"""What the codebooks and the integer prior cost or gain, on the same latents.

    python benchmarks/quantizer.py CHECKPOINT WEIGHTS --data TRAIN -o benchmarks/results

CHECKPOINT is what WEIGHTS was fitted from, or WEIGHTS itself, whose integers are then the float prior, too.
Photographs of the validation split are coded in five ways; rates are ideal code lengths, hyper-latents included. Writes
quantizer.csv and prints BD-rates.
"""

import argparse
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import fmean
from unittest import mock

import bjontegaard
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nic.bench.measure import write_csv
from nic.bench.results import Row
from nic.bitstream.entropy import Tables
from nic.models import store
from nic.models.codec import ImageCodec, class_sigma, gaussian_bits
from nic.models.prior import CLASSES, UNIT, Prior
from nic.models.training.codebook import RECOUNTS, borrow, escape_table, gather, recount, to_frequencies
from nic.models.training.data import Photos, read_photos, to_images
from nic.models.training.start import read_start
from nic.models.vq import ESCAPE_CLASS, ESCAPE_MAX, TOTAL, Codebook, Codebooks, Places, in_groups

RESULTS = Path(__file__).parent / "results"
PLAIN = 1e-3  # rate weight of plain rounding: it only decides between an escape and a codeword that say the same
QUALITIES = (0, 12, 24, 36, 48, 60)
# residuals [L] and scale classes [L] -> reconstructions [L] in fixed point, and their bits
Quantizer = Callable[[Tensor, Tensor], tuple[Tensor, float]]
COMPARED = (
    ("integer prior", "float prior", "what integerising the prior costs"),
    ("scalar tables", "integer prior", "counted tables instead of Gaussians"),
    ("optimised scalar tables", "scalar tables", "choosing by rate and distortion"),
    ("shared codebooks", "scalar tables", "vectors and trellises against rounding"),
    ("shared codebooks", "optimised scalar tables", "the same against rate-distortion optimised scalars"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="training photographs, as in nic train"
    )
    parser.add_argument("--photos", type=int, default=16, help="validation photographs [%(default)s]")
    parser.add_argument("--crops", type=int, default=200, help="crops that scalar tables are counted on [%(default)s]")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="[%(default)s]")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    state, config = read_start(arguments.checkpoint)
    model = ImageCodec(config).to(memory_format=torch.channels_last).eval()
    model.load_state_dict(state)
    photos = read_photos(arguments.data, "val")[: arguments.photos]
    ways = quantizers(
        model, arguments.weights, Photos(read_photos(arguments.data), torch.device("cpu")), arguments.crops
    )
    identity = store.read_metadata(arguments.weights)["id"]
    run = {"photos": len(photos), "model": identity, "date": date.today().isoformat()}
    rows = [
        {"way": way, "quality": quality} | measure(model, prior, quantizer, photos, quality, weight) | run
        for way, (prior, quantizer, weight) in tqdm(ways.items(), unit="way")
        for quality in QUALITIES
    ]
    write_csv(arguments.output / "quantizer.csv", rows)
    for test, anchor, what in COMPARED:
        print(f"{bd_rate(rows, anchor, test):+6.2f} %  {test} against {anchor}: {what}")


@torch.no_grad()
def quantizers(
    model: ImageCodec, weights: Path, photos: Photos, crops: int
) -> dict[str, tuple[Prior, Quantizer, float | None]]:
    """The five ways: prior, quantizer, and the rate weight where it is not the codebooks' own."""
    integer = store.load_from(weights, "cpu").prior
    counted = scalar_tables(gather(model, integer, photos, None, crops))
    chosen = counted
    samples = gather(model, integer, photos, chosen, crops)
    for _ in range(RECOUNTS):
        chosen = recount(chosen, samples)
    return {
        "float prior": (model.prior, gaussian, None),
        "integer prior": (integer, gaussian, None),
        "scalar tables": (integer, tables(counted), PLAIN),
        "optimised scalar tables": (integer, tables(chosen), None),
        "shared codebooks": (integer, tables(store.read_codebooks(weights)), None),
    }


def scalar_tables(samples: list[Tensor]) -> Codebooks:
    """Whole steps as codewords of every class, with the frequencies of rounded samples [n, 4] (fixed point)."""
    books = []
    for c in range(CLASSES):
        steps, counts = torch.round(borrow(samples, c)).flatten().unique(return_counts=True)
        used = counts > 1
        codewords = (steps[used, None] * UNIT).int()
        frequencies = to_frequencies(torch.cat([counts[used].float(), torch.tensor([0.5])]))
        books.append(Codebook(codewords, frequencies if len(codewords) > 1 else torch.tensor([TOTAL])))
    return Codebooks(books, escape_table())


def gaussian(residuals: Tensor, classes: Tensor) -> tuple[Tensor, float]:
    """Rounding to whole steps, which are coded with the probabilities of a Gaussian."""
    steps = torch.round(residuals / UNIT)
    return steps * UNIT, gaussian_bits(steps, class_sigma(classes)).sum().item()


def tables(books: Codebooks) -> Quantizer:
    entropy = Tables(books.frequency_tables())

    def quantize(residuals: Tensor, classes: Tensor) -> tuple[Tensor, float]:
        groups, shared = in_groups(classes)
        chosen, decoded = books.quantize(residuals[groups], shared.long())
        symbols, numbers = chosen.numpy().astype(np.int32), shared.numpy().astype(np.uint8)
        bits = 0.0

        def count(places: Places, tables: np.ndarray) -> np.ndarray:
            nonlocal bits
            mine: np.ndarray = symbols[places]
            bits += entropy.cost(mine, tables)
            return mine

        books.in_file_order(numbers, count)
        steps = (decoded.numpy()[books.escaped(symbols, numbers)] / UNIT).astype(np.int32)
        bits += entropy.cost(steps + ESCAPE_MAX, np.full(len(steps), ESCAPE_CLASS, np.uint8))
        return torch.empty_like(residuals).index_copy_(0, groups.flatten(), decoded.flatten()), bits

    return quantize


@torch.no_grad()
def measure(
    model: ImageCodec,
    prior: Prior,
    quantizer: Quantizer,
    photos: list[np.ndarray],
    quality: float,
    rate_weight: float | None,
) -> Row:
    """Mean bpp and PSNR of photographs, cropped to multiples of 64."""
    bpps, psnrs = [], []
    for photo in photos:
        pixels = to_images(photo, torch.device("cpu"))
        q = torch.tensor([float(quality)])
        y = model.analysis(pixels, q)
        targets = prior.targets(y, model.hyper_analysis(y))
        bits = [0.0]

        def source(
            stage: int, means: Tensor, classes: Tensor, targets: list[Tensor] = targets, bits: list[float] = bits
        ) -> Tensor:
            decoded, spent = quantizer((targets[stage] - means)[0], classes[0])
            bits[0] += spent
            return decoded[None]

        weight = mock.patch("nic.models.vq.RATE_WEIGHT", rate_weight) if rate_weight is not None else mock.MagicMock()
        with weight:
            latents = prior.decode(*y.shape[2:], q, source)
        mse = (model.synthesis(latents / UNIT, q).clamp(0, 1) - pixels).square().mean().item()
        bpps.append(bits[0] / pixels[0, 0].numel())
        psnrs.append(-10 * math.log10(mse))
    return {"bpp": round(fmean(bpps), 5), "psnr": round(fmean(psnrs), 4)}


def bd_rate(rows: list[Row], anchor: str, test: str) -> float:
    curves = [[(row["bpp"], row["psnr"]) for row in rows if row["way"] == way] for way in (anchor, test)]
    (rates_a, psnrs_a), (rates_t, psnrs_t) = (map(np.array, zip(*curve, strict=True)) for curve in curves)
    return float(
        bjontegaard.bd_rate(rates_a, psnrs_a, rates_t, psnrs_t, "pchip", require_matching_points=False, min_overlap=0)
    )


if __name__ == "__main__":
    main()
