"""Files that are written as a whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nic.errors import BadOutput

__all__ = ["replacing", "unwritable"]


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
