"""The prior: hyper-synthesis and a four-step spatial-channel context, one network for floats and for integers.

For every latent not yet decoded it predicts a mean and a scale class, from the hyper-latents and the latents decoded in
earlier steps (quadtree partition: Li et al., "Neural Video Compression with Feature Modulation", arXiv 2402.17414,
section 3.3). Training runs it in float. Coding runs the same network over integers (Balle et al., "Integer Networks for
Data Compression with Latent-Variable Models", ICLR 2019), because what it returns decides which frequency table is
used: one differing bit would lose the file.

Fixed point: activations, means and latents count steps of 1/64. Activations are clamped to +-2047 and weights scaled,
by a power of two for each output channel, such that no partial sum of a convolution can reach 2^24. So every
intermediate is an integer that float32 holds exactly, whatever the order of summation, the library or the device.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nic.models.config import LEVELS, ImageConfig
from nic.models.transforms import interpolate

__all__ = [
    "ACTIVATION_MAX",
    "CELL",
    "CLASSES",
    "CPU",
    "LATENT_MAX",
    "OUTER",
    "QUALITY_LEVELS",
    "STEPS",
    "UNIT",
    "ContextBlock",
    "ExactConv",
    "Prior",
    "QualityTable",
    "Source",
    "full_precision",
    "step_mask",
    "to_integer",
]

UNIT = 64  # fixed-point steps per quantization step
ACTIVATION_MAX = 2047
LATENT_MAX = 2**17 - 1  # |latent| in fixed point: 2048 quantization steps
EXACT_MAX = 2**24 - 1  # float32 holds every integer up to here
LATENT_SHRINK = 8  # latents enter the context network divided by this, to fit ACTIVATION_MAX
CLASSES = 64
CLASS_STEP = 8  # scale classes per unit of the network's output
CLASS_ORIGIN = 24  # scale class where that output is zero
STEPS = 4
CPU = torch.device("cpu")
Exact = TypeVar("Exact", bound=nn.Module)
CELL = 64  # latents a side of an independently coded cell
OUTER = ("leave", "head")  # layers whose outputs have the scale of latents
PARITIES = ((0, 0), (1, 1), (0, 1), (1, 0))  # of row and column
QUALITY_LEVELS = LEVELS + 1  # quarters of an index


@lru_cache(maxsize=64)
def step_mask(step: int, channels: int, height: int, width: int, device: torch.device = CPU) -> Tensor:
    """The latents decoded in ``step``: bool [channels, height, width], not to be changed.

    Channels fall into four chunks; chunk c is decoded at parity ``PARITIES[step ^ c]``, so each step decodes one
    chunk at every position, and after two steps each chunk is known on a checkerboard.
    """
    mask = torch.zeros(channels, height, width, dtype=torch.bool)
    for chunk in range(4):
        row, column = PARITIES[step ^ chunk]
        mask[chunk * channels // 4 : (chunk + 1) * channels // 4, row::2, column::2] = True
    return mask.to(device)


# (stage, means [B, L], scale classes [B, L]) -> residuals [B, L]; stage 0 is the hyper-latents, 1 to 4 the steps;
# latents come in the order channel, row, column.
Source = Callable[[int, Tensor, Tensor], Tensor]


BACKENDS: Any = torch.backends
SETTABLE = hasattr(BACKENDS.cuda.matmul, "fp32_precision")


class Precision:
    """How PyTorch multiplies float32 matrices, for the whole process: exactly, while any thread is in here."""

    def __init__(self) -> None:
        self.lock, self.threads, self.before = threading.Lock(), 0, ("", "")

    def __enter__(self) -> None:
        with self.lock:
            if not self.threads:
                self.before = self.setting
                self.setting = ("ieee", "ieee") if SETTABLE else ("highest", "")
            self.threads += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.threads -= 1
            if not self.threads:
                self.setting = self.before

    @property
    def setting(self) -> tuple[str, str]:
        """On GPUs and on CPUs; before torch 2.9 there was one for both."""
        if SETTABLE:
            return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.mkldnn.matmul.fp32_precision
        return torch.get_float32_matmul_precision(), ""

    @setting.setter
    def setting(self, names: tuple[str, str]) -> None:
        if SETTABLE:
            BACKENDS.cuda.matmul.fp32_precision, BACKENDS.mkldnn.matmul.fp32_precision = names
        else:
            torch.set_float32_matmul_precision(names[0])


PRECISION = Precision()


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Float32 products keep all their bits in here, whatever the program around nic has allowed."""
    with PRECISION, torch.autocast(device, enabled=False):
        yield


class Round(torch.autograd.Function):
    """Rounded, with the gradient of what is rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def straight_through(x: Tensor) -> Tensor:
    rounded: Tensor = Round.apply(x)
    return rounded


def in_range(x: Tensor) -> Tensor:
    """Clamped to the range of activations; this operation's gradient costs less than ``clamp``'s."""
    return F.hardtanh(x, -ACTIVATION_MAX, ACTIVATION_MAX)


class ExactConv(nn.Module):
    """A stride-1 convolution in fixed-point range, dense 1x1 or depthwise 3x3, as it is trained.

    ``bounded`` outputs are activations and clamped to their range; the others are means and classes. While it is
    trained, outputs are rounded as integers will be, so that it learns to say nothing in fractions.
    """

    def __init__(
        self, inputs: int, outputs: int, *, depthwise: bool = False, leaky: bool = False, bounded: bool = True
    ) -> None:
        super().__init__()
        size = 3 if depthwise else 1
        template = nn.Conv2d(inputs, outputs, size, groups=inputs if depthwise else 1)
        self.weight = template.weight
        self.bias = nn.Parameter(torch.zeros(outputs))  # in units of 64 steps, so that it learns as fast as the weights
        self.groups = template.groups
        self.leaky = leaky
        self.bounded = bounded

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias * UNIT, padding=self.weight.shape[2] // 2, groups=self.groups)
        x = self.activate(x)
        return straight_through(x) if self.training else x

    def activate(self, x: Tensor) -> Tensor:
        if self.leaky:
            x = F.leaky_relu(x, 0.125)
        return in_range(x) if self.bounded else x


class IntegerConv(ExactConv):
    """Its integer counterpart: weights [O, I, k, k], biases [O] and right shifts [O] are integers in a float dtype."""

    def __init__(self, trained: ExactConv) -> None:
        nn.Module.__init__(self)
        self.groups, self.leaky, self.bounded = trained.groups, trained.leaky, trained.bounded
        weight, bias = trained.weight.detach().double(), trained.bias.detach().double() * UNIT
        reach = ACTIVATION_MAX * weight.abs().sum(dim=(1, 2, 3)) + bias.abs()
        slack = ACTIVATION_MAX * weight[0].numel() / 2 + 1  # the most that rounding can add
        shift = torch.floor(torch.log2((EXACT_MAX - slack) / reach.clamp(min=1e-9))).clamp(0, 14)
        scale = torch.exp2(shift)
        self.register_buffer("weight", torch.round(weight * scale[:, None, None, None]).float())
        self.register_buffer("bias", torch.round(bias * scale).float())
        self.register_buffer("shift", shift.float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(self.activate(self.sums(x) * self.scale[:, None, None]))

    @property
    def scale(self) -> Tensor:
        """2^-shift [O] by an integer shift and a division, which are exact on every device; exp2 may not be."""
        return 1 / (1 << self.shift.long()).to(self.shift)

    def sums(self, x: Tensor) -> Tensor:
        """The convolution as a matrix product or as nine shifted products.

        Not ``conv2d``: a library may compute that by Winograd's or Fourier's transform, whose intermediates are not
        these integers. (PyTorch does so for depthwise kernels where oneDNN is off.)
        """
        if self.groups == 1:
            return F.linear(x.movedim(1, -1), self.weight[:, :, 0, 0], self.bias).movedim(-1, 1)
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        total = self.bias[:, None, None].expand_as(x)
        for row in range(3):
            for column in range(3):
                shifted = padded[:, :, row : row + height, column : column + width]
                total = torch.addcmul(total, shifted, self.weight[:, :, row, column, None])
        return total

    def largest_sum(self) -> float:
        """The largest magnitude that any partial sum can reach; exact in float32 while it is below 2^24."""
        sums = ACTIVATION_MAX * self.weight.double().abs().sum(dim=(1, 2, 3)) + self.bias.double().abs()
        return float(sums.max())


class QualityTable(nn.Module):
    """A vector for each quality in [0, 63], in fixed point, interpolated between learned knots."""

    KNOTS = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.knots = nn.Parameter(torch.zeros(self.KNOTS, channels))

    def forward(self, quality: Tensor) -> Tensor:
        values = interpolate(self.knots, quality)[:, :, None, None] * UNIT
        return straight_through(values) if self.training else values


class IntegerTable(nn.Module):
    """Its integer counterpart, one row for each of the quality levels that a file can name."""

    def __init__(self, trained: QualityTable) -> None:
        super().__init__()
        levels = torch.arange(QUALITY_LEVELS, device=trained.knots.device) / 4
        self.register_buffer("table", torch.round(trained(levels).detach()[:, :, 0, 0]))

    def forward(self, quality: Tensor) -> Tensor:
        return self.table[torch.round(quality * 4).long()][:, :, None, None]


def to_integer(trained: Exact) -> Exact:
    """A copy over integers of a network with the attribute ``exact``."""
    network = copy.deepcopy(trained).eval()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ExactConv):
                setattr(parent, name, IntegerConv(child))
            elif isinstance(child, QualityTable):
                setattr(parent, name, IntegerTable(child))
    network.exact = True  # type: ignore[assignment]
    return network.requires_grad_(False)


class ContextBlock(nn.Module):
    """x + pointwise-depthwise-pointwise, clamped to the range of activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = ExactConv(width, width, leaky=True)
        self.spatial = ExactConv(width, width, depthwise=True)
        self.leave = ExactConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return in_range(x + self.leave(self.spatial(self.enter(x))))


class Prior(nn.Module):
    """All that decides symbols. Tensors in and out are fixed point (64 steps a unit); quality is [B] in [0, 63]."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        width, latent, hyper = config.prior, config.latent, config.hyper
        self.hyper_mean = QualityTable(hyper)
        self.hyper_scale = QualityTable(hyper)
        self.quality = QualityTable(width)
        self.hyper_synthesis = nn.Sequential(
            ExactConv(hyper, width, leaky=True),
            ContextBlock(width),
            ExactConv(width, 4 * width, leaky=True),
            nn.PixelShuffle(2),
            ContextBlock(width),
            ExactConv(width, 4 * width, leaky=True),
            nn.PixelShuffle(2),
        )
        self.enter = nn.ModuleList(ExactConv(width + latent, width, leaky=True) for _ in range(STEPS))
        self.context = nn.Sequential(*(ContextBlock(width) for _ in range(config.prior_blocks)))
        self.leave = nn.ModuleList(ExactConv(width, width, leaky=True) for _ in range(STEPS))
        self.head = nn.ModuleList(ExactConv(width, 2 * latent, bounded=False) for _ in range(STEPS))
        self.latent = latent
        self.exact = False

    def hyper_prior(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scale classes [B, N, 1, 1] of the hyper-latents: static for a quality."""
        return self.hyper_mean(quality), self.to_class(self.hyper_scale(quality))

    def features(self, hyper_latents: Tensor, quality: Tensor) -> Tensor:
        """Hyper-latents [B, N, h/4, w/4] -> what every step starts from, [B, C, h, w]."""
        x = in_range(hyper_latents)
        return in_range(self.hyper_synthesis(x) + self.quality(quality))

    def step(self, step: int, features: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scale classes [B, M, h, w], of which those of ``step_mask(step)`` are meant.

        latents: [B, M, h, w], zero where not yet decoded.
        """
        known = latents / LATENT_SHRINK
        if self.exact:
            known = torch.round(known)
        elif self.training:
            known = straight_through(known)
        known = in_range(known)
        x = self.context(self.enter[step](torch.cat([features, known], dim=1)))
        mean, scale = self.head[step](self.leave[step](x)).chunk(2, dim=1)
        return mean, self.to_class(scale)

    def targets(self, y: Tensor, z: Tensor) -> list[Tensor]:
        """What an encoder aims at in each stage of ``decode``: latents [B, L], fixed point, of y and z in steps."""
        masks = (step_mask(step, *y.shape[1:], y.device) for step in range(STEPS))
        return [(z * UNIT).flatten(1)] + [(y * UNIT)[:, mask] for mask in masks]

    def to_class(self, scale: Tensor) -> Tensor:
        scale_class = scale * (CLASS_STEP / UNIT) + CLASS_ORIGIN
        return (torch.round(scale_class) if self.exact else scale_class).clamp(0, CLASSES - 1)

    def decode(self, height: int, width: int, quality: Tensor, source: Source) -> Tensor:
        """Latents [B, M, height, width] of one cell; every stage's residuals come from ``source``.

        The encoder and the decoder both run this loop; what differs is where the residuals come from.
        height and width are multiples of 4.
        """
        with full_precision(quality.device.type):
            return self._decode(height, width, quality, source)

    def _decode(self, height: int, width: int, quality: Tensor, source: Source) -> Tensor:
        mean, scale_class = self.hyper_prior(quality)
        shape = (len(quality), -1, height // 4, width // 4)
        mean, scale_class = (x.expand(-1, -1, *shape[2:]) for x in (mean, scale_class))
        everywhere = torch.ones(scale_class.shape[1:], dtype=torch.bool, device=mean.device)
        hyper = torch.zeros_like(mean, memory_format=torch.contiguous_format)
        self.fill(hyper, everywhere, 0, mean, scale_class, source)
        features = self.features(hyper, quality)
        latents = features.new_zeros(len(quality), self.latent, height, width)
        for step in range(STEPS):
            mask = step_mask(step, self.latent, height, width, latents.device)
            self.fill(latents, mask, 1 + step, *self.step(step, features, latents), source)
        return latents

    def fill(
        self, latents: Tensor, mask: Tensor, stage: int, mean: Tensor, scale_class: Tensor, source: Source
    ) -> None:
        """Sets those of latents [B, M, h, w] that mask [M, h, w] selects."""
        means = mean[:, mask]
        residuals = source(stage, means, scale_class[:, mask])
        latents[:, mask] = (means + residuals).clamp(-LATENT_MAX, LATENT_MAX)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Makes the activations of the context ``factor`` times as large; what comes out stays, but for clamping."""
        for name, layer in self.named_modules():
            if isinstance(layer, ExactConv) and not name.startswith(OUTER):
                layer.bias.mul_(factor)
        self.quality.knots.mul_(factor)
        self.hyper_synthesis[0].weight.mul_(factor)
        for enter, leave in zip(self.enter, self.leave, strict=True):
            enter.weight[:, -self.latent :].mul_(factor)
            leave.weight.div_(factor)

    def to_integer(self) -> "Prior":
        """A copy over integers. Its tensors are integers held in float32; ``.double()`` gives the same results."""
        return to_integer(self)
