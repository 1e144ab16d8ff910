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
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset import Batch, MemoryLoader
from dataset.loader import fetch, send
from dataset.locks import alone

from . import distributed
from .checkpoint import digest, write_json
from .errors import RunError, UserError
from .precision import Precision

VERSION = 2
FILL_BATCH = 500
UNFINISHED = ".tmp"
ASKED = 4  # images whose logits tell networks apart
# relative, of these logits' norm: what devices, threads and TF32 may change; another function changes more
LARGEST_DIFFERENCE = 0.01
OTHER_NETWORK = "it is another network's"
Logits = Callable[[Tensor], Tensor]


def number_format(precision: Precision) -> str:
    """What a network's logits depend on besides weights and images, in words.

    That is more than the format's name: `fp32` is also what `auto` finds on a CPU without bfloat16, where batch norms
    are folded and operations fused, and a GPU may multiply float32 as TF32.
    """
    words = [precision.name]
    if precision.plain:
        words.append("plain")
    if precision.device.type == "cuda" and precision.dtype == torch.float32:
        kinds = {"matmul": torch.backends.cuda.matmul, "conv": torch.backends.cudnn}
        words += [f"tf32-{kind}" for kind, backend in kinds.items() if backend.allow_tf32]
    return " ".join(words)


def cache_facts(network: nn.Module, loader: MemoryLoader, precision: Precision) -> dict[str, Any]:
    """What a row of the table depends on: teacher, images, views and number format; plain data.

    Args:
        network: the teacher as it is run; it is moved to where the images are.
        loader: of the training set.
        precision: of the run.

    Returns:
        Facts that are the same for the same rows, and `logits`, which are so but for rounding: those of a few images.
    """
    return {
        "teacher": digest(network.state_dict()),
        "architecture": hashlib.sha256(repr(network).encode()).hexdigest(),
        **loader.facts(),
        "precision": number_format(precision),
        "logits": _first_logits(network, loader),
    }


@torch.no_grad()
def _first_logits(network: nn.Module, loader: MemoryLoader) -> list[list[float]]:
    """Float32 logits of the first images (n, C), in evaluation mode; what is not finite counts as 0.

    They tell apart networks that differ neither in their weights nor in words, but in their code.
    """
    index, training = torch.arange(min(ASKED, loader.samples)), network.training
    logits = network.to(loader.device).eval()(loader.batch(index, torch.zeros_like(index)).images)
    network.train(training)
    return logits.float().nan_to_num(0, 0, 0).tolist()


def _checksums(rows: np.ndarray) -> np.ndarray:
    """A byte from 1 to 255 for each row (n, C) of float16.

    It tells a row that was written from one that a crash of the machine left behind with its flag alone.
    """
    bits = rows.view(np.uint16).astype(np.uint64)
    odd = 2 * np.arange(bits.shape[1], dtype=np.uint64) + 1  # unequal weights, so that swapped values show
    return ((bits * odd).sum(1) % 255 + 1).astype(np.uint8)


def _note(text: str) -> None:
    print(f"note: teacher cache: {text}", file=sys.stderr, flush=True)


def _write(file: io.FileIO, data: bytes, place: int) -> None:
    """Write all of `data` from byte `place` on.

    Raises:
        OSError: it does not fit on the disk.
    """
    file.seek(place)
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class LogitCache:
    """A table of float16 logits (N·V, C) with a state byte for each row, in files that several processes share.

    A row is written first and its state after it, the row's checksum. A row whose state is 0 or does not fit is
    missing: the teacher computes it. What is served is the float16 value, whether it was found or not, so that a run
    does not depend on what others have left in the cache. A table that takes no rows, or no more, is only read.

    Args:
        root: folder of all caches (`--teacher_cache`); one below it, named by the key, holds this one. Further tables
            with that key, of networks that give other logits, have a number behind it.
        facts: see `cache_facts`; the key is the digest of all but the logits, without which networks are not compared.
        samples: number of images N.
        views: number of views V.
        classes: number of classes C.

    Attributes:
        asked, found: rows served so far, and those of them that were in the cache.

    Raises:
        UserError: the disk has no room for the table, or it can be neither read nor made.
    """

    def __init__(self, root: Path, facts: Mapping[str, Any], samples: int, views: int, classes: int):
        exact = {name: fact for name, fact in facts.items() if name != "logits"}
        key = hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()
        self.header = {"version": VERSION, "key": key, "samples": samples, "views": views, "classes": classes}
        self.header |= {"facts": exact}
        self._first = np.array(facts.get("logits", []))
        self.samples, self.views, self.classes = samples, views, classes
        self.folder = root / key[:32]
        self.asked = self.found = 0
        self._warned = self._full = False
        self._pending: Callable[[], None] | None = None
        try:
            self._open_in_turn()
        except (OSError, RunError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--teacher_cache: {self.folder} cannot be used ({reason}); name another folder") from None

    @property
    def size(self) -> int:
        """Bytes that the full table takes on disk."""
        return sum(self._files.values())

    @property
    def _files(self) -> dict[str, int]:
        """Names of the files of rows and of states, and their bytes."""
        rows = self.samples * self.views
        return {"logits.f16": 2 * rows * self.classes, "state.u8": rows}

    def hit_rate(self) -> float:
        """Share of the rows served to all processes since the last call that were found; 0 where none was served."""
        asked, found = distributed.total(torch.tensor([self.asked, self.found])).tolist()
        self.asked = self.found = 0
        return found / asked if asked else 0.0

    def serve(self, batch: Batch, logits: Logits) -> Tensor:
        """As `serve_together`, of one batch: its logits (B, C); what was missing is written."""
        served = self.serve_together([batch], logits)[0]
        self.write_pending()
        return served

    def serve_together(self, batches: Sequence[Batch], logits: Logits) -> list[Tensor]:
        """Logits (B, C) of each batch, float32; the missing ones of all are computed and kept.

        They are computed so many at a time as the largest batch has, whatever batches they are of. They are written by
        the next call, or by `write_pending`, so that a GPU that computes them is not waited for.

        Args:
            batches: of the loader whose facts the cache has.
            logits: gives float32 logits (n, C) of images (n, 3, H, W).
        """
        self.write_pending()
        entries = np.concatenate([batch.entry.numpy() for batch in batches])
        sizes, device = [len(batch.entry) for batch in batches], batches[0].images.device
        rows, good = self._look_up(entries)
        self.asked, self.found = self.asked + len(rows), self.found + int(good.sum())
        missing = np.flatnonzero(~good)
        if not len(missing):
            return list(send(torch.from_numpy(rows), device).float().split(sizes))
        where = send(torch.from_numpy(missing), device)
        # an empty share of a step has an image, but no entry
        images = torch.cat([batch.images[:size] for batch, size in zip(batches, sizes, strict=True)])[where]
        fresh = torch.cat([logits(some) for some in images.split(max(sizes))])
        half = fresh.half()
        arrived = fetch(half)
        self._pending = lambda: self._keep(entries[missing], arrived().numpy())
        served = send(torch.from_numpy(rows), device).float()
        served[where] = torch.where(half.isfinite(), half.float(), fresh)
        return list(served.split(sizes))

    def write_pending(self) -> None:
        """Write the rows of the last call that are not written yet."""
        write, self._pending = self._pending, None
        if write:
            write()

    def fill(self, loader: MemoryLoader, logits: Logits, quiet: bool = False) -> None:
        """Compute every row that is missing, each process those of some views, while the table takes rows.

        Args:
            loader: of the training set.
            logits: as for `serve`.
            quiet: show no progress.
        """
        views = range(distributed.rank(), self.views, distributed.size())
        with tqdm(total=self.samples * len(views), desc="teacher cache", disable=quiet or None) as bar:
            for view in views:
                if not self._fill_view(view, loader, logits, bar):
                    _note(f"{self.folder} is filled no further; the run computes what is missing")
                    break
                if bar.disable and not quiet and view % 9 == 8:
                    print(f"teacher cache: {100 * (view + 1) / self.views:.0f} % filled", flush=True)
        distributed.meet()
        self.hit_rate()

    def _look_up(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n, C) of entries (n,), and which of them (n,) can be believed."""
        # in this order: a row that another process writes in between has no state yet, and not one without its row
        state = self._state[entries]
        rows = self._values[entries]
        good = (state == _checksums(rows)) & rows.any(1)
        self._warn_of_damage(int(((state != 0) & ~good).sum()))
        return rows, good

    def _fill_view(self, view: int, loader: MemoryLoader, logits: Logits, bar: tqdm) -> bool:
        """Compute what is missing of a view of all images; False where the table did not take it."""
        _, good = self._look_up(np.arange(self.samples) * self.views + view)
        missing = np.flatnonzero(~good)
        bar.update(self.samples - len(missing))
        for start in range(0, len(missing), FILL_BATCH):
            if self._full:
                break
            index = torch.from_numpy(missing[start : start + FILL_BATCH])
            self.serve(loader.batch(index, torch.full_like(index, view)), logits)
            bar.update(len(index))
        return not (self._full and len(missing))

    def _open_in_turn(self) -> None:
        """Open the table, of several processes of a run in the main one first: its notes are the ones that are read.

        Raises:
            OSError, RunError: it cannot be read or made.
            UserError: there is no room for it.
        """
        if distributed.is_main():
            self._open()
        distributed.meet()
        if not distributed.is_main():
            self._open()

    def _open(self) -> None:
        """Find or make the table and open its files; one that cannot be written is only read."""
        root = self.folder.parent
        if not root.exists():
            self._check_room()
            root.mkdir(parents=True, exist_ok=True)
        with alone(root) as locked:
            # what is being made is made in this block: what is there now was left by a process that was killed in it
            for remains in root.glob(f".*{UNFINISHED}") if locked else ():
                shutil.rmtree(remains, ignore_errors=True)
            self._find_or_create()
        values, state = (self.folder / name for name in self._files)
        self._values = np.memmap(values, np.float16, "r", shape=(self.samples * self.views, self.classes))
        self._state = np.memmap(state, np.uint8, "r", shape=(self.samples * self.views,))
        try:
            # written through these and not through the maps: a full disk is then an error and no fatal signal
            self._values_file, self._state_file = io.FileIO(values, "r+"), io.FileIO(state, "r+")
        except OSError as error:
            self._stop_keeping(error)

    def _find_or_create(self) -> None:
        """Set `folder` to the table of this network, after what is damaged has been set aside."""
        first, number = self.folder, 1
        while self.folder.exists():
            problem = self._problem()
            if not problem:
                return
            if problem == OTHER_NETWORK:
                number += 1
                self.folder = first.with_name(f"{first.name}-{number}")
            else:
                self._set_aside(problem)
        self._create()

    def _problem(self) -> str:
        """What is wrong with the files that are there; empty where nothing is.

        Raises:
            OSError: they cannot be read, which does not mean that they are damaged.
        """
        try:
            header = json.loads((self.folder / "header.json").read_text())
            logits = np.array(header.pop("logits", []), np.float64)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
            return "its header is missing or damaged"
        if header != self.header or logits.shape != self._first.shape:
            return "its header belongs to another table or version"
        if np.linalg.norm(logits - self._first) > LARGEST_DIFFERENCE * np.linalg.norm(self._first):
            return OTHER_NETWORK
        for name, size in self._files.items():
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

    def _check_room(self) -> None:
        """Refuse a disk that the full table would not fit on.

        Raises:
            UserError: it has less room.
        """
        root = self.folder.parent
        free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.exists())).free
        if free < self.size:
            raise UserError(
                f"--teacher_cache: the table would take up to {self.size / 1e9:.2f} GB, and {root} has "
                f"{free / 1e9:.2f} GB free; name a folder on another disk"
            )

    def _create(self) -> None:
        """Make the empty table in another place, then move it: whoever finds it finds all of it."""
        self._check_room()
        name = self.folder.name
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=UNFINISHED, dir=self.folder.parent) as place:
            made = Path(place) / name  # not the place itself, which is closed to other users
            made.mkdir()
            for file_name, size in self._files.items():
                with open(made / file_name, "wb") as file:
                    file.truncate(size)
            write_json(made / "header.json", {**self.header, "logits": self._first.tolist()})
            try:
                made.rename(self.folder)
            except OSError as error:
                # another process was faster, where there are no locks: its table is as good
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or self._problem():
                    raise

    def _keep(self, entries: np.ndarray, rows: np.ndarray) -> None:
        """Write rows and then their states; what does not fit into float16 or onto the disk is left out."""
        if self._full:
            return
        fits = np.isfinite(rows).all(1)
        entries, rows = entries[fits], rows[fits]
        try:
            for entry, row in zip(entries.tolist(), rows, strict=True):
                _write(self._values_file, row.tobytes(), entry * 2 * self.classes)
            for entry, state in zip(entries.tolist(), _checksums(rows).tolist(), strict=True):
                _write(self._state_file, bytes([state]), entry)
        except OSError as error:
            self._stop_keeping(error)

    def _stop_keeping(self, error: OSError) -> None:
        self._full = True
        _note(f"{self.folder} takes no more rows ({error.strerror}); the run goes on without keeping them")

    def _warn_of_damage(self, damaged: int) -> None:
        if damaged and not self._warned:
            self._warned = True
            _note(f"{self.folder} has damaged rows; they are computed again")
