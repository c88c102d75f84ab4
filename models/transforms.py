"""Analysis and synthesis: pixels to latents and back, in float.

One low-resolution trunk of 1x1 convolutions with 3x3 depthwise ones between, as in DCVC-RT (Jia et al., "Towards
Practical Real-Time Neural Video Compression", arXiv 2502.20762, section 3.2). Quality is a vector of gains
(Cui et al., "Asymmetric Gained Deep Image Compression", arXiv 2003.02012), log-interpolated between learned knots.

Where convolutions compute in bfloat16, in training, what leaves or enters as pixels and latents and the residual stream
between are float32 all the same: eight bits cost 0.2 dB at the highest quality.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.models.config import ImageConfig, RefinerConfig, TransformConfig

__all__ = [
    "Analysis",
    "GREY",
    "Gain",
    "HyperAnalysis",
    "LATENT",
    "PATCH",
    "PostFilter",
    "QUALITY_INDICES",
    "Synthesis",
    "bits_per_error",
    "filter_reach",
    "lambda_of",
    "start_from_dct",
    "start_linear_from_dct",
]

QUALITY_INDICES = 64  # quality runs over the reals in [0, 63]
PATCH = 8
GREY = 0.5
HALF = 2  # pixels a side of a position of the post-filter
FINEST = 3.0  # logarithm of the gain that details have in it at the lowest quality, before any training
LATENT = 16  # pixels a side of a latent


class DepthBlock(nn.Module):
    """x + pointwise-depthwise-pointwise, then x + gated pointwise feed-forward: 5 C^2 MAC per position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(width, width, 1)
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.leave = nn.Conv2d(width, width, 1)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.contract = nn.Conv2d(width, width, 1)
        for last in (self.leave, self.contract):  # start close to the identity
            nn.init.normal_(last.weight, std=0.2 / math.sqrt(width))
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.leave(self.spatial(F.leaky_relu(self.enter(x), 0.125)))
        value, gate = self.expand(x).chunk(2, dim=1)
        return x + self.contract(value * F.sigmoid(gate))


def blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(DepthBlock(width) for _ in range(count)))


def in_float32(device: torch.device) -> torch.autocast:
    """In here, convolutions compute in the type of what they are given."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


class Gain(nn.Module):
    """Per-channel gains exp(g(quality)), piecewise linear in quality between knots.

    quality: [B] float in [0, 63]; returns [B, C, 1, 1]. ``start`` and ``stop`` are the logarithms at both ends.
    """

    KNOTS = 8

    def __init__(self, channels: int, start: float = 0.0, stop: float = 0.0) -> None:
        super().__init__()
        self.knots = nn.Parameter(torch.linspace(start, stop, self.KNOTS)[:, None].repeat(1, channels))

    def forward(self, quality: Tensor) -> Tensor:
        return interpolate(self.knots, quality).exp()[:, :, None, None]


def interpolate(knots: Tensor, quality: Tensor) -> Tensor:
    """Piecewise linear interpolation of knots [K, C] at quality [B] in [0, 63]: [B, C]."""
    position = quality.clamp(0, QUALITY_INDICES - 1) * ((knots.shape[0] - 1) / (QUALITY_INDICES - 1))
    left = position.floor().long().clamp(max=knots.shape[0] - 2)
    return torch.lerp(knots[left], knots[left + 1], (position - left)[:, None])


def lambda_of(quality: Tensor, config: ImageConfig) -> Tensor:
    """The trade-off that quality [B] stands for: loss = bits per pixel + lambda * MSE on the 0..255 scale."""
    low, high = math.log(config.lambda_min), math.log(config.lambda_max)
    return torch.exp(low + (high - low) / (QUALITY_INDICES - 1) * quality)


def bits_per_error(quality: Tensor, config: ImageConfig) -> float:
    """What a squared error of one sample, nominally in [0, 1], counts in bits at quality [1]; pixels have three."""
    return float(lambda_of(quality, config)) * 255**2 / 3


class Analysis(nn.Module):
    """images [B, 3, H, W] in [0, 1], H and W multiples of 64 -> latents y [B, M, H/16, W/16], quantization step 1."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3 * PATCH**2, config.trunk, 1)
        self.trunk_gain = Gain(config.trunk)
        self.trunk = blocks(config.trunk, config.trunk_blocks)
        self.down = nn.Conv2d(4 * config.trunk, config.deep, 1)
        self.deep = blocks(config.deep, config.deep_blocks)
        self.latent = nn.Conv2d(config.deep, config.latent, 1)
        self.linear = nn.Conv2d(3 * LATENT**2, config.latent, 1) if config.linear else None
        self.gain = Gain(config.latent, *config.log_gains)

    def forward(self, images: Tensor, quality: Tensor) -> Tensor:
        x = self.patch(F.pixel_unshuffle(images - GREY, PATCH)).float()
        x = self.trunk(x * self.trunk_gain(quality))
        x = self.deep(self.down(F.pixel_unshuffle(x, 2)).float())
        with in_float32(images.device):
            y = self.latent(x)
            if self.linear:
                y = y + self.linear(F.pixel_unshuffle(images - GREY, LATENT))
            return y * self.gain(quality)


class FilterBlock(nn.Module):
    """x + two 3x3 convolutions: 18 C^2 MAC per position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(self.leave.weight, std=0.07 / math.sqrt(width))  # close to the identity
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(F.leaky_relu(self.enter(x), 0.125))


class PostFilter(nn.Module):
    """Mends what patches lack that were made one by one: blocks at 1/2 resolution see across their borders.

    What it sees of the images is how each pixel differs from those around it, in units of about their error.
    """

    def __init__(self, config: TransformConfig | RefinerConfig) -> None:
        super().__init__()
        low, high = config.log_gains
        units = FINEST, FINEST + (high - low) / 2
        self.details = nn.Conv2d(3 * HALF**2, config.filter, 1)
        self.details_gain = Gain(3 * HALF**2, *units)
        self.trunk = nn.Conv2d(config.trunk, config.filter * (PATCH // HALF) ** 2, 1)
        self.blocks = nn.Sequential(*(FilterBlock(config.filter) for _ in range(config.filter_blocks)))
        self.leave = nn.Conv2d(config.filter, 3 * HALF**2, 1)
        self.gain = Gain(3 * HALF**2, *(-unit for unit in units))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, images: Tensor, trunk: Tensor, quality: Tensor) -> Tensor:
        """images [B, 3, 8 h, 8 w], and what their patches were made of, trunk [B, C, h, w]: better images."""
        with in_float32(images.device):
            details = F.pixel_unshuffle(images - blurred(images), HALF)
            x = self.details(details * self.details_gain(quality))
        x = self.blocks(x + F.pixel_shuffle(self.trunk(trunk).float(), PATCH // HALF))
        with in_float32(images.device):
            return images + F.pixel_shuffle(self.leave(x) * self.gain(quality), HALF)


def filter_reach(config: TransformConfig | RefinerConfig) -> int:
    """Pixels around a position that the post-filter sees: two convolutions a block, and what is around a detail."""
    return HALF * (2 * config.filter_blocks + 1) if config.filter else 0


def blurred(images: Tensor) -> Tensor:
    """Images [B, 3, H, W], each pixel the mean of itself and its neighbours, weighted 1, 2, 1 in both directions."""
    line = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


class Synthesis(nn.Module):
    """latents [B, M, h, w] -> images [B, 3, 16 h, 16 w], nominally in [0, 1], not clamped.

    They are what latents add to a prediction of that size, which is mid-grey for pictures.
    """

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.gain = Gain(config.latent, *(-gain for gain in config.log_gains))
        self.latent = nn.Conv2d(config.latent, config.deep, 1)
        self.deep = blocks(config.deep, config.deep_blocks)
        self.up = nn.Conv2d(config.deep, 4 * config.trunk, 1)
        self.trunk = blocks(config.trunk, config.trunk_blocks)
        self.trunk_gain = Gain(config.trunk)
        self.patch = nn.Conv2d(config.trunk, 3 * PATCH**2, 1)
        self.linear = nn.Conv2d(config.latent, 3 * LATENT**2, 1) if config.linear else None
        self.filter = PostFilter(config) if config.filter else None

    def forward(self, latents: Tensor, quality: Tensor, prediction: Tensor | float = GREY) -> Tensor:
        with in_float32(latents.device):
            y = latents * self.gain(quality)
            x = self.latent(y)
        x = self.trunk(F.pixel_shuffle(self.up(self.deep(x)).float(), 2))
        with in_float32(latents.device):
            images = prediction + F.pixel_shuffle(self.patch(x * self.trunk_gain(quality)), PATCH)
            if self.linear:
                images = images + F.pixel_shuffle(self.linear(y), LATENT)
        return self.filter(images, x, quality) if self.filter else images


class HyperAnalysis(nn.Module):
    """latents y [B, M, h, w] -> hyper-latents z [B, N, h/4, w/4], quantization step 1."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        width = config.prior
        self.net = nn.Sequential(
            nn.Conv2d(config.latent, width, 1),
            DepthBlock(width),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * width, width, 1),
            DepthBlock(width),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * width, config.hyper, 1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.net(latents)


@torch.no_grad()
def start_from_dct(patch: nn.Conv2d, middle: nn.Conv2d, latent: nn.Conv2d, inverse: bool = False) -> None:
    """Initialises three projections with an orthonormal transform of 16x16 pixels, or with its inverse.

    An 8x8 DCT in a luma/chroma basis, lowest frequencies first, then a 2x2 Haar transform over its coefficients:
    training starts from JPEG's transform instead of noise. Channel c of every stage holds the c-th lowest frequency;
    channels beyond the 192 of the transform keep their random weights in the analysis and start at 0 in the synthesis.
    """
    width = patch.weight.shape[1 if inverse else 0]
    forward, frequencies = dct(PATCH, width)
    bands = []
    for channel, (c, u, v) in enumerate(frequencies):
        for du in (0, 1):
            for dv in (0, 1):
                signs = torch.tensor([[1, 1 - 2 * dv], [1 - 2 * du, (1 - 2 * dv) * (1 - 2 * du)]]) / 2
                row = torch.zeros(width, 2, 2, dtype=torch.float64)
                row[channel] = signs
                bands.append((frequency_rank(c, 2 * u + du, 2 * v + dv, 2 * PATCH), c, u, v, du, dv, row.flatten()))
    bands.sort(key=lambda band: band[:6])
    deep, latents = (conv.weight.shape[1 if inverse else 0] for conv in (middle, latent))
    matrices = [forward, torch.stack([band[6] for band in bands[:deep]]), torch.eye(latents, deep)]
    for conv, matrix in zip((patch, middle, latent), matrices, strict=True):
        matrix = matrix.T if inverse else matrix
        if inverse:
            conv.weight.zero_()
        conv.weight[: matrix.shape[0], : matrix.shape[1], 0, 0] = matrix
        conv.bias.zero_()  # type: ignore[union-attr]


@torch.no_grad()
def start_linear_from_dct(linear: nn.Conv2d, first: int, inverse: bool = False) -> None:
    """Initialises the linear transform of latents from ``first`` on, those that the network cannot carry."""
    weight = linear.weight[:, :, 0, 0].T if inverse else linear.weight[:, :, 0, 0]
    weight.zero_()
    weight[first:] = dct(LATENT, len(weight))[0][first:]
    linear.bias.zero_()  # type: ignore[union-attr]


def dct(size: int, count: int) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """The ``count`` lowest frequencies of an orthonormal DCT of blocks in a luma/chroma basis, lowest first.

    Rows [count, 3 size^2] in the order of pixel_unshuffle, and (colour, vertical, horizontal frequency) of each.
    """
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    colour = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=torch.float64).T)[0].T
    every = itertools.product(range(3), range(size), range(size))
    frequencies = sorted(every, key=lambda f: frequency_rank(f[0], f[1], f[2], size))
    rows = [torch.einsum("c,y,x->cyx", colour[c], basis[u], basis[v]).flatten() for c, u, v in frequencies[:count]]
    return torch.stack(rows), frequencies[:count]


def frequency_rank(colour: int, u: int, v: int, size: int) -> float:
    """Orders coefficients by how much a photograph has of them: low before high, luma before chroma."""
    return (u * u + v * v) ** 0.5 / size * (1 if colour == 0 else 2.5) + (0.05 if colour else 0)
