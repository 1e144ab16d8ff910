"""What folding, low precision and fusing do to a teacher: accuracy, distance to float32, and speed.

    python -m benchmarks.teacher --path_t FILE --data_folder DIR

Each line is the teacher on all test images of CIFAR-100: plain float32, float32 with folded batch norms, the same fused
where that is possible, bfloat16 under autocast, folded, and folded and fused, as `train_student.py` runs it where a
method needs logits only; with `--compile`, folded and compiled by torch.compile, too. KL is from the plain network's
class probabilities to the line's, both at temperature 4, mean over the images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from dataset import EVALUATION_BATCH, MemoryLoader, cifar100
from helper.checkpoint import load_network
from helper.errors import run_command
from helper.flags import OneLineParser
from helper.inference import Inference
from helper.precision import Precision, pick_device
from helper.teacher import check_teacher_file, teacher_name

from . import plain
from .timing import gemm_line, gemm_rates, machine
from .train_step import SIDE_HELP, memory_loader

TEMPERATURE = 4.0


def all_logits(run: Inference, loader: MemoryLoader) -> tuple[Tensor, float]:
    """Logits (N, C) of a data set on the CPU, and images per second; the first batch is run once before."""
    batches = iter(loader)
    run(next(batches).images)
    start = time.perf_counter()
    logits = torch.cat([run(batch.images).cpu() for batch in loader])
    return logits, loader.samples / (time.perf_counter() - start)


def compiled(run: Inference, images: Tensor) -> Inference:
    """Make it run torch.compile's code for the same folded network; images are a batch."""
    run(images)
    run.module = torch.compile(run.own, dynamic=False, options={"freezing": True})
    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = OneLineParser(prog="python -m benchmarks.teacher", description="A teacher's precision and speed.")
    parser.add_argument("--path_t", required=True, metavar="FILE", help="the teacher's checkpoint")
    parser.add_argument("--model_t", metavar="NAME", help="its network, where its folder's name does not begin with it")
    parser.add_argument("--side", type=plain.positive, default=2048, metavar="N", help=SIDE_HELP)
    parser.add_argument("--compile", action="store_true", help="with a line for torch.compile")
    plain.add_machine(parser)
    opt: argparse.Namespace = parser.parse_args(arguments)
    if opt.threads:
        torch.set_num_threads(opt.threads)
    device = pick_device(opt.device)
    check_teacher_file(opt.path_t)
    network = load_network(teacher_name(opt.path_t, opt.model_t), opt.path_t, cifar100.CLASSES)
    network = network.to(device, memory_format=torch.channels_last).eval()
    test = memory_loader(plain.read_images(opt)[1], EVALUATION_BATCH[device.type], device, train=False)
    print(machine(device), gemm_line(gemm_rates(device, opt.side)), sep="\n")
    size = test.batch_size
    low = Precision(device, torch.bfloat16)
    lines = {
        "float32": Inference(network, Precision(device, torch.float32, plain=True)),
        "float32, folded": Inference(network, Precision(device, torch.float32)),
        "float32, fused": Inference(network, Precision(device, torch.float32), size),
        "bfloat16, autocast": Inference(network, Precision(device, torch.bfloat16, plain=True)),
        "bfloat16, folded": Inference(network, low),
        "bfloat16, fused": Inference(network, low, size),
    }
    if opt.compile:
        lines["bfloat16, compiled"] = compiled(Inference(network, low, size), next(iter(test)).images)
    print(f"{'teacher':<20} {'accuracy':>9} {'KL':>9} {'images/s':>9}")
    expected = None
    for name, run in lines.items():
        logits, speed = all_logits(run, test)
        log_p = (logits / TEMPERATURE).log_softmax(1)
        expected = log_p if expected is None else expected
        kl = torch.nn.functional.kl_div(log_p, expected, log_target=True, reduction="batchmean").item()
        accuracy = 100 * (logits.argmax(1) == test.labels.cpu()).float().mean().item()
        print(f"{name:<20} {accuracy:>9.2f} {kl:>9.1e} {speed:>9.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
