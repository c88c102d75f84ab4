"""Refinement: a flow from decoded pictures to photographs, for the detail that the bits could not carry.

A decoded picture plus a little noise is where a rectified flow starts that ends at the photograph, as in Ohayon et al.,
"Posterior-Mean Rectified Flow", arXiv 2410.00418: x_t = (1 - t) (decoded + noise) + t photograph. The network gives
the end of the line through x_t, not its direction, because pictures are fewer-dimensional than noise (Li and He, "Back
to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720); so a single step ends at a picture, too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.models.config import RefinerConfig
from nic.models.transforms import LATENT, PATCH, QUALITY_INDICES, PostFilter, blocks, filter_reach

__all__ = ["NOISE", "Refiner", "euler", "reach"]

NOISE = 0.03  # standard deviation, of pixels in [0, 1]
CONDITION = 64  # channels that time, quality and mode are turned into


class Refiner(nn.Module):
    """A U-net of two resolutions, 1/8 and 1/16, and a post-filter, from the blocks of the codecs' transforms."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        trunk, deep = config.trunk, config.deep
        self.widths = (trunk, deep, trunk)
        self.patch = nn.Conv2d(6 * PATCH**2, trunk, 1)
        self.enter = blocks(trunk, config.trunk_blocks)
        self.down = nn.Conv2d(4 * trunk, deep, 1)
        self.deep = blocks(deep, config.deep_blocks)
        self.up = nn.Conv2d(deep, 4 * trunk, 1)
        self.leave = blocks(trunk, config.trunk_blocks)
        self.pixels = nn.Conv2d(trunk, 3 * PATCH**2, 1)
        nn.init.zeros_(self.pixels.weight)  # the decoded picture comes first
        nn.init.zeros_(self.pixels.bias)
        self.filter = PostFilter(config) if config.filter else None
        self.condition = nn.Sequential(
            nn.Linear(3, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION), nn.SiLU(),
            nn.Linear(CONDITION, 2 * sum(self.widths)),
        )  # fmt: skip

    def forward(self, state: Tensor, decoded: Tensor, time: Tensor, quality: Tensor, extreme: Tensor) -> Tensor:
        """The photographs [B, 3, H, W] that are expected, nominally in [0, 1]; H and W multiples of 16.

        state: x_t, as the pictures; decoded: the pictures [B, 3, H, W] in [0, 1]; time [B] in [0, 1); quality [B] in
        [0, 63], of the codec's mode; extreme [B] bool, whether it is that mode.
        """
        known = torch.stack([time, quality / (QUALITY_INDICES - 1), extreme.to(time)], dim=1)
        tuned = self.condition(known)[:, :, None, None].split([2 * width for width in self.widths], dim=1)
        x = self.patch(F.pixel_unshuffle(torch.cat([state - decoded, decoded - 0.5], dim=1), PATCH))
        skip = self.enter(modulate(x, tuned[0]))
        x = self.deep(modulate(self.down(F.pixel_unshuffle(skip, 2)), tuned[1]))
        x = self.leave(modulate(skip + F.pixel_shuffle(self.up(x), 2), tuned[2]))
        images = decoded + F.pixel_shuffle(self.pixels(x), PATCH)
        return self.filter(images, x, quality) if self.filter else images


def modulate(x: Tensor, gain_and_offset: Tensor) -> Tensor:
    """x [B, C, h, w] scaled by 1 + gain and shifted, from [B, 2 C, 1, 1]."""
    gain, offset = gain_and_offset.chunk(2, dim=1)
    return x * (1 + gain) + offset


def euler(state: Tensor, end: Tensor, start: float, stop: float) -> Tensor:
    """x at time ``stop``, from x at ``start`` and the expected end of the line."""
    return torch.lerp(state, end, (stop - start) / (1 - start))


def reach(config: RefinerConfig) -> int:
    """How far pixels depend on others, in units of 16 pixels."""
    filtered = -(-filter_reach(config) // LATENT)
    return config.deep_blocks + 2 * -(-config.trunk_blocks // 2) + filtered + 1  # colours see those around, too
