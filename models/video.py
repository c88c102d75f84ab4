"""What a clip adds to the picture codec: frames predicted from decoded ones, and the network fitted to the clip.

A frame is its prediction plus what the frame's own latents add, filtered together. The prediction fetches one or two
decoded frames along the vectors of blocks of 8x8 pixels and blends them over the blocks' borders (overlapped block
motion compensation: Orchard and Sullivan, IEEE Trans. Image Processing, 1994). Key frames are predicted as mid-grey,
so that they are pictures like any other. The synthesis is the clip's own: the shipped weights plus a coded difference
(HNeRV: Chen et al., arXiv 2304.02633, stores all of them).

A frame's motion is a *field*: int [1, 5, h, w], for each block the vector against the first reference and that against
the second, x and y in quarters of a pixel, and which of them count: BOTH, FIRST or SECOND. It decides pixels only,
never symbols.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nic.models.transforms import GREY

__all__ = ["BLOCK", "BOTH", "FIRST", "SECOND", "VECTOR_UNIT", "enlarged", "predict", "warp"]

BLOCK = 8  # pixels a side
VECTOR_UNIT = 0.25  # pixels
BOTH, FIRST, SECOND = range(3)


def enlarged(x: Tensor, times: int) -> Tensor:
    """x [B, C, h, w] with every number repeated ``times`` in both directions."""
    return x.repeat_interleave(times, 2).repeat_interleave(times, 3)


def warp(frame: Tensor, vectors: Tensor, mode: str = "bicubic") -> Tensor:
    """frame [1, C, H, W] fetched at each pixel plus its vector [1, 2, H, W] in pixels (x, y); borders repeat."""
    height, width = frame.shape[2:]
    rows = torch.arange(height, device=frame.device)[:, None] + vectors[0, 1]
    columns = torch.arange(width, device=frame.device) + vectors[0, 0]
    return fetch(frame, rows, columns, mode)


def fetch(frame: Tensor, rows: Tensor, columns: Tensor, mode: str = "bicubic") -> Tensor:
    """frame [1, C, H, W] at places between its pixels, rows and columns [h, w] -> [1, C, h, w]."""
    height, width = frame.shape[2:]
    places = torch.stack([columns * (2 / (width - 1)) - 1, rows * (2 / (height - 1)) - 1], dim=-1)
    return F.grid_sample(frame, places[None], mode=mode, padding_mode="border", align_corners=True)


def predict(references: list[Tensor], field: Tensor) -> Tensor:
    """The prediction [1, 3, H, W] from 0, 1 or 2 decoded frames of that size.

    A pixel sees its own block and the three nearest to it, by bilinear weights of the blocks' middles.
    """
    height, width = (BLOCK * side for side in field.shape[2:])
    if not references:
        return torch.full((1, 3, height, width), GREY, device=field.device)
    (above, below, down), (left, right, across) = (neighbours(side, field.device) for side in (height, width))
    states, number = field[0].flatten(1).unique(dim=1, return_inverse=True)
    number = number.view(field.shape[2:])
    corners = [
        (number[rows][:, columns].flatten(), (down_share[:, None] * across_share).flatten())
        for rows, down_share in ((above, 1 - down), (below, down))
        for columns, across_share in ((left, 1 - across), (right, across))
    ]
    prediction = torch.zeros(3, height * width, device=field.device)
    for corner, (block, share) in enumerate(corners):
        for other, others_share in corners[corner + 1 :]:  # what several corners agree on is fetched once
            same = block == other
            share.addcmul_(others_share, same)
            others_share.masked_fill_(same, 0)
        for index, frame in enumerate(references):
            weight = share * torch.tensor([0.5, index == 0, index == 1], device=field.device)[states[4].long()][block]
            places = weight.nonzero()[:, 0]
            x, y = states[2 * index : 2 * index + 2].float()[:, block[places]] * VECTOR_UNIT
            rows, columns = places // width + y, places % width + x
            prediction[:, places] += weight[places] * fetch(frame, rows[None], columns[None])[0, :, 0]
    return prediction.view(1, 3, height, width).clamp_(0, 1)


def neighbours(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``size`` pixels in a line: the blocks whose middles it lies between, and the second one's weight."""
    place = (torch.arange(size, device=device) + 0.5) / BLOCK - 0.5
    first = place.floor().long()
    return first.clamp(min=0), (first + 1).clamp(max=size // BLOCK - 1), place - first
