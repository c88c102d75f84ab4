"""Pictures to .nic files and back: the whole story of one image, in the order in which it happens."""

import bisect
import copy
import io
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from nic.bitstream.arrival import Arrival, cut_cell
from nic.bitstream.container import NicFile, Salvaged, cell_grid, pack, salvage, unpack
from nic.bitstream.entropy import Tables
from nic.bitstream.header import Header, Kind, Mode
from nic.cells import decode_cell, decode_cut_cell, encode_cell
from nic.conceal import conceal
from nic.effort import ITERATIONS, Coded, check_options, search_latents
from nic.errors import BadFile, NicError, UsageError
from nic.extreme import decode_indices, encode_indices, restore
from nic.models import store
from nic.models.prior import UNIT
from nic.models.transforms import LATENT, bits_per_error
from nic.pixels import Picture
from nic.progress import advance, expect
from nic.refine import Refinement, project, refine, steps_of
from nic.windows import (
    Slices,
    analyze,
    analyze_latents,
    cell_slices,
    distortion_gradient,
    grow,
    halo,
    latent_grid,
    meet,
    shrink,
    synthesize,
)

__all__ = [
    "Crop",
    "Encoded",
    "Recovered",
    "compress",
    "decompress",
    "load_model",
    "recover",
    "recover_stream",
    "verify",
]

Crop = tuple[int, int, int, int]  # left, top, width, height in pixels
Ahead = dict[int, tuple[bytes, Tensor]]  # by the cell's index: its words, and what they decode to
LEVELS = 252  # highest quality level: quarters of a quality index
DEFAULT_QUALITY = 50
MODES = ("auto", store.FIDELITY, store.EXTREME)
DEVICES = ("auto", "cpu", "cuda")
LOW_RATE = 0.25  # bits per pixel; fidelity mode's lowest quality takes less of nearly every picture
SEARCHED = 9  # levels that a bisection tries: 8, and the neighbour of what it finds may be one more
REFINED = 5  # of them at more than the lowest effort, where that one has told where about to look


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


def level_at(quality: float | None) -> int:
    """The quality level that a quality of 0 to 100 stands for, None for the default."""
    return round((DEFAULT_QUALITY if quality is None else quality) / 100 * LEVELS)


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


def model_of(header: Header, device: str) -> store.AnyModel:
    """The model that a file needs; raises UnknownModel, and BadFile where it is one of another mode."""
    model = load_model(header.model_id, device)
    if header.mode != Mode[model.mode.upper()]:
        raise BadFile(f"its mode is {header.mode.name.lower()}, but model {model.id.hex()} is for {model.mode}")
    return model


def load_model(wanted: bytes | str, device: str = "auto") -> store.AnyModel:
    """The installed model with this id or name, on "cpu", "cuda" or whichever there is ("auto"); kept in memory.

    Raises UnknownModel, and UsageError for a device that there is not.
    """
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is none of {', '.join(DEVICES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    return cached_model(store.find(wanted)["path"], device)


@lru_cache(maxsize=4)
def cached_model(path: str, device: str) -> store.AnyModel:
    with torch.inference_mode(False):  # whoever is the first to ask: an encoder needs gradients
        return store.load_from(path, device)


@lru_cache(maxsize=4)
def entropy_tables(model: store.AnyModel) -> Tables:
    if isinstance(model, store.ExtremeModel):
        return Tables(model.tables)
    return Tables(model.codebooks.frequency_tables())


class PictureEncoder:
    """One picture, coded at as many quality levels as a search asks for.

    Raises BadInput for a picture beyond the limits of the format, before any work is done.
    """

    def __init__(self, picture: Picture, model: store.AnyModel, effort: int = 4, mask_rate: float = 0) -> None:
        self.picture = picture
        self.model = model
        self.mask_rate = mask_rate
        self.iterations = ITERATIONS[effort] if isinstance(model, store.Model) else 0
        self.header(0)  # knows the limits
        self.alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
        self.files: dict[int, bytes] = {}  # of the levels tried so far; their latents would be many times larger
        self.psnrs: dict[int, float] = {}

    def header(self, level: int) -> Header:
        height, width, channels = self.picture.pixels.shape
        mode, depth = Mode[self.model.mode.upper()], 8 * self.picture.pixels.itemsize
        return Header(Kind.IMAGE, mode, width, height, channels, depth, level, self.model.id)

    def steps(self, decoding: bool) -> int:
        """What one level takes: analysis and coding, where refined with several codings and gradients, and decoding."""
        cells = len(cell_slices(*latent_grid(*self.picture.pixels.shape[:2])))
        return cells * ((3 + 2 * self.iterations if self.iterations else 2) + decoding)

    def file(self, level: int) -> bytes:
        if level not in self.files:
            self.encode(level)
        return self.files[level]

    def encode(self, level: int) -> tuple[bytes, Tensor]:
        """The file at a quality level, and the latents that it decodes to."""
        model, picture = self.model, self.picture
        if isinstance(model, store.ExtremeModel):
            coded = code_extreme(model, picture.pixels, level, self.mask_rate)
        else:
            coded = code_fidelity(model, picture.pixels, level, self.iterations, self.mask_rate)
        metadata = (picture.icc or None, picture.exif or None, picture.xmp or None)
        self.files[level] = pack(NicFile(self.header(level), coded.cells, *metadata, self.alpha))
        return self.files[level], coded.latents

    def size_at(self, level: int) -> int:
        return len(self.file(level))

    def psnr_at(self, level: int) -> float:
        if level not in self.psnrs:
            _, latents = self.encode(level)
            height, width = self.picture.pixels.shape[:2]
            pixels = crop_pixels(self.model, latents, self.header(level), (0, 0, width, height))
            self.psnrs[level] = psnr(pixels, self.picture.pixels)
        return self.psnrs[level]

    def search_steps(self, decoding: bool) -> int:
        """What a search takes, about."""
        if not self.iterations:
            return SEARCHED * self.steps(decoding)
        return SEARCHED * self.quick().steps(decoding) + REFINED * self.steps(decoding)

    def search_size(self, target: float, nearest: bool = False) -> tuple[int, str]:
        """The highest level whose file is no larger than ``target`` bytes, or the level nearest to it."""
        above = self.search(lambda encoder, level: encoder.size_at(level) / target, strictly=True)
        candidates = [min(max(level, 0), LEVELS) for level in (above - 1, above)]
        best = min(candidates, key=lambda level: abs(self.size_at(level) - target)) if nearest else candidates[0]
        return best, missed(self.size_at(best), target, best, "bytes")

    def search_psnr(self, target: float) -> tuple[int, str]:
        """The lowest level that reaches ``target`` dB."""
        best = min(self.search(lambda encoder, level: encoder.psnr_at(level) / target), LEVELS)
        return best, missed(self.psnr_at(best), target, best, "dB")

    def search(self, share: "Callable[[PictureEncoder, int], float]", strictly: bool = False) -> int:
        """The lowest level whose share of a target is at least 1, strictly: more; LEVELS + 1 if there is none.

        The lowest effort, many times faster, tells where about that is: its shares are off by about the same factor
        at neighbouring levels.
        """
        reached = operator.gt if strictly else operator.ge
        if not self.iterations:
            return first_level(lambda level: reached(share(self, level), 1))
        quick = self.quick()
        guess = min(first_level(lambda level: reached(share(quick, level), 1)), LEVELS)
        factor = share(self, guess) / share(quick, guess)
        guess = min(first_level(lambda level: reached(factor * share(quick, level), 1)), LEVELS)
        return first_level(lambda level: reached(share(self, level), 1), guess)

    def quick(self) -> "PictureEncoder":
        """The same at the lowest effort."""
        encoder = copy.copy(self)
        encoder.iterations = 0
        encoder.files, encoder.psnrs = {}, {}
        return encoder


def psnr(decoded: np.ndarray, original: np.ndarray) -> float:
    """dB over all samples [H, W, C]; row by row, because the differences are eight times as large as the pixels."""
    rows = zip(decoded, original, strict=True)
    error = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in rows) / original.size
    return -10 * math.log10(max(error / np.iinfo(original.dtype).max ** 2, 1e-12))


def nearer(encoder: PictureEncoder, target: float, device: str, nearest: bool) -> PictureEncoder:
    """``encoder``, or the extreme mode's where that one's lowest quality takes more than ``target`` bytes.

    nearest: the extreme mode must also come nearer to the target than this lowest quality.
    """
    least = encoder.size_at(0)
    if least <= target:
        return encoder
    extreme = PictureEncoder(encoder.picture, load_model(store.EXTREME, device), mask_rate=encoder.mask_rate)
    return encoder if nearest and target - extreme.size_at(LEVELS) > least - target else extreme


def first_level(reached: Callable[[int], bool], guess: int | None = None) -> int:
    """The lowest quality level at which ``reached`` holds; LEVELS + 1 if there is none.

    By bisection, which starts with ever wider steps from a guess if there is one.
    """
    low, high, step = 0, LEVELS + 1, 1  # it is low, high or between them
    while guess is not None and low <= guess < high:
        if reached(guess):
            high, guess = guess, guess - step
        else:
            low, guess = guess + 1, guess + step
        step *= 2
    return bisect.bisect_left(range(LEVELS + 1), True, low, high, key=reached)


def missed(value: float, target: float, level: int, unit: str) -> str:
    """One line if ``value`` is over 2 % away from its target."""
    if abs(value - target) <= 0.02 * target:
        return ""
    end = {0: "the lowest quality", LEVELS: "the highest quality"}.get(level, "the nearest quality")
    wanted, found = (f"{x:,.0f}" if unit == "bytes" and x >= 1 else f"{x:.4g}" for x in (target, value))
    return f"{wanted} {unit} cannot be met: {end} of this model gives {found} {unit}"


@torch.no_grad()
def code_fidelity(model: store.Model, pixels: np.ndarray, level: int, iterations: int, mask_rate: float) -> Coded:
    """Codes pixels [H, W, C] at a quality level; iterations of search, mask_rate as for ``compress``."""
    quality = torch.tensor([level / 4], device=model.device)
    y, z = analyze(model, pixels, quality)
    weight = bits_per_error(quality, model.config)

    def code(targets: Tensor) -> Coded:
        return code_cells(model, targets, z, level, mask_rate)

    def distortion(latents: Tensor, directed: bool) -> tuple[float, Tensor | None]:
        return distortion_gradient(model, latents, pixels, level, weight, directed)

    return search_latents(code, distortion, y, iterations) if iterations else code(y)


@torch.no_grad()
def code_extreme(model: store.ExtremeModel, pixels: np.ndarray, level: int, mask_rate: float) -> Coded:
    """Codes pixels [H, W, C] at a quality level."""
    quality = torch.tensor([model.quality(level)], device=model.device)
    targets = analyze_latents(model, pixels, quality)
    cells, latents = [], torch.empty_like(targets)
    for rows, columns in cell_slices(*targets.shape[2:]):
        cell = targets[:, :, rows, columns]
        payload, decoded = encode_indices(model, entropy_tables(model), cell, level, mask_rate)
        cells.append(payload)
        latents[:, :, rows, columns] = decoded / UNIT
        advance()
    return Coded(tuple(cells), latents)


def code_cells(model: store.Model, y: Tensor, z: Tensor, level: int, mask_rate: float) -> Coded:
    """Codes latents y [1, M, h, w] and hyper-latents z [1, N, h/4, w/4], in steps, cell by cell."""
    cells, latents = [], torch.empty_like(y)
    for rows, columns in cell_slices(*y.shape[2:]):
        hyper = shrink((rows, columns))
        hyper_latents = z[:, :, hyper[0], hyper[1]]
        payload, decoded = encode_cell(
            model, entropy_tables(model), y[:, :, rows, columns], hyper_latents, level / 4, mask_rate
        )
        cells.append(payload)
        latents[:, :, rows, columns] = decoded / UNIT
        advance()
    return Coded(tuple(cells), latents)


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


def encode_alpha(alpha: np.ndarray) -> bytes:
    """Alpha [H, W] as a greyscale PNG: lossless."""
    with io.BytesIO() as buffer:
        Image.fromarray(alpha).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


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
