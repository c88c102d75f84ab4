"""The `nic` command: its subcommands, its exit codes, and how errors reach the terminal.

Command modules import only click and nic.errors at their top; what a command works with is imported when it runs, so
that `nic --help` and `nic info` answer without torch.
"""

import errno
import io
import os
import signal
import sys
import warnings
from typing import Any

import click

from nic import __version__
from nic.cli.bench import bench
from nic.cli.codebook import codebook
from nic.cli.compress import compress
from nic.cli.decompress import decompress
from nic.cli.info import info
from nic.cli.models import models
from nic.cli.train import train
from nic.cli.verify import verify
from nic.errors import BadOutput, NicError

__all__ = ["cli", "main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

EPILOG = """\b
Exit codes:
  0    done
  1    anything else: not enough memory, a process that was killed, or a bug in nic
  2    wrong usage
  3    an input cannot be read, or is no picture or video that nic can compress
  4    a .nic file is damaged, truncated, or no .nic file
  5    a .nic file needs a newer nic, or a model that is not installed
  6    an output exists (use --force), or cannot be written
  7    a damaged .nic file was decoded, its lost parts filled in
  130  interrupted, by Ctrl-C or SIGTERM
Of several files, a failed one does not stop the rest; the first failure decides the exit code.
"""


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EACCES, errno.EROFS)


class _Group(click.Group):
    """Turns what users cause into one line on stderr and an exit code. Any other traceback is a bug in nic."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NicError as error:
            if ctx.params["debug"]:
                raise
            click.echo(f"nic: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno not in UNWRITABLE or ctx.params["debug"]:
                raise
            click.echo(f"nic: output cannot be written: {error.strerror}", err=True)
            ctx.exit(BadOutput.exit_code)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(cls=_Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="nic")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """A learned codec of pictures and videos.

    \b
    nic compress photo.png photo.nic
    nic decompress photo.nic photo.png
    nic compress clip.mp4 clip.nic
    nic decompress clip.nic clip.mkv
    """
    if not (debug or sys.warnoptions):
        warnings.simplefilter("ignore")  # stderr is for nic's own lines, not for those of its libraries


for command in (compress, decompress, info, verify, models, train, codebook, bench):
    cli.add_command(command)


def main() -> None:
    """The entry point of the `nic` script."""
    if sys.stderr is None:  # closed; tqdm would write to stdout instead, into the file that may go there
        sys.stderr = open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files are bytes, not always UTF-8
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unfinished files go, as after Ctrl-C
    cli(prog_name="nic")
