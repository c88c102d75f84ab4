"""``nic train indices``: the prior of a trained extreme mode's indices, and its weight file.

The photographs are coded once, with two codebooks each drawn at random; the prior learns from these maps of indices.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.models import store
from nic.models.bases import BASES, CONTEXTS, RATE_WEIGHTS, choices, choose, visit
from nic.models.config import ExtremeConfig, TrainConfig
from nic.models.extreme import BITS_MIN, ExtremeCodec, apart, book_quality, books_of, nearest, to_fixed_point
from nic.models.indices import LOGIT_CLASSES, LOGIT_STEP, STEPS, IndexPrior, path_of, step_positions
from nic.models.prior import UNIT
from nic.models.training.codebook import to_frequencies
from nic.models.training.data import SIDE, Photos, read_photos, to_images
from nic.models.training.loop import Training, read_checkpoint
from nic.models.transforms import LATENT, QUALITY_INDICES, Analysis
from nic.models.vq import TOTAL

__all__ = ["IndexMaps", "gather", "train"]

OPTIONS = TrainConfig(
    batch=6, crop=512, learning_rate=1e-3, warmup_steps=50, clip=1.0, ema=0.99, seed=1
)  # crop: whole photographs, as they are read
BASIS_CROPS = 400  # of 256x256, that symbols of bases are counted on
PASSES = 2  # codebooks that each photograph is coded with
STEP_SHARES = torch.tensor([1, 1, 2, 4, 4, 4]) / 16  # of the positions


@dataclass(frozen=True)
class IndexMaps:
    """Maps of indices [N, 32, 32], -1 beyond a photograph, and the codebook of each [N]."""

    indices: Tensor
    book: Tensor


@torch.no_grad()
def gather(
    analysis: Analysis,
    codewords: Sequence[Tensor],
    photos: list[np.ndarray],
    device: torch.device,
    passes: int = PASSES,
    only: int | None = None,
) -> IndexMaps:
    """Codes photographs, cut to whole multiples of 64 pixels, with codebooks drawn at random or with ``only`` one.

    codewords: of each book, [K, D] in fixed point.
    """
    maps, chosen, side = [], [], SIDE // LATENT
    for photo in photos * passes:
        book = int(len(codewords) * torch.rand(1).sqrt()) if only is None else only
        quality = torch.tensor([book * (QUALITY_INDICES - 1) / (len(codewords) - 1)], device=device)
        latents = analysis(to_images(photo, device), quality)
        indices = nearest(latents[0].flatten(1).T * UNIT, codewords[book]).view(latents.shape[2:])
        maps.append(F.pad(indices, (0, side - indices.shape[1], 0, side - indices.shape[0]), value=-1))
        chosen.append(book)
    return IndexMaps(torch.stack(maps).to(torch.int16), torch.tensor(chosen, device=device))


class Tables:
    """Codewords of all books in fixed point, in one table, so that a batch may mix books."""

    def __init__(self, model: ExtremeCodec) -> None:
        self.books = [to_fixed_point(model.codebook.codewords(book)) for book in range(books_of(model.config))]
        self.all = torch.cat([*self.books, self.books[0].new_zeros(1, self.books[0].shape[1])])

    def look_up(self, indices: Tensor, book: Tensor) -> Tensor:
        """Codewords [B, D, h, w] of indices [B, h, w], zeros where they are negative; book [B]."""
        start = 2 ** (book + BITS_MIN) - 2**BITS_MIN
        rows = torch.where(indices >= 0, indices + start[:, None, None], len(self.all) - 1)
        return self.all[rows].movedim(-1, 1)


def index_bits(prior: IndexPrior, tables: Tables, indices: Tensor, book: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Bits [B] and positions [B] of the indices [B, h, w] that belong to a step, given all earlier ones."""
    device, shape = indices.device, indices.shape[1:]
    inside = indices >= 0
    earlier = torch.stack([step_positions(s, *shape, device) for s in range(STEPS)])[:step].any(dim=0)
    known = inside & earlier
    features = prior.features(step, tables.look_up(torch.where(known, indices, -1), book), known, book)
    coded = inside & step_positions(step, *shape, device)
    rows, bits = coded.nonzero()[:, 0], book + BITS_MIN
    most = int(bits.max())
    shifted = indices[coded].long() << (most - bits[rows])  # as if all were of the largest book of this batch
    nodes, answers = path_of(shifted, most)
    logits = prior.logits(features.movedim(1, -1)[coded], nodes) / UNIT
    cost = F.binary_cross_entropy_with_logits(logits, answers.float(), reduction="none") / np.log(2)
    asked = torch.arange(most, device=device) < bits[rows, None]
    total = torch.zeros(len(indices), device=device).index_add(0, rows, (cost * asked).sum(dim=1))
    return total, coded.sum(dim=(1, 2))


@torch.no_grad()
def initialise(prior: IndexPrior, tables: Tables, maps: IndexMaps) -> None:
    """Starts from order-0 frequencies, and with features that mean the codeword expected.

    The first features weigh on a node by how far its two halves lie apart, as if latents were Gaussian with these
    means: so nodes that are rarely asked need not learn what the codewords tell already.
    """
    codewords, bits = tables.books[-1] / UNIT, len(tables.books) + BITS_MIN - 1
    counts = torch.full((2**bits,), 0.5, device=codewords.device)
    for book in range(len(tables.books)):
        seen = maps.indices[maps.book == book].flatten().long()
        leaves = 2 ** (bits - book - BITS_MIN)  # of each codeword
        use = torch.bincount(seen[seen >= 0], minlength=2**bits // leaves).float() / leaves
        counts += use.repeat_interleave(leaves)
    mean = counts @ codewords / counts.sum()
    deviation = (counts @ (codewords - mean).square() / counts.sum()).sqrt()
    weights, biases = [], []
    for level in range(bits):
        use = counts.view(2 ** (level + 1), -1).sum(dim=1)
        centres = (codewords * counts[:, None]).view(len(use), -1, len(mean)).sum(dim=1) / use[:, None]
        weights.append((centres[1::2] - centres[::2]) / deviation)
        biases.append(torch.log(use[1::2] / use[::2]))
    nn.init.normal_(prior.node.weight, std=0.005)
    prior.node.weight[:, : len(mean), 0, 0] += torch.cat(weights)
    prior.node.bias.copy_(torch.cat(biases))
    prior.leave.weight *= 0.1
    for conv in prior.enter:
        conv.weight[:, : len(mean)] /= deviation[:, None, None]  # codewords enter scaled alike


def train(
    checkpoint: Path,
    output: Path,
    data: Sequence[Path],
    run: Path,
    minutes: float,
    device: str = "cpu",
    workers: int = 2,
    note: str = "",
) -> bytes:
    """Trains the prior of a checkpoint of ``nic train extreme``; writes the weight file and returns the model id.

    Of several processes under ``torchrun``, the first does; the others return b"".
    """
    training = Training(run, minutes, OPTIONS, device)
    where = training.device
    state, config = read_checkpoint(checkpoint, ExtremeConfig, where)
    model = ExtremeCodec(config).to(where, memory_format=torch.channels_last).eval().requires_grad_(False)
    model.load_state_dict(state["average"])
    tables = Tables(model)
    pictures = read_photos(data, "train", workers)
    maps = gather(model.analysis, tables.books, pictures, where)
    prior = IndexPrior(config).to(where, memory_format=torch.channels_last)
    initialise(prior, tables, maps)
    generator = torch.Generator(where)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        chosen = torch.randint(len(maps.book), (OPTIONS.batch,), generator=generator, device=where)
        indices = maps.indices[chosen].int()
        indices = torch.where(torch.rand(1, generator=generator, device=where) < 0.5, indices.mT, indices)
        step = int(torch.multinomial(STEP_SHARES, 1))
        bits, positions = index_bits(prior, tables, indices, maps.book[chosen], step)
        ratio = bits.sum() / (positions * (maps.book[chosen] + BITS_MIN)).sum()
        return ratio, {"ratio": ratio}

    optimizer = torch.optim.Adam(prior.parameters(), OPTIONS.learning_rate, fused=True)
    training.fit(prior, [optimizer], loss, generator.manual_seed, config)
    training.close()
    if not training.first:
        return b""
    prior = prior.to_integer()
    if validation := read_photos(data, "val", workers):
        for row in evaluate(prior, tables, maps, gather(model.analysis, tables.books, validation, where)):
            training.write(row)
    largest = books_of(config) - 1
    largest_maps = gather(model.analysis, tables.books, pictures, where, 1, largest)
    card: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "steps": state["step"],
        "minutes": round(state["seconds"] / 60, 1),
        "parameters": sum(parameter.numel() for part in (model, prior) for parameter in part.parameters()),
        "codebook_use": round(utilisation(largest_maps, largest), 4),
        "note": note,
    }
    frequencies = logit_tables(), count_bases(model, Photos(pictures, where))
    return store.save_extreme(model, prior, [book.cpu() for book in tables.books], frequencies, output, card)


def logit_tables() -> np.ndarray:
    """Frequencies [128, 2] of the answers 0 and 1 for every class: what its logit says."""
    logits = (np.arange(LOGIT_CLASSES) - LOGIT_CLASSES // 2) / LOGIT_STEP
    ones = np.round(TOTAL / (1 + np.exp(-logits))).astype(np.uint32)
    return np.stack([TOTAL - ones, ones], axis=1).astype(np.uint32)


@torch.no_grad()
def count_bases(model: ExtremeCodec, photos: Photos) -> np.ndarray:
    """Frequencies of the bases' symbols, met at rates drawn at random: [BASES * CONTEXTS, symbols]."""
    device, bits = photos.pixels.device, model.bases.bits
    codewords, (low, high) = model.codebook.codewords(books_of(model.config) - 1), RATE_WEIGHTS
    quality = book_quality(torch.tensor([books_of(model.config) - 1], device=device), model.config)
    added, counts = choices(model.bases.vectors), torch.full((BASES, CONTEXTS, bits.shape[2]), 0.5, device=device)
    for _ in range(BASIS_CROPS):
        latents = model.analysis(photos.crops(1, 256), quality)[0].movedim(0, -1)
        flat = latents.flatten(0, 1)
        weight = apart(codewords) * low * (high / low) ** torch.rand(1, device=device)
        chosen = choose(flat - codewords[nearest(flat, codewords)], added, bits, weight.expand(len(flat)))[0]
        chosen = chosen.T.reshape(-1, *latents.shape[:2])

        def source(basis: int, part: Tensor, contexts: Tensor, chosen: Tensor = chosen) -> Tensor:
            symbols = chosen[basis][part]
            counts[basis].index_put_((contexts, symbols), torch.ones(len(symbols), device=device), accumulate=True)
            return symbols

        visit(latents.shape[0], latents.shape[1], source, device)
    return torch.stack([to_frequencies(row) for row in counts.flatten(0, 1)]).cpu().numpy()


def utilisation(maps: IndexMaps, book: int) -> float:
    """The share of a book's codewords that photographs coded with it use."""
    used = maps.indices[maps.book == book].unique()
    return float((used >= 0).sum()) / 2 ** (book + BITS_MIN)


@torch.no_grad()
def evaluate(prior: IndexPrior, tables: Tables, maps: IndexMaps, validation: IndexMaps) -> list[dict[str, Any]]:
    """For each book, bits an index of validation photographs: by the prior, and by their own order-0 entropy."""
    rows = []
    for book in maps.book.unique().tolist():
        chosen = validation.book == book
        if not chosen.any():
            continue
        indices = validation.indices[chosen].int()
        parts = [index_bits(prior, tables, indices, validation.book[chosen], step) for step in range(STEPS)]
        bits, positions = (sum(part[k].sum().item() for part in parts) for k in (0, 1))
        size = 2 ** (book + BITS_MIN)
        counts = torch.bincount(maps.indices[maps.book == book].flatten().int() + 1, minlength=size + 1)[1:] + 0.5
        cost = -torch.log2(counts / counts.sum())
        order_0 = cost[indices[indices >= 0]].mean().item()
        rows.append({"codewords": size, "bits": bits / positions, "order_0": order_0, "use": utilisation(maps, book)})
    return rows
