"""Frames of a video between pixels and words: groups of them, each a prediction plus a coded residual.

One frame goes the way of a picture (nic/codec.py): analysis, prior, codebooks, range coder, and synthesis, which is the
network of this clip. What goes that way is the frame minus its prediction (nic/models/video.py), along its motion
(nic/motion.py).
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nic.bitstream.clip import Clip, ClipFile, Group
from nic.bitstream.entropy import Decoder, Encoder
from nic.bitstream.header import Header
from nic.cells import get_filter, get_residuals, number_bits, put_cell, put_filter
from nic.effort import Coded, search_latents, worth_of
from nic.loaded import entropy_tables
from nic.models.adaptive import AdaptiveFilter, fit
from nic.models.motion import Found, choose, search
from nic.models.order import Layer, Place, coding_order
from nic.models.prior import CELL, UNIT
from nic.models.store import Model
from nic.models.transforms import GREY, LATENT
from nic.models.video import BLOCK, predict
from nic.motion import MotionTables, get_flag, get_motion, put_flag, put_motion
from nic.windows import cell_slices, latent_grid, shrink

__all__ = ["CodedFrame", "decode_group", "encode_group", "level_of", "read_group"]


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
    """A frame's words, and what a decoder makes of them: pixels [H, W, 3] uint8; the rest is for training.

    latents: None where the prediction is better off without a residual.
    """

    words: bytes
    pixels: np.ndarray
    latents: Tensor | None
    prediction: Tensor
    filter: AdaptiveFilter


def encode_frame(
    model: Model,
    pixels: np.ndarray,
    references: list[np.ndarray],
    found: list[Found],
    tables: MotionTables,
    level: int,
    iterations: int,
) -> CodedFrame:
    """Codes pixels [H, W, 3] uint8 from decoded references of that size, for each of which vectors were found."""
    target = to_frame(pixels, model.device)
    worth = worth_of(model, level)
    known = [to_frame(frame, model.device) for frame in references]
    field = choose(target, known, found, worth)
    encoder = Encoder(entropy_tables(model))
    if known:
        put_motion(encoder, tables, field[0].permute(1, 2, 0).cpu().numpy(), len(known))
    prediction = predict(known, field)
    plain = encoder.copy()
    put_flag(plain, tables, False)
    put_flag(encoder, tables, True)
    target = target[:, :, : pixels.shape[0], : pixels.shape[1]]
    residual = encode_residual(model, encoder, target, prediction, level, iterations)
    tried = [
        finish_frame(model, words, target, prediction, latents, level)
        for words, latents in ((residual.cells[0], residual.latents), (plain, None))
    ]
    return min(tried, key=lambda frame: 8 * len(frame.words) + worth * squared_error(pixels, frame.pixels) / 255**2)


@torch.no_grad()
def encode_residual(
    model: Model, begun: Encoder, target: Tensor, prediction: Tensor, level: int, iterations: int
) -> Coded:
    """What a prediction [1, 3, h, w] lacks of a target [1, 3, H, W], which may be smaller, behind words begun."""
    quality = torch.tensor([model.quality(level)], device=model.device)
    worth, bits = worth_of(model, level), number_bits(entropy_tables(model))
    height, width = target.shape[2:]
    margins = 0, prediction.shape[3] - width, 0, prediction.shape[2] - height
    lacking = F.pad(target, margins, mode="replicate") - prediction + GREY
    y = model.analysis(lacking.contiguous(memory_format=torch.channels_last), quality)
    hyper = model.hyper_analysis(y)

    def code(targets: Tensor) -> Coded:
        encoder = begun.copy()
        latents = put_latents(model, encoder, targets, hyper, level)
        return Coded((encoder,), latents)

    def distortion(latents: Tensor, directed: bool) -> tuple[float, Tensor | None]:
        with torch.set_grad_enabled(directed):
            variable = latents.detach().clone().requires_grad_(directed)
            images = synthesize(model, variable, level, prediction)
            adaptive = fit(images.detach(), target, (0, 0), worth, bits, grey=False)
            error = worth * (adaptive(images)[:, :, :height, :width] - target).square().sum()
            return error.item(), torch.autograd.grad(error, variable)[0] if directed else None

    return search_latents(code, distortion, y, iterations) if iterations else code(y)


@torch.no_grad()
def finish_frame(
    model: Model, words: Encoder, target: Tensor, prediction: Tensor, latents: Tensor | None, level: int
) -> CodedFrame:
    """The frame whose words lack only its filter."""
    images = prediction if latents is None else synthesize(model, latents, level, prediction)
    bits = number_bits(entropy_tables(model))
    adaptive = fit(images, target, (0, 0), worth_of(model, level), bits, grey=False)
    put_filter(words, adaptive)
    return CodedFrame(words.finish(), to_shown(images, adaptive, *target.shape[2:]), latents, prediction, adaptive)


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a.astype(np.float32) - b).sum())


def synthesize(model: Model, latents: Tensor, level: int, prediction: Tensor) -> Tensor:
    latents = latents.contiguous(memory_format=torch.channels_last)
    images: Tensor = model.synthesis(latents, torch.tensor([model.quality(level)], device=model.device), prediction)
    return images


def to_shown(images: Tensor, adaptive: AdaptiveFilter | None, height: int, width: int) -> np.ndarray:
    """Images [1, 3, h, w], filtered, in 8 bits [H, W, 3]: what is shown, and what other frames are predicted from."""
    image = (adaptive(images) if adaptive else images)[0, :, :height, :width].clamp(0, 1)
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


@dataclass(frozen=True)
class Begun:
    """A frame whose words are read up to its latents."""

    place: Place
    level: int
    field: Tensor
    decoder: Decoder
    has_residual: bool


def get_latents(model: Model, frames: Sequence[Begun], height: int, width: int) -> list[Tensor]:
    """The latents [1, M, height, width] of each frame, in steps, that come next in its words."""
    if not frames:
        return []
    quality = torch.tensor([frame.level for frame in frames], device=model.device) / 4

    def source(stage: int, means: Tensor, scale_classes: Tensor) -> Tensor:
        every = zip(frames, scale_classes, strict=True)
        return torch.stack([get_residuals(model, frame.decoder, classes) for frame, classes in every]).to(means)

    latents: list[Tensor] = []
    for rows, columns in cell_slices(height, width):
        cell = model.prior.decode(rows.stop - rows.start, columns.stop - columns.start, quality, source)
        for frame in frames:
            frame.decoder.check()  # before a false claim of a huge frame costs time and memory
        latents = latents or [cell.new_empty(1, cell.shape[1], height, width) for _ in frames]
        for whole, part in zip(latents, cell, strict=True):
            whole[0, :, rows, columns] = part / UNIT
    return latents


# --- groups


@dataclass(frozen=True)
class GroupMotion:
    """What was found of the motion of every frame of a group, in coding order: for all qualities and networks."""

    order: list[Place]
    found: list[list[Found]]

    @classmethod
    def search(
        cls, model: Model, frames: list[np.ndarray], span: int, known: dict[tuple[int, int], Found] | None = None
    ) -> "GroupMotion":
        """Block matching between the original frames; known: what is known of pairs of them, to which more comes."""
        order = coding_order(len(frames), span)
        known = {} if known is None else known
        for place in order:  # as floats, all frames of a group would take gigabytes
            for index in place.references:
                if (place.frame, index) not in known:
                    pair = (to_frame(frames[i], model.device) for i in (place.frame, index))
                    known[place.frame, index] = search(*pair)
        return cls(order, [[known[place.frame, index] for index in place.references] for place in order])


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
    coded, tables = [], MotionTables()
    for place, found in zip(motion.order, motion.found, strict=True):
        references = [decoded[index] for index in place.references]
        frame = encode_frame(model, frames[place.frame], references, found, tables, level(place.layer), iterations)
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
    for place, level, field, latents, adaptive in read_group(model, file, group, needed):
        with torch.inference_mode():
            prediction = predict([to_frame(decoded[i], model.device) for i in place.references], field)
            images = prediction if latents is None else synthesize(model, latents, level, prediction)
            decoded[place.frame] = to_shown(images, adaptive, file.header.height, file.header.width)
    yield from ((index, decoded[index]) for index in (sorted(decoded) if wanted is None else [wanted]))


@torch.inference_mode()
def read_group(
    model: Model, file: ClipFile, group: Group, needed: Container[int] | None = None
) -> Iterator[tuple[Place, int, Tensor, Tensor | None, AdaptiveFilter | None]]:
    """Place, level, motion, and, if any, latents and filter of a group's frames in coding order, or of those needed.

    No pixels are needed, so the prior takes many frames at once. The tables of motion have seen all earlier frames, so
    that motion is read of every frame up to the last one needed. Raises BadFile.
    """
    rows, columns = latent_grid(file.header.height, file.header.width)
    at_once = max(1, CELL**2 // (rows * columns))
    order = coding_order(len(group.frames), file.clip.span)
    last = max(index for index, place in enumerate(order) if needed is None or place.frame in needed)
    tables = MotionTables()
    waiting: list[Begun] = []
    for index, (place, words) in enumerate(zip(order[: last + 1], group.frames, strict=False)):
        decoder = Decoder(entropy_tables(model), words)
        field = read_motion(model, decoder, tables, rows, columns, len(place.references))
        if needed is None or place.frame in needed:
            level = level_of(file.header, file.clip, place.layer)
            waiting.append(Begun(place, level, field, decoder, get_flag(decoder, tables)))
        if len(waiting) == at_once or index == last:
            latents = iter(get_latents(model, [frame for frame in waiting if frame.has_residual], rows, columns))
            for frame in waiting:
                adaptive = get_filter(frame.decoder)
                frame.decoder.finish()
                own = next(latents) if frame.has_residual else None
                yield frame.place, frame.level, frame.field, own, adaptive
            waiting.clear()


def read_motion(
    model: Model, decoder: Decoder, tables: MotionTables, rows: int, columns: int, references: int
) -> Tensor:
    """The field [1, 5, h, w] of a frame of rows x columns latents that comes next in its words."""
    height, width = (side * LATENT // BLOCK for side in (rows, columns))
    if not references:
        return torch.zeros(1, 5, height, width, dtype=torch.int32, device=model.device)
    field = get_motion(decoder, tables, height, width, references)
    return torch.from_numpy(field).to(model.device).permute(2, 0, 1)[None]


def ancestors(order: list[Place], frame: int) -> set[int]:
    """A frame and all frames that it depends on."""
    references = {place.frame: place.references for place in order}
    needed, waiting = set[int](), [frame]
    while waiting:
        index = waiting.pop()
        needed.add(index)
        waiting += references[index]
    return needed
