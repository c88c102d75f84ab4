"""One cell between latents and bytes: the prior's loop joined to the entropy coder (bitstream/FORMAT.md §7)."""

from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from nic.bitstream.entropy import Decoder, Encoder, Tables
from nic.errors import BadFile
from nic.models.prior import GROUP, LATENT_MAX, UNIT
from nic.models.store import Model
from nic.models.vq import ESCAPE_CLASS, ESCAPE_MAX, Places

__all__ = ["decode_cell", "decode_cut_cell", "encode_cell", "get_cell", "get_groups", "put_cell", "put_groups"]


def encode_cell(
    model: Model, tables: Tables, y: Tensor, z: Tensor, quality: float, mask_rate: float = 0
) -> tuple[bytes, Tensor]:
    """Codes a cell as a payload of its own; arguments and latents as in ``put_cell``."""
    encoder = Encoder(tables)
    latents = put_cell(model, encoder, y, z, quality, mask_rate)
    return encoder.finish(), latents


def decode_cell(model: Model, tables: Tables, payload: bytes, height: int, width: int, quality: float) -> Tensor:
    """The latents [1, M, height, width], fixed point, of a cell's payload; raises BadFile."""
    decoder = Decoder(tables, payload)
    latents = get_cell(model, decoder, height, width, quality)
    decoder.finish()
    return latents


def decode_cut_cell(
    model: Model, tables: Tables, payload: bytes, height: int, width: int, quality: float
) -> tuple[Tensor, int]:
    """As far as the words of a cut payload go: latents as of ``decode_cell``, and how many of the stages are there.

    Latents of later stages are the means that the prior expects.
    """
    decoder, complete = Decoder(tables, payload), 0

    def source(stage: int, means: Tensor, scale_classes: Tensor) -> Tensor:
        nonlocal complete
        if complete == stage:
            with suppress(BadFile):
                groups = get_groups(model, decoder, scale_classes[0].cpu().numpy().astype(np.uint8))
                if not decoder.overrun:
                    complete += 1
                    return groups[None].to(means)
        return torch.zeros_like(means)

    return model.prior.decode(height, width, quality_tensor(model, quality), source), complete


def put_cell(model: Model, encoder: Encoder, y: Tensor, z: Tensor, quality: float, mask_rate: float = 0) -> Tensor:
    """Codes latents y [1, M, h, w] and hyper-latents z [1, N, h/4, w/4], in quantization steps, h and w <= 64.

    quality: 0 to 63 in quarters. mask_rate: see ``Codebooks.masked``; hyper-latents are never masked. Returns the
    latents that a decoder will have, fixed point.
    """
    targets = model.prior.targets(y, z)

    def source(stage: int, means: Tensor, scale_classes: Tensor) -> Tensor:
        target = targets[stage].to(means.dtype).clamp(-LATENT_MAX, LATENT_MAX)
        return put_groups(model, encoder, (target - means)[0], scale_classes[0], mask_rate if stage else 0)[None]

    height, width = y.shape[2:]
    return model.prior.decode(height, width, quality_tensor(model, quality), source)


def get_cell(model: Model, decoder: Decoder, height: int, width: int, quality: float) -> Tensor:
    """The latents [1, M, height, width], fixed point, that come next; raises BadFile."""

    def source(stage: int, means: Tensor, scale_classes: Tensor) -> Tensor:
        return get_groups(model, decoder, scale_classes[0].cpu().numpy().astype(np.uint8))[None].to(means)

    return model.prior.decode(height, width, quality_tensor(model, quality), source)


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
        steps = (decoded.cpu().numpy()[escaped] / UNIT).astype(np.int32)
        encoder.put(steps + ESCAPE_MAX, np.full(len(steps), ESCAPE_CLASS, np.uint8))
    return decoded


def get_groups(model: Model, decoder: Decoder, classes: np.ndarray) -> Tensor:
    """The groups [G, 4], int32 fixed point, of one stage, whose classes are uint8 [G]; raises BadFile."""
    books = model.codebooks
    symbols = np.zeros((len(classes), GROUP), np.int32)

    def get(places: Places, tables: np.ndarray) -> np.ndarray:
        symbols[places] = mine = decoder.get(tables)
        return mine

    tables = books.in_file_order(classes, get)
    escapes = books.escaped(symbols, classes).sum()
    steps = decoder.get(np.full(escapes, ESCAPE_CLASS, np.uint8)) - ESCAPE_MAX
    return torch.from_numpy(books.dequantize(symbols, tables, steps))


def quality_tensor(model: Model, quality: float) -> Tensor:
    return torch.tensor([quality], device=model.device)
