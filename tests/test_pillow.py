"""The Pillow plugin and the functions of `import nic`."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import nic
from nic.errors import BadFile, BadInput, UsageError

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB, for samples in 0..255."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.fixture(scope="module")
def compressed(photo: np.ndarray) -> bytes:
    return nic.encode(photo, quality=60, effort=1)


def test_encode_and_decode(photo: np.ndarray, compressed: bytes) -> None:
    image = nic.decode(compressed)
    assert (image.mode, image.size) == ("RGB", (80, 96))
    assert psnr(np.asarray(image), photo) > 20


def test_info(compressed: bytes) -> None:
    description = nic.info(compressed)
    assert (description["width"], description["height"], description["bytes"]) == (80, 96, len(compressed))


def test_info_has_the_version_that_the_file_is_written_in(photo: np.ndarray, compressed: bytes) -> None:
    """Not that of this nic: a file without optional chunks is of 1.0, and older readers take it."""
    assert nic.info(compressed)["format"] == "1.0"
    image = Image.fromarray(photo)
    image.info["xmp"] = b"<x/>"
    assert nic.info(nic.encode(image, effort=1))["format"] == "1.1"


def test_files_come_as_bytes_path_or_stream(compressed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.nic"
    path.write_bytes(compressed)
    expected = np.asarray(nic.decode(compressed))
    for source in (bytearray(compressed), memoryview(compressed), path, str(path)):
        assert np.array_equal(np.asarray(nic.decode(source)), expected)
        assert nic.info(source) == nic.info(compressed)
    with open(path, "rb") as stream:
        assert nic.recover(stream)[1] == ()
    with pytest.raises(BadInput, match="none.nic cannot be read: No such file"):
        nic.decode(tmp_path / "none.nic")


def test_functions_are_listed_before_their_first_use() -> None:
    code = "import nic; print({'encode', 'decode', 'recover', 'info'} <= set(dir(nic)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"


def test_errors_of_the_functions(photo: np.ndarray) -> None:
    with pytest.raises(BadInput):
        nic.encode(b"no picture")
    with pytest.raises(UsageError):
        nic.encode(photo, bpp=1, size=1000)
    with pytest.raises(UsageError, match="auto, cpu, cuda"):
        nic.encode(photo, device="gpu")
    with pytest.raises(BadFile):
        nic.decode(b"no .nic file")


def test_image_open_and_save(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "photo.nic"
    Image.fromarray(photo).save(path, quality=60, effort=1)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("NIC", "RGB", (80, 96))
        assert image.get_format_mimetype() == "image/x-nic"
        assert psnr(np.asarray(image), photo) > 20
        assert image.resize((8, 8)).size == (8, 8)


def test_options_reach_the_encoder(photo: np.ndarray, tmp_path: Path) -> None:
    sizes = []
    for options in ({"quality": 10}, {"quality": 90, "mask_rate": 0.9}, {"quality": 90}):
        Image.fromarray(photo).save(tmp_path / "out.nic", effort=1, **options)
        sizes.append((tmp_path / "out.nic").stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_modes_are_known_before_decoding(photo: np.ndarray, ramp: np.ndarray, mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        original = Image.fromarray(photo[..., 0].astype(np.uint16) * 257)
    else:
        original = Image.fromarray(np.dstack([photo, ramp])).convert(mode)
    path = tmp_path / "picture.nic"
    original.save(path, effort=1)
    with Image.open(path) as image:
        assert image.mode == mode
        image.load()
        assert image.mode == mode
        assert np.asarray(image).shape == np.asarray(original).shape


def test_16_bit_colour_opens_as_8_bits(photo16: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "deep.nic"
    path.write_bytes(nic.encode(photo16, effort=1))
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert psnr(np.asarray(image), photo16 / 257) > 20


def test_metadata_is_kept_or_overridden(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "photo.nic"
    exif = Image.Exif()
    exif[0x010E] = "a face"
    original = Image.fromarray(photo)
    original.info |= {"icc_profile": ICC, "xmp": b"<x/>"}
    original.save(path, effort=1, exif=exif, xmp=b"<y/>")
    with Image.open(path) as image:
        assert image.info["icc_profile"] == ICC
        assert image.info["xmp"] == b"<y/>"
        assert image.getexif()[0x010E] == "a face"
    assert original.info["xmp"] == b"<x/>"
    original.save(path, effort=1, exif=None, icc_profile=None)  # as for Pillow's own formats, nothing is kept
    assert nic.decode(path).info == {"xmp": b"<x/>"}


def test_damage_is_an_oserror_as_pillow_users_expect(compressed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.nic"
    path.write_bytes(compressed[:-20])
    with pytest.raises(OSError, match="cannot open"):
        Image.open(path)
    with pytest.raises(OSError, match="cannot write"):
        Image.new("F", (4, 4)).save(tmp_path / "float.nic")
    assert not (tmp_path / "float.nic").exists()


def test_opening_loads_no_torch(compressed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.nic"
    path.write_bytes(compressed)
    code = f"import sys, nic; from PIL import Image; print(Image.open({str(path)!r}).size, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "(80, 96) False\n"


def test_what_cannot_be_read_or_cut_out_is_one_error(photo: np.ndarray, tmp_path: Path) -> None:
    data = nic.encode(photo, effort=1)
    (tmp_path / "a.nic").write_bytes(data)
    with (tmp_path / "a.nic").open("rb") as closed:
        pass
    for source in (closed, io.StringIO("text"), "a\0b"):
        with pytest.raises(BadInput):
            nic.info(source)  # type: ignore[arg-type]
    for crop in ((), (0, 0, 8), (0, 0, 8.5, 8), (0, 0, 8, 800)):
        with pytest.raises(UsageError, match="four whole numbers|not within"):
            nic.decode(data, crop=crop)  # type: ignore[arg-type]
    assert nic.decode(data, crop=np.array([8, 8, 16, 24])).size == (16, 24)  # type: ignore[arg-type]
