"""How time and memory grow with the sizes of the problem.

    python -m benchmarks.scaling --dataset noise                                  # all parts
    python -m benchmarks.scaling --what loss --batches 64 --classes 100,21000 --ks 2,7,20 --threads 1
    python -m benchmarks.scaling --what logits --batches 1024 --classes 1000,21000 --methods kd,ldrld

- loss: LDRLD, value and gradient, against its literal version, over batch size, number of classes C, and k, one of them
  at a time. The literal version is left out where it would fill more than LITERAL_ELEMENTS numbers for each of its
  softmaxes together.
- logits: every loss of logits, value and gradient, over C, at the largest batch size; what takes longer than
  `--seconds` is run once.
- step: a training step with LDRLD over batch size, the teacher's logits computed and from a full cache.
- loader: augmented batches of the in-memory loader over batch size.
- images: over the number N of training images, the in-memory loader (what it holds, the first batch of an epoch and a
  later one) and CRD's loss, whose memories and products grow with N.
- disk: the loader that reads files, over its processes, on drawn photographs and small images.
- processes: a training step shared by several processes of this machine, which share its threads.

Memory is what the forward pass keeps for the backward pass, each storage once. From the part loss on, the C library
keeps what tensors have freed: what giving it back takes would be most of the time of some losses.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset import DiskLoader, cifar100
from dataset.listing import ImageFiles
from distiller_zoo import LDRLD, registry
from distiller_zoo.base import LogitDistiller
from helper.errors import UserError, run_command
from helper.flags import OneLineParser
from helper.precision import Precision

from . import plain
from .loader import counts
from .losses import Sizes, make_case
from .processes import BATCH, time_shared
from .timing import interleave, keep_freed_memory, limited_memory, machine, milliseconds
from .train_step import Product, add_step, full_batches, make_pair, memory_loader, start, step_ms

LOGIT_METHODS = [name for name, method in registry.items() if issubclass(method.build, LogitDistiller)]
PAIRS = "resnet32x4-resnet8x4"
CLASSES, K = 100, 7  # where they are not what varies, as is BATCH
LITERAL_ELEMENTS = 5e7
NEGATIVES = 16_384  # CRD's K, where there are as many images
KINDS = {"photographs of 500x375, JPEG": ((375, 500), 224, ".jpg"), "images of 32x32, PNG": ((32, 32), 32, ".png")}


def kept_bytes(run: Callable[[], object]) -> int:
    """Bytes of the storages that the computations of a run keep for their backward passes."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(storages.values())


def mib(size: int) -> str:
    return f"{size / 2**20:.2f}"


def loss_line(batch: int, classes: int, k: int, device: torch.device, opt: argparse.Namespace) -> str:
    """Time and memory of both versions of the loss for logits (batch, classes)."""
    columns = f"{batch:>6}{classes:>8}{k:>5}"
    torch.manual_seed(0)
    z_s, z_t = (2 * torch.randn(batch, classes, device=device) for _ in range(2))
    z_s.requires_grad_()
    target = torch.randint(classes, (batch,), device=device)
    w = plain.published_weights("ldrld")
    loss = LDRLD(w.a, w.b, k, w.T, w.r).to(device)
    literal_loss = plain.ldrld_loss(plain.Weights(w.r, w.a, w.b, w.T, k))

    def own() -> Tensor:
        return loss(z_s, z_t, target)

    def literal() -> Tensor:
        return literal_loss(z_s, z_t, target)

    def with_gradient(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), z_s)

    if (k * (k - 1) / 2 + 2) * batch * classes > LITERAL_ELEMENTS:
        c = interleave(with_gradient(own), with_gradient(own), opt.repeats, 1, device, opt.seconds)
        return f"{columns}{'-':>12}{c.b_ms:>10.3f}{'-':>8}  {'-':<15}{'-':>12}{mib(kept_bytes(own)):>10}"
    c = interleave(with_gradient(literal), with_gradient(own), opt.repeats, 1, device, opt.seconds)
    spread = f"{c.low:.1f} to {c.high:.1f}"
    memory = f"{mib(kept_bytes(literal)):>12}{mib(kept_bytes(own)):>10}"
    return f"{columns}{c.a_ms:>12.3f}{c.b_ms:>10.3f}{c.ratio:>8.1f}  {spread:<15}{memory}"


def loss_table(opt: argparse.Namespace, precision: Precision) -> None:
    """Batch size, classes and k, one after the other."""
    print(f"\nLDRLD with its gradient\n{'B':>6}{'C':>8}{'k':>5}{'literal ms':>12}{'ours ms':>10}{'ratio':>8}", end="")
    print(f"  {'10 to 90 %':<15}{'literal MiB':>12}{'ours MiB':>10}")
    sizes = [(batch, CLASSES, K) for batch in opt.batches]
    sizes += [(BATCH, classes, min(K, classes)) for classes in opt.classes]
    sizes += [(BATCH, CLASSES, k) for k in opt.ks]
    keep_freed_memory()
    with limited_memory():
        for size in dict.fromkeys(sizes):
            print(loss_line(*size, precision.device, opt), flush=True)


def logits_table(opt: argparse.Namespace, precision: Precision) -> None:
    """Every loss of logits over the number of classes; what does not fit into memory says so."""
    batch = max(opt.batches)
    print(f"\nlosses of logits with their gradients, B = {batch}\n{'method':<8}{'C':>8}{'ms':>12}{'kept MiB':>12}")
    for name, classes in itertools.product(opt.methods, opt.classes):
        try:
            with limited_memory():
                case = make_case(name, Sizes(batch, classes), precision.device)
                leaves = [leaf for leaf in case.leaves if leaf.requires_grad]

                def run(case=case, leaves=leaves) -> object:
                    return torch.autograd.grad(case.ours(), leaves, allow_unused=True)

                ms = milliseconds(run, 1, precision.device)
                if ms < 1000 * opt.seconds:
                    ms = interleave(run, run, opt.repeats, 0, precision.device, opt.seconds).b_ms
                print(f"{name:<8}{classes:>8}{ms:>12.1f}{mib(kept_bytes(case.ours)):>12}", flush=True)
        except (ValueError, MemoryError, RuntimeError) as error:
            print(f"{name:<8}{classes:>8}  {str(error).splitlines()[0][:80]}", flush=True)


def step_table(opt: argparse.Namespace, precision: Precision) -> None:
    """A training step of each pair over batch size."""
    train, _ = plain.read_images(opt)
    for names in opt.pairs:
        print(
            f"\nstep of {' -> '.join(names)} on {opt.dataset}, {precision.name}\n{'':>6}{'logits computed':>22}", end=""
        )
        print(f"{'full cache':>22}\n{'B':>6}{'ms':>12}{'img/s':>10}{'ms':>12}{'img/s':>10}{'kept MiB':>12}")
        for batch in opt.batches:
            loader = memory_loader(train, batch, precision.device)
            product = Product(make_pair(names, loader, opt.path_t), loader, precision, opt.compile)
            times = [step_ms(product, share, opt.steps, opt.repeats) for share in (None, 1.0)]
            columns = "".join(f"{ms:>12.2f}{1000 * batch / ms:>10.1f}" for ms in times)
            kept = kept_bytes(lambda product=product: product.run(1))
            print(f"{batch:>6}{columns}{mib(kept):>12}", flush=True)


def loader_table(opt: argparse.Namespace, precision: Precision) -> None:
    """The in-memory loader over batch size; a time is the best of a few."""
    train, _ = plain.read_images(opt)
    print(f"\nin-memory loader, {len(train.labels):,} images of {opt.dataset}\n{'B':>6}{'ms':>12}{'img/s':>10}")
    for batch in opt.batches:
        batches = full_batches(memory_loader(train, batch, precision.device), epoch=1)

        def block(batches=batches) -> None:
            deque(itertools.islice(batches, opt.steps), maxlen=0)

        block()
        ms = min(milliseconds(block, 1, precision.device) for _ in range(opt.repeats)) / opt.steps
        print(f"{batch:>6}{ms:>12.3f}{1000 * batch / ms:>10.0f}", flush=True)


def images_table(opt: argparse.Namespace, precision: Precision) -> None:
    """The in-memory loader and CRD's loss over the number of training images, of noise."""
    columns = f"{'MiB':>10}{'first batch ms':>16}{'later ms':>10}{'CRD MiB':>10}{'CRD ms':>10}"
    print(f"\nimages in memory, and CRD's loss with its gradient, B = {BATCH}\n{'N':>10}{columns}")
    device = precision.device
    for count in opt.counts:
        train, _ = plain.read_images(argparse.Namespace(dataset="noise", images=count))
        loader = memory_loader(train, BATCH, device)
        starts = [milliseconds(full_batches(loader, epoch=1).__next__, 1, device) for _ in range(opt.repeats)]
        first, batches = statistics.median(starts), full_batches(loader, epoch=1)
        next(batches)
        later = milliseconds(batches.__next__, opt.steps, device)
        case = make_case("crd", Sizes(BATCH, CLASSES, samples=count, negatives=min(NEGATIVES, count - 1)), device)
        leaves = [leaf for leaf in case.leaves if leaf.requires_grad]

        def crd(case=case, leaves=leaves) -> object:
            return torch.autograd.grad(case.ours(), leaves, allow_unused=True)

        ms = interleave(crd, crd, opt.repeats, 1, device, opt.seconds).b_ms
        held, kept = loader.images.nbytes, 2 * count * 128 * 4
        print(
            f"{count:>10}{held / 2**20:>10.0f}{first:>16.1f}{later:>10.3f}{kept / 2**20:>10.0f}{ms:>10.1f}", flush=True
        )


def draw_files(folder: Path, count: int, side: tuple[int, int], ending: str) -> ImageFiles:
    """Files of coarse noise, which is about as hard to compress as a photograph."""
    draw = np.random.default_rng(0)
    height, width = side
    for number in range(count):
        coarse = draw.integers(256, size=(max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}{ending}")
    with os.scandir(folder) as found:
        return ImageFiles.of(folder, found, [0] * count)


def disk_table(opt: argparse.Namespace, precision: Precision) -> None:
    """The loader of files over its processes; the files are in the system's cache."""
    print(f"\n{opt.files} files, B = {BATCH}\n{'':<32}{'processes':>10}{'img/s':>10}")
    for name, (side, size, ending) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            files = draw_files(Path(folder), opt.files, side, ending)
            for workers in opt.workers:
                look = ((size, size), cifar100.MEAN, cifar100.STD, BATCH, precision.device)
                loader = DiskLoader(files, *look, train=True, workers=workers)

                def epoch(loader=loader) -> None:
                    deque(loader, maxlen=0)

                epoch()  # starts the processes
                ms = min(milliseconds(epoch, 1, precision.device) for _ in range(opt.repeats))
                print(f"{name:<32}{workers:>10}{1000 * opt.files / ms:>10.0f}", flush=True)


def processes_table(opt: argparse.Namespace, precision: Precision) -> None:
    """A training step of each pair over the number of processes."""
    threads = torch.get_num_threads()
    columns = f"{'threads each':>14}{'computed img/s':>16}{'full cache img/s':>18}"
    print(f"\nstep of {BATCH} images shared by processes, {precision.name}\n{'':<28}{'processes':>10}{columns}")
    for count in opt.processes:
        share = argparse.Namespace(**{**vars(opt), "threads": max(1, threads // count)})
        found, peak = time_shared(count, share)
        for names, times in zip(opt.pairs, found, strict=True):
            computed, cached = (1000 * BATCH / ms for ms in times)
            line = f"{' -> '.join(names):<28}{count:>10}{share.threads:>14}{computed:>16.1f}{cached:>18.1f}"
            print(line, flush=True)
        print(f"{'':<28}{count:>10}  peak memory of a process: {peak:,.0f} MiB", flush=True)


TABLES = {
    "logits": logits_table,
    "step": step_table,
    "loader": loader_table,
    "images": images_table,
    "disk": disk_table,
    "processes": processes_table,
    "loss": loss_table,  # last, since it changes what the C library does with freed memory
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the tables."""
    parser = OneLineParser(prog="python -m benchmarks.scaling", description="Time and memory over the sizes.")
    sizes = {
        "batches": ([16, 64, 256, 1024], "batch sizes of loss, step and loader; the largest is that of logits"),
        "classes": ([10, 100, 1000, 10_000, 21_000], "of loss and logits"),
        "ks": ([2, 4, 7, 10, 20, 50], "of the loss"),
        "counts": ([50_000, 200_000, 1_000_000], "numbers of training images"),
        "processes": ([1, 2], "that share a step"),
    }
    parser.add_argument(
        "--what",
        type=plain.names_of(TABLES, "table"),
        default=list(TABLES),
        metavar="A,B",
        help=f"of {', '.join(TABLES)}",
    )
    for name, (default, text) in sizes.items():
        shown = f"{text} ({','.join(map(str, default))})"
        parser.add_argument(f"--{name}", type=plain.positives, default=default, metavar="N,N", help=shown)
    parser.add_argument("--workers", type=counts, default=[0, 2], metavar="N,N", help="that read files (0,2)")
    parser.add_argument("--files", type=plain.positive, default=256, metavar="N", help="that they read (256)")
    known = ", ".join(LOGIT_METHODS)
    parser.add_argument(
        "--methods",
        type=plain.names_of(LOGIT_METHODS, "method"),
        default=LOGIT_METHODS,
        metavar="A,B",
        help=f"of {known}",
    )
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="for a line of the loss, about (5)")
    add_step(parser, PAIRS, repeats=10)
    opt = parser.parse_args(arguments)
    if few := [n for n in opt.counts if n < BATCH]:
        raise UserError(f"--counts must be from {BATCH}, but {few[0]} is not")
    if bad := [k for k in opt.ks if not 2 <= k <= CLASSES] + [c for c in opt.classes if c < 2]:
        raise UserError(f"--ks must be from 2 to {CLASSES} and --classes from 2, but {bad[0]} is not")
    if many := [n for n in opt.processes if n > BATCH]:
        raise UserError(f"--processes {many[0]} would share a batch of {BATCH} images; {BATCH} at most can")
    precision = start(opt)
    print(machine(precision.device))
    for part in opt.what:
        TABLES[part](opt, precision)


if __name__ == "__main__":
    sys.exit(run_command(main))
