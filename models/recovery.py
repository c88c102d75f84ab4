"""Lost indices of the extreme mode, guessed from those around them: a masked transformer, bidirectional.

Trained and sampled like MaskGIT (Chang et al., arXiv 2202.04200), but from the edges of what is lost inwards. Only for
concealment; no symbol depends on it, so it runs in floats.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.models.config import ExtremeConfig

__all__ = ["WINDOW", "Recovery", "nearest_fill", "smooth_fill"]

WINDOW = 16  # positions a side that attend to one another
WIDTH = 128
HEADS = 4
LAYERS = 4
DRAWN = 0.7  # weight of a codeword drawn, against the mean of all
RINGS = 64  # a cell's side
Slices = tuple[slice, ...]  # rows and columns


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
        self.enter = nn.Linear(3 * config.latent + 1, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.leave = nn.Linear(WIDTH, WIDTH)
        self.codeword = nn.Sequential(nn.Linear(config.latent, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, latents: Tensor, known: Tensor, codewords: Tensor) -> Tensor:
        """latents [B, D, h, w], known [B, h, w] bool, codewords [K, D] -> [B, h, w, K]."""
        guesses = smooth_fill(latents, known), nearest_fill(latents, known)
        seen = known[:, None].to(latents)
        x = torch.cat([latents * seen, *guesses, seen], dim=1).movedim(1, -1)
        x = self.leave(self.layers(self.enter(x)))
        return x @ self.codeword(codewords).T * WIDTH**-0.5

    @torch.no_grad()
    def fill(self, latents: Tensor, known: Tensor, codewords: Tensor) -> Tensor:
        """latents [1, D, h, w] with the lost ones replaced; known [h, w] bool, codewords [K, D].

        Ring by ring from what is known. Most of the neighbours known: what is expected there. Else mostly a codeword
        drawn from those that may be there, always the same on one device, because the mean of many is grey. What is
        more than RINGS away from all that is known is filled smoothly.
        """
        filled, known = torch.where(known, latents, 0), known.clone()
        generator = torch.Generator(latents.device).manual_seed(0)
        for _ in range(RINGS):
            share = box(known[None, None].to(latents), 3)[0, 0]
            ring = (share > 0) & ~known
            if not ring.any():
                break
            weight = torch.where(share > 0.5, 0.0, DRAWN)
            for inner, outer in windows_of(ring):
                middle = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
                wanted = ring[inner]
                logits = self(filled[:, :, *outer], known[outer][None], codewords)[0][middle][wanted]
                shares = logits.softmax(dim=-1)
                drawn = codewords[torch.multinomial(shares, 1, generator=generator)[:, 0]]
                guess = torch.lerp(shares @ codewords, drawn, weight[inner][wanted][:, None])
                filled[0, :, *inner][:, wanted] = guess.T
            known |= ring
        return smooth_fill(filled, known[None])


def windows_of(wanted: Tensor) -> Iterator[tuple[Slices, Slices]]:
    """Squares of half a WINDOW with positions that are wanted, bool [h, w], and each with what is around it."""
    half, quarter = WINDOW // 2, WINDOW // 4
    squares = F.max_pool2d(wanted[None, None].float(), half, ceil_mode=True)[0, 0]
    for corner in (half * squares.nonzero()).tolist():
        inner = tuple(slice(start, min(start + half, end)) for start, end in zip(corner, wanted.shape, strict=True))
        outer = tuple(slice(max(0, start - quarter), start + half + quarter) for start in corner)
        yield inner, outer


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


def nearest_fill(latents: Tensor, known: Tensor) -> Tensor:
    """latents [B, D, h, w] with the lost ones replaced by the nearest known; known [B, h, w] bool, h and w small."""
    places = known[0].new_ones(known.shape[1:]).nonzero().float()
    distances = torch.cdist(places, places) + torch.where(known, 0, torch.inf).flatten(1)[:, None]
    nearest = distances.argmin(dim=2)[:, None].expand(-1, latents.shape[1], -1)
    return (latents * known[:, None]).flatten(2).gather(2, nearest).view_as(latents)


def box(x: Tensor, size: int) -> Tensor:
    """Means over squares around each position, zeros beyond the border."""
    x = F.avg_pool2d(x, (size, 1), stride=1, padding=(size // 2, 0))
    return F.avg_pool2d(x, (1, size), stride=1, padding=(0, size // 2))
