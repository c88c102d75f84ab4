"""Training photographs: decoded once into one uint8 tensor on the training device; crops are cut there."""

import io
import random
import tarfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nic.errors import BadInput

__all__ = ["SIDE", "Photos", "read_photos", "to_images"]

SUFFIXES = {".avif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
SIDE = 512  # larger pictures are cut to their upper left corner; a crop never needs more
READ_AHEAD = 256  # files that are read before they are decoded


def encoded_photos(sources: Sequence[Path], part: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every picture file in folders and tars that is ``wanted``."""
    for source in sources:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.suffix == ".tar":
                with tarfile.open(path) as archive:
                    for member in archive:
                        if member.isfile() and wanted(Path(member.name), part):
                            yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]
            elif wanted(path.relative_to(source) if source.is_dir() else path, part):
                yield str(path), path.read_bytes()


def wanted(path: Path, part: str) -> bool:
    """Pictures under a folder val/ are for validation; all others are for training."""
    return path.suffix.lower() in SUFFIXES and ("val" in path.parts[:-1]) == (part == "val")


def decode_square(file: tuple[str, bytes]) -> np.ndarray | None:
    """A picture file's upper left SIDE x SIDE pixels, RGB; None where a side has fewer than 128. Raises BadInput.

    None also for samples of 16 or 32 bits, which Pillow would cut to 255 instead of scaling.
    """
    name, encoded = file
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.mode.startswith(("I", "F")):
            return None
        pixels = np.asarray(image.convert("RGB"))[:SIDE, :SIDE]
    except Exception as error:  # on damaged files, decoders raise almost any
        raise BadInput(f"{name} cannot be read as a picture: remove it") from error
    return pixels if min(pixels.shape[:2]) >= 128 else None


def read_photos(sources: Sequence[Path], part: str = "train", workers: int = 2) -> list[np.ndarray]:
    """Decodes pictures [H, W, 3] uint8 from folders and tar files, ``part`` "train" or "val".

    There may be none for validation. Raises BadInput for files that cannot be read, and without training pictures.
    """
    files, photos = encoded_photos(sources, part), []
    try:
        with ProcessPoolExecutor(workers) as pool:
            while some := list(islice(files, READ_AHEAD)):
                photos += [photo for photo in pool.map(decode_square, some, chunksize=8) if photo is not None]
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"cannot be read: {error}") from error
    if not photos and part == "train":
        names = ", ".join(map(str, sources))
        raise BadInput(f"no pictures to train on in {names}: they need 128 pixels a side, and a folder not named val")
    return photos


def to_images(photo: np.ndarray, device: torch.device) -> Tensor:
    """A whole photograph [H, W, 3] uint8, cut to multiples of 64: [1, 3, h, w] in [0, 1], channels_last."""
    height, width = (side // 64 * 64 for side in photo.shape[:2])
    return torch.from_numpy(photo[None, :height, :width]).to(device).permute(0, 3, 1, 2).float() / 255


class Photos:
    """Random crops from photographs held in one tensor [N, SIDE, SIDE, 3] uint8 on ``device``."""

    def __init__(self, photos: list[np.ndarray], device: torch.device) -> None:
        photos = sorted(photos, key=lambda photo: min(photo.shape[:2]))
        self.shorter_sides = [min(photo.shape[:2]) for photo in photos]
        self.pixels = torch.zeros(len(photos), SIDE, SIDE, 3, dtype=torch.uint8, device=device)
        for index, photo in enumerate(photos):
            height, width = photo.shape[:2]
            self.pixels[index, :height, :width] = torch.from_numpy(photo)
        self.sizes = torch.tensor([photo.shape[:2] for photo in photos], device=device)
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Starts another sequence of crops."""
        self.generator = torch.Generator(self.pixels.device).manual_seed(seed)
        self.random = random.Random(seed)

    def crops(self, count: int, size: int) -> Tensor:
        """Random crops [count, 3, size, size] in [0, 1], channels_last, flipped, turned and half the time shrunk."""
        shrink = self.random.uniform(0.6, 1.4)  # above 1: not shrunk
        window = max(size, min(round(size / shrink), self.shorter_sides[-1])) if shrink < 1 else size
        first = bisect_left(self.shorter_sides, window)  # of those that hold the crop
        if first == len(self.shorter_sides):
            raise BadInput(f"no picture to train on holds a crop of {size}x{size}: give larger ones")
        chosen = first + (self.uniform(count) * (len(self.shorter_sides) - first)).long()
        room = self.sizes[chosen] - window + 1
        corner = (self.uniform(count, 2) * room).long()
        rows, columns = (corner[:, axis, None] + torch.arange(window, device=room.device) for axis in (0, 1))
        flips = self.uniform(count, 2) < 0.5
        rows = torch.where(flips[:, :1], rows.flip(1), rows)
        columns = torch.where(flips[:, 1:], columns.flip(1), columns)
        crops = self.pixels[chosen[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        crops = crops.float() / 255
        if self.random.random() < 0.5:
            crops = crops.transpose(2, 3).contiguous(memory_format=torch.channels_last)
        if window != size:
            crops = F.interpolate(crops, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
        return crops

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.pixels.device)
