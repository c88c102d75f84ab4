"""Filling lost cells, so that a damaged picture can be looked at."""

import torch
from torch import Tensor

from nic.windows import Slices

__all__ = ["conceal"]


@torch.inference_mode()
def conceal(latents: Tensor, lost: list[Slices]) -> None:
    """Fills lost cells of latents [1, M, h, w] from the nearest latents on each side, weighted by 1 / distance.

    Coarse content goes on smoothly, texture fades. Cells with no intact neighbour become grey.
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
        total, weight = torch.zeros_like(filled[:, :, rows, columns]), torch.full((height, width), 1e-9)
        for r, c, distance in sides:
            if r.start >= 0 and c.start >= 0 and intact[r, c].numel() and intact[r, c].all():
                total += latents[:, :, r, c] / distance
                weight = weight + 1 / distance
        filled[:, :, rows, columns] = total / weight
    latents.copy_(filled)
