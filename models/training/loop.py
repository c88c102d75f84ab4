"""What all training runs share: a wall-clock schedule, averaged weights, checkpoints, resuming, the log.

Warm-up, then cosine decay that ends at zero when the minutes are over, however fast the machine is; a run that is
interrupted and resumed keeps its place in the schedule. Under ``torchrun`` every process takes its own crops and the
gradients are averaged. Checkpoints hold the plain weights, their running average, the optimizer and the clock.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nic.errors import BadInput, UsageError
from nic.models.config import RefinerConfig, TrainConfig, TransformConfig

__all__ = ["Log", "Processes", "fit", "read_checkpoint"]

Sizes = TypeVar("Sizes", bound=TransformConfig | RefinerConfig)

# The loss of a new batch, and what the log shows: scalars, or vectors whose means count.
Loss = Callable[[], tuple[Tensor, dict[str, Tensor]]]


class Processes:
    """The processes that train together, one unless ``torchrun`` started more, and this one's device."""

    def __init__(self, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("no CUDA device here; use --device cpu")
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device(device, local) if device == "cuda" else torch.device(device)

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


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


def fit(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss_of: Loss,
    seed_data: Callable[[int], None],
    config: TransformConfig | RefinerConfig,
    options: TrainConfig,
    run: Path,
    minutes: float,
    processes: Processes,
    log: "Log",
    bfloat16: bool = False,
    adversary: nn.Module | None = None,
) -> Path:
    """Trains ``model`` for ``minutes`` of wall-clock; in the end it has its averaged weights. Returns the checkpoint.

    The learning rate of the options follows the schedule; a parameter group of an optimizer takes ``factor`` times it.

    ``run`` gets config.json and last.pt; an unfinished run found there is resumed. seed_data: starts another sequence
    of batches. bfloat16: the precision of convolutions. adversary: learns too, is saved, but neither averaged nor kept.
    """
    device = processes.device
    learning = nn.ModuleList([model, adversary] if adversary else [model])
    parameters = [parameter for parameter in learning.parameters() if parameter.requires_grad]
    average, step, spent = Average(model, options.ema), 0, 0.0
    checkpoint = run / "last.pt"
    if checkpoint.exists():
        state, found = read_checkpoint(checkpoint, type(config), device)
        if found != config:
            raise UsageError(f"{run} holds a run of another config: name another folder")
        model.load_state_dict(state["model"])
        if adversary:
            adversary.load_state_dict(state["adversary"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        average.values, step, spent = state["average"], state["step"], state["seconds"]
    (run / "config.json").write_text(json.dumps({"model": vars(config), "train": vars(options)}, indent=1))

    seed = options.seed + step + 1_000_000 * processes.rank  # others in each process and after resuming
    seed_data(seed)
    torch.manual_seed(seed)
    schedule = Schedule(minutes, options.warmup_steps, spent)
    saved = time.monotonic()
    while not schedule.done:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss, parts = loss_of()
        loss.backward()
        schedule.tick(parameters, processes.world)
        norm = nn.utils.clip_grad_norm_(parameters, options.clip, foreach=True)
        if torch.isfinite(norm):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * group.get("factor", 1.0) * schedule.factor(step)
                optimizer.step()
            average.update(model, step)
        else:
            log.skipped(step)
        for parameter in parameters:
            parameter.grad = None
        step += 1
        log.add(step, {"loss": loss, **parts, "norm": norm}, options.batch * processes.world, schedule)
        if processes.rank == 0 and (schedule.done or time.monotonic() - saved > 120):
            save(checkpoint, model, adversary, optimizers, average, step, schedule.spent, config)
            saved = time.monotonic()
    model.load_state_dict(average.values)
    return checkpoint


def read_checkpoint(path: Path, sizes: type[Sizes], device: torch.device | str = "cpu") -> tuple[dict[str, Any], Sizes]:
    """What ``fit`` has saved, and the config of it; raises BadInput for any other file, or one of another codec."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        return state, sizes(**state["config"])
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, UnpicklingError) as error:
        raise BadInput(f"{path} is no checkpoint of the nic train command that is needed here") from error


def save(
    path: Path,
    model: nn.Module,
    adversary: nn.Module | None,
    optimizers: list[torch.optim.Optimizer],
    average: Average,
    step: int,
    seconds: float,
    config: TransformConfig | RefinerConfig,
) -> None:
    partial = path.with_suffix(".partial")
    state: dict[str, Any] = {"model": model.state_dict(), "average": average.values}
    if adversary:
        state["adversary"] = adversary.state_dict()
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(state | {"step": step, "seconds": seconds, "config": dataclasses.asdict(config)}, partial)
    partial.replace(path)


class Log:
    """One JSON line every 100 steps: the means of what is added, MSE as PSNR, and crops a second."""

    EVERY = 100

    def __init__(self, path: Path, rank: int) -> None:
        self.file = path.open("a") if rank == 0 else None
        self.rows: list[Tensor] = []
        self.since = time.monotonic()

    def add(self, step: int, parts: dict[str, Tensor], samples: int, schedule: Schedule) -> None:
        """``parts``: as in Loss."""
        values = {name: value.detach() for name, value in parts.items()}
        if "mse" in values:
            values["psnr"] = -10 * torch.log10(values.pop("mse").clamp(min=1e-10))
        self.rows.append(torch.stack([value.mean() for value in values.values()]))
        if len(self.rows) < self.EVERY:
            return
        means = torch.stack(self.rows).mean(dim=0).tolist()
        now = time.monotonic()
        row = dict(zip(values, (round(x, 4) for x in means), strict=True))
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
