"""What a run says while it trains: progress on the terminal, TensorBoard events."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Events:
    """TensorBoard scalars through tensorboard_logger. Whatever fails in it is said once and never stops a run.

    Args:
        folder: where the event file goes; None to write none.
    """

    def __init__(self, folder: Path | None):
        self.logger: Any = None
        if folder is None:
            return
        try:
            from tensorboard_logger import Logger  # it fails to import beside protobuf 4 or newer

            self.logger = Logger(logdir=str(folder), flush_secs=2)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"note: no TensorBoard events ({reason}); metrics.jsonl has every figure", file=sys.stderr)
        self.logger = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars by name at a step."""
        if self.logger is None:
            return
        try:
            for name, value in values.items():
                self.logger.log_value(name, value, step)
        except Exception as error:
            self._give_up(error)


class Progress:
    """An epoch's progress, as a context: a bar in a terminal, a line every `print_freq` steps elsewhere.

    Args:
        label: names the epoch.
        done: steps of this phase before the epoch.
        steps: in the epoch.
        print_freq: steps between two readings of the figures.
        tb_freq: steps between two events of the running figures.
        events: where these go.
        quiet: show nothing (figures are still read, so that a non-finite loss is found early).
    """

    def __init__(self, label: str, done: int, steps: int, print_freq: int, tb_freq: int, events: Events, quiet: bool):
        self.label, self.done, self.steps, self.print_freq, self.tb_freq = label, done, steps, print_freq, tb_freq
        self.events, self.quiet = events, quiet
        # None: tqdm shows the bar only where standard error is a terminal
        self.bar = tqdm(total=steps, desc=self.label, leave=False, disable=True if quiet else None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, number: int, read: Callable[[], Mapping[str, float]]) -> None:
        """Count step `number` (from 1); `read` gives the running figures and is called only where they are shown."""
        shown = number % self.print_freq == 0
        logged = number % self.tb_freq == 0
        if shown or logged:
            figures = read()
            if shown:
                self._show(number, figures)
            if logged:
                self.events.log({f"step/{name}": value for name, value in figures.items()}, self.done + number)
        self.bar.update()

    def _show(self, number: int, figures: Mapping[str, float]) -> None:
        text = ", ".join(
            f"{name.replace('_', ' ')} {figures[name]:.4g}" for name in ("loss", "train_acc") if name in figures
        )
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
        elif not self.quiet:
            print(f"{self.label}  step {number}/{self.steps}  {text}", flush=True)
