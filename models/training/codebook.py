"""``nic codebook fit``: residuals of training photographs -> entropy-constrained codebooks and their frequencies.

Each class is fitted with vectors of 4, 2 and 1 latents, and with two codebooks for trellises, and keeps what has the
lowest Lagrangian cost on vectors set aside. Fitting starts from the most frequent integer vectors, that is from a
uniform scalar quantizer. Because the prior's context is made of quantized latents, residuals are gathered again with
the new codebooks, and the final frequencies are counted on a third pass.
"""

import datetime
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nic.errors import UsageError
from nic.models import store
from nic.models.codec import ImageCodec, class_sigma
from nic.models.config import ImageConfig
from nic.models.prior import (
    ACTIVATION_MAX,
    CLASSES,
    OUTER,
    QUALITY_LEVELS,
    UNIT,
    ContextBlock,
    ExactConv,
    Prior,
)
from nic.models.training.data import Photos, read_photos
from nic.models.training.loop import device_of, read_checkpoint
from nic.models.transforms import QUALITY_INDICES
from nic.models.vq import ESCAPE_MAX, GROUP, ODD, RATE_WEIGHT, TOTAL, Codebook, Codebooks, bits_of, in_groups

__all__ = ["fit_codebooks", "fit_from_photos", "fit_weights", "gather", "utilisation"]

CODEWORDS_MAX = 1024
SAMPLES_MAX = 60_000  # groups kept for each class
SAMPLES_MIN = 20_000  # below this, groups of neighbouring classes are borrowed, scaled
VECTORS_MAX = 80_000  # used in each fit
ITERATIONS = 10
PASSES = 2  # of fitting codewords
RECOUNTS = 4  # new frequencies change which codewords are chosen
RANGE_CROPS = 12  # of 256x256, that the prior's range is judged by
LOUD = 1e-5
RARE = 2e-6  # cells used less often are dropped
TRELLIS_MIN = 0.3  # standard deviation, in steps, from which on trellises are tried
OUTSIDE = 1e-4  # share of the samples that may need an escape there
USED_MIN = 5  # samples that move a codeword of a trellis


def to_frequencies(counts: Tensor) -> Tensor:
    """Counts [n] -> integers >= 1 that sum to 2^24, proportional as nearly as that allows."""
    share = counts.double() / counts.double().sum()
    frequencies = 1 + torch.floor(share * (TOTAL - len(counts))).long()
    frequencies[frequencies.argmax()] += TOTAL - frequencies.sum()
    return frequencies


def escape_table() -> Tensor:
    """A heavy-tailed guess, 1 / (1 + |v|)^2: escapes are too rare to be worth counting."""
    steps = torch.arange(-ESCAPE_MAX, ESCAPE_MAX + 1, dtype=torch.float64)
    return to_frequencies(1 / (1 + steps.abs()).square())


@torch.no_grad()
def use_range(model: ImageCodec, photos: Photos) -> None:
    """Scales the prior's activations so that, at the highest quality, all but a share of LOUD fit their range.

    Integers round them; the larger they are, the less that takes away.
    """
    prior, device = model.prior, photos.pixels.device
    inner = [layer for name, layer in prior.named_modules() if not name.startswith(OUTER)]
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.abs().flatten().cpu()))
        for layer in inner
        if isinstance(layer, ExactConv | ContextBlock)
    ]
    highest = torch.full((1,), QUALITY_INDICES - 1.0, device=device)
    for _ in range(RANGE_CROPS):
        y = model.analysis(photos.crops(1, 256), highest)
        model.quantize(y, prior.features(model.quantize_hyper(model.hyper_analysis(y), highest)[0] * UNIT, highest))
    for hook in hooks:
        hook.remove()
    values = torch.cat(seen)
    loudest = float(values.kthvalue(math.ceil((1 - LOUD) * len(values))).values)
    prior.rescale(ACTIVATION_MAX / max(loudest, 1.0))


@torch.no_grad()
def gather(
    model: ImageCodec | store.Model,
    prior: Prior,
    photos: Photos,
    books: Codebooks | None,
    crops: int,
    size: int = 256,
) -> list[Tensor]:
    """Residual groups [n, 4] (fixed point) of each class, met while coding ``crops`` random crops at random qualities.

    Keeps at most SAMPLES_MAX groups a class. Without codebooks, residuals are rounded to whole steps.
    """
    kept: list[list[Tensor]] = [[] for _ in range(CLASSES)]
    met = [0] * CLASSES
    device = photos.pixels.device
    for _ in range(crops):
        images = photos.crops(1, size)
        quality = torch.randint(QUALITY_LEVELS, (1,), device=device) / 4
        y = model.analysis(images, quality)
        targets = prior.targets(y, model.hyper_analysis(y))

        def source(stage: int, means: Tensor, classes: Tensor, targets: list[Tensor] = targets) -> Tensor:
            places, shared = in_groups(classes[0])
            residuals, flat = (targets[stage] - means)[0][places], shared.long()
            for c in flat.unique().tolist():
                groups = residuals[flat == c]
                met[c] += len(groups)
                kept[c].append(groups[torch.rand(len(groups), device=device) < SAMPLES_MAX / met[c]].cpu())
            decoded = torch.round(residuals / UNIT) * UNIT if books is None else books.quantize(residuals, flat)[1]
            return torch.empty_like(means).index_copy_(1, places.flatten(), decoded.flatten()[None])

        height, width = y.shape[2:]
        prior.decode(height, width, quality, source)
    return [torch.cat(groups)[-SAMPLES_MAX:] if groups else torch.zeros(0, GROUP) for groups in kept]


@dataclass
class Fit:
    """One class at one dimension, in whole steps: codewords [K, d] and counts [K + 1], the escape last."""

    codewords: Tensor
    counts: Tensor
    escape_bits: Tensor

    def assign(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols [n] (K means escape) and Lagrangian costs [n] of vectors [n, d]."""
        bits = -torch.log2(self.counts / self.counts.sum())
        cost = torch.addmm(
            self.codewords.square().sum(dim=1) + RATE_WEIGHT * bits[:-1], vectors, self.codewords.T, alpha=-2
        )
        best, chosen = cost.min(dim=1)
        best = (best + vectors.square().sum(dim=1)).clamp(min=0)
        steps = torch.round(vectors).clamp(-ESCAPE_MAX, ESCAPE_MAX)
        escape = bits[-1] + self.escape_bits[steps.long() + ESCAPE_MAX].sum(dim=1)
        escape = (vectors - steps).square().sum(dim=1) + RATE_WEIGHT * escape
        return torch.where(escape < best, len(self.codewords), chosen), torch.minimum(best, escape)


def fit_class(vectors: Tensor, escape_bits: Tensor) -> Fit:
    """Entropy-constrained Lloyd iterations on vectors [n, d], in whole steps."""
    points, counts = torch.round(vectors).unique(dim=0, return_counts=True)
    kept = counts.argsort(descending=True)[: min(CODEWORDS_MAX, max(1, int((counts > 1).sum())))]
    floor = max(0.5, RARE * len(vectors))
    fit = Fit(points[kept], torch.cat([counts[kept].float(), torch.tensor([floor])]), escape_bits)
    for _ in range(ITERATIONS):
        symbols = fit.assign(vectors)[0]
        size = len(fit.codewords)
        counts = torch.bincount(symbols, minlength=size + 1).float()
        sums = torch.zeros(size + 1, vectors.shape[1]).index_add_(0, symbols, vectors)
        used = counts[:-1] > max(1, floor)
        used[counts[:-1].argmax()] = True
        codewords = sums[:-1][used] / counts[:-1][used, None]
        fit = Fit(codewords, torch.cat([counts[:-1][used], counts[-1:].clamp(min=floor)]), escape_bits)
    return fit


def borrow(samples: list[Tensor], c: int) -> Tensor:
    """A class's groups, joined by rescaled ones of its nearest neighbours until there are SAMPLES_MIN, in steps."""
    sigma = class_sigma(torch.arange(CLASSES))
    joined = torch.zeros(0, GROUP)
    for other in sorted(range(CLASSES), key=lambda k: abs(k - c)):
        if len(joined) >= SAMPLES_MIN:
            break
        joined = torch.cat([joined, samples[other] / UNIT * (sigma[c] / sigma[other])])
    return joined[torch.randperm(len(joined))]


def fit_codebooks(samples: list[Tensor]) -> Codebooks:
    """Samples of every class [n, 4], fixed point -> codebooks."""
    escape = escape_table()
    escape_bits = bits_of(escape)
    books: list[Codebook] = []
    odd: list[Codebook | None] = []
    for c in range(CLASSES):
        groups = borrow(samples, c)
        held_out, groups = groups[: len(groups) // 5], groups[len(groups) // 5 :]
        fits: list[tuple[float, Codebook, Codebook | None]] = []
        sigma = float(class_sigma(torch.tensor(float(c))))
        for dimension in dimensions(sigma):
            fit = fit_class(groups.reshape(-1, dimension)[:VECTORS_MAX], escape_bits)
            cost = fit.assign(held_out.reshape(-1, dimension))[1].sum() / max(1, len(held_out))
            fits.append((float(cost), to_book(fit), None))
        if sigma > TRELLIS_MIN:
            pair = fit_trellis(groups.flatten()[:VECTORS_MAX].view(-1, GROUP) * UNIT, escape)
            fits.append((cost_along_trellis(pair, held_out * UNIT), pair.books[0], pair.odd[0]))
        _, book, second = min(fits, key=lambda fit: fit[0])
        books.append(book)
        odd.append(second)
    return Codebooks(books, escape, odd)


def fit_trellis(groups: Tensor, escape: Tensor) -> Codebooks:
    """A class's two codebooks, for trellises, from its groups [n, 4], fixed point; the only class of what is returned.

    They start half a step apart and learn like those of vectors; only their outermost codewords can be dropped.
    """
    reach = float((groups.abs().flatten() / UNIT).kthvalue(math.ceil((1 - OUTSIDE) * groups.numel())).values)
    steps = torch.arange(-2 * math.ceil(reach / 2), 2 * math.ceil(reach / 2) + 1)[:, None]
    steps = steps[(steps.abs() <= CODEWORDS_MAX // 2 - 2).flatten()]  # symbol 0 is even, as that of the zero is
    likely = to_frequencies(F.pad(torch.exp(-UNIT * steps.abs().flatten() / groups.abs().mean()), (0, 1), value=1e-4))
    pair = [Codebook(UNIT * steps, likely), Codebook(UNIT * steps - UNIT // 2 * steps.sign(), likely)]
    for _ in range(ITERATIONS):
        symbols, _, odd = along_trellis(Codebooks(pair[:1], escape, pair[1:]), 0, groups)
        for which, book in enumerate(pair):
            mine = odd == which
            counts = torch.bincount(symbols[mine], minlength=len(steps) + 1).double()
            inside = mine & (symbols < len(steps))
            sums = torch.bincount(symbols[inside], groups[inside].double(), len(steps))
            means = torch.where(counts[:-1] > USED_MIN, sums / counts[:-1].clamp(min=1), book.codewords[:, 0])
            codewords = torch.round(means).int().cummax(dim=0).values[:, None]
            pair[which] = Codebook(codewords, to_frequencies(counts.clamp(min=0.5)))
    return Codebooks(pair[:1], escape, pair[1:])


def along_trellis(books: Codebooks, c: int, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What trellises make of groups [n, 4], fixed point, all of class c.

    Symbols, reconstructions, and whether they are of the odd codebook: [n, 4] each.
    """
    symbols, decoded = (made.cpu() for made in books.quantize(groups, torch.full((len(groups),), c).to(groups.device)))
    tables = books.in_file_order(np.full(len(groups), c), lambda places, _: symbols.numpy()[places])
    return symbols, decoded, torch.from_numpy(tables) >= ODD


def cost_along_trellis(pair: Codebooks, groups: Tensor) -> float:
    """Mean Lagrangian cost of groups [n, 4], fixed point, with the codebooks of one class; escapes count as one."""
    symbols, decoded, odd = along_trellis(pair, 0, groups)
    tables = [book.bits for book in (*pair.books, *pair.odd) if book]
    bits = sum(float(table[symbols[odd == which]].sum()) for which, table in enumerate(tables))
    return (float((groups - decoded).square().sum()) / UNIT**2 + RATE_WEIGHT * bits) / max(1, len(groups))


def dimensions(sigma: float) -> list[int]:
    """Vector lengths worth trying at a standard deviation: more latents a vector where few codewords span them."""
    return [d for d, low, high in ((4, 0, 1.5), (2, 0.7, 8), (1, 2, 1e9)) if low <= sigma <= high]


def to_book(fit: Fit) -> Codebook:
    codewords = torch.round(fit.codewords * UNIT).to(torch.int32)
    frequencies = to_frequencies(fit.counts) if len(codewords) > 1 else torch.tensor([TOTAL])
    return Codebook(codewords, frequencies)


def count_symbols(books: Codebooks, samples: list[Tensor]) -> list[list[Tensor]]:
    """How often each symbol of each class is chosen for the samples: in its codebook, and in the odd one if it has."""
    counts = []
    for c, (book, odd) in enumerate(zip(books.books, books.odd, strict=True)):
        if len(book.frequencies) == 1 or len(samples[c]) == 0:
            counts.append([torch.zeros(len(book.frequencies))] * (2 if odd else 1))
        elif odd:
            symbols, _, second = along_trellis(books, c, samples[c])
            sides = (symbols[second == which] for which in (False, True))
            counts.append([torch.bincount(side, minlength=len(book.frequencies)).float() for side in sides])
        else:
            symbols = books.nearest(c, samples[c].reshape(-1, book.dimension))[0]
            counts.append([torch.bincount(symbols, minlength=len(book.frequencies)).float()])
    return counts


def recount(books: Codebooks, samples: list[Tensor]) -> Codebooks:
    """Drops codewords that the samples never use and counts the others' frequencies.

    A class with few samples keeps the frequencies of its fit; one with almost none takes its neighbour's book.
    """
    counted: list[Codebook] = []
    odd: list[Codebook | None] = []
    every = zip(books.books, books.odd, count_symbols(books, samples), samples, strict=True)
    for book, second, (counts, *others), groups in every:
        if len(groups) < SAMPLES_MIN // 10 and counted:
            counted.append(counted[-1])
            odd.append(odd[-1])
            continue
        if second:
            pair = [book, second]
            even, second = trimmed(pair, [counts, *others]) if len(groups) >= SAMPLES_MIN else pair
            counted.append(even)
            odd.append(second)
            continue
        odd.append(None)
        used = counts[:-1] > 0
        if used.sum() < 2:
            only = book.codewords[counts[:-1].argmax()][None] if len(counts) > 1 else book.codewords
            counted.append(Codebook(only, torch.tensor([TOTAL])))
            continue
        if len(groups) < SAMPLES_MIN:
            counts = book.frequencies.float()
        kept = torch.cat([used, torch.tensor([True])])
        counted.append(Codebook(book.codewords[used], to_frequencies(counts[kept].clamp(min=0.5))))
    return Codebooks(counted, books.escape, odd)


def trimmed(pair: list[Codebook], counts: list[Tensor]) -> list[Codebook]:
    """A trellis' codebooks with these counts, without outermost codewords that neither uses; parities stay."""
    used = torch.stack(counts)[:, :-1].sum(dim=0).nonzero().flatten()
    first, stop = int(used[0]) // 2 * 2, int(used[-1]) + 1
    stop = max(stop, first + 3)  # both parities, and more than one of one
    return [
        Codebook(
            book.codewords[first:stop],
            to_frequencies(torch.cat([count[first:stop], count[-1:]]).clamp(min=0.5)),
        )
        for book, count in zip(pair, counts, strict=True)
    ]


def utilisation(books: Codebooks, samples: list[Tensor]) -> list[tuple[int, int, int, float]]:
    """For each class: dimension, codewords, groups seen, and the share of codewords that it and its sharers use."""
    pairs = [[book for book in pair if book] for pair in zip(books.books, books.odd, strict=True)]
    used: dict[int, Tensor] = {}
    for pair, counts in zip(pairs, count_symbols(books, samples), strict=True):
        for book, count in zip(pair, counts, strict=True):
            used[id(book)] = used.get(id(book), torch.zeros(1)) + count[: len(book.codewords)]
    rows = []
    for pair, groups in zip(pairs, samples, strict=True):
        size = sum(len(book.codewords) for book in pair)
        share = sum(float((used[id(book)] > 0).sum()) for book in pair) / size if size > 1 else 1.0
        rows.append((pair[0].dimension, size, len(groups), share))
    return rows


def fit_from_photos(
    model: ImageCodec | store.Model, prior: Prior, photos: Photos, crops: int, books: Codebooks | None, passes: int
) -> tuple[Codebooks, list[Tensor]]:
    """Codebooks for an integer prior, and the samples of the last pass for a report of utilisation.

    books: what the first pass codes with, None to round. passes: that choose codewords; after 0 of them, those of
    ``books`` stay, and only their symbols are counted.
    """
    device = photos.pixels.device
    for _ in range(passes):
        books = fit_codebooks(gather(model, prior, photos, books and books.to(device), crops))
    assert books is not None
    samples = gather(model, prior, photos, books.to(device), crops)
    for _ in range(RECOUNTS):
        books = recount(books, samples)
    return books, samples


def read_trained(checkpoint: Path, photos: Photos) -> tuple[ImageCodec, dict[str, Any]]:
    """The codec of a training checkpoint, whose prior is scaled to its range, and what its card says."""
    device = photos.pixels.device
    state, config = read_checkpoint(checkpoint, ImageConfig, device)
    model = ImageCodec(config).to(device, memory_format=torch.channels_last).eval()
    model.load_state_dict(state["average"])
    use_range(model, photos)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return model, {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1), "parameters": parameters}


def fit_weights(
    source: Path,
    output: Path,
    data: Sequence[Path],
    crops: int,
    device: str,
    workers: int,
    note: str,
    mode: str | None = None,
    codebooks: Codebooks | None = None,
) -> Iterator[str]:
    """Turns a training checkpoint, or a weight file, into a weight file; yields the lines of a report.

    Of a weight file, everything but the codebooks stays. codebooks: whose codewords are kept. mode: what a checkpoint
    was trained for, FIDELITY unless it is given. Raises UsageError for a weight file of another mode.
    """
    torch.manual_seed(0)
    photos = Photos(read_photos(data, "train", workers), device_of(device))
    model: ImageCodec | store.Model
    first = codebooks
    if source.suffix == ".safetensors":
        metadata = store.read_metadata(source)
        if metadata["mode"] not in (store.FIDELITY, store.VIDEO) or mode not in (None, metadata["mode"]):
            raise UsageError(f"{source} is of mode {metadata['mode']}")
        loaded = store.load_from(source, device)
        assert isinstance(loaded, store.Model)  # those modes have no other
        model, prior, first = loaded, loaded.prior, codebooks or loaded.codebooks
        card, mode = json.loads(metadata["card"]), metadata["mode"]
    else:
        model, card = read_trained(source, photos)
        prior, mode = model.prior.to_integer(), mode or store.FIDELITY
    books, samples = fit_from_photos(model, prior, photos, crops, first, 0 if codebooks else PASSES)
    rows = utilisation(books, samples)
    yield "class dimension codewords groups used"
    for index, (dimension, codewords, groups, used) in enumerate(rows):
        yield f"{index:5} {dimension:9} {codewords:9} {groups:6} {used:4.0%}"
    card |= {"date": datetime.date.today().isoformat(), "codebook_use": round(min(row[3] for row in rows), 4)}
    card["note"] = note or card.get("note", "")
    yield f"wrote {output}, model id {store.save(model, prior, books, output, card, mode).hex()}"
