"""nic decompress."""

import functools
import os
import time
from io import BytesIO
from pathlib import Path

import click

from nic.cli.files import (
    Done,
    check_target,
    for_each,
    jobs_option,
    picture_bar,
    plan,
    ray_option,
    read,
    resume_option,
    stdin_blocks,
    write,
)
from nic.errors import BadFile, Concealed, UsageError

__all__ = ["decompress"]


def _crop(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    try:
        left, top, width, height = map(int, text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not X,Y,W,H: four whole numbers") from None
    return left, top, width, height


@click.command(short_help="Decompress .nic files into PNG, JPEG, WebP, ...")
@click.argument("paths", nargs=-1, required=True, metavar="IN OUT | IN... -o FOLDER")
@click.option("-o", "--output", "folder", metavar="FOLDER", help="Write IN.png into FOLDER; IN may be folders, too.")
@click.option(
    "--format",
    "format_name",
    metavar="NAME",
    help="png, tif, webp, avif, jpg, bmp or ppm.  [default: by OUT's suffix; png with -o or to stdout]",
)
@click.option(
    "--crop", callback=_crop, metavar="X,Y,W,H", help="Decode only this part: left, top, width and height in pixels."
)
@click.option("--partial", is_flag=True, help="Decode what there is of a file that was cut off.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
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
    """
    from nic.pixels import output_format

    suffix = f".{format_name or 'png'}".lower()
    if ray and folder is None:
        raise UsageError("--ray is for many files: give -o FOLDER")
    targets = plan(paths, folder, suffix, {".nic"})
    if folder is None and format_name is None and paths[1] != "-":
        suffix = Path(paths[1]).suffix
    work = functools.partial(
        _decompress_one,
        targets=targets,
        format=output_format(suffix),
        crop=crop,
        partial=partial,
        device=device,
        force=force,
        resume=resume,
        quiet=quiet,
    )
    for_each(targets, work, jobs, ray)


def _decompress_one(
    source: str,
    *,
    targets: dict[str, str],
    format: str,
    crop: tuple[int, int, int, int] | None,
    partial: bool,
    device: str,
    force: bool,
    resume: bool,
    quiet: bool,
) -> Done:
    from nic import codec
    from nic.pixels import save

    target = targets[source]
    if resume and os.path.isfile(target):
        return Done()
    check_target(target, force)
    start = time.monotonic()
    with picture_bar(source, quiet):
        if source == "-" and crop is None:
            result = codec.recover_stream(stdin_blocks(), device=device)
        else:
            result = codec.recover(read(source), crop=crop, device=device)
    if result.truncated and not partial:
        raise BadFile(f"{result.problems[0]}; --partial decodes what there is")
    file = BytesIO()
    save(result.picture, file, format)
    write(target, file.getvalue())
    if result.problems:
        more = f" (and {len(result.problems) - 1} more)" if len(result.problems) > 1 else ""
        lost = f"{result.concealed} cell(s) are filled in" if result.concealed else "its pixels are whole"
        raise Concealed(f"{result.problems[0]}{more}; {target} is written, {lost}")
    height, width, _ = result.picture.pixels.shape
    speed = width * height / 1e6 / (time.monotonic() - start)
    return Done(() if quiet else (f"{source} -> {target}  {width}x{height}  {speed:.2g} Mpx/s",), width * height)
