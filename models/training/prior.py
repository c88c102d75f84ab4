"""``nic train prior``: a model's prior and hyper-analysis alone, on latents as the encoder's search leaves them.

The context is made of what latents were coded as, which is nearer to the prior's own means than what training of the
whole codec rounds them to; what they should have been, with noise, is what costs bits.
"""

from pathlib import Path

import torch
from torch import Tensor

from nic.errors import UsageError
from nic.models import store
from nic.models.codec import ImageCodec, class_sigma, gaussian_bits
from nic.models.config import ImageConfig, TrainConfig
from nic.models.prior import STEPS, UNIT, step_mask
from nic.models.training.loop import Training
from nic.models.training.soap import optimizers_of
from nic.models.training.start import read_start, take_over
from nic.models.training.synthesis import Batch, Searched
from nic.models.transforms import GREY, lambda_of

__all__ = ["train"]

HYPER_RATE = 0.3  # learning rate of the hyper-analysis, relative to the prior's


def train(
    config: ImageConfig,
    options: TrainConfig,
    latents: Path,
    weights: Path,
    run: Path,
    minutes: float,
    device: str = "cpu",
) -> Path:
    """Trains for ``minutes`` of wall-clock and returns the final checkpoint of the whole codec, as in ``Training.fit``.

    config: that of the weights. latents: the folder of ``nic train latents``.
    """
    training = Training(run, minutes, options, device)
    model = store.load_from(weights, "cpu")
    if not isinstance(model, store.Model):
        raise UsageError(f"{weights} is of the extreme mode: use nic train indices")
    if model.config != config:
        raise UsageError(f"{weights} is of another config")
    searched = Searched(latents, model)
    codec = ImageCodec(config)
    take_over(codec, read_start(weights)[0], weights)
    codec.to(training.device, memory_format=torch.channels_last).requires_grad_(False)
    codec.prior.requires_grad_(True)
    codec.hyper_analysis.requires_grad_(True)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        batch = searched.batch(options.batch, training.device)
        bpp = bits(codec, batch) / batch.images[0, 0].numel()
        return (bpp / lambda_of(batch.quality, config).sqrt()).mean(), {"bpp": bpp}

    optimizers = optimizers_of([(codec.prior, 1.0), (codec.hyper_analysis, HYPER_RATE)], options)
    checkpoint = training.fit(codec, optimizers, loss, searched.seed, config)
    training.close()
    return checkpoint


def bits(codec: ImageCodec, batch: Batch) -> Tensor:
    """What the targets of a batch, with noise, and their hyper-latents cost under the Gaussians: [B]."""
    prior, told, scale, known = codec.prior, 0, 0, torch.zeros_like(batch.latents)
    with torch.no_grad():
        y = codec.analysis(batch.images - batch.prediction + GREY, batch.quality)
    hyper, hyper_bits = codec.quantize_hyper(codec.hyper_analysis(y), batch.quality)
    features = prior.features(hyper * UNIT, batch.quality)
    for step in range(STEPS):
        mask = step_mask(step, *known.shape[1:], known.device)
        mean, scale_class = prior.step(step, features, known * UNIT)
        told = told + (batch.targets - mean / UNIT) * mask
        scale = scale + scale_class * mask
        known = known + batch.latents * mask
    return hyper_bits + gaussian_bits(told + torch.rand_like(told) - 0.5, class_sigma(scale)).sum(dim=(1, 2, 3))
