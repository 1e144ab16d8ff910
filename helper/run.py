"""A run's folder: what it writes, when, and how it is found and resumed."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import statistics
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import distributed
from .checkpoint import load_checkpoint, save_checkpoint, write_file, write_json
from .errors import RunError, UserError, at_end, set_resume_hint, uninterrupted
from .logger import Events, Progress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# options that may differ between a run and its continuation: they do not change what is learned
INCIDENTAL = (
    *("resume", "quiet", "device", "num_workers", "print_freq", "tb_freq", "save_freq", "compile"),
    *("teacher_cache", "teacher_cache_fill", "processes", "sync_bn"),
    *("data_folder", "save_folder", "path_t"),
)
# what runs of older versions, which had no such options, did
FORMERLY = {"processes": 1, "sync_bn": False, "lr_schedule": "step"}
FORMERLY |= {"rand_augment": 0.0, "random_erasing": 0.0, "rotation": 0.0}
UNKNOWN_FORMERLY = ("contents",)  # what these did not note
WHY = {
    "contents": "the images, their classes or their number are others now",
    "precision": "--precision auto finds another format here; go on where it finds the first one",
}
_locked: set[int] = set()  # descriptors of the folders of this process's runs
RUNNING = ("epoch", "lr", "seconds", "images_per_second")  # of an epoch: the summary has these of the whole run
LONGEST_NAME = 200
WRITTEN = ("*.pth", "options.json", "metrics.jsonl", "summary.json")  # a run's files


def safe_name(text: str) -> str:
    """`text` in characters that are safe in a file name everywhere, cut with a checksum where it is too long."""
    name = re.sub(r"[^A-Za-z0-9.+=_-]+", "-", text).strip(".")
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}_{zlib.crc32(name.encode()):08x}"


def _unlock(folder: int) -> None:
    _locked.discard(folder)
    os.close(folder)


def _leave_locks() -> None:
    """In a forked process, a loader's worker for instance: it would hold them for as long as it outlives the run."""
    for folder in _locked:
        os.close(folder)
    _locked.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_locks)


class Run:
    """One run: its folder and all files in it (see the README's table of outputs).

    Of several processes, the main one alone reads and writes them; the others have the figures.

    Args:
        folder: of the run.
        events_folder: of its TensorBoard events.
        model: name of the trained network, in the names of its checkpoints.
        epochs: number of epochs.
        seed: of weights, order and views.
        split: what every epoch is measured on, and the best one chosen by: `test`, or `val`, held-out training
            images.
    """

    def __init__(
        self, folder: Path, events_folder: Path, model: str, epochs: int, seed: int, split: str = "test"
    ) -> None:
        self.folder, self.events_folder, self.model, self.split = folder, events_folder, model, split
        self.epochs, self.seed = epochs, seed
        self.input_size: int | None = None  # of a network that has one of its own; goes with its weights
        self.options: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []
        self.best_acc, self.best_epoch = -1.0, 0  # below any accuracy
        self.facts: dict[str, Any] = {}
        self.events: Events | None = None

    def done_epochs(self, stage: str = "") -> int:
        """Number of epochs of a stage, or of the main training, that are saved."""
        return sum(row.get("stage", "") == stage for row in self.history)

    @property
    def finished(self) -> bool:
        """Whether the run's summary is written."""
        return os.path.exists(self.folder / "summary.json")

    @property
    def resumable(self) -> bool:
        """Whether there is something to resume."""
        return os.path.exists(self.folder / "resume.pth") and not self.finished

    def refuse_overwriting(self, resume: bool) -> None:
        """Leave a run that is already there alone, unless it is to be resumed.

        Raises:
            UserError: the folder holds a run and `resume` is off.
        """
        if distributed.is_main() and not resume and (self.finished or self.resumable):
            state = "a finished" if self.finished else "an unfinished"
            raise UserError(
                f"{self.folder} holds {state} run: --resume goes on with it, --trial names another; or delete it"
            )

    def open(self, options: Mapping[str, Any]) -> None:
        """Make the folder and write `options.json`, or check it where a run is resumed.

        Args:
            options: the resolved configuration, plain data.

        Raises:
            UserError: the run was started with other options, or the folder cannot be made or written; then nothing is
                left behind. Or another process is at work there.
        """
        self.options = dict(options)
        distributed.refuse_differences({key: value for key, value in options.items() if key not in INCIDENTAL})
        if distributed.is_main():
            if self.finished or self.resumable:
                self._keep_out_others()
                self._check_options()
            else:
                self._make_folder()
        self.events = None if self.finished else Events(self.events_folder if distributed.is_main() else None)
        set_resume_hint(resume_command())

    def _check_options(self) -> None:
        try:
            before = json.loads((self.folder / "options.json").read_text())
            if not isinstance(before, dict):
                raise ValueError
        except (OSError, ValueError):
            raise UserError(f"{self.folder}/options.json is missing or damaged; delete the folder") from None
        ignored = {*INCIDENTAL, *(key for key in UNKNOWN_FORMERLY if key not in before)}
        if self.finished:  # nothing is computed any more; what the user asks for is in the folder's name
            ignored.add("precision")
        for key in sorted({*before, *self.options} - ignored):
            old, new = before.get(key, FORMERLY.get(key)), self.options.get(key)
            if old != new:
                why = f" ({WHY[key]})" if key in WHY else ""
                raise UserError(f"--resume: {self.folder} was started with {key} = {old}, not {new}{why}")

    def _make_folder(self) -> None:
        created = next((p for p in reversed([self.folder, *self.folder.parents]) if not os.path.exists(p)), None)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._keep_out_others()
            write_json(self.folder / "options.json", self.options)
        except (OSError, RunError) as error:
            if created and os.path.exists(created):
                shutil.rmtree(created, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"cannot write to {self.folder} ({reason}); choose another --save_folder") from None

    def _keep_out_others(self) -> None:
        """Lock the folder until this process ends, by whatever means, and remove what is half-written there.

        Some file systems cannot, and keep nobody out.

        Raises:
            UserError: another process has locked it.
        """
        if fcntl is None:
            return
        folder = os.open(self.folder, os.O_RDONLY)
        _locked.add(folder)
        at_end(lambda: _unlock(folder))
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work on {self.folder}; wait, or name a new --trial") from None
        except OSError:
            return
        for name in WRITTEN:  # by a process that was killed meanwhile: no other one is here
            for unfinished in self.folder.glob(f".{name}.*.tmp"):
                unfinished.unlink(missing_ok=True)

    def restore(self, step: nn.Module, phases: Sequence[Any]) -> None:
        """Load `resume.pth`, where there is one, into the module and the optimizer that was at work.

        Args:
            step: student and method.
            phases: of the training, with `name`, `optimizer` and `scaler`.

        Raises:
            UserError: the file is damaged or does not fit.
        """
        path = self.folder / "resume.pth"
        state = distributed.share(self._load_state(path) if distributed.is_main() and path.exists() else None)
        if state is None:
            return
        try:
            step.load_state_dict(state["step"])
            self.history = json.loads(state["history"])
            phase = next(phase for phase in phases if phase.name == self.history[-1].get("stage", ""))
            phase.optimizer.load_state_dict(state["optimizer"])
            phase.scaler.load_state_dict(state["scaler"])
            self.best_acc, self.best_epoch = state["best_acc"], state.get("best_epoch", 0)  # older files have none
        except (KeyError, RuntimeError, TypeError, ValueError, IndexError, AttributeError, StopIteration) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} does not fit this run ({reason}); delete {self.folder}") from None
        # lines of epochs that were cut off before their resume.pth are dropped
        self._write_metrics()
        if distributed.is_main() and self._saved_best() != self.best_epoch:
            self._save_best(step.student)

    def _load_state(self, path: Path) -> dict[str, Any]:
        try:
            return load_checkpoint(path)
        except UserError as error:
            raise UserError(f"{str(error).partition(';')[0]}; delete {self.folder} to begin anew") from None

    def progress(self, label: str, done: int, steps: int) -> Progress:
        """The display of an epoch, `done` steps into its phase."""
        o = self.options
        return Progress(label, done, steps, o["print_freq"], o["tb_freq"], self.events, o["quiet"])

    def _write_metrics(self) -> None:
        if not distributed.is_main():
            return
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        write_file(self.folder / "metrics.jsonl", lines.encode())

    def _save_student(self, names: Mapping[str, str], student: nn.Module, epoch: int, acc: float) -> None:
        """The student as checkpoints.

        Args:
            names: of the files, and what the accuracy is called in each.
            student: the trained network.
            epoch: after which it is saved.
            acc: its accuracy then.
        """
        state = getattr(student, "deployed", student).state_dict()
        weights = {key: value.cpu().contiguous() for key, value in state.items()}
        size = {} if self.input_size is None else {"input_size": self.input_size}
        for name, figure in names.items():
            save_checkpoint(self.folder / name, {"epoch": epoch, "model": weights, figure: acc, **size})

    def _due(self, epoch: int) -> dict[str, str]:
        """The student's checkpoints that are due after an epoch whatever its accuracy, as for `_save_student`."""
        due = {f"ckpt_epoch_{epoch}.pth": "accuracy"} if epoch % self.options["save_freq"] == 0 else {}
        return {**due, f"{self.model}_last.pth": "accuracy"} if epoch == self.epochs else due

    def _save_best(self, student: nn.Module) -> None:
        """The student as the best one, where the last epoch was the best."""
        if self.best_epoch and self.best_epoch == self.done_epochs():
            self._save_student({f"{self.model}_best.pth": "best_acc"}, student, self.best_epoch, self.best_acc)

    def _saved_best(self) -> int | None:
        """The epoch of the best student that is on the disk; None where there is none, or a damaged one."""
        try:
            return load_checkpoint(self.folder / f"{self.model}_best.pth").get("epoch")
        except UserError:
            return None

    def end_epoch(self, row: dict[str, Any], parts: Mapping[str, Any], label: str) -> None:
        """Take in an epoch's figures and save.

        `resume.pth` is what counts as done: what is written before it is written again if the run is cut off in
        between, and what is written after it when the run is resumed. That is the best student, which would else be
        replaced by one of an epoch that is not done and may turn out otherwise: on a GPU, or with other processes. A
        signal that arrives meanwhile waits until all is written.

        Args:
            row: the figures, with `epoch` and, after an epoch of the main training, the accuracy on `split`.
            parts: what has a state to resume: `step`, the module with the trained network as `student`, and the
                `optimizer` and `scaler` at work.
            label: names the epoch on the terminal.

        Raises:
            RunError: the disk is full; the earlier files are untouched.
        """
        epoch = row["epoch"]
        if not distributed.is_main():
            self.history.append(row)
            return
        with uninterrupted():
            student, acc = parts["step"].student, row.get(f"{self.split}_acc")
            if acc is not None:
                self._save_student(self._due(epoch), student, epoch, acc)
                if acc > self.best_acc:
                    self.best_acc, self.best_epoch = acc, epoch
            self.history.append(row)
            state = {name: part.state_dict() for name, part in parts.items()}
            figures = {"history": json.dumps(self.history), "best_acc": self.best_acc, "best_epoch": self.best_epoch}
            save_checkpoint(self.folder / "resume.pth", {"epoch": epoch, **state, **figures})
            self._save_best(student)
            self._write_metrics()
        prefix = f"{row['stage']}/" if "stage" in row else ""
        self.events.log({prefix + key: value for key, value in row.items() if key not in ("epoch", "stage")}, epoch)
        if not self.options["quiet"]:
            print(f"{label}  {self._in_words(row)}", flush=True)

    def _in_words(self, row: Mapping[str, Any]) -> str:
        text = f"lr {row['lr']:.4g}  train loss {row['train_loss']:.4f}"
        if f"{self.split}_acc" in row:
            held = f"{self.split} acc {row[f'{self.split}_acc']:.2f}"
            text += f"  train acc {row['train_acc']:.2f}  {held} (best {self.best_acc:.2f})"
        return f"{text}  {row['images_per_second']:.0f} images/s"

    def finish(self) -> dict[str, Any]:
        """Write `summary.json`, the sign of a finished run, and return it."""
        last, seconds = self.history[-1], sum(row["seconds"] for row in self.history)
        summary = {
            **{name: value for name, value in last.items() if name not in RUNNING},
            "best_acc": self.best_acc,
            **self.facts,
            "epochs": self.epochs,
            "seconds": seconds,
            "images_per_second": statistics.mean(
                row["images_per_second"] for row in self.history if "stage" not in row
            ),
            "seed": self.seed,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
        if distributed.is_main():
            write_json(self.folder / "summary.json", summary)
        return summary


def resume_command() -> str:
    """The command line of this process with `--resume`: of several, one that goes on with those of one machine."""
    here = os.environ.get("LOCAL_WORLD_SIZE") if distributed.size() > 1 else None
    start = ["torchrun", "--standalone", "--nproc_per_node", here] if here else ["python"]
    return shlex.join([*start, *sys.argv, *([] if "--resume" in sys.argv else ["--resume"])])
