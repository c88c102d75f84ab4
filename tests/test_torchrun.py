"""Two processes that train together do what one does with the same batch: this file is also their program."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nic.models import store
from nic.models.codec import ImageCodec
from nic.models.config import CONFIGS, ExtremeConfig, ImageConfig, read_toml
from nic.models.extreme import ExtremeCodec
from nic.models.training.data import Photos
from nic.models.training.image import train

STEPS = 6
BATCH = 4  # of all processes together
SMALL = ImageConfig(
    trunk=16,
    trunk_blocks=1,
    deep=32,
    deep_blocks=1,
    latent=32,
    hyper=8,
    prior=16,
    prior_blocks=1,
    lambda_min=0.001,
    lambda_max=0.05,
)


def torchrun(processes: int, *program: object) -> str:
    """What it prints."""
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launcher, *map(str, program)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(processes: int, photos: Path, folder: Path) -> tuple[Tensor, Tensor]:
    """The loss and the gradient's norm at each step, means over the processes."""
    folder.mkdir()
    torchrun(processes, __file__, photos, folder)
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == STEPS
    losses, norms = torch.tensor(
        [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    ).unbind(dim=1)
    assert (norms == norms[0]).all()  # they have the same gradient, to the last bit
    return losses.mean(dim=0), norms[0]


def test_two_processes_learn_what_one_learns_from_the_same_batches(photographs: Path, tmp_path: Path) -> None:
    one_losses, one_norms = run(1, photographs, tmp_path / "one")
    two_losses, two_norms = run(2, photographs, tmp_path / "two")
    assert len(one_losses) == len(two_losses) == STEPS and one_losses[-1] < one_losses[0]
    assert torch.allclose(one_losses[:2], two_losses[:2], rtol=1e-5)
    assert torch.allclose(one_norms[:2], two_norms[:2], rtol=1e-4)
    # Adam turns the rounding errors of gradients that are nearly zero into steps of full length.
    assert torch.allclose(one_losses, two_losses, rtol=3e-3)


def test_one_of_two_processes_writes_the_files(photographs: Path, tmp_path: Path) -> None:
    """Of the prior of indices, of which each batch takes one of six parts: the processes draw different ones."""
    codec = ExtremeCodec(ExtremeConfig(16, 1, 32, 1, 8, 4, 16, 1, 30.0, 2.0))
    codec.bases.vectors.normal_()
    codec.bases.bits.fill_(4)
    state = {"average": codec.state_dict(), "config": dataclasses.asdict(codec.config), "step": 1, "seconds": 1.0}
    torch.save(state, tmp_path / "codec.pt")
    command = ["--no-python", sys.executable, "-P", "-m", "nic", "train", "indices", tmp_path / "codec.pt"]
    command += [tmp_path / "out.safetensors", "--data", photographs, "--workers", 1, "-o", tmp_path / "run"]
    printed = torchrun(2, *command, "--minutes", 0.03)
    assert re.findall(r"model id (\w+)", printed) == [store.load_extreme(tmp_path / "out.safetensors").id.hex()]
    books = re.findall(r'"codewords": (\d+),', printed)  # those that the validation pictures drew
    assert books and len(books) == len(set(books))


def program(data: Path, folder: Path) -> None:
    """Trains on the same batches however many processes share them: each takes its part, without noise."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    losses: list[float] = []
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_
    crops, seed, loss, monotonic = Photos.crops, Photos.seed, ImageCodec.loss, time.monotonic

    def same_loss(codec: ImageCodec, images: Tensor, quality: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        result = loss(codec, images, torch.linspace(5, 60, BATCH)[part])
        losses.append(float(result[0]))
        return result

    def same_clip(*args: Any, **options: Any) -> Tensor:
        norm = clip(*args, **options)
        norms.append(float(norm))
        return norm

    torch.nn.utils.clip_grad_norm_ = same_clip
    Photos.seed = lambda photos, value: seed(photos, 1)  # type: ignore[method-assign]
    Photos.crops = lambda photos, count, size: crops(photos, BATCH, size)[part]  # type: ignore[method-assign]
    ImageCodec.loss = same_loss  # type: ignore[method-assign]
    torch.rand_like = lambda x: torch.full_like(x, 0.5)
    minutes = 1e6  # so that the clock hardly moves, until it is over
    time.monotonic = lambda: monotonic() + (120 * minutes if len(losses) == STEPS else 0)
    options = read_toml(CONFIGS / "tiny.toml", ImageConfig)[1]
    options = type(options)(**vars(options) | {"batch": BATCH // world, "crop": 128, "warmup_steps": 2})
    train(SMALL, options, [data], folder, minutes, workers=1)
    (folder / f"{rank}.json").write_text(json.dumps([losses, norms]))


if __name__ == "__main__":
    program(*map(Path, sys.argv[1:]))
