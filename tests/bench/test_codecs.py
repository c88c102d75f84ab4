"""The codecs that `nic bench` compares: real encoders on a photograph, and the search of a rate. Absent ones skip."""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from nic.bench import codecs
from nic.bench.codecs import NAMES, Codec, Missing, at_rate, load
from nic.errors import BadInput, UsageError

VIDEO = ("x265", "svt-av1", "aom", "vvc")
ZOO = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-anchor")
SLOW = ("nic", "avif-420", "avif", "avif-psnr", "aom", "vvc")
# dB at the last setting; the others 34
TOP = {"nic": 30, "nic-refined": 27, "nic-extreme": 19, "svt-av1": 37, "vvc": 37, "x265": 39, "aom": 39}


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """A face and an orange suit; its odd size is no multiple of any codec's block."""
    return Image.fromarray(skimage.data.astronaut()[100:197, 150:281])


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing loaded before, nor left behind."""
    load.cache_clear()
    yield
    load.cache_clear()


def load_or_skip(name: str) -> Codec:
    try:
        return load(name)
    except Missing as error:
        pytest.skip(f"{name}: {error}")


def psnr(a: Image.Image, b: Image.Image) -> float:
    return 10 * float(np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def counting(codec: Codec) -> tuple[Codec, list[float]]:
    """The codec, and a list that grows by the setting of each encode."""
    calls: list[float] = []

    def encode(image: Image.Image, setting: float) -> bytes:
        calls.append(setting)
        return codec.encode(image, setting)

    return dataclasses.replace(codec, encode=encode), calls


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ZOO])
def test_real_encoders_trade_bytes_for_psnr(name: str, image: Image.Image) -> None:
    codec = load_or_skip(name)
    assert set(codec.settings) <= set(codec.grid) and len(codec.settings) >= 6
    assert [codec.grid.index(setting) for setting in codec.settings] == sorted(map(codec.grid.index, codec.settings))
    middle = () if name in SLOW else codec.settings[2:5:2]
    files = [codec.encode(image, setting) for setting in (codec.settings[0], *middle, codec.settings[-1])]
    load.cache_clear()
    decoded = [load(name).decode(data, image.size) for data in files]  # a codec that has encoded nothing
    assert all((picture.mode, picture.size) == ("RGB", image.size) for picture in decoded)
    assert (sizes := [len(data) for data in files]) == sorted(set(sizes))
    quality = [psnr(image, picture) for picture in decoded]
    assert quality == sorted(quality)
    assert quality[-1] > TOP.get(name, 34)
    assert "\n" not in codec.version and codec.name == name


@pytest.mark.parametrize("name", VIDEO)
def test_colours_survive_conversion_and_padding(name: str) -> None:
    codec = load_or_skip(name)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 90, 30]], np.uint8)
    bars = Image.fromarray(np.repeat(np.repeat(colours[None], 16, axis=1), 33, axis=0))
    decoded = np.asarray(codec.decode(codec.encode(bars, codec.settings[-1]), bars.size)).astype(int)
    assert np.abs(decoded[:, 8::16] - colours).max() <= 8  # centres of the bars; BT.601 or limited range miss by > 15


@pytest.mark.parametrize("name", ["jpeg", "jpeg2000", "webp", "jxl", "nic"])
def test_no_metadata_is_stored(name: str, image: Image.Image) -> None:
    codec = load_or_skip(name)
    tagged = image.copy()
    tagged.info |= {"icc_profile": bytes(3000), "exif": b"Exif\0\0" + bytes(3000), "comment": bytes(3000)}
    assert codec.encode(tagged, codec.settings[1]) == codec.encode(image, codec.settings[1])


def test_pictures_smaller_than_an_encoder_takes() -> None:
    photo = Image.fromarray(skimage.data.astronaut()[100:105, 150:153])
    codec = load_or_skip("x265")
    assert psnr(photo, codec.decode(codec.encode(photo, codec.settings[-1]), photo.size)) > 38


def test_at_rate_finds_the_nearest_file(image: Image.Image) -> None:
    codec = load("jpeg")
    sizes = {setting: len(codec.encode(image, setting)) for setting in codec.grid}
    for bpp in (0.1, 0.6, 0.83, 1.5, 3.7, 50):  # from below the smallest file to above the largest
        target = bpp * image.width * image.height / 8
        counted, calls = counting(codec)
        setting, data = at_rate(counted, image, bpp, {})
        assert data == codec.encode(image, setting)
        assert abs(len(data) - target) == min(abs(size - target) for size in sizes.values())
        assert len(calls) <= 9


def test_at_rate_uses_what_is_known(image: Image.Image) -> None:
    codec = load("jpeg")
    known = {setting: len(codec.encode(image, setting)) for setting in codec.settings}
    counted, calls = counting(codec)
    setting, data = at_rate(counted, image, 1.2, known)
    assert (setting, data) == at_rate(codec, image, 1.2, {})
    assert len(calls) <= 4 and not set(calls) & set(known)
    every = {setting: len(codec.encode(image, setting)) for setting in codec.grid}
    counted, calls = counting(codec)
    assert at_rate(counted, image, 1.2, every) == (setting, data)
    assert calls == [setting]


def test_at_rate_where_bytes_do_not_rise_everywhere(image: Image.Image) -> None:
    sizes = {0: 100, 1: 300, 2: 280, 3: 310, 4: 305, 5: 500, 6: 490, 7: 900}

    def encode(image: Image.Image, setting: float) -> bytes:
        return bytes(sizes[int(setting)])

    codec = dataclasses.replace(load("jpeg"), grid=tuple(sizes), encode=encode)
    pixels = image.width * image.height
    for size in (100, 290, 400, 495, 900):
        _, data = at_rate(codec, image, size * 8 / pixels, {0: 100, 5: 500})
        assert abs(len(data) - size) <= 100


def test_unknown_codecs() -> None:
    with pytest.raises(UsageError, match="'gif'.*jpeg2000.*vvc"):
        load("gif")


@pytest.mark.usefixtures("fresh")
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("imageio_ffmpeg", "pillow_jxl.JpegXLImagePlugin", "compressai.zoo"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("PATH", "")
    packages = {"vvc": "imageio-ffmpeg.*libvvenc", "jxl": "pillow-jxl-plugin", "mbt2018-mean": "compressai"}
    for name, package in packages.items():
        with pytest.raises(Missing, match=f"pip install {package}"):
            load(name)


@pytest.mark.usefixtures("fresh")
def test_ffmpeg_without_the_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho \"Unknown encoder 'libvvenc'\" >&2\nexit 8\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match=f"{program} cannot encode with libvvenc.*IMAGEIO_FFMPEG_EXE"):
        load("vvc")


def test_no_other_pixel_format_in_place_of_the_wanted() -> None:
    load_or_skip("svt-av1")
    svt = codecs.CODECS["svt-av1"]
    with pytest.raises(Missing, match="yuv444p10le"):
        svt.func("svt-av1", **svt.keywords | {"pixels": "yuv444p10le"})


def test_damaged_streams_are_one_line() -> None:
    with pytest.raises(BadInput, match="^ffmpeg with libx265 fails: .*$"):
        load_or_skip("x265").decode(b"no stream" * 50, (64, 64))


@pytest.mark.skipif(importlib.util.find_spec("compressai") is None, reason="compressai is not installed")
@pytest.mark.filterwarnings("ignore")  # of compressai's and torchvision's own
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str, image: Image.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random weights take the way of the real ones: from the folder of torch.hub to files and back."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(Missing, match=f"1, 2, .*checkpoints.*{name}"):
        load(name)
    from compressai import zoo

    torch.manual_seed(0)
    network = zoo.image_models[name](1, pretrained=False)
    network.update()
    (tmp_path / "checkpoints").mkdir()
    url = zoo.image.model_urls[name]["mse"][1]
    torch.save(network.state_dict(), tmp_path / "checkpoints" / Path(url).name)
    monkeypatch.setitem(zoo.image.model_urls[name], "mse", {1: url})
    codec = load(name)
    data = codec.encode(image, codec.settings[0])
    load.cache_clear()
    decoded = load(name).decode(data, image.size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    padded = torch.nn.functional.pad(pixels, (30, 31, 15, 16))  # to 192x128, as compressai's eval does
    network.eval()
    with torch.inference_mode():
        coded = network.compress(padded)
        expected = network.decompress(**coded)["x_hat"][0, :, 15:-16, 30:-31].clamp(0, 1) * 255
    assert len(data) == 8 + sum(len(strings[0]) for strings in coded["strings"])
    difference = np.asarray(decoded) - expected.permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 1 and decoded.size == image.size
