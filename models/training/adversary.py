"""A discriminator that learns to tell decoded pictures from photographs, and what a synthesis loses to it.

Non-saturating losses (Goodfellow et al., "Generative Adversarial Nets", arXiv 1406.2661) for each patch, given what
the picture was made from, as in HiFiC (Mentzer et al., "High-Fidelity Generative Image Compression", arXiv 2006.09965).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["LEARNING_RATE", "Adversary"]

LEARNING_RATE = 0.2  # relative to that of what it judges
WIDTHS = (32, 64, 96, 128)  # channels after each halving of the resolution


class Adversary(nn.Module):
    """images [B, 3, H, W] in [0, 1] and a condition [B, C, H/16, W/16] -> logits of being real [B, 1, H/16, W/16]."""

    def __init__(self, condition: int, weight: float) -> None:
        """condition: its channels C. weight: of the synthesis' loss."""
        super().__init__()
        self.weight = weight
        sizes = (3, *WIDTHS)
        pairs = zip(sizes, WIDTHS, strict=False)
        self.halve = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairs)
        self.condition = nn.Conv2d(condition, WIDTHS[-1], 1)
        self.judge = nn.Sequential(
            spectral_norm(nn.Conv2d(2 * WIDTHS[-1], WIDTHS[-1], 1)), nn.LeakyReLU(0.2), nn.Conv2d(WIDTHS[-1], 1, 1)
        )

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        x = images - 0.5
        for conv in self.halve:
            x = F.leaky_relu(conv(x), 0.2)
        return self.judge(torch.cat([x, self.condition(condition)], dim=1)).float()

    def loss(self, images: Tensor, originals: Tensor, condition: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What both minimise, summed, and for the log the mean losses of the synthesis and of the discriminator.

        Gradients of the first reach ``images`` only, those of the second the discriminator only.
        """
        condition = condition.detach()
        self.requires_grad_(False)
        deceived = F.softplus(-self(images, condition)).mean()
        self.requires_grad_(True)
        real, fake = self(originals, condition), self(images.detach(), condition)
        told = (F.softplus(-real) + F.softplus(fake)).mean()
        return self.weight * deceived + told, {"deceived": deceived, "told": told}
