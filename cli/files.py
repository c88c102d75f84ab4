"""Files of the command line: `-` for stdin and stdout, output names, writing all or nothing, several files in a row."""

import os
import secrets
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import click

from nic.errors import BadInput, NicError, OutputExists, UsageError

__all__ = ["check_target", "for_each", "plan", "read", "report", "write"]


def plan(paths: Sequence[str], folder: str | None, suffix: str, wanted: Collection[str]) -> dict[str, str]:
    """Source → target for the arguments IN OUT, or IN... with -o FOLDER.

    Into a folder, each target keeps its source's name with `suffix`; from a folder come, recursively and under their
    relative names, the files whose suffix in lower case is in `wanted`.

    Raises UsageError for contradictory arguments or two sources with one target, BadInput for a folder without files.
    """
    if folder is None:
        if len(paths) != 2 or any(os.path.isdir(path) for path in paths):
            raise UsageError("give IN and OUT, or any number of inputs and folders with -o FOLDER")
        return {paths[0]: paths[1]}
    targets: dict[str, str] = {}
    sources: dict[str, str] = {}
    for path in paths:
        if path == "-":
            raise UsageError("stdin (-) has no name: give IN and OUT instead of -o")
        for source, relative in _expand(Path(path), wanted):
            target = str(Path(folder, relative).with_suffix(suffix))
            if target in sources:
                raise UsageError(f"{sources[target]} and {source} would both become {target}")
            targets[source], sources[target] = target, source
    return targets


def _expand(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, Path]]:
    """(source, name relative to the output folder) of a file, or of the wanted files in a folder."""
    if not path.is_dir():
        yield str(path), Path(path.name)
        return
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in wanted and file.is_file())
    if not found:
        raise BadInput(f"{path}: no file in it has one of the suffixes {' '.join(sorted(wanted))}")
    for file in found:
        yield str(file), file.relative_to(path)


def for_each(sources: Collection[str], work: Callable[[str], None]) -> None:
    """Call `work` on each source, with a progress bar on a terminal where there are several.

    A NicError is reported and the rest goes on; the first one's exit code ends the command after the last source.
    """
    from tqdm import tqdm

    context = click.get_current_context()
    exit_code = 0
    for source in tqdm(sources, unit="file", disable=len(sources) < 2 or not sys.stderr.isatty()):
        try:
            work(source)
        except NicError as error:
            if context.find_root().params["debug"]:
                raise
            report(f"nic: {'stdin' if source == '-' else source}: {error}")
            exit_code = exit_code or error.exit_code
    context.exit(exit_code)


def report(line: str) -> None:
    """Write a line to stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def read(source: str) -> bytes:
    """All bytes of a file, or of stdin for `-`. Raises BadInput."""
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}") from error


def check_target(target: str, force: bool) -> None:
    """Refuse, before any work is done, to overwrite a file (OutputExists) or to fill a terminal (UsageError)."""
    if target == "-":
        if sys.stdout.isatty():
            raise UsageError("will not write a picture to a terminal: redirect stdout or name a file")
    elif os.path.isdir(target):
        raise OutputExists(f"{target} is a folder: use -o to write into it")
    elif os.path.isfile(target) and not force:
        raise OutputExists(f"{target} exists: use --force to overwrite it")


def write(target: str, data: bytes) -> None:
    """Write a whole file or nothing, with the folders it needs; `-` is stdout. Raises OutputExists if it cannot.

    The bytes go to a new file in the target's folder, which then takes the target's name: no reader sees half a file,
    and an interrupted command leaves the old one. Devices and pipes are written to directly.
    """
    if target == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = Path(os.path.realpath(target))
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".nic-{secrets.token_hex(8)}.part")
        try:
            with open(part, "xb") as file:
                file.write(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputExists(f"{target} cannot be written: {error.strerror}") from error
