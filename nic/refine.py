"""Refining decoded pictures with the flow of models/refiner.py, window by window."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nic.errors import UsageError
from nic.models import store
from nic.models.extreme import nearest
from nic.models.prior import UNIT
from nic.models.refiner import NOISE, Refiner, euler, reach
from nic.models.transforms import LATENT
from nic.progress import advance
from nic.windows import Slices, analyze_latents, cell_slices, grow, pixels_of, synthesize, to_images, to_pixels

__all__ = ["MAX_STEPS", "STRENGTH", "Refinement", "project", "reach_of", "refine", "steps_of"]

MAX_STEPS = 100
STRENGTH = 0.5  # more than half of the LPIPS that 1 gains, for a quarter of the dB (benchmarks/results/refine.csv)
SEEDS = 2**63
BLOCK = 16  # latents a side of what one random generator fills with noise
PROJECTIONS = 2
TOLERANCE = 0.5  # quantization steps around a transmitted latent that a consistent picture's may be in


@dataclass(frozen=True)
class Refinement:
    """How decoded pictures are refined; raises UsageError for values out of range.

    steps: of Euler's method along the flow, 1 to 100. strength: 0 (the decoded picture) to 1, between which pixels are
    interpolated: the best trade of distortion for realism there is (Freirich et al., "A Theory of the
    Distortion-Perception Tradeoff in Wasserstein Space", arXiv 2107.02555). seed: of the noise, 0 to 2^63 - 1.
    consistent: the result is moved back towards pictures that would be coded to the same latents.
    """

    steps: int
    strength: float = STRENGTH
    seed: int = 0
    consistent: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UsageError(f"{self.steps} steps of refinement are outside 1 to {MAX_STEPS}")
        if not 0 <= self.strength <= 1:
            raise UsageError(f"refinement strength {self.strength:g} is outside 0 to 1")
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed {self.seed} is outside 0 to 2^63 - 1")


def steps_of(refinement: Refinement | None, height: int, width: int) -> int:
    """What refining a picture, without making it consistent, adds to ``progress.expect``."""
    return refinement.steps * len(cell_slices(*grid(height, width))) if refinement else 0


def reach_of(refinement: Refinement, device: torch.device) -> int:
    """How far refined pixels depend on decoded ones, in units of 16 pixels. Raises UnknownModel."""
    return refinement.steps * reach(refiner_on(device).config)


@lru_cache(maxsize=2)
def refiner_on(device: torch.device) -> Refiner:
    return store.load_refiner(device=str(device))


@torch.inference_mode()
def refine(
    pixels: np.ndarray, model: store.AnyModel, level: int, refinement: Refinement, origin: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Decoded pixels [H, W, C] of uint8 or uint16, made by a model at a quality level (0 to 252), refined.

    The same on one machine for the same seed. origin: row and column of the pixels' corner in the picture that they are
    of, in units of 16 pixels; but for a margin of ``reach_of``, they become what they do in the whole. Raises
    UnknownModel where no refiner is installed.
    """
    refiner, device, steps = refiner_on(model.device), model.device, refinement.steps
    height, width, channels = pixels.shape
    rows, columns = grid(height, width)
    quality = torch.tensor([model.quality(level)], device=device)
    extreme = torch.tensor([model.mode == store.EXTREME], device=device)

    def windows(time: float, state: Tensor | None) -> Iterator[tuple[Slices, Tensor, Tensor, Tensor]]:
        """Places in the picture, and there: the decoded picture, x_t (of ``state`` after the start), its line's end."""
        for inner in cell_slices(rows, columns):
            outer = grow(inner, reach(refiner.config), rows, columns)
            decoded = to_images(pixels, outer, device)
            x = (
                decoded + NOISE * noise(outer, origin, refinement.seed, device)
                if state is None
                else cut(state, outer).float()
            )
            end = with_colours_of(decoded, refiner(x, decoded, torch.tensor([time], device=device), quality, extreme))
            part = [pixels_of(i, o.start) for i, o in zip(inner, outer, strict=True)]
            there, across = map(pixels_of, inner)
            yield (there, across), decoded[:, :, *part], x[:, :, *part], end[:, :, *part]
            advance()

    state = None  # x_t of the whole picture, in half precision because there are two of them
    for step in range(steps - 1):
        following = torch.empty(1, 3, LATENT * rows, LATENT * columns, dtype=torch.half, device=device)
        for place, _, x, end in windows(step / steps, state):
            following[:, :, *place] = euler(x, end, step / steps, (step + 1) / steps)
        state = following
    refined = np.empty_like(pixels)
    for place, decoded, _, end in windows((steps - 1) / steps, state):
        room = refined[place]
        blended = to_pixels(torch.lerp(decoded, end.clamp(0, 1), refinement.strength), channels, 8 * pixels.itemsize)
        room[:] = blended[: room.shape[0], : room.shape[1]]
    return refined


def with_colours_of(decoded: Tensor, images: Tensor) -> Tensor:
    """Images [1, 3, H, W] whose means over 16x16 pixels, and what lies smoothly between these, are those of others."""
    coarse = F.avg_pool2d(images - decoded, LATENT)
    return images - F.interpolate(coarse, scale_factor=LATENT, mode="bilinear")


def grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of 16x16 pixels that cover a picture."""
    return -(-height // LATENT), -(-width // LATENT)


def cut(images: Tensor, region: Slices) -> Tensor:
    """The pixels of images [1, 3, H, W] under a region."""
    rows, columns = map(pixels_of, region)
    return images[:, :, rows, columns].contiguous(memory_format=torch.channels_last)


def noise(region: Slices, origin: tuple[int, int], seed: int, device: torch.device) -> Tensor:
    """Standard normal noise [1, 3, h, w] under a region, counted from an origin: each place has its own."""
    there = [slice(part.start + start, part.stop + start) for part, start in zip(region, origin, strict=True)]
    first = [part.start // BLOCK for part in there]
    counts = [-(-part.stop // BLOCK) - block for part, block in zip(there, first, strict=True)]
    side = BLOCK * LATENT
    field = np.empty((3, counts[0] * side, counts[1] * side), np.float32)
    for row in range(counts[0]):
        for column in range(counts[1]):
            chance = np.random.default_rng([seed, first[0] + row, first[1] + column])
            block = chance.standard_normal((3, side, side), np.float32)
            field[:, side * row : side * (row + 1), side * column : side * (column + 1)] = block
    within = [pixels_of(part, BLOCK * block) for part, block in zip(there, first, strict=True)]
    return torch.from_numpy(field[None, :, *within]).to(device)


@torch.inference_mode()
def project(pixels: np.ndarray, model: store.AnyModel, latents: Tensor, level: int) -> tuple[np.ndarray, float]:
    """Moves pixels [H, W, C] towards pictures that are coded to transmitted latents [1, M, h, w], in steps.

    Latents of the pixels that are further than half a step from the transmitted ones are brought there (in the extreme
    mode, to the codeword itself), and the pixels change by what that changes in the decoded picture. Returns the
    pixels, and the share of their latents that agree with the transmitted ones.
    """
    quality = torch.tensor([model.quality(level)], device=model.device)
    height, width, channels = pixels.shape
    tolerance = TOLERANCE if model.mode == store.FIDELITY else 0.0
    for _ in range(PROJECTIONS):
        found = analyze_latents(model, pixels, quality)
        wanted = latents + (found - latents).clamp(-tolerance, tolerance)
        before, after = (
            synthesize(model, x, level, channels, 8 * pixels.itemsize)[:height, :width] for x in (found, wanted)
        )
        change = after.astype(np.int32) - before
        pixels = (pixels + change).clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return pixels, agreement(model, analyze_latents(model, pixels, quality), latents, level)


def agreement(model: store.AnyModel, found: Tensor, latents: Tensor, level: int) -> float:
    """The share of latents found that are within half a step of others, or that have the same nearest codeword."""
    if isinstance(model, store.ExtremeModel):
        codewords = model.codewords[model.book(level)] / UNIT
        indices = [nearest(x.movedim(1, -1).flatten(0, 2), codewords) for x in (found, latents)]
        return float((indices[0] == indices[1]).float().mean())
    return float(((found - latents).abs() <= TOLERANCE).float().mean())
