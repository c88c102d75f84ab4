"""`nic bench --video`: nic against x264, x265 and SVT-AV1 on the frames of videos.

Every codec gets the same 8-bit RGB frames and gives such frames back; bytes are those of nic's file without audio, and
of the others' elementary streams. Metrics are means over frames. All run on the threads that they choose.
"""

import math
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

import nic
from nic import video
from nic.bench.codecs import SCALE, ffmpeg_program
from nic.bench.measure import read_rows, write_csv
from nic.bench.metrics import Meter, missing
from nic.bench.results import Row
from nic.bench.suite import machine
from nic.encoder import psnr
from nic.errors import BadInput, BadOutput, NicError
from nic.media import Source
from nic.models import store

__all__ = ["CODECS", "TABLE", "bench", "table"]

TABLE = "table.md"
RATES = (0.015, 0.03, 0.05, 0.1, 0.2)  # bits per pixel of the table
FRAMES_MEASURED = 12  # of a video, evenly spread, for metrics other than PSNR
METRIC_NAMES = ("psnr", "ms_ssim", "lpips")
Coded = tuple[int, list[np.ndarray], float, float]  # bytes, frames [H, W, 3] uint8, seconds to encode and to decode


@dataclass(frozen=True)
class Codec:
    """A video codec; settings trade rate for quality, rate ascending."""

    label: str
    version: str
    settings: tuple[float, ...]
    run: Callable[[Source, list[np.ndarray], float], Coded]


def load_nic(effort: int) -> Codec:
    def run(source: Source, frames: list[np.ndarray], setting: float) -> Coded:
        with tempfile.TemporaryDirectory() as folder:
            target = str(Path(folder, "clip.nic"))
            start = time.perf_counter()
            done = video.compress(source, target, quality=setting, effort=effort, audio=False)
            middle = time.perf_counter()
            decoded = [pixels for _, pixels in video.decode_frames(video.read(Path(target).read_bytes()))]
            return done.size, decoded, middle - start, time.perf_counter() - middle

    version = f"nic {nic.__version__}, model {store.find(store.VIDEO)['id']}, effort {effort}"
    return Codec("nic", version, (0, 15, 30, 45, 60, 80), run)


def load_ffmpeg(label: str, library: str, form: str, options: str, settings: tuple[float, ...]) -> Codec:
    """An encoder of ffmpeg in 4:2:0 at 8 bits, BT.709 full range; "{}" in ``options`` is the setting."""
    program = ffmpeg_program(library)

    def ffmpeg(source: list[str], target: list[str], data: bytes) -> bytes:
        command = [program, "-hide_banner", "-v", "error", *source, "-i", "-", *target, "-"]
        done = subprocess.run(command, input=data, capture_output=True)
        if done.returncode or not done.stdout:
            reason = re.sub(r"\s+", " ", done.stderr.decode(errors="replace")).strip()
            raise BadInput(f"ffmpeg with {library} fails: {reason or 'no output'}")
        return done.stdout

    def run(source: Source, frames: list[np.ndarray], setting: float) -> Coded:
        height, width = (side + side % 2 for side in frames[0].shape[:2])
        margins = (0, 0), (0, height - source.height), (0, width - source.width), (0, 0)
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        rate = 1 / (source.tick * max(1, (source.ticks[-1] // max(1, len(source.ticks) - 1))))
        to_yuv = f"scale=out_color_matrix=bt709:out_range=full:{SCALE},format=yuv420p"
        coding = ["-vf", to_yuv, "-c:v", library, *options.format(int(setting)).split(), "-f", form]
        start = time.perf_counter()
        pixels = np.pad(np.stack(frames), margins, mode="edge").tobytes()
        data = ffmpeg([*raw, "-r", f"{rate.numerator}/{rate.denominator}"], coding, pixels)
        middle = time.perf_counter()
        to_rgb = f"scale=in_color_matrix=bt709:in_range=full:{SCALE},format=rgb24"
        rgb = ffmpeg(["-f", form], ["-vf", to_rgb, "-fps_mode", "passthrough", "-f", "rawvideo"], data)
        decoded = np.frombuffer(rgb, np.uint8).reshape(-1, height, width, 3)[:, : source.height, : source.width]
        if len(decoded) != len(frames):
            raise BadInput(f"{library} gives {len(decoded)} frames instead of {len(frames)}")
        return len(data), list(decoded), middle - start, time.perf_counter() - middle

    release = subprocess.run([program, "-version"], capture_output=True, text=True).stdout.split()[2]
    return Codec(label, f"{library} of ffmpeg {release}, 4:2:0, {options.format('SETTING')}", settings, run)


CODECS: dict[str, Callable[[int], Codec]] = {
    "nic": load_nic,
    "x264": lambda effort: load_ffmpeg(
        "x264 veryslow", "libx264", "h264", "-preset veryslow -tune psnr -crf {}", (44, 40, 36, 32, 28, 24)
    ),
    "x264-psy": lambda effort: load_ffmpeg(
        "x264 veryslow, tuned for the eye", "libx264", "h264", "-preset veryslow -crf {}", (44, 40, 36, 32, 28, 24)
    ),
    "x265": lambda effort: load_ffmpeg(
        "x265 veryslow",
        "libx265",
        "hevc",
        "-preset veryslow -tune psnr -crf {} -x265-params log-level=error",
        (44, 40, 36, 32, 28, 24),
    ),
    "svt-av1": lambda effort: load_ffmpeg(
        "SVT-AV1 preset 3", "libsvtav1", "ivf", "-preset 3 -crf {}", (60, 54, 47, 40, 33, 26)
    ),
}


def bench(
    paths: Sequence[Path],
    folder: Path,
    names: Sequence[str],
    frames: tuple[int, int | None],
    effort: int,
    weights: Path | None,
    say: Callable[[str], None],
) -> list[Row]:
    """Measures every codec on every video; writes points.csv and table.md into ``folder``, and returns the points.

    Points that points.csv holds already are kept, but measured again for another version of a codec, or if they lack a
    metric. ``say`` gets a line a point, and one for each metric that is left out. Raises BadInput, UsageError where a
    video has no such frames, codecs.Missing, and BadOutput where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOutput(f"{folder} cannot be written: {error.strerror}") from error
    points = {key(row): row for row in read_rows(folder / "points.csv")}
    lacking = missing(METRIC_NAMES, weights)
    for name, why in lacking.items():
        say(f"{name} is left out: {why}")
    meter = Meter([name for name in METRIC_NAMES if name not in lacking], weights)
    for path in paths:
        try:
            source = Source.open(str(path), *frames)
        except NicError as error:
            raise type(error)(f"{path}: {error}") from error
        originals = list(source.frames())
        for name in names:
            codec = CODECS[name](effort)
            for setting in codec.settings:
                row: Row = {"video": path.name, "frames": len(originals), "codec": name, "setting": float(setting)}
                place, known = key(row), points.get(key(row), {})
                if known.get("version") == codec.version and all(
                    known.get(metric) is not None for metric in meter.names
                ):
                    continue
                size, decoded, encoding, decoding = codec.run(source, originals, setting)
                pixels = source.width * source.height * len(originals)
                row |= {"version": codec.version, "label": codec.label}
                row |= {"bytes": size, "bpp": round(8 * size / pixels, 6)}
                row |= measure(meter, originals, decoded)
                row |= {"encode_s": round(encoding, 2), "decode_s": round(decoding, 3)}
                points[place] = row | {"machine": machine(), "date": date.today().isoformat()}
                write_csv(folder / "points.csv", list(points.values()))
                result = f"{row['bpp']:.4f} bpp  {row['psnr']:.2f} dB  {encoding:.1f} s"
                say(f"{path.name}  {codec.label}  {setting:g}  {result}")
    rows = list(points.values())
    (folder / TABLE).write_text(table(rows))
    return rows


def key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("video", "frames", "codec", "setting"))


def measure(meter: Meter, originals: list[np.ndarray], decoded: list[np.ndarray]) -> Row:
    """PSNR, mean over all frames; the other metrics over FRAMES_MEASURED of them, None for those of no meter."""
    chosen = {round(i) for i in np.linspace(0, len(originals) - 1, FRAMES_MEASURED)}
    rows = [meter.measure(Image.fromarray(originals[i]), Image.fromarray(decoded[i])) for i in sorted(chosen)]
    values = {name: float(np.mean([row[name] for row in rows])) for name in meter.names}
    values["psnr"] = float(np.mean([psnr(a, b) for a, b in zip(originals, decoded, strict=True)]))
    return dict.fromkeys(METRIC_NAMES) | {name: round(value, 5) for name, value in values.items()}


def table(points: Sequence[Row]) -> str:
    """PSNR in dB at RATES, interpolated over the logarithm of the rate, of each codec on each video."""
    titles = [f"{rate} bpp" for rate in RATES]
    lines = ["| video | codec | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
    for name, label in dict.fromkeys((row["video"], row["label"]) for row in points):
        rows = sorted((row["bpp"], row["psnr"]) for row in points if (row["video"], row["label"]) == (name, label))
        rates, values = [math.log(bpp) for bpp, _ in rows], [decibels for _, decibels in rows]
        cells = [
            f"{np.interp(math.log(rate), rates, values):.2f}" if rates[0] <= math.log(rate) <= rates[-1] else "–"
            for rate in RATES
        ]
        lines.append(f"| {name} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\nMean PSNR of the frames in RGB, dB; points.csv has every figure.\n"
