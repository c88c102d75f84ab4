"""``nic train refine``: the refiner, on pairs that the codecs make of photographs at random qualities."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nic.models import store
from nic.models.codec import ImageCodec
from nic.models.config import RefinerConfig, TrainConfig
from nic.models.extreme import book_quality, nearest
from nic.models.prior import UNIT
from nic.models.refiner import NOISE, Refiner, euler
from nic.models.training.adversary import LEARNING_RATE, Adversary
from nic.models.training.data import Photos, read_photos, to_images
from nic.models.training.loop import Training, is_first, read_checkpoint
from nic.models.training.perceptual import Lpips, Perceptual
from nic.models.training.soap import optimizers_of, with_filter_apart
from nic.models.training.start import read_start, take_over, with_new_weights
from nic.models.transforms import QUALITY_INDICES

__all__ = ["Coder", "evaluate", "export", "train"]

AT_START = 1 / 2  # of the crops are at time 0, the others at any
LOW = 1.5  # power of a uniform number that qualities follow: low ones lose most
EXTREME_SHARE = 1 / 4  # of the crops


class Coder:
    """What the decoders of both modes give for pictures, without making files."""

    def __init__(self, fidelity: Path, extreme: Path, device: torch.device) -> None:
        """Weight files of the two modes."""
        state, config = read_start(fidelity)
        self.fidelity = ImageCodec(config)
        self.fidelity.load_state_dict(state)
        self.fidelity.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.fidelity.codebooks = store.read_codebooks(fidelity).to(device)
        self.extreme = store.load_extreme(extreme, str(device))

    @torch.no_grad()
    def decoded(self, images: Tensor, quality: Tensor, extreme: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1], quality [B] in [0, 63], extreme [B] bool -> decoded images, to 8 bits."""
        result = torch.empty_like(images)
        with torch.autocast(images.device.type, enabled=False):
            if not extreme.all():
                result[~extreme] = self.fidelity(images[~extreme], quality[~extreme])["images"]
            for row in extreme.nonzero()[:, 0].tolist():
                result[row] = self.decoded_extreme(images[row][None], quality[row][None])[0]
        return torch.round(result.clamp(0, 1) * 255) / 255

    def decoded_extreme(self, image: Tensor, quality: Tensor) -> Tensor:
        model = self.extreme
        latents = model.analysis(image, quality)
        book = round(quality.item() * (len(model.codewords) - 1) / (QUALITY_INDICES - 1))
        vectors = latents.movedim(1, -1)
        indices = nearest(vectors.reshape(-1, vectors.shape[-1]) * UNIT, model.codewords[book])
        latents = (model.codewords[book][indices] / UNIT).view(vectors.shape).movedim(-1, 1)
        return model.synthesis(latents, quality)

    def qualities(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random qualities [count] of random modes."""
        quality = torch.rand(count, device=device) ** LOW * (QUALITY_INDICES - 1)
        extreme = torch.rand(count, device=device) < EXTREME_SHARE
        book = torch.randint(len(self.extreme.codewords), (count,), device=device)
        return torch.where(extreme, book_quality(book, self.extreme.config), quality), extreme


def train(
    config: RefinerConfig,
    options: TrainConfig,
    data: Sequence[Path],
    run: Path,
    minutes: float,
    perceptual: Path,
    codecs: tuple[Path, Path],
    device: str = "cpu",
    workers: int = 2,
    start_from: Path | None = None,
    bfloat16: bool = False,
    adversary_weight: float = 0.0,
    dists_weight: float = 0.0,
) -> Path:
    """Trains for ``minutes`` of wall-clock and returns the final checkpoint; ``run`` as in ``Training.fit``.

    perceptual: the folder of LPIPS's weights, and DISTS's. codecs: weight files of the fidelity and of the extreme
    mode. start_from: a weight file, or a checkpoint of an earlier run, whose adversary goes on, too. bfloat16: the
    precision of convolutions. adversary_weight: of the adversarial loss; with 0 there is none. dists_weight: of DISTS.
    """
    training = Training(run, minutes, options, device, bfloat16)
    where = training.device
    photos = Photos(read_photos(data, "train", workers), where)
    validation = read_photos(data, "val", workers)[:16] if training.first else []
    seen, coder = Perceptual(perceptual, dists_weight, adversary_weight).to(where), Coder(*codecs, where)
    model = Refiner(config).to(where, memory_format=torch.channels_last)
    if start_from:
        go_on_from(start_from, model, seen.adversary)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        originals = photos.crops(options.batch, options.crop)
        quality, extremes = coder.qualities(options.batch, where)
        decoded = coder.decoded(originals, quality, extremes)
        time = ((torch.rand(options.batch, device=where) - AT_START) / (1 - AT_START)).clamp(min=0)
        start = decoded + NOISE * torch.randn_like(decoded)
        with torch.no_grad():  # states are on the line to its own picture, as they will be in use
            end = model(start, decoded, torch.zeros_like(time), quality, extremes).float()
        state = torch.lerp(start, end, time[:, None, None, None])
        images = model(state, decoded, time, quality, extremes).float()
        mse = (images - originals).square().mean(dim=(1, 2, 3))
        distance, parts = seen.loss(images, originals)
        return config.mse * mse.mean() + distance, {"mse": mse, **parts}

    learning = with_filter_apart(model)
    learning += [(seen.adversary, LEARNING_RATE)] if seen.adversary else []
    checkpoint = training.fit(model, optimizers_of(learning, options), loss, photos.seed, config, seen.adversary)
    if validation:
        for row in evaluate(model.eval(), coder, validation, seen.lpips):
            training.write({"validation": row})
    training.close()
    return checkpoint


def go_on_from(path: Path, model: Refiner, adversary: Adversary | None) -> None:
    """Takes over the weights of a weight file, or the averaged ones of a checkpoint and its adversary's.

    What they lack of the model does nothing yet.
    """
    if path.suffix == ".safetensors":
        earlier: dict[str, Any] = {"average": store.load_refiner(path).state_dict()}
    else:
        earlier, _ = read_checkpoint(path, RefinerConfig)
    take_over(model, with_new_weights(model, earlier["average"]), path)
    if adversary and "adversary" in earlier:
        take_over(adversary, earlier["adversary"], path)


def export(checkpoint: Path, path: Path, card: dict[str, Any]) -> bytes:
    """Writes the averaged weights of a checkpoint as a weight file and returns the model id.

    Of several processes under ``torchrun``, the first does; the others return b"".
    """
    if not is_first():
        return b""
    state, config = read_checkpoint(checkpoint, RefinerConfig)
    model = Refiner(config)
    model.load_state_dict(state["average"])
    return store.save_refiner(model, path, card)


@torch.no_grad()
def refined(model: Refiner, decoded: Tensor, quality: Tensor, extreme: Tensor, steps: int) -> Tensor:
    """Whole pictures [B, 3, H, W] after so many steps, clamped to [0, 1]."""
    state = decoded + NOISE * torch.randn_like(decoded)
    for step in range(steps):
        time = torch.full((len(decoded),), step / steps, device=decoded.device)
        state = euler(state, model(state, decoded, time, quality, extreme), step / steps, (step + 1) / steps)
    return state.clamp(0, 1)


@torch.no_grad()
def evaluate(
    model: Refiner, coder: Coder, photos: list[np.ndarray], lpips: Lpips, all_steps: tuple[int, ...] = (0, 1, 4)
) -> list[dict[str, Any]]:
    """Mean PSNR and LPIPS of whole photographs (cropped to multiples of 64) after some numbers of steps."""
    device = next(model.parameters()).device
    rows = []
    for quality, extreme in [(4.0, False), (12.0, False), (24.0, False), (49.0, True)]:
        values: dict[int, list[tuple[float, float]]] = {steps: [] for steps in all_steps}
        for photo in photos:
            pixels = to_images(photo, device)
            q, mode = torch.tensor([quality], device=device), torch.tensor([extreme], device=device)
            decoded = coder.decoded(pixels, q, mode)
            for steps in all_steps:
                images = refined(model, decoded, q, mode, steps) if steps else decoded
                psnr = -10 * math.log10((images - pixels).square().mean().item())
                values[steps].append((psnr, lpips(images, pixels).item()))
        for steps, pairs in values.items():
            psnr, distance = np.mean(pairs, axis=0).tolist()
            rows.append({"quality": quality, "extreme": extreme, "steps": steps, "psnr": psnr, "lpips": distance})
    return rows
