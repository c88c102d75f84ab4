"""The extreme mode as it is trained: one codeword for 16x16 pixels, from nested codebooks, and a synthesis for all.

Analysis and synthesis are those of the fidelity mode with few latents, vector-quantized as a whole (van den Oord et
al., "Neural Discrete Representation Learning", arXiv 1711.00937). The codebook is a fixed table times a learned
matrix, so that every step moves all its codewords (Zhu et al., "Addressing Representation Collapse in Vector Quantized
Models with One Linear Layer", arXiv 2411.02038). Smaller codebooks are clusters of it, as in Mao et al., "Extreme Image
Compression using Fine-tuned VQGANs", arXiv 2307.08265; here the clusters are the subtrees of a binary tree: the
codebook of 2^b codewords is indexed by the first b bits.
To the codewords of the largest codebook, vectors of basis codebooks may be added (nic/models/bases.py).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nic.models.bases import Bases
from nic.models.config import ExtremeConfig
from nic.models.prior import UNIT
from nic.models.transforms import QUALITY_INDICES, Analysis, Synthesis

if TYPE_CHECKING:
    from nic.models.training.perceptual import Perceptual

__all__ = ["BITS_MIN", "Codebook", "ExtremeCodec", "apart", "book_quality", "books_of", "nearest", "to_fixed_point"]

BITS_MIN = 3  # the smallest codebook has 8 codewords
USE_DECAY = 0.99  # of the running counts of how often codewords are used
CODEBOOK_WEIGHT = 1.0  # of the squared distance from codewords to latents


def books_of(config: ExtremeConfig) -> int:
    """How many codebooks there are."""
    return config.index_bits - BITS_MIN + 1


def book_quality(book: Tensor, config: ExtremeConfig) -> Tensor:
    """The quality in [0, 63] that stands for a codebook, 0 being the smallest."""
    return book * ((QUALITY_INDICES - 1) / (books_of(config) - 1))


def nearest(vectors: Tensor, codewords: Tensor) -> Tensor:
    """Indices [n] of the codewords [K, D] nearest to vectors [n, D]."""
    return torch.addmm(codewords.square().sum(dim=1), vectors, codewords.T, alpha=-2).argmin(dim=1)


def apart(codewords: Tensor) -> Tensor:
    """The mean squared distance of sibling codewords: a measure for rate weights."""
    return (codewords[::2] - codewords[1::2]).square().sum(dim=1).mean()


def to_fixed_point(codewords: Tensor) -> Tensor:
    """Codewords as models have them, in steps of 1 / UNIT and 16 bits."""
    return torch.round(codewords * UNIT).clamp(-(2**15) + 1, 2**15 - 1)


class Codebook(nn.Module):
    """2^bits codewords of some dimension in the order of their tree, and the codebooks nested in it."""

    def __init__(self, bits: int, dimension: int) -> None:
        super().__init__()
        self.bits = bits
        self.anchors: Tensor
        self.use: Tensor
        self.register_buffer("anchors", torch.randn(2**bits, dimension))
        self.register_buffer("use", torch.ones(2**bits))
        self.register_buffer("fitted", torch.full((2 ** (bits + 1) - 2**BITS_MIN, dimension), torch.nan))
        self.matrix = nn.Parameter(torch.eye(dimension))
        self.offset = nn.Parameter(torch.zeros(dimension))

    def codewords(self, book: int) -> Tensor:
        """Those of codebook ``book`` (0 is the smallest), [K, D].

        They are means of the largest one's, weighted by use, until all are fitted to latents.
        """
        if not self.fitted[0, 0].isnan():
            return self.place(book)
        leaves = self.anchors @ self.matrix + self.offset
        use = self.use.clamp(min=0.01)[:, None]
        shape = (2 ** (book + BITS_MIN), -1)
        clusters = (leaves * use).view(*shape, leaves.shape[1]).sum(dim=1)
        return clusters / use.view(shape).sum(dim=1, keepdim=True)

    def place(self, book: int) -> Tensor:
        """Where the fitted codewords of a book are, a view."""
        return self.fitted[2 ** (book + BITS_MIN) - 2**BITS_MIN :][: 2 ** (book + BITS_MIN)]

    @torch.no_grad()
    def release(self) -> None:
        """Fitted codewords of the largest codebook become the table that learns again; those of the others are lost."""
        if not self.fitted[0, 0].isnan():
            self.anchors.copy_(self.place(self.bits - BITS_MIN))
            self.matrix.copy_(torch.eye(len(self.matrix)))
            self.offset.zero_()
            self.fitted.fill_(torch.nan)

    @torch.no_grad()
    def count(self, indices: Tensor) -> None:
        """Takes down a batch's indices into the largest codebook."""
        counts = torch.bincount(indices, minlength=len(self.use)).float()
        self.use.lerp_(counts * (len(counts) / max(1, len(indices))), 1 - USE_DECAY)


class ExtremeCodec(nn.Module):
    """Analysis, codebooks and synthesis."""

    def __init__(self, config: ExtremeConfig) -> None:
        super().__init__()
        self.config = config
        self.analysis = Analysis(config)
        self.codebook = Codebook(config.index_bits, config.latent)
        self.bases = Bases(config.latent)
        self.synthesis = Synthesis(config)

    def forward(self, images: Tensor, book: Tensor, basis_weight: Tensor | None = None) -> dict[str, Tensor]:
        """images [B, 3, H, W] in [0, 1], book [B] int -> images, codewords, and squared distances to these [B].

        basis_weight: [B], for pictures that add vectors of the bases the rate weight, as in bases.RATE_WEIGHTS; else 0.
        """
        quality = book_quality(book, self.config)
        latents = self.analysis(images, quality)
        with torch.autocast(images.device.type, enabled=False):
            quantized, commitment, codebook = self.quantize(latents.float(), book)
            if basis_weight is not None and (rows := basis_weight > 0).any():
                residuals = latents[rows].float() - quantized[rows]
                quantized[rows] = quantized[rows] + self.additions(residuals, basis_weight[rows])
        images = self.synthesis(quantized, quality)
        return {"images": images, "commitment": commitment, "codebook": codebook}

    @torch.no_grad()
    def additions(self, residuals: Tensor, weight: Tensor) -> Tensor:
        """What bases add to codewords of the largest codebook for residuals [B, D, h, w] at rate weights [B]."""
        vectors = residuals.movedim(1, -1)
        weights = (weight * apart(self.codebook.codewords(books_of(self.config) - 1)))[:, None, None]
        added = self.bases(vectors.flatten(0, 2), weights.expand(vectors.shape[:3]).flatten())
        return added.view(vectors.shape).movedim(-1, 1)

    def quantize(self, latents: Tensor, book: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, D, h, w] -> codewords, straight-through, and both halves of the distance, each [B]."""
        chosen = torch.empty_like(latents)
        for number in book.unique().tolist():
            rows = book == number
            vectors = latents[rows].movedim(1, -1)
            codewords = self.codebook.codewords(number)
            flat = vectors.detach().reshape(-1, vectors.shape[-1])
            indices = nearest(flat, codewords.detach())
            if self.training and number == books_of(self.config) - 1:
                self.codebook.count(indices)
            chosen[rows] = codewords[indices].view(vectors.shape).movedim(-1, 1)
        commitment = (latents - chosen.detach()).square().mean(dim=(1, 2, 3))
        codebook = (latents.detach() - chosen).square().mean(dim=(1, 2, 3))
        return latents + (chosen - latents).detach(), commitment, codebook

    def loss(
        self, images: Tensor, book: Tensor, basis_weight: Tensor | None, perceptual: "Perceptual"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """MSE + what is seen + distances to codewords."""
        out = self(images, book, basis_weight)
        mse = (out["images"].float() - images).square().mean(dim=(1, 2, 3))
        seen, its_parts = perceptual.loss(out["images"].float(), images)
        distances = self.config.commitment * out["commitment"] + CODEBOOK_WEIGHT * out["codebook"]
        loss = (self.config.mse * mse + distances).mean() + seen
        return loss, {"mse": mse, **its_parts, "distance": out["commitment"]}
