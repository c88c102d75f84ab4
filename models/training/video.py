"""``nic train residuals``: what is left of the frames of clips after their prediction, to train the codec of videos on.

The video model is the picture codec, trained further on such pictures and on photographs. So that it meets the
artefacts of its own references, every clip is coded as a video at random qualities with an earlier model, and what the
synthesis would have to add to each prediction is kept, around mid-grey. Photographs in motion add what few clips lack:
many contents.
"""

import math
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nic.models.motion import choose, search
from nic.models.order import coding_order
from nic.models.prior import UNIT
from nic.models.store import Model
from nic.models.transforms import GREY, bits_per_error
from nic.models.video import predict

__all__ = ["in_motion", "residual_pictures"]

SIDE = 512  # pixels of a frame that are used, from its upper left corner on
GROUP_LENGTH = 17
SPANS = (2, 4, 8)
KEY_QUALITIES = (15.0, 50.0)  # quality indices of key frames, drawn uniformly
LOWER = 25.0  # the other frames' index is lower by this
MOVING_SIDE = 320  # pixels of a frame of photographs in motion
SPEED = 6.0  # pixels a frame of the fastest


@torch.no_grad()
def residual_pictures(model: Model, clip: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
    """Residual pictures [h, w, 3] uint8 of a clip [T, H, W, 3] uint8, h and w the multiples of 64 below H and W."""
    chance = random.Random(seed)
    height, width = (min(side, SIDE) // 64 * 64 for side in clip.shape[1:3])
    for start in range(0, len(clip), GROUP_LENGTH):
        group = clip[start : start + GROUP_LENGTH, :height, :width]
        frames = torch.from_numpy(group).to(model.device).permute(0, 3, 1, 2).float() / 255
        key = chance.uniform(*KEY_QUALITIES)
        decoded: dict[int, Tensor] = {}
        for coded in coding_order(len(group), chance.choice(SPANS)):
            known = [decoded[reference] for reference in coded.references]
            current = frames[coded.frame : coded.frame + 1]
            quality = torch.tensor([max(0.0, key - LOWER) if known else key], device=model.device)
            found = [search(current, frames[reference : reference + 1]) for reference in coded.references]
            field = choose(current, known, found, float(bits_per_error(quality, model.config)))
            prediction = predict(known, field)
            residual = current - prediction + GREY
            if known:
                yield (residual[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            decoded[coded.frame] = reconstruct(model, residual, quality, prediction).clamp(0, 1)


def reconstruct(model: Model, residual: Tensor, quality: Tensor, prediction: Tensor) -> Tensor:
    """Frames [1, 3, H, W], sides multiples of 64 and at most 1024, as they come out of the codec."""
    y = model.analysis(residual.contiguous(memory_format=torch.channels_last), quality)
    targets = model.prior.targets(y, model.hyper_analysis(y))

    def source(stage: int, means: Tensor, classes: Tensor) -> Tensor:
        return model.codebooks.reconstruct((targets[stage] - means)[0], classes[0])[None]

    height, width = y.shape[2:]
    latents = model.prior.decode(height, width, quality, source) / UNIT
    return model.synthesis(latents.contiguous(memory_format=torch.channels_last), quality, prediction)


def in_motion(photos: list[np.ndarray], seed: int) -> np.ndarray:
    """A clip [T, S, S, 3] uint8: one of photographs [H, W, 3] uint8, and a disc of another one that moves before it.

    Both pan, turn and grow at speeds of their own; the disc covers and uncovers what is behind it.
    """
    chance = random.Random(seed)
    moves = [Move(chance), Move(chance)]
    radius, middle = chance.uniform(0.2, 0.7), torch.tensor([chance.uniform(-0.5, 0.5) for _ in range(2)])
    pictures = [torch.from_numpy(pixels).permute(2, 0, 1)[None].float() for pixels in chance.sample(photos, 2)]
    frames = []
    for index in range(GROUP_LENGTH):
        behind, before = (move.apply(picture, index) for move, picture in zip(moves, pictures, strict=True))
        distance = (moves[1].places(index) - middle).square().sum(dim=-1).sqrt()
        share = ((radius - distance) * MOVING_SIDE / 2 + 0.5).clamp(0, 1)
        frames.append(torch.lerp(behind, before, share))
    clip: np.ndarray = torch.cat(frames).clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    return clip


class Move:
    """A random steady motion of a square window."""

    def __init__(self, chance: random.Random) -> None:
        speed, direction = SPEED * chance.random() ** 2, chance.uniform(0, 2 * math.pi)
        self.pan = [speed * math.cos(direction), speed * math.sin(direction)]
        self.turn, self.growth = chance.gauss(0, 0.004), chance.gauss(0, 0.004)  # a frame

    def places(self, frame: int) -> Tensor:
        """Where the pixels of a frame come from, [S, S, 2]: x and y in half windows from the middle."""
        time = frame - GROUP_LENGTH / 2
        line = (torch.arange(MOVING_SIDE) + 0.5) * (2 / MOVING_SIDE) - 1
        y, x = torch.meshgrid(line, line, indexing="ij")
        size, cos, sin = math.exp(self.growth * time), math.cos(self.turn * time), math.sin(self.turn * time)
        shift = torch.tensor(self.pan) * (2 * time / MOVING_SIDE)
        return size * torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) + shift

    def apply(self, picture: Tensor, frame: int) -> Tensor:
        """The window [1, 3, S, S] of a picture [1, 3, H, W], mirrored at its borders."""
        scale = MOVING_SIDE / torch.tensor(picture.shape[:1:-1])
        places = (self.places(frame) * scale)[None]
        return F.grid_sample(picture, places, mode="bicubic", padding_mode="reflection", align_corners=False)
