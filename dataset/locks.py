"""One process at a time, of all that use a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Let one process at a time through the block, of all that ask for the same folder.

    Where the system or the file system knows no locks of folders, it lets all through and gives False.
    """
    if fcntl is None:
        yield False
        return
    opened, locked = os.open(folder, os.O_RDONLY), False
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
            locked = True
        yield locked
    finally:
        os.close(opened)
