"""One picture, coded at one quality level or at as many as it takes to meet a target."""

import bisect
import copy
import io
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nic.bitstream.container import NicFile, pack
from nic.bitstream.entropy import Encoder
from nic.bitstream.header import Header, Kind, Mode
from nic.cells import number_bits, put_cell, put_filter
from nic.effort import ITERATIONS, Coded, search_latents, worth_of
from nic.extreme import encode_indices
from nic.loaded import entropy_tables, load_model
from nic.models import store
from nic.models.config import LEVELS
from nic.models.prior import CELL, UNIT
from nic.pixels import Picture
from nic.progress import advance
from nic.windows import (
    Filters,
    Slices,
    analyze,
    analyze_latents,
    cell_of,
    cell_slices,
    distortion_gradient,
    fit_filters,
    latent_grid,
    shrink,
    synthesize,
)

__all__ = ["PictureEncoder", "level_at", "nearer", "psnr"]

DEFAULT_QUALITY = 50
SEARCHED = 9  # levels that a bisection tries: 8, and the neighbour of what it finds may be one more
STRIP_CELLS = 16  # of a strip whose latents are searched together
REFINED = 5  # of them at more than the lowest effort, where that one has told where about to look


def level_at(quality: float | None) -> int:
    """The quality level that a quality of 0 to 100 stands for, None for the default."""
    return round((DEFAULT_QUALITY if quality is None else quality) / 100 * LEVELS)


@dataclass(frozen=True)
class CodedPicture:
    """A picture's payloads, and what they decode to: latents [1, M, h, w] in steps and filters."""

    cells: tuple[bytes, ...]
    latents: Tensor
    filters: Filters

    @property
    def bits(self) -> int:
        return 8 * sum(map(len, self.cells))


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
        """What a level takes: analysis and coding, in a search several codings, gradients and filters, and decoding."""
        cells = len(cell_slices(*latent_grid(*self.picture.pixels.shape[:2])))
        return cells * ((4 + 2 * self.iterations if self.iterations else 2) + decoding)

    def file(self, level: int) -> bytes:
        if level not in self.files:
            self.encode(level)
        return self.files[level]

    def encode(self, level: int) -> tuple[bytes, CodedPicture]:
        """The file at a quality level, and what its cells decode to."""
        model, picture = self.model, self.picture
        if isinstance(model, store.ExtremeModel):
            coded = code_extreme(model, picture.pixels, level, self.mask_rate)
        else:
            coded = code_fidelity(model, picture.pixels, level, self.iterations, self.mask_rate)
        metadata = (picture.icc or None, picture.exif or None, picture.xmp or None)
        self.files[level] = pack(NicFile(self.header(level), coded.cells, *metadata, self.alpha))
        return self.files[level], coded

    def size_at(self, level: int) -> int:
        return len(self.file(level))

    def psnr_at(self, level: int) -> float:
        if level not in self.psnrs:
            _, coded = self.encode(level)
            original = self.picture.pixels
            height, width, channels = original.shape
            shown = synthesize(self.model, coded.latents, level, channels, 8 * original.itemsize, filters=coded.filters)
            self.psnrs[level] = psnr(shown[:height, :width], original)
        return self.psnrs[level]

    def search_steps(self, decoding: bool) -> int:
        """What a search takes, about."""
        if not self.iterations:
            return SEARCHED * self.steps(decoding)
        return SEARCHED * self.quick().steps(decoding) + REFINED * self.steps(decoding)

    def search_size(self, target: float, nearest: bool = False) -> tuple[int, str]:
        """The highest level whose file is no larger than ``target`` bytes, or the level nearest to it; and a note."""
        above = self.search(lambda encoder, level: encoder.size_at(level) / target, strictly=True)
        candidates = [min(max(level, 0), LEVELS) for level in (above - 1, above)]
        best = min(candidates, key=lambda level: abs(self.size_at(level) - target)) if nearest else candidates[0]
        if nearest:
            bits = 8 / (self.picture.pixels.shape[0] * self.picture.pixels.shape[1])
            return best, missed(bits * self.size_at(best), bits * target, best, "bits per pixel")
        return best, missed(self.size_at(best), target, best, "bytes")

    def search_psnr(self, target: float) -> tuple[int, str]:
        """The lowest level that reaches ``target`` dB; and a note."""
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
    found, wanted = (f"{x:,.0f}" if unit == "bytes" else f"{x:.4g}" for x in (value, target))
    return f"{found} {unit} instead of {wanted}: {end} of this model"


@torch.no_grad()
def code_fidelity(
    model: store.Model, pixels: np.ndarray, level: int, iterations: int, mask_rate: float
) -> CodedPicture:
    """Codes pixels [H, W, C] at a quality level; iterations of search, mask_rate as for ``compress``.

    Latents are searched strip by strip, from the top. Without search there are no filters either.
    """
    y, z = analyze(model, pixels, torch.tensor([model.quality(level)], device=model.device))
    cells: list[Encoder] = []
    for strip in strips(*y.shape[2:]):
        cells += code_strip(model, pixels, level, y, z, strip, iterations, mask_rate)
    filters: Filters = {}
    if iterations:
        filters = fit_filters(model, y, pixels, level, worth_of(model, level), number_bits(entropy_tables(model)))
    for cell, place in zip(cells, cell_slices(*y.shape[2:]), strict=True):
        put_filter(cell, filters.get(cell_of(place)))
    return CodedPicture(tuple(cell.finish() for cell in cells), y, filters)


def code_strip(
    model: store.Model,
    pixels: np.ndarray,
    level: int,
    y: Tensor,
    z: Tensor,
    strip: Slices,
    iterations: int,
    mask_rate: float,
) -> tuple[Encoder, ...]:
    """Codes a strip of the latents y, which become what it decodes to; those around it stay as they are."""
    mine, hyper = y[:, :, *strip], z[:, :, *shrink(strip)]
    weight, bits = worth_of(model, level), number_bits(entropy_tables(model))

    def code(targets: Tensor) -> Coded:
        return code_cells(model, targets, hyper, level, mask_rate)

    def distortion(latents: Tensor, directed: bool) -> tuple[float, Tensor | None]:
        mine.copy_(latents)
        return distortion_gradient(model, y, pixels, level, weight, bits, strip, directed)

    coded = search_latents(code, distortion, mine.clone(), iterations) if iterations else code(mine)
    mine.copy_(coded.latents)
    for cell in coded.cells:
        cell.flush()
    return coded.cells


def strips(height: int, width: int) -> Iterator[Slices]:
    """Rows of cells of a latent grid, several at once where they are short: what a search holds in memory."""
    rows = CELL * max(1, STRIP_CELLS // -(-width // CELL))
    return ((slice(top, min(top + rows, height)), slice(0, width)) for top in range(0, height, rows))


@torch.no_grad()
def code_extreme(model: store.ExtremeModel, pixels: np.ndarray, level: int, mask_rate: float) -> CodedPicture:
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
    return CodedPicture(tuple(cells), latents, {})


def code_cells(model: store.Model, y: Tensor, z: Tensor, level: int, mask_rate: float) -> Coded:
    """Codes latents y [1, M, h, w] and hyper-latents z [1, N, h/4, w/4], in steps, cell by cell."""
    cells, latents = [], torch.empty_like(y)
    for rows, columns in cell_slices(*y.shape[2:]):
        cells.append(Encoder(entropy_tables(model)))
        hyper = z[:, :, *shrink((rows, columns))]
        decoded = put_cell(model, cells[-1], y[:, :, rows, columns], hyper, model.quality(level), mask_rate)
        latents[:, :, rows, columns] = decoded / UNIT
        advance()
    return Coded(tuple(cells), latents)


def encode_alpha(alpha: np.ndarray) -> bytes:
    """Alpha [H, W] as a greyscale PNG: lossless."""
    with io.BytesIO() as buffer:
        Image.fromarray(alpha).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()
