"""The adaptive filter: what an encoder adds to the decoded pixels of a cell, because no network knows this picture.

It is VVC's adaptive loop filter (Karczewicz et al., "VVC In-Loop Filters", IEEE Trans. Circuits and Systems for Video
Technology 31, 2021) after the synthesis: differences between a pixel and those around it, clipped and not, each pair
that lies opposite times a coefficient found by least squares. It works in luma and two colours.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["COEFFICIENT_MAX", "COUNTS", "LIMITS", "REACH", "AdaptiveFilter", "fit"]

REACH = 3  # pixels
# One of each pair around a pixel: (row, column). The first NEAR are those of a smaller diamond.
OFFSETS = ((0, 1), (1, 0), (0, 2), (1, -1), (1, 1), (2, 0), (0, 3), (1, -2), (1, 2), (2, -1), (2, 1), (3, 0))
NEAR = 6
# What each plane's coefficients are for, (plane, pair): luma itself; nearest pairs of a colour, luma, the other colour.
INPUTS = tuple(
    tuple((source, pair) for source in sources for pair in range(len(OFFSETS) if plane == 0 else NEAR))
    for plane, sources in enumerate(((0,), (1, 0, 2), (2, 0, 1)))
)
TERMS = tuple((clipped, pair) for clipped in (0, 1) for pair in range(len(OFFSETS)))
COUNTS = tuple(2 * len(inputs) for inputs in INPUTS)  # coefficients of each plane: of differences as they are, clipped
STEP = 1 / 128  # of a coefficient
COEFFICIENT_MAX = 255
LIMITS = 64  # where differences may be clipped: 2^(-i/4)
COLOURS = ((1, 1, 1), (1, 0, -1), (-1, 2, -1))  # luma and two colours of R, G and B, but for their lengths
ROWS = 128  # pixels that are fitted at once
PASSES = 3  # over all coefficients


@dataclass(frozen=True)
class AdaptiveFilter:
    """Coefficients of luma and two colours, and where differences are clipped: at 2^(-limit/4).

    coefficients: for each plane COUNTS[plane] whole steps of STEP, those of differences as they are before those of
    clipped ones, in the order of INPUTS.
    """

    coefficients: tuple[np.ndarray, ...]
    limit: int

    @classmethod
    def from_array(cls, numbers: np.ndarray) -> "AdaptiveFilter":
        """Of what ``to_array`` makes."""
        return cls(tuple(np.split(numbers[:-1].astype(int), np.cumsum(COUNTS)[:-1])), int(numbers[-1]))

    def to_array(self) -> np.ndarray:
        """Coefficients, plane after plane, and the limit: int16 [sum of COUNTS + 1]."""
        return np.concatenate([*self.coefficients, [self.limit]]).astype(np.int16)

    def __call__(self, images: Tensor) -> Tensor:
        """Filters images [1, 3, H, W], which are clamped to [0, 1]. Beyond their borders, the last pixel goes on."""
        planes = to_planes(images)
        around, total = padded(planes), list(torch.zeros_like(planes))
        weights = [STEP * chosen.reshape(2, -1) for chosen in self.coefficients]
        for clipped, pair in TERMS:
            used = [(use, weight) for use in uses(pair) if (weight := float(weights[use.plane][clipped, use.place]))]
            if used:
                seen = differences(around, pair, self.limit if clipped else None)
                for use, weight in used:
                    total[use.plane] = torch.add(total[use.plane], seen[use.source], alpha=weight)
        return images.clamp(0, 1) + torch.einsum("ji,jhw->ihw", basis(planes), torch.stack(total))[None]


class Use(NamedTuple):
    """Where the differences of a pair count: the plane, the number of its input, and the plane that they are of."""

    plane: int
    place: int
    source: int


def uses(pair: int) -> Iterator[Use]:
    for plane, inputs in enumerate(INPUTS):
        for place, (source, number) in enumerate(inputs):
            if number == pair:
                yield Use(plane, place, source)


def basis(like: Tensor) -> Tensor:
    """The orthonormal luma and colours of R, G and B: [3, 3]."""
    rows = torch.tensor(COLOURS, dtype=torch.float64)
    return (rows / rows.norm(dim=1, keepdim=True)).to(like)


def to_planes(images: Tensor) -> Tensor:
    """Luma and colours [3, H, W] of images [1, 3, H, W] that are clamped to [0, 1]."""
    return torch.einsum("ij,jhw->ihw", basis(images), images[0].clamp(0, 1))


def padded(planes: Tensor) -> Tensor:
    """Planes [C, H, W] with REACH more pixels on each side."""
    return F.pad(planes[None], (REACH,) * 4, mode="replicate")[0]


def differences(around: Tensor, pair: int, limit: int | None) -> Tensor:
    """Both differences of a pair together, clipped where there is a limit: [3, H, W] of ``padded`` planes.

    Of pairs beyond the nearest, which colours do not use, those of luma: [1, H, W].
    """
    around = around if pair < NEAR else around[:1]
    row, column = OFFSETS[pair]
    height, width = around.shape[1:]
    right, left = max(column, 0), max(-column, 0)
    ahead = around[:, row:, right : width - left] - around[:, : height - row, left : width - right]  # from column left
    if limit is not None:
        ahead = ahead.clamp(-(2 ** (-limit / 4)), 2 ** (-limit / 4))

    def at(row: int, column: int) -> Tensor:
        top, start = REACH + row, REACH + column - left
        return ahead[:, top : top + height - 2 * REACH, start : start + width - 2 * REACH]

    return at(0, 0) - at(-row, -column)


@torch.no_grad()
def fit(
    images: Tensor,
    originals: Tensor,
    corner: tuple[int, int],
    worth: float,
    bits: np.ndarray,
    grey: bool,
) -> AdaptiveFilter:
    """The filter that lowers rate and distortion most; a plane's coefficients are all 0 where none does.

    images: decoded, [1, 3, H, W]; originals [1, 3, h, w] start at the row and column ``corner`` of them. worth: of a
    squared error, in bits. bits: of the coefficients from -COEFFICIENT_MAX on. grey: only luma counts.
    """
    (top, left), (height, width) = corner, originals.shape[2:]
    errors = to_planes(originals) - to_planes(images[:, :, top : top + height, left : left + width])
    deviation = float(errors[0].square().mean().sqrt())
    limit = min(max(round(-4 * math.log2(max(deviation, 1e-9))), 0), LIMITS - 1)
    squares = [np.zeros((count, count)) for count in COUNTS]
    products = [np.zeros(count) for count in COUNTS]
    for start in range(0, height, ROWS):
        stop = min(start + ROWS, height)
        first, last = max(top + start - REACH, 0), min(top + stop + REACH, images.shape[2])
        inside = slice(top + start - first, top + stop - first), slice(left, left + width)
        seen = features(to_planes(images[:, :, first:last]), limit, inside)
        for plane, (made, error) in enumerate(zip(seen, errors[:, start:stop].flatten(1), strict=True)):
            squares[plane] += (made @ made.T).cpu().double().numpy()
            products[plane] += (made @ error).cpu().double().numpy()
    chosen = [np.zeros(count, int) for count in COUNTS]
    for plane in range(1 if grey else len(COUNTS)):
        chosen[plane] = quantize(worth * STEP**2 * squares[plane], worth * STEP * products[plane], bits)
    return AdaptiveFilter(tuple(chosen), limit)


def features(planes: Tensor, limit: int, inside: tuple[slice, slice]) -> list[Tensor]:
    """What the coefficients of each plane are for, at the pixels inside: [COUNTS[plane], n] each."""
    size = [side.stop - side.start for side in inside]
    around, made = padded(planes), [planes.new_empty(2, count // 2, *size) for count in COUNTS]
    for clipped, pair in TERMS:
        seen = differences(around, pair, limit if clipped else None)
        for use in uses(pair):
            made[use.plane][clipped, use.place] = seen[use.source, *inside]
    return [each.view(len(each) * each.shape[1], -1) for each in made]


def quantize(squares: np.ndarray, products: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Integers v [n], chosen one after another, for a low v'Sv - 2 p'v and few bits; all 0 unless that is worth it."""
    size = len(products)
    scale = np.trace(squares) / size
    best = np.linalg.solve(squares + 1e-7 * scale * np.eye(size), products) if scale > 0 else np.zeros(size)
    chosen = np.rint(best.clip(-COEFFICIENT_MAX, COEFFICIENT_MAX)).astype(int)
    for _ in range(PASSES):
        for i, curvature in enumerate(squares.diagonal()):
            slope = squares[i] @ chosen - curvature * chosen[i] - products[i]
            middle = -slope / max(curvature, 1e-9)
            around = np.floor([middle / 2, middle / 2 + 1, middle, middle + 1, 0, chosen[i]])
            tried = around.clip(-COEFFICIENT_MAX, COEFFICIENT_MAX).astype(int)
            costs = curvature * tried**2 + 2 * slope * tried + bits[tried + COEFFICIENT_MAX]
            chosen[i] = tried[costs.argmin()]
    cost = chosen @ squares @ chosen - 2 * products @ chosen + bits[chosen + COEFFICIENT_MAX].sum()
    return chosen if cost < 0 else np.zeros(size, int)
