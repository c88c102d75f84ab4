"""Files one after another or several at a time: what becomes of each, progress bars, and lines above them."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import click

from nic.errors import NicError

__all__ = ["Done", "Task", "Tasks", "attempt", "cores", "for_each", "hides_bars", "outcomes", "picture_bar", "report"]


@dataclass(frozen=True)
class Done:
    """What became of one file: lines for stderr, how many pixels it has, and whether its output was there already."""

    lines: tuple[str, ...] = ()
    pixels: int = 0
    kept: bool = False


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
    exit_code, failed, kept, pixels, start = 0, 0, 0, 0, time.monotonic()
    bar = tqdm(total=len(tasks), unit="file", disable=len(tasks) < 2 or not sys.stderr.isatty())
    with bar:
        for source, outcome in on_cluster(tasks, ray) if ray else outcomes(tasks, jobs):
            if isinstance(outcome, NicError):
                if context.find_root().params["debug"]:
                    raise outcome
                report(f"nic: {'stdin' if source == '-' else source}: {outcome}")
                exit_code, failed = exit_code or outcome.exit_code, failed + 1
            elif outcome is not None:
                pixels, kept = pixels + outcome.pixels, kept + outcome.kept
                for line in outcome.lines:
                    report(line)
            bar.update()
    if kept and not context.params.get("quiet"):
        report(f"nic: {kept} of {len(tasks)} outputs were there already (--resume)")
    if len(tasks) > 1 and pixels and not context.params.get("quiet"):
        seconds = time.monotonic() - start
        coded = len(tasks) - failed - kept
        files = f"{coded} of {len(tasks)}" if coded < len(tasks) else f"{coded}"
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
    from concurrent.futures import as_completed
    from concurrent.futures.process import BrokenProcessPool

    from nic.processes import pool_of

    os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // jobs))  # for the processes that now start
    undone = dict(tasks)
    with pool_of(min(jobs, len(tasks)), signal.signal, signal.SIGTERM, signal.default_int_handler) as pool:
        futures = {pool.submit(attempt_in_process, task): source for source, task in tasks}
        for future in as_completed(futures):
            with suppress(BrokenProcessPool):
                outcome = future.result()
                del undone[futures[future]]
                yield futures[future], outcome
    rest = list(undone.items())
    if rest and jobs == 1:
        advice = "perhaps for lack of memory: in compressing, --effort 1 takes less"
        yield rest.pop(0)[0], NicError(f"its process was killed, {advice}")
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
