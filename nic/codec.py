"""Pictures to .nic files and back: the whole story of one image, in the order in which it happens."""

import bisect
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nic.bitstream.container import NicFile, pack, unpack
from nic.bitstream.entropy import Tables
from nic.bitstream.header import Header, Kind, Mode
from nic.cells import decode_cell, encode_cell
from nic.effort import ITERATIONS, Coded, refine
from nic.errors import BadFile, UsageError
from nic.models import store
from nic.models.prior import CELL, UNIT
from nic.models.transforms import lambda_of
from nic.pixels import Picture

__all__ = ["Encoded", "compress", "decompress", "load_model", "verify"]

LATENT = 16  # pixels a side of a latent
PADDING = 64  # pictures are padded to multiples of this many pixels
Slices = tuple[slice, slice]  # rows and columns
LEVELS = 252  # highest quality level: quarters of a quality index


@dataclass(frozen=True)
class Encoded:
    """A .nic file, the quality (0 to 100) it was made with, and why it missed its target (or "")."""

    data: bytes
    quality: float
    note: str = ""


def compress(
    picture: Picture,
    *,
    quality: float = 50,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    effort: int = 4,
    device: str = "auto",
) -> Encoded:
    """Codes a picture at a quality (0 to 100), or at the one that meets a target: at most one of the three.

    bpp: bits per pixel of the whole file. size: bytes of the whole file, at most. psnr: dB over all colour samples, at
    least. effort: 1 to 9; from 2 on, iterations that make the file smaller at equal quality, listed in nic/effort.py.
    A target that is missed by more than 2 % is told in the result's note. Raises UsageError.
    """
    targets = [target for target in (bpp, size, psnr) if target is not None]
    if len(targets) > 1:
        raise UsageError("give only one of bpp, size and psnr")
    if not all(0 < target < math.inf for target in targets):
        raise UsageError("bpp, size and psnr must be positive")
    if not 0 <= quality <= 100:
        raise UsageError(f"quality {quality:g} is outside 0 to 100")
    if not 1 <= effort <= 9:
        raise UsageError(f"effort {effort} is outside 1 to 9")
    encoder = PictureEncoder(picture, load_model(store.DEFAULT, device), effort)
    height, width = picture.pixels.shape[:2]
    if bpp is not None:
        level, note = encoder.search_size(bpp * height * width / 8, nearest=True)
    elif size is not None:
        level, note = encoder.search_size(size)
    elif psnr is not None:
        level, note = encoder.search_psnr(psnr)
    else:
        level, note = round(quality / 100 * LEVELS), ""
    return Encoded(encoder.encode(level)[0], level / LEVELS * 100, note)


def decompress(data: bytes, *, device: str = "auto") -> Picture:
    """The picture in a .nic file; raises BadFile, UnsupportedFile or UnknownModel."""
    file = unpack(data)
    header = file.header
    alpha = None if file.alpha is None else decode_alpha(file.alpha, header)
    model = load_model(header.model_id, device)
    images = synthesize(model, decode_latents(file, model), header.quality)
    pixels = to_pixels(images, header)
    return Picture(pixels, alpha, file.icc or b"", file.exif or b"", file.xmp or b"")


def verify(data: bytes, *, device: str = "auto") -> None:
    """Decodes every symbol of a .nic file and its alpha, without making the picture; raises as ``decompress``."""
    file = unpack(data)
    if file.alpha is not None:
        decode_alpha(file.alpha, file.header)
    decode_latents(file, load_model(file.header.model_id, device))


def load_model(wanted: bytes | str, device: str = "auto") -> store.Model:
    """The installed model with this id or name, on "cpu", "cuda" or whichever there is ("auto"); kept in memory."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    return cached_model(wanted, device)


@lru_cache(maxsize=4)
def cached_model(wanted: bytes | str, device: str) -> store.Model:
    return store.load(wanted, device)


@lru_cache(maxsize=4)
def entropy_tables(model: store.Model) -> Tables:
    return Tables(model.codebooks.frequency_tables())


class PictureEncoder:
    """One picture, coded at as many quality levels as a search asks for."""

    def __init__(self, picture: Picture, model: store.Model, effort: int = 4) -> None:
        self.picture = picture
        self.model = model
        self.iterations = ITERATIONS[effort]
        self.images = to_images(picture.pixels).to(model.device)
        self.alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
        self.tried: dict[int, tuple[bytes, Tensor]] = {}

    def encode(self, level: int) -> tuple[bytes, Tensor]:
        """The file at a quality level, and the latents that it decodes to."""
        if level not in self.tried:
            self.tried[level] = self._encode(level)
        return self.tried[level]

    @torch.no_grad()
    def _encode(self, level: int) -> tuple[bytes, Tensor]:
        model, picture = self.model, self.picture
        height, width, channels = picture.pixels.shape
        quality = torch.tensor([level / 4], device=model.device)
        y = model.analysis(self.images, quality)
        z = model.hyper_analysis(y)
        bits_per_error = float(lambda_of(quality, model.config)) * 255**2 / 3  # MSE is over three colours

        def code(targets: Tensor) -> Coded:
            return code_cells(model, targets, z, level)

        def distortion(latents: Tensor) -> tuple[float, Tensor]:
            return distortion_gradient(model, latents, self.images[:, :, :height, :width], level, bits_per_error)

        coded = refine(code, distortion, y, self.iterations) if self.iterations else code(y)
        depth = 8 * picture.pixels.itemsize
        header = Header(Kind.IMAGE, Mode.FIDELITY, width, height, channels, depth, level, model.id)
        metadata = (picture.icc or None, picture.exif or None, picture.xmp or None)
        return pack(NicFile(header, coded.cells, *metadata, self.alpha)), coded.latents

    def size_at(self, level: int) -> int:
        return len(self.encode(level)[0])

    def psnr_at(self, level: int) -> float:
        file, latents = self.encode(level)
        pixels = to_pixels(synthesize(self.model, latents, level), unpack(file).header)
        error = (pixels.astype(np.float64) - self.picture.pixels) / np.iinfo(pixels.dtype).max
        return -10 * math.log10(max(float(np.square(error).mean()), 1e-12))

    def search_size(self, target: float, nearest: bool = False) -> tuple[int, str]:
        """The highest level whose file is no larger than ``target`` bytes, or the level nearest to it."""
        above = first_level(lambda level: self.size_at(level) > target)
        candidates = [min(max(level, 0), LEVELS) for level in (above - 1, above)]
        best = min(candidates, key=lambda level: abs(self.size_at(level) - target)) if nearest else candidates[0]
        return best, missed(self.size_at(best), target, best, "bytes")

    def search_psnr(self, target: float) -> tuple[int, str]:
        """The lowest level that reaches ``target`` dB."""
        best = min(first_level(lambda level: self.psnr_at(level) >= target), LEVELS)
        return best, missed(self.psnr_at(best), target, best, "dB")


def first_level(reached: Callable[[int], bool]) -> int:
    """The lowest quality level at which ``reached`` holds, by bisection; LEVELS + 1 if there is none."""
    return bisect.bisect_left(range(LEVELS + 1), True, key=reached)


def missed(value: float, target: float, level: int, unit: str) -> str:
    """One line if ``value`` is over 2 % away from its target."""
    if abs(value - target) <= 0.02 * target:
        return ""
    end = {0: "the lowest quality", LEVELS: "the highest quality"}.get(level, "the nearest quality")
    return f"{target:.4g} {unit} cannot be met: {end} of this model gives {value:.4g} {unit}"


def code_cells(model: store.Model, y: Tensor, z: Tensor, level: int) -> Coded:
    """Codes latents y [1, M, h, w] and hyper-latents z [1, N, h/4, w/4], in steps, cell by cell."""
    cells, latents = [], torch.empty_like(y)
    for rows, columns in cell_slices(*y.shape[2:]):
        hyper_rows, hyper_columns = (slice(s.start // 4, s.stop // 4) for s in (rows, columns))
        payload, decoded = encode_cell(
            model, entropy_tables(model), y[:, :, rows, columns], z[:, :, hyper_rows, hyper_columns], level / 4
        )
        cells.append(payload)
        latents[:, :, rows, columns] = decoded / UNIT
    return Coded(tuple(cells), latents)


def cell_slices(height: int, width: int) -> list[Slices]:
    """The cells of a latent grid in raster order."""
    rows, columns = ([slice(i, min(i + CELL, end)) for i in range(0, end, CELL)] for end in (height, width))
    return [(row, column) for row in rows for column in columns]


@torch.inference_mode()
def decode_latents(file: NicFile, model: store.Model) -> Tensor:
    """The latents [1, M, h, w] of all cells, in steps; each is a whole number of 64ths."""
    height, width = (-(-side // PADDING) * (PADDING // LATENT) for side in (file.header.height, file.header.width))
    slices = cell_slices(height, width)
    cells = []
    for cell, (rows, columns) in zip(file.cells, slices, strict=True):
        size = rows.stop - rows.start, columns.stop - columns.start
        cells.append(decode_cell(model, entropy_tables(model), cell, *size, file.header.quality / 4))
    latents = cells[0].new_empty(1, cells[0].shape[1], height, width)
    for cell_latents, (rows, columns) in zip(cells, slices, strict=True):
        latents[:, :, rows, columns] = cell_latents / UNIT
    return latents


def windows(model: store.Model, height: int, width: int) -> Iterator[tuple[Slices, Slices]]:
    """The cells of a latent grid, each with the latents around it that its pixels depend on."""
    halo = model.config.deep_blocks + math.ceil(model.config.trunk_blocks / 2)
    for inner in cell_slices(height, width):
        sides = zip(inner, (height, width), strict=True)
        rows, columns = (slice(max(0, s.start - halo), min(end, s.stop + halo)) for s, end in sides)
        yield inner, (rows, columns)


def synthesize_window(model: store.Model, latents: Tensor, inner: Slices, outer: Slices, level: int) -> Tensor:
    """The pixels of the cell ``inner``, from the latents ``outer`` around it."""
    latents = latents.contiguous(memory_format=torch.channels_last)
    images: Tensor = model.synthesis(latents, torch.tensor([level / 4], device=model.device))
    rows, columns = (pixels(i, o.start) for i, o in zip(inner, outer, strict=True))
    return images[:, :, rows, columns]


def pixels(latents: slice, origin: int = 0) -> slice:
    """The pixels that a range of latents covers, counted from those of the latent ``origin``."""
    return slice(LATENT * (latents.start - origin), LATENT * (latents.stop - origin))


@torch.inference_mode()
def synthesize(model: store.Model, latents: Tensor, level: int) -> Tensor:
    """Latents [1, M, h, w], in steps -> images [1, 3, 16 h, 16 w] in [0, 1], window by window."""
    height, width = latents.shape[2:]
    images = latents.new_empty(1, 3, LATENT * height, LATENT * width)
    for inner, outer in windows(model, height, width):
        window = latents[:, :, outer[0], outer[1]]
        images[:, :, pixels(inner[0]), pixels(inner[1])] = synthesize_window(model, window, inner, outer, level)
    return images.clamp_(0, 1)


def distortion_gradient(
    model: store.Model, latents: Tensor, images: Tensor, level: int, weight: float
) -> tuple[float, Tensor]:
    """``weight`` times the squared error against images [1, 3, H, W], and its gradient in the latents [1, M, h, w]."""
    total, gradient = 0.0, torch.zeros_like(latents)
    for inner, outer in windows(model, *latents.shape[2:]):
        original = images[:, :, pixels(inner[0]), pixels(inner[1])]
        with torch.enable_grad():
            window = latents[:, :, outer[0], outer[1]].clone().requires_grad_()
            decoded = synthesize_window(model, window, inner, outer, level)
            error = weight * (decoded[:, :, : original.shape[2], : original.shape[3]] - original).square().sum()
            gradient[:, :, outer[0], outer[1]] += torch.autograd.grad(error, window)[0]
        total += error.item()
    return total, gradient


def to_images(pixels: np.ndarray) -> Tensor:
    """Pixels [H, W, C] -> images [1, 3, H', W'] float32 in [0, 1], padded to multiples of 64 by their last pixels."""
    images = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)[None]
    bottom, right = (-side % PADDING for side in pixels.shape[:2])
    images = F.pad(images.expand(-1, 3, -1, -1), (0, right, 0, bottom), mode="replicate")
    return images.contiguous(memory_format=torch.channels_last)


def to_pixels(images: Tensor, header: Header) -> np.ndarray:
    """Images [1, 3, H', W'] in [0, 1] -> pixels [height, width, channels] uint8 or uint16, rounded."""
    images = images[0, :, : header.height, : header.width]
    if header.channels == 1:
        images = images.mean(dim=0, keepdim=True)
    levels = torch.round(images * (2**header.bit_depth - 1)).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(levels.astype(np.uint8 if header.bit_depth == 8 else np.uint16))


def encode_alpha(alpha: np.ndarray) -> bytes:
    """Alpha [H, W] as a greyscale PNG: lossless."""
    with io.BytesIO() as buffer:
        Image.fromarray(alpha).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


def decode_alpha(png: bytes, header: Header) -> np.ndarray:
    """The alpha plane [H, W]; raises BadFile unless it is a greyscale PNG of the picture's size and depth."""
    mode = {8: "L", 16: "I;16"}[header.bit_depth]
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.size != (header.width, header.height) or image.mode != mode:
                raise BadFile("the alpha plane does not fit the picture")
            return np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadFile(f"the alpha plane cannot be decoded: {error}") from None
