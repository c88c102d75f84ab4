"""``nic train image``: the fidelity codec, on a wall-clock schedule.

Warm-up, then cosine decay that ends at zero when the minutes are over, however fast the machine is; a run that is
interrupted and resumed keeps its place in the schedule. Under ``torchrun`` every process takes its own crops and the
gradients are averaged. Checkpoints hold the plain weights, their running average, the optimizer and the clock.
"""

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nic.models.codec import ImageCodec
from nic.models.config import ImageConfig, TrainConfig
from nic.models.training.data import Photos, read_photos
from nic.models.training.soap import Soap, matrices
from nic.models.training.start import read_start, widened
from nic.models.transforms import QUALITY_INDICES
from nic.models.vq import Codebooks

__all__ = ["evaluate", "train"]


class Schedule:
    """Learning-rate factor over the fraction of the run's minutes that has passed.

    ``spent`` (seconds) moves only at ``tick``, so that processes that train together can agree on it.
    """

    def __init__(self, minutes: float, warmup_steps: int, spent: float = 0.0) -> None:
        self.seconds = 60 * minutes
        self.warmup_steps = warmup_steps
        self.start = time.monotonic() - spent
        self.spent = spent

    def tick(self, parameters: list[nn.Parameter], world: int) -> None:
        """Looks at the clock; several processes average their gradients, and their clocks with them."""
        self.spent = time.monotonic() - self.start
        if world > 1:
            gradients = [parameter.grad.flatten() for parameter in parameters]  # type: ignore[union-attr]
            flat = torch.cat([*gradients, gradients[0].new_tensor([self.spent])])
            dist.all_reduce(flat)
            flat /= world
            for parameter, part in zip(parameters, flat.split([g.numel() for g in gradients] + [1]), strict=False):
                parameter.grad.copy_(part.view_as(parameter))  # type: ignore[union-attr]
            self.spent = float(flat[-1])

    @property
    def done(self) -> bool:
        return self.spent >= self.seconds

    def factor(self, step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, self.spent / self.seconds)))
        return min(1.0, (step + 1) / self.warmup_steps) * decay


class Average:
    """Exponential moving average of a model's parameters, in float32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        state = model.state_dict()
        torch._foreach_lerp_(list(self.values.values()), [state[name] for name in self.values], 1 - decay)


@torch.no_grad()
def evaluate(
    model: ImageCodec, photos: list[np.ndarray], qualities: tuple[float, ...] = (8, 24, 40, 56)
) -> list[dict[str, Any]]:
    """Estimated bpp and mean PSNR of whole photographs (cropped to multiples of 64) at some qualities."""
    device = next(model.parameters()).device
    rows = []
    for quality in qualities:
        bpps, psnrs = [], []
        for photo in photos:
            height, width = (side // 64 * 64 for side in photo.shape[:2])
            pixels = torch.from_numpy(photo[None, :height, :width]).to(device).permute(0, 3, 1, 2).float() / 255
            q = torch.full((1,), float(quality), device=device)
            out = model(pixels, q)
            mse = (out["images"].clamp(0, 1) - pixels).square().mean().item()
            bpps.append((out["y_bits"] + out["z_bits"]).item() / (height * width))
            psnrs.append(-10 * math.log10(mse))
        rows.append({"quality": quality, "bpp": float(np.mean(bpps)), "psnr": float(np.mean(psnrs))})
    return rows


def train(
    config: ImageConfig,
    options: TrainConfig,
    data: list[Path],
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
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    where = torch.device(device, int(os.environ.get("LOCAL_RANK", 0))) if device == "cuda" else torch.device(device)
    torch.manual_seed(options.seed)  # the same initial weights everywhere
    run.mkdir(parents=True, exist_ok=True)
    photos = Photos(read_photos(data, "train", workers), where)
    validation = read_photos(data, "val", workers)[:16] if rank == 0 else []

    model = ImageCodec(config).to(where, memory_format=torch.channels_last)
    parameters = list(model.parameters())
    inner = matrices(model)
    others = [parameter for parameter in parameters if all(parameter is not matrix for matrix in inner)]
    rate = options.learning_rate
    optimizers = [Soap(inner, rate, options.renew), torch.optim.Adam(others, rate, fused=True)]
    model.start_from_dct()
    model.codebooks = codebooks.to(where) if codebooks else None
    if start_from:
        model.load_state_dict(widened(*read_start(start_from), model, config))
    average, step, spent = Average(model, options.ema), 0, 0.0
    checkpoint = run / "last.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=where, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        average.values, step, spent = state["average"], state["step"], state["seconds"]
    (run / "config.json").write_text(json.dumps({"model": vars(config), "train": vars(options)}, indent=1))

    photos.seed(options.seed + step + 1_000_000 * rank)  # other crops and noise in each process and after resuming
    torch.manual_seed(options.seed + step + 1_000_000 * rank)
    schedule = Schedule(minutes, options.warmup_steps, spent)
    log = Log(run / "log.jsonl", rank)
    saved = time.monotonic()
    while not schedule.done:
        images = photos.crops(options.batch, options.crop)
        quality = torch.rand(options.batch, device=where) * (QUALITY_INDICES - 1)
        with torch.autocast(where.type, torch.bfloat16, enabled=bfloat16):
            loss, parts = model.loss(images, quality)
        loss.backward()
        schedule.tick(parameters, world)
        norm = nn.utils.clip_grad_norm_(parameters, options.clip, foreach=True)
        if torch.isfinite(norm):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = options.learning_rate * schedule.factor(step)
                optimizer.step()
            average.update(model, step)
        else:
            log.skipped(step)
        for parameter in parameters:
            parameter.grad = None
        step += 1
        log.add(step, loss, parts, norm, options.batch * world, schedule)
        if rank == 0 and (schedule.done or time.monotonic() - saved > 120):
            save(checkpoint, model, optimizers, average, step, schedule.spent, config)
            saved = time.monotonic()
    if rank == 0:
        model.load_state_dict(average.values)
        for row in evaluate(model.eval(), validation):
            log.write({"validation": row})
    log.close()
    if world > 1:
        dist.destroy_process_group()
    return checkpoint


def save(
    path: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: Average,
    step: int,
    seconds: float,
    config: ImageConfig,
) -> None:
    partial = path.with_suffix(".partial")
    state: dict[str, Any] = {"model": model.state_dict(), "average": average.values}
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(state | {"step": step, "seconds": seconds, "config": dataclasses.asdict(config)}, partial)
    partial.replace(path)


class Log:
    """One JSON line every 100 steps: means of loss, bpp, PSNR, and crops a second."""

    EVERY = 100

    def __init__(self, path: Path, rank: int) -> None:
        self.file = path.open("a") if rank == 0 else None
        self.rows: list[Tensor] = []
        self.since = time.monotonic()

    def add(
        self, step: int, loss: Tensor, parts: dict[str, Tensor], norm: Tensor, samples: int, schedule: Schedule
    ) -> None:
        psnr = -10 * torch.log10(parts["mse"].detach().clamp(min=1e-10)).mean()
        self.rows.append(torch.stack([loss.detach(), parts["bpp"].mean(), parts["z_bpp"].mean(), psnr, norm]).detach())
        if len(self.rows) < self.EVERY:
            return
        means = torch.stack(self.rows).mean(dim=0).tolist()
        now = time.monotonic()
        row = dict(zip(("loss", "bpp", "z_bpp", "psnr", "norm"), (round(x, 4) for x in means), strict=True))
        speed = round(samples * self.EVERY / (now - self.since), 1)
        self.write({"step": step, "minutes": round(schedule.spent / 60, 2), **row, "crops_per_s": speed})
        self.rows, self.since = [], now

    def skipped(self, step: int) -> None:
        self.write({"step": step, "skipped": "gradient not finite"})

    def close(self) -> None:
        if self.file:
            self.file.close()

    def write(self, row: dict[str, Any]) -> None:
        if self.file:
            print(json.dumps(row), file=self.file, flush=True)
            print(json.dumps(row), flush=True)
