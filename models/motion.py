"""Encoder-side search for the motion of a frame: fields of vectors (nic/models/video.py) worth their bits.

First squares of 32, 16 and 8 pixels get the vectors that fit them best, between original frames. That takes longest
and is shared by all qualities. Then the field is chosen for a quality and for decoded references: the sum of what the
prediction's error will cost in bits and of what the field costs, where the latter is taken to be EDGE_BITS for every
border between blocks that differ (a Potts model, minimised by moves of whole squares: iterated conditional modes,
Besag 1986). How fields are coded is not known here.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nic.models.video import BLOCK, BOTH, FIRST, SECOND, VECTOR_UNIT, enlarged, warp

__all__ = ["Found", "choose", "search"]

SQUARES = (4, 2, 1)  # blocks a side
REACH = 8  # of the first look, in pixels of the shrunken frames
SHRINKS = {0: 4, 1024: 8, 2048: 16}  # by the frame's longer side, how much those are shrunk
EDGE_BITS = 4.0  # for a block's border to another vector; measured
VECTOR_BITS = 8.0  # for a vector that no neighbour has
SWEEPS = 2
COUNTED = 1.0  # share of the bits of a residual that the prediction's error really costs; measured
RESIDUAL_BITS = 0.1  # bits a sample for a residual of e times the energy; 0.72 if samples were independent; measured
BESIDE = ((0, -1), (0, 1), (-1, 0), (1, 0))

Found = dict[int, Tensor]  # by size of square: the best vectors, int [1, 2, h / size, w / size] for h x w blocks


class Blocks:
    """A frame [1, 3, H, W] as a source of blocks at any quarter of a pixel, of the mean of its colours in 8 bits."""

    def __init__(self, frame: Tensor) -> None:
        grey = F.pad(luma(frame), (BLOCK,) * 4, mode="replicate")
        still = grey.new_zeros(1, 2, *grey.shape[2:])
        shifts = [grey.new_tensor([x, y])[:, None, None] * VECTOR_UNIT for y in range(4) for x in range(4)]
        phases = [(255 * warp(grey, still + shift)[0]).round_().clamp_(0, 255).byte() for shift in shifts]
        self.phases = torch.cat(phases)
        height, width = (side // BLOCK for side in frame.shape[2:])
        self.rows = BLOCK * torch.arange(1, height + 1, device=frame.device)[:, None]
        self.columns = BLOCK * torch.arange(1, width + 1, device=frame.device)
        line = torch.arange(BLOCK, device=frame.device)
        self.inside = line[:, None] * grey.shape[3] + line

    def at(self, vectors: Tensor, places: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Blocks [..., BLOCK, BLOCK] in 0 to 255 along vectors, int [2, ...]; the frame's borders go on.

        places: rows and columns of the blocks that vectors [2, n] are for; without, these are [2, h, w].
        """
        x, y = vectors
        rows, columns = (self.rows[places[0], 0], self.columns[places[1]]) if places else (self.rows, self.columns)
        height, width = self.phases.shape[1:]
        row = (rows + (y >> 2)).clamp_(0, height - BLOCK)
        column = (columns + (x >> 2)).clamp_(0, width - BLOCK)
        corner = ((4 * (y & 3) + (x & 3)) * height + row) * width + column
        return self.phases.take(corner[..., None, None] + self.inside).float()


def luma(frame: Tensor, shrink: int = 1) -> Tensor:
    grey = frame.mean(dim=1, keepdim=True)
    return F.avg_pool2d(grey, shrink) if shrink > 1 else grey


def total(x: Tensor, size: int) -> Tensor:
    """Sums [1, 1, h / size, w / size] over squares."""
    return F.avg_pool2d(x, size, divisor_override=1)


@torch.no_grad()
def search(current: Tensor, reference: Tensor) -> Found:
    """The vectors that fetch squares of a frame best from a reference, both [1, 3, H, W], H and W multiples of 64."""
    shrink = max(by for side, by in SHRINKS.items() if max(current.shape[2:]) > side)
    found = coarse(current, reference, shrink)
    source, wanted = Blocks(reference), still_blocks(current)
    for size in SQUARES:
        vectors = found[size] if size in found else enlarged(found[2 * size], 2)
        larger = [enlarged(found[other], other // size) for other in SQUARES if other > size]
        beside = [vectors.roll(by, axis) for by in (1, -1, 2, -2) for axis in (2, 3)]
        best = torch.full(vectors.shape, torch.inf, device=current.device)[:, :1]
        tries = [vectors, torch.zeros_like(vectors), *larger, *beside]
        step = 2 * shrink
        while tries:
            for tried in tries:
                errors = (source.at(enlarged(tried, size)[0]) - wanted).square().mean(dim=(2, 3))
                error = total(errors[None, None], size)
                better = error < best
                best, vectors = torch.where(better, error, best), torch.where(better, tried, vectors)
            tries = around(vectors, step) if step else []
            step //= 2
        found[size] = vectors
    return found


def still_blocks(frame: Tensor) -> Tensor:
    """The blocks of a frame itself, [h, w, BLOCK, BLOCK] in 0 to 255."""
    return 255 * luma(frame)[0, 0].unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK)


def around(vectors: Tensor, step: int) -> list[Tensor]:
    directions = [(x * step, y * step) for y in (-1, 0, 1) for x in (-1, 0, 1) if x or y]
    return [vectors + vectors.new_tensor(direction)[:, None, None] for direction in directions]


def coarse(current: Tensor, reference: Tensor, shrink: int) -> Found:
    """The best of all vectors within REACH between shrunken frames, for all but the smallest squares."""
    now, then = luma(current, shrink), luma(reference, shrink)
    height, width = now.shape[2:]
    wide = F.pad(then, (REACH,) * 4, mode="replicate")
    best: dict[int, Tensor] = {}
    found: Found = {}
    line = range(-REACH, REACH + 1)
    for x, y in sorted(((x, y) for y in line for x in line), key=lambda offset: offset[0] ** 2 + offset[1] ** 2):
        errors = (wide[:, :, REACH + y : REACH + y + height, REACH + x : REACH + x + width] - now).square()
        for size in SQUARES[:-1]:
            error = F.avg_pool2d(errors, size * BLOCK // shrink)
            vector = torch.tensor([x, y], device=now.device) * round(shrink / VECTOR_UNIT)
            if size not in best:
                best[size], found[size] = error, vector[None, :, None, None].expand(1, 2, *error.shape[2:])
            better = error < best[size]
            best[size] = torch.where(better, error, best[size])
            found[size] = torch.where(better, vector[:, None, None], found[size])
    return found


@torch.no_grad()
def choose(current: Tensor, references: list[Tensor], found: list[Found], bits_per_error: float) -> Tensor:
    """The field of a frame [1, 3, H, W] against 0, 1 or 2 decoded frames of that size.

    found: what ``search`` gives for each reference. bits_per_error: what a squared error in [0, 1] is worth.
    """
    if not references:
        height, width = (side // BLOCK for side in current.shape[2:])
        return torch.zeros(1, 5, height, width, dtype=torch.int64, device=current.device)
    choice = Choice(current, references, bits_per_error)
    new = {size: choice.best_vectors([vectors[size] for vectors in found], size) for size in SQUARES}
    still = torch.zeros_like(new[SQUARES[0]])
    still[:, 4] = BOTH if len(references) == 2 else FIRST
    settled = []
    for start in (new[SQUARES[0]], still):
        choice.fill(enlarged(start, SQUARES[0]))
        settle(choice, new, still[:, :, :1, :1])
        settled.append((choice.energy(), choice.field))
    return min(settled, key=lambda result: result[0])[1]


def settle(choice: "Choice", new: dict[int, Tensor], still: Tensor) -> None:
    """Proposes states until few are taken: new ones [1, 5, ...] by size of square, neighbours', and stillness."""
    for _ in range(SWEEPS):
        for size in (2 * SQUARES[0], *SQUARES):
            for states in [new[size]] if size in new else [new[SQUARES[0]][:, :, i::2, i::2] for i in (0, 1)]:
                choice.propose(states, VECTOR_BITS)
            for down, right in BESIDE:
                choice.propose(just_beside(choice.field, size, down, right))
            choice.propose(choice.field[:, :, size // 2 :: size, size // 2 :: size])
            height, width = (side // size for side in choice.field.shape[2:])
            choice.propose(still.expand(-1, -1, height, width))


class Choice:
    """A field that is being chosen. Errors are judged in the mean of the colours, without overlap of blocks."""

    def __init__(self, current: Tensor, references: list[Tensor], bits_per_error: float) -> None:
        self.current = still_blocks(current)
        self.references = [Blocks(frame) for frame in references]
        self.worth = bits_per_error / 255**2

    def fill(self, field: Tensor) -> None:
        self.field, self.cost = field, self.cost_of(field)

    def energy(self) -> float:
        """What the field and the errors that it leaves will cost in bits."""
        return float(self.cost.sum()) + EDGE_BITS / 2 * float(borders(self.field, 1).sum())

    def cost_of(self, field: Tensor) -> Tensor:
        """What the error of each block of a field [1, 5, h, w] will cost in bits: [1, 1, h, w]."""
        return self.costs(field[0], self.current)[None, None]

    def costs(self, states: Tensor, current: Tensor, places: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What the errors of blocks in states [5, ...] will cost in bits; places: as for ``Blocks.at``.

        Their residual is coded: bits grow with the logarithm of its energy, slower than the error itself.
        """
        fetched = [source.at(states[2 * i : 2 * i + 2], places) for i, source in enumerate(self.references)]
        prediction, counted = fetched[0], states[4, ..., None, None]
        if len(fetched) == 2:
            one = torch.where(counted == FIRST, fetched[0], fetched[1])
            prediction = torch.where(counted == BOTH, (fetched[0] + fetched[1]) / 2, one)
        error = (prediction - current).square().mean(dim=(-2, -1))
        return COUNTED * 3 * BLOCK**2 * RESIDUAL_BITS * torch.log1p(error * (self.worth / RESIDUAL_BITS))

    def best_vectors(self, vectors: list[Tensor], size: int) -> Tensor:
        """States of squares with the vectors that fit them best, both of them or one."""
        counted = torch.zeros_like(vectors[0][:, :1])
        if len(vectors) == 1:
            return torch.cat([vectors[0], torch.zeros_like(vectors[0]), counted + FIRST], dim=1)
        best, result = torch.full(counted.shape, torch.inf, device=counted.device), counted
        for which, first, second in ((BOTH, 1, 1), (FIRST, 1, 0), (SECOND, 0, 1)):
            states = torch.cat([vectors[0] * first, vectors[1] * second, counted + which], dim=1)
            cost = total(self.cost_of(enlarged(states, size)), size) + VECTOR_BITS * (first + second)
            better = cost < best
            best, result = torch.where(better, cost, best), torch.where(better, states, result)
        return result

    def propose(self, states: Tensor, bits: float = 0.0) -> None:
        """Squares take the states int [1, 5, h / n, w / n] where that costs less; ``bits`` more than their borders."""
        size = self.field.shape[2] // states.shape[2]
        filled = enlarged(states, size)
        other = (filled != self.field).any(dim=1)[0]
        places = other.nonzero(as_tuple=True)
        cost = self.cost.clone()
        cost[0, 0, other] = self.costs(filled[0, :, other], self.current[other], places)
        row, column = (torch.arange(side, device=states.device) for side in states.shape[2:])
        gain = None
        for parity in (0, 1):  # squares side by side would each count on the other's old state
            if gain is None:
                gain = total(self.cost - cost, size) - bits
                gain += EDGE_BITS * (borders(self.field, size) - borders_if(self.field, filled, size))
            taken = (gain > 0) & ((row[:, None] + column) % 2 == parity)
            if taken.any():
                taken = enlarged(taken, size)
                self.field, self.cost = torch.where(taken, filled, self.field), torch.where(taken, cost, self.cost)
                gain = None


def just_beside(field: Tensor, size: int, down: int, right: int) -> Tensor:
    """For each square, the state just beyond the middle of one of its sides."""

    def places(blocks: int, step: int) -> Tensor:
        corner = torch.arange(0, blocks, size, device=field.device)
        return (corner + (size // 2, size, -1)[step]).clamp(0, blocks - 1)

    height, width = field.shape[2:]
    return field[:, :, places(height, down)][:, :, :, places(width, right)]


def borders(field: Tensor, size: int) -> Tensor:
    """How many borders between blocks that differ lie in and around each square."""
    below = F.pad((field[:, :, 1:] != field[:, :, :-1]).any(dim=1, keepdim=True).float(), (0, 0, 1, 1))
    beside = F.pad((field[..., 1:] != field[..., :-1]).any(dim=1, keepdim=True).float(), (1, 1))
    counted = total(below[:, :, :-1], size) + total(beside[..., :-1], size)  # above, left and inside
    last_rows, last_columns = below[:, :, size::size], beside[..., size::size]
    return counted + last_rows.unflatten(3, (-1, size)).sum(dim=4) + last_columns.unflatten(2, (-1, size)).sum(dim=3)


def borders_if(field: Tensor, filled: Tensor, size: int) -> Tensor:
    """The same if each square were uniformly as in ``filled``, and all around it stayed."""
    height, width = field.shape[2:]
    count = torch.zeros(1, 1, height, width, device=field.device)
    row, column = torch.arange(height, device=field.device)[:, None], torch.arange(width, device=field.device)
    for down, right in BESIDE:
        differs = (filled != field.roll((-down, -right), (2, 3))).any(dim=1, keepdim=True)
        place, step, last = (row, down, height - 1) if down else (column, right, width - 1)
        at_edge = place % size == (size - 1 if step > 0 else 0)
        count += differs & at_edge & (place != (last if step > 0 else 0))
    return total(count, size)
