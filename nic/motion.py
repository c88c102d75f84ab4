"""Fields of motion between arrays and words: a quadtree of states, coded by level with counts that adapt.

A state is what the motion of a block is: two vectors and which of them count (nic/models/video.py). The tree's root is
a square over the whole frame, its leaves are blocks. Each of its squares has a state: its parent's, that of one of the
three parents that are nearest beside, or a new one. A square is split if not all of it has its state; below one that is
not, nothing is coded. All of a level is coded at once, so its contexts come from the level above.
bitstream/FORMAT.md §14.4 is the specification.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nic.bitstream.entropy import PRECISION, Decoder, Encoder, Tables
from nic.errors import BadFile
from nic.models.video import BOTH, FIRST, SECOND

__all__ = ["MotionTables", "get_flag", "get_motion", "put_flag", "put_motion"]

NEW = 4  # the kind of a state that is none of the four parents'
BUCKETS = 14  # of magnitudes: 0, 1, 2, 3 to 4, 5 to 8, ..., 2049 to 4096
VECTOR_MAX = 2**14  # quarters of a pixel
KINDS, SPLITS, SOURCES, RESIDUALS = 24, 32, 3, 15  # contexts of each sort of symbol
KIND = 0
SPLIT = KIND + KINDS
SOURCE = SPLIT + SPLITS
RESIDUAL = SOURCE + SOURCES
ADAPTIVE = RESIDUAL + RESIDUALS
EVEN = ADAPTIVE  # tables of 2, 4, ..., 2048 equal frequencies
START = """
91111 99111 91311 97615 91112 93112 91211 93315 91112 94112 91112 92213 91111 91111 91111 91115
91114 92115 91113 93215 91111 91111 91111 81119
91 93 94 99 94 94 97 97 93 99 93 69 95 79 89 69 94 79 95 59 99 69 49 39 29 19 11 11 19 19 11 11
955 997 987
34357898961111 98555211211111 79873221111111 79795221111111 25467978741111
57466698841111 89675211111111 69573111111111 59653311111111 35579886521111
35456796621111 49133111111111 89786311111111 69565221111111 35657985411111
"""  # counts when a group begins, one digit for each symbol: as in four clips, see docs/decisions.md
INCREASE = 2  # of a count for each symbol
Exchange = Callable[[np.ndarray, np.ndarray], np.ndarray]  # true symbols and their tables -> symbols


class MotionTables:
    """What the motion of a group's frames has been so far: counts, and the tables that are made of them."""

    def __init__(self) -> None:
        self.counts = [np.array([int(digit) for digit in table], np.uint64) for table in START.split()]
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []
        self.even = [np.full(2**bits, 2 ** (PRECISION - bits), np.uint32) for bits in range(1, BUCKETS - 2)]
        self.tables = self.made()

    def made(self) -> Tables:
        return Tables([*(frequencies(count) for count in self.counts), *self.even])

    def adapt(self) -> None:
        """Takes in what was coded since the last time."""
        for symbols, tables in self.seen:
            for table in np.unique(tables[tables < ADAPTIVE]):
                np.add.at(self.counts[table], symbols[tables == table], np.uint64(INCREASE))
        self.seen.clear()
        self.tables = self.made()


def frequencies(counts: np.ndarray) -> np.ndarray:
    """uint32 [n] that sum to 2^24, in proportion to counts but at least 1; the first takes what rounding leaves."""
    room = 2**PRECISION - len(counts)
    shares = 1 + counts * np.uint64(room) // counts.sum()
    shares[0] += 2**PRECISION - shares.sum()
    result: np.ndarray = shares.astype(np.uint32)
    return result


def put_flag(encoder: Encoder, tables: MotionTables, flag: bool) -> None:
    """Codes one bit."""
    encoder.put(np.array([flag], np.int32), np.array([EVEN], np.uint8), tables.tables)


def get_flag(decoder: Decoder, tables: MotionTables) -> bool:
    return bool(decoder.get(np.array([EVEN], np.uint8), tables.tables)[0])


def put_motion(encoder: Encoder, tables: MotionTables, field: np.ndarray, references: int) -> None:
    """Codes a field int [h, w, 5], see nic/models/video.py, against 1 or 2 references.

    Vectors are within ±1023, and (0, 0) where they do not count.
    """

    def put(symbols: np.ndarray, classes: np.ndarray) -> np.ndarray:
        encoder.put(symbols.astype(np.int32), classes.astype(np.uint8), tables.tables)
        tables.seen.append((symbols, classes))
        return symbols

    height, width = field.shape[:2]
    walk(put, height, width, references, field.astype(np.int32))
    tables.adapt()


def get_motion(decoder: Decoder, tables: MotionTables, height: int, width: int, references: int) -> np.ndarray:
    """The field int32 [height, width, 5] that comes next; raises BadFile."""

    def get(_: np.ndarray, classes: np.ndarray) -> np.ndarray:
        symbols = decoder.get(classes.astype(np.uint8), tables.tables)
        tables.seen.append((symbols, classes))
        decoder.check()
        return symbols

    field = walk(get, height, width, references, None)
    tables.adapt()
    return field


@dataclass(frozen=True)
class Level:
    """The squares of one size: states [h, w, 5], and whether all of a square has its state, bool [h, w]."""

    states: np.ndarray
    uniform: np.ndarray


def levels_of(field: np.ndarray) -> list[Level]:
    """From the root to the blocks; a square that is not uniform has the state that most of its quarters have."""
    levels = [Level(field, np.ones(field.shape[:2], bool))]
    while levels[-1].uniform.size > 1:
        below = levels[-1]
        shape = -(-below.uniform.shape[0] // 2), -(-below.uniform.shape[1] // 2)
        quarters = np.zeros((4, *shape, 5), field.dtype)
        exists, uniform = np.zeros((4, *shape), bool), np.ones((4, *shape), bool)
        for index in range(4):
            states = below.states[index // 2 :: 2, index % 2 :: 2]
            part = index, slice(states.shape[0]), slice(states.shape[1])
            quarters[part], exists[part] = states, True
            uniform[part] = below.uniform[index // 2 :: 2, index % 2 :: 2]
        same = (quarters[:, None] == quarters).all(axis=-1) & exists[:, None] & exists
        votes = same.sum(axis=1)
        states = np.take_along_axis(quarters, votes.argmax(axis=0)[None, ..., None], axis=0)[0]
        levels.append(Level(states, uniform.all(axis=0) & (votes.max(axis=0) == exists.sum(axis=0))))
    return levels[::-1]


def walk(exchange: Exchange, height: int, width: int, references: int, field: np.ndarray | None) -> np.ndarray:
    """The field that ``exchange`` spells, from the root down; ``field``: the true one, if it is known."""
    levels = levels_of(field) if field is not None else None
    size = 1 << (max(height, width) - 1).bit_length()  # blocks a side of a square
    states = np.zeros((1, 1, 5), np.int32)
    states[..., 4] = BOTH if references == 2 else FIRST
    coded, depth = np.ones((1, 1), bool), 0
    while True:
        true = levels[depth] if levels else None
        shape = -(-height // size), -(-width // size)
        parents = nearest(states, *shape)
        kind_context, differing = contexts(parents)
        fine = min(size.bit_length() - 1, 2)
        kinds = np.zeros(shape, np.int32)
        if true:
            kinds = np.select([equal(true.states, parent) for parent in parents], range(4), NEW)
        kinds[coded] = exchange(kinds[coded], KIND + 8 * fine + kind_context[coded])
        kinds[~coded] = 0
        states = np.choose(np.minimum(kinds, 3)[..., None], parents)
        new = kinds == NEW
        states[new] = new_states(exchange, parents[0][new], references, true.states[new] if true else None)
        if size == 1:
            return states
        split = ~true.uniform if true else np.zeros(shape, bool)
        context = SPLIT + 8 * min(size.bit_length() - 2, 3) + 2 * differing + (kinds > 0)
        split[coded] = exchange(split[coded].astype(np.int32), context[coded])
        split &= coded
        size, depth = size // 2, depth + 1
        coded = split.repeat(2, 0).repeat(2, 1)[: -(-height // size), : -(-width // size)]


def nearest(states: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """For each square of a level: its parent's state, and those of the parents beside, above or below, and across."""

    def places(size: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.arange(size)
        return np.minimum(index // 2, most - 1), np.clip(index // 2 + index % 2 * 2 - 1, 0, most - 1)

    (row, other_row), (column, other_column) = places(height, states.shape[0]), places(width, states.shape[1])
    return [states[r][:, c] for r in (row, other_row) for c in (column, other_column)]


def contexts(parents: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each square: which of the other parents' states are news, 0 to 7; how many differ from its own, 0 to 3."""
    own, beside, above, across = parents
    news = [
        ~equal(beside, own),
        ~equal(above, own) & ~equal(above, beside),
        ~equal(across, own) & ~equal(across, beside) & ~equal(across, above),
    ]
    differing = [~equal(other, own) for other in (beside, above, across)]
    return np.tensordot([1, 2, 4], news, axes=1), np.sum(differing, axis=0)


def equal(states: np.ndarray, others: np.ndarray) -> np.ndarray:
    same: np.ndarray = (states == others).all(axis=-1)
    return same


def new_states(exchange: Exchange, parents: np.ndarray, references: int, true: np.ndarray | None) -> np.ndarray:
    """States [n, 5] as differences from their parents' [n, 5]."""
    states = parents.copy()
    wanted = true if true is not None else parents
    if references == 2:
        states[:, 4] = exchange(wanted[:, 4], SOURCE + parents[:, 4])
    counted = states[:, 4]
    first, second = counted != SECOND, counted != FIRST
    change = np.zeros((len(parents), 2), np.int32)
    change[first] = differences(exchange, (wanted - parents)[first, :2], np.zeros(first.sum(), np.int32))
    states[:, :2] += change
    mirrored = parents[:, 2:4] - np.where((counted == BOTH)[:, None], change, 0)
    offset = differences(exchange, (wanted[:, 2:4] - mirrored)[second], np.where(counted == BOTH, 1, 2)[second])
    states[second, 2:4] = mirrored[second] + offset
    states[~first, :2] = states[~second, 2:4] = 0
    if abs(states[:, :4]).max(initial=0) > VECTOR_MAX:
        raise BadFile("damaged group: a vector leads too far")
    return states


def differences(exchange: Exchange, true: np.ndarray, sort: np.ndarray) -> np.ndarray:
    """Pairs [n, 2] of differences, x before y, of three sorts [n]."""
    result = np.zeros_like(true)
    context = RESIDUAL + 5 * sort
    for axis in (0, 1):
        magnitude = abs(true[:, axis])
        bucket = exchange(np.where(magnitude < 3, magnitude, 1 + bit_length(magnitude - 1)), context)
        least = np.where(bucket < 3, bucket, (1 << np.maximum(bucket - 2, 0)) + 1)
        more = np.zeros_like(magnitude)
        wide = bucket > 2
        more[wide] = exchange((magnitude - least)[wide], EVEN + bucket[wide] - 3)
        negative, signed = np.zeros_like(magnitude), bucket > 0
        negative[signed] = exchange((true[signed, axis] < 0).astype(np.int32), np.full(signed.sum(), EVEN))
        result[:, axis] = np.where(negative, -1, 1) * (least + more)
        context = RESIDUAL + 5 * sort + 1 + np.minimum(bucket, 3)
    return result


def bit_length(x: np.ndarray) -> np.ndarray:
    return np.frexp(np.maximum(x, 0).astype(np.float64))[1]
