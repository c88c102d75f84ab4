"""Pictures in memory, and the only place that meets other picture formats.

Pillow reads and writes them, except where it has no mode for the samples: it would silently cut 16-bit colour to
8 bits, so ffmpeg (PyAV) reads that, and writes it as PNG; TIFF is written here.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin, TiffTags, UnidentifiedImageError

from nic.bitstream.limits import MAX_PIXELS, MAX_SIDE, max_pixels
from nic.errors import BadInput, NicError, UsageError

__all__ = [
    "READABLE",
    "WRITABLE",
    "Picture",
    "load",
    "output_format",
    "pil_mode",
    "readable_suffixes",
    "save",
    "to_pil",
]

# Left out on purpose: EPS, which Pillow renders by running Ghostscript.
READABLE = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")

# Pillow's options for each format: lossless, or so fine that nic's own loss dominates. TIFF is written here.
WRITABLE: dict[str, dict[str, Any]] = {
    "AVIF": {"quality": 95, "subsampling": "4:4:4", "speed": 9},
    "BMP": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {"compress_level": 4},  # 2.5 times as fast as the default for 4 % more bytes
    "PPM": {},
    "TIFF": {},
    "WEBP": {"lossless": True, "exact": True},
}
_WITHOUT_ALPHA = ("BMP", "JPEG", "PPM")

_EXIF_PREFIX = b"Exif\0\0"  # what JPEG puts before the EXIF block, and Pillow before most of them
_ORIENTATION = 0x0112
_THUMBNAIL = (0x0201, 0x0202)  # in the second directory: where it starts, and its bytes
_SHORT, _LONG = 3, 4  # EXIF's types of numbers

_NEW_SUBFILE_TYPE = 254  # of a TIFF page: bit 0 says that it is another one at lower resolution

# Of the tags in a TIFF file, those that describe the picture and not its storage; then the EXIF and GPS directories.
_DESCRIPTIVE_TAGS = (270, 271, 272, _ORIENTATION, 282, 283, 296, 305, 306, 315, 33432)
_DIRECTORY_TAGS = (0x8769, 0x8825)

# EXIF orientation → what turns the picture upright: swap rows and columns?, then the steps through rows and columns.
_UPRIGHT = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}

# ffmpeg's names of 16-bit layouts, without "le" or "be", by their samples per pixel.
_DEEP_FORMATS = {1: "gray16", 2: "ya16", 3: "rgb48", 4: "rgba64"}


@dataclass(frozen=True)
class Picture:
    """One upright picture and its metadata.

    Attributes:
        pixels: [H, W, C] uint8 or uint16, C = 1 (grey) or 3 (RGB), full range, non-linear (as stored in files).
        alpha: [H, W] of the same dtype, not premultiplied, or None where the picture is opaque.
        icc: the ICC profile of `pixels`; empty means sRGB.
        exif: the EXIF block from its TIFF header on, orientation 1, without thumbnail; empty where absent.
        xmp: the XMP packet; empty where absent.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""


def load(source: Path | str | BinaryIO | bytes | bytearray | memoryview | Image.Image | np.ndarray) -> Picture:
    """The picture in a file (path, seekable stream or bytes), a Pillow image or an array.

    Arrays are [H, W] or [H, W, C] uint8 or uint16; C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. PNG, TIFF and PPM keep
    16 bits a sample; other formats give 8 bits of colour. Palettes become RGB, 1-bit pictures grey; CMYK and Lab go
    through their ICC profile to sRGB. The EXIF orientation is applied; an alpha channel opaque everywhere is dropped.

    Raises BadInput for what cannot be read, is too large for a .nic file, is floating-point, or has several frames; and
    for 16-bit colour in TIFF files that are tiled, planar or premultiplied, which no decoder here reads right.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    with _decoding():
        if isinstance(source, Image.Image):
            return _from_pil(source)
        if isinstance(source, bytes | bytearray | memoryview):
            if not source:
                raise BadInput("empty file")
            return _from_file(BytesIO(source))
        if isinstance(source, str | Path):
            with open(source, "rb") as file:
                return _from_file(file)
        return _from_file(source)


def to_pil(picture: Picture) -> Image.Image:
    """`picture` as a Pillow image of mode L, LA, RGB, RGBA or, for 16-bit grey without alpha, I;16.

    Pillow has no mode for other 16-bit pictures: they are rounded to 8 bits. `info` holds icc_profile, exif and xmp.
    """
    samples = _interleaved(picture)
    mode = pil_mode(picture.pixels.shape[2], 8 * samples.itemsize, picture.alpha is not None)
    if mode != "I;16":
        samples = _to_8_bits(samples)
    height, width, _ = samples.shape
    image = Image.frombytes(mode, (width, height), samples.tobytes())
    image.info.update(_pillow_metadata(picture))
    return image


def pil_mode(channels: int, bit_depth: int, alpha: bool) -> str:
    """The mode of `to_pil`'s image for a picture of 1 or 3 `channels` and 8 or 16 bits a sample."""
    if (channels, bit_depth, alpha) == (1, 16, False):
        return "I;16"
    return {1: "L", 3: "RGB"}[channels] + "A" * alpha


def save(picture: Picture, target: BinaryIO, format: str) -> None:
    """Write `picture` to `target` in one of the formats of WRITABLE.

    PNG and TIFF keep 16 bits, the others round to 8. BMP and PPM hold no metadata.
    Raises UsageError for what `format` cannot hold: alpha in JPEG, BMP or PPM, more than 16,383 pixels a side in WebP.
    """
    if picture.alpha is not None and format in _WITHOUT_ALPHA:
        raise UsageError(f"{format} cannot hold the picture's alpha channel: write PNG, TIFF, WebP or AVIF")
    try:
        if format == "PNG":
            target.write(_png(picture))
        elif format == "TIFF":
            target.write(_tiff(picture))
        else:
            image = to_pil(picture)
            if image.mode == "I;16":
                image = Image.fromarray(_to_8_bits(picture.pixels[..., 0]))
            image.save(target, format, **WRITABLE[format], **_pillow_metadata(picture))
    except (NicError, MemoryError):
        raise
    except Exception as error:  # of odd metadata, Pillow's encoders raise almost any
        raise UsageError(f"cannot be written as {format}: {_one_line(error)}") from error


def output_format(suffix: str) -> str:
    """The format of WRITABLE that a file name's suffix (".jpg") stands for. Raises UsageError for any other suffix."""
    format = Image.registered_extensions().get(suffix.lower(), "")
    if format not in WRITABLE:
        what = f"cannot write {suffix!r}" if suffix else "a name without a suffix names no format"
        raise UsageError(f"{what}: use .png, .tif, .webp, .avif, .jpg, .bmp or .ppm")
    return format


def readable_suffixes() -> frozenset[str]:
    """The file name suffixes, in lower case and with their dot, of the formats that `load` reads."""
    return frozenset(suffix for suffix, format in Image.registered_extensions().items() if format in READABLE)


@contextmanager
def _decoding() -> Iterator[None]:
    """Give BadInput for whatever reading a file raises: on damaged files, decoders raise almost any exception."""
    try:
        yield
    except (NicError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadInput(f"not a picture that nic reads ({', '.join(READABLE)}): convert it to PNG first") from error
    except Exception as error:
        raise BadInput(f"cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)  # without the number and the path, which users know
    return " ".join(reason.split()) or type(error).__name__


def _from_array(array: np.ndarray) -> Picture:
    samples = array[..., None] if array.ndim == 2 else array
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise BadInput(f"the array's type is {array.dtype}: convert it to uint8 (0..255) or uint16 (0..65535)")
    if samples.ndim != 3 or samples.shape[2] not in (1, 2, 3, 4) or samples.size == 0:
        raise BadInput(f"the array's shape is {array.shape}: a picture is [H, W] or [H, W, 1..4]")
    return _picture(samples.astype(array.dtype.newbyteorder("="), copy=False))


def _from_file(file: BinaryIO) -> Picture:
    with Image.open(file, formats=READABLE) as image:
        width, height = image.size
        limit = max_pixels()
        if max(width, height) > MAX_SIDE or width * height > limit:
            whose = "a .nic file holds" if limit == MAX_PIXELS else "NIC_MAX_PIXELS and .nic files allow"
            raise BadInput(f"{width}x{height} pixels: {whose} {MAX_SIDE} a side and {limit} in all")
        frames = _pages(image)
        if frames > 1:
            raise BadInput(f"holds {frames} frames or pages: take one of them, or save them as .mkv or .mp4")
        if image.format == "TIFF":
            _check_tiff(image)
        if not _is_deep_colour(image):
            return _from_pil(image)
        if image.format == "PNG":
            image.load()  # its metadata may stand behind the pixels
        metadata = _metadata(image)
        samples = _read_deep(file, f"{str(image.format).lower()}_pipe")
        if image.format == "TIFF" and image.mode == "RGB":
            samples = samples[..., :3]  # a fourth sample that is not said to be alpha is none, as in 8 bits
        return _picture(samples, **metadata)


def _pages(image: ImageFile.ImageFile) -> int:
    """Frames or pages of an open file, but for previews and second views behind the picture."""
    pages = getattr(image, "n_frames", 1)
    if image.format == "MPO":  # a camera's JPEG
        return 1
    if image.format != "TIFF":
        return pages
    reduced = 0
    for page in range(1, pages):
        image.seek(page)
        reduced += _tiff_tags(image).get(_NEW_SUBFILE_TYPE, 0) & 1
    image.seek(0)
    return pages - reduced


def _from_pil(image: Image.Image) -> Picture:
    image.load()
    metadata = _metadata(image)
    if image.mode in ("CMYK", "LAB"):
        image = _to_srgb(image, metadata["icc"])
        metadata["icc"] = b""
    return _picture(_pillow_samples(image), **metadata)


def _picture(samples: np.ndarray, icc: bytes = b"", exif: bytes = b"", xmp: bytes = b"") -> Picture:
    """The upright picture of interleaved `samples` [H, W, 1..4] in native byte order; even counts end with alpha."""
    orientation, exif = _upright_exif(exif)
    if orientation != 1:
        swap, row_step, column_step = _UPRIGHT[orientation]
        samples = (samples.swapaxes(0, 1) if swap else samples)[::row_step, ::column_step]
        xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>))[2-8]", rb"\g<1>1", xmp)
    alpha = None
    if samples.shape[2] % 2 == 0:
        samples, alpha = samples[..., :-1], np.ascontiguousarray(samples[..., -1])
        if alpha.min() == np.iinfo(alpha.dtype).max:
            alpha = None
    return Picture(np.ascontiguousarray(samples), alpha, icc, exif, xmp)


def _upright_exif(exif: bytes) -> tuple[int, bytes]:
    """The orientation 1..8 that `exif` asks for, and `exif` with that tag set to 1 and without its thumbnail.

    A thumbnail would lie on its side, and may be larger than the .nic file: it is cut off or, where something follows,
    becomes zeros. No other byte changes. What does not begin like EXIF is dropped.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:  # less than a TIFF header, which TIFF and AVIF would refuse
        return 1, b""
    block, orientation = bytearray(exif), 1
    try:
        values, following = _exif_values(exif, order, *struct.unpack_from(order + "I", exif, 4))
        kind, place = values.get(_ORIENTATION, (_SHORT, following))
        number = order + {_SHORT: "H", _LONG: "I"}.get(kind, "H")
        if _ORIENTATION in values and (asked := struct.unpack_from(number, exif, place)[0]) in _UPRIGHT:
            orientation = asked
            struct.pack_into(number, block, place, 1)
        (thumbnail,) = struct.unpack_from(order + "I", exif, following)
        values, _ = _exif_values(exif, order, thumbnail)
        start, length = (struct.unpack_from(order + "I", exif, values[tag][1])[0] for tag in _THUMBNAIL)
        if following < start <= start + length <= len(exif):
            block[following : following + 4] = bytes(4)
            block[start : start + length] = b"" if start + length == len(exif) else bytes(length)
    except (struct.error, KeyError):  # truncated, or without a thumbnail
        pass
    return orientation, bytes(block)


def _exif_values(exif: bytes, order: str, directory: int) -> tuple[dict[int, tuple[int, int]], int]:
    """For each tag of a directory the type and the place of its value, and the place of the next directory's offset."""
    (count,) = struct.unpack_from(order + "H", exif, directory)
    end = directory + 2 + 12 * count
    values = {}
    for entry in range(directory + 2, end, 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        values[tag] = kind, entry + 8
    return values, end


def _metadata(image: Image.Image) -> dict[str, bytes]:
    """The icc, exif and xmp of an image; for a TIFF, its descriptive tags and directories become the exif."""
    icc, exif, xmp = (_bytes(image.info.get(name)) for name in ("icc_profile", "exif", "xmp"))
    if image.format == "TIFF":
        stored = image.getexif()
        kept = Image.Exif()
        kept.update({tag: stored[tag] for tag in _DESCRIPTIVE_TAGS if tag in stored})
        directories = {tag: directory for tag in _DIRECTORY_TAGS if (directory := stored.get_ifd(tag))}
        for tag, directory in directories.items():
            kept.get_ifd(tag).update(directory)
        exif = kept.tobytes() if len(kept) or directories else b""
    return {"icc": icc, "exif": exif.removeprefix(_EXIF_PREFIX), "xmp": xmp}


def _bytes(block: Any) -> bytes:
    """A block of metadata, which Pillow takes for text or numbers where a TIFF's tag has a type that it should not."""
    if isinstance(block, str):
        return block.encode("latin-1", "ignore")
    return block if isinstance(block, bytes) else b""


def _pillow_metadata(picture: Picture) -> dict[str, Any]:
    exif = picture.exif and _EXIF_PREFIX + picture.exif
    blocks = {"icc_profile": picture.icc, "exif": exif, "xmp": picture.xmp}
    return {name: block for name, block in blocks.items() if block}


def _to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """A CMYK or Lab image as RGB; by Pillow's plain formula where a CMYK image has no usable profile."""
    source = ImageCms.createProfile("LAB") if image.mode == "LAB" else BytesIO(icc)
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(source),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError):
        return image.convert("RGB")
    assert converted is not None  # None only for inPlace=True
    return converted


def _pillow_samples(image: Image.Image) -> np.ndarray:
    """[H, W, 1..4] uint8 or uint16 of an image in any mode but CMYK and LAB."""
    if image.mode.startswith(("I", "F")):
        return _wide_grey(image)
    base = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    samples: np.ndarray = np.asarray(image.convert(base + "A" * image.has_transparency_data))
    return samples.reshape(image.height, image.width, -1)


def _wide_grey(image: Image.Image) -> np.ndarray:
    """[H, W, 1 or 2] uint16 of an image in a mode of more than 8 bits, all of which are grey."""
    grey = np.asarray(image)
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise BadInput("its samples are floating-point, negative or exceed 16 bits: convert it to 8 or 16 bits first")
    grey = grey.astype(np.uint16)
    if _tiff_tags(image).get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        grey = grey << 4 | grey >> 8
    if _tiff_tags(image).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 and image.mode.startswith("I;16"):
        grey = 65535 - grey  # white is zero, which Pillow heeds in 8 bits only
    if (transparent := image.info.get("transparency")) is None:
        return grey[..., None]
    return np.stack([grey, np.where(grey == transparent, 0, 65535).astype(np.uint16)], axis=2)


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF file that Pillow has opened; none of any other image."""
    return getattr(image, "tag_v2", {})


def _check_tiff(image: Image.Image) -> None:
    """Raises BadInput for the layouts of 16-bit colour that Pillow or ffmpeg would read wrong without a word."""
    tags = _tiff_tags(image)
    if tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) == 1 or max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) < 16:
        return
    layouts = {
        "tiles": TiffImagePlugin.TILEWIDTH in tags,
        "separate planes": tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2,
        "premultiplied alpha": 1 in tags.get(TiffImagePlugin.EXTRASAMPLES, ()),
    }
    if found := [layout for layout, there in layouts.items() if there]:
        raise BadInput(f"16-bit colour in a TIFF file with {' and '.join(found)}: convert it to a 16-bit PNG first")


def _is_deep_colour(image: ImageFile.ImageFile) -> bool:
    """Whether the open file holds 16-bit colour, or grey with alpha, that Pillow would cut to 8 bits."""
    if image.format not in ("PNG", "PPM", "TIFF") or image.mode not in ("RGB", "RGBA"):
        return False
    raw_mode = image.tile[0].args  # "RGB;16B", ("RGB;16L", 0, 1), or in a PPM ("RGB", largest sample)
    if image.format == "PPM":
        return isinstance(raw_mode, tuple) and raw_mode[1] > 255
    return ";16" in str(raw_mode)


def _read_deep(file: BinaryIO, format: str) -> np.ndarray:
    """[H, W, 2..4] uint16 of a 16-bit file, decoded by ffmpeg. Raises BadInput for a layout that it does not know."""
    file.seek(0)
    with av.open(file, "r", format) as container:
        frame = next(container.decode(video=0))
    name, order = frame.format.name[:-2], frame.format.name[-2:]
    channels = next((count for count, layout in _DEEP_FORMATS.items() if layout == name), None)
    if channels is None:
        raise BadInput(f"its 16-bit layout ({frame.format.name}) is unknown to nic: convert it to a 16-bit PNG first")
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), "<u2" if order == "le" else ">u2").reshape(-1, plane.line_size // 2)
    return rows[: frame.height, : frame.width * channels].reshape(frame.height, -1, channels).astype(np.uint16)


def _interleaved(picture: Picture) -> np.ndarray:
    """[H, W, 1..4]: the pixels, then alpha if there is any."""
    return picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])


def _to_8_bits(samples: np.ndarray) -> np.ndarray:
    """uint8 samples as they are, uint16 rounded: 65535 / 255 = 257."""
    if samples.dtype == np.uint8:
        return samples
    table: np.ndarray = ((np.arange(65536) + 128) // 257).astype(np.uint8)
    rounded: np.ndarray = table[samples]
    return rounded


def _png(picture: Picture) -> bytes:
    """A PNG file with its metadata behind the IHDR chunk, which ends at byte 33."""
    if picture.pixels.dtype == np.uint16:
        plain = _png16(_interleaved(picture))
    else:
        buffer = BytesIO()
        to_pil(replace(picture, icc=b"", exif=b"", xmp=b"")).save(buffer, "PNG", **WRITABLE["PNG"])
        plain = buffer.getvalue()
    blocks = [
        (picture.icc, b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)),
        (picture.exif, b"eXIf", picture.exif),
        (picture.xmp, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + picture.xmp),
    ]
    metadata = b"".join(_png_chunk(tag, payload) for block, tag, payload in blocks if block)
    return plain[:33] + metadata + plain[33:]


def _png_chunk(tag: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + tag + payload + struct.pack(">I", zlib.crc32(tag + payload))


def _png16(samples: np.ndarray) -> bytes:
    """A PNG file of [H, W, 1..4] uint16 samples, encoded by ffmpeg."""
    height, width, channels = samples.shape
    frame = av.VideoFrame(width, height, _DEEP_FORMATS[channels] + "be")
    plane = frame.planes[0]
    rows = np.zeros((height, plane.line_size // 2), ">u2")
    rows[:, : width * channels] = samples.reshape(height, -1)
    plane.update(rows.tobytes())
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, frame.format.name
    encoder.time_base = encoder.sample_aspect_ratio = Fraction(1)
    encoder.options = {"pred": "mixed"}
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _tiff(picture: Picture) -> bytes:
    """A little-endian TIFF file: one deflated strip with the horizontal predictor (TIFF 6.0 §14).

    Written here because Pillow has no 16-bit colour; its ImageFileDirectory_v2 lays out the tags.
    """
    samples = _interleaved(picture)
    height, width, channels = samples.shape
    differences = samples.copy()
    differences[:, 1:] -= samples[:, :-1]
    strip = zlib.compress(differences.astype(differences.dtype.newbyteorder("<")).tobytes())
    tags = {
        TiffImagePlugin.IMAGEWIDTH: width,
        TiffImagePlugin.IMAGELENGTH: height,
        TiffImagePlugin.BITSPERSAMPLE: (8 * samples.itemsize,) * channels,
        TiffImagePlugin.COMPRESSION: 8,  # deflate
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 1 if channels < 3 else 2,  # black is zero, RGB
        TiffImagePlugin.SAMPLESPERPIXEL: channels,
        TiffImagePlugin.ROWSPERSTRIP: height,
        TiffImagePlugin.STRIPOFFSETS: 0,  # counted from the end of the directory, where the strip follows
        TiffImagePlugin.STRIPBYTECOUNTS: len(strip),
        TiffImagePlugin.PREDICTOR: 2,  # horizontal
    }
    if picture.alpha is not None:
        tags[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha, not premultiplied
    directory = _tiff_metadata(picture)
    for tag, value in tags.items():
        directory[tag] = value
    directory.tagtype[TiffImagePlugin.STRIPOFFSETS] = TiffTags.LONG
    buffer = BytesIO()
    directory.save(buffer)
    return buffer.getvalue() + strip


def _tiff_metadata(picture: Picture) -> TiffImagePlugin.ImageFileDirectory_v2:
    """A TIFF directory that holds the picture's metadata and nothing else yet."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    exif = Image.Exif()
    exif.load(picture.exif)
    for tag in exif:
        if tag in _DESCRIPTIVE_TAGS:
            directory[tag] = exif[tag]
        elif tag in _DIRECTORY_TAGS:
            directory[tag] = exif.get_ifd(tag)
    for tag, block in ((TiffImagePlugin.XMP, picture.xmp), (TiffImagePlugin.ICCPROFILE, picture.icc)):
        if block:
            directory[tag] = block
    return directory
