"""Pictures to .nic files and back."""

import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from nic.bitstream.arrival import Arrival, cut_cell
from nic.bitstream.container import NicFile, Salvaged, cell_grid, salvage, unpack
from nic.bitstream.header import Header
from nic.cells import decode_cell, decode_cut_cell
from nic.conceal import conceal
from nic.effort import check_options
from nic.encoder import LEVELS, PictureEncoder, level_at, nearer
from nic.errors import BadFile, NicError, UsageError
from nic.extreme import decode_indices, restore
from nic.loaded import entropy_tables, load_model, model_of
from nic.models import store
from nic.models.prior import UNIT
from nic.models.transforms import LATENT
from nic.pixels import Picture
from nic.progress import advance, expect
from nic.refine import Refinement, project, refine, steps_of
from nic.windows import Slices, cell_slices, grow, halo, latent_grid, meet, synthesize

__all__ = ["Crop", "Encoded", "Recovered", "compress", "decompress", "recover", "recover_stream", "verify"]

Crop = tuple[int, int, int, int]  # left, top, width, height in pixels
Ahead = dict[int, tuple[bytes, Tensor]]  # by the cell's index: its words, and what they decode to
MODES = ("auto", store.FIDELITY, store.EXTREME)
LOW_RATE = 0.25  # bits per pixel; fidelity mode's lowest quality takes less of nearly every picture


@dataclass(frozen=True)
class Encoded:
    """A .nic file, the quality (0 to 100) it was made with, and why it missed its target (or "")."""

    data: bytes
    quality: float
    note: str = ""


@dataclass(frozen=True)
class Recovered:
    """What is left of a damaged file: ``problems`` in one line each, and how many cells had to be concealed.

    consistency: of a refined picture that was to be made consistent, the share of its latents that agree with the file.
    """

    picture: Picture
    problems: tuple[str, ...]
    concealed: int
    truncated: bool
    consistency: float | None = None


@torch.inference_mode(False)
def compress(
    picture: Picture,
    *,
    quality: float | None = None,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    effort: int = 4,
    mode: str = "auto",
    mask_rate: float = 0,
    device: str = "auto",
) -> Encoded:
    """Codes a picture at a quality (0 to 100, else 50), or at the one that meets a target: at most one of the four.

    bpp: bits per pixel of the whole file. size: bytes of the whole file, at most. psnr: dB over all colour samples, at
    least. effort: 1 to 9; from 2 on, iterations that make the file smaller at equal quality, listed in nic/effort.py;
    extreme mode has none. mode: "fidelity", "extreme" for the lowest rates, or "auto": extreme where bpp or size ask
    for less than fidelity can reach. mask_rate: the share, 0 to 1, of what is coded that is left out, as for
    ``nic.encode``. A target that is missed by more than 2 % is told in the result's note. Raises UsageError.
    """
    check_options(effort, quality, bpp=bpp, size=size, psnr=psnr)
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is none of {', '.join(MODES)}")
    if not 0 <= mask_rate <= 1:
        raise UsageError(f"mask rate {mask_rate:g} is outside 0 to 1")
    height, width = picture.pixels.shape[:2]
    target = size if bpp is None else bpp * height * width / 8
    name = store.EXTREME if mode == store.EXTREME else store.DEFAULT
    encoder = PictureEncoder(picture, load_model(name, device), effort, mask_rate)
    if mode == "auto" and target is not None and 8 * target < LOW_RATE * height * width:
        encoder = nearer(encoder, target, device, nearest=bpp is not None)
    if target is None and psnr is None:
        expect(encoder.steps(decoding=False))
    else:
        expect(encoder.search_steps(decoding=psnr is not None))
    if target is not None:
        level, note = encoder.search_size(target, nearest=bpp is not None)
    elif psnr is not None:
        level, note = encoder.search_psnr(psnr)
    else:
        level, note = level_at(quality), ""
    return Encoded(encoder.file(level), level / LEVELS * 100, note)


def decompress(
    data: bytes, *, crop: Crop | None = None, refinement: Refinement | None = None, device: str = "auto"
) -> Picture:
    """The picture in a .nic file, or a part of it; raises BadFile, UnsupportedFile or UnknownModel.

    Of a part, only the cells that it depends on are decoded. Raises UsageError for a part outside the picture, and for
    one that shall be consistent.
    """
    file = unpack(data)
    return assemble(file, dict(enumerate(file.cells)), crop, refinement, device)[0]


def recover(
    data: bytes,
    *,
    crop: Crop | None = None,
    refinement: Refinement | None = None,
    device: str = "auto",
    ahead: Ahead | None = None,
) -> Recovered:
    """What can be decoded of a damaged or cut .nic file; lost cells are filled smoothly from those around them.

    A cell in which the file is cut off is decoded from what there is of it. ahead: cells that are decoded already; they
    are taken out of it one by one. Raises BadFile where the header or all cells are lost, and for cells that are intact
    but no encoder's work; otherwise as ``decompress``.
    """
    file = salvage(data)
    problems, cells = list(file.problems), dict(file.cells)
    ahead = {} if ahead is None else ahead
    if file.truncated and (cut := cut_cell(data)):
        index, words = cut
        if index not in cells and (latents := begun(file.header, index, words, device)) is not None:
            cells[index], ahead[index] = words, (words, latents)
    if file.truncated and not cells:
        raise BadFile(problems[0])
    picture, lost, consistency = assemble(file, cells, crop, refinement, device, problems, ahead)
    concealed = lost + len(cells) - len(file.cells)
    return Recovered(picture, tuple(problems), concealed, file.truncated, consistency)


@torch.inference_mode()
def begun(header: Header, index: int, words: bytes, device: str) -> Tensor | None:
    """The latents [1, M, h, w] of a cell, fixed point, from its first words; None if these are not a stage's worth."""
    slices = cell_slices(*latent_grid(header.height, header.width))
    if not 0 <= index < len(slices):
        return None
    model = model_of(header, device)
    if isinstance(model, store.ExtremeModel):
        return None
    height, width = (side.stop - side.start for side in slices[index])
    latents, stages = decode_cut_cell(model, entropy_tables(model), words, height, width, header.quality / 4)
    return latents if stages else None


def recover_stream(blocks: Iterable[bytes], *, refinement: Refinement | None = None, device: str = "auto") -> Recovered:
    """As ``recover``, of a file that is still coming in: each cell is decoded while the next blocks are awaited."""
    arrival, ahead = Arrival(), Ahead()
    for block in blocks:
        for header, index, words in arrival.feed(block):
            slices = cell_slices(*latent_grid(header.height, header.width))
            if index == len(ahead) < len(slices):  # in order: each cell once, and none behind an error
                with suppress(NicError):  # the whole file decides what an error in it means
                    model = model_of(header, device)
                    ahead[index] = words, decode_words(model, words, slices[index], header)
    return recover(bytes(arrival.data), refinement=refinement, device=device, ahead=ahead)


def assemble(
    file: NicFile | Salvaged,
    cells: Mapping[int, bytes],
    crop: Crop | None,
    refinement: Refinement | None,
    device: str,
    problems: list[str] | None = None,
    ahead: Ahead | None = None,
) -> tuple[Picture, int, float | None]:
    """The picture or a part of it, how many of its cells are concealed, and its consistency as in Recovered.

    None are concealed without ``problems`` to take down.
    """
    header = file.header
    box = crop or (0, 0, header.width, header.height)
    check_crop(box, header)
    if crop and refinement and refinement.consistent:
        raise UsageError("only whole pictures can be made consistent")
    alpha = None
    if file.alpha is not None:
        try:
            alpha = crop_array(decode_alpha(file.alpha, header), box)
        except BadFile as error:
            if problems is None:
                raise
            problems.append(str(error))
    model = model_of(header, device)
    rows, columns = cell_grid(header)
    whole = len(cells) == rows * columns
    if box[2:] == (header.width, header.height):
        expect(len(cells) + rows * columns + steps_of(refinement, header.height, header.width))
    latents, lost = decode_latents(header, cells, model, needed(model, header, box) if whole else None, ahead)
    if lost and isinstance(model, store.ExtremeModel) and model.recovery:
        latents = restore(model, latents, lost, header.quality)
    else:
        conceal(latents, lost)  # from cells around them, which a part may not need
    pixels = crop_pixels(model, latents, header, box)
    consistency = None
    if refinement:
        pixels = refine(pixels, model, header.quality, refinement)
        if refinement.consistent:
            pixels, consistency = project(pixels, model, latents, header.quality)
    picture = Picture(pixels, alpha, file.icc or b"", file.exif or b"", file.xmp or b"")
    return picture, len(lost), consistency


def verify(data: bytes, *, device: str = "auto") -> None:
    """Decodes every symbol of a .nic file and its alpha, without making the picture; raises as ``decompress``."""
    file = unpack(data)
    if file.alpha is not None:
        decode_alpha(file.alpha, file.header)
    model = model_of(file.header, device)
    decode_latents(file.header, dict(enumerate(file.cells)), model)


@torch.inference_mode()
def decode_latents(
    header: Header,
    cells: Mapping[int, bytes],
    model: store.AnyModel,
    region: Slices | None = None,
    ahead: Ahead | None = None,
) -> tuple[Tensor, list[Slices]]:
    """The latents [1, M, h, w] of a picture, in steps, each a whole number of 64ths; and the cells that are not there.

    cells: payloads by index in raster order. ahead: those that are decoded already; they leave it. With a region of the
    grid, only cells that meet it are decoded, and what is elsewhere is undefined. Raises BadFile for a cell that no
    encoder has written, and where there is none at all.
    """
    height, width = latent_grid(header.height, header.width)
    latents, lost = None, []
    for index, (rows, columns) in enumerate(cell_slices(height, width)):
        if region and not (meet(rows, region[0]) and meet(columns, region[1])):
            continue
        if index not in cells:
            lost.append((rows, columns))
            continue
        words, cell = (ahead or {}).pop(index, (b"", None))
        if cell is None or words != cells[index]:
            cell = decode_words(model, cells[index], (rows, columns), header)
        if latents is None:  # a false claim of a huge picture has failed before this
            latents = cell.new_empty(1, cell.shape[1], height, width)
        latents[:, :, rows, columns] = cell / UNIT
        advance()
    if latents is None:
        raise BadFile("damaged file: no cell is intact")
    return latents, lost


def decode_words(model: store.AnyModel, words: bytes, place: Slices, header: Header) -> Tensor:
    """The latents [1, M, h, w] of the cell at a place of the grid, fixed point; raises BadFile."""
    height, width = (side.stop - side.start for side in place)
    with torch.inference_mode():
        if isinstance(model, store.ExtremeModel):
            return decode_indices(model, entropy_tables(model), words, height, width, header.quality)
        return decode_cell(model, entropy_tables(model), words, height, width, header.quality / 4)


def check_crop(box: Crop, header: Header) -> None:
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1 or left + width > header.width or top + height > header.height:
        raise UsageError(f"{width}x{height} at {left},{top} is not within the picture, {header.width}x{header.height}")


def crop_region(box: Crop) -> Slices:
    """The latents that cover a part of the picture."""
    left, top, width, height = box
    return slice(top // LATENT, -(-(top + height) // LATENT)), slice(left // LATENT, -(-(left + width) // LATENT))


def needed(model: store.AnyModel, header: Header, box: Crop) -> Slices:
    """The latents on which the pixels of a part depend."""
    return grow(crop_region(box), halo(model), *latent_grid(header.height, header.width))


def crop_pixels(model: store.AnyModel, latents: Tensor, header: Header, box: Crop) -> np.ndarray:
    """A part [height, width, channels] of the picture."""
    left, top, width, height = box
    rows, columns = crop_region(box)
    pixels = synthesize(model, latents, header.quality, header.channels, header.bit_depth, (rows, columns))
    return crop_array(pixels, (left - LATENT * columns.start, top - LATENT * rows.start, width, height))


def crop_array(array: np.ndarray, box: Crop) -> np.ndarray:
    left, top, width, height = box
    return np.ascontiguousarray(array[top : top + height, left : left + width])


def decode_alpha(png: bytes, header: Header) -> np.ndarray:
    """The alpha plane [H, W]; raises BadFile unless it is a greyscale PNG of the picture's size and depth."""
    mode = {8: "L", 16: "I;16"}[header.bit_depth]
    try:
        with PngImageFile(io.BytesIO(png)) as image:  # not Image.open, whose limit of pixels is lower than nic's
            if image.size != (header.width, header.height) or image.mode != mode:
                raise BadFile("the alpha plane does not fit the picture")
            return np.array(image)
    except (BadFile, MemoryError):
        raise
    except Exception as error:  # on damaged files, Pillow's decoder raises almost any
        raise BadFile(f"the alpha plane cannot be decoded: {error}") from None
