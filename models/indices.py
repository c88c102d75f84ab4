"""The prior of the extreme mode's indices: which of a codebook's codewords stands where, over integers.

An index of b bits is a path through a binary tree, whose every node asks one yes-or-no question (as in hierarchical
softmax: Morin and Bengio, "Hierarchical Probabilistic Neural Network Language Model", AISTATS 2005). A network of
exact convolutions, as in nic/models/prior.py, sees the codewords that are known and gives each position features;
their product with a node's weights, rounded, is the class of its question: the number of one of 128 fixed tables of
two frequencies. Codebooks are nested, so one network and one tree serve them all. Positions are coded in six steps,
each from all earlier ones: first every fourth in both directions, then those halfway between, and so on.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.models.config import ExtremeConfig
from nic.models.extreme import books_of
from nic.models.prior import (
    ACTIVATION_MAX,
    CPU,
    QUALITY_LEVELS,
    UNIT,
    ContextBlock,
    ExactConv,
    QualityTable,
    full_precision,
    to_integer,
)

__all__ = ["LOGIT_CLASSES", "STEPS", "IndexPrior", "path_of", "step_positions"]

LOGIT_CLASSES = 128
LOGIT_STEP = 8  # classes per unit of a logit; class 64 means that both answers are equally likely
STEP_OF = torch.tensor([[0, 4, 2, 4], [5, 3, 5, 3], [2, 4, 1, 4], [5, 3, 5, 3]])  # by row and column modulo 4
STEPS = 6

# (step, features [n, C] of its positions, in raster order) -> their indices [n]
Source = Callable[[int, Tensor], Tensor]


@lru_cache(maxsize=64)
def step_positions(step: int, height: int, width: int, device: torch.device = CPU) -> Tensor:
    """The positions coded in ``step``: bool [height, width], not to be changed."""
    return (STEP_OF.repeat(math.ceil(height / 4), math.ceil(width / 4))[:height, :width] == step).to(device)


def path_of(indices: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Indices [n] -> the nodes on their paths and the answers there, each [n, bits]. The root is node 0."""
    levels = torch.arange(bits, device=indices.device)
    prefixes = indices[:, None] >> (bits - levels)
    return 2**levels - 1 + prefixes, indices[:, None] >> (bits - 1 - levels) & 1


class IndexPrior(nn.Module):
    """Positions' features from the codewords known so far, and the classes of the tree's nodes.

    Tensors are fixed point, 64 steps a unit; ``exact`` (after ``to_integer``) all of them are integers.
    """

    def __init__(self, config: ExtremeConfig) -> None:
        super().__init__()
        width = config.prior
        self.books = books_of(config)
        self.enter = nn.ModuleList(ExactConv(config.latent + 1, width, leaky=True) for _ in range(STEPS))
        self.quality = QualityTable(width)
        self.context = nn.Sequential(*(ContextBlock(width) for _ in range(config.prior_blocks)))
        self.leave = ExactConv(width, width)
        self.node = ExactConv(width, 2**config.index_bits - 1, bounded=False)
        self.exact = False

    def features(self, step: int, codewords: Tensor, known: Tensor, book: Tensor) -> Tensor:
        """Codewords [B, D, h, w], zero where not known [B, h, w] bool, book [B] int -> features [B, C, h, w]."""
        quality = (book * (QUALITY_LEVELS - 1) // (self.books - 1)) / 4
        x = torch.cat([codewords, UNIT * known[:, None].to(codewords)], dim=1).clamp(-ACTIVATION_MAX, ACTIVATION_MAX)
        x = (self.enter[step](x) + self.quality(quality)).clamp(-ACTIVATION_MAX, ACTIVATION_MAX)
        return self.leave(self.context(x))

    def logits(self, features: Tensor, nodes: Tensor) -> Tensor:
        """Features [n, C] and nodes [n, m] -> logits of the answer 1 there, [n, m]."""
        weight, bias = self.node.weight[:, :, 0, 0], self.node.bias
        if not self.exact:
            return (F.embedding(nodes, weight) @ features[:, :, None])[:, :, 0] + bias[nodes] * UNIT
        sums = (weight[nodes] * features[:, None]).sum(dim=2) + bias[nodes]
        return torch.round(sums * self.node.scale[nodes])

    def all_logits(self, features: Tensor, bits: int) -> Tensor:
        """Features [n, C] -> logits of every node of the codebook with 2^bits codewords, [n, 2^bits - 1]."""
        return self.node(features.T[None, :, :, None])[0, : 2**bits - 1, :, 0].T

    def to_class(self, logits: Tensor) -> Tensor:
        """Classes 0 ... 127 of logits, integers."""
        return torch.round(logits * (LOGIT_STEP / UNIT) + LOGIT_CLASSES // 2).clamp(0, LOGIT_CLASSES - 1).long()

    def decode(self, height: int, width: int, book: int, codewords: Tensor, source: Source) -> Tensor:
        """Indices [height, width] of one cell; every step's come from ``source``, in the encoder and in the decoder.

        codewords: those of the book, [K, D], fixed point.
        """
        device = codewords.device
        indices = torch.zeros(height, width, dtype=torch.long, device=device)
        known = torch.zeros(1, height, width, dtype=torch.bool, device=device)
        number = torch.tensor([book], device=device)
        context = codewords.new_zeros(1, codewords.shape[1], height, width)
        with full_precision(device.type):
            for step in range(STEPS):
                mask = step_positions(step, height, width, device)
                features = self.features(step, context, known, number)[0][:, mask].T
                indices[mask] = source(step, features)
                context[0][:, mask] = codewords[indices[mask]].T
                known[0] |= mask
        return indices

    def to_integer(self) -> "IndexPrior":
        """A copy over integers, held in float32."""
        return to_integer(self)
