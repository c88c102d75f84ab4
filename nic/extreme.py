"""One cell of the extreme mode between latents and bytes (bitstream/FORMAT.md §7.6)."""

import numpy as np
import torch
from torch import Tensor

from nic.bitstream.entropy import Decoder, Encoder, Tables
from nic.models.extreme import BITS_MIN
from nic.models.indices import path_of, step_positions
from nic.models.prior import QUALITY_LEVELS, UNIT
from nic.models.store import ExtremeModel
from nic.windows import Slices

__all__ = ["RATE_WEIGHTS", "decode_indices", "encode_indices", "restore", "to_latents"]

# What a bit is worth at the lowest and at the highest level of a book, in mean squared distances of sibling codewords.
RATE_WEIGHTS = (0.02, 0.0)


def rate_weight(model: ExtremeModel, level: int) -> float:
    """What a bit is worth in squared distance (fixed point): it falls linearly over the levels of a book."""
    books, codewords = len(model.codewords), model.codewords[model.book(level)]
    share = min(1.0, (level * books % QUALITY_LEVELS) / (QUALITY_LEVELS - books))
    apart = (codewords[::2] - codewords[1::2]).square().sum(dim=1).mean()
    return float(apart) * (RATE_WEIGHTS[0] + (RATE_WEIGHTS[1] - RATE_WEIGHTS[0]) * share)


def to_latents(model: ExtremeModel, indices: Tensor, level: int) -> Tensor:
    """Latents [1, D, h, w], fixed point, of indices [h, w]."""
    return model.codewords[model.book(level)][indices].movedim(-1, 0)[None]


def encode_indices(
    model: ExtremeModel, tables: Tables, latents: Tensor, level: int, mask_rate: float = 0
) -> tuple[bytes, Tensor]:
    """Codes latents [1, D, h, w], h and w <= 64: the payload, and the indices [h, w] chosen.

    Each index minimises the squared distance to its codeword plus the rate weight times its bits, except for a share
    ``mask_rate`` that is left at what the prior expects.
    """
    book, height, width = model.book(level), *latents.shape[2:]
    codewords, bits = model.codewords[book], book + BITS_MIN
    cost_of_class = torch.tensor(np.array(tables.bits), dtype=torch.float32, device=model.device)  # [128, 2]
    encoder = Encoder(tables)

    def source(step: int, features: Tensor) -> Tensor:
        vectors = latents[0][:, step_positions(step, height, width, model.device)].T * UNIT
        paths = leaf_costs(cost_of_class[model.prior.to_class(model.prior.all_logits(features, bits))])
        distances = torch.addmm(codewords.square().sum(dim=1), vectors, codewords.T, alpha=-2)
        indices = (distances + rate_weight(model, level) * paths).argmin(dim=1)
        if mask_rate:
            indices = masked(indices, distances, paths, mask_rate)
        nodes, answers = path_of(indices, bits)
        classes = model.prior.to_class(model.prior.logits(features, nodes))
        for depth in range(bits):
            encoder.put(to_numpy(answers[:, depth], np.int32), to_numpy(classes[:, depth], np.uint8))
        return indices

    indices = model.prior.decode(height, width, book, codewords, source)
    return encoder.finish(), indices


def masked(indices: Tensor, distances: Tensor, paths: Tensor, rate: float) -> Tensor:
    """``indices`` [n], of which a share are their likeliest instead: those whose distance rises least for a bit saved.

    distances and paths [n, K]: what each codeword is off, but for a constant, and its bits.
    """
    expected = paths.argmin(dim=1)
    risen, cost = (x.gather(1, torch.stack([indices, expected], dim=1)).diff(dim=1)[:, 0] for x in (distances, paths))
    places = (risen / (-cost).clamp(min=1e-3)).argsort(stable=True)[: int(rate * len(indices))]
    return indices.index_copy(0, places, expected[places])


def decode_indices(model: ExtremeModel, tables: Tables, payload: bytes, height: int, width: int, level: int) -> Tensor:
    """The indices [height, width] of a cell's payload; raises BadFile."""
    book = model.book(level)
    decoder = Decoder(tables, payload)

    def source(step: int, features: Tensor) -> Tensor:
        indices = torch.zeros(len(features), dtype=torch.long, device=model.device)
        for depth in range(book + BITS_MIN):
            classes = model.prior.to_class(model.prior.logits(features, 2**depth - 1 + indices[:, None]))
            answers = decoder.get(to_numpy(classes[:, 0], np.uint8))
            indices = 2 * indices + torch.from_numpy(answers).to(indices)
        return indices

    indices = model.prior.decode(height, width, book, model.codewords[book], source)
    decoder.finish()
    return indices


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
