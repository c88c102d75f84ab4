"""Encoder-side search: more time for a smaller file at the same quality; decoding stays the same.

The analysis network knows nothing of where a latent was rounded to. Here, each iteration decodes the picture, asks
the synthesis which way every latent should move, codes those better targets, and keeps what has the lowest
rate-distortion cost. It is the Gauss-Newton method with nearly the curvature that the codebooks assume: an error of
one quantization step costs 1 / RATE_WEIGHT bits. (Yang, Bamler and Mandt, "Improving Inference for Neural Image
Compression", arXiv 2006.04240, anneal a relaxed quantizer to the same end.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nic.bitstream.entropy import Encoder
from nic.errors import UsageError
from nic.models.store import Model
from nic.models.transforms import bits_per_error
from nic.models.vq import RATE_WEIGHT

__all__ = ["ITERATIONS", "Coded", "check_options", "search_latents", "worth_of"]

ITERATIONS = {1: 0, 2: 1, 3: 3, 4: 8, 5: 12, 6: 16, 7: 24, 8: 40, 9: 75}  # for each effort
CURVATURE = 0.9 / RATE_WEIGHT  # half the second derivative of the cost in a latent, bits per squared step; measured
DAMPING = 0.3  # share of the way to the new targets
BACK_OFF = 0.6  # what DAMPING is multiplied by after a step that made it worse


def check_options(effort: int, quality: float | None, **targets: float | None) -> None:
    """Raises UsageError for a quality or an effort that there is not, and for what cannot be met together."""
    given = [target for target in targets.values() if target is not None]
    if len(given) + (quality is not None) > 1:
        *others, last = "quality", *targets
        raise UsageError(f"give only one of {', '.join(others)} and {last}")
    if not all(0 < target < math.inf for target in given):
        *others, last = targets
        raise UsageError(f"{', '.join(others)} and {last} must be positive and finite")
    if quality is not None and not 0 <= quality <= 100:
        raise UsageError(f"quality {quality:g} is outside 0 to 100")
    if effort not in ITERATIONS:
        raise UsageError(f"effort {effort} is outside 1 to 9")


def worth_of(model: Model, level: int) -> float:
    """What a squared error of one sample, in [0, 1], counts at a quality level, in bits."""
    return bits_per_error(torch.tensor([model.quality(level)]), model.config)


@dataclass(frozen=True)
class Coded:
    """Cells as they are being written, and the latents [1, M, h, w] in steps that they decode to."""

    cells: tuple[Encoder, ...]
    latents: Tensor

    @property
    def bits(self) -> float:
        return sum(cell.bits for cell in self.cells)


# What the error of latents is worth, in bits, and its gradient in them if that is wanted.
Distortion = Callable[[Tensor, bool], tuple[float, Tensor | None]]


def search_latents(code: Callable[[Tensor], Coded], distortion: Distortion, y: Tensor, steps: int) -> Coded:
    """The best of ``steps`` iterations from the targets y [1, M, h, w] and of y itself. code: codes targets."""
    best, best_cost, origin, target, damping = None, float("inf"), y, y, DAMPING
    for step in range(steps + 1):
        coded = code(y)
        error, gradient = distortion(coded.latents, step < steps)
        if coded.bits + error < best_cost:
            best, best_cost = coded, coded.bits + error
            if gradient is not None:
                origin, target = y, coded.latents - gradient / (2 * CURVATURE)
        else:
            damping *= BACK_OFF
        y = torch.lerp(origin, target, damping)
    assert best is not None
    return best
