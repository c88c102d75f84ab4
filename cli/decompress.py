"""nic decompress."""

from io import BytesIO
from pathlib import Path

import click

from nic.cli.files import check_target, for_each, plan, read, report, write

__all__ = ["decompress"]


@click.command(short_help="Decompress .nic files into PNG, JPEG, WebP, ...")
@click.argument("paths", nargs=-1, required=True, metavar="IN OUT | IN... -o FOLDER")
@click.option("-o", "--output", "folder", metavar="FOLDER", help="Write IN.png into FOLDER; IN may be folders, too.")
@click.option(
    "--format",
    "format_name",
    metavar="NAME",
    help="png, tif, webp, avif, jpg, bmp or ppm.  [default: by OUT's suffix; png with -o or to stdout]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("-f", "--force", is_flag=True, help="Overwrite existing files.")
@click.option("--quiet", is_flag=True, help="Report problems only.")
def decompress(
    paths: tuple[str, ...], folder: str | None, format_name: str | None, device: str, force: bool, quiet: bool
) -> None:
    """Decompress the .nic file IN into the picture OUT; - is stdin or stdout.

    PNG, TIFF and WebP are written losslessly, JPEG and AVIF at quality 95. PNG and TIFF keep 16 bits a sample.
    """
    from nic import codec
    from nic.pixels import output_format, save

    suffix = f".{format_name or 'png'}".lower()
    targets = plan(paths, folder, suffix, {".nic"})
    if folder is None and format_name is None and paths[1] != "-":
        suffix = Path(paths[1]).suffix
    format = output_format(suffix)

    def decompress_one(source: str) -> None:
        target = targets[source]
        check_target(target, force)
        picture = codec.decompress(read(source), device=device)
        file = BytesIO()
        save(picture, file, format)
        write(target, file.getvalue())
        if not quiet:
            height, width, _ = picture.pixels.shape
            report(f"{source} -> {target}  {width}x{height}")

    for_each(targets, decompress_one)
