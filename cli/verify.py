"""nic verify."""

from functools import partial

import click

from nic.cli.files import nic_files, read
from nic.cli.jobs import for_each
from nic.cli.options import device_option

__all__ = ["verify"]


@click.command(short_help="Check that .nic files decode.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@device_option
def verify(files: tuple[str, ...], device: str) -> None:
    """Check each .nic FILE's checksums and decode its every symbol; - is stdin, a folder all .nic files in it. Prints
    "FILE: OK" for an intact one."""
    from nic import codec, video
    from nic.bitstream.container import holds_video

    def check(source: str) -> None:
        data = read(source)
        (video if holds_video(data) else codec).verify(data, device=device)
        click.echo(f"{source}: OK")

    for_each([(source, partial(check, source)) for source in nic_files(files)])
