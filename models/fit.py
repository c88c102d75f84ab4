"""The network of a clip: the shipped synthesis fitted to one video, as a difference that is cheap to code.

Weights are fitted in quantization steps. A step of a tensor is such that an error of one step costs as much picture as
the codebooks assume (RATE_WEIGHT bits for a squared step), measured by the network's own sensitivity; what a weight's
change would cost in bits is part of the loss, so most of them stay where they are. The last third of a fit sees
weights as they will be decoded (straight-through rounding; van Rozendaal et al., arXiv 2112.11312, fit a codec's
weights to a video in this way).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nic.models.vq import RATE_WEIGHT

__all__ = ["Sample", "exponents", "fit", "is_fast_in_bfloat16"]

THIN = 16  # weights of an output channel up to which a parameter is fitted: biases, gains and depthwise kernels
FINER = 1  # a step is 2^-FINER of what sensitivity alone asks for; measured
LEARNING_RATE = 0.3  # steps of quantization, Adam
QUANTIZED = 1 / 3  # share of a fit at its end that sees quantized weights
DEAD_ZONE = 0.5  # what is below becomes 0: about where the codebooks decide so
BITS = 0.5  # of a weight that differs by a step; grows with the logarithm; measured
EXPONENTS = range(1, 25)  # a step is 2^-exponent


@dataclass(frozen=True)
class Sample:
    """What the synthesis is to make of some latents, and what a squared error is worth.

    latents: [1, M, h, w] in steps. images and prediction: [1, 3, 16 h, 16 w], any float; rows and columns from
    ``height`` and ``width`` on do not count. quality: [1] in [0, 63]. bits: of one squared error of a pixel in [0, 1].
    """

    latents: Tensor
    images: Tensor
    prediction: Tensor
    height: int
    width: int
    quality: Tensor
    bits: float

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the synthesis."""
        return self.latents, self.quality, self.prediction.float()

    def error(self, images: Tensor) -> Tensor:
        """The squared error of the synthesis' images, in bits."""
        wrong = (images.float() - self.images.float())[:, :, : self.height, : self.width]
        return self.bits * wrong.square().sum()


def exponents(synthesis: nn.Module, samples: Sequence[Sample], scale: float) -> dict[str, int]:
    """The step 2^-e of each parameter that is fitted, by name; the clip has ``scale`` times the samples' pixels.

    Only thin parameters are: those of full matrices change too little each to be worth their bits in a short clip. A
    random projection of the output has, on average, the squared sensitivity of each weight as its squared gradient.
    """
    everything = dict(synthesis.named_parameters())
    parameters = {name: x for name, x in everything.items() if x[0].numel() <= THIN or name.endswith("knots")}
    sums = {name: 0.0 for name in parameters}
    for index, sample in enumerate(samples):
        generator = torch.Generator().manual_seed(index)
        signs = torch.randint(0, 2, sample.images.shape, generator=generator).to(sample.latents) * 2 - 1
        live = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        images = functional_call(synthesis, live, sample.inputs)
        projected = (images * signs)[:, :, : sample.height, : sample.width].sum()
        for name, gradient in zip(live, torch.autograd.grad(projected, list(live.values())), strict=True):
            sums[name] += sample.bits * float(gradient.square().mean())
    return {
        name: min(max(FINER + round(0.5 * math.log2(RATE_WEIGHT * max(scale * total, 1e-12))), 1), EXPONENTS[-1])
        for name, total in sums.items()
    }


def fit(
    synthesis: nn.Module,
    samples: Sequence[Sample],
    steps: dict[str, int],
    scale: float,
    epochs: int,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Differences of the parameters from the shipped ones, in steps of 2^-steps[name], not yet quantized.

    ``scale``: how many times the samples' pixels the clip has, whose bits the differences must earn. Several epochs of
    one sample at a time, its convolutions in bfloat16 where that is fast: the same machine gives the same differences.
    """
    base = {name: value.detach() for name, value in synthesis.named_parameters()}
    changes = {name: torch.zeros_like(base[name], requires_grad=True) for name in steps}
    optimizer = torch.optim.Adam(changes.values(), LEARNING_RATE, betas=(0.9, 0.99))
    device = samples[0].latents.device
    bfloat16 = is_fast_in_bfloat16(device)
    total = epochs * len(samples)
    generator = torch.Generator().manual_seed(0)
    for number in range(total):
        if number % len(samples) == 0:
            order = torch.randperm(len(samples), generator=generator).tolist()
        sample = samples[order[number % len(samples)]]
        quantized = number >= (1 - QUANTIZED) * total
        weights = {
            name: base[name] + (straight_through(change) if quantized else change) * 2.0 ** -steps[name]
            for name, change in changes.items()
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            images = functional_call(synthesis, weights, sample.inputs)
        rate = sum((BITS * torch.log2(1 + change.abs())).sum() for change in changes.values())
        loss = sample.error(images) * scale * len(samples) + rate
        optimizer.zero_grad()
        loss.backward()
        decay = 0.5 * (1 + math.cos(math.pi * number / total))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (number + 1) / 10) * decay
        optimizer.step()
        progress((number + 1) / total)
    return {name: change.detach() for name, change in changes.items()}


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself; others emulate it, and are slower than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def straight_through(change: Tensor) -> Tensor:
    """Whole steps, small ones dropped; the gradient passes as if nothing had happened."""
    whole = torch.where(change.abs() < DEAD_ZONE, 0, torch.round(change))
    return change + (whole - change).detach()
