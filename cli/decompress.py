"""nic decompress."""

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nic.cli.files import check_target, plan, read, stdin_blocks, write
from nic.cli.jobs import Done, for_each, hides_bars, picture_bar
from nic.cli.options import Real, check_options, device_option, jobs_option, ray_option, resume_option
from nic.errors import BadFile, Concealed, UsageError
from nic.output import replacing

if TYPE_CHECKING:
    import numpy as np

    from nic.bitstream.clip import ClipFile
    from nic.refine import Refinement

    Frames = Iterator[tuple[int, np.ndarray]]

__all__ = ["decompress"]


def _format_name(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    if text is None or text.isalnum():
        return text
    raise click.BadParameter(f"{text!r} is no format: write png, jpg, mkv, ...")


def _crop(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    try:
        left, top, width, height = map(int, text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not X,Y,W,H: four whole numbers") from None
    return left, top, width, height


@click.command(short_help="Decompress .nic files into PNG, JPEG, WebP, ..., MP4, Matroska.")
@click.argument("paths", nargs=-1, required=True, metavar="IN OUT | IN... -o FOLDER")
@click.option("-o", "--output", "folder", metavar="FOLDER", help="Write IN.png into FOLDER; IN may be folders, too.")
@click.option(
    "--format",
    "format_name",
    metavar="NAME",
    callback=_format_name,
    help="png, tif, webp, avif, jpg, bmp, ppm; mkv, mp4, mov.  "
    "[default: by OUT's suffix; with -o png of pictures and mkv of videos; png to stdout]",
)
@click.option(
    "--crop", callback=_crop, metavar="X,Y,W,H", help="Decode only this part: left, top, width and height in pixels."
)
@click.option("--frame", type=click.IntRange(0), metavar="K", help="Of a video, only frame K, from 0, as a picture.")
@click.option(
    "--refine",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Add likely detail that the file does not hold, in N steps, 1 to 100; 4 is a good number.  [default: none]",
)
@click.option(
    "--refine-strength",
    "strength",
    type=Real(0, 1),
    metavar="S",
    help="How much of what --refine changes is kept, 0 to 1.  [default: 0.5]",
)
@click.option("--seed", type=click.IntRange(0), metavar="K", help="Other detail for every K.  [default: 0]")
@click.option(
    "--consistent", is_flag=True, help="Keep what --refine changes to what would be coded alike, and say how well."
)
@click.option("--partial", is_flag=True, help="Decode what there is of a file that was cut off.")
@device_option
@click.option("-f", "--force", is_flag=True, help="Overwrite existing files.")
@resume_option
@jobs_option
@ray_option
@click.option("--quiet", is_flag=True, help="Report problems only.")
def decompress(
    paths: tuple[str, ...],
    folder: str | None,
    format_name: str | None,
    crop: tuple[int, int, int, int] | None,
    frame: int | None,
    refine: int,
    strength: float | None,
    seed: int | None,
    consistent: bool,
    partial: bool,
    device: str,
    force: bool,
    resume: bool,
    jobs: int,
    ray: str | None,
    quiet: bool,
) -> None:
    """Decompress the .nic file IN into the picture OUT; - is stdin or stdout.

    PNG, TIFF and WebP are written losslessly, JPEG and AVIF at quality 95. PNG and TIFF keep 16 bits a sample.

    Of a damaged file, what is intact is decoded and the rest filled in smoothly, with a warning and exit code 7.

    A video becomes .mkv (lossless), .mp4 or .mov with its audio, or pictures where OUT has a number: frames/%04d.png.
    Of a damaged video, the frames of lost groups are left out.
    """
    suffix = f".{format_name or 'png'}".lower()
    check_options(folder, force, resume, ray)
    given = {"strength": strength, "seed": seed, "consistent": consistent or None}
    flow: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if flow and not refine:
        raise UsageError("--refine-strength, --seed and --consistent are for --refine")
    if refine:
        flow["steps"] = refine
    targets = plan(paths, folder, suffix, {".nic"})
    if folder is None and format_name is None and paths[1] != "-":
        suffix = Path(paths[1]).suffix.lower()
    options = Options(
        suffix=suffix,
        mixed=folder is not None,
        crop=crop,
        frame=frame,
        flow=flow,
        partial=partial,
        device=device,
        force=force,
        resume=resume,
        quiet=quiet,
    )
    work = functools.partial(_decompress_one, options=options)
    for_each([(source, functools.partial(work, source, target)) for source, target in targets.items()], jobs, ray)


@dataclass(frozen=True)
class Options:
    """What the command line asks for, of each file."""

    suffix: str  # in lower case
    mixed: bool  # pictures and videos may come: each kind that the suffix is not for takes its default
    crop: tuple[int, int, int, int] | None
    frame: int | None
    flow: dict[str, Any]  # fields of a Refinement, or none
    partial: bool
    device: str
    force: bool
    resume: bool
    quiet: bool


def _decompress_one(source: str, target: str, options: Options) -> Done:
    from nic.bitstream.container import chunks, read_head
    from nic.bitstream.header import Kind
    from nic.media import WRITABLE
    from nic.refine import Refinement

    refinement = Refinement(**options.flow) if options.flow else None
    data = read(source) if options.mixed else None
    if data:
        is_video = read_head(next(chunks(data))).kind == Kind.VIDEO and options.frame is None
        if is_video != (options.suffix in WRITABLE):
            options = replace(options, suffix=".mkv" if is_video else ".png")
            target = str(Path(target).with_suffix(options.suffix))
    if options.resume and os.path.isfile(target):
        return Done(kept=True)
    check_target(target, options.force)
    whole = options.crop is None and options.frame is None
    if source == "-" and whole and _is_for_picture(target, options.suffix):
        return _decompress_picture(source, None, target, options, refinement)
    data = data or read(source)
    if read_head(next(chunks(data))).kind == Kind.VIDEO:
        return _decompress_video(source, data, target, options, refinement)
    return _decompress_picture(source, data, target, options, refinement)


def _decompress_picture(
    source: str, data: bytes | None, target: str, options: Options, refinement: "Refinement | None"
) -> Done:
    """``data`` is None where the file is still coming in from stdin."""
    from nic import codec
    from nic.bitstream.container import salvage
    from nic.pixels import output_format, save

    if options.frame is not None:
        raise UsageError("--frame is for videos, and this is none")
    format = output_format(options.suffix)
    start = time.monotonic()
    with picture_bar(source, options.quiet):
        if data is None:
            result = codec.recover_stream(stdin_blocks(), refinement=refinement, device=options.device)
        else:
            if not options.partial and (file := salvage(data)).truncated:
                raise BadFile(f"{file.problems[0]}; --partial decodes what there is")
            result = codec.recover(data, crop=options.crop, refinement=refinement, device=options.device)
    if result.truncated and not options.partial:
        raise BadFile(f"{result.problems[0]}; --partial decodes what there is")
    written = BytesIO()
    save(result.picture, written, format)
    write(target, written.getvalue())
    if result.problems:
        lost = f"{result.concealed} cell(s) are filled in" if result.concealed else "its pixels are whole"
        raise _concealed(result.problems, target, lost)
    height, width, _ = result.picture.pixels.shape
    speed = width * height / 1e6 / (time.monotonic() - start)
    line = f"{source} -> {target}  {width}x{height}  {speed:.2g} Mpx/s"
    if result.consistency is not None:
        line += f"  {result.consistency:.1%} of its latents agree with the file"
    return Done(() if options.quiet else (line,), width * height)


def _concealed(problems: Sequence[str], target: str, lost: str) -> Concealed:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Concealed(f"{problems[0]}{more}; {target} is written, {lost}")


def _is_for_picture(target: str, suffix: str) -> bool:
    from nic.media import WRITABLE

    return "%" not in target and suffix not in WRITABLE


def _decompress_video(source: str, data: bytes, target: str, options: Options, refinement: "Refinement | None") -> Done:
    from nic import video
    from nic.media import WRITABLE

    suffix, frame = options.suffix, options.frame
    if options.crop:
        raise UsageError("--crop is for pictures")
    if target == "-" and frame is None:
        raise UsageError("a video cannot go to stdout: name a file, or take one --frame of it")
    file = video.read(data)
    if file.truncated and not options.partial:
        raise BadFile(f"{file.problems[0]}; --partial decodes what there is")
    if frame is not None:
        pixels = video.decode_one(file, frame, refinement=refinement, device=options.device)
        _save_picture(pixels, target, suffix)
        made, lost, count = f"frame {frame}", "that frame is whole", 1
    elif "%" in target or suffix in WRITABLE:
        decode = functools.partial(video.decode_frames, refinement=refinement, device=options.device)
        if suffix in WRITABLE:
            count = _write_video(file, decode(file), target, suffix, options.quiet)
        else:
            count = _write_pictures(file, decode, target, suffix, options)
        made, lost = f"{count} frames", f"{file.clip.frames - count} of {file.clip.frames} frames are lost"
    else:
        raise UsageError(f"a video becomes {', '.join(WRITABLE)}, numbered pictures (%04d.png), or one with --frame")
    if file.problems:
        lost += "; pixels are not exact without the clip's network" if file.network_lost else ""
        lost += "; its audio is lost" if file.audio_lost else ""
        raise _concealed(file.problems, target, lost)
    width, height = file.header.width, file.header.height
    lines = () if options.quiet else (f"{source} -> {target}  {width}x{height}  {made}",)
    return Done(lines, width * height * count)


def _save_picture(pixels: "np.ndarray", target: str, suffix: str) -> None:
    from nic.pixels import Picture, output_format, save

    picture = BytesIO()
    save(Picture(pixels), picture, output_format(suffix))
    write(target, picture.getvalue())


def _write_pictures(
    file: "ClipFile", decode: Callable[["ClipFile"], "Frames"], target: str, suffix: str, options: Options
) -> int:
    """One picture a frame, with the frame's number, from 0, in ``target``; returns how many there are then."""
    if not re.fullmatch(r"([^%]|%%)*%0?\d{0,2}d([^%]|%%)*", target):
        raise UsageError(f"{target!r} has no place for one number, as in frames/%04d.png")
    clip = file.clip
    numbers = {index: range(index * clip.group, index * clip.group + clip.length(index)) for index in file.groups}
    there = {n for group in numbers.values() for n in group if options.resume and os.path.isfile(target % n)}
    for number in sorted(n for group in numbers.values() for n in group if n not in there):
        check_target(target % number, options.force)
    wanted = {index: group for index, group in sorted(file.groups.items()) if not there.issuperset(numbers[index])}
    if wanted or not file.groups:  # which is an error
        frames = decode(replace(file, groups=wanted))
        for number, (_, pixels) in zip((n for index in wanted for n in numbers[index]), frames, strict=True):
            if number not in there:
                _save_picture(pixels, target % number, suffix)
    return sum(map(len, numbers.values()))


def _write_video(file: "ClipFile", frames: "Frames", target: str, suffix: str, quiet: bool) -> int:
    """A video with its audio; returns how many frames it has."""
    from fractions import Fraction

    from tqdm import tqdm

    from nic.media import ClipWriter

    clip, header = file.clip, file.header
    tick, aspect = Fraction(clip.tick_num, clip.tick_den), Fraction(clip.aspect_num, clip.aspect_den)
    rate = file.rate and file.rate.limit_denominator(1001)
    count = 0
    with (
        replacing(target) as part,
        ClipWriter(str(part), suffix, header.width, header.height, tick, aspect, rate) as writer,
        tqdm(total=clip.frames, unit="frame", disable=hides_bars(quiet)) as bar,
    ):
        if file.audio:
            writer.add_audio(file.audio)
        for time, pixels in frames:
            writer.add(pixels, time)
            bar.update()
            count += 1
    return count
