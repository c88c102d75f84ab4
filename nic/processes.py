"""Work in several processes that end with what they work for."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

__all__ = ["pool_of"]


@contextmanager
def pool_of(count: int, start: Callable[..., Any], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of ``count`` new processes, each of which calls ``start`` first.

    Work that has not begun when the pool is left is dropped; an exception ends what has begun, too.
    """
    pool = ProcessPoolExecutor(count, get_context("spawn"), start, arguments)
    try:
        yield pool
    except BaseException:  # interrupted, or no longer wanted
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
