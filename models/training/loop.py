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
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nic.errors import BadInput, UsageError
from nic.models.config import RefinerConfig, TrainConfig, TransformConfig

__all__ = ["Training", "device_of", "is_first", "read_checkpoint"]

SAVE_EVERY = 120  # seconds from one checkpoint to the next

Sizes = TypeVar("Sizes", bound=TransformConfig | RefinerConfig)

# The loss of a new batch, and what the log shows: scalars, or vectors whose means count.
Loss = Callable[[], tuple[Tensor, dict[str, Tensor]]]


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
            for parameter in parameters:
                if parameter.grad is None:  # of what this process's batch did not need, but maybe another's
                    parameter.grad = torch.zeros_like(parameter)
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


@dataclass
class State:
    """What a checkpoint holds, beside the config."""

    model: nn.Module
    adversary: nn.Module | None
    optimizers: list[torch.optim.Optimizer]
    average: Average
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path, config: TransformConfig | RefinerConfig) -> None:
        """Writes a checkpoint as a whole."""
        saved: dict[str, Any] = {"model": self.model.state_dict(), "average": self.average.values}
        if self.adversary:
            saved["adversary"] = self.adversary.state_dict()
        saved["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        saved |= {"step": self.step, "seconds": self.seconds, "config": dataclasses.asdict(config)}
        partial = path.with_suffix(".partial")
        torch.save(saved, partial)
        partial.replace(path)

    def load(self, path: Path, config: TransformConfig | RefinerConfig, device: torch.device) -> None:
        """Goes on from a checkpoint; raises UsageError for one of another config, or of a run with other options."""
        saved, found = read_checkpoint(path, type(config), device)
        if found != config:
            raise UsageError(f"{path.parent} holds a run of another config: name another folder")
        if bool(self.adversary) != ("adversary" in saved):
            raise UsageError(f"{path.parent} holds a run of other options: name another folder")
        try:
            self.model.load_state_dict(saved["model"])
            if self.adversary:
                self.adversary.load_state_dict(saved["adversary"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except ValueError as error:  # other parameters were learning
            raise UsageError(f"{path.parent} holds a run of other options: name another folder") from error
        self.average.values, self.step, self.seconds = saved["average"], saved["step"], saved["seconds"]


class Training:
    """A run of training: its folder, its minutes, its device, and the processes that train together.

    There is one process unless ``torchrun`` started more. The ``first`` of them writes the files; all see the folder.
    """

    def __init__(
        self, folder: Path, minutes: float, options: TrainConfig, device: str = "cpu", bfloat16: bool = False
    ) -> None:
        """bfloat16: the precision of convolutions, instead of float32."""
        self.device = device_of(device)
        self.folder, self.minutes, self.options, self.bfloat16 = folder, minutes, options, bfloat16
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.first = is_first()
        if self.world > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        torch.manual_seed(options.seed)  # the same initial weights everywhere
        folder.mkdir(parents=True, exist_ok=True)

    def fit(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        loss_of: Loss,
        seed_data: Callable[[int], object],
        config: TransformConfig | RefinerConfig,
        adversary: nn.Module | None = None,
    ) -> Path:
        """Trains ``model`` until the minutes are over; in the end it has its averaged weights. Returns the checkpoint.

        The learning rate of the options follows the schedule; a parameter group of an optimizer takes ``factor`` times
        it. The folder gets config.json, log.jsonl and last.pt; an unfinished run found there is resumed.
        seed_data: starts another sequence of batches: in each process, after resuming, and in a folder of another
        name. adversary: learns too, is saved, but neither averaged nor kept.
        """
        options, checkpoint = self.options, self.folder / "last.pt"
        learning = nn.ModuleList([model, adversary] if adversary else [model])
        parameters = [parameter for parameter in learning.parameters() if parameter.requires_grad]
        if self.world > 1:
            share(learning)
        state = State(model, adversary, optimizers, Average(model, options.ema))
        if checkpoint.exists():
            state.load(checkpoint, config, self.device)
        if self.first:
            text = json.dumps({"model": vars(config), "train": vars(options)}, indent=1)
            (self.folder / "config.json").write_text(text)
        seed = options.seed + state.step + 1_000_000 * self.rank + crc32(self.folder.name.encode())
        seed_data(seed)
        torch.manual_seed(seed)
        schedule, log = Schedule(self.minutes, options.warmup_steps, state.seconds), Log(self.write)
        saved = time.monotonic()
        while not schedule.done:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                loss, parts = loss_of()
            loss.backward()
            schedule.tick(parameters, self.world)
            norms = [nn.utils.clip_grad_norm_(part.parameters(), options.clip, foreach=True) for part in learning]
            if torch.stack(norms).isfinite().all():
                update(optimizers, options.learning_rate * schedule.factor(state.step))
                state.average.update(model, state.step)
            else:
                self.write({"step": state.step, "skipped": "gradient not finite"})
            for parameter in parameters:
                parameter.grad = None
            state.step, state.seconds = state.step + 1, schedule.spent
            log.add(state, {"loss": loss, **parts, "norm": norms[0]}, options.batch * self.world)
            if self.first and (schedule.done or time.monotonic() - saved > SAVE_EVERY):
                state.save(checkpoint, config)
                saved = time.monotonic()
        model.load_state_dict(state.average.values)
        return checkpoint

    def write(self, row: dict[str, Any]) -> None:
        """Adds a line to log.jsonl and prints it, in the first process."""
        if self.first:
            line = json.dumps(row)
            with (self.folder / "log.jsonl").open("a") as file:
                print(line, file=file)
            print(line, flush=True)

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process that writes files: the only one, or ``torchrun``'s first."""
    return int(os.environ.get("RANK", 0)) == 0


def device_of(name: str) -> torch.device:
    """The device "cpu" or "cuda", of several GPUs the one of this process; raises UsageError if there is none."""
    if name != "cuda":
        return torch.device(name)
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise UsageError("no CUDA device here; use --device cpu" if number == 0 else f"no CUDA device {number} here")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def share(module: nn.Module) -> None:
    """Gives all processes the first one's weights; those that each has made of data may differ in their last bits."""
    values = list(module.state_dict().values())
    flat = torch.cat([value.flatten() for value in values])
    dist.broadcast(flat, 0)
    for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))


def update(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("factor", 1.0)
        optimizer.step()


def read_checkpoint(path: Path, sizes: type[Sizes], device: torch.device | str = "cpu") -> tuple[dict[str, Any], Sizes]:
    """What ``Training.fit`` has saved, and its config; raises BadInput for any other file, or one of another codec."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        return state, sizes(**state["config"])
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, UnpicklingError) as error:
        raise BadInput(f"{path} is no checkpoint of the nic train command that is needed here") from error


class Log:
    """A row every 100 steps: the means of what is added, MSE as PSNR, and crops a second."""

    EVERY = 100

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.write = write
        self.rows: list[Tensor] = []
        self.since = time.monotonic()

    def add(self, state: State, parts: dict[str, Tensor], samples: int) -> None:
        """``parts``: as in Loss; they stay on their device until they are written."""
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
        self.write({"step": state.step, "minutes": round(state.seconds / 60, 2), **row, "crops_per_s": speed})
        self.rows, self.since = [], now
