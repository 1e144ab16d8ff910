"""The two kinds of failure that a command reports in one line, and the frame that reports them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def set_resume_hint(command: str) -> None:
    """Tell which command resumes the run that has begun; it is printed when a signal stops it."""
    _resume["command"] = command


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


def run_command(main: Callable[[], None]) -> int:
    """Run an entry script's `main` and turn its failures into one line on standard error and an exit code.

    Args:
        main: the script's body.

    Returns:
        0, 2 (`UserError`), 3 (`RunError`, `DataError`, or no memory left on the GPU) or 128 + the number of the signal
        that ended the run.
    """
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    try:
        main()
        return 0
    except UserError as error:
        print(_one_line(error), file=sys.stderr)
        return 2
    except (RunError, DataError) as error:  # the latter where images change while the run reads them
        print(_one_line(error), file=sys.stderr)
        return 3
    except torch.OutOfMemoryError as error:
        print(_one_line(error).split(". ")[0] + "; lower --batch_size", file=sys.stderr)
        return 3
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        if not isinstance(error.__context__, Interrupted):  # else the signal went to the workers, too
            print(_one_line(error), file=sys.stderr)
            return 3
        return _stopped(error.__context__)
    except Interrupted as stop:
        return _stopped(stop)


def _stopped(stop: Interrupted) -> int:
    """Say what ended the run and how it goes on; gives the exit code."""
    hint = _resume["command"]
    print(f"stopped by {stop}" + (f"; to go on: {hint}" if hint else ""), file=sys.stderr)
    return 128 + stop.number
