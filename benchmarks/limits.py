"""What the machine can do, and how near to it a training step comes.

    python -m benchmarks.limits --dataset noise
    python -m benchmarks.limits --dataset noise --pairs resnet56-resnet20 --threads 1

The machine's rates are the best of a few tries: a product of large square matrices in float32 and bfloat16, and a copy
of a buffer larger than the caches, whose bytes count twice, as read and as written. The operations of a step are those
of the convolutions and matrix products: the teacher's forward pass, the student's three times, since a backward pass
takes two products for each of the forward pass. (The gradient with respect to the images, which no one computes, is
among them: less than 1 % of a step.) Floor is the time that they would take at the rate of the matrix product in the
run's number format, measured just before the steps, since that of a shared machine drifts; a step also moves memory,
normalises and activates, which no floor counts. Steps are LDRLD's, timed with the teacher's logits computed and with
all of them from the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dataset import MemoryLoader, cifar100
from helper.errors import run_command
from helper.flags import OneLineParser
from helper.precision import Precision
from models import model_dict

from . import plain
from .timing import gemm_line, gemm_rate, gemm_rates, machine, milliseconds
from .train_step import PAIRS, SIDE_HELP, Product, add_step, left_uncompiled, make_pair, memory_loader, start, step_ms


def copy_rate(device: torch.device, megabytes: int, repeats: int = 5) -> float:
    """Bytes per second, read and written, of the fastest of a few copies."""
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    copy = source.clone()
    seconds = min(milliseconds(lambda: copy.copy_(source), 1, device) for _ in range(repeats)) / 1000
    return 2 * source.numel() / seconds


def forward_flops(name: str, batch: int) -> int:
    """Operations of a network's forward pass for a batch of 32×32 images; an addition counts as one."""
    with torch.device("meta"):
        network: nn.Module = model_dict[name](num_classes=cifar100.CLASSES).eval()
        images = torch.zeros(batch, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return counter.get_total_flops()


def bench(names: tuple[str, str], loader: MemoryLoader, precision: Precision, opt: argparse.Namespace) -> None:
    """Time the steps of a pair and print its line.

    Args:
        names: of teacher and student.
        loader: of the training set.
        precision: of the training.
        opt: the command line.
    """
    product = Product(make_pair(names, loader, opt.path_t), loader, precision, opt.compile)
    teacher, student = (forward_flops(name, loader.batch_size) for name in names)
    columns = f"{' -> '.join(names):<26}{teacher / 1e9:>9.1f}{3 * student / 1e9:>9.1f}"
    for share, flops in ((None, teacher + 3 * student), (1.0, 3 * student)):
        rate = gemm_rate(precision.dtype, precision.device, opt.side).per_second
        floor, ms = 1000 * flops / rate, step_ms(product, share, opt.steps, opt.repeats)
        columns += f"{rate / 1e9:>12,.0f}{floor:>9.2f}{ms:>9.2f}{ms / floor:>7.1f}"
    print(columns + left_uncompiled(product, opt), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print rates and table."""
    parser = OneLineParser(prog="python -m benchmarks.limits", description="Compare steps with the machine's limits.")
    parser.add_argument("--batch", type=plain.positive, default=64, metavar="N", help="images in a step (64)")
    parser.add_argument("--side", type=plain.positive, default=2048, metavar="N", help=SIDE_HELP)
    parser.add_argument("--copy", type=plain.positive, default=512, metavar="MIB", help="size of the buffer (512)")
    add_step(parser, PAIRS, repeats=10)
    opt = parser.parse_args(arguments)
    precision = start(opt)
    train, _ = plain.read_images(opt)
    loader = memory_loader(train, opt.batch, precision.device)
    print(machine(precision.device))
    print(gemm_line(gemm_rates(precision.device, opt.side)))
    print(f"copy of {opt.copy} MiB: {copy_rate(precision.device, opt.copy) / 1e9:.1f} GB/s")
    print(f"steps of {opt.batch} images of {opt.dataset} in {precision.name}; times in ms\n")
    print(f"{'':<26}{'GFLOP of':>9}{'':>9}{'logits computed':>37}{'full cache':>37}")
    both = f"{'GFLOP/s':>12}{'floor':>9}{'step':>9}{'ratio':>7}"
    print(f"{'teacher -> student':<26}{'teacher':>9}{'student':>9}{both}{both}")
    for names in opt.pairs:
        bench(names, loader, precision, opt)


if __name__ == "__main__":
    sys.exit(run_command(main))
