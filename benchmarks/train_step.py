"""Training steps of this project against those of the plain loop, in turn and in one process.

    python -m benchmarks.train_step --data_folder data                           # five pairs, three modes
    python -m benchmarks.train_step --dataset noise --pairs resnet56-resnet20 --modes none,full --threads 1

The method is LDRLD with its published weights. A block is a few steps of `benchmarks.plain`, the other one as many of
`helper.loops.train_epoch` with all that `train_student.py` gives it; blocks alternate, and the ratio is the time of the
plain one over the time of the other. The modes tell where the teacher's logits come from: computed (none), from a cache
as full as it is, on average, when epoch N begins after N - 1 epochs (epoch), or from a full one. A cache is filled with
arbitrary values before the blocks, which takes no part in the timing, and lies in the system's temporary folder. Beside
each ratio stands the machine's rate just before its blocks, in the number format of this project's training.

Peak memory is the largest resident size of a process that does nothing but a few steps of one of both loops: one for
the plain loop, whose images it loads itself, and one for each mode of this project's. With `--compile`, the compiler's
is part of it.

The plain loop's worker processes are idle while it is not its turn: each of its blocks begins with nothing prefetched
and so waits for its first batch, which a real epoch does once in 782 steps. Long blocks (`--steps`) make that small.

The parts of a step are timed in further blocks of both loops, in turn, with a clock at their borders, and are medians,
of the plain loop those over all modes: `meters` are the running figures; with
`--compile`, this project's loss is part of `student`. Both loops run in one process and share torch's settings, also
those of float32 products on CUDA.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset import EVALUATION_BATCH, Batch, ImageData, MemoryLoader, cifar100
from dataset.loader import VIEWS
from distiller_zoo import Shapes
from distiller_zoo.base import Output
from helper.checkpoint import check_model, load_network
from helper.errors import UserError, run_command
from helper.flags import OneLineParser
from helper.inference import Inference
from helper.logger import Progress
from helper.loops import TrainStep, train_epoch
from helper.options import student_options
from helper.precision import Precision
from helper.setup import (
    adapt_networks,
    build_method,
    choose_precision,
    compile_step,
    feature_shapes,
    make_phases,
    to_device,
)
from helper.teacher import Teacher, check_teacher_file, evaluate, inference_for, teacher_name
from helper.teacher_cache import LogitCache, cache_facts
from models import model_dict

from . import plain as plain_loop
from .timing import gemm_line, gemm_rate, gemm_rates, interleave, machine, milliseconds, resource, synchronize

PAIRS = "resnet32x4-resnet8x4,resnet56-resnet20,wrn_40_2-wrn_16_2,vgg13-vgg8,resnet32x4-ShuffleV2"
MODES = ("none", "epoch", "full")
PARTS = ("data", "teacher", "student", "loss", "backward", "optimizer", "meters")
TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000
SIDE_HELP = "of the matrices whose product gives the machine's rate (2048)"
WARMUP = 2  # pairs of blocks
PEAK_STEPS = 3  # of a process whose memory is measured: the second one has gradients and momentum
TESTS = 3  # of the student that are timed, in turn with blocks
SPLITS = 3  # blocks of which the parts of a step are timed
# blocks that need rows of a cache beside the timed ones: warm-ups, one more of `interleave` each time, those with the
# tests, and those in parts
FURTHER = WARMUP + 1 + (1 + 1 + TESTS) + SPLITS


@dataclass(frozen=True)
class Pair:
    """Two networks of `models/` on the CPU; neither is changed.

    Attributes:
        name_t, name_s: of teacher and student.
        teacher, student: the networks.
    """

    name_t: str
    name_s: str
    teacher: nn.Module
    student: nn.Module


class Clock:
    """Adds up what passes between two marks, under the name of the second.

    Args:
        device: is waited for at each mark.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        """The part is done."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


class Stretch:
    """The next batches of a sequence, as a loader that `train_epoch` takes.

    Args:
        batches: the sequence.
        steps: how many of them.
        device: where they are.
        mark: is told when a batch is there.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        steps: int,
        device: torch.device,
        mark: Callable[[str], None] = lambda part: None,
    ):
        self.batches, self.steps, self.device, self.mark = batches, steps, device, mark

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        self.mark("start")
        for batch in itertools.islice(self.batches, self.steps):
            self.mark("data")
            yield batch


@dataclass(frozen=True)
class MarkedTeacher:
    """A teacher that tells when its outputs are there, and when the step that they were for is over.

    Attributes:
        teacher: whose outputs they are.
        mark: is told so.
    """

    teacher: Teacher
    mark: Callable[[str], None]

    def answers(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Output]]:
        """As the teacher's."""
        for answered in self.teacher.answers(batches):
            self.mark("teacher")
            yield answered
            self.mark("meters")


def full_batches(loader: MemoryLoader, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch and those after it, without the short ones at their ends."""
    for current in itertools.count(epoch):
        loader.set_epoch(current)
        yield from (batch for batch in loader if len(batch.whole) == loader.batch_size)


class Product:
    """LDRLD as `train_student.py` sets it up, trained a few steps at a time.

    Args:
        pair: the networks; copies are trained.
        loader: of the training set.
        precision: device and number format.
        compiled: as with `--compile`.
    """

    def __init__(self, pair: Pair, loader: MemoryLoader, precision: Precision, compiled: bool = False):
        arguments = ["--distill", "ldrld", "--model_s", pair.name_s, "--batch_size", str(loader.batch_size)]
        opt, method = student_options(arguments)
        student, teacher = copy.deepcopy(pair.student), copy.deepcopy(pair.teacher)
        shapes = [feature_shapes(network, loader.side) for network in (student, teacher)]
        sizes = Shapes(*shapes, cifar100.CLASSES, loader.samples)
        distiller = build_method(method, sizes, opt.method_options, opt.kd_T, opt.transforms)
        student, teacher = adapt_networks(distiller, student, teacher, loader)
        self.loader = loader
        share = -(-loader.batch_size // loader.world)  # what a process runs of a batch
        self.teacher = Teacher(teacher, distiller.needs, precision, share, compiled)
        self.step = to_device(TrainStep(student, distiller, precision), precision)
        weights = {term: getattr(opt, flag) for flag, term in method.build.weighs.items()}
        self.phase = make_phases(opt, self.step, weights, weights)[-1]
        self.phase.schedule.apply(self.phase.optimizer, 1)
        if compiled:
            torch.compiler.reset()  # it gives up on code that too many networks share
            compile_step(self.step, self.teacher, loader, quiet=True)
        self.begin(1)

    def begin(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.epoch, self.batches = epoch, full_batches(self.loader, epoch)

    def run(self, steps: int) -> dict[str, float]:
        """Train for the next steps; returns their mean figures."""
        return self._train(Stretch(self.batches, steps, self.loader.device), self.teacher)

    def _train(self, stretch: Stretch, teacher: Teacher | MarkedTeacher) -> dict[str, float]:
        never = len(stretch) + 1
        progress = Progress("", 0, len(stretch), never, never, None, quiet=True)
        return train_epoch(self.phase, teacher, stretch, self.epoch, progress)

    def split(self, steps: int) -> dict[str, float]:
        """Milliseconds of each part of a step, means over the next steps; what is compiled counts as `student`."""
        clock = Clock(self.loader.device)
        optimizer = self.phase.optimizer

        def after(module: nn.Module, part: str) -> torch.utils.hooks.RemovableHandle:
            return module.register_forward_hook(lambda *_: clock.mark(part))

        # hooks within compiled code would split it
        inner = [] if self.step.compiled else [after(self.step.student, "student"), after(self.step.method, "loss")]
        hooks = [
            *(inner or [after(self.step, "student")]),
            optimizer.register_step_pre_hook(lambda *_: clock.mark("backward")),
            optimizer.register_step_post_hook(lambda *_: clock.mark("optimizer")),
        ]
        stretch = Stretch(self.batches, steps, self.loader.device, clock.mark)
        self._train(stretch, MarkedTeacher(self.teacher, clock.mark))
        for hook in hooks:
            hook.remove()
        return {part: 1000 * clock.seconds[part] / steps for part in PARTS}

    @contextmanager
    def cached(self, share: float | None, epoch: int, steps: int) -> Iterator[None]:
        """Inside, the training goes on at the start of an epoch, with a new cache for the teacher's logits.

        Args:
            share: of the rows of the next steps that the cache holds, 0 to 1; None for no cache.
            epoch: from 1.
            steps: how many steps are prepared for.

        Raises:
            UserError: there is no room for the cache.
        """
        self.begin(epoch)
        if share is None:
            yield
            return
        with tempfile.TemporaryDirectory() as folder:
            facts = cache_facts(self.teacher.network, self.loader, self.teacher.precision)
            cache = LogitCache(Path(folder), facts, self.loader.samples, VIEWS, cifar100.CLASSES)
            fill(cache, itertools.islice(self.batches, steps), share)
            self.teacher.cache = cache
            self.begin(epoch)
            try:
                yield
            finally:
                self.teacher.cache = None


def fill(cache: LogitCache, batches: Iterator[Batch], share: float) -> None:
    """Keep arbitrary logits for a share of the rows of each batch, drawn at random."""
    draw = np.random.default_rng(0)
    for batch in batches:
        kept = torch.from_numpy(draw.random(len(batch.entry)) < share)
        if kept.any():
            some = replace(batch, images=batch.images[kept.to(batch.images.device)], entry=batch.entry[kept])
            cache.serve(some, lambda images: torch.randn(len(images), cifar100.CLASSES, device=images.device))
    cache.hit_rate()


def step_ms(product: Product, share: float | None, steps: int, repeats: int) -> float:
    """Milliseconds of a step, the median of blocks, with a cache that holds a share of the rows (None: no cache)."""
    device = product.loader.device
    with product.cached(share, 1, steps * (repeats + 1)):
        product.run(steps)
        return statistics.median(milliseconds(lambda: product.run(steps), 1, device) for _ in range(repeats)) / steps


def expected_share(epoch: int) -> float:
    """Share of an epoch's rows that the epochs before it have left in a cache, on average."""
    return 1 - (1 - 1 / VIEWS) ** (epoch - 1)


def plain_copy(pair: Pair, device: torch.device) -> plain_loop.Plain:
    """The plain loop's training of a pair; copies of its networks are trained."""
    opt, method = student_options(["--distill", "ldrld", "--model_s", pair.name_s])
    student, teacher = (copy.deepcopy(network).to(device) for network in (pair.student, pair.teacher))
    criterion = plain_loop.ldrld_loss(plain_loop.published_weights(method.name))
    rate = opt.learning_rate / opt.warmup_epochs  # of the first epoch
    return plain_loop.Plain(
        student, teacher, criterion, plain_loop.sgd(student, rate, opt.momentum, opt.weight_decay), device
    )


def plain_split(plain: plain_loop.Plain, stretch: torch.utils.data.DataLoader, steps: int) -> dict[str, float]:
    """Milliseconds of each part of a step of the plain loop, means over a stretch."""
    clock = Clock(plain.device)
    plain.train(stretch, clock.mark)
    return {part: 1000 * clock.seconds[part] / steps for part in PARTS}


@torch.no_grad()
def set_statistics(network: nn.Module, images: Tensor) -> None:
    """Make the running statistics of batch norms those of images; with none, random networks' outputs are huge."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    network.eval()


def make_pair(names: tuple[str, str], loader: MemoryLoader, path_t: str | None = None) -> Pair:
    """The networks of a pair: random, but for a teacher that is read from `path_t`."""
    torch.manual_seed(0)
    teacher, student = (model_dict[name](num_classes=cifar100.CLASSES) for name in names)
    if path_t and teacher_name(path_t) == names[0]:
        teacher = load_network(names[0], path_t, cifar100.CLASSES)
    else:
        set_statistics(teacher, next(iter(loader)).images.cpu())
    return Pair(*names, teacher, student)


def pair_names(text: str) -> list[tuple[str, str]]:
    pairs = [tuple(word.split("-")) for word in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of pairs such as resnet56-resnet20,vgg13-vgg8")
    for name in itertools.chain(*pairs):
        check_model(name)
    return pairs


def add_pairs(parser: argparse.ArgumentParser, pairs: str, precision: str = "auto") -> None:
    """Flags of the benchmarks that set this project's training up."""
    group = parser.add_argument_group("training")
    group.add_argument("--pairs", type=pair_names, default=pairs, metavar="T-S,T-S", help=f"({pairs})")
    group.add_argument("--path_t", metavar="FILE", help="weights for the teacher of that network (random)")
    group.add_argument("--precision", default=precision, metavar="NAME", help=f"auto, fp32, bf16 ({precision})")
    group.add_argument("--compile", action="store_true", help="as the flag of train_student.py")
    plain_loop.add_machine(parser)


def add_step(parser: argparse.ArgumentParser, pairs: str, repeats: int) -> None:
    """Flags of the benchmarks that run steps of this project's training."""
    add_pairs(parser, pairs)
    group = parser.add_argument_group("steps")
    group.add_argument("--steps", type=plain_loop.positive, default=10, metavar="N", help="in a block (10)")
    repeats_help = f"blocks that are timed ({repeats})"
    group.add_argument("--repeats", type=plain_loop.positive, default=repeats, metavar="N", help=repeats_help)


def start(opt: argparse.Namespace) -> Precision:
    """Set threads, device and precision of the command line.

    Raises:
        UserError: `--path_t` is no checkpoint of one of the teachers.
    """
    if opt.threads:
        torch.set_num_threads(opt.threads)
    if opt.path_t:
        check_teacher_file(opt.path_t)
        if teacher_name(opt.path_t) not in [name_t for name_t, _ in opt.pairs]:
            raise UserError(f"--path_t {opt.path_t} is a {teacher_name(opt.path_t)}, the teacher of no pair")
    arguments = ["--distill", "ldrld", "--device", opt.device, "--precision", opt.precision]
    return choose_precision(student_options([*arguments, *["--compile"] * opt.compile])[0])


def memory_loader(data: ImageData, batch: int, device: torch.device, train: bool = True) -> MemoryLoader:
    """The loader that `get_dataset` makes.

    Raises:
        UserError: the images are fewer than a batch.
    """
    if train and len(data.labels) < batch:
        raise UserError(f"{len(data.labels)} images are fewer than a batch of {batch}")
    return MemoryLoader(data, cifar100.MEAN, cifar100.STD, batch, device, train)


def left_uncompiled(product: Product, opt: argparse.Namespace) -> str:
    """What to say where `--compile` was asked for and the student runs faster without."""
    return ", the student uncompiled, which is faster" if opt.compile and product.step.compiled is None else ""


def peak_memory() -> float:
    """The largest resident size that this process had, in MiB; NaN where the system does not tell."""
    status = Path("/proc/self/status")  # of Linux, whose getrusage counts the process that started this one as well
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        size = 1024 * int(found[1])
    elif resource:
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    else:
        return math.nan
    return size / 2**20


def train_alone(names: tuple[str, str], opt: argparse.Namespace, plainly: bool, share: float | None = None) -> float:
    """Do a few steps with one of both loops, in a process that does nothing else; returns its `peak_memory`.

    Args:
        names: of teacher and student.
        opt: the command line.
        plainly: with the plain loop, or with this project's.
        share: of the rows that a cache holds, None for no cache.
    """
    precision = start(opt)
    train, _ = plain_loop.read_images(opt)
    if plainly:
        few = ImageData(train.images[: opt.batch], train.labels[: opt.batch])  # the loop has no padded copy of all
        pair_loader = memory_loader(few, opt.batch, precision.device)
        plain = plain_copy(make_pair(names, pair_loader, opt.path_t), precision.device)
        plain.train(plain_loop.train_stretch(train, opt.batch, 0, PEAK_STEPS))
    else:
        loader = memory_loader(train, opt.batch, precision.device)
        del train  # of which the loader has a padded copy
        product = Product(make_pair(names, loader, opt.path_t), loader, precision, opt.compile)
        with product.cached(share, opt.epoch, PEAK_STEPS):
            product.run(PEAK_STEPS)
    return peak_memory()


def split_line(name: str, blocks: Sequence[dict[str, float]]) -> str:
    """The medians of the parts, and of their sums."""
    parts = "".join(f"{statistics.median(block[part] for block in blocks):>10.2f}" for part in PARTS)
    return f"  {name:<20}{statistics.median(sum(block.values()) for block in blocks):>10.2f}{parts}"


@dataclass
class Bench:
    """What the pairs share.

    Attributes:
        opt: the command line.
        loader: this project's, of the training set.
        stretch: the plain one, of as many batches as a block has.
        tests: both loaders of the test images, the plain one first.
        precision: of this project's training.
    """

    opt: argparse.Namespace
    loader: MemoryLoader
    stretch: torch.utils.data.DataLoader
    tests: tuple[torch.utils.data.DataLoader, MemoryLoader]
    precision: Precision

    def pair(self, names: tuple[str, str]) -> None:
        """Time a pair and print its tables."""
        opt = self.opt
        pair = make_pair(names, self.loader, opt.path_t)
        plain = plain_copy(pair, self.precision.device)
        product = Product(pair, self.loader, self.precision, opt.compile)
        print(f"\n{pair.name_t} -> {pair.name_s}, batches of {opt.batch}{left_uncompiled(product, opt)}")
        titles = f"  {'teacher':<20}{'hits':>7}{'plain img/s':>14}{'ours img/s':>12}{'ratio':>8}"
        print(f"{titles}  {'10 to 90 %':<16}matrix GFLOP/s")
        modes = {
            "none": ("no cache", None),
            "epoch": (f"cache at epoch {opt.epoch}", expected_share(opt.epoch)),
            "full": ("full cache", 1.0),
        }
        splits, speeds, tests = defaultdict(list), {}, []
        logits = inference_for(product.step.student, self.precision, self.tests[1])
        for name, share in (modes[mode] for mode in opt.modes):
            with product.cached(share, opt.epoch, opt.steps * (FURTHER + opt.repeats)):
                speeds[name] = self.compare(name, plain, product)
                tests.append(f"{self.test(product, logits)} with {name}")
                for _ in range(min(SPLITS, opt.repeats)):
                    splits["plain"].append(plain_split(plain, self.stretch, opt.steps))
                    splits[name].append(product.split(opt.steps))
        print(f"  {'ms of a step':<20}" + "".join(f"{part:>10}" for part in ("all", *PARTS)))
        for name, blocks in splits.items():
            print(split_line(name, blocks))
        theirs = self.plain_test(plain, speeds)
        print(
            f"  test of {TEST_IMAGES:,} images, share of an epoch: plain {theirs}; ours {', '.join(tests)}", flush=True
        )
        peaks = {"plain": self.peak(names, opt, True)}
        for name, share in (modes[mode] for mode in opt.modes):
            peaks[f"ours with {name}"] = self.peak(names, opt, False, share)
        words = ", ".join(f"{name} {peak:,.0f} MiB" for name, peak in peaks.items())
        print(f"  peak memory of {PEAK_STEPS} steps in a process: {words}", flush=True)

    def compare(self, name: str, plain: plain_loop.Plain, product: Product) -> float:
        """Blocks of both in turn; prints the line and returns images/s of the plain loop."""
        opt, precision = self.opt, self.precision
        # now: that of a shared machine drifts
        rate = gemm_rate(precision.dtype, precision.device, opt.side).per_second / 1e9
        blocks = (lambda: plain.train(self.stretch), lambda: product.run(opt.steps))
        c = interleave(*blocks, opt.repeats, WARMUP, precision.device, block_ms=0)
        cache = product.teacher.cache
        hits = f"{100 * cache.hit_rate():.0f} %" if cache else "-"
        speeds = [1000 * opt.steps * opt.batch / ms for ms in (c.a_ms, c.b_ms)]
        line = f"  {name:<20}{hits:>7}{speeds[0]:>14.1f}{speeds[1]:>12.1f}{c.ratio:>8.2f}"
        spread = f"{c.low:.2f} to {c.high:.2f}"
        print(f"{line}  {spread:<16}{rate:,.0f}", flush=True)
        return speeds[0]

    def test(self, product: Product, logits: Inference) -> str:
        """Tests of the student in turn with blocks of its training, and what share of an epoch they would take."""
        opt, own_test = self.opt, self.tests[1]
        c = interleave(
            lambda: evaluate(product.step.student, own_test, self.precision, logits=logits),
            lambda: product.run(opt.steps),
            min(TESTS, opt.repeats),
            warmup=1,
            device=self.precision.device,
            block_ms=0,
        )
        scale = TEST_IMAGES / own_test.samples
        blocks = TRAIN_IMAGES / (opt.steps * opt.batch)  # of an epoch
        shares = [100 * scale * ratio / (scale * ratio + blocks) for ratio in (c.ratio, c.low, c.high)]
        return f"{c.a_ms / 1000 * scale:.2f} s, {shares[0]:.1f} % ({shares[1]:.1f} to {shares[2]:.1f})"

    def peak(self, *arguments: object) -> float:
        """`train_alone` in a new process, which has no memory of this one's."""
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(train_alone, *arguments).result()

    def plain_test(self, plain: plain_loop.Plain, speeds: dict[str, float]) -> str:
        """The same of the plain loop, whose images/s in the blocks are known."""
        ms = [milliseconds(lambda: plain.test(self.tests[0]), 1, self.precision.device) for _ in range(2)]
        seconds = min(ms) / 1000 * TEST_IMAGES / self.opt.test_images
        return f"{seconds:.2f} s, {100 * seconds / (seconds + TRAIN_IMAGES / statistics.median(speeds.values())):.1f} %"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the tables."""
    parser = OneLineParser(prog="python -m benchmarks.train_step", description="Time training against the plain loop.")
    modes_help = f"of {', '.join(MODES)} (all)"
    parser.add_argument(
        "--modes", type=plain_loop.names_of(MODES, "mode"), default=",".join(MODES), metavar="A,B", help=modes_help
    )
    parser.add_argument("--epoch", type=plain_loop.positive, default=100, metavar="N", help="of the mode epoch (100)")
    parser.add_argument("--batch", type=plain_loop.positive, default=64, metavar="N", help="images in a step (64)")
    workers = min(8, os.cpu_count() or 1)
    workers_help = f"processes of the plain loader (8, but no more than there are processors: {workers})"
    parser.add_argument("--workers", type=plain_loop.count, default=workers, metavar="N", help=workers_help)
    test_help = "to time the plain test (2000); ours takes all, since it begins by folding the network"
    parser.add_argument("--test_images", type=plain_loop.positive, default=2000, metavar="N", help=test_help)
    parser.add_argument("--side", type=plain_loop.positive, default=2048, metavar="N", help=SIDE_HELP)
    add_step(parser, PAIRS, repeats=20)
    opt = parser.parse_args(arguments)
    precision = start(opt)
    train, test = plain_loop.read_images(opt)
    few = ImageData(test.images[: opt.test_images], test.labels[: opt.test_images])
    opt.test_images = len(few.labels)
    bench = Bench(
        opt,
        memory_loader(train, opt.batch, precision.device),
        plain_loop.train_stretch(train, opt.batch, opt.workers, opt.steps),
        (
            plain_loop.test_batches(few, opt.batch, opt.workers),
            memory_loader(test, EVALUATION_BATCH[precision.device.type], precision.device, train=False),
        ),
        precision,
    )
    print(machine(precision.device))
    print(gemm_line(gemm_rates(precision.device, opt.side)))
    print(f"{len(train.labels):,} images of {opt.dataset}, {precision.name}, blocks of {opt.steps} steps", end="")
    print(f", {opt.repeats} timed, {opt.workers} plain worker processes{', compiled' * opt.compile}")
    for names in opt.pairs:
        bench.pair(names)


if __name__ == "__main__":
    sys.exit(run_command(main))
