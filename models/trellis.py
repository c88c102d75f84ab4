"""Trellis-coded quantization: two codebooks whose use depends on the symbols before, and the search for the best path.

A class may have two codebooks of scalars that lie between each other: a trellis is in one of 128 states, half of
which take the even codebook and half the odd one, and the parity of each symbol leads to the next state. A sequence so
reaches points that are as dense as both codebooks together, for the bits of one. (Marcellin and Fischer, IEEE Trans.
Communications 38, 1990; the states are Ungerboeck's, IEEE Trans. Information Theory 28, 1982, table I; codebooks that
both have a zero: Schwarz et al., "Hybrid Video Coding with Trellis-Coded Quantization", DCC 2019.)

A stage's groups of such classes, sorted by class, run through many trellises side by side, at most ROUNDS groups
through each, so that a round's symbols are coded together.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["NEXT", "ROUNDS", "Walk", "best_path", "rounds_of"]

ROUNDS = 64
STATES = 128
HALF = STATES // 2  # states from here on take the odd codebook
STATE, PARITY = np.mgrid[:STATES, :2]
# The next state after an even and after an odd symbol.
NEXT = (2 * STATE % STATES) ^ (57 * (STATE >= HALF)) ^ (106 * PARITY)
TAKES_ODD = (STATE[:, 0] >= HALF).astype(np.uint8)
# Each state's two predecessors, and what was taken there: two times the codebook plus the symbol's parity.
BEFORE = np.stack([STATE[NEXT == state] for state in range(STATES)])
TAKEN = np.stack([(2 * (STATE >= HALF) + PARITY)[NEXT == state] for state in range(STATES)])


def rounds_of(classes: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """The groups, of classes [G], that run through trellises, round by round: indices of those that are ``wanted``.

    Group i of every round goes through trellis i; the last round may be shorter.
    """
    groups = np.flatnonzero(wanted)
    groups = groups[np.argsort(classes[groups], kind="stable")]
    width = -(-len(groups) // ROUNDS)
    return [groups[start : start + width] for start in range(0, len(groups), max(width, 1))]


class Walk:
    """The states of ``width`` trellises side by side, all 0 at first."""

    def __init__(self, width: int) -> None:
        self.states = np.zeros(width, int)

    def odd(self, count: int) -> np.ndarray:
        """Which of the first ``count`` trellises take their odd codebook next: uint8 [count], 0 or 1."""
        odd: np.ndarray = TAKES_ODD[self.states[:count]]
        return odd

    def go(self, symbols: np.ndarray) -> None:
        """Follows a symbol of each of the first trellises."""
        self.states[: len(symbols)] = NEXT[self.states[: len(symbols)], symbols & 1]


def best_path(costs: Tensor) -> Tensor:
    """What each trellis takes at each step, at the least cost in all: int64 [T, W], 2 * codebook + parity.

    costs: [T, 4, W] of the best symbol of each codebook and parity. (Viterbi's algorithm.)
    """
    steps, _, width = costs.shape
    before, taken = (torch.from_numpy(table).to(costs.device) for table in (BEFORE, TAKEN))
    first, other = (taken * HALF + before % HALF).unbind(dim=1)  # rows of ``reached``
    total = costs.new_full((STATES, width), torch.inf)
    total[0] = 0
    reached = costs.new_empty(2, 2, HALF, width)  # by codebook, parity and the rest of the state that is left
    less = torch.empty_like(total)  # floats, because comparing to bool takes ten times as long
    second = torch.empty(steps, STATES, width, dtype=torch.int8, device=costs.device)
    for step, cost in enumerate(costs):
        torch.add(total.view(2, 1, HALF, width), cost.view(2, 2, 1, width), out=reached)
        one, two = (reached.view(-1, width).index_select(0, rows) for rows in (first, other))
        second[step] = torch.lt(two, one, out=less)
        torch.minimum(one, two, out=total)
    state = total.argmin(dim=0)
    path = torch.empty(steps, width, dtype=torch.long, device=costs.device)
    for step in reversed(range(steps)):
        way = 2 * state + second[step].gather(0, state[None])[0]
        path[step] = taken.flatten().index_select(0, way)
        state = before.flatten().index_select(0, way)
    return path
