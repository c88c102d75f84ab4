"""One cell of the extreme mode between latents and bytes (bitstream/FORMAT.md §7.6 and §7.7)."""

import numpy as np
import torch
from torch import Tensor

from nic.bitstream.entropy import Decoder, Encoder, Tables
from nic.models import bases
from nic.models.bases import CONTEXTS, choices, choose, visit
from nic.models.extreme import BITS_MIN, apart
from nic.models.indices import LOGIT_CLASSES, path_of, step_positions
from nic.models.prior import QUALITY_LEVELS, UNIT
from nic.models.store import ExtremeModel
from nic.windows import Slices

__all__ = ["RATE_WEIGHTS", "decode_indices", "encode_indices", "restore"]

# What a bit is worth at the lowest and at the highest level of a book, in mean squared distances of sibling codewords.
RATE_WEIGHTS = (0.02, 0.0)


def rate_weight(model: ExtremeModel, level: int) -> float:
    """What a bit of an index is worth in squared distance, fixed point: it falls linearly over a book's levels."""
    share = min(1.0, (level * model.steps % QUALITY_LEVELS) / (QUALITY_LEVELS - model.steps))
    weight = RATE_WEIGHTS[1] if model.adds(level) else RATE_WEIGHTS[0] + (RATE_WEIGHTS[1] - RATE_WEIGHTS[0]) * share
    return weight * float(apart(model.codewords[model.book(level)]))


def basis_weight(model: ExtremeModel, level: int) -> float:
    """The same of a basis's bit: it falls geometrically over the levels that add vectors."""
    (low, high), first = bases.RATE_WEIGHTS, model.first_adding
    share = (level - first) / (QUALITY_LEVELS - 1 - first)
    return float(low * (high / low) ** share * apart(model.codewords[-1]))


def encode_indices(
    model: ExtremeModel, tables: Tables, latents: Tensor, level: int, mask_rate: float = 0
) -> tuple[bytes, Tensor]:
    """Codes latents [1, D, h, w], h and w <= 64: the payload, and the latents, fixed point, that it decodes to.

    Each index minimises the squared distance to its codeword plus the rate weight times its bits. Of the positions, a
    share ``mask_rate`` is left without vectors of the bases or, where the level adds none, at what the prior expects.
    """
    book, height, width = model.book(level), *latents.shape[2:]
    codewords, bits = model.codewords[book], book + BITS_MIN
    cost_of_class = torch.tensor(np.array(tables.bits[:LOGIT_CLASSES]), dtype=torch.float32, device=model.device)
    encoder = Encoder(tables)

    def source(step: int, features: Tensor) -> Tensor:
        vectors = latents[0][:, step_positions(step, height, width, model.device)].T * UNIT
        paths = leaf_costs(cost_of_class[model.prior.to_class(model.prior.all_logits(features, bits))])
        distances = torch.addmm(codewords.square().sum(dim=1), vectors, codewords.T, alpha=-2)
        indices = (distances + rate_weight(model, level) * paths).argmin(dim=1)
        if mask_rate and not model.adds(level):
            indices = masked(indices, distances, paths, mask_rate)
        nodes, answers = path_of(indices, bits)
        classes = model.prior.to_class(model.prior.logits(features, nodes))
        for depth in range(bits):
            encoder.put(to_numpy(answers[:, depth], np.int32), to_numpy(classes[:, depth], np.uint8))
        return indices

    decoded = codewords[model.prior.decode(height, width, book, codewords, source)]
    if model.adds(level):
        residuals = latents[0].movedim(0, -1) * UNIT - decoded
        decoded = decoded + put_additions(model, encoder, tables, residuals, level, mask_rate)
    return encoder.finish(), decoded.movedim(-1, 0)[None]


def put_additions(
    model: ExtremeModel, encoder: Encoder, tables: Tables, residuals: Tensor, level: int, mask_rate: float
) -> Tensor:
    """Codes what is added to the codewords for residuals [h, w, D], fixed point, and returns it.

    Masked are the positions where it would gain least.
    """
    height, width, dimension = residuals.shape
    flat, added = residuals.flatten(0, 1), choices(model.bases)
    cost = np.array(tables.bits[LOGIT_CLASSES:]).reshape(len(added), CONTEXTS, -1)[:, :2]
    bits = torch.tensor(cost, dtype=torch.float32, device=model.device)
    weight = torch.full((len(flat),), basis_weight(model, level), device=model.device)
    symbols, total = choose(flat, added, bits, weight)
    if mask_rate:
        gain = flat.square().sum(dim=1) - (flat - total).square().sum(dim=1)
        places = gain.argsort(stable=True)[: int(mask_rate * len(gain))]
        symbols[places], total[places] = 0, 0
    chosen = symbols.T.reshape(-1, height, width)

    def source(basis: int, part: Tensor, contexts: Tensor) -> Tensor:
        encoder.put(to_numpy(chosen[basis][part], np.int32), basis_classes(basis, contexts))
        return chosen[basis][part]

    visit(height, width, source, model.device)
    return total.view(height, width, dimension)


def basis_classes(basis: int, contexts: Tensor) -> np.ndarray:
    """The tables of a basis's symbols in their contexts [n]."""
    return to_numpy(LOGIT_CLASSES + CONTEXTS * basis + contexts, np.uint8)


def masked(indices: Tensor, distances: Tensor, paths: Tensor, rate: float) -> Tensor:
    """``indices`` [n], of which a share are their likeliest instead: those whose distance rises least for a bit saved.

    distances and paths [n, K]: what each codeword is off, but for a constant, and its bits.
    """
    expected = paths.argmin(dim=1)
    risen, cost = (x.gather(1, torch.stack([indices, expected], dim=1)).diff(dim=1)[:, 0] for x in (distances, paths))
    places = (risen / (-cost).clamp(min=1e-3)).argsort(stable=True)[: int(rate * len(indices))]
    return indices.index_copy(0, places, expected[places])


def decode_indices(model: ExtremeModel, tables: Tables, payload: bytes, height: int, width: int, level: int) -> Tensor:
    """The latents [1, D, height, width], fixed point, of a cell's payload; raises BadFile."""
    book = model.book(level)
    codewords = model.codewords[book]
    decoder = Decoder(tables, payload)

    def source(step: int, features: Tensor) -> Tensor:
        indices = torch.zeros(len(features), dtype=torch.long, device=model.device)
        for depth in range(book + BITS_MIN):
            classes = model.prior.to_class(model.prior.logits(features, 2**depth - 1 + indices[:, None]))
            answers = decoder.get(to_numpy(classes[:, 0], np.uint8))
            indices = 2 * indices + torch.from_numpy(answers).to(indices)
        return indices

    def addition(basis: int, part: Tensor, contexts: Tensor) -> Tensor:
        return torch.from_numpy(decoder.get(basis_classes(basis, contexts))).to(model.device).long()

    decoded = codewords[model.prior.decode(height, width, book, codewords, source)]
    if model.adds(level):
        symbols = visit(height, width, addition, model.device)
        for added, chosen in zip(choices(model.bases), symbols, strict=True):
            decoded = decoded + added[chosen]
    decoder.finish()
    return decoded.movedim(-1, 0)[None]


@torch.inference_mode()
def restore(model: ExtremeModel, latents: Tensor, lost: list[Slices], level: int) -> Tensor:
    """Latents [1, D, h, w] with lost cells filled by the model's recovery from those around them."""
    assert model.recovery
    known = torch.ones(latents.shape[2:], dtype=torch.bool, device=latents.device)
    for rows, columns in lost:
        known[rows, columns] = False
    latents = torch.where(known, latents, 0)
    return model.recovery.fill(latents, known, model.codewords[model.book(level)] / UNIT)


def leaf_costs(costs: Tensor) -> Tensor:
    """Costs [n, 2^b - 1, 2] of both answers at every node -> costs [n, 2^b] of the paths."""
    total = costs.new_zeros(len(costs), 1)
    start = 0
    while start < costs.shape[1]:
        level = costs[:, start : start + total.shape[1]]
        total, start = (total[:, :, None] + level).flatten(1), start + total.shape[1]
    return total


def to_numpy(values: Tensor, dtype: type) -> np.ndarray:
    return values.cpu().numpy().astype(dtype)
