"""nic bench."""

from pathlib import Path

import click
from click.core import ParameterSource

from nic.cli.files import expand
from nic.cli.jobs import cores, report
from nic.cli.options import Real, effort_option, frame_range
from nic.errors import BadInput, UsageError

__all__ = ["bench"]

# The parameters that mean nothing for videos, and those that mean nothing for pictures.
OF_PICTURES = ("metrics", "targets", "jobs", "runs", "quick", "published")
OF_VIDEOS = ("frames", "effort")


def _names(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None


@click.command(short_help="Compare nic with other codecs on your pictures.")
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="IMAGES...")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the report into FOLDER; what it already holds is not measured again.",
)
@click.option(
    "--codecs", "names", callback=_names, metavar="A,B,...", help="Codecs to compare.  [default: all that are there]"
)
@click.option(
    "--metrics",
    callback=_names,
    metavar="A,B,...",
    help="Of psnr, ms_ssim, ms_ssim_db, lpips, dists, ssimulacra2.  [default: all]",
)
@click.option(
    "--metric-weights",
    "weights",
    envvar="NIC_METRIC_WEIGHTS",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder with alexnet*.pth and vgg16*.pth for LPIPS and DISTS, instead of torchvision's download; also"
    " $NIC_METRIC_WEIGHTS.",
)
@click.option(
    "--at",
    "targets",
    multiple=True,
    type=Real(0, min_open=True),
    default=(0.25,),
    show_default=True,
    metavar="BPP",
    help="Show the pictures at this rate in the report. Repeatable.",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Pictures at a time, one thread each.  [default: one a core]",
)
@click.option(
    "--runs",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    metavar="N",
    help="Take speed as the median of N runs; 0: do not measure it.",
)
@click.option(
    "--quick", is_flag=True, help="Three pictures, cut to 320x320, fewer settings, metrics and runs: two minutes."
)
@click.option("--video", "videos", is_flag=True, help="IMAGES are videos: compare nic with x264, x265 and SVT-AV1.")
@click.option("--frames", callback=frame_range, metavar="A:B", help="With --video, only frames A to B - 1, from 0.")
@effort_option("With --video, nic's effort: 1 (fastest) to 9 (smallest file at equal quality).")
@click.option(
    "--published/--no-published",
    default=None,
    help="Draw published curves on Kodak's photographs.  [default: only if IMAGES are these]",
)
def bench(
    images: tuple[Path, ...],
    folder: Path,
    names: tuple[str, ...] | None,
    metrics: tuple[str, ...] | None,
    weights: Path | None,
    targets: tuple[float, ...],
    jobs: int | None,
    runs: int,
    quick: bool,
    videos: bool,
    frames: tuple[int, int | None],
    effort: int,
    published: bool | None,
) -> None:
    """Measure rate and distortion of nic and other codecs on IMAGES (files or folders), and write a report.

    \b
    nic bench photos -o report
    nic bench photos --codecs nic,jpeg,avif,jxl --quick -o report
    nic bench --video clip.mp4 --frames 0:48 -o report

    FOLDER/report.html has the plots, tables, and the pictures side by side; the CSV files beside it have every figure.
    Of videos, FOLDER/table.md has PSNR at equal rates, and FOLDER/points.csv every figure. Only --codecs, --frames,
    --effort and --metric-weights concern them.
    """
    _check_options(videos)
    try:
        from nic.bench import codecs, suite
    except ImportError as error:
        raise UsageError(
            f"nic bench needs more packages ({error.name} is missing): pip install 'nic[bench]'"
        ) from error
    if videos:
        _bench_videos(images, folder, names, frames, effort, weights)
        return
    from nic.pixels import readable_suffixes

    paths = [Path(source) for image in images for source, _ in expand(image, readable_suffixes())]
    options = suite.Options(
        codecs=names or codecs.NAMES,
        metrics=metrics,
        weights=weights,
        targets=tuple(dict.fromkeys(targets)),
        jobs=jobs or cores(),
        runs=runs,
        quick=quick,
        published=published,
    )
    results = suite.run(paths, folder, options, lambda line: report(f"nic: {line}"))
    click.echo((folder / suite.TABLE).read_text())
    for line in suite.overlaps(results):
        click.echo(line)
    click.echo(f"{folder / 'report.html'}")
    if results.failed:
        click.get_current_context().exit(BadInput.exit_code)


def _check_options(videos: bool) -> None:
    """Raises UsageError for options on the command line that would be ignored."""
    context = click.get_current_context()
    given = [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name in (OF_PICTURES if videos else OF_VIDEOS)
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"{', '.join(given)} cannot be used {'with' if videos else 'without'} --video")


def _bench_videos(
    paths: tuple[Path, ...],
    folder: Path,
    names: tuple[str, ...] | None,
    frames: tuple[int, int | None],
    effort: int,
    weights: Path | None,
) -> None:
    from nic.bench import video
    from nic.bench.codecs import Missing
    from nic.media import SUFFIXES

    if unknown := set(names or ()) - set(video.CODECS):
        raise UsageError(f"no video codec {', '.join(sorted(unknown))}: there are {', '.join(video.CODECS)}")
    try:
        clips = [Path(source) for path in paths for source, _ in expand(path, SUFFIXES)]
        video.bench(clips, folder, names or tuple(video.CODECS), frames, effort, weights, report)
    except Missing as reason:
        raise UsageError(str(reason)) from reason
    click.echo((folder / video.TABLE).read_text())
