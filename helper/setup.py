"""Steps that both entry scripts take before training."""

from __future__ import annotations

import argparse
import copy
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset import (
    Data,
    DataError,
    DiskLoader,
    Loader,
    Reading,
    TrainLoader,
    dataset_dict,
    get_dataset,
)
from distiller_zoo import transform_registry
from distiller_zoo.base import Distiller, Method, Needs, Shapes
from models import with_own_input

from . import distributed
from .checkpoint import load_checkpoint
from .errors import UserError
from .loops import Phase, StageStep, TrainStep, fit
from .optim import make_optimizer
from .options import describe
from .precision import Precision, keep_timing, pick_device
from .run import Run, safe_name
from .schedule import CosineSchedule, Rates, Schedule
from .teacher import Teacher, evaluate, measured_accuracy
from .teacher_cache import LogitCache, cache_facts

MOST_WORKERS = 8  # RepDistiller's number of loader processes
TIMED_STEPS = 3
LITTLE = 0.04  # of the way from guessing to always right, which a teacher should be above


def load_data(opt: argparse.Namespace, precision: Precision) -> Data:
    """The data set of the options, which get its notes and, where its images are files, their size and normalisation.

    Of several processes, each has its share.

    Raises:
        UserError: it is absent or malformed, or a batch is too small to be shared.
    """
    if opt.batch_size < distributed.size():
        raise UserError(
            f"--batch_size {opt.batch_size} is less than an image for each of {distributed.size()} processes"
        )
    files = dataset_dict[opt.dataset].layout is not None
    if opt.num_workers is None:
        opt.num_workers = min(MOST_WORKERS, os.cpu_count() or 1) if files else 0
    names = ("image_size", "mean", "std", "memory_budget", "val_split", "rand_augment", "random_erasing", "rotation")
    given = {name: getattr(opt, name) for name in names}
    reading = Reading(
        **given,
        skip_bad_images=bool(opt.skip_bad_images),
        workers=opt.num_workers,
        fallback=Path(opt.save_folder) / "datasets.json",
    )
    sizes = (opt.batch_size, precision.device, opt.seed, opt.subset)
    try:
        with distributed.first_of_each_machine():
            data = get_dataset(opt.dataset, opt.data_folder, *sizes, reading)
    except DataError as error:
        raise UserError(str(error)) from None
    opt.notes += data.notes
    loaders = {"training": data.train, "test": data.test, "held-out": data.val}
    loaders = {name: loader for name, loader in loaders.items() if loader}
    distributed.refuse_differences({f"{name} images": loader.samples for name, loader in loaders.items()})
    for loader in loaders.values():
        loader.shard(distributed.rank(), distributed.size())
    if files:
        opt.image_size, opt.mean, opt.std, opt.contents = data.train.side, data.mean, data.std, data.contents
        if not opt.quiet:
            print(_in_words(data, opt), flush=True)
    return data


def _in_words(data: Data, opt: argparse.Namespace) -> str:
    """What the data set was found to be."""
    loaders = {"training": data.train, "validation": data.val, "test": data.test}
    counts = ", ".join(f"{loader.samples} {name}" for name, loader in loaders.items() if loader)
    height, width = data.train.side
    place = "read from disk" if isinstance(data.train, DiskLoader) else "in memory"
    return f"{opt.dataset}: {data.classes} classes, {counts} images of {width}×{height}, {place}"


def timing_file(opt: argparse.Namespace) -> Path:
    """Where what `--precision auto` has timed is kept for all runs with this save folder."""
    return Path(opt.save_folder) / "bfloat16_is_faster.json"


def choose_precision(opt: argparse.Namespace) -> Precision:
    """Device and number format of the options, which then hold the resolved names.

    Raises:
        UserError: the device cannot be used, or torch.compile not where it is asked for.
    """
    device = pick_device(distributed.own_device(opt.device))
    precision = Precision.choose(opt.precision, device, timing_file(opt))
    opt.device, opt.precision = str(precision.device), precision.name
    if precision.emulated:
        opt.notes.append(
            f"this processor emulates {opt.precision}, which is far slower than float32, which --precision auto takes"
        )
    if precision.dtype == torch.float16 and getattr(opt, "optimizer", "sgd") == "dot":
        raise UserError(
            "--optimizer dot does not go with float16, the fast format of this device; add --precision fp32"
        )
    if opt.compile:
        try:
            torch.compile(torch.neg)(torch.zeros(2, device=precision.device))
        except (RuntimeError, ImportError) as error:  # no C++ compiler, no Triton, ...
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--compile: torch.compile does not work here ({reason}); leave it out") from None
    if precision.device.type == "cuda":
        if precision.device.index is not None:
            torch.cuda.set_device(precision.device)  # of what names no device, such as pinned memory
        torch.backends.cudnn.benchmark = True  # all batches but the last are of one size
        # the default rounds the factors of float32 convolutions to 10 bits
        torch.backends.cudnn.allow_tf32 = precision.dtype != torch.float32 or opt.tf32
        torch.backends.cuda.matmul.allow_tf32 = opt.tf32
    elif opt.tf32:
        raise UserError("--tf32 is a number format of CUDA devices; leave it out")
    return precision


def with_input_of(network: nn.Module, loader: Loader, own: nn.Module | None = None) -> nn.Module:
    """A network that takes a loader's images, brought to its own size and normalisation where it has one.

    Args:
        network: to be run.
        loader: gives the images.
        own: the network of `models/` inside, where a method has wrapped it.
    """
    own = own or network
    if own.input_size is own.mean is own.std is None:
        return network
    return with_own_input(network, own, loader.side, loader.normalise.mean, loader.normalise.std)


@torch.no_grad()
def feature_shapes(
    network: nn.Module, side: tuple[int, int], name: str = "the network", classes: int | None = None
) -> list[torch.Size]:
    """Shapes of a network's features for two images, in the order of its feature list.

    Args:
        network: takes images (B, 3, H, W).
        side: their height and width.
        name: of the network, for messages.
        classes: number of logits C that it should have; None for any.

    Raises:
        UserError: it fails on such images, or gives something else than logits.
    """
    training = network.training
    try:
        features, logits = network.eval()(torch.zeros(2, 3, *side), is_feat=True)
    except Exception as error:  # it may be foreign code
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{name} fails on images of {side[0]}×{side[1]} ({reason}); bring them to another size with --size_s, "
            "--size_t or, in train_teacher.py, --size"
        ) from None
    network.train(training)
    given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if classes and given != (2, classes):
        raise UserError(f"{name} gives {given} for two images of {classes} classes, and not logits (2, {classes})")
    return [feature.shape for feature in features]


def build_method(
    method: Method,
    shapes: Shapes,
    options: Mapping[str, Any],
    temperature: float,
    transforms: Mapping[str, Mapping[str, Any]],
) -> Distiller:
    """Make the distiller of a pair of networks.

    Args:
        method: the line of the registry.
        shapes: sizes of the networks and the data set.
        options: keyword arguments of its constructor.
        temperature: `--kd_T`.
        transforms: keyword arguments of the logit transforms, by name.

    Raises:
        UserError: an option is out of range or the pair does not suit the method.
    """
    for flag, found in (("s", shapes.student), ("t", shapes.teacher)):
        whose, features = {"s": "student", "t": "teacher"}[flag], method.build.needs.features
        if len(found) < {"none": 0, "last": 1}.get(features, 3):
            raise UserError(
                f"--distill {method.name} compares features, and none were found in the {whose}; "
                f"name its modules that give maps or tokens with --taps_{flag}"
            )
        wrong = [[*shape] for shape in found[1:-1] if len(shape) != 4]
        if wrong and features in ("mid", "all"):
            raise UserError(
                f"--distill {method.name} compares maps, and the {whose} gives a feature of shape {wrong[0]}: between "
                "the stem's and the pooled vector, its list has the stages' maps (B, C, H, W) alone"
            )
    try:
        distiller = method.build(shapes, **options)
        for name, arguments in transforms.items():
            distiller.add_transform(transform_registry[name](shapes, **arguments))
    except ValueError as error:
        raise UserError(f"{method.name}: {error}") from None
    distiller.temperature = temperature
    return distiller


def adapt_networks(
    distiller: Distiller, student: nn.Module, teacher: nn.Module, loader: Loader
) -> tuple[nn.Module, nn.Module]:
    """Let the method look at the teacher and wrap either network; returns the student and the teacher to run.

    Both then take the loader's images, see `with_input_of`.

    Args:
        distiller: the method.
        student: of `models/`.
        teacher: of `models/`, with its weights.
        loader: of the training set.

    Raises:
        UserError: the method cannot use this teacher.
    """
    try:
        seen = with_input_of(teacher, loader).to(loader.device).eval().requires_grad_(False)
        with torch.no_grad():
            distiller.prepare(seen, loader.plain())
        wrapped = distiller.wrap_student(student, teacher), distiller.wrap_teacher(teacher)
    except (ValueError, NotImplementedError) as error:
        raise UserError(str(error)) from None
    return tuple(with_input_of(*pair) for pair in zip(wrapped, (loader, loader), (student, teacher), strict=True))


def to_device(step: TrainStep, precision: Precision) -> TrainStep:
    """Move student and method to the run's device, in the layout and formats that convolutions like best.

    Raises:
        UserError: they do not fit.
    """
    precision.spare_slow_operations(step.student)  # adapters compute in float32
    try:
        return step.to(precision.device, memory_format=torch.channels_last)
    except torch.OutOfMemoryError:
        tensors = [*step.parameters(), *step.buffers()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        raise UserError(
            f"student and method take {size / 2**30:.1f} GiB, more than {precision.device} has left"
        ) from None


def open_cache(
    opt: argparse.Namespace, data: Data, needs: Needs, teacher: nn.Module, precision: Precision
) -> LogitCache | None:
    """The logit cache of the options; None where there is none or the method needs more than logits.

    Raises:
        UserError: its folder cannot be used.
    """
    if not opt.teacher_cache:
        return None
    if needs.features != "none":
        opt.notes.append(f"--teacher_cache is not used: it keeps logits, {opt.distill} needs features")
        return None
    if needs.strong_view:
        opt.notes.append("--teacher_cache keeps no strong views, which are too many: the teacher sees these every time")
    if data.train.views is None:
        raise UserError(
            "--teacher_cache: images that are read from disk or changed by --rand_augment, --random_erasing or "
            "--rotation have no finite number of views, so that none would be met again; leave it out, or keep images "
            "in memory with --memory_budget and unchanged with --rand_augment 0 --random_erasing 0 --rotation 0"
        )
    facts = cache_facts(teacher, data.train, precision)
    return LogitCache(Path(opt.teacher_cache), facts, data.train.samples, data.train.views, data.classes)


def _time_both(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Seconds that each takes: the best of TIMED_STEPS, in turns; the main process's figures."""
    seconds = ([], [])
    for run, times in TIMED_STEPS * list(zip((first, second), seconds, strict=True)):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return distributed.share((min(seconds[0]), min(seconds[1])))


def compile_step(step: TrainStep, teacher: Teacher | None, loader: TrainLoader, quiet: bool) -> None:
    """Compile what is trained, and run it for nothing, so that the first epoch does not wait for the compiler.

    On a CPU, where what is fused can be slower, a step that is not faster compiled runs as it is.

    Args:
        step: student and method; as before in the end.
        teacher: None when training from labels.
        loader: of the training set.
        quiet: do not print what it took.
    """
    start = time.perf_counter()
    before = copy.deepcopy(step.state_dict())
    batch = next(iter(loader))
    step.compile(len(batch.target), len(batch.whole))
    step.train()
    target = teacher(batch) if teacher else None
    if teacher and teacher.cache:
        teacher.cache.hit_rate()  # the first epoch's begins with its own first batch
    fused = step.compiled

    def run(compiled: Callable | None = fused) -> None:
        """A step without an update."""
        step.compiled = compiled
        _, terms = step(batch, target, epoch=1)
        sum(terms.values()).backward()
        step.zero_grad(set_to_none=True)

    run()
    taken = f"compiled in {time.perf_counter() - start:.0f} s"
    if step.precision.device.type == "cpu":
        seconds = _time_both(run, functools.partial(run, compiled=None))
        step.compiled = fused if seconds[0] <= seconds[1] else None
        taken += f"; a step takes {seconds[0]:.3f} s, and {seconds[1]:.3f} s uncompiled"
        taken += "" if step.compiled else ": the student runs uncompiled"
    step.load_state_dict(before)
    step.method.figures()  # what it counts begins with the first epoch, too
    if not quiet:
        print(taken, flush=True)


def new_run(opt: argparse.Namespace, folder: str, events: str, name: str, model: str) -> Run:
    """The run of the options, not yet on disk.

    Args:
        opt: resolved options.
        folder, events: below `--save_folder`, where runs and TensorBoard events of this kind lie.
        name: the run's.
        model: the trained network's name.

    Raises:
        UserError: its folder holds a run and `--resume` is off.
    """
    base = Path(opt.save_folder)
    split = "test" if opt.val_split is None else "val"
    run = Run(base / folder / name, base / events / name, safe_name(model), opt.epochs, opt.seed, split)
    run.refuse_overwriting(opt.resume)
    return run


def begin(run: Run, opt: argparse.Namespace, phases: Sequence[Phase], facts: Mapping[str, Any]) -> None:
    """Print the resolved configuration and open the run's folder.

    Args:
        run: from `new_run`.
        opt: resolved options.
        phases: of the training.
        facts: further entries of options.json.

    Raises:
        UserError: the run was started with other options, or its folder cannot be written.
    """
    processes = distributed.size()
    options = {**describe(opt), **facts, "processes": processes}
    if not opt.quiet:
        width = max(len(name) for name in options)
        print(*(f"  {name:<{width}}  {value}" for name, value in options.items()), sep="\n")
        for phase in phases:
            loss = " + ".join(f"{weight:g}·{name}" for name, weight in phase.weights.items())
            print(f"{phase.epochs} epochs of {phase.name}: loss = {loss}" if phase.name else f"loss = {loss}")
        if getattr(opt, "transforms", None):
            print(f"logits: {' -> '.join(opt.transforms)} -> loss")
        if processes > 1:
            seen = "the whole batch" if opt.sync_bn else "the images of their process (--sync_bn: the whole batch)"
            print(f"{processes} processes share the {opt.batch_size} images of a step; batch norms see {seen}")
        print(f"run folder {run.folder}", flush=True)
    for note in opt.notes:
        print(f"note: {note}", file=sys.stderr)
    run.open(options)


def make_phases(
    opt: argparse.Namespace, step: TrainStep, weights: Mapping[str, float], published: Mapping[str, float]
) -> list[Phase]:
    """The method's pre-training stages, which run under SGD, and the main training.

    Args:
        opt: resolved options.
        step: student and method.
        weights: of the terms by name. One that bears a stage's name scales the stage's loss; 0 leaves the stage out.
        published: default weights of the terms by name.

    Raises:
        UserError: only pre-training has a weight.
    """
    common = {"momentum": opt.momentum, "weight_decay": opt.weight_decay}
    phases, names = [], []
    for stage in step.method.stages(step.student):
        names.append(stage.name)
        rate, module = stage.learning_rate or opt.learning_rate, StageStep(step, stage)
        scale = weights[stage.name] / published[stage.name] if stage.name in weights else 1.0
        if not scale:
            continue
        sgd = torch.optim.SGD(module.trained.parameters(), lr=rate, fused=True, **common)
        scaler = step.precision.scaler()
        phases.append(Phase(stage.name, module, stage.epochs, sgd, Schedule(rate), {stage.name: scale}, scaler))
    terms = {term: weight for term, weight in weights.items() if term not in names}
    if not any(terms.values()):
        raise UserError(f"the weights of {' and '.join(terms)} are 0: after pre-training, nothing would be learned")
    main = make_optimizer(opt.optimizer, step, opt.learning_rate, delta=getattr(opt, "dot_delta", None), **common)
    return [*phases, Phase("", step, opt.epochs, main, main_schedule(opt), terms, step.precision.scaler())]


def main_schedule(opt: argparse.Namespace) -> Rates:
    """The learning rates of the main training."""
    if opt.lr_schedule == "cosine":
        return CosineSchedule(opt.learning_rate, opt.epochs, opt.warmup_epochs, opt.lr_end)
    decay = (opt.lr_decay_epochs, opt.lr_decay_rate, opt.warmup_epochs, opt.official_warmup)
    return Schedule(opt.learning_rate, *decay)


def train(
    run: Run,
    opt: argparse.Namespace,
    step: TrainStep,
    phases: Sequence[Phase],
    teacher: Teacher | None,
    loaders: tuple[TrainLoader, Data],
) -> None:
    """Resume where asked, run the epochs that are left, write the summary.

    Args:
        run: its folder is open.
        opt: resolved options.
        step: student and method.
        phases: of the training.
        teacher: None when training from labels.
        loaders: of the training set, and the data set that it belongs to.
    """
    train_loader, data = loaders
    keep_timing(timing_file(opt))
    if distributed.share(run.finished):
        if not opt.quiet:
            print(f"{run.folder} is finished")
        return
    if opt.resume:
        run.restore(step, phases)
        if not opt.quiet:
            last = run.history[-1] if run.history else None
            print(f"resuming after epoch {last['epoch']}" if last else "nothing to resume: from the start", flush=True)
    distributed.copy_from_main(step)
    if opt.compile:
        compile_step(step, teacher, train_loader, opt.quiet)
    fit(run, step, phases, teacher, (train_loader, data.held))
    if data.val is not None:
        test_once(run, step, teacher, data.test)
    run.facts["params"] = sum(parameter.numel() for parameter in step.student.parameters())
    summary = run.finish()
    if not opt.quiet:
        print(f"test acc {summary['test_acc']:.2f}, best {summary['best_acc']:.2f}; saved in {run.folder}")


def measure_teacher(run: Run, opt: argparse.Namespace, teacher: Teacher, data: Data) -> None:
    """Measure the teacher on what the student is measured on after every epoch; a test set's figure is remembered."""
    if data.val is None:
        memory = Path(opt.save_folder) / "teacher_accuracy.json"
        accuracy = measured_accuracy(teacher, data.test, f"{opt.dataset} {data.identity}".strip(), memory)
        run.facts["teacher_acc"] = accuracy
    else:
        accuracy = evaluate(teacher.network, data.val, teacher.precision)["test_acc"]
        run.facts["teacher_val_acc"] = accuracy
    if not opt.quiet:
        guessed, comment = 100 / data.classes, ""
        if accuracy < guessed + LITTLE * (100 - guessed):
            comment = (
                f", hardly better than guessing ({guessed:.2f}): its weights, the images' normalisation or the order "
                "of the classes are not those of its training"
            )
        print(f"teacher {run.options['model_t']}: {run.split} acc {accuracy:.2f}{comment}", flush=True)


def test_once(run: Run, step: TrainStep, teacher: Teacher | None, test: Loader) -> None:
    """Measure what was tuned on held-out images on the test set, for the summary.

    It gets `test_acc` and its like of the last epoch, `best_acc` of the epoch that was best on the held-out images,
    whose accuracy on these is `best_val_acc`, and `teacher_acc`.
    """
    run.facts |= evaluate(step.student, test, step.precision)
    best = copy.deepcopy(step.student)  # with what brings images to its own size, which checkpoints leave out
    path = run.folder / f"{run.model}_best.pth"
    getattr(best, "deployed", best).load_state_dict(
        distributed.share(load_checkpoint(path)["model"] if distributed.is_main() else None)
    )
    run.facts |= {"best_val_acc": run.best_acc, "best_acc": evaluate(best, test, step.precision)["test_acc"]}
    if teacher:
        run.facts["teacher_acc"] = evaluate(teacher.network, test, teacher.precision)["test_acc"]
