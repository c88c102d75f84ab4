"""Pictures to .nic files and back."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import torch

from nic.bitstream.arrival import Arrival, cut_cell
from nic.bitstream.container import salvage, unpack
from nic.decoder import Ahead, Crop, PictureDecoder, decode_alpha, decode_begun, decode_latents, decode_words
from nic.effort import check_options
from nic.encoder import PictureEncoder, level_at, nearer
from nic.errors import BadFile, NicError, UsageError
from nic.loaded import load_model, model_of
from nic.models import store
from nic.models.config import LEVELS
from nic.pixels import Picture
from nic.progress import expect
from nic.refine import Refinement
from nic.windows import cell_slices, latent_grid

__all__ = ["Crop", "Encoded", "Recovered", "compress", "decompress", "recover", "recover_stream", "verify"]

MODES = ("auto", store.FIDELITY, store.EXTREME)
LOW_RATE = 0.25  # bits per pixel; fidelity mode's lowest quality takes less of nearly every picture


@dataclass(frozen=True)
class Encoded:
    """A .nic file, the quality (0 to 100) it was made with, and why it missed its target (or "")."""

    data: bytes
    quality: float
    note: str = ""


@dataclass(frozen=True)
class Recovered:
    """What is left of a damaged file: ``problems`` in one line each, and how many cells had to be concealed.

    consistency: of a refined picture that was to be made consistent, the share of its latents that agree with the file.
    """

    picture: Picture
    problems: tuple[str, ...]
    concealed: int
    truncated: bool
    consistency: float | None = None


@torch.inference_mode(False)
def compress(
    picture: Picture,
    *,
    quality: float | None = None,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    effort: int = 4,
    mode: str = "auto",
    mask_rate: float = 0,
    device: str = "auto",
) -> Encoded:
    """Codes a picture at a quality (0 to 100, else 50), or at the one that meets a target: at most one of the four.

    bpp: bits per pixel of the whole file. size: bytes of the whole file, at most. psnr: dB over all colour samples, at
    least. effort: 1 to 9; from 2 on, iterations that make the file smaller at equal quality, listed in nic/effort.py;
    extreme mode has none. mode: "fidelity", "extreme" for the lowest rates, or "auto": extreme where bpp or size ask
    for less than fidelity can reach. mask_rate: the share, 0 to 1, of what is coded that is left out, as for
    ``nic.encode``. A target that is missed by more than 2 % is told in the result's note. Raises UsageError.
    """
    check_options(effort, quality, bpp=bpp, size=size, psnr=psnr)
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is none of {', '.join(MODES)}")
    if not 0 <= mask_rate <= 1:
        raise UsageError(f"mask rate {mask_rate:g} is outside 0 to 1")
    height, width = picture.pixels.shape[:2]
    target = size if bpp is None else bpp * height * width / 8
    name = store.EXTREME if mode == store.EXTREME else store.DEFAULT
    encoder = PictureEncoder(picture, load_model(name, device), effort, mask_rate)
    if mode == "auto" and target is not None and 8 * target < LOW_RATE * height * width:
        encoder = nearer(encoder, target, device, nearest=bpp is not None)
    if target is None and psnr is None:
        expect(encoder.steps(decoding=False))
    else:
        expect(encoder.search_steps(decoding=psnr is not None))
    if target is not None:
        level, note = encoder.search_size(target, nearest=bpp is not None)
    elif psnr is not None:
        level, note = encoder.search_psnr(psnr)
    else:
        level, note = level_at(quality), ""
    return Encoded(encoder.file(level), level / LEVELS * 100, note)


def decompress(
    data: bytes, *, crop: Crop | None = None, refinement: Refinement | None = None, device: str = "auto"
) -> Picture:
    """The picture in a .nic file, or a part of it; raises BadFile, UnsupportedFile or UnknownModel.

    Of a part, only the cells that it depends on are decoded. Raises UsageError for a part outside the picture, and for
    one that shall be consistent.
    """
    file = unpack(data)
    decoder = PictureDecoder(file.header, crop, refinement, device)
    alpha = decoder.alpha(file.alpha)
    latents, filters, _ = decoder.latents(dict(enumerate(file.cells)))
    pixels, _ = decoder.pixels(latents, filters)
    return Picture(pixels, alpha, file.icc or b"", file.exif or b"", file.xmp or b"")


def recover(
    data: bytes,
    *,
    crop: Crop | None = None,
    refinement: Refinement | None = None,
    device: str = "auto",
    ahead: Ahead | None = None,
) -> Recovered:
    """What can be decoded of a damaged or cut .nic file; lost cells are filled smoothly from those around them.

    A cell in which the file is cut off is decoded from what there is of it. ahead: cells that are decoded already; they
    are taken out of it one by one. Raises BadFile where the header or all cells are lost, and for cells that are intact
    but no encoder's work; otherwise as ``decompress``.
    """
    file = salvage(data)
    problems, cells = list(file.problems), dict(file.cells)
    ahead = {} if ahead is None else ahead
    if file.truncated and (cut := cut_cell(data)):
        index, words = cut
        if index not in cells and (begun := decode_begun(file.header, index, words, device)) is not None:
            cells[index], ahead[index] = words, (words, begun)
    if file.truncated and not cells:
        raise BadFile(problems[0])
    decoder, alpha = PictureDecoder(file.header, crop, refinement, device), None
    try:
        alpha = decoder.alpha(file.alpha)
    except BadFile as error:
        problems.append(str(error))
    latents, filters, filled = decoder.latents(cells, ahead)
    pixels, consistency = decoder.pixels(latents, filters)
    picture = Picture(pixels, alpha, file.icc or b"", file.exif or b"", file.xmp or b"")
    concealed = filled + len(cells) - len(file.cells)
    return Recovered(picture, tuple(problems), concealed, file.truncated, consistency)


def recover_stream(blocks: Iterable[bytes], *, refinement: Refinement | None = None, device: str = "auto") -> Recovered:
    """As ``recover``, of a file that is still coming in: each cell is decoded while the next blocks are awaited."""
    arrival, ahead = Arrival(), Ahead()
    for block in blocks:
        for header, index, words in arrival.feed(block):
            slices = cell_slices(*latent_grid(header.height, header.width))
            if index == len(ahead) < len(slices):  # in order: each cell once, and none behind an error
                with suppress(NicError):  # the whole file decides what an error in it means
                    model = model_of(header, device)
                    ahead[index] = words, decode_words(model, words, slices[index], header)
    return recover(bytes(arrival.data), refinement=refinement, device=device, ahead=ahead)


def verify(data: bytes, *, device: str = "auto") -> None:
    """Decodes every symbol of a .nic file and its alpha, without making the picture; raises as ``decompress``."""
    file = unpack(data)
    if file.alpha is not None:
        decode_alpha(file.alpha, file.header)
    model = model_of(file.header, device)
    decode_latents(file.header, dict(enumerate(file.cells)), model)
