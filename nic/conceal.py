"""Filling lost cells, so that a damaged picture can be looked at."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nic.windows import Slices

__all__ = ["conceal"]

SMOOTHING = 17  # latents along a side that are averaged


@torch.inference_mode()
def conceal(latents: Tensor, lost: list[Slices]) -> None:
    """Fills lost cells of latents [1, M, h, w] from the latents along each side, weighted by 1 / distance.

    Colours go on smoothly; texture, whose latents have either sign, fades. Cells with no intact neighbour become grey.
    """
    if not lost:
        return
    intact = torch.ones(latents.shape[2:], dtype=torch.bool, device=latents.device)
    for rows, columns in lost:
        intact[rows, columns] = False
        latents[:, :, rows, columns] = 0
    filled = latents.clone()
    for rows, columns in lost:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        down = torch.arange(1, height + 1, device=latents.device)[:, None]
        right = torch.arange(1, width + 1, device=latents.device)[None, :]
        sides = (
            (slice(rows.start - 1, rows.start), columns, down),
            (slice(rows.stop, rows.stop + 1), columns, height + 1 - down),
            (rows, slice(columns.start - 1, columns.start), right),
            (rows, slice(columns.stop, columns.stop + 1), width + 1 - right),
        )
        total = torch.zeros_like(filled[:, :, rows, columns])
        weight = torch.full((height, width), 1e-9, device=latents.device)
        for r, c, distance in sides:
            if r.start >= 0 and c.start >= 0 and intact[r, c].numel() and intact[r, c].all():
                total += smooth(latents[:, :, r, c]) / distance
                weight = weight + 1 / distance
        filled[:, :, rows, columns] = total / weight
    latents.copy_(filled)


def smooth(side: Tensor) -> Tensor:
    """A moving average along a row [1, M, 1, n] or a column [1, M, n, 1] of latents."""
    size = tuple(SMOOTHING if length > 1 else 1 for length in side.shape[2:])
    padding = (size[0] // 2, size[1] // 2)
    return F.avg_pool2d(side, size, stride=1, padding=padding, count_include_pad=False)
