"""nic compress."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nic.cli.files import check_target, plan, read, write
from nic.cli.jobs import Done, for_each, hides_bars, picture_bar, report
from nic.cli.options import (
    Real,
    check_options,
    device_option,
    effort_option,
    frame_range,
    jobs_option,
    ray_option,
    resume_option,
)
from nic.errors import BadInput, UsageError

if TYPE_CHECKING:
    from nic.video import Progress

__all__ = ["compress"]


def _byte_size(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """A number of bytes written as 20000, 20k or 1.5M."""
    if text is None:
        return None
    factor = {"k": 1000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    try:
        size = int(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise click.BadParameter(f"{text!r} is no size in bytes: write 20000, 20k or 1.5M")
    return size


@click.command(short_help="Compress pictures and videos into .nic files.")
@click.argument("paths", nargs=-1, required=True, metavar="IN OUT | IN... -o FOLDER")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="FOLDER",
    help="Write IN.nic into FOLDER; IN may be folders, too: all pictures and videos in them.",
)
@click.option(
    "-q",
    "--quality",
    type=Real(0, 100),
    metavar="Q",
    help="0 (smallest) to 100 (best), in any fraction; 30 to 70 suit photographs.  [default: 50]",
)
@click.option(
    "--bpp",
    type=Real(0, min_open=True),
    metavar="BITS",
    help="As near as there is to so many bits per pixel, of the whole file.",
)
@click.option(
    "--size", callback=_byte_size, metavar="BYTES", help="At most so many bytes; 20k is 20,000 and 1.5M is 1,500,000."
)
@click.option("--psnr", type=Real(0, min_open=True), metavar="DB", help="At least so many dB, say 35.")
@effort_option(
    "1 (fastest) to 9 (best picture for its bytes, slowest), of fidelity mode and videos; decoding is as fast for all."
)
@click.option(
    "-m",
    "--mode",
    type=click.Choice(["auto", "fidelity", "extreme"]),
    default="auto",
    show_default=True,
    help="extreme is for 0.01 to 0.1 bits per pixel; auto takes it where --bpp or --size ask for so little.",
)
@click.option(
    "--mask-rate",
    type=Real(0, 1),
    default=0,
    show_default=True,
    metavar="SHARE",
    help="Leave out at least this share of what is coded, what matters least first; nic itself leaves out what is not "
    "worth its bits, often more than half.",
)
@click.option("--frames", callback=frame_range, metavar="A:B", help="Of a video, only frames A to B - 1, from 0.")
@click.option("--no-audio", is_flag=True, help="Of a video, leave out the audio track.")
@click.option("--strip", is_flag=True, help="Leave out EXIF and XMP: place, time, camera, texts.")
@device_option
@click.option("-f", "--force", is_flag=True, help="Overwrite existing files.")
@resume_option
@jobs_option
@ray_option
@click.option("--quiet", is_flag=True, help="Report problems only.")
def compress(
    paths: tuple[str, ...],
    folder: str | None,
    quality: float | None,
    bpp: float | None,
    size: int | None,
    psnr: float | None,
    effort: int,
    mode: str,
    mask_rate: float,
    frames: tuple[int, int | None],
    no_audio: bool,
    strip: bool,
    device: str,
    force: bool,
    resume: bool,
    jobs: int,
    ray: str | None,
    quiet: bool,
) -> None:
    """Compress the picture IN (PNG, JPEG, WebP, AVIF, TIFF, ...) into the .nic file OUT; - is stdin or stdout, for
    pictures.

    Give one of --quality, --bpp, --size and --psnr; where the nearest file is more than 2 % away, that is told.
    ICC profile, EXIF and XMP are kept but for EXIF's thumbnail, its orientation is applied.
    One line a file goes to stderr: width, height, size, bits per pixel, the quality that met a target, speed.

    A video (MP4, Matroska, WebM, MOV, AVI, ...) becomes one .nic file, too, with its timestamps and its first audio
    track; interlaced frames are deinterlaced, one frame from each. With --resume, an interrupted video goes on behind
    the last group of frames in OUT.part.
    """
    from nic.media import SUFFIXES
    from nic.pixels import readable_suffixes

    given = {"quality": quality, "bpp": bpp, "size": size, "psnr": psnr}
    rate = {name: value for name, value in given.items() if value is not None}
    if len(rate) > 1:
        raise UsageError("give only one of --quality, --bpp, --size and --psnr")
    check_options(folder, force, resume, ray)
    pictures_and_videos = readable_suffixes() | SUFFIXES
    targets = plan(paths, folder, ".nic", pictures_and_videos)
    if folder is None and Path(paths[1]).suffix.lower() in pictures_and_videos:
        raise UsageError(f"{paths[1]} is called like a picture or a video: name the output like {paths[1]}.nic")
    options = Options(
        rate=rate,
        effort=effort,
        mode=mode,
        mask_rate=mask_rate,
        frames=frames,
        audio=not no_audio,
        strip=strip,
        device=device,
        force=force,
        resume=resume,
        quiet=quiet,
    )
    work = partial(_compress_one, options=options)
    for_each([(source, partial(work, source, target)) for source, target in targets.items()], jobs, ray)


@dataclass(frozen=True)
class Options:
    """What the command line asks for, of each file."""

    rate: dict[str, Any]  # one of quality, bpp, size and psnr, or none
    effort: int
    mode: str
    mask_rate: float
    frames: tuple[int, int | None]
    audio: bool
    strip: bool
    device: str
    force: bool
    resume: bool
    quiet: bool


def _compress_one(source: str, target: str, options: Options) -> Done:
    from nic.media import part_of

    is_video = _is_video(source)
    begun = options.resume and is_video and os.path.isfile(part_of(target))  # it was to replace what is there
    if options.resume and os.path.isfile(target) and not begun:
        return Done(kept=True)
    check_target(target, options.force or begun)
    return (_compress_video if is_video else _compress_picture)(source, target, options)


def _compress_picture(source: str, target: str, options: Options) -> Done:
    from PIL import Image

    from nic import codec
    from nic.bitstream.limits import MAX_PIXELS
    from nic.media import looks_like_video
    from nic.pixels import load

    if options.frames != (0, None):
        raise UsageError("--frames is for videos, and this is none")
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # nic's own limit instead of Pillow's lower one
    start = time.monotonic()
    data = read(source)
    if looks_like_video(data):
        raise BadInput("a video that can be read only once: save it as a file first")
    picture = load(data)
    if options.strip:
        picture = replace(picture, exif=b"", xmp=b"")
    with picture_bar(source, options.quiet):
        encoded = codec.compress(
            picture,
            **options.rate,
            effort=options.effort,
            mode=options.mode,
            mask_rate=options.mask_rate,
            device=options.device,
        )
    write(target, encoded.data)
    height, width, _ = picture.pixels.shape
    lines = [f"nic: {source}: {encoded.note}"] if encoded.note else []
    if not options.quiet:
        length = len(encoded.data)
        bits_per_pixel = 8 * length / (width * height)
        speed = width * height / 1e6 / (time.monotonic() - start)
        chosen = f"quality {encoded.quality:.1f}  " if options.rate and "quality" not in options.rate else ""
        figures = f"{length / 1000:.1f} kB  {bits_per_pixel:.3f} bpp  {chosen}{speed:.2g} Mpx/s"
        lines.append(f"{source} -> {target}  {width}x{height}  {figures}")
    return Done(tuple(lines), width * height)


def _is_video(source: str) -> bool:
    """By the file's first bytes, or by its suffix where they tell nothing; what can be read only once is a picture."""
    from nic.media import SUFFIXES, looks_like_video

    if not os.path.isfile(source):
        return False
    try:
        with open(source, "rb") as file:
            return looks_like_video(file.read(16)) or os.path.splitext(source)[1].lower() in SUFFIXES
    except OSError:
        return False  # reading it as a picture says why


def _compress_video(source: str, target: str, options: Options) -> Done:
    from nic import video
    from nic.media import Source, part_of

    if target == "-":
        raise UsageError("a video cannot go to stdout: name a file")
    if "psnr" in options.rate:
        raise UsageError("--psnr is for pictures: give --quality, --bpp or --size")
    if options.mode == "extreme" or options.mask_rate:
        raise UsageError("--mode extreme and --mask-rate are for pictures")
    clip = Source.open(source, *options.frames)
    try:
        with _progress_of_video(options.quiet) as show:
            done = video.compress(
                clip,
                target,
                **options.rate,
                effort=options.effort,
                audio=options.audio,
                resume=options.resume,
                device=options.device,
                progress=show,
            )
    except KeyboardInterrupt:
        if os.path.isfile(part_of(target)):
            how = "with --resume instead of --force" if options.force else "with --resume"
            report(f"nic: {source}: interrupted; the same command {how} goes on")
        raise
    count, pixels = len(clip.ticks), clip.width * clip.height * len(clip.ticks)
    lines = [f"nic: {source}: {note}" for note in done.notes]
    if not options.quiet:
        shape = f"{clip.width}x{clip.height}  {count} frames  {done.size / 1000:.1f} kB"
        coded = "" if math.isnan(done.psnr) else f"  {done.psnr:.2f} dB"  # all of it was there already
        lines.append(f"{source} -> {target}  {shape}  {8 * done.size / pixels:.4f} bpp{coded}")
    return Done(tuple(lines), pixels)


@contextmanager
def _progress_of_video(quiet: bool) -> "Iterator[Callable[[Progress], None]]":
    """A bar with time left, size and PSNR so far, and what moves it."""
    from tqdm import tqdm

    bar_format = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=100, unit="%", disable=hides_bars(quiet), bar_format=bar_format) as bar:

        def show(progress: "Progress") -> None:
            bar.n = round(100 * progress.done, 1)
            bar.set_postfix_str(f"{progress.size / 1000:.1f} kB, {progress.psnr:.2f} dB")

        yield show
