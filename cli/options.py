"""Options that several commands share."""

import math
from collections.abc import Callable
from typing import Any

import click

from nic.errors import UsageError

__all__ = [
    "Real",
    "check_options",
    "device_option",
    "effort_option",
    "frame_range",
    "jobs_option",
    "ray_option",
    "resume_option",
]


class Real(click.FloatRange):
    """A finite number in a range; click's own type takes nan for one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the networks run; auto is cuda where there is such a GPU.",
)


def effort_option(help: str) -> Callable[..., Any]:
    """-e, 1 to 9."""
    return click.option(
        "-e", "--effort", type=click.IntRange(1, 9), default=4, show_default=True, metavar="N", help=help
    )


jobs_option = click.option(
    "-j", "--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Files at a time."
)

ray_option = click.option(
    "--ray",
    metavar="ADDRESS",
    help="Spread the files over the Ray cluster at ADDRESS, or auto; its machines must share the files' folders.",
)

resume_option = click.option(
    "--resume", is_flag=True, help="Leave files that exist as they are: goes on where a command was interrupted."
)


def frame_range(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int | None]:
    """A:B as the first frame and the one behind the last."""
    try:
        first, last = (text or ":").split(":")
        return int(first or 0), int(last) if last else None
    except ValueError:
        raise click.BadParameter(f"{text!r} is not A:B: two whole numbers, each of which may be left out") from None


def check_options(folder: str | None, force: bool, resume: bool, ray: str | None) -> None:
    """Raises UsageError for options that contradict each other."""
    if force and resume:
        raise UsageError("--force overwrites what --resume leaves as it is: give one of them")
    if ray and folder is None:
        raise UsageError("--ray is for many files: give -o FOLDER")
