"""``nic train image``: the fidelity codec, on the schedule of nic.models.training.loop."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nic.models.codec import ImageCodec
from nic.models.config import ImageConfig, TrainConfig
from nic.models.training.codebook import use_range
from nic.models.training.data import Photos, read_photos, to_images
from nic.models.training.loop import Training
from nic.models.training.soap import optimizers_of
from nic.models.training.start import fit_linear, read_start, widened
from nic.models.transforms import QUALITY_INDICES
from nic.models.vq import Codebooks

__all__ = ["evaluate", "train"]


@torch.no_grad()
def evaluate(
    model: ImageCodec, photos: list[np.ndarray], qualities: tuple[float, ...] = (8, 24, 40, 56)
) -> list[dict[str, Any]]:
    """Bpp by the Gaussians and mean PSNR of whole photographs (cropped to multiples of 64) at some qualities."""
    device = next(model.parameters()).device
    rows = []
    for quality in qualities:
        bpps, psnrs = [], []
        for photo in photos:
            pixels = to_images(photo, device)
            q = torch.full((1,), float(quality), device=device)
            out = model(pixels, q)
            mse = (out["images"].clamp(0, 1) - pixels).square().mean().item()
            bpps.append((out["y_bits"] + out["z_bits"]).item() / pixels[0, 0].numel())
            psnrs.append(-10 * math.log10(mse))
        rows.append({"quality": quality, "bpp": float(np.mean(bpps)), "psnr": float(np.mean(psnrs))})
    return rows


def train(
    config: ImageConfig,
    options: TrainConfig,
    data: Sequence[Path],
    run: Path,
    minutes: float,
    device: str = "cpu",
    workers: int = 2,
    start_from: Path | None = None,
    codebooks: Codebooks | None = None,
    bfloat16: bool = False,
) -> Path:
    """Trains for ``minutes`` of wall-clock and returns the final checkpoint.

    ``run`` gets config.json, log.jsonl and last.pt; an unfinished run found there is resumed. ``start_from`` takes
    the averaged weights of another run's checkpoint, or a weight file's, instead of fresh ones; that codec may have
    fewer latents or blocks and other rates. With ``codebooks``, the synthesis learns from latents that are
    vector-quantized as in coding, not rounded. ``bfloat16`` is the precision of the transforms' convolutions.
    """
    training = Training(run, minutes, options, device, bfloat16)
    where = training.device
    photos = Photos(read_photos(data, "train", workers), where)
    validation = read_photos(data, "val", workers)[:16] if training.first else []

    model = ImageCodec(config).to(where, memory_format=torch.channels_last)
    model.start_from_dct()
    model.codebooks = codebooks.to(where) if codebooks else None
    if start_from and not (run / "last.pt").exists():
        state, old = read_start(start_from)
        model.load_state_dict(widened(state, old, model, config))
        if config.linear and not old.linear:
            fit_linear(model, old, photos)
        use_range(model, photos)
    optimizers = optimizers_of([(model, 1.0)], options)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        place = torch.arange(options.batch, device=where) + torch.rand(options.batch, device=where)
        quality = place * ((QUALITY_INDICES - 1) / options.batch)  # one in each part of the range
        return model.loss(photos.crops(options.batch, options.crop), quality)

    checkpoint = training.fit(model, optimizers, loss, photos.seed, config)
    if validation:
        for row in evaluate(model.eval(), validation):
            training.write({"validation": row})
    training.close()
    return checkpoint
