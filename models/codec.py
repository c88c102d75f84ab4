"""The image codec as it is trained: transforms and prior in float, and the rate-distortion loss."""

import math

import torch
from torch import Tensor, nn

from nic.models.config import ImageConfig
from nic.models.prior import CLASSES, STEPS, UNIT, Prior, step_mask
from nic.models.transforms import (
    Analysis,
    HyperAnalysis,
    Synthesis,
    lambda_of,
    start_from_dct,
    start_linear_from_dct,
)
from nic.models.vq import Codebooks

__all__ = ["ImageCodec", "class_sigma", "gaussian_bits"]

SIGMA_MIN, SIGMA_MAX = 0.11, 64.0  # standard deviations of scale classes 0 and 63, in quantization steps


def class_sigma(scale_class: Tensor) -> Tensor:
    """Standard deviation that a scale class (real-valued in training) stands for: log-spaced."""
    return torch.exp(math.log(SIGMA_MIN) + (math.log(SIGMA_MAX / SIGMA_MIN) / (CLASSES - 1)) * scale_class)


def gaussian_bits(residual: Tensor, sigma: Tensor) -> Tensor:
    """Bits of a residual, uniform noise added, under a zero-mean Gaussian integrated over one quantization step.

    Balle et al., "Variational Image Compression with a Scale Hyperprior", arXiv 1802.01436, appendix 6.2.
    """
    upper = torch.special.ndtr((0.5 - residual.abs()) / sigma)
    lower = torch.special.ndtr((-0.5 - residual.abs()) / sigma)
    return -torch.log2((upper - lower).clamp(min=1e-9))


class ImageCodec(nn.Module):
    """Analysis, hyper-analysis, prior and synthesis."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        self.analysis = Analysis(config)
        self.hyper_analysis = HyperAnalysis(config)
        self.prior = Prior(config)
        self.synthesis = Synthesis(config)
        self.codebooks: Codebooks | None = None  # set for fine-tuning with the hard quantizer

    def start_from_dct(self) -> None:
        """What a training run starts from."""
        a, s = self.analysis, self.synthesis
        start_from_dct(a.patch, a.down, a.latent)
        start_from_dct(s.patch, s.up, s.latent, inverse=True)
        if a.linear and s.linear:
            start_linear_from_dct(a.linear, self.config.deep)
            start_linear_from_dct(s.linear, self.config.deep, inverse=True)

    def forward(self, images: Tensor, quality: Tensor) -> dict[str, Tensor]:
        """images [B, 3, H, W] in [0, 1], quality [B] in [0, 63] -> images, bits of y and of z [B]."""
        y = self.analysis(images, quality)
        z = self.hyper_analysis(y)
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 has too few bits for means and likelihoods
            z_hat, z_bits = self.quantize_hyper(z.float(), quality)
            features = self.prior.features(z_hat * UNIT, quality)
            y_hat, y_bits = self.quantize(y.float(), features)
        return {"images": self.synthesis(y_hat, quality), "y_bits": y_bits, "z_bits": z_bits}

    def quantize_hyper(self, z: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale_class = self.prior.hyper_prior(quality)
        residual = z - mean / UNIT
        hard = torch.round(residual).detach()
        bits = gaussian_bits(self.told(residual, hard), class_sigma(scale_class))
        return z + (hard - residual).detach(), bits.sum(dim=(1, 2, 3))

    def quantize(self, y: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Straight-through hard quantization of the residuals for the synthesis; the rate is that of ``told``."""
        y_hat, told, scale = torch.zeros_like(y), torch.zeros_like(y), y.new_zeros(1)
        for step in range(STEPS):
            mask = step_mask(step, *y.shape[1:], y.device)
            mean, scale_class = (x.float() for x in self.prior.step(step, features, y_hat * UNIT))
            residual = y - mean / UNIT
            hard = self.quantize_residuals(residual.detach(), scale_class.detach(), mask)
            told = told + self.told(residual, hard) * mask
            scale = scale + scale_class * mask
            y_hat = y_hat + (y + (hard - residual).detach()) * mask
        return y_hat, gaussian_bits(told, class_sigma(scale)).sum(dim=(1, 2, 3))

    def told(self, residual: Tensor, hard: Tensor) -> Tensor:
        """What the rate is taken of: with uniform noise in training, else the residuals as they are quantized."""
        return residual + torch.rand_like(residual) - 0.5 if self.training else hard

    def quantize_residuals(self, residual: Tensor, scale_class: Tensor, mask: Tensor) -> Tensor:
        """Residuals [B, M, h, w] rounded to whole steps or, once there are codebooks, to codewords where selected."""
        if self.codebooks is None:
            return torch.round(residual)
        selected, classes = (residual * UNIT)[:, mask], torch.round(scale_class[:, mask]).long()
        hard = torch.zeros_like(residual)
        hard[:, mask] = self.codebooks.reconstruct(selected.flatten(), classes.flatten()).view_as(selected) / UNIT
        return hard

    def loss(self, images: Tensor, quality: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Rate + lambda * distortion, each sample divided by sqrt(lambda) so that all rates weigh alike."""
        out = self(images, quality)
        pixels = images.shape[2] * images.shape[3]
        bpp = (out["y_bits"] + out["z_bits"]) / pixels
        mse = (out["images"].float() - images).square().mean(dim=(1, 2, 3))
        trade_off = lambda_of(quality, self.config)
        loss = ((bpp + trade_off * 255**2 * mse) / trade_off.sqrt()).mean()
        return loss, {"bpp": bpp, "mse": mse, "z_bpp": out["z_bits"] / pixels}
