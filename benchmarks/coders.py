"""The codecs that are compared. Each one is a format of Pillow, so all are called alike and through real files."""

import bisect
from io import BytesIO
from typing import Any

from PIL import Image

import nic  # noqa: F401  makes nic a format of Pillow

__all__ = ["CODERS", "at_size", "decode", "encode"]

# Pillow's options beside the quality: JPEG as cameras and the web use it, WebP at its best.
CODERS: dict[str, dict[str, Any]] = {
    "nic": {},
    "JPEG": {"subsampling": "4:2:0", "optimize": True},
    "WebP": {"method": 6},
}


def encode(image: Image.Image, coder: str, quality: int) -> bytes:
    """The bytes of `image` as a file of `coder`."""
    with BytesIO() as file:
        image.save(file, coder, quality=quality, **CODERS[coder])
        return file.getvalue()


def decode(data: bytes) -> Image.Image:
    """The RGB picture in the bytes of a file of any coder."""
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB")


def at_size(image: Image.Image, coder: str, size: int) -> tuple[int, bytes]:
    """The quality, 1 to 95, and the bytes of the file that is nearest to `size` bytes."""
    qualities = range(1, 96)
    above = bisect.bisect_left(qualities, size, key=lambda quality: len(encode(image, coder, quality)))
    files = [(quality, encode(image, coder, quality)) for quality in qualities[max(above - 1, 0) : above + 1]]
    return min(files, key=lambda file: abs(len(file[1]) - size))
