"""Training pictures for ``nic train video``: what is left of the frames of clips after their prediction.

The video model is the picture codec, trained further on such pictures and on photographs. So that it meets the
artefacts of its own references, every clip is coded as a video at random qualities with the model that training starts
from, and what the synthesis would have to add to each prediction is kept, around mid-grey.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nic.models.order import coding_order
from nic.models.prior import UNIT
from nic.models.store import Model
from nic.models.video import GREY, predict, search

__all__ = ["residual_pictures"]

SIDE = 512  # pixels of a frame that are used, from its upper left corner on
GROUP_LENGTH = 17
SPANS = (2, 4, 8)
KEY_QUALITIES = (15.0, 50.0)  # quality indices of key frames, drawn uniformly
LOWER = 25.0  # the other frames' index is lower by this


@torch.no_grad()
def residual_pictures(model: Model, clip: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
    """Residual pictures [h, w, 3] uint8 of a clip [T, H, W, 3] uint8, h and w the multiples of 64 below H and W."""
    chance = random.Random(seed)
    height, width = (min(side, SIDE) // 64 * 64 for side in clip.shape[1:3])
    for start in range(0, len(clip), GROUP_LENGTH):
        group = clip[start : start + GROUP_LENGTH, :height, :width]
        frames = torch.from_numpy(group).permute(0, 3, 1, 2).float() / 255
        key = chance.uniform(*KEY_QUALITIES)
        decoded: dict[int, Tensor] = {}
        for coded in coding_order(len(group), chance.choice(SPANS)):
            known = [decoded[reference] for reference in coded.references]
            current = frames[coded.frame : coded.frame + 1]
            prediction = predict(known, search(current, known))
            residual = current - prediction + GREY
            if known:
                yield (residual[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            quality = torch.tensor([max(0.0, key - LOWER) if known else key])
            decoded[coded.frame] = (prediction + reconstruct(model, residual, quality) - GREY).clamp(0, 1)


def reconstruct(model: Model, images: Tensor, quality: Tensor) -> Tensor:
    """Images [1, 3, H, W], sides multiples of 64 and at most 1024, as they come out of the codec."""
    y = model.analysis(images.contiguous(memory_format=torch.channels_last), quality)
    targets = model.prior.targets(y, model.hyper_analysis(y))

    def source(stage: int, means: Tensor, classes: Tensor) -> Tensor:
        return model.codebooks.quantize((targets[stage] - means)[0], classes[0].long())[1][None]

    height, width = y.shape[2:]
    latents = model.prior.decode(height, width, quality, source) / UNIT
    return model.synthesis(latents.contiguous(memory_format=torch.channels_last), quality)
