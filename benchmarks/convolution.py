"""Convolutions in bfloat16 as they are against the forms of `helper.cpu_convolution`, training and inference.

    python -m benchmarks.convolution --threads 1

Shapes are those of this project's networks at batch 64. The ratio is the time of the one as it is over that of the
other; the last of the plain shapes is left as it is, so that its ratio shows the noise.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from helper.cpu_convolution import adapt
from helper.errors import run_command
from helper.flags import OneLineParser

from . import plain
from .timing import gemm_line, gemm_rates, interleave, machine
from .train_step import SIDE_HELP

# input and output channels, width of the maps, stride
SHAPES = (
    (64, 64, 8, 1),
    (128, 128, 8, 1),
    (128, 256, 8, 1),
    (256, 256, 8, 1),
    (256, 512, 4, 1),
    (512, 512, 4, 1),
    (128, 128, 16, 1),
)
DEPTHWISE = ((96, 32), (144, 16), (232, 16))  # channels and width; stride 2


def layer(inputs: int, outputs: int, stride: int, groups: int) -> nn.Conv2d:
    """A 3x3 convolution in channels-last layout."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
    return conv.to(memory_format=torch.channels_last)


def train(conv: nn.Module, x: Tensor) -> None:
    """Forward and backward pass under autocast."""
    conv.weight.grad = x.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    y.backward(torch.ones_like(y))


@torch.no_grad()
def infer(conv: nn.Module, x: Tensor) -> None:
    """Forward pass under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        conv(x)


def compare(
    run: Callable[[nn.Module, Tensor], None], convs: tuple[nn.Module, nn.Module], x: Tensor, repeats: int
) -> str:
    """One cell: both times in ms and the ratio."""
    first, second = (functools.partial(run, conv, x) for conv in convs)
    result = interleave(first, second, repeats)
    return f"{result.a_ms:8.2f} {result.b_ms:8.2f} {result.ratio:6.2f}  {result.low:.2f} to {result.high:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line per shape."""
    parser = OneLineParser(description="Time convolutions.", prog="python -m benchmarks.convolution")
    parser.add_argument("--batch", type=plain.positive, default=64, metavar="N", help="images (64)")
    parser.add_argument("--repeats", type=plain.positive, default=20, metavar="N", help="pairs of runs (20)")
    parser.add_argument("--side", type=plain.positive, default=2048, metavar="N", help=SIDE_HELP)
    parser.add_argument("--threads", type=plain.positive, metavar="N", help="of the processor (all)")
    opt = parser.parse_args(arguments)
    torch.set_num_threads(opt.threads or torch.get_num_threads())
    device = torch.device("cpu")
    print(machine(device))
    print(gemm_line(gemm_rates(device, opt.side)))
    print(f"ms, batch {opt.batch}          training: as it is, adapted, ratio, 10 to 90 %    inference: the same")
    shapes = [(i, o, w, s, 1) for i, o, w, s in SHAPES] + [(c, c, w, 2, c) for c, w in DEPTHWISE]
    for inputs, outputs, width, stride, groups in shapes:
        convs = layer(inputs, outputs, stride, groups), layer(inputs, outputs, stride, groups)
        adapt(convs[1])
        x = torch.randn(opt.batch, inputs, width, width).bfloat16().to(memory_format=torch.channels_last)
        x.requires_grad_()
        name = f"{inputs}->{outputs} {width}x{width}{' depthwise, stride 2' * (groups > 1)}"
        cells = (compare(run, convs, x, opt.repeats) for run in (train, infer))
        print(f"{name:34s}", *cells, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
