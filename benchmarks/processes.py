"""A training step that several processes of this machine share; `benchmarks.scaling` prints what it takes."""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path

import torch.multiprocessing

from helper import distributed

from . import plain
from .train_step import Product, make_pair, memory_loader, start, step_ms

BATCH = 64  # images of a step, of all processes together


def share_step(number: int, count: int, port: int, opt: argparse.Namespace, answer: str) -> None:
    """One of several processes that time a training step together; the first writes the milliseconds to a file."""
    places = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in places.items()}})
    distributed.start()
    precision = start(opt)
    train, _ = plain.read_images(opt)
    loader = memory_loader(train, BATCH, precision.device)
    loader.shard(number, count)
    found = []
    for names in opt.pairs:
        product = Product(make_pair(names, loader, opt.path_t), loader, precision, opt.compile)
        found.append([step_ms(product, part, opt.steps, opt.repeats) for part in (None, 1.0)])
    if number == 0:
        Path(answer).write_text(json.dumps(found))


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def time_shared(count: int, opt: argparse.Namespace) -> list[list[float]]:
    """Milliseconds of a step of each of `opt.pairs` in `count` processes: the teacher's logits computed, and cached."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "found.json"
        torch.multiprocessing.spawn(share_step, (count, free_port(), opt, str(answer)), nprocs=count)
        return json.loads(answer.read_text())
