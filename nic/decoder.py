"""A picture, or a part of it, from its cells: as many as there are."""

import io
import operator
from collections.abc import Mapping

import numpy as np
import torch
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from nic.bitstream.header import Header
from nic.cells import Cell, decode_cell, decode_cut_cell
from nic.conceal import conceal
from nic.errors import BadFile, UsageError
from nic.extreme import decode_indices, restore
from nic.loaded import entropy_tables, model_of
from nic.models import store
from nic.models.prior import UNIT
from nic.models.transforms import LATENT
from nic.progress import advance, expect
from nic.refine import Refinement, project, reach_of, refine, steps_of
from nic.windows import (
    Filters,
    Slices,
    cell_of,
    cell_slices,
    grow,
    halo,
    latent_grid,
    meet,
    pixels_of,
    synthesize,
)

__all__ = ["Ahead", "Crop", "PictureDecoder", "decode_alpha", "decode_begun", "decode_latents", "decode_words"]

Crop = tuple[int, int, int, int]  # left, top, width, height in pixels
Ahead = dict[int, tuple[bytes, Cell]]  # by the cell's index: its words, and what they decode to


class PictureDecoder:
    """What a file with this header shows: the whole picture or a part of it, as it is or refined.

    Raises UnknownModel, BadFile for a model of another mode, UsageError for a part outside the picture, and for one
    that shall be consistent.
    """

    def __init__(
        self, header: Header, crop: Crop | None = None, refinement: Refinement | None = None, device: str = "auto"
    ) -> None:
        self.header = header
        self.refinement = refinement
        self.box = (0, 0, header.width, header.height) if crop is None else checked(crop, header)
        if crop is not None and refinement and refinement.consistent:
            raise UsageError("only whole pictures can be made consistent")
        self.model = model_of(header, device)
        self.region = crop_region(self.box)  # of the latents, whose pixels are needed
        if refinement:
            height, width = crop_region((0, 0, header.width, header.height))
            self.region = grow(self.region, reach_of(refinement, self.model.device), height.stop, width.stop)

    def alpha(self, png: bytes | None) -> np.ndarray | None:
        """Alpha [height, width] from the file's; raises BadFile."""
        return None if png is None else crop_array(decode_alpha(png, self.header), self.box)

    def latents(self, cells: Mapping[int, bytes], ahead: Ahead | None = None) -> tuple[Tensor, Filters, int]:
        """Latents [1, M, h, w] in steps, filters, and how many cells are filled in.

        Only those are valid that the pixels depend on. Cells that are lost are filled in from those around them: from
        all that there are. cells, ahead, errors: as for ``decode_latents``.
        """
        header, grid = self.header, latent_grid(self.header.height, self.header.width)
        count = len(cell_slices(*grid))
        if self.box[2:] == (header.width, header.height):
            expect(len(cells) + count + steps_of(self.refinement, header.height, header.width))
        needed = grow(self.region, halo(self.model), *grid) if len(cells) == count else None
        latents, filters, lost = decode_latents(header, cells, self.model, needed, ahead)
        if lost and isinstance(self.model, store.ExtremeModel) and self.model.recovery:
            return restore(self.model, latents, lost, header.quality), filters, len(lost)
        conceal(latents, lost)
        return latents, filters, len(lost)

    def pixels(self, latents: Tensor, filters: Filters) -> tuple[np.ndarray, float | None]:
        """Pixels [height, width, channels], and if they are made consistent, how well: as ``project`` says."""
        header, consistency = self.header, None
        rows, columns = self.region
        made = synthesize(self.model, latents, header.quality, header.channels, header.bit_depth, self.region, filters)
        corner = pixels_of(columns).start, pixels_of(rows).start
        made = np.ascontiguousarray(made[: header.height - corner[1], : header.width - corner[0]])
        if self.refinement:
            made = refine(made, self.model, header.quality, self.refinement, (rows.start, columns.start))
            if self.refinement.consistent:
                made, consistency = project(made, self.model, latents, header.quality)
        left, top, width, height = self.box
        return crop_array(made, (left - corner[0], top - corner[1], width, height)), consistency


@torch.inference_mode()
def decode_latents(
    header: Header,
    cells: Mapping[int, bytes],
    model: store.AnyModel,
    region: Slices | None = None,
    ahead: Ahead | None = None,
) -> tuple[Tensor, Filters, list[Slices]]:
    """The latents [1, M, h, w] of a picture, in steps, each a whole number of 64ths, and its filters.

    The last are the cells that are not there.

    cells: payloads by index in raster order. ahead: those that are decoded already; they leave it. With a region of the
    grid, only cells that meet it are decoded, and what is elsewhere is undefined. Raises BadFile for a cell that no
    encoder has written, and where there is none at all.
    """
    height, width = latent_grid(header.height, header.width)
    latents, filters, lost = None, Filters(), []
    for index, (rows, columns) in enumerate(cell_slices(height, width)):
        if region and not (meet(rows, region[0]) and meet(columns, region[1])):
            continue
        if index not in cells:
            lost.append((rows, columns))
            continue
        words, cell = (ahead or {}).pop(index, (b"", None))
        if cell is None or words != cells[index]:
            cell = decode_words(model, cells[index], (rows, columns), header)
        if latents is None:  # a false claim of a huge picture has failed before this
            latents = cell.latents.new_empty(1, cell.latents.shape[1], height, width)
        latents[:, :, rows, columns] = cell.latents / UNIT
        if cell.filter:
            filters[cell_of((rows, columns))] = cell.filter
        advance()
    if latents is None:
        raise BadFile("damaged file: no cell is intact")
    return latents, filters, lost


def decode_words(model: store.AnyModel, words: bytes, place: Slices, header: Header) -> Cell:
    """The cell at a place of the grid; raises BadFile."""
    height, width = (side.stop - side.start for side in place)
    with torch.inference_mode():
        if isinstance(model, store.ExtremeModel):
            return Cell(decode_indices(model, entropy_tables(model), words, height, width, header.quality))
        return decode_cell(model, entropy_tables(model), words, height, width, model.quality(header.quality))


@torch.inference_mode()
def decode_begun(header: Header, index: int, words: bytes, device: str) -> Cell | None:
    """A cell from its first words; None if these are not a stage's worth."""
    slices = cell_slices(*latent_grid(header.height, header.width))
    if not 0 <= index < len(slices):
        return None
    model = model_of(header, device)
    if isinstance(model, store.ExtremeModel):
        return None
    height, width = (side.stop - side.start for side in slices[index])
    quality = model.quality(header.quality)
    cell, stages = decode_cut_cell(model, entropy_tables(model), words, height, width, quality)
    return cell if stages else None


def checked(crop: Crop, header: Header) -> Crop:
    """A part of the picture, as plain integers; raises UsageError for what is none."""
    try:
        left, top, width, height = map(operator.index, crop)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{crop!r} is not left, top, width and height: four whole numbers") from error
    if min(left, top) < 0 or min(width, height) < 1 or left + width > header.width or top + height > header.height:
        raise UsageError(f"{width}x{height} at {left},{top} is not within the picture, {header.width}x{header.height}")
    return left, top, width, height


def crop_region(box: Crop) -> Slices:
    """The latents that cover a part of the picture."""
    left, top, width, height = box
    return slice(top // LATENT, -(-(top + height) // LATENT)), slice(left // LATENT, -(-(left + width) // LATENT))


def crop_array(array: np.ndarray, box: Crop) -> np.ndarray:
    left, top, width, height = box
    return np.ascontiguousarray(array[top : top + height, left : left + width])


def decode_alpha(png: bytes, header: Header) -> np.ndarray:
    """The alpha plane [H, W]; raises BadFile unless it is a greyscale PNG of the picture's size and depth."""
    mode = {8: "L", 16: "I;16"}[header.bit_depth]
    try:
        with PngImageFile(io.BytesIO(png)) as image:  # not Image.open, whose limit of pixels is lower than nic's
            if image.size != (header.width, header.height) or image.mode != mode:
                raise BadFile("the alpha plane does not fit the picture")
            return np.array(image)
    except (BadFile, MemoryError):
        raise
    except Exception as error:  # on damaged files, Pillow's decoder raises almost any
        raise BadFile(f"the alpha plane cannot be decoded: {error}") from None
