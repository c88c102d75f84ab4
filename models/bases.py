"""Basis codebooks of the extreme mode: what may be added to a codeword, for more bits.

Each position adds one vector of each of four small codebooks, with a weight of its own; weight 0 is a mask: nothing is
sent, and the synthesis does without. An encoder masks what matters least (masked adaptive codebooks: Jiang et al.,
"Neural Image Compression Using Masked Sparse Visual Representation", arXiv 2309.11661; here each basis is fitted to
what the codewords and the bases before it leave).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BASES", "CONTEXTS", "RATE_WEIGHTS", "VECTORS", "WEIGHTS", "Bases", "choices", "choose", "visit"]

BASES = 4
VECTORS = 64  # of each basis
WEIGHTS = (1, 2, 4)  # that a vector may have
CONTEXTS = 12  # of a basis's symbols
# What a bit is worth at the lowest and at the highest quality, in mean squared distances of sibling codewords.
RATE_WEIGHTS = (0.04, 0.002)


def choices(vectors: Tensor) -> Tensor:
    """What each symbol of a basis adds: vectors [..., n, D] -> [..., 1 + 3 n, D]: nothing, then weight by weight."""
    return torch.cat([torch.zeros_like(vectors[..., :1, :]), *(weight * vectors for weight in WEIGHTS)], dim=-2)


def choose(residuals: Tensor, added: Tensor, bits: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Basis by basis, the symbols with the least squared distance + weight * bits: [n, BASES], and their sum [n, D].

    residuals: [n, D]. added: ``choices`` of every basis. bits: [BASES, 2, symbols], after a mask in the basis before
    (as for the first), and after none. weight: [n].
    """
    total = torch.zeros_like(residuals)
    chosen = torch.zeros(len(residuals), 1, dtype=torch.long, device=residuals.device)
    for vectors, cost in zip(added, bits, strict=True):
        distances = torch.addmm(vectors.square().sum(dim=1), residuals - total, vectors.T, alpha=-2)
        symbols = (distances + weight[:, None] * cost[(chosen[:, -1] > 0).long()]).argmin(dim=1)
        total, chosen = total + vectors[symbols], torch.cat([chosen, symbols[:, None]], dim=1)
    return chosen[:, 1:], total


def visit(height: int, width: int, source: Callable[[int, Tensor, Tensor], Tensor], device: torch.device) -> Tensor:
    """The symbols [BASES, height, width] of one cell in coding order, in the encoder and in the decoder.

    Every basis is coded in two parts: where row + column is even, then where it is odd. source: of a basis, the
    positions of the part [height, width] bool and the contexts [n] there, 0 ... 11, gives the symbols [n]. The context
    tells whether the basis before has a mask and, in the second part, how many of the four neighbours have none.
    """
    symbols = torch.zeros(BASES, height, width, dtype=torch.long, device=device)
    odd = (torch.arange(height, device=device)[:, None] + torch.arange(width, device=device)) % 2 == 1
    before = torch.zeros(height, width, dtype=torch.long, device=device)
    for basis in range(BASES):
        symbols[basis][~odd] = source(basis, ~odd, before[~odd])
        known = F.pad((symbols[basis] > 0).long(), (1, 1, 1, 1))
        around = known[:-2, 1:-1] + known[2:, 1:-1] + known[1:-1, :-2] + known[1:-1, 2:]
        symbols[basis][odd] = source(basis, odd, (2 + 5 * before + around)[odd])
        before = (symbols[basis] > 0).long()
    return symbols


class Bases(nn.Module):
    """The basis codebooks, and how many bits their symbols take; all NaN until they are fitted."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.vectors: Tensor
        self.bits: Tensor
        self.register_buffer("vectors", torch.full((BASES, VECTORS, dimension), torch.nan))
        self.register_buffer("bits", torch.full((BASES, 2, 1 + len(WEIGHTS) * VECTORS), torch.nan))

    def forward(self, residuals: Tensor, weight: Tensor) -> Tensor:
        """What is added for residuals [n, D], at a weight of bits [n]: [n, D]."""
        return choose(residuals, choices(self.vectors), self.bits, weight)[1]
