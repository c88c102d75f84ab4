"""nic.pixels: every kind of picture in, every format out, metadata kept, bad input refused in one line."""

import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from nic.bitstream.limits import MAX_SIDE
from nic.errors import BadInput, NicError, UsageError
from nic.pixels import WRITABLE, Picture, load, output_format, readable_suffixes, save, to_pil

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
ORIENTATION, DESCRIPTION, EXIF_IFD, EXPOSURE, GPS_IFD = 0x0112, 0x010E, 0x8769, 0x829A, 0x8825


def exif(orientation: int) -> bytes:
    """A block with a tag in each of the main, the Exif and the GPS directory, from its TIFF header on."""
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    tags[DESCRIPTION] = "a face"
    tags.get_ifd(EXIF_IFD)[EXPOSURE] = 0.25
    tags.get_ifd(GPS_IFD)[1] = "N"
    return tags.tobytes().removeprefix(b"Exif\0\0")


def file_of(image: Image.Image, format: str, **options: object) -> bytes:
    target = BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


def saved(picture: Picture, format: str) -> bytes:
    target = BytesIO()
    save(picture, target, format)
    return target.getvalue()


def assert_equal(picture: Picture, pixels: np.ndarray, alpha: np.ndarray | None = None) -> None:
    expected = pixels[..., None] if pixels.ndim == 2 else pixels
    assert picture.pixels.dtype == expected.dtype
    np.testing.assert_array_equal(picture.pixels, expected)
    if alpha is None:
        assert picture.alpha is None
    else:
        np.testing.assert_array_equal(picture.alpha, alpha)


def tagged(xmp: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + xmp + payload + struct.pack(">I", zlib.crc32(xmp + payload))


# Reading


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "JPEG2000", "QOI", "TGA"])
def test_lossless_formats_are_read_exactly(photo: np.ndarray, format: str) -> None:
    assert_equal(load(file_of(Image.fromarray(photo), format)), photo)


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "camera.png"])
def test_photographs_are_read_like_pillow_reads_them(name: str) -> None:
    path = Path(skimage.data.__file__).with_name(name)
    with Image.open(path) as image:
        assert_equal(load(path), np.asarray(image))


def test_path_stream_bytes_image_and_array_give_the_same_picture(photo: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(photo)
    path = tmp_path / "photo.png"
    image.save(path)
    with open(path, "rb") as stream:
        data = path.read_bytes()
        for source in (
            path,
            str(path),
            stream,
            data,
            bytearray(data),
            memoryview(data),
            image,
            photo,
            photo[::-1][::-1],
        ):
            assert_equal(load(source), photo)


def test_grey(photo: np.ndarray) -> None:
    grey = photo[..., 0]
    assert_equal(load(file_of(Image.fromarray(grey), "PNG")), grey)
    assert_equal(load(grey), grey)
    assert_equal(load(grey[..., None]), grey)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_alpha(photo: np.ndarray, ramp: np.ndarray, format: str) -> None:
    assert_equal(load(file_of(Image.fromarray(np.dstack([photo, ramp])), format)), photo, ramp)
    grey = photo[..., 1]
    grey_alpha = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(ramp)])
    assert_equal(load(file_of(grey_alpha, format)), grey, ramp)


@pytest.mark.parametrize("order", "<>")
def test_arrays_of_either_byte_order(photo16: np.ndarray, order: str) -> None:
    assert_equal(load(photo16.astype(f"{order}u2")), photo16)


def test_opaque_alpha_is_dropped(photo: np.ndarray) -> None:
    assert_equal(load(np.dstack([photo, np.full_like(photo[..., 0], 255)])), photo)


def test_palette(photo: np.ndarray) -> None:
    paletted = Image.fromarray(photo).quantize(64)
    rgb = np.asarray(paletted.convert("RGB"))
    assert_equal(load(file_of(paletted, "PNG")), rgb)
    assert_equal(load(file_of(paletted, "GIF")), rgb)
    indices = np.asarray(paletted)
    transparent = load(file_of(paletted, "PNG", transparency=5))
    assert_equal(transparent, rgb, np.where(indices == 5, 0, 255))
    graded = load(file_of(paletted, "PNG", transparency=bytes(range(64))))
    assert_equal(graded, rgb, indices)


def test_one_bit_becomes_grey() -> None:
    bits = np.eye(9, 13, dtype=bool)
    assert_equal(load(file_of(Image.fromarray(bits), "PNG")), bits.astype(np.uint8) * 255)


def test_transparent_colour_of_a_png(photo: np.ndarray) -> None:
    key = tuple(int(sample) for sample in photo[10, 10])
    alpha = np.where((photo == key).all(axis=2), 0, 255)
    assert_equal(load(file_of(Image.fromarray(photo), "PNG", transparency=key)), photo, alpha)
    grey = photo[..., 0]
    alpha = np.where(grey == 100, 0, 255)
    assert_equal(load(file_of(Image.fromarray(grey), "PNG", transparency=100)), grey, alpha)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff(photo16: np.ndarray, channels: int, compression: str | None) -> None:
    samples = np.dstack([photo16, photo16[::-1, :, 0]])[..., :channels]
    target = BytesIO()
    tifffile.imwrite(
        target,
        samples if channels > 1 else samples[..., 0],
        photometric="minisblack" if channels < 3 else "rgb",
        extrasamples=["unassalpha"] if channels % 2 == 0 else None,
        compression=compression,
    )
    if channels == 2:  # Pillow opens no 16-bit grey with alpha
        with pytest.raises(BadInput):
            load(target.getvalue())
    elif channels == 4:
        assert_equal(load(target.getvalue()), samples[..., :-1], samples[..., -1])
    else:
        assert_equal(load(target.getvalue()), samples)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("tiles", {"tile": (32, 32)}),
        ("tiles", {"tile": (32, 32), "compression": "zlib"}),
        ("planes", {"planarconfig": "separate"}),
        ("planes", {"planarconfig": "separate", "compression": "zlib"}),
        ("premultiplied", {"extrasamples": ["assocalpha"]}),
    ],
)
def test_16_bit_tiff_that_would_be_read_wrong_is_refused(
    photo16: np.ndarray, layout: str, options: dict[str, object]
) -> None:
    samples = np.dstack([photo16, photo16[..., 0]]) if layout == "premultiplied" else photo16
    target = BytesIO()
    tifffile.imwrite(
        target, samples.transpose(2, 0, 1) if layout == "planes" else samples, photometric="rgb", **options
    )
    with pytest.raises(BadInput, match=layout):
        load(target.getvalue())


def test_a_fourth_sample_of_a_tiff_is_alpha_only_if_the_file_says_so(photo: np.ndarray, photo16: np.ndarray) -> None:
    for pixels in (photo, photo16):
        target = BytesIO()
        samples = np.dstack([pixels, pixels[..., 0]])
        tifffile.imwrite(target, samples, photometric="rgb", extrasamples=["unspecified"])
        assert_equal(load(target.getvalue()), pixels)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_is_zero(photo: np.ndarray, photo16: np.ndarray, compression: str | None) -> None:
    for grey in (photo[..., 0], photo16[..., 0]):
        target = BytesIO()
        tifffile.imwrite(target, np.iinfo(grey.dtype).max - grey, photometric="miniswhite", compression=compression)
        assert_equal(load(target.getvalue()), grey)


def test_12_bit_grey_tiff_is_as_bright_as_it_was(photo16: np.ndarray) -> None:
    grey = (photo16[..., 0] >> 4)[:, : photo16.shape[1] // 2 * 2].astype(np.uint32)
    pairs = grey[:, ::2] << 12 | grey[:, 1::2]
    packed = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], axis=2).astype(np.uint8).tobytes()
    height, width = grey.shape
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, height)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(packed))]]
    data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    assert len(data) == 122
    loaded = load(data + packed).pixels[..., 0]
    assert np.abs(loaded.astype(int) - (grey * (65535 / 4095)).round()).max() <= 8


def test_16_bit_grey_png_of_pillow(photo16: np.ndarray) -> None:
    grey = photo16[..., 0]
    assert_equal(load(file_of(Image.fromarray(grey), "PNG")), grey)
    assert_equal(load(Image.fromarray(grey)), grey)
    assert_equal(load(Image.fromarray(grey.astype(np.int32))), grey)


@pytest.mark.parametrize("largest", [1023, 65535])
def test_16_bit_ppm(photo16: np.ndarray, largest: int) -> None:
    samples = (photo16 & largest).astype(">u2")
    picture = load(f"P6\n80 96\n{largest}\n".encode() + samples.tobytes())
    assert picture.pixels.dtype == np.uint16
    np.testing.assert_allclose(picture.pixels, samples * (65535 / largest), atol=1)


def test_16_bit_png_with_transparent_colour(photo16: np.ndarray) -> None:
    plain = saved(Picture(photo16), "PNG")
    key = tagged(b"tRNS", photo16[3, 4].astype(">u2").tobytes())
    alpha = np.where((photo16 == photo16[3, 4]).all(axis=2), 0, 65535)
    assert_equal(load(plain[:33] + key + plain[33:]), photo16, alpha)


def test_cmyk_without_a_profile(photo: np.ndarray) -> None:
    cmyk = Image.fromarray(photo).convert("CMYK")
    assert_equal(load(file_of(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))


def test_lab_becomes_srgb(photo: np.ndarray) -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.fromarray(photo), *profiles, outputMode="LAB")
    picture = load(file_of(lab, "TIFF"))
    assert picture.icc == b""
    assert np.abs(picture.pixels.astype(int) - photo).mean() < 2


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "CMYK"])
def test_other_opaque_modes_of_pillow(photo: np.ndarray, mode: str) -> None:
    image = Image.fromarray(photo).convert(mode)
    assert_equal(load(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("steps", [["RGBA", "RGBa"], ["LA", "La"]])
def test_premultiplied_modes_of_pillow(photo: np.ndarray, ramp: np.ndarray, steps: list[str]) -> None:
    image = Image.fromarray(np.dstack([photo, ramp])).convert(steps[0]).convert(steps[1])
    samples = np.asarray(image.convert(steps[0]))
    assert_equal(load(image), samples[..., :-1], samples[..., -1])


# Metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_is_applied_and_reset(orientation: int, format: str) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16, 0] = stored[:8, 16:, 1] = stored[8:, :16, 2] = 255  # one corner of each colour
    data = file_of(Image.fromarray(stored), format, exif=b"Exif\0\0" + exif(orientation), quality=95)
    with Image.open(BytesIO(data)) as image:
        image.load()
        tags = Image.Exif()
        tags[ORIENTATION] = 1 if format == "TIFF" else orientation  # Pillow turns TIFF files itself
        image.info["exif"] = tags.tobytes()
        upright = np.asarray(ImageOps.exif_transpose(image))
    picture = load(data)
    assert_equal(picture, upright)
    tags = Image.Exif()
    tags.load(picture.exif)
    assert tags.get(ORIENTATION, 1) == 1
    assert tags[DESCRIPTION] == "a face"
    assert tags.get_ifd(EXIF_IFD)[EXPOSURE] == 0.25


def test_16_bit_files_are_turned_upright(photo16: np.ndarray) -> None:
    for format in ("PNG", "TIFF"):
        picture = load(saved(Picture(photo16, exif=exif(6), xmp=XMP), format))
        assert_equal(picture, np.rot90(photo16, -1))
        assert picture.xmp == XMP.replace(b'"6"', b'"1"')
        assert load(saved(picture, format)).pixels.shape == picture.pixels.shape


def test_only_the_orientation_bytes_of_exif_change(photo: np.ndarray) -> None:
    block = exif(8)
    picture = load(file_of(Image.fromarray(photo), "JPEG", exif=b"Exif\0\0" + block))
    changed = [index for index, (a, b) in enumerate(zip(block, picture.exif, strict=True)) if a != b]
    assert len(changed) == 1
    assert picture.exif[changed[0]] == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("behind", [b"", b"something else"])
def test_the_thumbnail_in_exif_is_left_out(photo: np.ndarray, order: str, behind: bytes) -> None:
    thumbnail = bytes(range(1, 200))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    first = struct.pack(order + "HHHIHxx", 1, ORIENTATION, 3, 1, 6)
    second = struct.pack(order + "H" + 2 * "HHII" + "I", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0)
    block = head + first + struct.pack(order + "I", 26) + second + thumbnail + behind
    assert block.index(thumbnail) == 56
    picture = load(file_of(Image.fromarray(photo), "PNG", exif=block))
    assert np.array_equal(picture.pixels, np.rot90(photo, -1))
    upright = struct.pack(order + "HHHIHxx", 1, ORIENTATION, 3, 1, 1)
    assert picture.exif == head + upright + bytes(4) + second + (bytes(len(thumbnail)) if behind else b"") + behind


def test_tiff_pages_at_lower_resolution_are_no_pages(photo: np.ndarray) -> None:
    """As scanners and map makers store previews and pyramids."""
    small = Image.fromarray(photo[::2, ::2])
    for kind, pages in ((1, 1), (0, 2)):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[254] = kind
        small.encoderinfo = {"tiffinfo": tags}
        data = file_of(Image.fromarray(photo), "TIFF", save_all=True, append_images=[small])
        if pages == 1:
            assert_equal(load(data), photo)
        else:
            with pytest.raises(BadInput, match="2 frames or pages"):
                load(data)


def test_orientation_may_be_a_long_number(photo: np.ndarray) -> None:
    """As some writers have it, in big-endian files, too."""
    block = b"MM\0*" + struct.pack(">IHHHII", 8, 1, ORIENTATION, 4, 1, 6) + bytes(4)
    turned = load(file_of(Image.fromarray(photo), "PNG", exif=block))
    assert np.array_equal(turned.pixels, np.rot90(photo, -1))
    assert turned.exif == block[:18] + struct.pack(">I", 1) + bytes(4)


def test_metadata_of_a_tiff_that_has_odd_types_or_only_a_directory(photo: np.ndarray) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.ICCPROFILE], tags.tagtype[TiffImagePlugin.ICCPROFILE] = profile.decode("latin-1"), 2
    picture = load(file_of(Image.fromarray(photo), "TIFF", tiffinfo=tags))
    assert len(picture.icc) == len(profile) and isinstance(picture.xmp, bytes)
    times = TiffImagePlugin.ImageFileDirectory_v2()
    times[0x8769] = {0x9003: "2001:02:03 04:05:06"}
    kept = Image.Exif()
    kept.load(load(file_of(Image.fromarray(photo), "TIFF", tiffinfo=times)).exif)
    assert kept.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"


@pytest.mark.parametrize("damage", [b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"garbage!", b"II*\0\xff\xff\xff\xff"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # by which Pillow tells of the damage
def test_damaged_exif_does_no_harm(photo: np.ndarray, damage: bytes) -> None:
    image = Image.fromarray(photo)
    image.info["exif"] = damage
    picture = load(image)
    assert_equal(picture, photo)
    assert picture.exif in (damage, b"")
    for format in ("PNG", "TIFF", "AVIF"):
        saved(picture, format)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_metadata_survives(photo: np.ndarray, photo16: np.ndarray, format: str, bits: int) -> None:
    pixels = photo if bits == 8 else photo16
    again = load(saved(Picture(pixels, None, ICC, exif(1), XMP), format))
    assert again.icc == ICC
    assert again.xmp == XMP
    tags = Image.Exif()
    tags.load(again.exif)
    assert tags[DESCRIPTION] == "a face"
    assert tags.get_ifd(EXIF_IFD)[EXPOSURE] == 0.25
    assert tags.get_ifd(GPS_IFD)[1] == "N"


def test_exif_does_not_say_how_a_tiff_is_stored(photo: np.ndarray) -> None:
    """That of a picture which was a TIFF file itself may: here, planes apart and samples of floats."""
    block = Image.Exif()
    block[270], block[284], block[339] = "a description", 2, 3
    data = saved(Picture(photo, exif=block.tobytes()[6:]), "TIFF")
    with Image.open(BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), photo)
        assert image.getexif()[270] == "a description"


@pytest.mark.parametrize("format", ["TIFF", "AVIF", "JPEG", "WEBP", "PNG"])
def test_exif_of_odd_types_is_no_traceback(photo: np.ndarray, format: str) -> None:
    entry = struct.pack("<HHII", 282, 2, 4, int.from_bytes(b"abc\0", "little"))  # a resolution that is a text
    block = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    with suppress(UsageError):
        saved(Picture(photo, exif=block), format)


def test_large_profiles_move_the_strip_of_a_tiff(photo: np.ndarray) -> None:
    profile = ICC + bytes(200_000)
    assert_equal(load(saved(Picture(photo, icc=profile), "TIFF")), photo)


# Writing


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_png_and_tiff_are_lossless(
    photo: np.ndarray, photo16: np.ndarray, bits: int, channels: int, with_alpha: bool, format: str
) -> None:
    pixels = (photo if bits == 8 else photo16)[..., :channels]
    alpha = pixels[::-1, :, 0].copy() if with_alpha else None
    data = saved(Picture(pixels, alpha), format)
    if format == "TIFF":
        samples = pixels if alpha is None else np.dstack([pixels, alpha])
        np.testing.assert_array_equal(tifffile.imread(BytesIO(data)), samples.squeeze())
    if (format, channels, bits, with_alpha) != ("TIFF", 1, 16, True):  # which Pillow cannot open
        assert_equal(load(data), pixels, alpha)


def test_one_pixel_and_odd_sizes() -> None:
    for height, width in [(1, 1), (1, 33), (31, 1), (7, 5)]:
        pixels = np.random.default_rng(height).integers(0, 65536, (height, width, 3), dtype=np.uint16)
        for format in ("PNG", "TIFF"):
            assert_equal(load(saved(Picture(pixels), format)), pixels)


def test_webp_is_lossless_under_transparency(photo: np.ndarray, ramp: np.ndarray) -> None:
    assert_equal(load(saved(Picture(photo, ramp), "WEBP")), photo, ramp)
    wide = Picture(photo.astype(np.uint16) * 257, ramp.astype(np.uint16) * 257)
    assert_equal(load(saved(wide, "WEBP")), photo, ramp)


@pytest.mark.parametrize("format", sorted(WRITABLE))
def test_every_format_holds_grey_and_colour_of_8_and_16_bits(
    photo: np.ndarray, photo16: np.ndarray, format: str
) -> None:
    for pixels in (photo, photo16, photo[..., :1], photo16[..., :1]):
        again = load(saved(Picture(pixels), format))
        assert again.pixels.shape[:2] == pixels.shape[:2]
        unit = 257 if pixels.dtype == np.uint16 else 1
        again_unit = 257 if again.pixels.dtype == np.uint16 else 1
        assert np.abs(again.pixels / again_unit - pixels / unit).mean() < 3


def test_16_bits_are_rounded_not_cut() -> None:
    pixels = np.array([[[0], [128], [129], [65406], [65407], [65535]]], np.uint16)
    assert load(saved(Picture(pixels), "PPM")).pixels.ravel().tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("format", ["BMP", "JPEG", "PPM"])
def test_alpha_is_never_lost_silently(photo: np.ndarray, ramp: np.ndarray, format: str) -> None:
    with pytest.raises(UsageError, match="alpha"):
        saved(Picture(photo, ramp), format)


def test_what_a_format_cannot_hold_is_an_error() -> None:
    with pytest.raises(UsageError, match="WEBP"):
        saved(Picture(np.zeros((1, 20_000, 3), np.uint8)), "WEBP")


def test_pillow_images_have_mode_and_info(photo: np.ndarray, photo16: np.ndarray, ramp: np.ndarray) -> None:
    cases = [(photo, None, "RGB"), (photo, ramp, "RGBA"), (photo[..., :1], None, "L"), (photo[..., :1], ramp, "LA")]
    cases += [(photo16[..., :1], None, "I;16"), (photo16, None, "RGB"), (photo16, photo16[..., 0], "RGBA")]
    for pixels, alpha, mode in cases:
        image = to_pil(Picture(pixels, alpha, ICC, exif(1), XMP))
        assert image.mode == mode
        assert (image.info["icc_profile"], image.info["xmp"]) == (ICC, XMP)
        assert image.getexif()[DESCRIPTION] == "a face"


def test_suffixes() -> None:
    assert output_format(".JPG") == "JPEG"
    assert output_format(".tif") == "TIFF"
    assert {".png", ".jpg", ".webp", ".avif", ".tiff"} <= readable_suffixes()
    for suffix in ("", ".gif", ".nic", ".exe"):
        with pytest.raises(UsageError):
            output_format(suffix)


# Refusing


def test_missing_file_folder_and_nonsense(tmp_path: Path) -> None:
    for source in (tmp_path / "none.png", tmp_path, b"", b"no picture", BytesIO(b"\x89PNG\r\n\x1a\n")):
        with pytest.raises(BadInput) as caught:
            load(source)
        assert "\n" not in str(caught.value)


def test_postscript_is_never_run() -> None:
    with pytest.raises(BadInput, match="not a picture"):
        load(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "AVIF"])
def test_damage_is_bad_input_or_harmless(photo: np.ndarray, format: str) -> None:
    data = file_of(Image.fromarray(photo), format)
    random = np.random.default_rng(7)
    for _ in range(30):
        damaged = bytearray(data[: random.integers(1, len(data) + 1)])
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        try:
            load(bytes(damaged))
        except NicError as error:
            assert "\n" not in str(error)


def test_huge_dimensions_are_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", MAX_SIDE + 1, 1, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + tagged(b"IHDR", header) + tagged(b"IDAT", b"") + tagged(b"IEND", b"")
    with pytest.raises(BadInput, match="65535"):
        load(png)
    bomb = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    with pytest.raises(BadInput):
        load(b"\x89PNG\r\n\x1a\n" + tagged(b"IHDR", bomb) + tagged(b"IDAT", b"") + tagged(b"IEND", b""))


def test_several_frames_are_refused(photo: np.ndarray) -> None:
    frames = [Image.fromarray(photo), Image.fromarray(photo[::-1])]
    for format in ("GIF", "WEBP", "TIFF", "PNG"):
        with pytest.raises(BadInput, match="2 frames"):
            load(file_of(frames[0], format, save_all=True, append_images=frames[1:]))


def test_a_cameras_second_view_is_ignored(photo: np.ndarray) -> None:
    frames = [Image.fromarray(photo), Image.fromarray(photo[::-1])]
    picture = load(file_of(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert np.abs(picture.pixels.astype(int) - photo).mean() < 5


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    with pytest.raises(BadInput):
        load(array)


def test_samples_beyond_16_bits_are_refused() -> None:
    for samples in (np.full((2, 2), 0.5, np.float32), np.full((2, 2), 65536, np.int32), np.full((2, 2), -1, np.int32)):
        with pytest.raises(BadInput, match="16 bits"):
            load(Image.fromarray(samples))
