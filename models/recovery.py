"""Lost indices of the extreme mode, guessed from those around them: a masked transformer, bidirectional.

Trained like MaskGIT (Chang et al., arXiv 2202.04200), but it answers in one pass: each lost position gets the mean of
the codewords that it may have. Only for concealment; no symbol depends on it, so it runs in floats.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.models.config import ExtremeConfig

__all__ = ["WINDOW", "Recovery", "smooth_fill"]

WINDOW = 16  # positions a side that attend to one another
WIDTH = 128
HEADS = 4
LAYERS = 4


class Layer(nn.Module):
    """A depthwise convolution that tells positions apart, attention, and a feed-forward network, all residual."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, h, w, C]."""
        x = x + self.spatial(x.movedim(-1, 1)).movedim(1, -1)
        tokens = self.attend(self.first(x)).flatten(1, 2).unflatten(2, (3, HEADS, -1))
        query, key, value = tokens.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2).view(x.shape)
        x = x + self.merge(mixed)
        return x + self.contract(F.gelu(self.expand(self.second(x))))


class Recovery(nn.Module):
    """Latents of a window and which are known -> logits of every codeword at every position."""

    def __init__(self, config: ExtremeConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(2 * config.latent + 1, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.leave = nn.Linear(WIDTH, WIDTH)
        self.codeword = nn.Sequential(nn.Linear(config.latent, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, latents: Tensor, known: Tensor, codewords: Tensor) -> Tensor:
        """latents [B, D, h, w], known [B, h, w] bool, codewords [K, D] -> [B, h, w, K]."""
        known = known[:, None].to(latents)
        guess = smooth_fill(latents, known[:, 0] > 0)
        x = torch.cat([latents * known, guess, known], dim=1).movedim(1, -1)
        x = self.leave(self.layers(self.enter(x)))
        return x @ self.codeword(codewords).T * WIDTH**-0.5

    @torch.no_grad()
    def fill(self, latents: Tensor, known: Tensor, codewords: Tensor) -> Tensor:
        """latents [1, D, h, w] with the lost ones replaced by what is expected there; known [h, w] bool.

        Window by window, each beginning half a window after the last; only its middle counts.
        """
        filled = smooth_fill(latents, known[None])
        height, width = known.shape
        quarter = WINDOW // 4
        for top in range(0, height, WINDOW // 2):
            for left in range(0, width, WINDOW // 2):
                inner = slice(top, min(top + WINDOW // 2, height)), slice(left, min(left + WINDOW // 2, width))
                if known[inner].all():
                    continue
                outer = tuple(slice(max(0, s.start - quarter), s.stop + quarter) for s in inner)
                seen = known[outer]
                if not seen.any():
                    continue
                logits = self(latents[:, :, *outer], seen[None], codewords)[0]
                middle = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
                expected = (logits[middle].softmax(dim=-1) @ codewords).movedim(-1, 0)
                filled[0, :, *inner] = torch.where(known[inner], latents[0, :, *inner], expected)
        return filled


def smooth_fill(latents: Tensor, known: Tensor) -> Tensor:
    """latents [B, D, h, w] with the lost ones replaced by means of those nearby; known [B, h, w] bool.

    Each takes the smallest square around it, of sides 3, 5, 9, 17, ..., that has a known latent; zeros without any.
    """
    weight = known[:, None].to(latents)
    filled, missing, size = latents * weight, ~known[:, None], 3
    while missing.any() and size <= 4 * max(latents.shape[2:]):
        total, share = box(latents * weight, size), box(weight, size)
        found = missing & (share > 1e-9)
        filled = torch.where(found, total / share.clamp(min=1e-9), filled)
        missing, size = missing & ~found, 2 * size - 1
    return filled


def box(x: Tensor, size: int) -> Tensor:
    """Means over squares around each position, zeros beyond the border."""
    x = F.avg_pool2d(x, (size, 1), stride=1, padding=(size // 2, 0))
    return F.avg_pool2d(x, (1, size), stride=1, padding=(0, size // 2))
