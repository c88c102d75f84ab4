"""A discriminator that learns to tell decoded pictures from photographs, and what a synthesis loses to it.

It judges activations of VGG-16, which does not learn, each position of some layers for itself (Sauer et al., "Projected
GANs Converge Faster", arXiv 2111.01007): such judges learn within hundreds of steps what networks that see pixels need
many thousands for. The losses do not saturate (Goodfellow et al., "Generative Adversarial Nets", arXiv 1406.2661).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["LEARNING_RATE", "Adversary"]

LEARNING_RATE = 3.0  # relative to that of what it judges
WIDTH = 64
DECAY = 0.99  # of the mean squares of activations
EPSILON = 1e-6  # of these, for channels that are silent


class Adversary(nn.Module):
    """Activations [B, C, h, w] of each layer -> logits of being a photograph's [B, 1, h, w]."""

    seen: Tensor

    def __init__(self, channels: Sequence[int], weight: float) -> None:
        """channels: C of each layer. weight: of the synthesis' loss."""
        super().__init__()
        self.weight = weight
        self.judges = nn.ModuleList(
            nn.Sequential(spectral_norm(nn.Conv2d(count, WIDTH, 1)), nn.LeakyReLU(0.2), nn.Conv2d(WIDTH, 1, 1))
            for count in channels
        )
        for layer, count in enumerate(channels):
            self.register_buffer(f"squares{layer}", torch.ones(count))
        self.register_buffer("seen", torch.zeros(()))  # batches

    def forward(self, activations: Sequence[Tensor]) -> list[Tensor]:
        logits = []
        for layer, (judge, x) in enumerate(zip(self.judges, activations, strict=True)):
            scale = getattr(self, f"squares{layer}").rsqrt()
            logits.append(judge(x * scale[:, None, None]).float())
        return logits

    def loss(self, images: Sequence[Tensor], originals: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """From activations: what both minimise, summed, and for the log the mean losses of synthesis and discriminator.

        Gradients of the first reach ``images`` only, those of the second the discriminator only.
        """
        self.look(originals)
        self.requires_grad_(False)
        deceived = torch.stack([F.softplus(-logits).mean() for logits in self(images)]).mean()
        self.requires_grad_(True)
        real, fake = self([x.detach() for x in originals]), self([x.detach() for x in images])
        pairs = zip(real, fake, strict=True)
        told = torch.stack([F.softplus(-yes).mean() + F.softplus(no).mean() for yes, no in pairs]).mean()
        return self.weight * deceived + told, {"deceived": deceived, "told": told}

    @torch.no_grad()
    def look(self, originals: Sequence[Tensor]) -> None:
        """Takes in how large activations of photographs are."""
        for layer, x in enumerate(originals):
            share = 1 - DECAY if self.seen else 1.0
            getattr(self, f"squares{layer}").lerp_(x.float().square().mean((0, 2, 3)) + EPSILON, share)
        self.seen += 1
