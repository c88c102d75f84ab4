"""Shared codebooks: one table of codewords for each scale class, whatever the position, channel or quality.

Residuals come in groups of four latents of one class, or nearly: those that follow each other when all latents of a
stage are sorted by class. A group's class decides how it is cut: into one vector of four, two of two, or four scalars
(coarse classes would need too many codewords otherwise). Scalars may have two codebooks, of which a trellis takes one
or the other (nic/models/trellis.py). Codewords are fixed point (1/64 step), so decoding is integer arithmetic. The last
symbol of every class that codes anything is the escape: its components follow as whole steps, from one table that all
classes share.

Codebooks come from entropy-constrained vector quantization (Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37, 1989):
a vector's codeword minimises |u - c|^2 + RATE_WEIGHT * bits(c).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nic.models.prior import CLASSES, UNIT
from nic.models.trellis import Walk, best_path, rounds_of

__all__ = [
    "ESCAPE_CLASS",
    "ESCAPE_MAX",
    "GROUP",
    "ODD",
    "RATE_WEIGHT",
    "TOTAL",
    "Code",
    "Codebook",
    "Codebooks",
    "Places",
    "bits_of",
    "in_groups",
]

GROUP = 4  # latents that are coded together
TOTAL = 2**24  # frequencies of a class sum to this
ESCAPE_CLASS = CLASSES  # the escape table comes after those of the classes
ODD = CLASSES + 1  # and behind it those of the odd codebooks, in class order
TABLED = 16 * 64  # how far from the mean a trellis' choices are looked up instead of computed, fixed point
ESCAPE_MAX = 1023  # whole steps; larger components are clipped
NEARBY = 2  # codewords on each side of the nearest one that a trellis may take
# What a bit is worth in squared steps. At high rate, a uniform quantizer of step 1 trades 2 ln 2 / 12 = 0.116.
RATE_WEIGHT = 0.105

Places = tuple[np.ndarray, ...] | tuple[np.ndarray, int]  # indices into [G, 4]
# What a trellis may take: costs, symbols and reconstructions [n, 4], the best of each codebook and parity.
Options = tuple[Tensor, ...]
Code = Callable[[Places, np.ndarray], np.ndarray]  # codes symbols at some places, with their tables, and returns them


@dataclass(frozen=True)
class Codebook:
    """One class's codewords [K, d] (int, fixed point) and frequencies [K + 1], escape last; K = 1 codes nothing.

    Codewords of a trellis ascend, so that odd symbols lie between even ones.
    """

    codewords: Tensor
    frequencies: Tensor

    @property
    def dimension(self) -> int:
        return self.codewords.shape[1]

    @property
    def bits(self) -> Tensor:
        return bits_of(self.frequencies)

    def to(self, device: torch.device) -> "Codebook":
        return Codebook(self.codewords.to(device), self.frequencies.to(device))


def bits_of(frequencies: Tensor) -> Tensor:
    """What symbols of a table cost."""
    return math.log2(TOTAL) - torch.log2(frequencies.float())


def in_groups(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Which latents, of scale classes [4 G], are coded together: places [G, 4] int64, and the groups' classes [G]."""
    order = np.argsort(classes.cpu().numpy().astype(np.uint8), kind="stable").reshape(-1, GROUP)
    places = torch.from_numpy(order).to(classes.device)
    return places, classes[places[:, -1]]


class Codebooks:
    """All classes' codebooks, the odd ones of those that have two, and the escape table."""

    def __init__(self, books: list[Codebook], escape: Tensor, odd: Sequence[Codebook | None] = ()) -> None:
        """``escape``: frequencies [2 * ESCAPE_MAX + 1] of the components -ESCAPE_MAX ... ESCAPE_MAX.

        odd: one for each class, None where a class has no trellis; both of its codebooks have equally many codewords.
        """
        self.books = books
        self.odd = list(odd) or [None] * len(books)
        self.escape = escape
        self.escape_bits = bits_of(escape)
        self.codewords = [book.codewords.float() for book in books]
        self.bits = [book.bits for book in books]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For a weight file: all codewords and all frequencies in class order, with their sizes.

        If there are odd codebooks, they come behind the 64 others; that of a class without one has no codewords.
        """
        rows = [*self.books, *self.odd] if any(self.odd) else self.books
        books = [book or Codebook(torch.zeros(0, 1, dtype=torch.int32), torch.zeros(0)) for book in rows]
        return {
            "dimensions": np.array([book.dimension for book in books], np.uint8),
            "sizes": np.array([len(book.codewords) for book in books], np.uint16),
            "codewords": torch.cat([book.codewords.flatten() for book in books]).numpy().astype(np.int32),
            "frequencies": np.concatenate([book.frequencies.numpy().astype(np.uint32) for book in books]),
            "escape": self.escape.numpy().astype(np.uint32),
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
        odd = [book if len(book.codewords) else None for book in books[CLASSES:]]
        return cls(books[:CLASSES], torch.from_numpy(arrays["escape"].astype(np.int64)), odd)

    def to(self, device: torch.device) -> "Codebooks":
        odd = [book and book.to(device) for book in self.odd]
        return Codebooks([book.to(device) for book in self.books], self.escape.to(device), odd)

    @cached_property
    def symbols_per_group(self) -> np.ndarray:
        """How many symbols a group of each class sends: int [64]; 0 where the class codes nothing."""
        return np.array([GROUP // book.dimension if len(book.frequencies) > 1 else 0 for book in self.books])

    @cached_property
    def dimensions(self) -> np.ndarray:
        """Latents of a vector in each class: int [64]."""
        return np.array([book.dimension for book in self.books])

    @cached_property
    def trellised(self) -> np.ndarray:
        """Which classes have two codebooks: bool [64]."""
        return np.array([odd is not None for odd in self.odd])

    @cached_property
    def escape_symbols(self) -> np.ndarray:
        """The symbol that stands for the escape in each class: int32 [64]; -1 where the class codes nothing."""
        sizes = [len(book.codewords) if len(book.frequencies) > 1 else -1 for book in self.books]
        return np.array(sizes, np.int32)

    def frequency_tables(self) -> list[np.ndarray]:
        """Frequencies of every class, then of the escapes, then of the odd codebooks: uint32, each summing to 2^24."""
        tables = [*(book.frequencies for book in self.books), self.escape]
        if any(self.odd):
            tables += [torch.tensor([TOTAL]) if book is None else book.frequencies for book in self.odd]
        return [table.cpu().numpy().astype(np.uint32) for table in tables]

    def in_file_order(self, classes: np.ndarray, code: Code) -> np.ndarray:
        """Has the symbols of groups of classes [G] coded, batch by batch: the table of each symbol, uint8 [G, 4].

        First come those of classes without a trellis; then, round by round, those at the same place of each group.
        """
        tables = np.repeat(classes.astype(np.uint8)[:, None], GROUP, axis=1)
        running = self.trellised[classes]
        sent = (np.arange(GROUP) < self.symbols_per_group[classes][:, None]) & ~running[:, None]
        code(np.nonzero(sent), tables[sent])
        rounds = rounds_of(classes, running)
        walk = Walk(len(rounds[0]) if rounds else 0)
        for groups in rounds:
            even = tables[groups, 0]
            for place in range(GROUP):
                tables[groups, place] = mine = even + np.uint8(ODD) * walk.odd(len(groups))
                walk.go(code((groups, place), mine))
        return tables

    def quantize(self, residuals: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals [G, 4] (fixed point, any float) and classes [G] -> symbols [G, 4] int and reconstruction [G, 4].

        Symbol rows hold 4 / d symbols, then zeros. They minimise squared error (in steps) + RATE_WEIGHT * bits.
        """
        symbols = torch.zeros(residuals.shape, dtype=torch.long, device=residuals.device)
        decoded = torch.empty_like(residuals)
        for c, rows in by_class(classes):
            if self.odd[c] is not None:
                continue
            dimension = self.books[c].dimension
            vectors = residuals[rows].view(-1, dimension)
            if len(self.bits[c]) == 1:
                chosen, values = symbols.new_zeros(len(vectors)), self.codewords[c].expand(len(vectors), -1)
            else:
                chosen, values = self.nearest(c, vectors)
            symbols[rows, : GROUP // dimension] = chosen.view(len(rows), -1)
            decoded[rows] = values.reshape(-1, GROUP)
        rounds = rounds_of(classes.cpu().numpy(), self.trellised[classes.cpu().numpy()])
        if rounds:
            groups = torch.from_numpy(np.concatenate(rounds)).to(residuals.device)
            symbols[groups], decoded[groups] = self.along_trellises(residuals[groups], classes[groups], len(rounds[0]))
        return symbols, decoded

    def reconstruct(self, residuals: Tensor, classes: Tensor) -> Tensor:
        """What residuals [L] (fixed point, any float) of scale classes [L], for each latent, are coded as: [L]."""
        places, shared = in_groups(classes)
        decoded = torch.empty_like(residuals)
        decoded[places] = self.quantize(residuals[places], shared.long())[1]
        return decoded

    def along_trellises(self, residuals: Tensor, classes: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """``quantize`` of groups that run through ``width`` trellises, sorted by class."""
        costs, symbols, values = self.options(residuals.flatten(), classes.repeat_interleave(GROUP))
        count = -(-len(residuals) // width)
        padded = F.pad(costs, (0, 0, 0, count * width * GROUP - len(costs))).view(count, width, GROUP, 4)
        path = best_path(padded.permute(0, 2, 3, 1).reshape(-1, 4, width)).view(count, GROUP, width)
        path = path.transpose(1, 2).reshape(-1, 1)[: len(costs)]
        return symbols.gather(1, path).view(-1, GROUP), values.gather(1, path).view(-1, GROUP)

    def options(self, values: Tensor, classes: Tensor) -> Options:
        """Of values [n], which count as rounded to whole numbers, in classes [n] with two codebooks."""
        table, reach, middle = self.tabled
        values = torch.round(values)
        near = values.clamp(-reach[classes], reach[classes])
        places = middle[classes] + near.long()
        found = tuple(column.index_select(0, places) for column in table)
        far = torch.nonzero(values != near)[:, 0]
        for c, rows in by_class(classes[far]):
            for column, made in zip(found, self.nearby(c, values[far[rows]]), strict=True):
                column[far[rows]] = made
        return found

    @cached_property
    def tabled(self) -> tuple[Options, Tensor, Tensor]:
        """Options of all whole numbers as far as codewords or TABLED reach, class after class.

        Also that reach, float [64], and where the options of 0 are, int64 [64].
        """
        device = self.escape.device
        rows, reach, middle, stop = [], torch.zeros(CLASSES), torch.zeros(CLASSES, dtype=torch.long), 0
        for c in np.flatnonzero(self.trellised).tolist():
            span = min(int(self.codewords[c].abs().max()), TABLED)
            reach[c], middle[c], stop = span, stop + span, stop + 2 * span + 1
            rows.append(self.nearby(c, torch.arange(-span, span + 1.0, device=device)))
        return tuple(map(torch.cat, zip(*rows, strict=True))), reach.to(device), middle.to(device)

    def nearby(self, c: int, values: Tensor) -> Options:
        """Of values [n] in a class with two codebooks."""
        books = [book for book in (self.books[c], self.odd[c]) if book]
        found = zip(*(self.best(book, values) for book in books), strict=True)
        return tuple(torch.cat(both, dim=1) for both in found)

    def best(self, book: Codebook, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best even and the best odd symbol for values [n]: costs, symbols and reconstructions [n, 2]."""
        codewords, bits = book.codewords[:, 0].float(), RATE_WEIGHT * UNIT**2 * book.bits
        nearest = torch.bucketize(values, (codewords[1:] + codewords[:-1]) / 2)
        offsets = torch.arange(-NEARBY, NEARBY + 1, device=values.device)
        symbols = (nearest[:, None] + offsets).clamp(0, len(codewords) - 1)
        costs = (values[:, None] - codewords[symbols]).square() + bits[symbols]
        steps = torch.round(values / UNIT).clamp(-ESCAPE_MAX, ESCAPE_MAX)
        escaped = RATE_WEIGHT * UNIT**2 * self.escape_bits[steps.long() + ESCAPE_MAX] + bits[-1]
        costs = torch.cat([costs, ((values - steps * UNIT).square() + escaped)[:, None]], dim=1)
        symbols = F.pad(symbols, (0, 1), value=len(codewords))
        made = torch.cat([codewords[symbols[:, :-1]], steps[:, None] * UNIT], dim=1)
        best = [costs.masked_fill(symbols % 2 != parity, torch.inf).argmin(dim=1) for parity in (0, 1)]
        chosen = torch.stack(best, dim=1)
        return costs.gather(1, chosen), symbols.gather(1, chosen), made.gather(1, chosen)

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

    def masked(self, residuals: Tensor, classes: Tensor, rate: float) -> Tensor:
        """Residuals as of ``quantize`` with 0, what the prior expects, in a share of the groups that are coded.

        These are the groups where that raises the rate-distortion cost least. A symbol of an odd codebook counts like
        that of the even one.
        """
        symbols, decoded = self.quantize(residuals, classes)
        coded = torch.zeros_like(classes, dtype=torch.bool)
        saved = torch.zeros(len(classes), device=decoded.device)  # bits
        for c, rows in by_class(classes):
            if count := self.symbols_per_group[c]:
                coded[rows] = True
                saved[rows] = (self.bits[c][symbols[rows, :count]] - self.bits[c].min()).sum(dim=1)
        error = residuals.square().sum(dim=1) - (residuals - decoded).square().sum(dim=1)
        rise = (error / UNIT**2 - RATE_WEIGHT * saved).masked_fill(~coded, math.inf)
        least = rise.argsort(stable=True)[: int(rate * int(coded.sum()))]
        return residuals.index_fill(0, least, 0)

    @cached_property
    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The components of all codewords, where each table's start [129], and its last codeword [129]: all int32."""
        nothing = Codebook(torch.zeros(0, 1), torch.zeros(0))
        books = [*self.books, nothing, *(book or nothing for book in self.odd)]
        sizes = np.array([book.codewords.numel() for book in books])
        components = torch.cat([book.codewords.flatten() for book in books]).cpu().numpy().astype(np.int32)
        starts = (np.cumsum(sizes) - sizes).astype(np.int32)
        last = [len(book.codewords) - 1 for book in books]
        return components, starts, np.array(last, np.int32)

    def dequantize(self, symbols: np.ndarray, tables: np.ndarray, escapes: np.ndarray) -> np.ndarray:
        """What a decoder does: symbols and tables [G, 4] as above, escape components in order -> int [G, 4]."""
        components, starts, last = self.flat
        classes = tables[:, 0] % ODD
        decoded = np.empty(symbols.shape, np.int32)
        for dimension in np.unique(self.dimensions):
            rows = np.flatnonzero(self.dimensions[classes] == dimension)
            mine = tables[rows, : GROUP // dimension]
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


def by_class(classes: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The classes present among classes [G], ascending, each with the ascending places where it is."""
    present, counts = classes.unique(return_counts=True)
    places = torch.argsort(classes, stable=True).split(counts.tolist())
    return zip(present.tolist(), places, strict=True)
