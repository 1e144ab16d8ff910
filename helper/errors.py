"""The two kinds of failure that a command reports in one line, and the frame that reports them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

from dataset import DataError


class UserError(Exception):
    """Bad input, found before anything was written: one line, exit code 2."""


class RunError(Exception):
    """A run that cannot go on (non-finite loss, disk full): one line, exit code 3."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; like KeyboardInterrupt, not an `Exception` that a handler may swallow.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


_writes = {"open": 0, "waiting": 0}
_resume = {"command": ""}
_voice: dict[str, Any] = {"may_speak": lambda: True, "stream": None}
_last: list[Callable[[], object]] = []


def at_end(action: Callable[[], object]) -> None:
    """Have something done when the command ends, however it ends."""
    _last.append(action)


def set_resume_hint(command: str) -> None:
    """Tell which command resumes the run that has begun; it is printed when a signal stops it."""
    _resume["command"] = command


def resume_hint() -> str:
    """How to go on with the run that has begun, as the end of a message; empty where none has."""
    return f"; to go on: {_resume['command']}" if _resume["command"] else ""


def set_voice(may_speak: Callable[[], bool], stream: TextIO) -> None:
    """Tell who says how a run of several processes ended.

    Args:
        may_speak: asked once, at the end: whether it is this process.
        stream: where it is said.
    """
    _voice.update(may_speak=may_speak, stream=stream)


def _on_signal(number: int, _frame: object) -> None:
    if _writes["open"]:
        _writes["waiting"] = number
    else:
        raise Interrupted(number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the block, a write in hand, is done."""
    _writes["open"] += 1
    try:
        yield
    finally:
        _writes["open"] -= 1
    if _writes["waiting"] and not _writes["open"]:
        number, _writes["waiting"] = _writes["waiting"], 0
        raise Interrupted(number)


def _one_line(error: Exception) -> str:
    return "error: " + " ".join(str(error).splitlines())


def _ignore_signals() -> None:
    """For the end of the process, which would only be disturbed: what is raised there is a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end(text: str, code: int) -> int:
    """Say how the run ended, undisturbed by further signals, unless another process does; returns the code."""
    _ignore_signals()
    if _voice["may_speak"]():
        print(text, file=_voice["stream"] or sys.stderr, flush=True)
    return code


def run_command(main: Callable[[], None]) -> int:
    """Run an entry script's `main` and turn its failures into one line on standard error and an exit code.

    Of several processes, the first that fails says so; the others, which fail without it, are silent.

    Args:
        main: the script's body.

    Returns:
        0, 2 (`UserError`), 3 (`RunError`, `DataError`, or no memory left on the GPU) or 128 + the number of the signal
        that ended the run, or would have, had the output a reader.
    """
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    try:
        return _exit_code(main)
    finally:
        while _last:
            _last.pop()()


def _exit_code(main: Callable[[], None]) -> int:
    try:
        main()
        _ignore_signals()
        return 0
    except UserError as error:
        return _end(_one_line(error), 2)
    except (RunError, DataError) as error:  # the latter where images change while the run reads them
        return _end(_one_line(error), 3)
    except torch.OutOfMemoryError as error:
        return _end(_one_line(error).split(". ")[0] + "; lower --batch_size", 3)
    except Interrupted as stop:
        return _stopped(stop)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written fails as well
        return _end("error: nobody reads the output any more", 128 + signal.SIGPIPE)
    except Exception as error:
        if str(error).startswith("DataLoader worker"):
            # a worker that a signal ended, the run's own or its own alone
            cut_off = isinstance(error.__context__, Interrupted)
            return _stopped(error.__context__) if cut_off else _end(_one_line(error), 3)
        sys.stderr = _voice["stream"] or sys.stderr
        if not _voice["may_speak"]():
            return 1
        raise


def _stopped(stop: Interrupted) -> int:
    """Say what ended the run and how it goes on; gives the exit code."""
    return _end(f"stopped by {stop}{resume_hint()}", 128 + stop.number)
