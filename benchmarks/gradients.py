"""How far the gradients of low-precision training are from float32's, on the same weights and batches.

    python -m benchmarks.gradients --path_t FILE --data_folder data              # resnet56 -> resnet20, LDRLD
    python -m benchmarks.gradients --path_t FILE --compile --steps 100 --repeats 4 --batches 50

The student is trained in float32, at one rate and without a warm-up, and stops every few steps. There its gradients are
taken for further batches, in float32 and in the low format, the teacher's logits being float32's for both. Figures are
of each tensor of weights, over these batches; printed are the median over all tensors and, in brackets, the extremes:

- `rounding`: difference of both gradients of a batch, as a part of the gradient (root mean squares).
- `batches`: deviation of a batch's float32 gradient from their mean, as a part of the gradient, likewise.
- `slope`: length of the low format's mean gradient along float32's; below 1, rounding shortens the steps.
- `left`: difference of both mean gradients over what errors of that size leave where they are independent from batch
  to batch, which is `rounding` over the root of the number of batches. Far above 1, rounding has a direction.

It also runs where the processor has no products in the low format, slowly.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from dataset import Batch
from distiller_zoo.base import Output
from helper.errors import UserError, run_command
from helper.flags import OneLineParser
from helper.loops import TrainStep
from helper.precision import Precision

from . import plain
from .timing import machine
from .train_step import Product, Stretch, add_pairs, make_pair, memory_loader, start

EPOCH = 1  # LDRLD's loss is the same in all


@dataclass
class Sums:
    """What is added up over the batches, of the gradients of one tensor.

    Attributes:
        low, high: the gradients in the low format and in float32.
        squared_error, squared: squares of their difference and of the latter, scalars.
        batches: how many.
    """

    low: Tensor
    high: Tensor
    squared_error: Tensor
    squared: Tensor
    batches: int = 0

    @classmethod
    def zeros(cls, shape: torch.Size) -> Sums:
        """Of no batch."""
        return cls(*(torch.zeros(size, dtype=torch.float64) for size in (shape, shape, (), ())))

    def add(self, low: Tensor, high: Tensor) -> None:
        """Take both gradients of a batch."""
        low, high = low.double().cpu(), high.double().cpu()
        self.low += low
        self.high += high
        self.squared_error += (low - high).square().sum()
        self.squared += high.square().sum()
        self.batches += 1


@dataclass(frozen=True)
class Figures:
    """What the module's docstring says, of one tensor."""

    rounding: float
    batches: float
    slope: float
    left: float

    @classmethod
    def of(cls, sums: Sums) -> Figures:
        """From the sums over some batches.

        Raises:
            UserError: the gradients are 0 or not finite.
        """
        if not 0 < sums.squared.item() < math.inf or not sums.low.isfinite().all():
            raise UserError("a gradient is 0 or not finite: train for more steps, or at a lower --learning_rate")
        batches = sums.batches
        high, error = (root.sqrt().item() for root in (sums.squared / batches, sums.squared_error / batches))
        mean = (sums.high / batches).norm().item()
        left = ((sums.low - sums.high) / batches).norm().item() / (error / math.sqrt(batches)) if error else 0.0
        slope = ((sums.low * sums.high).sum() / sums.high.square().sum()).item()
        return cls(error / high, math.sqrt(max(0.0, high**2 - mean**2)) / high, slope, left)


def gradients(step: TrainStep, weights: Mapping[str, float], batch: Batch, teacher: Output) -> dict[str, Tensor]:
    """Gradients of the weighted loss by the student's parameters."""
    step.zero_grad()
    _, terms = step(batch, teacher, EPOCH)
    sum(weight * terms[name] for name, weight in weights.items()).backward()
    return {name: parameter.grad for name, parameter in step.student.named_parameters()}


def compare(
    low: TrainStep, high: TrainStep, weights: Mapping[str, float], answered: Iterable[tuple[Batch, Output]]
) -> list[Figures]:
    """Figures of each of the student's tensors.

    Args:
        low, high: one student in both formats, in training mode; running statistics change.
        weights: of the loss terms.
        answered: batches, each with the teacher's output.
    """
    sums = {name: Sums.zeros(parameter.shape) for name, parameter in high.student.named_parameters()}
    for batch, teacher in answered:
        found = gradients(low, weights, batch, teacher)
        expected = gradients(high, weights, batch, teacher)
        for name, those in sums.items():
            those.add(found[name], expected[name])
    return [Figures.of(those) for those in sums.values()]


def cell(values: Sequence[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def bench(names: tuple[str, str], opt: argparse.Namespace, low: Precision) -> None:
    """Print the lines of a pair."""
    loader = memory_loader(plain.read_images(opt)[0], opt.batch, low.device)
    pair = make_pair(names, loader, opt.path_t)
    trained, other = (Product(pair, loader, Precision(low.device, dtype)) for dtype in (torch.float32, low.dtype))
    if opt.compile:
        torch.compiler.reset()  # it gives up on code that too many networks share
        other.step.compile(opt.batch, opt.batch)
    for group in trained.phase.optimizer.param_groups:
        group["lr"] = opt.learning_rate
    print(f"\n{names[0]} -> {names[1]}, {low.name}, {opt.batches} batches of {opt.batch}{', compiled' * opt.compile}")
    print(f"{'steps':>6}" + "".join(f"{name:>26}" for name in Figures.__annotations__))
    for number in range(1, opt.repeats + 1):
        trained.run(opt.steps)
        other.step.load_state_dict(trained.step.state_dict())
        other.step.train()
        further = Stretch(trained.batches, opt.batches, low.device)
        found = compare(other.step, trained.step, trained.phase.weights, trained.teacher.answers(further))
        columns = zip(*map(astuple, found), strict=True)
        print(f"{number * opt.steps:>6}" + "".join(f"{cell(values):>26}" for values in columns), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the tables."""
    parser = OneLineParser(prog="python -m benchmarks.gradients", description="Gradients of both formats.")
    count = plain.positive
    parser.add_argument("--steps", type=count, default=50, metavar="N", help="between two comparisons (50)")
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="comparisons (3)")
    parser.add_argument("--batches", type=count, default=24, metavar="N", help="of a comparison (24)")
    parser.add_argument("--batch", type=count, default=64, metavar="N", help="images in a step (64)")
    parser.add_argument("--learning_rate", type=float, default=0.05, metavar="X", help="(0.05)")
    add_pairs(parser, "resnet56-resnet20", precision="bf16")
    opt = parser.parse_args(arguments)
    low = start(opt)
    if low.dtype == torch.float32:
        raise UserError(f"--precision {opt.precision} is float32 here; name bf16")
    print(machine(low.device))
    for names in opt.pairs:
        bench(names, opt, low)


if __name__ == "__main__":
    sys.exit(run_command(main))
