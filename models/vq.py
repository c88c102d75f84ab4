"""Shared codebooks: one table of codewords for each scale class, whatever the position, channel or quality.

Residuals come in groups of four latents of one class. The class decides how a group is cut: into one vector of four,
two of two, or four scalars (coarse classes would need too many codewords otherwise). Codewords are fixed point
(1/64 step), so decoding is integer arithmetic. The last symbol of every class that codes anything is the escape: its
components follow as whole steps, from one table that all classes share.

Codebooks come from entropy-constrained vector quantization (Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37, 1989):
a vector's codeword minimises |u - c|^2 + RATE_WEIGHT * bits(c).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nic.models.prior import CLASSES, GROUP, UNIT

__all__ = ["ESCAPE_CLASS", "ESCAPE_MAX", "RATE_WEIGHT", "TOTAL", "Codebook", "Codebooks"]

TOTAL = 2**24  # frequencies of a class sum to this
ESCAPE_CLASS = CLASSES  # the escape table comes after those of the classes
ESCAPE_MAX = 1023  # whole steps; larger components are clipped
# What a bit is worth in squared steps. At high rate, a uniform quantizer of step 1 trades 2 ln 2 / 12 = 0.116.
RATE_WEIGHT = 0.09


@dataclass(frozen=True)
class Codebook:
    """One class's codewords [K, d] (int, fixed point) and frequencies [K + 1], escape last; K = 1 codes nothing."""

    codewords: Tensor
    frequencies: Tensor

    @property
    def dimension(self) -> int:
        return self.codewords.shape[1]

    @property
    def bits(self) -> Tensor:
        return math.log2(TOTAL) - torch.log2(self.frequencies.float())


class Codebooks:
    """All classes' codebooks and the escape table."""

    def __init__(self, books: list[Codebook], escape: Tensor) -> None:
        """``escape``: frequencies [2 * ESCAPE_MAX + 1] of the components -ESCAPE_MAX ... ESCAPE_MAX."""
        self.books = books
        self.escape = escape
        self.escape_bits = math.log2(TOTAL) - torch.log2(escape.float())
        self.codewords = [book.codewords.float() for book in books]
        self.bits = [book.bits for book in books]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For a weight file: all codewords and all frequencies in class order, with their sizes."""
        return {
            "dimensions": np.array([book.dimension for book in self.books], np.uint8),
            "sizes": np.array([len(book.codewords) for book in self.books], np.uint16),
            "codewords": torch.cat([book.codewords.flatten() for book in self.books]).numpy().astype(np.int32),
            "frequencies": np.concatenate(self.frequency_tables()[:-1]),
            "escape": self.frequency_tables()[-1],
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Codebooks":
        dimensions, sizes = arrays["dimensions"].astype(int), arrays["sizes"].astype(int)
        codewords = np.split(arrays["codewords"], np.cumsum(sizes * dimensions)[:-1])
        frequencies = np.split(arrays["frequencies"].astype(np.int64), np.cumsum(sizes + (sizes > 1))[:-1])
        books = [
            Codebook(torch.from_numpy(words.reshape(-1, dimension)), torch.from_numpy(table))
            for words, table, dimension in zip(codewords, frequencies, dimensions, strict=True)
        ]
        return cls(books, torch.from_numpy(arrays["escape"].astype(np.int64)))

    def to(self, device: torch.device) -> "Codebooks":
        books = [Codebook(book.codewords.to(device), book.frequencies.to(device)) for book in self.books]
        return Codebooks(books, self.escape.to(device))

    @cached_property
    def symbols_per_group(self) -> np.ndarray:
        """How many symbols a group of each class sends: int [64]; 0 where the class codes nothing."""
        return np.array([GROUP // book.dimension if len(book.frequencies) > 1 else 0 for book in self.books])

    @cached_property
    def dimensions(self) -> np.ndarray:
        """Latents of a vector in each class: int [64]."""
        return np.array([book.dimension for book in self.books])

    @cached_property
    def escape_symbols(self) -> np.ndarray:
        """The symbol that stands for the escape in each class: int32 [64]; -1 where the class codes nothing."""
        sizes = [len(book.codewords) if len(book.frequencies) > 1 else -1 for book in self.books]
        return np.array(sizes, np.int32)

    def frequency_tables(self) -> list[np.ndarray]:
        """Frequencies of every class, then of the escapes: uint32, each summing to 2^24."""
        return [table.cpu().numpy().astype(np.uint32) for table in [b.frequencies for b in self.books] + [self.escape]]

    def quantize(self, residuals: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals [G, 4] (fixed point, any float) and classes [G] -> symbols [G, 4] int and reconstruction [G, 4].

        Symbol rows hold 4 / d symbols, then zeros. A symbol minimises squared error (in steps) + RATE_WEIGHT * bits.
        """
        order = torch.argsort(classes, stable=True)
        residuals = residuals[order]
        symbols = torch.zeros(residuals.shape, dtype=torch.long, device=residuals.device)
        decoded = torch.empty_like(residuals)
        stop = 0
        for c, count in enumerate(torch.bincount(classes).tolist()):
            start, stop = stop, stop + count
            if not count:
                continue
            dimension = self.books[c].dimension
            if len(self.bits[c]) == 1:
                decoded[start:stop] = self.codewords[c].repeat(1, GROUP // dimension)
                continue
            chosen, values = self.nearest(c, residuals[start:stop].view(-1, dimension))
            symbols[start:stop, : GROUP // dimension] = chosen.view(count, -1)
            decoded[start:stop] = values.view(-1, GROUP)
        places = torch.argsort(order)
        return symbols[places], decoded[places]

    def nearest(self, c: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols [n] and reconstructions [n, d] of vectors [n, d] in class c."""
        codewords, bits = self.codewords[c], self.bits[c]
        cost = torch.addmm(
            codewords.square().sum(dim=1) + RATE_WEIGHT * UNIT**2 * bits[:-1], vectors, codewords.T, alpha=-2
        )
        best, chosen = cost.min(dim=1)
        best += vectors.square().sum(dim=1)
        steps = torch.round(vectors / UNIT).clamp(-ESCAPE_MAX, ESCAPE_MAX)
        escaped_bits = bits[-1] + self.escape_bits[steps.long() + ESCAPE_MAX].sum(dim=1)
        escaped = (vectors - steps * UNIT).square().sum(dim=1) + RATE_WEIGHT * UNIT**2 * escaped_bits < best
        chosen = torch.where(escaped, len(codewords), chosen)
        return chosen, torch.where(escaped[:, None], steps * UNIT, codewords[chosen.clamp(max=len(codewords) - 1)])

    def mask(
        self, residuals: Tensor, classes: Tensor, symbols: Tensor, decoded: Tensor, rate: float
    ) -> tuple[Tensor, Tensor]:
        """``quantize``'s symbols and reconstruction, with a share of the coded groups left at their expected value.

        That is their class's likeliest codeword. The groups are those whose rate-distortion cost rises least.
        """
        likeliest = [int(bits[: len(words)].argmin()) for bits, words in zip(self.bits, self.codewords, strict=True)]
        coded = torch.tensor([len(bits) > 1 for bits in self.bits], device=classes.device)[classes]
        expected_symbols, expected = torch.zeros_like(symbols), torch.zeros_like(decoded)
        saved = torch.zeros(len(classes), device=decoded.device)  # bits
        for c in classes[coded].unique().tolist():
            rows, count = classes == c, GROUP // self.books[c].dimension
            expected_symbols[rows, :count] = likeliest[c]
            expected[rows] = self.codewords[c][likeliest[c]].repeat(count)
            saved[rows] = (self.bits[c][symbols[rows, :count]] - self.bits[c][likeliest[c]]).sum(dim=1)
        error = (residuals - expected).square().sum(dim=1) - (residuals - decoded).square().sum(dim=1)
        rise = (error / UNIT**2 - RATE_WEIGHT * saved).masked_fill(~coded, math.inf)
        masked = rise.argsort(stable=True)[: int(rate * int(coded.sum()))]
        symbols[masked], decoded[masked] = expected_symbols[masked], expected[masked]
        return symbols, decoded

    @cached_property
    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The components of all codewords, where each class's start [64], and its last codeword [64]: all int32."""
        sizes = np.array([book.codewords.numel() for book in self.books])
        components = torch.cat([book.codewords.flatten() for book in self.books]).cpu().numpy().astype(np.int32)
        starts = (np.cumsum(sizes) - sizes).astype(np.int32)
        return components, starts, (sizes // self.dimensions - 1).astype(np.int32)

    def dequantize(self, symbols: np.ndarray, classes: np.ndarray, escapes: np.ndarray) -> np.ndarray:
        """What a decoder does: symbols [G, 4] as above, classes [G], escape components in order -> int [G, 4]."""
        components, starts, last = self.flat
        decoded = np.empty((len(classes), GROUP), np.int32)
        for dimension in np.unique(self.dimensions):
            rows = np.flatnonzero(self.dimensions[classes] == dimension)
            mine = classes[rows, None]
            places = starts[mine] + dimension * np.minimum(symbols[rows, : GROUP // dimension], last[mine])
            decoded[rows] = components[places[:, :, None] + np.arange(dimension)].reshape(-1, GROUP)
        decoded[self.escaped(symbols, classes)] = escapes * UNIT
        return decoded

    def escaped(self, symbols: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Which components [G, 4] are escaped."""
        size = self.escape_symbols[classes][:, None]
        if not (symbols == size).any():
            return np.zeros(symbols.shape, bool)
        owner = np.arange(GROUP) // self.dimensions[classes][:, None]
        return np.take_along_axis(symbols, owner, axis=1) == size
