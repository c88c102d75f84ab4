"""Frames of a video between pixels and words: groups of them, each a prediction plus a coded residual.

One frame goes the way of a picture (nic/codec.py): analysis, prior, codebooks, range coder, and synthesis, which is the
network of this clip. What goes that way is the frame minus its prediction (nic/models/video.py).
"""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nic.bitstream.clip import Clip, ClipFile, Group
from nic.bitstream.entropy import Decoder, Encoder, Tables
from nic.bitstream.header import Header
from nic.cells import get_groups, put_cell
from nic.effort import Coded, search_latents
from nic.models.order import Layer, Place, coding_order
from nic.models.prior import CELL, CLASSES, GROUP, UNIT
from nic.models.store import Model
from nic.models.transforms import LATENT, bits_per_error
from nic.models.video import GREY, Motion, predict, search, worth_of
from nic.models.vq import ESCAPE_CLASS, ESCAPE_MAX
from nic.windows import cell_slices, latent_grid, shrink

__all__ = ["CodedFrame", "decode_group", "encode_group", "level_of", "read_group", "tables_of"]

CLASS_TABLE = ESCAPE_CLASS + 1  # the table of scale classes, all equally likely
COARSE = 4  # blocks a side of one coarse motion vector
TRIED_CLASSES = tuple(range(0, CLASSES, 3))  # of motion


@lru_cache(maxsize=4)
def tables_of(model: Model) -> Tables:
    """The model's tables, and one for scale classes that are sent."""
    even = np.full(CLASSES, 2**24 // CLASSES, np.uint32)
    return Tables([*model.codebooks.frequency_tables(), even])


def level_of(header: Header, clip: Clip, layer: Layer) -> int:
    """The quality level of the frames of a layer."""
    levels = {Layer.KEY: header.quality, Layer.FORWARD: clip.forward, Layer.MIDDLE: clip.middle, Layer.LEAF: clip.leaf}
    return levels[layer]


# --- frames


def to_frame(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Pixels [H, W, 3] uint8 -> [1, 3, h, w] in [0, 1], sides rounded up to 64, the last row and column going on."""
    height, width = (LATENT * side for side in latent_grid(*pixels.shape[:2]))
    frame = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float() / 255
    return F.pad(frame, (0, width - frame.shape[3], 0, height - frame.shape[2]), mode="replicate")


@dataclass(frozen=True)
class CodedFrame:
    """A frame's words, and what a decoder makes of them: pixels [H, W, 3] uint8; latents and prediction for fitting."""

    words: bytes
    pixels: np.ndarray
    latents: Tensor
    prediction: Tensor


def encode_frame(
    model: Model, pixels: np.ndarray, references: list[np.ndarray], motion: Motion, level: int, iterations: int
) -> CodedFrame:
    """Codes pixels [H, W, 3] uint8 from decoded references of that size, along ``motion`` (see ``search``)."""
    target = to_frame(pixels, model.device)
    quality = torch.tensor([model.quality(level)], device=model.device)
    weight = bits_per_error(quality, model.config)
    head = Encoder(tables_of(model))
    known = [to_frame(frame, model.device) for frame in references]
    worth = worth_of(target, known, motion, weight)
    prediction = predict(known, put_motion(model, head, motion, worth, len(known)))
    residual = (target - prediction + GREY).contiguous(memory_format=torch.channels_last)
    valid = slice(pixels.shape[0]), slice(pixels.shape[1])

    def code(targets: Tensor) -> Coded:
        encoder = head.copy()
        latents = put_latents(model, encoder, targets, hyper, level)
        return Coded((encoder.finish(),), latents)

    def distortion(latents: Tensor, directed: bool) -> tuple[float, Tensor | None]:
        with torch.set_grad_enabled(directed):
            variable = latents.detach().clone().requires_grad_(directed)
            wrong = (synthesize(model, variable, level) - residual)[:, :, valid[0], valid[1]]
            error = weight * wrong.square().sum()
            return error.item(), torch.autograd.grad(error, variable)[0] if directed else None

    with torch.no_grad():
        y = model.analysis(residual, quality)
        hyper = model.hyper_analysis(y)
        coded = search_latents(code, distortion, y, iterations) if iterations else code(y)
        decoded = reconstruct(model, prediction, coded.latents, level, *pixels.shape[:2])
    return CodedFrame(coded.cells[0], decoded, coded.latents, prediction)


@torch.inference_mode()
def read_frames(
    model: Model, payloads: Sequence[bytes], references: Sequence[int], levels: Sequence[int], rows: int, columns: int
) -> list[tuple[Motion, Tensor]]:
    """Motion and latents [1, M, rows, columns] of frames from their words; raises BadFile.

    references: how many each frame has. No pixels are needed, so the prior takes all frames at once.
    """
    decoders = [Decoder(tables_of(model), words) for words in payloads]
    motions = [
        get_motion(model, decoder, rows, columns, count) for decoder, count in zip(decoders, references, strict=True)
    ]
    latents = get_latents(model, decoders, rows, columns, levels)
    for decoder in decoders:
        decoder.finish()
    return list(zip(motions, latents[:, None], strict=True))


def synthesize(model: Model, latents: Tensor, level: int) -> Tensor:
    latents = latents.contiguous(memory_format=torch.channels_last)
    images: Tensor = model.synthesis(latents, torch.tensor([model.quality(level)], device=model.device))
    return images


@torch.inference_mode()
def reconstruct(model: Model, prediction: Tensor, latents: Tensor, level: int, height: int, width: int) -> np.ndarray:
    """Prediction plus residual, rounded to 8 bits: what is shown, and what other frames are predicted from."""
    image = (prediction + synthesize(model, latents, level) - GREY)[0, :, :height, :width].clamp(0, 1)
    pixels: np.ndarray = (image * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels


def put_latents(model: Model, encoder: Encoder, y: Tensor, z: Tensor, level: int) -> Tensor:
    """Codes latents and hyper-latents of a frame cell by cell; returns the decoded latents, in steps."""
    latents = torch.empty_like(y)
    for rows, columns in cell_slices(*y.shape[2:]):
        hyper = shrink((rows, columns))
        cell = put_cell(model, encoder, y[:, :, rows, columns], z[:, :, hyper[0], hyper[1]], model.quality(level))
        latents[:, :, rows, columns] = cell / UNIT
    return latents


def get_latents(model: Model, decoders: Sequence[Decoder], height: int, width: int, levels: Sequence[int]) -> Tensor:
    """The latents [B, M, height, width] that come next in the words of B frames, in steps."""
    quality = torch.tensor(levels, device=model.device) / 4

    def source(stage: int, means: Tensor, scale_classes: Tensor) -> Tensor:
        classes = scale_classes.cpu().numpy().astype(np.uint8)
        groups = [get_groups(model, *frame) for frame in zip(decoders, classes, strict=True)]
        return torch.stack(groups).to(means)

    latents = None
    for rows, columns in cell_slices(height, width):
        cell = model.prior.decode(rows.stop - rows.start, columns.stop - columns.start, quality, source)
        for decoder in decoders:
            decoder.check()  # before a false claim of a huge frame costs time and memory
        if latents is None:
            latents = cell.new_empty(*cell.shape[:2], height, width)
        latents[:, :, rows, columns] = cell / UNIT
    assert latents is not None
    return latents


# --- motion: flow of 4x4 blocks, then what each block adds to its own, then the blends of 2x2 blocks; groups of four


def put_motion(model: Model, encoder: Encoder, motion: Motion, worth: Motion, references: int) -> Motion:
    """Codes motion against 0, 1 or 2 references; returns what it decodes to. worth: see ``worth_of``."""
    if not references:
        return motion
    flow, flow_worth = (field.movedim(1, 3) for field in (motion.flow, worth.flow))
    total = F.avg_pool2d(worth.flow, COARSE, divisor_override=1)
    mean = F.avg_pool2d(worth.flow * motion.flow, COARSE, divisor_override=1) / total
    coarse = upsampled(put_field(model, encoder, mean.movedim(1, 3), total.movedim(1, 3)))
    decoded = (coarse + put_field(model, encoder, flow - coarse, flow_worth)).movedim(3, 1)
    if references == 1:
        return Motion(decoded, motion.blend)
    blend, blend_worth = (F.pixel_unshuffle(field, 2).movedim(1, 3) for field in (motion.blend, worth.blend))
    blends = put_field(model, encoder, blend, blend_worth)
    return Motion(decoded, F.pixel_shuffle(blends.movedim(3, 1), 2))


def get_motion(model: Model, decoder: Decoder, height: int, width: int, references: int) -> Motion:
    """The motion of height x width blocks that comes next."""
    motion = Motion(*(torch.zeros(1, channels, height, width, device=model.device) for channels in (4, 1)))
    if not references:
        return motion
    coarse = upsampled(get_field(model, decoder, height // COARSE, width // COARSE))
    decoded = (coarse + get_field(model, decoder, height, width)).movedim(3, 1)
    if references == 1:
        return Motion(decoded, motion.blend)
    blends = get_field(model, decoder, height // 2, width // 2)
    return Motion(decoded, F.pixel_shuffle(blends.movedim(3, 1), 2))


def upsampled(field: Tensor) -> Tensor:
    return field.repeat_interleave(COARSE, 1).repeat_interleave(COARSE, 2)


def put_field(model: Model, encoder: Encoder, field: Tensor, worth: Tensor) -> Tensor:
    """Codes a field [1, h, w, 4] with the class that suits it best; returns what it decodes to.

    worth: what a squared step off each number costs in bits.
    """
    groups = field.reshape(-1, GROUP) * UNIT
    tried = {c: choose(model, groups, c, worth.reshape(-1, GROUP)) for c in TRIED_CLASSES}
    best = min(tried, key=lambda c: tried[c][0])
    _, symbols, decoded = tried[best]
    escaped = symbols == model.codebooks.escape_symbols[best]
    steps = (decoded[escaped] / UNIT).flatten()
    encoder.put(np.array([best], np.int32), np.array([CLASS_TABLE], np.uint8))
    for numbers, table in ((symbols, best), (steps + ESCAPE_MAX, ESCAPE_CLASS)):
        encoder.put(numbers.cpu().numpy().astype(np.int32), np.full(len(numbers), table, np.uint8))
    return (decoded / UNIT).view(field.shape)


def get_field(model: Model, decoder: Decoder, height: int, width: int) -> Tensor:
    best = decoder.get(np.array([CLASS_TABLE], np.uint8))[0]
    groups = get_groups(model, decoder, np.full(height * width, best, np.uint8))
    return (groups.to(model.device).float() / UNIT).view(1, height, width, GROUP)


def choose(model: Model, groups: Tensor, c: int, worth: Tensor) -> tuple[float, Tensor, Tensor]:
    """Rate and distortion in bits of groups [G, 4], fixed point, in class c; the symbols; what they decode to.

    worth: what a squared step off each number costs in bits, [G, 4].
    """
    books, codewords, bits = model.codebooks, model.codebooks.codewords[c], model.codebooks.bits[c]
    vectors, worth = (x.reshape(-1, codewords.shape[1]) for x in (groups, worth / UNIT**2))
    cost = torch.addmm(bits[: len(codewords)], worth, codewords.square().T)
    cost = cost.addmm_(worth * vectors, codewords.T, alpha=-2) + (worth * vectors.square()).sum(dim=1, keepdim=True)
    steps = torch.round(vectors / UNIT).clamp(-ESCAPE_MAX, ESCAPE_MAX)
    if len(bits) > len(codewords):  # there is an escape
        escaped = books.escape_bits[steps.long() + ESCAPE_MAX] + worth * (vectors - steps * UNIT).square()
        cost = torch.cat([cost, bits[-1] + escaped.sum(dim=1, keepdim=True)], dim=1)
    best, symbols = cost.min(dim=1)
    known = codewords[symbols.clamp(max=len(codewords) - 1)]
    return float(best.sum()), symbols, torch.where((symbols < len(codewords))[:, None], known, steps * UNIT)


# --- groups


@dataclass(frozen=True)
class GroupMotion:
    """The motion of every frame of a group, in coding order: independent of quality and of the network."""

    order: list[Place]
    fields: list[Motion]

    @classmethod
    def search(cls, model: Model, frames: list[np.ndarray], span: int) -> "GroupMotion":
        """Block matching between the original frames."""
        order = coding_order(len(frames), span)
        fields = []
        for place in order:  # as floats, all frames of a group would take gigabytes
            current, *references = (to_frame(frames[i], model.device) for i in (place.frame, *place.references))
            fields.append(search(current, references))
        return cls(order, fields)


def encode_group(
    model: Model,
    frames: list[np.ndarray],
    motion: GroupMotion,
    level: Callable[[Layer], int],
    iterations: int,
    after: Callable[[Place, CodedFrame], None] = lambda place, frame: None,
) -> list[bytes]:
    """The words of frames [H, W, 3] uint8 in coding order; ``after`` sees each frame when it is coded."""
    decoded: dict[int, np.ndarray] = {}
    coded = []
    for place, field in zip(motion.order, motion.fields, strict=True):
        references = [decoded[index] for index in place.references]
        frame = encode_frame(model, frames[place.frame], references, field, level(place.layer), iterations)
        decoded[place.frame] = frame.pixels
        coded.append(frame.words)
        after(place, frame)
    return coded


def decode_group(
    model: Model, file: ClipFile, group: Group, wanted: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames of a group as they are shown, or one of them: (index in the group, pixels [H, W, 3] uint8).

    Of one frame, only those that it is predicted from are decoded. Raises BadFile.
    """
    order = coding_order(len(group.frames), file.clip.span)
    needed = set(range(len(order))) if wanted is None else ancestors(order, wanted)
    decoded: dict[int, np.ndarray] = {}
    for place, level, motion, latents in read_group(model, file, group, needed):
        prediction = predict([to_frame(decoded[i], model.device) for i in place.references], motion)
        decoded[place.frame] = reconstruct(model, prediction, latents, level, file.header.height, file.header.width)
    yield from ((index, decoded[index]) for index in (sorted(decoded) if wanted is None else [wanted]))


def read_group(
    model: Model, file: ClipFile, group: Group, needed: Container[int] | None = None
) -> Iterator[tuple[Place, int, Motion, Tensor]]:
    """Place, quality level, motion and latents of a group's frames in coding order, or of those needed.

    Raises BadFile.
    """
    waiting = [
        (place, words, level_of(file.header, file.clip, place.layer))
        for place, words in zip(coding_order(len(group.frames), file.clip.span), group.frames, strict=True)
        if needed is None or place.frame in needed
    ]
    grid = latent_grid(file.header.height, file.header.width)
    at_once = max(1, CELL**2 // math.prod(grid))
    while waiting:
        places, payloads, levels = zip(*waiting[:at_once], strict=True)
        del waiting[:at_once]
        read = read_frames(model, payloads, [len(place.references) for place in places], levels, *grid)
        for place, level, (motion, latents) in zip(places, levels, read, strict=True):
            yield place, level, motion, latents


def ancestors(order: list[Place], frame: int) -> set[int]:
    """A frame and all frames that it depends on."""
    references = {place.frame: place.references for place in order}
    needed, waiting = set[int](), [frame]
    while waiting:
        index = waiting.pop()
        needed.add(index)
        waiting += references[index]
    return needed
