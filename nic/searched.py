"""Files of pictures and of what an encoder's search makes of them, to train a synthesis on."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from functools import cache
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from nic.effort import ITERATIONS
from nic.encoder import code_fidelity
from nic.errors import BadInput, UsageError
from nic.frames import CodedFrame, GroupMotion, encode_group
from nic.loaded import load_model
from nic.media import Source
from nic.models import store
from nic.models.adaptive import AdaptiveFilter
from nic.models.config import LEVELS
from nic.models.order import Layer, Place
from nic.models.prior import UNIT
from nic.models.training.data import Photos, read_photos
from nic.models.training.synthesis import SIDE, Row, Shard, write_shard
from nic.models.training.video import in_motion
from nic.processes import pool_of
from nic.video import SPANS, TRIAL, above

__all__ = ["read_clip", "write_shards"]

AT_ONCE = 64  # rows of a file
EFFORTS = (3, 4)  # of pictures: about those that are used most
FRAME_ITERATIONS = (1, 2)  # of frames
LEAF_LEVELS = 180  # the highest quality level of leaves


def write_shards(
    folder: Path, photos: Sequence[Path], videos: Sequence[Path], total: int, coded_by: str, workers: int
) -> Iterator[Path]:
    """Writes so many rows, in files of AT_ONCE, into a folder, and yields each file; those that are there stay.

    photos: as for read_photos. coded_by: a model of fidelity mode, for crops of photos; or one of videos, for frames
    of videos and of photos in motion. Raises UsageError for any other.
    """
    mode = store.find(coded_by)["mode"]
    if mode not in (store.FIDELITY, store.VIDEO):
        raise UsageError(f"model {coded_by} is of no mode that this is for: name one of fidelity mode or of videos")
    if videos and mode != store.VIDEO:
        raise UsageError(f"model {coded_by} codes no videos: give --coded-by video, or no videos")
    folder.mkdir(parents=True, exist_ok=True)
    counts = {folder / f"{at // AT_ONCE:04}.safetensors": min(AT_ONCE, total - at) for at in range(0, total, AT_ONCE)}
    missing = {path: wanted for path, wanted in counts.items() if not path.exists()}
    if missing:
        data = tuple(photos), tuple(videos)
        with pool_of(min(workers, len(missing)), torch.set_num_threads, 1) as pool:
            for done in as_completed(pool.submit(write, path, *data, n, coded_by) for path, n in missing.items()):
                yield done.result()


def write(path: Path, photos: tuple[Path, ...], videos: tuple[Path, ...], wanted: int, coded_by: str) -> Path:
    seed, model = int(path.stem), load_model(coded_by, "cpu")
    assert isinstance(model, store.Model)
    moving = store.find(coded_by)["mode"] == store.VIDEO
    rows = frames(model, photos, videos, seed) if moving else crops(model, photos, seed)
    write_shard(path, Shard.of(list(islice(rows, wanted))), model.id)
    return path


@cache
def read(photos: tuple[Path, ...]) -> list[np.ndarray]:
    """The photographs to train on; each process reads them once."""
    return read_photos(photos, workers=1)


@cache
def read_clip(video: Path) -> list[np.ndarray]:
    """The frames of a video, [H, W, 3] uint8 each; raises BadInput."""
    try:
        return list(Source.open(str(video)).frames())
    except BadInput as error:
        raise BadInput(f"{video}: {error}") from error


def crops(model: store.Model, data: tuple[Path, ...], seed: int) -> Iterator[Row]:
    """Crops of photographs at random qualities, coded as nic compress does."""
    photos, chance = Photos(read(data), torch.device("cpu")), random.Random(seed)
    photos.seed(seed)
    while True:
        crop = photos.crops(1, SIDE)[0].permute(1, 2, 0)
        pixels = torch.round(crop * 255).byte().contiguous().numpy()
        level, iterations = chance.randint(0, LEVELS), ITERATIONS[chance.choice(EFFORTS)]
        coded = code_fidelity(model, pixels, level, iterations, 0)
        (adaptive,) = coded.filters.values()  # of its only cell
        yield to_row(coded.latents, pixels, level, adaptive, None)


def frames(model: store.Model, photos: tuple[Path, ...], videos: tuple[Path, ...], seed: int) -> Iterator[Row]:
    """Frames with a residual, of parts of videos and of photographs in motion in turn, at random qualities."""
    chance = random.Random(seed)
    for number in count():
        if number % 2 and videos:
            yield from frames_of(model, part(read_clip(chance.choice(videos)), chance), chance)
        else:
            yield from frames_of(model, list(in_motion(read(photos), 1000 * seed + number)[:, :SIDE, :SIDE]), chance)


def frames_of(model: store.Model, clip: list[np.ndarray], chance: random.Random) -> list[Row]:
    """What is kept of a clip, coded as a group of frames."""
    leaves = chance.randint(0, LEAF_LEVELS)
    rows: list[Row] = []

    def level(layer: Layer) -> int:
        return above(leaves, layer)

    def keep(place: Place, frame: CodedFrame) -> None:
        if frame.latents is not None:
            pixels, used = clip[place.frame], (frame.filter, frame.prediction)
            rows.append(to_row(frame.latents, pixels, level(place.layer), *used))

    motion = GroupMotion.search(model, clip, chance.choice(SPANS))
    encode_group(model, clip, motion, level, chance.choice(FRAME_ITERATIONS), keep)
    return rows


def part(clip: list[np.ndarray], chance: random.Random) -> list[np.ndarray]:
    """TRIAL frames of SIDE x SIDE pixels of a clip that is as large, maybe mirrored and backwards.

    Of a smaller one, its last row and column go on.
    """
    height, width = clip[0].shape[:2]
    first, top, left = (chance.randint(0, max(0, size)) for size in (len(clip) - TRIAL, height - SIDE, width - SIDE))
    step, mirror = chance.choice((1, -1)), chance.choice((1, -1))
    cut = [pixels[top : top + SIDE, left : left + SIDE] for pixels in clip[first : first + TRIAL]]
    margins = (0, SIDE - cut[0].shape[0]), (0, SIDE - cut[0].shape[1]), (0, 0)
    return [np.pad(pixels, margins, mode="edge")[:, ::mirror].copy() for pixels in cut[::step]]


def to_row(
    latents: torch.Tensor, pixels: np.ndarray, level: int, adaptive: AdaptiveFilter, prediction: torch.Tensor | None
) -> Row:
    fixed = (latents[0] * UNIT).round().to(torch.int16).numpy()
    before = None if prediction is None else prediction[0].half().numpy()
    return Row(fixed, adaptive.to_array(), pixels, np.uint8(level), before)
