"""Many files on a Ray cluster: each file is a task for one processor, on whichever machine has one free."""

import os
import socket
from collections.abc import Iterator
from typing import Any

from nic.cli.jobs import Done, Task, Tasks, attempt
from nic.errors import BadInput, NicError, UsageError

__all__ = ["outcomes"]

RETRIES = 2  # of a task whose process or machine was lost
AHEAD = 2  # tasks that wait for each processor, so that none is idle


def outcomes(tasks: Tasks, address: str) -> Iterator[tuple[str, Done | NicError | None]]:
    """As `nic.cli.jobs.outcomes`, on the cluster at an address ("auto": of this machine, or $RAY_ADDRESS).

    Its machines have the same nic and see the same files under the same names. Raises UsageError without a cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--ray needs Ray: pip install 'nic[ray]'") from error
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray itself tries for five minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster answers at {address}: start one with `ray start`") from error
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(attempt_in)
    waiting, running = list(tasks)[::-1], dict[Any, str]()
    try:
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting or running:
            while waiting and len(running) < most:
                source, task = waiting.pop()
                running[remote.remote(os.getcwd(), task)] = source
            (ready,), _ = ray.wait(list(running))
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayTaskError:  # a bug in nic, as it would come from a call here
                raise
            except ray.exceptions.RayError as error:
                outcome = NicError(f"lost {1 + RETRIES} times by the cluster ({type(error).__name__}), given up")
            yield running.pop(ready), outcome
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        ray.shutdown()


def attempt_in(folder: str, task: Task) -> Done | NicError | None:
    """`attempt` in the folder that relative names refer to."""
    try:
        os.chdir(folder)
    except OSError as error:
        return BadInput(f"{folder} is not on the machine {os.uname().nodename} of the cluster: {error.strerror}")
    return attempt(task)
