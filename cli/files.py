"""Files of the command line: `-` for stdin and stdout, output names, writing all or nothing, several files in a row."""

import math
import os
import secrets
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import click

from nic.errors import BadInput, BadOutput, NicError, UsageError

__all__ = [
    "Done",
    "Real",
    "check_options",
    "check_target",
    "cores",
    "device_option",
    "effort_option",
    "expand",
    "for_each",
    "frame_range",
    "hides_bars",
    "jobs_option",
    "nic_files",
    "picture_bar",
    "plan",
    "ray_option",
    "read",
    "replacing",
    "report",
    "resume_option",
    "stdin_blocks",
    "unwritable",
    "write",
]


class Real(click.FloatRange):
    """A finite number in a range; click's own type takes nan for one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


def check_options(folder: str | None, force: bool, resume: bool, ray: str | None) -> None:
    """Raises UsageError for options that contradict each other."""
    if force and resume:
        raise UsageError("--force overwrites what --resume leaves as it is: give one of them")
    if ray and folder is None:
        raise UsageError("--ray is for many files: give -o FOLDER")


def plan(paths: Sequence[str], folder: str | None, suffix: str, wanted: Collection[str]) -> dict[str, str]:
    """Source → target for the arguments IN OUT, or IN... with -o FOLDER.

    Into a folder, each target keeps its source's name with `suffix`, in place of its own (a.nic and a.png.nic both
    become a.png) or, where two sources would have one target, behind it; from a folder come, recursively and under
    their relative names, the files whose suffix in lower case is in `wanted`.

    Raises UsageError for contradictory arguments, two sources with one target, a source that is its own target, or a
    folder that is called like a file, BadInput for a folder without files, BadOutput for an output folder that is
    none.
    """
    from PIL import Image

    from nic.media import SUFFIXES

    if folder is None:
        if len(paths) != 2 or any(os.path.isdir(path) for path in paths):
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
    found = [(source, Path(folder, relative)) for path in paths for source, relative in expand(Path(path), wanted)]
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
    return targets


def renamed(path: Path, suffix: str) -> Path:
    """With `suffix` in place of its own, or without its own if `suffix` stands before that."""
    inner = path.with_suffix("")
    return inner if inner.suffix.lower() == suffix else inner.with_name(inner.name + suffix)


def check_apart(source: str, target: str) -> None:
    """Raises UsageError where they are one file, which --force must not replace: what nic writes has lost detail."""
    if os.path.isfile(source) and os.path.isfile(target) and os.path.samefile(source, target):
        raise UsageError(f"{source} would be overwritten by what is made of it: name another output")


def expand(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, Path]]:
    """(source, name relative to the output folder) of a file, or of the wanted files in a folder."""
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


def nic_files(paths: Sequence[str]) -> list[str]:
    """The paths as they are, for a folder the .nic files in it; raises BadInput for a folder without any."""
    return [source for path in paths for source, _ in ([(path, "")] if path == "-" else expand(Path(path), {".nic"}))]


@dataclass(frozen=True)
class Done:
    """What became of one file: lines for stderr, and how many pixels it has."""

    lines: tuple[str, ...] = ()
    pixels: int = 0


Task = Callable[[], Done | None]
Tasks = Sequence[tuple[str, Task]]  # each with its source


def for_each(tasks: Tasks, jobs: int = 1, ray: str | None = None) -> None:
    """Do the task of each source, with a progress bar on a terminal where there are several.

    A NicError is reported and the rest goes on; the first one's exit code ends the command after the last source. With
    several jobs, each runs in a process of its own with its share of the cores, and tasks must be picklable; so they
    must with `ray`, the address of a Ray cluster that does the work.
    """
    from tqdm import tqdm

    from nic.cli.cluster import outcomes as on_cluster

    context = click.get_current_context()
    exit_code, failed, pixels, start = 0, 0, 0, time.monotonic()
    bar = tqdm(total=len(tasks), unit="file", disable=len(tasks) < 2 or not sys.stderr.isatty())
    with bar:
        for source, outcome in on_cluster(tasks, ray) if ray else outcomes(tasks, jobs):
            if isinstance(outcome, NicError):
                if context.find_root().params["debug"]:
                    raise outcome
                report(f"nic: {'stdin' if source == '-' else source}: {outcome}")
                exit_code, failed = exit_code or outcome.exit_code, failed + 1
            elif outcome is not None:
                pixels += outcome.pixels
                for line in outcome.lines:
                    report(line)
            bar.update()
    if len(tasks) > 1 and pixels and not context.params.get("quiet"):
        seconds = time.monotonic() - start
        files = f"{len(tasks) - failed} of {len(tasks)}" if failed else f"{len(tasks)}"
        report(f"{files} files, {pixels / 1e6:.1f} Mpx in {seconds:.1f} s: {pixels / 1e6 / seconds:.2f} Mpx/s")
    context.exit(exit_code)


def outcomes(tasks: Tasks, jobs: int) -> Iterator[tuple[str, Done | NicError | None]]:
    """Each source with what its task returned, or with its error, in the order in which they end."""
    if jobs == 1 or len(tasks) == 1:
        yield from ((source, attempt(task)) for source, task in tasks)
    else:
        yield from outcomes_of_processes(tasks, jobs)


def outcomes_of_processes(tasks: Tasks, jobs: int) -> Iterator[tuple[str, Done | NicError | None]]:
    """The same, each in one of ``jobs`` processes.

    Where one is killed, all that were not done yet are tried again by half as many; where there was only one, the
    first of these was the reason.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import active_children, get_context

    os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // jobs))  # for the processes that now start
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)), get_context("spawn"), signal.signal, (signal.SIGTERM, signal.default_int_handler)
    )
    undone = dict(tasks)
    try:
        futures = {pool.submit(attempt_in_process, task): source for source, task in tasks}
        for future in as_completed(futures):
            with suppress(BrokenProcessPool):
                outcome = future.result()
                del undone[futures[future]]
                yield futures[future], outcome
    except BaseException:  # interrupted, or no longer wanted
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    rest = list(undone.items())
    if rest and jobs == 1:
        yield rest.pop(0)[0], NicError("its process was killed, perhaps for lack of memory: use fewer jobs")
    if rest:
        yield from outcomes_of_processes(rest, max(1, jobs // 2))


def attempt_in_process(task: Task) -> Done | NicError | None:
    """`attempt`; an interrupted process ends, instead of going on with the next task that it has been given."""
    try:
        return attempt(task)
    except KeyboardInterrupt:
        os._exit(1)  # what the task has left unfinished is gone by now


def attempt(task: Task) -> Done | NicError | None:
    """What a task returns, or the NicError that it raises; one, too, where memory does not suffice."""
    try:
        return task()
    except NicError as error:
        return error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):  # what torch says of processors and GPUs
            raise
        return NicError("not enough memory for it: fewer files at a time or, in compressing, --effort 1 take less")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report(line: str) -> None:
    """Write a line to stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def hides_bars(quiet: bool) -> bool:
    """Whether there are to be no progress bars: in a quiet command, off a terminal, and in one process of several."""
    from multiprocessing import parent_process

    return quiet or not sys.stderr.isatty() or parent_process() is not None


@contextmanager
def picture_bar(source: str, quiet: bool) -> Iterator[None]:
    """A progress bar for the coding in here, if it takes more than a second."""
    from tqdm import tqdm

    from nic.progress import watched

    with tqdm(desc=source, unit="step", delay=1, leave=False, disable=hides_bars(quiet)) as bar, watched(bar):
        yield


def read(source: str) -> bytes:
    """All bytes of a file, or of stdin for `-`. Raises BadInput."""
    try:
        return b"".join(stdin_blocks()) if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}") from error


def frame_range(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int | None]:
    """A:B as the first frame and the one behind the last."""
    try:
        first, last = (text or ":").split(":")
        return int(first or 0), int(last) if last else None
    except ValueError:
        raise click.BadParameter(f"{text!r} is not A:B: two whole numbers, each of which may be left out") from None


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the networks run; auto is cuda where there is such a GPU.",
)
jobs_option = click.option(
    "-j", "--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Files at a time."
)


def effort_option(help: str) -> Callable[..., Any]:
    """-e, 1 to 9."""
    return click.option(
        "-e", "--effort", type=click.IntRange(1, 9), default=4, show_default=True, metavar="N", help=help
    )


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


ray_option = click.option(
    "--ray",
    metavar="ADDRESS",
    help="Spread the files over the Ray cluster at ADDRESS, or auto; its machines must share the files' folders.",
)
resume_option = click.option(
    "--resume", is_flag=True, help="Leave files that exist as they are: goes on where a command was interrupted."
)


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


@contextmanager
def replacing(target: str) -> Iterator[Path]:
    """A new file to write, which takes the target's name at the end if nothing is raised; devices as they are.

    Makes the folders that it needs. Raises BadOutput where it cannot be written.
    """
    path = Path(os.path.realpath(target))
    try:
        if os.path.exists(target) and not os.path.isfile(target):
            yield Path(target)  # not `path`: where /dev/stdout leads, there is no name
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".nic-{secrets.token_hex(8)}.part")
        try:
            yield part
            if path.exists():
                shutil.copymode(path, part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(target, error) from error


def unwritable(target: str, error: OSError) -> BadOutput:
    """What to raise where writing, or making the folders for it, has raised an OSError."""
    reason = f"{error.filename} is no folder" if isinstance(error, FileExistsError) else error.strerror
    return BadOutput(f"{target} cannot be written: {reason}")
