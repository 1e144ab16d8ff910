"""Convolutions in bfloat16 as they are against the forms of `helper.cpu_convolution`, training and inference.

    python -m benchmarks.convolution --threads 1

The forms are those that this processor is given, or those for the one of `--forms`. Shapes are those of this project's
networks at batch 64. The ratio is the time of the one as it is over that of the other; with AMX the last of the plain
shapes is left as it is, without it all of 3x3 are, so that their ratio shows the noise.
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
from helper.precision import cpu_has_amx

from . import plain
from .timing import gemm_line, gemm_rates, interleave, machine
from .train_step import SIDE_HELP

# input and output channels, kernel, width of the maps, stride
SHAPES = (
    (64, 64, 3, 8, 1),
    (128, 128, 3, 8, 1),
    (128, 256, 3, 8, 1),
    (256, 256, 3, 8, 1),
    (256, 512, 3, 4, 1),
    (512, 512, 3, 4, 1),
    (48, 288, 1, 4, 1),
    (116, 116, 1, 8, 1),
    (232, 232, 1, 4, 1),
    (480, 80, 1, 2, 1),
    (1024, 512, 1, 2, 1),
    (128, 128, 3, 16, 1),
)
DEPTHWISE = ((96, 3, 32, 2), (144, 3, 16, 2), (232, 3, 16, 2), (480, 3, 2, 1))  # channels, then as above


def layer(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
    """A convolution in channels-last layout, whose maps keep their size at stride 1."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
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
    parser.add_argument(
        "--forms", choices=("amx", "avx512"), help="those for a processor with or without AMX (this one)"
    )
    opt = parser.parse_args(arguments)
    amx = opt.forms == "amx" if opt.forms else cpu_has_amx()
    torch.set_num_threads(opt.threads or torch.get_num_threads())
    device = torch.device("cpu")
    print(machine(device))
    print(gemm_line(gemm_rates(device, opt.side)))
    print(f"{f'ms, batch {opt.batch}':<43}training: as it is, adapted, ratio, 10 to 90 %    inference: the same")
    shapes = [(*shape, 1) for shape in SHAPES] + [(shape[0], *shape, shape[0]) for shape in DEPTHWISE]
    for inputs, outputs, kernel, width, stride, groups in shapes:
        convs = [layer(inputs, outputs, kernel, stride, groups) for _ in range(2)]
        adapt(convs[1], amx)
        x = torch.randn(opt.batch, inputs, width, width).bfloat16().to(memory_format=torch.channels_last)
        x.requires_grad_()
        kind = f", depthwise, stride {stride}" if groups > 1 else ""
        name = f"{inputs}->{outputs} {kernel}x{kernel}, {width}x{width}{kind}"
        cells = (compare(run, convs, x, opt.repeats) for run in (train, infer))
        print(f"{name:42s}", *cells, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
