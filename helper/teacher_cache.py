"""The teacher's logits of every (image, view), kept on disk and shared by all runs that meet the same ones.

A random crop with a flip has a finite number V of views, so that a frozen teacher's answers to a data set of N images
are a finite table of N·V rows. It is filled as views are met.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset import Batch, MemoryLoader

from . import distributed
from .checkpoint import digest, write_json
from .errors import RunError, UserError
from .precision import Precision

VERSION = 1
FILL_BATCH = 500
Logits = Callable[[Tensor], Tensor]


def cache_facts(network: nn.Module, loader: MemoryLoader, precision: Precision) -> dict[str, Any]:
    """What a row of the table depends on: teacher, images, views and number format; plain data.

    Args:
        network: the teacher as it is run.
        loader: of the training set.
        precision: of the run.
    """
    return {
        "teacher": digest(network.state_dict()),
        "architecture": hashlib.sha256(repr(network).encode()).hexdigest(),
        **loader.facts(),
        "precision": precision.name,
    }


def _checksums(rows: np.ndarray) -> np.ndarray:
    """A byte from 1 to 255 for each row (n, C) of float16.

    It tells a row that was written from one that a crash of the machine left behind with its flag alone.
    """
    bits = rows.view(np.uint16).astype(np.uint64)
    odd = 2 * np.arange(bits.shape[1], dtype=np.uint64) + 1  # unequal weights, so that swapped values show
    return ((bits * odd).sum(1) % 255 + 1).astype(np.uint8)


def _note(text: str) -> None:
    print(f"note: teacher cache: {text}", file=sys.stderr, flush=True)


class LogitCache:
    """A table of float16 logits (N·V, C) with a state byte for each row, in files that several processes share.

    A row is written first and its state after it, the row's checksum. A row whose state is 0 or does not fit is
    missing: the teacher computes it. What is served is the float16 value, whether it was found or not, so that a run
    does not depend on what others have left in the cache.

    Args:
        root: folder of all caches (`--teacher_cache`); one below it, named by the key, holds this one.
        facts: see `cache_facts`; the key is their digest.
        samples: number of images N.
        views: number of views V.
        classes: number of classes C.

    Attributes:
        asked, found: rows served so far, and those of them that were in the cache.

    Raises:
        UserError: the disk has no room for the table, or the folder cannot be written.
    """

    def __init__(self, root: Path, facts: Mapping[str, Any], samples: int, views: int, classes: int):
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.header = {"version": VERSION, "key": key, "samples": samples, "views": views, "classes": classes}
        self.header |= {"facts": dict(facts)}
        self.samples, self.views, self.classes = samples, views, classes
        self.folder = root / key[:32]
        self.asked = self.found = 0
        self._warned = self._full = False
        try:
            self._open_or_create()
        except (OSError, RunError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--teacher_cache: {self.folder} cannot be used ({reason}); name another folder") from None
        self._values = np.memmap(self.folder / "logits.f16", np.float16, "r", shape=(samples * views, classes))
        self._state = np.memmap(self.folder / "state.u8", np.uint8, "r", shape=(samples * views,))
        # written through these and not through the maps: a full disk is then an error and no fatal signal
        self._values_file, self._state_file = (
            io.FileIO(self.folder / name, "r+") for name in ("logits.f16", "state.u8")
        )

    @property
    def size(self) -> int:
        """Bytes that the full table takes on disk."""
        return self.samples * self.views * (2 * self.classes + 1)

    def hit_rate(self) -> float:
        """Share of the rows served to all processes since the last call that were found; 0 where none was served."""
        asked, found = distributed.total(torch.tensor([self.asked, self.found])).tolist()
        self.asked = self.found = 0
        return found / asked if asked else 0.0

    def serve(self, batch: Batch, logits: Logits) -> Tensor:
        """As `serve_together`, of one batch: its logits (B, C)."""
        return self.serve_together([batch], logits)[0]

    def serve_together(self, batches: Sequence[Batch], logits: Logits) -> list[Tensor]:
        """Logits (B, C) of each batch, float32; the missing ones of all are computed and kept.

        They are computed so many at a time as the largest batch has, whatever batches they are of.

        Args:
            batches: of the loader whose facts the cache has.
            logits: gives float32 logits (n, C) of images (n, 3, H, W).
        """
        entries = np.concatenate([batch.entry.numpy() for batch in batches])
        sizes, device = [len(batch.entry) for batch in batches], batches[0].images.device
        rows = self._values[entries]
        state = self._state[entries]
        good = (state == _checksums(rows)) & rows.any(1)
        self._warn_of_damage(int(((state != 0) & ~good).sum()))
        self.asked, self.found = self.asked + len(rows), self.found + int(good.sum())
        missing = np.flatnonzero(~good)
        if not len(missing):
            return list(torch.from_numpy(rows).to(device, non_blocking=True).float().split(sizes))
        where = torch.from_numpy(missing).to(device)
        # an empty share of a step has an image, but no entry
        images = torch.cat([batch.images[:size] for batch, size in zip(batches, sizes, strict=True)])[where]
        fresh = torch.cat([logits(some) for some in images.split(max(sizes))])
        half = fresh.half()
        rows[missing] = half.cpu().numpy()
        self._keep(entries[missing], rows[missing])
        served = torch.from_numpy(rows).to(device).float()
        served[where] = torch.where(half.isfinite(), half.float(), fresh)
        return list(served.split(sizes))

    def fill(self, loader: MemoryLoader, logits: Logits, quiet: bool = False) -> None:
        """Compute every row that is missing, each process those of some views.

        Args:
            loader: of the training set.
            logits: as for `serve`.
            quiet: show no progress.
        """
        firsts = np.arange(self.samples) * self.views
        views = range(distributed.rank(), self.views, distributed.size())
        with tqdm(total=self.samples * len(views), desc="teacher cache", disable=quiet or None) as bar:
            for view in views:
                missing = np.flatnonzero(self._state[firsts + view] == 0)
                bar.update(self.samples - len(missing))
                for start in range(0, len(missing), FILL_BATCH):
                    index = torch.from_numpy(missing[start : start + FILL_BATCH])
                    self.serve(loader.batch(index, torch.full_like(index, view)), logits)
                    bar.update(len(index))
                if bar.disable and not quiet and view % 9 == 8:
                    print(f"teacher cache: {100 * (view + 1) / self.views:.0f} % filled", flush=True)
        distributed.meet()
        self.hit_rate()

    def _open_or_create(self) -> None:
        if self.folder.exists():
            problem = self._problem()
            if not problem:
                return
            self._set_aside(problem)
        self._create()

    def _problem(self) -> str:
        """What is wrong with the files that are there; empty where nothing is."""
        try:
            header = json.loads((self.folder / "header.json").read_text())
        except (OSError, ValueError):
            return "its header is missing or damaged"
        if header != self.header:
            return "its header belongs to another table or version"
        rows = self.samples * self.views
        for name, size in (("logits.f16", 2 * rows * self.classes), ("state.u8", rows)):
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return f"{name} is missing or has another size"
        return ""

    def _set_aside(self, problem: str) -> None:
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.damaged-{number}")).exists():
            number += 1
        self.folder.rename(aside)
        _note(f"{self.folder} is not used ({problem}); it is now {aside.name}, and a new one is begun")

    def _create(self) -> None:
        """Make the empty table under another name, then rename it: whoever finds it finds all of it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.parent).free
        if free < self.size:
            raise UserError(
                f"--teacher_cache: the table would take up to {self.size / 1e9:.2f} GB, and {self.folder.parent} has "
                f"{free / 1e9:.2f} GB free; name a folder on another disk"
            )
        made = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        rows = self.samples * self.views
        for name, size in (("logits.f16", 2 * rows * self.classes), ("state.u8", rows)):
            with open(made / name, "wb") as file:
                file.truncate(size)
        write_json(made / "header.json", self.header)
        try:
            made.rename(self.folder)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            # another process was faster: its table is as good
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or self._problem():
                raise

    def _keep(self, entries: np.ndarray, rows: np.ndarray) -> None:
        """Write rows and then their states; what does not fit into float16 or onto the disk is left out."""
        fits = np.isfinite(rows).all(1)
        entries, rows = entries[fits], rows[fits]
        if self._full:
            return
        width = 2 * self.classes
        try:
            for entry, row in zip(entries.tolist(), rows, strict=True):
                if os.pwrite(self._values_file.fileno(), row.tobytes(), entry * width) < width:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for entry, state in zip(entries.tolist(), _checksums(rows).tolist(), strict=True):
                os.pwrite(self._state_file.fileno(), bytes([state]), entry)
        except OSError as error:
            self._full = True
            _note(f"{self.folder} takes no more rows ({error.strerror}); the run goes on without keeping them")

    def _warn_of_damage(self, damaged: int) -> None:
        if damaged and not self._warned:
            self._warned = True
            _note(f"{self.folder} has damaged rows; they are computed again")
