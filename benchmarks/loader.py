"""The in-memory loader against PIL images, torchvision's transforms and worker processes.

    python -m benchmarks.loader --data_folder data --workers 0,2
    python -m benchmarks.loader --dataset noise --threads 1

Both give augmented training batches on the training device. A block is some batches; blocks of both alternate, and the
ratio is the time of the PIL loader over that of the other. Worker processes stay alive, but are idle while it is not
their turn: every block of theirs begins with nothing prefetched, so that it should be long (`--batches`).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import deque
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader

from helper.errors import run_command
from helper.flags import OneLineParser
from helper.precision import pick_device

from .plain import add_machine, count, positive, read_images, train_stretch
from .timing import interleave, machine
from .train_step import full_batches, memory_loader


def counts(text: str) -> list[int]:
    return [count(word) for word in text.split(",")]


def go_through(stretch: DataLoader, device: torch.device) -> None:
    """Bring all batches to the device."""
    for images, target in stretch:
        images.to(device), target.to(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the table."""
    parser = OneLineParser(prog="python -m benchmarks.loader", description="Time the loaders of training images.")
    workers = sorted({0, min(8, os.cpu_count() or 1)})
    workers_help = f"processes of the PIL loader ({','.join(map(str, workers))})"
    parser.add_argument("--workers", type=counts, default=workers, metavar="N,N", help=workers_help)
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help="images in a batch (64)")
    parser.add_argument("--batches", type=positive, default=50, metavar="N", help="in a block (50)")
    parser.add_argument("--repeats", type=positive, default=20, metavar="N", help="blocks that are timed (20)")
    add_machine(parser)
    opt = parser.parse_args(arguments)
    if opt.threads:
        torch.set_num_threads(opt.threads)
    device = pick_device(opt.device)
    train, _ = read_images(opt)
    batches = full_batches(memory_loader(train, opt.batch, device), epoch=1)
    print(machine(device))
    print(f"{len(train.labels):,} images of {opt.dataset}, batches of {opt.batch}, blocks of {opt.batches} batches\n")
    print(f"{'workers':>7}{'PIL img/s':>12}{'ours img/s':>12}{'ratio':>8}  10 to 90 %")
    for number in opt.workers:
        stretch = train_stretch(train, opt.batch, number, opt.batches)
        c = interleave(
            lambda stretch=stretch: go_through(stretch, device),
            lambda: deque(itertools.islice(batches, opt.batches), maxlen=0),
            opt.repeats,
            device=device,
        )
        pil, ours = (1000 * opt.batches * opt.batch / ms for ms in (c.a_ms, c.b_ms))
        print(f"{number:>7}{pil:>12.0f}{ours:>12.0f}{c.ratio:>8.1f}  {c.low:.1f} to {c.high:.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
