"""How far the work on one picture has come, told to whoever watches.

Work is counted in steps: one network run over one cell, forwards and, in a search for better latents, backwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

__all__ = ["Watcher", "advance", "expect", "watched"]


class Watcher(Protocol):
    """Such as a tqdm bar."""

    total: float | None

    def update(self, n: float | None = 1) -> bool | None: ...


_watcher: ContextVar[Watcher | None] = ContextVar("_watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tells `watcher` of the work that is done in here."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def expect(steps: int) -> None:
    """What is about to be done takes at most so many steps."""
    if (watcher := _watcher.get()) is not None:  # a tqdm bar without a total has no truth value
        watcher.total = steps


def advance() -> None:
    """One step is done."""
    if (watcher := _watcher.get()) is not None:
        watcher.update(1)
