"""The codecs that `nic bench` compares, each through its real encoder: an image to the bytes of a file, and back.

All run on one thread where their interface allows it, because `nic bench` works on several images at a time; none
stores metadata. A learned codec's file holds what its decoder needs, as the others' do.
"""

import hashlib
import importlib
import importlib.metadata
import io
import math
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, features

import nic
from nic.errors import BadInput, UsageError
from nic.models import store

__all__ = ["NAMES", "SCALE", "Codec", "Missing", "at_rate", "ffmpeg_program", "load"]

Encode = Callable[[Image.Image, float], bytes]
Decode = Callable[[bytes, tuple[int, int]], Image.Image]


@dataclass(frozen=True)
class Codec:
    """One codec with fixed options; a single number, the setting, trades rate for quality."""

    name: str  # on the command line
    label: str  # in plots
    version: str  # encoder, its version and its fixed options, one line
    settings: tuple[float, ...]  # for a rate-distortion curve: rate ascending, about 0.1 to 2 bits per pixel on Kodak
    grid: tuple[float, ...]  # all settings, rate ascending, for at_rate
    encode: Encode  # RGB image, setting -> the whole file
    decode: Decode  # the file, (width, height) -> RGB image of this size


class Missing(Exception):
    """A codec that is not installed; the text says how to get it."""


def at_rate(codec: Codec, image: Image.Image, bpp: float, known: Mapping[float, int]) -> tuple[float, bytes]:
    """The setting of `codec.grid` whose file is nearest to `bpp` bits per pixel, and this file.

    `known` maps settings to their files' bytes, which saves encodes. Bytes are taken to rise along the grid; where they
    do not (as JPEG XL's, near its lowest rates), the result is the nearest of the files that the search met.
    """
    target = bpp * image.width * image.height / 8
    index = {setting: i for i, setting in enumerate(codec.grid)}
    sizes = {index[setting]: size for setting, size in known.items()}
    files: dict[int, bytes] = {}
    while True:
        low = max((i for i, size in sizes.items() if size < target), default=-1)
        high = min((i for i, size in sizes.items() if i > low and size >= target), default=len(index))
        if high - low <= 1:
            break
        middle = (low + high) // 2
        if low in sizes and high in sizes and len(files) < 4:  # the logarithm of the rate is about linear in a setting
            share = math.log(target / sizes[low]) / math.log(sizes[high] / sizes[low])
            middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        files[middle] = codec.encode(image, codec.grid[middle])
        sizes[middle] = len(files[middle])
    best = min(sizes, key=lambda i: abs(sizes[i] - target))
    setting = codec.grid[best]
    return setting, files[best] if best in files else codec.encode(image, setting)


@cache
def load(name: str) -> Codec:
    """The codec of this name. Raises Missing where it is not installed, UsageError for an unknown name."""
    if name not in CODECS:
        raise UsageError(f"unknown codec {name!r}; known are {', '.join(NAMES)}")
    return CODECS[name](name)


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Missing(f"pip install {package}") from None


def _steps(first: int, last: int) -> tuple[float, ...]:
    """All integers from first to last, in either direction."""
    return tuple(range(first, last + 1) if first < last else range(first, last - 1, -1))


def _nic(name: str, label: str, mode: str, settings: tuple[float, ...], refine: int = 0) -> Codec:
    def encode(image: Image.Image, setting: float) -> bytes:
        return nic.encode(_bare(image), quality=setting, mode=mode)

    def decode(data: bytes, size: tuple[int, int]) -> Image.Image:
        return nic.decode(data, refine=refine).convert("RGB")

    model = store.find(mode)
    weights = hashlib.sha256(Path(model["path"]).read_bytes()).hexdigest()[:12]  # of the synthesis, too
    version = f"nic {nic.__version__}, model {model['id']}, weights {weights}, default effort"
    if refine:
        version += f", {refine} steps of refiner {store.find(store.REFINER)['id']}"
    return Codec(name, label, version, settings, _steps(0, 100), encode, decode)


# --- Pillow and its plugins


def _bare(image: Image.Image) -> Image.Image:
    """The same pixels without the metadata that some encoders store: ICC profile, EXIF, comments."""
    return Image.fromarray(np.asarray(image))


def _save(image: Image.Image, setting: float, options: Callable[[float], dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    _bare(image).save(stream, **options(setting))
    return stream.getvalue()


def _open(data: bytes, size: tuple[int, int]) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _jpeg(name: str) -> Codec:
    def options(setting: float) -> dict[str, Any]:
        return {"format": "JPEG", "quality": int(setting), "subsampling": "4:2:0", "optimize": True}

    version = f"libjpeg-turbo {features.version('libjpeg_turbo')}, 4:2:0, optimized Huffman tables"
    settings = (8, 15, 25, 45, 70, 88)
    return Codec(name, "JPEG", version, settings, _steps(1, 100), partial(_save, options=options), _open)


def _jpeg2000(name: str) -> Codec:
    if not features.check("jpg_2000"):
        raise Missing("install a Pillow with OpenJPEG, as its wheels are")

    def options(setting: float) -> dict[str, Any]:  # the setting is the rate in bits per pixel
        ratio = 24 / setting
        return {
            "format": "JPEG2000",
            "no_jp2": True,  # the codestream alone
            "irreversible": True,
            "mct": 1,  # YCbCr; Pillow codes R, G and B apart by default
            "quality_mode": "rates",
            "quality_layers": [ratio],
        }

    version = f"OpenJPEG {features.version('jpg_2000')}, irreversible, YCbCr, rate in bits per pixel"
    settings = (0.1, 0.2, 0.4, 0.75, 1.25, 2)
    grid = tuple(n / 100 for n in range(2, 1001))
    return Codec(name, "JPEG 2000", version, settings, grid, partial(_save, options=options), _open)


def _webp(name: str) -> Codec:
    def options(setting: float) -> dict[str, Any]:
        return {"format": "WEBP", "quality": setting, "method": 6}

    version = f"libwebp {features.version('webp')}, method 6"
    settings = (0, 10, 30, 60, 80, 90)
    return Codec(name, "WebP", version, settings, _steps(0, 100), partial(_save, options=options), _open)


def _avif(name: str, label: str, subsampling: str, tune: str = "") -> Codec:
    """tune: what libaom aims at, unless it is libavif's default of SSIM."""
    try:
        from PIL import _avif as library

        if not library.encoder_codec_available("aom"):
            raise ImportError
    except ImportError:
        raise Missing("install a Pillow with libavif and libaom, as its wheels are") from None
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # for the decoder

    def options(setting: float) -> dict[str, Any]:
        return {
            "format": "AVIF",
            "quality": int(setting),
            "subsampling": subsampling,
            "codec": "aom",
            "speed": 4,
            "autotiling": False,
            "max_threads": 1,
            "advanced": {"tune": tune} if tune else {},
        }

    version = f"libavif {features.version('avif')} ({library.codec_versions()}), {subsampling}, 8 bit, speed 4"
    version += f", tune {tune}" if tune else ""
    settings = (12, 28, 42, 56, 70, 83)
    return Codec(name, label, version, settings, _steps(0, 100), partial(_save, options=options), _open)


def _jxl(name: str) -> Codec:
    plugin = _require("pillow_jxl.JpegXLImagePlugin", "pillow-jxl-plugin")
    plugin.DECODE_THREADS = 1

    def options(setting: float) -> dict[str, Any]:
        return {"format": "JXL", "quality": setting, "effort": 7, "num_threads": 1}

    version = f"libjxl of pillow-jxl-plugin {importlib.metadata.version('pillow-jxl-plugin')}, effort 7"
    settings = (0, 20, 35, 60, 80, 90)  # below 18, libjxl codes the picture at half its size
    grid = tuple(n / 2 for n in range(200))  # 100 is lossless
    return Codec(name, "JPEG XL", version, settings, grid, partial(_save, options=options), _open)


# --- video encoders, through ffmpeg

SCALE = "flags=accurate_rnd+full_chroma_int+full_chroma_inp+lanczos"
LEAST = 32  # pixels a side; x265 refuses less than 16, and VVenC's headers exceed ffmpeg's buffer of 8 bits per pixel
LIBRARY_VERSION = re.compile(r"(?:\[libaom-av1 @ \w+\] v|Encoder Lib v|HEVC encoder version |libvvenc version: )(\S+)")


def ffmpeg_program(library: str) -> str:
    """An ffmpeg that should have an encoder library. Raises Missing."""
    try:
        return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
        if found is None:
            raise Missing(f"pip install imageio-ffmpeg, or put an ffmpeg with {library} on PATH") from None
        return found


def _padded(size: tuple[int, int]) -> tuple[int, int]:
    """The size in which a picture is coded: even, as 4:2:0 needs."""
    width, height = (max(length + length % 2, LEAST) for length in size)
    return width, height


def _video(
    name: str,
    label: str,
    library: str,
    pixels: str,
    form: str,
    options: str,
    grid: tuple[float, ...],
    settings: tuple[float, ...],
) -> Codec:
    """A still picture as an elementary stream: BT.709 full range at 10 bits, in the pixel format `pixels`, in ffmpeg's
    format `form`. "{}" in `options` is the setting."""
    program = ffmpeg_program(library)

    def ffmpeg(source: list[str], target: list[str], data: bytes) -> tuple[bytes, str]:
        """Standard output and log."""
        command = [program, "-hide_banner", "-v", "verbose", "-threads", "1", *source, "-i", "-", *target, "-"]
        run = subprocess.run(command, input=data, capture_output=True)
        log = run.stderr.decode(errors="replace")
        if run.returncode or not run.stdout:
            reason = re.search(r"(?:Error|Unknown) .*", log)
            raise BadInput(f"ffmpeg with {library} fails: {reason[0] if reason else 'no output'}")
        return run.stdout, log

    def encode_and_log(image: Image.Image, setting: float) -> tuple[bytes, str]:
        width, height = _padded(image.size)
        margins = (0, height - image.height), (0, width - image.width), (0, 0)
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        colours = f"scale=out_color_matrix=bt709:out_range=full:{SCALE},format={pixels}"
        strict = f"+{pixels}"  # no other format in its place
        coding = ["-c:v", library, "-pix_fmt", strict, "-threads", "1", *options.format(setting).split(), "-f", form]
        return ffmpeg(source, ["-vf", colours, *coding], np.pad(np.asarray(image), margins, mode="edge").tobytes())

    def encode(image: Image.Image, setting: float) -> bytes:
        return encode_and_log(image, setting)[0]

    def decode(data: bytes, size: tuple[int, int]) -> Image.Image:
        colours = f"scale=in_color_matrix=bt709:in_range=full:{SCALE},format=rgb24"
        rgb, _ = ffmpeg(["-f", form], ["-vf", colours, "-f", "rawvideo"], data)
        return Image.frombytes("RGB", _padded(size), rgb).crop((0, 0, *size))

    try:
        data, log = encode_and_log(Image.new("RGB", (64, 64), "grey"), settings[0])
        decode(data, (64, 64))
    except BadInput:
        raise Missing(
            f"{program} cannot encode with {library} in {pixels} and decode it: pip install -U imageio-ffmpeg, "
            f"or set IMAGEIO_FFMPEG_EXE to an ffmpeg that can"
        ) from None
    found_version = LIBRARY_VERSION.search(log)
    release = subprocess.run([program, "-version"], capture_output=True, text=True).stdout.split()[2]
    version = (
        f"{library} {found_version[1] if found_version else '(version unknown)'} in ffmpeg {release}, {pixels}, "
        f"BT.709 full range, {options.format('SETTING')}"
    )
    return Codec(name, label, version, settings, grid, encode, decode)


# --- the learned codecs of CompressAI's zoo

HEADER = struct.Struct(">HHI")  # width, height; quality in the top byte, length of the first string in the others


def _compressai(name: str, label: str) -> Codec:
    import torch  # here, so that measuring other codecs does not load it
    from torch.nn import functional as F

    from nic.bench.shim import declare_operators

    declare_operators()
    zoo = _require("compressai.zoo", "compressai")
    padding = importlib.import_module("compressai.ops").compute_padding
    urls = importlib.import_module("compressai.zoo.image").model_urls[name]["mse"]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    absent = [quality for quality, url in urls.items() if not (folder / Path(url).name).exists()]
    if absent:
        raise Missing(
            f"weights of quality {', '.join(map(str, absent))} are not in {folder}; download: python -c "
            f"'import compressai.zoo as z; [z.image_models[\"{name}\"](q, pretrained=True) for q in {absent}]'"
        )

    @cache
    def model(quality: int) -> Any:
        network = zoo.image_models[name](quality, metric="mse", pretrained=True).eval()
        network.update()
        return network

    @torch.inference_mode()
    def encode(image: Image.Image, setting: float) -> bytes:
        quality = int(setting)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        pad, _ = padding(image.height, image.width, min_div=64)
        strings = [batch[0] for batch in model(quality).compress(F.pad(pixels, pad))["strings"]]
        return HEADER.pack(image.width, image.height, quality << 24 | len(strings[0])) + b"".join(strings)

    @torch.inference_mode()
    def decode(data: bytes, size: tuple[int, int]) -> Image.Image:
        width, height, both = HEADER.unpack_from(data)
        network, length = model(both >> 24), both & 0xFFFFFF
        strings = [data[HEADER.size :][:length], data[HEADER.size + length :]]
        pad, unpad = padding(height, width, min_div=64)
        left, right, top, bottom = pad
        factor = network.downsampling_factor
        shape = (height + top + bottom) // factor, (width + left + right) // factor
        decoded = network.decompress([[string] for string in strings if string], shape)["x_hat"]
        pixels = F.pad(decoded, unpad)[0].clamp(0, 1).mul(255).round().byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    version = f"compressai {importlib.metadata.version('compressai')}, mse, file = strings and 8 bytes"
    settings = tuple(sorted(urls))
    return Codec(name, label, version, settings, settings, encode, decode)


CODECS: dict[str, Callable[[str], Codec]] = {  # in the order of plots
    "nic": partial(_nic, label="nic", mode=store.FIDELITY, settings=(0, 15, 30, 45, 60, 75, 88, 100)),
    "nic-refined": partial(_nic, label="nic, refined", mode=store.FIDELITY, settings=(0, 10, 20, 30, 40, 50), refine=4),
    "nic-extreme": partial(_nic, label="nic extreme", mode=store.EXTREME, settings=(0, 20, 40, 60, 80, 100)),
    "jpeg": _jpeg,
    "jpeg2000": _jpeg2000,
    "webp": _webp,
    "jxl": _jxl,
    "avif-420": partial(_avif, label="AVIF 4:2:0", subsampling="4:2:0"),
    "avif": partial(_avif, label="AVIF 4:4:4", subsampling="4:4:4"),
    "avif-psnr": partial(_avif, label="AVIF 4:4:4, for PSNR", subsampling="4:4:4", tune="psnr"),
    "x265": partial(
        _video,
        label="x265 4:4:4",
        library="libx265",
        pixels="yuv444p10le",
        form="hevc",
        options="-preset slower -tune psnr -qp {} -x265-params pools=none:frame-threads=1:info=0",
        grid=_steps(51, 0),
        settings=(46, 41, 36, 31, 27, 22),
    ),
    "svt-av1": partial(
        _video,
        label="SVT-AV1 4:2:0",
        library="libsvtav1",
        pixels="yuv420p10le",
        form="obu",
        options="-preset 2 -qp {} -svtav1-params avif=1:lp=1:tune=1:aq-mode=0",
        grid=_steps(63, 1),
        settings=(53, 44, 35, 27, 19, 12),
    ),
    "aom": partial(
        _video,
        label="libaom 4:4:4",
        library="libaom-av1",
        pixels="yuv444p10le",
        form="obu",
        options="-still-picture 1 -usage allintra -cpu-used 3 -tune psnr -crf {}",
        grid=_steps(63, 1),
        settings=(56, 47, 38, 29, 21, 14),
    ),
    "vvc": partial(
        _video,
        label="VVenC 4:2:0",
        library="libvvenc",
        pixels="yuv420p10le",
        form="vvc",
        options="-preset medium -qpa 0 -qp {} -vvenc-params range=full",
        grid=_steps(63, 10),
        settings=(46, 41, 36, 31, 27, 22),
    ),
    "bmshj2018-factorized": partial(_compressai, label="bmshj2018 factorized"),
    "bmshj2018-hyperprior": partial(_compressai, label="bmshj2018 hyperprior"),
    "mbt2018-mean": partial(_compressai, label="mbt2018 mean"),
    "cheng2020-anchor": partial(_compressai, label="cheng2020 anchor"),
}
NAMES = tuple(CODECS)
