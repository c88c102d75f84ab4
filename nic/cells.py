"""One cell between latents and bytes: the prior's loop joined to the entropy coder (bitstream/FORMAT.md §7)."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nic.bitstream.entropy import Decoder, Encoder, Tables
from nic.errors import BadFile
from nic.models.adaptive import COEFFICIENT_MAX, COUNTS, LIMITS, AdaptiveFilter
from nic.models.prior import LATENT_MAX, STEPS, UNIT
from nic.models.store import Model
from nic.models.vq import ESCAPE_CLASS, ESCAPE_MAX, GROUP, Places, in_groups

__all__ = [
    "Cell",
    "decode_cell",
    "decode_cut_cell",
    "get_cell",
    "get_groups",
    "get_residuals",
    "number_bits",
    "put_cell",
    "put_filter",
    "put_groups",
    "put_residuals",
]


@dataclass(frozen=True)
class Cell:
    """What a picture's cell says: latents [1, M, h, w], fixed point, and a filter for its pixels if it has one."""

    latents: Tensor
    filter: AdaptiveFilter | None = None


def decode_cell(model: Model, tables: Tables, payload: bytes, height: int, width: int, quality: float) -> Cell:
    """The cell of height x width latents in a payload; raises BadFile."""
    decoder = Decoder(tables, payload)
    cell = Cell(get_cell(model, decoder, height, width, quality), get_filter(decoder))
    decoder.finish()
    return cell


def decode_cut_cell(
    model: Model, tables: Tables, payload: bytes, height: int, width: int, quality: float
) -> tuple[Cell, int]:
    """As far as the words of a cut payload go: the cell, and how many of the stages are there.

    Latents of later stages are the means that the prior expects.
    """
    decoder, complete, adaptive = Decoder(tables, payload), 0, None

    def source(stage: int, means: Tensor, scale_classes: Tensor) -> Tensor:
        nonlocal complete, adaptive
        if complete == stage:
            with suppress(BadFile):
                residuals = get_residuals(model, decoder, scale_classes[0])
                there = not decoder.overrun
                if stage == STEPS:
                    with suppress(BadFile):
                        found = get_filter(decoder)
                        if not decoder.overrun:
                            adaptive, there = found, True
                if there:
                    complete += 1
                    return residuals[None].to(means)
        return torch.zeros_like(means)

    latents = model.prior.decode(height, width, quality_tensor(model, quality), source)
    return Cell(latents, adaptive), complete


def put_cell(model: Model, encoder: Encoder, y: Tensor, z: Tensor, quality: float, mask_rate: float = 0) -> Tensor:
    """Codes latents y [1, M, h, w] and hyper-latents z [1, N, h/4, w/4], in quantization steps, h and w <= 64.

    quality: 0 to 63 in quarters. mask_rate: see ``Codebooks.masked``; hyper-latents are never masked. Returns the
    latents that a decoder will have, fixed point.
    """
    targets = model.prior.targets(y, z)

    def source(stage: int, means: Tensor, scale_classes: Tensor) -> Tensor:
        target = targets[stage].to(means.dtype).clamp(-LATENT_MAX, LATENT_MAX)
        return put_residuals(model, encoder, (target - means)[0], scale_classes[0], mask_rate if stage else 0)[None]

    height, width = y.shape[2:]
    return model.prior.decode(height, width, quality_tensor(model, quality), source)


def get_cell(model: Model, decoder: Decoder, height: int, width: int, quality: float) -> Tensor:
    """The latents [1, M, height, width], fixed point, that come next; raises BadFile."""

    def source(stage: int, means: Tensor, scale_classes: Tensor) -> Tensor:
        return get_residuals(model, decoder, scale_classes[0])[None].to(means)

    return model.prior.decode(height, width, quality_tensor(model, quality), source)


def put_filter(encoder: Encoder, adaptive: AdaptiveFilter | None) -> None:
    """Codes the filter that ends a picture's cell, or that there is none."""
    coefficients = adaptive.coefficients if adaptive else ()
    sent = [plane for plane, chosen in enumerate(coefficients) if chosen.any()]
    put_numbers(encoder, sum(1 << plane for plane in sent))
    if adaptive and sent:
        put_numbers(encoder, adaptive.limit - LIMITS // 2, *np.concatenate([coefficients[plane] for plane in sent]))


def get_filter(decoder: Decoder) -> AdaptiveFilter | None:
    """What ``put_filter`` has coded; raises BadFile for numbers that it never codes."""
    planes = int(get_numbers(decoder, 1)[0])
    if not 0 <= planes < 2 ** len(COUNTS):
        raise BadFile(f"damaged cell: {planes} is no set of planes")
    if not planes:
        return None
    sent = [plane for plane in range(len(COUNTS)) if planes >> plane & 1]
    limit, *numbers = get_numbers(decoder, 1 + sum(COUNTS[plane] for plane in sent)).tolist()
    limit += LIMITS // 2
    if not 0 <= limit < LIMITS or max(map(abs, numbers)) > COEFFICIENT_MAX:
        raise BadFile("damaged cell: its filter is out of range")
    chosen = [np.zeros(count, int) for count in COUNTS]
    for plane in sent:
        chosen[plane][:], numbers = numbers[: COUNTS[plane]], numbers[COUNTS[plane] :]
    return AdaptiveFilter(tuple(chosen), limit)


def put_numbers(encoder: Encoder, *numbers: int) -> None:
    """Codes integers of at most ESCAPE_MAX in magnitude, small ones in few bits."""
    symbols = np.array(numbers, np.int32) + ESCAPE_MAX
    encoder.put(symbols, np.full(len(symbols), ESCAPE_CLASS, np.uint8))


def number_bits(tables: Tables) -> np.ndarray:
    """What coefficients from -COEFFICIENT_MAX to COEFFICIENT_MAX cost."""
    bits: np.ndarray = tables.bits[ESCAPE_CLASS][ESCAPE_MAX - COEFFICIENT_MAX : ESCAPE_MAX + COEFFICIENT_MAX + 1]
    return bits


def get_numbers(decoder: Decoder, count: int) -> NDArray[np.int32]:
    return decoder.get(np.full(count, ESCAPE_CLASS, np.uint8)) - np.int32(ESCAPE_MAX)


def put_residuals(model: Model, encoder: Encoder, residuals: Tensor, classes: Tensor, mask_rate: float = 0) -> Tensor:
    """Codes residuals [L], fixed point, of scale classes [L], as one stage; returns what they decode to."""
    places, shared = in_groups(classes)
    decoded = torch.empty_like(residuals)
    decoded[places] = put_groups(model, encoder, residuals[places], shared, mask_rate)
    return decoded


def get_residuals(model: Model, decoder: Decoder, classes: Tensor) -> Tensor:
    """The residuals [L], int32 fixed point, of one stage, whose scale classes are [L]; raises BadFile."""
    places, shared = in_groups(classes)
    decoded = torch.empty(len(classes), dtype=torch.int32, device=classes.device)
    decoded[places] = get_groups(model, decoder, shared.cpu().numpy().astype(np.uint8)).to(classes.device)
    return decoded


def put_groups(model: Model, encoder: Encoder, groups: Tensor, scale_classes: Tensor, mask_rate: float = 0) -> Tensor:
    """Codes groups [G, 4], fixed point, of scale classes [G], as one stage; returns what they decode to."""
    books = model.codebooks
    if mask_rate:
        groups = books.masked(groups, scale_classes.long(), mask_rate)
    chosen, decoded = books.quantize(groups, scale_classes.long())
    symbols = chosen.cpu().numpy().astype(np.int32)
    classes = scale_classes.cpu().numpy().astype(np.uint8)

    def put(places: Places, tables: np.ndarray) -> np.ndarray:
        mine: np.ndarray = symbols[places]
        encoder.put(mine, tables)
        return mine

    books.in_file_order(classes, put)
    escaped = books.escaped(symbols, classes)
    if escaped.any():
        put_numbers(encoder, *(decoded.cpu().numpy()[escaped] / UNIT).astype(np.int32))
    return decoded


def get_groups(model: Model, decoder: Decoder, classes: np.ndarray) -> Tensor:
    """The groups [G, 4], int32 fixed point, of one stage, whose classes are uint8 [G]; raises BadFile."""
    books = model.codebooks
    symbols = np.zeros((len(classes), GROUP), np.int32)

    def get(places: Places, tables: np.ndarray) -> np.ndarray:
        symbols[places] = mine = decoder.get(tables)
        return mine

    tables = books.in_file_order(classes, get)
    steps = get_numbers(decoder, int(books.escaped(symbols, classes).sum()))
    return torch.from_numpy(books.dequantize(symbols, tables, steps))


def quality_tensor(model: Model, quality: float) -> Tensor:
    return torch.tensor([quality], device=model.device)
