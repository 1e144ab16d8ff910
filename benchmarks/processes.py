"""A training step that several processes of this machine share; `benchmarks.scaling` prints what it takes."""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import tempfile
from pathlib import Path

import torch.multiprocessing

from helper import distributed

from . import plain
from .train_step import Product, make_pair, memory_loader, peak_memory, start, step_ms

BATCH = 64  # images of a step, of all processes together


def share_step(number: int, count: int, port: int, opt: argparse.Namespace, answer: str) -> None:
    """One of several processes that time a training step together; each writes to its file what `time_shared` gives."""
    places = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in places.items()}})
    distributed.together(functools.partial(time_own_share, number, count, opt, answer))()


def time_own_share(number: int, count: int, opt: argparse.Namespace, answer: str) -> None:
    """The body of `share_step`, within the connection."""
    precision = start(opt)
    train, _ = plain.read_images(opt)
    loader = memory_loader(train, BATCH, precision.device)
    loader.shard(number, count)
    found = []
    for names in opt.pairs:
        product = Product(make_pair(names, loader, opt.path_t), loader, precision, opt.compile)
        found.append([step_ms(product, part, opt.steps, opt.repeats) for part in (None, 1.0)])
    Path(f"{answer}.{number}").write_text(json.dumps({"ms": found, "peak": peak_memory()}))


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def time_shared(count: int, opt: argparse.Namespace) -> tuple[list[list[float]], float]:
    """Milliseconds of a step of each of `opt.pairs` in `count` processes: the teacher's logits computed, and cached.

    Also the peak memory in MiB that the largest of the processes had with all of the pairs.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "found"
        torch.multiprocessing.spawn(share_step, (count, free_port(), opt, str(answer)), nprocs=count)
        found = [json.loads(Path(f"{answer}.{number}").read_text()) for number in range(count)]
        return found[0]["ms"], max(process["peak"] for process in found)
