"""``nic train recovery``: the network that guesses lost indices, for a weight file of the extreme mode."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nic.models import store
from nic.models.config import TrainConfig
from nic.models.extreme import BITS_MIN
from nic.models.prior import UNIT
from nic.models.recovery import WINDOW, Recovery
from nic.models.training.data import read_photos
from nic.models.training.indices import IndexMaps, gather
from nic.models.training.loop import Training

__all__ = ["lose", "train"]

OPTIONS = TrainConfig(batch=8, crop=512, learning_rate=1e-3, warmup_steps=50, clip=1.0, ema=0.99, seed=1)


def lose(count: int, device: torch.device) -> Tensor:
    """Which positions of windows are known, bool [count, WINDOW, WINDOW]: 5 to 60 % lost at random, or a rectangle."""
    rate = 0.05 + 0.55 * torch.rand(count, 1, 1, device=device)
    known = torch.rand(count, WINDOW, WINDOW, device=device) > rate
    for window in known[: count // 2]:
        top, left = torch.randint(WINDOW, (2,)).tolist()
        height, width = torch.randint(WINDOW // 4, WINDOW, (2,)).tolist()
        window[:] = True
        window[top : top + height, left : left + width] = False
    return known


def random_windows(maps: IndexMaps, book: int, count: int, generator: torch.Generator) -> Tensor:
    """Windows [count, WINDOW, WINDOW] of photographs' indices, all of one codebook."""
    device = maps.indices.device
    rows = (maps.book == book).nonzero()[:, 0]
    chosen = maps.indices[rows[torch.randint(len(rows), (count,), generator=generator, device=device)]]
    windows = []
    for indices in chosen:
        inside = indices >= 0
        height, width = int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())
        top, left = (int(torch.rand(1) * max(1, side - WINDOW + 1)) for side in (height, width))
        windows.append(indices[top : top + WINDOW, left : left + WINDOW])
    return torch.stack(windows).long()


def train(
    weights: Path, data: Sequence[Path], run: Path, minutes: float, device: str = "cpu", workers: int = 2
) -> None:
    """Trains the recovery of a weight file, and writes it into that file; its model id stays."""
    training = Training(run, minutes, OPTIONS, device)
    where = training.device
    model = store.load_extreme(weights, str(where))
    maps = gather(model.analysis, model.codewords, read_photos(data, "train", workers), where, passes=1)
    codewords = [book / UNIT for book in model.codewords]
    recovery = Recovery(model.config).to(where)
    generator = torch.Generator(where)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        book = int(maps.book[torch.randint(len(maps.book), (1,), generator=generator, device=where)])
        indices = random_windows(maps, book, OPTIONS.batch, generator)
        known, inside = lose(OPTIONS.batch, where), indices >= 0
        latents = codewords[book][indices.clamp(min=0)].movedim(-1, 1)
        lost = ~known & inside
        logits = recovery(latents, known & inside, codewords[book])[lost].float()
        bits = F.cross_entropy(logits, indices[lost]) / math.log(2) if lost.any() else logits.sum()
        return bits / (book + BITS_MIN), {"bits": bits}

    optimizer = torch.optim.Adam(recovery.parameters(), OPTIONS.learning_rate, fused=True)
    training.fit(recovery, [optimizer], loss, generator.manual_seed, model.config)
    if training.first:
        store.put_network(weights, "recovery", recovery)
    training.close()
