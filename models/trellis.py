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
    total = costs.new_full((STATES, width), torch.inf)
    total[0] = 0
    second = torch.empty(steps, STATES, width, dtype=torch.bool, device=costs.device)
    first_before, other_before = before.unbind(dim=1)
    first_taken, other_taken = taken.unbind(dim=1)
    for step, cost in enumerate(costs):
        one = total.index_select(0, first_before).add_(cost.index_select(0, first_taken))
        other = total.index_select(0, other_before).add_(cost.index_select(0, other_taken))
        torch.lt(other, one, out=second[step])
        total = torch.minimum(one, other)
    state, trellis = total.argmin(dim=0), torch.arange(width, device=costs.device)
    path = torch.empty(steps, width, dtype=torch.long, device=costs.device)
    for step in reversed(range(steps)):
        which = second[step, state, trellis].long()
        path[step] = taken[state, which]
        state = before[state, which]
    return path
