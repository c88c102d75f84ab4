"""Files of the command line: `-` for stdin and stdout, output names, writing all or nothing."""

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import cast

from nic.cli.jobs import report
from nic.errors import BadInput, BadOutput, UsageError
from nic.output import replacing, unwritable

__all__ = ["check_target", "expand", "nic_files", "plan", "read", "stdin_blocks", "write"]


def plan(paths: Sequence[str], folder: str | None, suffix: str, wanted: Collection[str]) -> dict[str, str]:
    """Source → target for the arguments IN OUT, or IN... with -o FOLDER.

    Into a folder, each target keeps its source's name with `suffix`, in place of its own (a.nic and a.png.nic both
    become a.png) or, where two sources would have one target, behind it; from a folder come, recursively and under
    their relative names, the files whose suffix in lower case is in `wanted`.

    A folder without such files becomes a source without a target (""), which ``read`` refuses. Raises UsageError for
    contradictory arguments, two sources with one target, a source that is its own target, or a folder that is called
    like a file, BadOutput for an output folder that is none.
    """
    from PIL import Image

    from nic.media import SUFFIXES

    check_names(paths)
    if folder is None:
        if len(paths) == 2 and os.path.isdir(paths[1]):
            raise UsageError(f"{paths[1]} is a folder: write -o before it")
        if len(paths) != 2 or os.path.isdir(paths[0]):
            raise UsageError("give IN and OUT, or any number of inputs and folders with -o FOLDER")
        if "-" not in paths:
            check_apart(*paths)
        return {paths[0]: paths[1]}
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise BadOutput(f"{folder} is a file: -o takes a folder")
    files = {suffix, *Image.registered_extensions(), *SUFFIXES}
    if not os.path.isdir(folder) and (folder == "-" or Path(folder).suffix.lower() in files):
        raise UsageError(f"-o takes a folder, and {folder} looks like a file: give IN and OUT, without -o")
    if "-" in paths:
        raise UsageError("stdin (-) has no name: give IN and OUT instead of -o")
    found = [(source, Path(folder, relative)) for path in paths for source, relative in expand_some(Path(path), wanted)]
    empty = {source: "" for source, _ in found if os.path.isdir(source)}
    found = [(source, place) for source, place in found if source not in empty]
    names = Counter(renamed(place, suffix) for _, place in found)
    targets: dict[str, str] = {}
    sources: dict[str, str] = {}
    for source, place in found:
        shared = names[renamed(place, suffix)] > 1
        target = str(place.with_name(place.name + suffix) if shared else renamed(place, suffix))
        if target in sources:
            raise UsageError(f"{sources[target]} and {source} would both become {target}")
        check_apart(source, target)
        targets[source], sources[target] = target, source
    return targets | empty


def check_names(paths: Sequence[str]) -> None:
    """Raises UsageError for an empty name, which would stand for the current folder."""
    if not all(paths):
        raise UsageError("one of the names is empty")


def renamed(path: Path, suffix: str) -> Path:
    """With `suffix` in place of its own, or without its own if `suffix` stands before that."""
    inner = path.with_suffix("")
    return inner if inner.suffix.lower() == suffix else inner.with_name(inner.name + suffix)


def check_apart(source: str, target: str) -> None:
    """Raises UsageError where they are one file, which --force must not replace: what nic writes has lost detail."""
    if os.path.isfile(source) and os.path.isfile(target) and os.path.samefile(source, target):
        raise UsageError(f"{source} would be overwritten by what is made of it: name another output")


def expand(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, Path]]:
    """(source, name relative to the output folder) of a file, or of the wanted files in a folder.

    Raises BadInput for a folder without any.
    """
    if not os.path.isdir(path):  # pathlib's raises for names that are too long, and behind folders that are closed
        yield str(path), Path(path.name)
        return
    files = sorted(file for file in path.rglob("*") if os.path.isfile(file))
    found = [file for file in files if file.suffix.lower() in wanted]
    if not found:
        raise BadInput(f"{path}: no file in it has one of the suffixes {' '.join(sorted(wanted))}")
    if len(found) < len(files):
        report(f"nic: {path}: {len(files) - len(found)} file(s) with other suffixes are left out")
    for file in found:
        yield str(file), file.relative_to(path)


def expand_some(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, Path]]:
    """The same; of a folder without any, the folder itself."""
    try:
        yield from expand(path, wanted)
    except BadInput:
        yield str(path), path


def nic_files(paths: Sequence[str]) -> list[str]:
    """The paths as they are, for a folder the .nic files in it, or if there are none the folder itself."""
    check_names(paths)
    kept = ([(path, "")] if path == "-" else expand_some(Path(path), {".nic"}) for path in paths)
    return [source for found in kept for source, _ in found]


def read(source: str) -> bytes:
    """All bytes of a file, or of stdin for `-`. Raises BadInput, also for a folder: those with files are expanded."""
    if os.path.isdir(source):
        raise BadInput("no file in this folder has a suffix that is read here")
    try:
        return b"".join(stdin_blocks()) if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}") from error


def stdin_blocks() -> Iterator[bytes]:
    """The bytes of stdin as they come in. Raises BadInput."""
    if sys.stdin is None:
        raise BadInput("cannot be read: it is closed")
    stdin = cast(BufferedReader, sys.stdin.buffer)
    try:
        while block := stdin.read1(2**16):
            yield block
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}") from error


def check_target(target: str, force: bool) -> None:
    """Refuse, before any work is done, to overwrite a file (BadOutput) or to fill a terminal (UsageError)."""
    if target == "-":
        if sys.stdout is None:
            raise BadOutput("stdout cannot be written: it is closed")
        if sys.stdout.isatty():
            raise UsageError("will not write a picture to a terminal: redirect stdout or name a file")
    elif os.path.isdir(target):
        raise BadOutput(f"{target} is a folder: use -o to write into it")
    elif os.path.isfile(target) and not force:
        raise BadOutput(f"{target} exists: use --force to overwrite it")


def write(target: str, data: bytes) -> None:
    """Write a whole file or nothing, with the folders it needs; `-` is stdout. Raises BadOutput if it cannot.

    The bytes go to a new file in the target's folder, which then takes the target's name: no reader sees half a file,
    and an interrupted command leaves the old one. Devices and pipes are written to directly.
    """
    if target == "-":
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise  # click ends the command without a word
        except OSError as error:
            raise unwritable("stdout", error) from error
        return
    with replacing(target) as part:
        part.write_bytes(data)
