"""The latent grid in pieces: cells, windows with all that they depend on, and the transforms window by window.

The networks' memory is bounded by one window, whatever the picture's size, and windows give what the whole would.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nic.models import store
from nic.models.adaptive import REACH, AdaptiveFilter, fit
from nic.models.prior import CELL
from nic.models.transforms import LATENT, PATCH, filter_reach
from nic.progress import advance

__all__ = [
    "PADDING",
    "Filters",
    "Slices",
    "analyze",
    "analyze_latents",
    "cell_of",
    "cell_slices",
    "distortion_gradient",
    "fit_filters",
    "grow",
    "halo",
    "latent_grid",
    "meet",
    "pixels_of",
    "shrink",
    "synthesize",
    "to_images",
    "to_pixels",
    "windows",
]

HYPER = 4  # latents a side of a hyper-latent
PADDING = 64  # pictures are padded to multiples of this many pixels
Slices = tuple[slice, slice]  # rows and columns
Filters = dict[tuple[int, int], AdaptiveFilter]  # of some cells, by row and column


def latent_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the latents of a picture."""
    rows, columns = (-(-side // PADDING) * (PADDING // LATENT) for side in (height, width))
    return rows, columns


def cell_slices(height: int, width: int, rows: int = CELL) -> list[Slices]:
    """The cells of a latent grid in raster order, or their parts of so many rows."""
    tops, lefts = range(0, height, rows), range(0, width, CELL)
    return [(slice(i, min(i + rows, height)), slice(j, min(j + CELL, width))) for i in tops for j in lefts]


def cell_of(region: Slices) -> tuple[int, int]:
    """Row and column of the cell that a region of the latent grid begins in."""
    return region[0].start // CELL, region[1].start // CELL


def meet(a: slice, b: slice) -> bool:
    """Whether two ranges have anything in common."""
    return bool(a.start < b.stop and b.start < a.stop)


def halo(model: store.AnyModel) -> int:
    """Latents around a position on which its pixels depend, and REACH pixels around these."""
    config = model.config
    return config.deep_blocks + math.ceil((PATCH * config.trunk_blocks + filter_reach(config) + REACH) / LATENT)


def grow(region: Slices, margin: int, height: int, width: int) -> Slices:
    """A region of the latent grid with a margin on each side, as far as there are latents."""
    rows, columns = (
        slice(max(0, s.start - margin), min(end, s.stop + margin))
        for s, end in zip(region, (height, width), strict=True)
    )
    return rows, columns


def windows(
    model: store.AnyModel, height: int, width: int, region: Slices | None = None, high: int = CELL
) -> Iterator[tuple[Slices, Slices]]:
    """The cells of a latent grid, or their parts in a region, each with the latents around it that it depends on.

    high: rows of a window, instead of those of a cell.
    """
    for rows, columns in cell_slices(height, width, high):
        if region:
            rows, columns = (
                slice(max(s.start, limit.start), min(s.stop, limit.stop))
                for s, limit in zip((rows, columns), region, strict=True)
            )
        if rows.start < rows.stop and columns.start < columns.stop:
            yield (rows, columns), grow((rows, columns), halo(model), height, width)


def synthesize_window(
    model: store.AnyModel, latents: Tensor, inner: Slices, outer: Slices, level: int, margin: int = 0
) -> tuple[Tensor, Slices]:
    """Images of the cell ``inner``, from the latents ``outer`` around it, with so many pixels around; and where it is.

    These pixels go as far as those of ``outer``.
    """
    latents = latents.contiguous(memory_format=torch.channels_last)
    images: Tensor = model.synthesis(latents, torch.tensor([model.quality(level)], device=model.device))
    mine = tuple(pixels_of(i, o.start) for i, o in zip(inner, outer, strict=True))
    rows, columns = (slice(max(s.start - margin, 0), s.stop + margin) for s in mine)
    place = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(mine, (rows, columns), strict=True))
    return images[:, :, rows, columns], (place[0], place[1])


def pixels_of(latents: slice, origin: int = 0) -> slice:
    """The pixels that a range of latents covers, counted from those of the latent ``origin``."""
    return slice(LATENT * (latents.start - origin), LATENT * (latents.stop - origin))


@torch.inference_mode()
def synthesize(
    model: store.AnyModel,
    latents: Tensor,
    level: int,
    channels: int,
    depth: int,
    region: Slices | None = None,
    filters: Filters | None = None,
) -> np.ndarray:
    """Latents [1, M, h, w], in steps -> pixels [16 h, 16 w, channels] of so many bits, or those under a region."""
    height, width = latents.shape[2:]
    rows, columns = region or (slice(0, height), slice(0, width))
    size = LATENT * (rows.stop - rows.start), LATENT * (columns.stop - columns.start)
    picture = np.empty((*size, channels), np.uint8 if depth == 8 else np.uint16)
    for inner, outer in windows(model, height, width, region):
        images, (top, left) = synthesize_window(model, latents[:, :, *outer], inner, outer, level, REACH)
        adaptive = (filters or {}).get(cell_of(inner))
        made = (adaptive(images) if adaptive else images)[:, :, top, left]
        picture[pixels_of(inner[0], rows.start), pixels_of(inner[1], columns.start)] = to_pixels(made, channels, depth)
        advance()
    return picture


def to_pixels(images: Tensor, channels: int, depth: int) -> np.ndarray:
    """Images [1, 3, H, W], nominally in [0, 1] -> pixels [H, W, channels] of so many bits, rounded."""
    image = images[0].clamp(0, 1)
    image = image if channels == 3 else image.mean(dim=0, keepdim=True)
    levels: np.ndarray = torch.round(image * (2**depth - 1)).permute(1, 2, 0).cpu().numpy()
    return levels


@torch.no_grad()
def analyze_latents(model: store.AnyModel, picture: np.ndarray, quality: Tensor) -> Tensor:
    """Latents [1, M, h, w] of pixels [H, W, C]."""
    height, width = latent_grid(*picture.shape[:2])
    y = torch.empty(1, model.config.latent, height, width, device=model.device)
    for inner, outer in windows(model, height, width):
        latents = model.analysis(to_images(picture, outer, model.device), quality)
        y[:, :, *inner] = within(latents, inner, outer)
        advance()
    return y


@torch.no_grad()
def analyze(model: store.Model, picture: np.ndarray, quality: Tensor) -> tuple[Tensor, Tensor]:
    """Latents y [1, M, h, w] and hyper-latents z [1, N, h/4, w/4] of pixels [H, W, C], in steps."""
    y = analyze_latents(model, picture, quality)
    height, width = y.shape[2:]
    z = torch.empty(1, model.config.hyper, height // HYPER, width // HYPER, device=model.device)
    for inner in cell_slices(height, width):
        outer = grow(inner, HYPER, height, width)  # it depends on three latents around, and steps are HYPER wide
        hyper = model.hyper_analysis(y[:, :, *outer].contiguous(memory_format=torch.channels_last))
        z[:, :, *shrink(inner)] = within(hyper, shrink(inner), shrink(outer))
    return y, z


def shrink(region: Slices) -> Slices:
    """The hyper-latents of a region of latents."""
    rows, columns = (slice(s.start // HYPER, s.stop // HYPER) for s in region)
    return rows, columns


def within(window: Tensor, inner: Slices, outer: Slices) -> Tensor:
    """The part ``inner`` of a window [1, C, h, w] that covers ``outer``."""
    rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    return window[:, :, rows, columns]


def to_images(picture: np.ndarray, region: Slices, device: torch.device) -> Tensor:
    """The pixels [H, W, C] under a region of the latent grid as images [1, 3, h, w] float32 in [0, 1].

    Beyond the picture, its last row and column go on.
    """
    rows, columns = (pixels_of(s) for s in region)
    part = picture[rows, columns]
    margins = (0, rows.stop - rows.start - part.shape[0]), (0, columns.stop - columns.start - part.shape[1]), (0, 0)
    images = torch.from_numpy(np.pad(part, margins, mode="edge").astype(np.float32) / np.iinfo(picture.dtype).max)
    images = images.permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
    return images.to(device).contiguous(memory_format=torch.channels_last)


def distortion_gradient(
    model: store.Model,
    latents: Tensor,
    picture: np.ndarray,
    level: int,
    weight: float,
    bits: np.ndarray,
    region: Slices,
    directed: bool = True,
) -> tuple[float, Tensor | None]:
    """``weight`` times the squared error against pixels [H, W, C], and, if ``directed``, its gradient in the latents.

    Latents are [1, M, h, w]; pixels count in [0, 1] and in three colours, behind a filter that is fitted to each window
    (bits: as for ``fit``). Both are of the pixels under a region of the latent grid and of its latents alone. Gradients
    of pictures of several cells, which need what the synthesis has computed on the way, have windows of half a cell.
    """
    grid = (latents.shape[2], latents.shape[3])
    high = CELL // 2 if directed and max(grid) > CELL else CELL
    around = grow(region, halo(model), *grid)
    total, gradient = 0.0, torch.zeros_like(latents[:, :, *around])
    for inner, outer in windows(model, *grid, region, high):
        with torch.set_grad_enabled(directed):
            window = latents[:, :, *outer].clone().requires_grad_(directed)
            images, place = synthesize_window(model, window, inner, outer, level, REACH)
            adaptive, original, shown = fit_window(images, place, picture, inner, weight, bits)
            error = weight * (adaptive(images)[:, :, *shown] - original).square().sum()
            if directed:
                within(gradient, outer, around).add_(torch.autograd.grad(error, window)[0])
        total += error.item()
        if inner[0].start % CELL == 0:
            advance()
    return total, within(gradient, region, around) if directed else None


def fit_window(
    images: Tensor, place: Slices, picture: np.ndarray, inner: Slices, weight: float, bits: np.ndarray
) -> tuple[AdaptiveFilter, Tensor, Slices]:
    """The filter for decoded images [1, 3, H, W] in which the window ``inner`` of the latent grid is at a place.

    Also the images that it is fitted to, and where in the others they are. weight and bits are as for ``fit``.
    """
    height, width = (len(range(side)[pixels_of(s)]) for side, s in zip(picture.shape, inner, strict=False))
    original = to_images(picture, inner, images.device)[:, :, :height, :width]
    rows, columns = place
    shown = slice(rows.start, rows.start + height), slice(columns.start, columns.start + width)
    corner, grey = (rows.start, columns.start), picture.shape[2] == 1
    return fit(images.detach(), original, corner, weight, bits, grey), original, shown


@torch.no_grad()
def fit_filters(
    model: store.Model, latents: Tensor, picture: np.ndarray, level: int, weight: float, bits: np.ndarray
) -> Filters:
    """Filters of the cells of latents [1, M, h, w], for pixels [H, W, C]; weight and bits are as for ``fit``."""
    filters: Filters = {}
    for inner, outer in windows(model, *latents.shape[2:]):
        images, place = synthesize_window(model, latents[:, :, *outer], inner, outer, level, REACH)
        filters[cell_of(inner)] = fit_window(images, place, picture, inner, weight, bits)[0]
        advance()
    return filters
