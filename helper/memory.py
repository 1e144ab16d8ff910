"""Figures that are measured once and kept in JSON files, which may be deleted: they are then measured anew.

Of several processes, the main one alone reads and writes the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import distributed
from .checkpoint import write_json


def recall(memory: Path, key: str) -> Any:
    """The figure that a file has under a key, on all processes; None where there is none, or no readable file."""
    return distributed.share(_read(memory).get(key) if distributed.is_main() else None)


def remember(memory: Path, key: str, figure: Any) -> None:
    """Keep a figure under a key, beside what the file has already.

    Raises:
        RunError: it cannot be written.
    """
    if distributed.is_main():
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {**_read(memory), key: figure})


def _read(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
