"""Files of crops of photographs with the latents that an encoder's search finds for them, to train a synthesis on."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from functools import cache
from pathlib import Path

import numpy as np
import torch

from nic.effort import ITERATIONS
from nic.encoder import code_fidelity
from nic.errors import UsageError
from nic.loaded import load_model
from nic.models import store
from nic.models.config import LEVELS
from nic.models.prior import UNIT
from nic.models.training.data import Photos, read_photos
from nic.models.training.synthesis import SIDE, Shard, write_shard
from nic.processes import pool_of

__all__ = ["write_shards"]

AT_ONCE = 64  # crops of a file
EFFORTS = (3, 4)  # about those that are used most


def write_shards(folder: Path, data: Sequence[Path], crops: int, coded_by: str, workers: int) -> Iterator[Path]:
    """Writes so many crops, in files of AT_ONCE, into a folder, and yields each file; those that are there stay.

    data: photographs, as for read_photos. coded_by: a model of fidelity mode; raises UsageError for any other.
    """
    if not isinstance(load_model(coded_by, "cpu"), store.Model):
        raise UsageError(f"model {coded_by} is of the extreme mode: name one of fidelity mode")
    folder.mkdir(parents=True, exist_ok=True)
    counts = {folder / f"{at // AT_ONCE:04}.safetensors": min(AT_ONCE, crops - at) for at in range(0, crops, AT_ONCE)}
    missing = {path: count for path, count in counts.items() if not path.exists()}
    if missing:
        with pool_of(min(workers, len(missing)), torch.set_num_threads, 1) as pool:
            for done in as_completed(pool.submit(write, path, tuple(data), n, coded_by) for path, n in missing.items()):
                yield done.result()


def write(path: Path, data: tuple[Path, ...], count: int, coded_by: str) -> Path:
    seed = int(path.stem)
    model, photos, chance = load_model(coded_by, "cpu"), read(data), random.Random(seed)
    assert isinstance(model, store.Model)
    photos.seed(seed)
    rows = []
    for _ in range(count):
        crop = photos.crops(1, SIDE)[0].permute(1, 2, 0)
        pixels = torch.round(crop * 255).byte().contiguous().numpy()
        level, iterations = chance.randint(0, LEVELS), ITERATIONS[chance.choice(EFFORTS)]
        latents = code_fidelity(model, pixels, level, iterations, 0).latents[0]
        rows.append(((latents * UNIT).round().to(torch.int16).numpy(), pixels, np.uint8(level)))
    write_shard(path, Shard(*map(np.stack, zip(*rows, strict=True))), model.id)
    return path


@cache
def read(data: tuple[Path, ...]) -> Photos:
    """The photographs to train on; each process reads them once."""
    return Photos(read_photos(data, workers=1), torch.device("cpu"))
