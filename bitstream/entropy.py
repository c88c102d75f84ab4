"""Range coding of symbols with static integer tables, one table for each class (FORMAT.md §6).

Two things surprise here. Symbols are not coded in their own order: one call codes them class by class, so that each
class is one call into constriction. And the tables reach constriction as floats, although floats decide nothing: its
`Categorical` computes cumulative[i] = floor(sum(p[:i]) * (2^24 - n) / sum(p)) + i, so p = frequency - 1 makes the
factor exactly 1 and every cumulative the exact integer sum.
"""

import itertools
from collections.abc import Iterator, Sequence

import constriction  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from nic.errors import BadFile

__all__ = ["PRECISION", "Decoder", "Encoder", "Tables"]

PRECISION = 24  # bits; fixed by constriction. The frequencies of a table sum to 2^24.


class Tables:
    """The frequency tables of all classes; table c gives symbol s a probability of frequencies[c][s] / 2^24.

    `frequencies` are 1 to 256 uint32 arrays. Each has at least one entry, no entry is 0, and the sum is 2^24, else
    ValueError. A table of one entry codes its only symbol, 0, in no bits at all.
    `bits[c][s]` is the ideal cost of symbol s in class c; `models[c]` is what constriction codes class c with, None for
    a table of one entry.
    """

    def __init__(self, frequencies: Sequence[NDArray[np.uint32]]) -> None:
        if not 1 <= len(frequencies) <= 256:
            raise ValueError(f"{len(frequencies)} tables given; a uint8 class chooses among 1 to 256")
        for index, table in enumerate(frequencies):
            if table.dtype != np.uint32 or table.ndim != 1 or table.size == 0:
                raise ValueError(f"table {index} is not a uint32 vector of at least one entry")
            if table.min() == 0 or table.sum(dtype=np.uint64) != 1 << PRECISION:
                raise ValueError(f"table {index} has a zero entry, or does not sum to 2^{PRECISION}")
        self.bits = tuple(PRECISION - np.log2(table) for table in frequencies)
        self.sizes = np.array([len(table) for table in frequencies])
        self._starts, self._joined_bits = np.cumsum(self.sizes) - self.sizes, np.concatenate(self.bits)
        self.models = tuple(_model(table) for table in frequencies)

    def cost(self, symbols: NDArray[np.int32], classes: NDArray[np.uint8]) -> float:
        """The size of `symbols` [n] of `classes` [n] in bits, as a perfect coder would have it.

        Raises ValueError for a symbol or a class that there is not.
        """
        if len(classes) and classes.max() >= len(self.sizes):
            raise ValueError(f"class {classes.max()} has no table; there are {len(self.sizes)}")
        outside = (symbols < 0) | (symbols >= self.sizes[classes])
        if outside.any():
            raise ValueError(f"a symbol of class {classes[outside][0]} lies outside its table")
        return float(self._joined_bits[self._starts[classes] + symbols].sum())

    def batches(self, classes: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """The classes present, ascending, each with the ascending positions that it has in `classes`."""
        positions = classes.argsort(kind="stable")
        ordered = classes[positions]
        if len(ordered) and ordered[-1] >= len(self.sizes):
            raise ValueError(f"class {ordered[-1]} has no table; there are {len(self.sizes)}")
        starts = (ordered[1:] != ordered[:-1]).nonzero()[0] + 1
        bounds = [0, *starts.tolist(), len(ordered)] if len(ordered) else [0]
        return ((int(ordered[start]), positions[start:stop]) for start, stop in itertools.pairwise(bounds))


class Encoder:
    """Writes one payload. `bits` is what its symbols cost so far; they are coded when that is asked for."""

    def __init__(self, tables: Tables) -> None:
        self.bits = 0.0
        self._tables = tables
        self._coder = constriction.stream.queue.RangeEncoder()
        self._waiting: list[tuple[NDArray[np.int32], NDArray[np.uint8], Tables]] = []

    def put(self, symbols: NDArray[np.int32], classes: NDArray[np.uint8], tables: Tables | None = None) -> None:
        """Take `symbols` [n], each with the table of its class in `classes` [n]; `tables`: others than the encoder's.

        Neither array may change afterwards. Raises ValueError for a symbol or a class that the tables do not have.
        """
        tables = tables or self._tables
        if symbols.shape != classes.shape:
            raise ValueError(f"{symbols.shape} symbols with {classes.shape} classes")
        self.bits += tables.cost(symbols, classes)
        self._waiting.append((symbols, classes, tables))

    def copy(self) -> "Encoder":
        """Another encoder that goes on from the same symbols."""
        other = Encoder(self._tables)
        other.bits, other._coder, other._waiting = self.bits, self._coder.clone(), self._waiting.copy()
        return other

    def flush(self) -> None:
        """Code what was taken so far, which gives its memory back."""
        for symbols, classes, tables in self._waiting:
            for index, positions in tables.batches(classes):
                model = tables.models[index]
                if model is not None:
                    self._coder.encode(symbols[positions], model)
        self._waiting.clear()

    def finish(self) -> bytes:
        """The payload: little-endian 32-bit words, none if nothing cost any bits."""
        self.flush()
        return _words(self._coder)


class Decoder:
    """Reads one payload, by the same sequence of calls that wrote it. Raises BadFile if it is no whole words."""

    def __init__(self, tables: Tables, payload: bytes) -> None:
        if len(payload) % 4:
            raise BadFile(f"damaged cell: {len(payload)} bytes are no whole number of 32-bit words")
        self._tables = tables
        self._payload = payload
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
        self._mirror = constriction.stream.queue.RangeEncoder()  # encodes again what was decoded, see `finish`

    def get(self, classes: NDArray[np.uint8], tables: Tables | None = None) -> NDArray[np.int32]:
        """The symbols [n] of `classes` [n], in the order of `classes`; `tables`: others than the decoder's.

        Raises BadFile for words that no encoder writes; other damage gives wrong symbols, each within its table.
        """
        tables = tables or self._tables
        symbols = np.zeros(classes.shape, np.int32)
        for index, positions in tables.batches(classes):
            model = tables.models[index]
            if model is not None:
                try:
                    symbols[positions] = batch = self._coder.decode(model, len(positions))
                except AssertionError:  # how constriction reports words outside the current range
                    raise BadFile("damaged cell: its words decode to no symbols") from None
                self._mirror.encode(batch, model)
        return symbols

    @property
    def overrun(self) -> bool:
        """Whether words past the end of the payload may have decided a symbol, as they do where it was cut off."""
        words = _words(self._mirror)
        return words != self._payload and len(words) + 4 > len(self._payload)

    def check(self) -> None:
        """Raise BadFile if the symbols so far take more words than there are; unlike `finish`, at no cost."""
        words = self._mirror.num_words()  # one more than at the end may seal what is not the end
        if words > len(self._payload) // 4 + 1:
            raise BadFile("damaged cell: its words end before its symbols do")

    def finish(self) -> None:
        """Raise BadFile unless the payload is, to the last word, the one that codes the symbols read.

        A range decoder cannot tell where its words end (it reads zeros past them), so this compares with the words
        that the symbols encode to. It costs half the time of decoding, and a payload has no room for anything else.
        """
        if _words(self._mirror) != self._payload:
            raise BadFile("damaged cell: its length or its words do not fit the symbols in it")


def _words(coder: constriction.stream.queue.RangeEncoder) -> bytes:
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def _model(table: NDArray[np.uint32]) -> constriction.stream.model.Categorical | None:
    if table.size == 1:
        return None
    return constriction.stream.model.Categorical(table.astype(np.float64) - 1, lazy=False, perfect=False)
