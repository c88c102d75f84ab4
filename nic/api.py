"""The functions of `import nic`: pictures of any kind to .nic bytes, and back to Pillow images.

Only coding needs torch, so `encode`, `decode` and `recover` import the codec when they are called. What they raise is
in `nic.errors`.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from nic.describe import describe
from nic.errors import BadInput, UsageError
from nic.pixels import load, to_pil

__all__ = ["decode", "encode", "info", "recover"]

NicSource = bytes | bytearray | memoryview | Path | str | BinaryIO


def encode(
    image: Image.Image | np.ndarray | Path | str | bytes | BinaryIO,
    *,
    quality: float | None = None,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    effort: int = 4,
    mode: str = "auto",
    mask_rate: float = 0,
    device: str = "auto",
) -> bytes:
    """The bytes of a .nic file.

    Args:
        image: a Pillow image, an array [H, W] or [H, W, 1..4] of uint8 or uint16, or a picture file as path, bytes or
            stream. Pillow itself cuts 16-bit colour to 8 bits: pass such a file by its path. Its limit of pixels,
            PIL.Image.MAX_IMAGE_PIXELS, holds here, too.
        quality: 0 (smallest) to 100 (best); 50 unless a target below is given instead.
        bpp: the file's size in bits per pixel, metadata included, as near as there is.
        size: the most bytes that the file may have.
        psnr: the least PSNR in dB that the picture may have.
        effort: 1 (fastest) to 9 (smallest file at equal quality), of fidelity mode; decoding takes the same time.
        mode: "fidelity", "extreme" for the lowest rates, or "auto": extreme where bpp or size ask for less than
            fidelity can reach.
        mask_rate: the share, 0 to 1, of the coded groups of four latents that are left at what the prior expects; in
            the extreme mode of the positions that do without basis codebooks or, at qualities below 63 that have none,
            of the indices. Those that matter least; 0 leaves the choice to rate and distortion.
        device: "auto", "cpu" or "cuda".

    Raises BadInput for an unusable image, UsageError for options out of range, and for more than one of
    quality, bpp, size and psnr.
    """
    from nic.codec import compress

    return compress(
        load(image),
        quality=quality,
        bpp=bpp,
        size=size,
        psnr=psnr,
        effort=effort,
        mode=mode,
        mask_rate=mask_rate,
        device=device,
    ).data


def decode(
    source: NicSource,
    *,
    crop: tuple[int, int, int, int] | None = None,
    refine: int = 0,
    refine_strength: float = 0.5,
    seed: int = 0,
    consistent: bool = False,
    device: str = "auto",
) -> Image.Image:
    """The picture in a .nic file, with icc_profile, exif and xmp in its `info`.

    Args:
        source: the file as bytes, path or stream.
        crop: left, top, width and height in pixels of the part that is wanted; nothing else is decoded.
        refine: steps, up to 100, of a network that adds the detail that is likely where the file has none; 0 for none.
        refine_strength: how much of what these steps change is kept, 0 to 1.
        seed: of the noise that they start from.
        consistent: refined pictures are moved back towards those that would be coded to the same latents. Not with
            crop.
        device: "auto", "cpu" or "cuda".

    Its mode is L, LA, RGB, RGBA or, for 16-bit grey, I;16; Pillow cannot hold other 16-bit pictures, so they come as
    8 bits. Raises BadFile for damage (see `recover`), UnsupportedFile for files of a newer nic, UsageError for options
    out of range and for videos, BadInput for a file that cannot be read.
    """
    from nic.codec import decompress
    from nic.refine import Refinement

    if not refine and (refine_strength, seed, consistent) != (0.5, 0, False):
        raise UsageError("refine_strength, seed and consistent are for refine")
    refinement = Refinement(refine, refine_strength, seed, consistent) if refine else None
    return to_pil(decompress(_read(source), crop=crop, refinement=refinement, device=device))


def recover(
    source: NicSource, *, crop: tuple[int, int, int, int] | None = None, device: str = "auto"
) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in a damaged or cut .nic file, its lost parts filled in, and one line a problem.

    An intact file gives the picture of `decode` and no problems. Raises BadFile where nothing can be decoded, otherwise
    as `decode`.
    """
    from nic.codec import recover

    recovered = recover(_read(source), crop=crop, device=device)
    return to_pil(recovered.picture), recovered.problems


def info(source: NicSource) -> dict[str, object]:
    """What a .nic file, also of a video, says of itself: size, mode, model, chunks. Decodes nothing.

    The keys are those of `nic info --json`; "problems" has a line for each that a damaged file has. Raises as `decode`,
    but BadFile only where the header is lost.
    """
    return describe(_read(source))


def _read(source: NicSource) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    try:
        data = Path(source).read_bytes() if isinstance(source, str | Path) else source.read()
    except (OSError, ValueError) as error:
        raise BadInput(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(data, bytes):
        raise BadInput(f"{source} gives text: open it in binary mode")
    return data
