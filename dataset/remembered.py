"""What was found out about image files once and is kept beside them."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "kd_dataset.json"


class Remembered:
    """Plain data by key in a small JSON file beside a data set, or elsewhere where its folder cannot be written.

    An unreadable file counts as empty. What cannot be kept is found out anew the next time. Nothing is written before
    `write`: a data set that is refused is left as it was.

    Args:
        root: folder of the data set.
        fallback: the other file; None for none.
    """

    def __init__(self, root: Path, fallback: Path | None = None):
        self.files = [root / NAME, *([fallback] if fallback else [])]
        self.found: dict[str, Any] = {}
        self.about: list[str] = []

    def get(self, key: str) -> Any:
        """What was written under a key, None where nothing was."""
        return next((known[key] for known in map(_read, self.files) if key in known), None)

    def put(self, key: str, value: Any, about: str) -> None:
        """Keep a value from the next `write` on.

        Args:
            key: under which it is got.
            value: plain data.
            about: what it tells, in the plural.
        """
        self.found[key] = value
        self.about.append(about)

    def write(self) -> list[str]:
        """Write what was put; gives notes for the user, of what could not be written anywhere."""
        if not self.found or any(_write(file, {**_read(file), **self.found}) for file in self.files):
            return []
        where = self.files[-1]
        return [f"{about} cannot be kept in {where}; they are found out anew at each start" for about in self.about]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, content: dict[str, Any]) -> bool:
    made = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(json.dumps(content, indent=1), encoding="utf-8")
        made.replace(file)
    except OSError:
        with suppress(OSError):
            made.unlink()
        return False
    return True
