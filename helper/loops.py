"""The training loop. It knows networks, batches and named loss terms, and no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dataset import Batch, Loader, TrainLoader
from dataset.loader import epoch_generator, share_sizes
from distiller_zoo.base import Distiller, Output, Stage, Step
from distiller_zoo.ramps import Epoch

from . import cpu_normalisation, distributed
from .errors import RunError
from .logger import Progress
from .meters import TrainMeter
from .optim import backward
from .precision import Precision
from .run import Run
from .schedule import Rates
from .sync_norms import SynchronisedNorms
from .teacher import Teacher, evaluate, inference_for, run_network


class TrainStep(nn.Module):
    """The student and the method's adapters: all that is trained, in one module.

    Args:
        student: of `models/`, or what the method made of it.
        method: the distiller.
        precision: device and number format of the student's forward pass.
        sync_bn: let the student's batch norms see the whole batch of all processes, and not their share of it.
    """

    def __init__(self, student: nn.Module, method: Distiller, precision: Precision, sync_bn: bool = False):
        super().__init__()
        self.student, self.method, self.precision = student, method, precision
        self.processes, self.sync_bn = distributed.size(), sync_bn
        self.compiled: Callable | None = None
        self.compiled_sizes = (0, 0)

    def compile(self, share: int, whole: int) -> None:
        """Let torch.compile fuse student, adapters and losses for batches of one size; others run as they are.

        Args:
            share: images of such a batch that this process runs.
            whole: those of all processes.
        """
        # CUDA graphs need static shapes, which full batches have
        mode = "reduce-overhead" if self.precision.device.type == "cuda" else "default"
        if self.precision.device.type == "cpu" and not self.precision.plain:
            cpu_normalisation.adapt(self.student)
        if self.processes > 1:  # what is exchanged with others is no part of a graph
            self._gathered_step = torch.compiler.disable(self._gathered_step)
        self.compiled, self.compiled_sizes = torch.compile(self._forward, dynamic=False, mode=mode), (share, whole)

    def _norms(self, batch: Batch) -> AbstractContextManager:
        if self.sync_bn and self.processes > 1:
            return SynchronisedNorms(len(batch.target))
        return nullcontext()

    def run_student(self, batch: Batch) -> Output:
        """The student's output for a batch, in float32."""
        with self.precision.autocast(), self._norms(batch):
            try:
                return self._outputs(batch.images, batch.strong_images).float()
            except ValueError as error:
                if len(batch.images) > 1 or "1 value per channel" not in str(error):
                    raise
            # a batch norm refuses an image alone where maps are one pixel; twice, it becomes the norm's bias
            views = (batch.images, batch.strong_images)
            twice = (None if images is None else torch.cat([images, images]) for images in views)
            # their mean: of one row alone, a deviation of 0 would send back an enormous gradient
            return self._outputs(*twice).map(lambda rows: rows.mean(0, keepdim=True)).float()

    def _outputs(self, images: Tensor, strong_images: Tensor | None) -> Output:
        needs = self.method.needs
        output = run_network(self.student, images, needs, preact=needs.preact is True)
        if needs.strong_view:
            # on its own, so that the batch norms see one kind of images at a time
            output = replace(output, strong_logits=self.student(strong_images))
        return output

    def whole_step(self, batch: Batch, student: Output | None, teacher: Output | None, epoch: Epoch) -> Step:
        """What the method sees of a batch, of which other processes may have run shares.

        Args:
            batch: this process's share.
            student, teacher: the networks' outputs for it; None where one was not run.
            epoch: from 1.
        """
        if self.processes > 1:
            return self._gathered_step(batch, student, teacher, epoch)
        return Step(student, teacher, batch.target, batch.index, batch.contrast_index, epoch)

    def _gathered_step(self, batch: Batch, student: Output | None, teacher: Output | None, epoch: Epoch) -> Step:
        sizes = share_sizes(len(batch.whole), self.processes)

        def gather(rows: Tensor) -> Tensor:
            return distributed.gather(rows, sizes)

        outputs = [output and output.map(gather) for output in (student, teacher)]
        return Step(*outputs, gather(batch.target), batch.whole, batch.contrast_index, epoch)

    def for_losses(self, step: Step) -> Step:
        """The step as the losses take it: one image alone comes twice where an adapter's batch norm may refuse it.

        Losses of methods with such adapters are means over the images, which this leaves as they are.
        """
        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        if len(step.target) > 1 or not any(isinstance(module, norms) for module in self.method.modules()):
            return step
        return step.map(lambda rows: torch.cat([rows, rows]))

    def forward(self, batch: Batch, teacher: Output | None, epoch: int) -> tuple[Step, dict[str, Tensor]]:
        """Run the student and the method's losses.

        Args:
            batch: images and what belongs to them, or this process's share of them.
            teacher: its float32 output for the batch; None when training from labels.
            epoch: from 1.

        Returns:
            The step as the method saw it, of the whole batch, and the unweighted terms by name, float32 scalars.
        """
        if self.compiled and (len(batch.target), len(batch.whole)) == self.compiled_sizes:
            torch.compiler.cudagraph_mark_step_begin()
            # a tensor, since the compiler takes a number for a constant
            number = torch.full((), epoch, dtype=torch.float32, device=self.precision.device)
            return self.compiled(batch, teacher, number)
        return self._forward(batch, teacher, epoch)

    def _forward(self, batch: Batch, teacher: Output | None, epoch: Epoch) -> tuple[Step, dict[str, Tensor]]:
        student = self.run_student(batch)
        with self.precision.autocast(enabled=False):
            step = self.whole_step(batch, student, teacher, epoch)
            return step, self.method(self.for_losses(step))


class StageStep(nn.Module):
    """What a pre-training stage trains, in place of the `TrainStep` that it is part of.

    Args:
        step: student and method.
        stage: the stage.
    """

    def __init__(self, step: TrainStep, stage: Stage):
        super().__init__()
        self.step, self.stage = step, stage
        self.trained = nn.ModuleList(stage.modules)
        own = set(self.trained.parameters())
        self.trains_student = any(parameter in own for parameter in step.student.parameters())

    def train(self, mode: bool = True) -> StageStep:
        """Training mode for what the stage trains, evaluation mode for the rest."""
        super().train(False)
        self.trained.train(mode)
        return self

    def forward(self, batch: Batch, teacher: Output, epoch: int) -> tuple[Step, dict[str, Tensor]]:
        """The step, its `student` None where no part of that is trained, and the stage's loss under its name."""
        student = self.step.run_student(batch) if self.trains_student else None
        with self.step.precision.autocast(enabled=False):
            step = self.step.whole_step(batch, student, teacher, epoch)
            return step, {self.stage.name: self.stage.loss(self.step.for_losses(step))}


@dataclass
class Phase:
    """A part of the training with its own optimizer: a pre-training stage, or the main training.

    Attributes:
        name: the stage's; empty for the main training.
        module: is called on a batch and gives the terms.
        epochs: number of epochs.
        optimizer: over what is trained.
        schedule: the learning rate of each epoch.
        weights: weight of each term by name; the loss is their weighted sum.
        scaler: of the gradients, see `Precision.scaler`.
    """

    name: str
    module: TrainStep | StageStep
    epochs: int
    optimizer: torch.optim.Optimizer
    schedule: Rates
    weights: Mapping[str, float]
    scaler: torch.amp.GradScaler


def train_epoch(
    phase: Phase,
    teacher: Teacher | None,
    loader: TrainLoader,
    epoch: int,
    progress: Progress,
) -> dict[str, float]:
    """Train for one epoch.

    Args:
        phase: what is trained and how; its learning rate is set.
        teacher: None when training from labels.
        loader: of the training set, its epoch set.
        epoch: from 1.
        progress: shows the running figures; reading them is the only wait for the device.

    Returns:
        Means over the epoch: `loss`, every term, and `train_acc` in percent where the student ran.

    Raises:
        RunError: a term is not finite.
        ValueError: the method gives other terms than its flags weigh.
    """
    phase.module.train()
    weights = phase.weights
    meter = TrainMeter([*weights, "loss"], len(loader), loader.device)
    answered = teacher.answers(loader) if teacher else ((batch, None) for batch in loader)
    with progress:
        for number, (batch, target) in enumerate(answered, start=1):
            step, terms = phase.module(batch, target, epoch)
            if terms.keys() != weights.keys():
                known, given = (", ".join(names) for names in (weights, terms))
                raise ValueError(f"there are weights of {known}, but terms {given}; see `Distiller.weighs`")
            # a weight of zero drops its term: 0·inf would not be 0
            weighted = {name: weight * terms[name] for name, weight in weights.items() if weight}
            task = weighted.pop("cls", 0)
            distillation = sum(weighted.values())
            backward(phase.optimizer, task, distillation, phase.scaler)
            phase.scaler.step(phase.optimizer)
            phase.scaler.update()
            values = [*(terms[name] for name in weights), task + distillation]
            meter.update(step.student and step.student.logits, step.target, values)
            progress.step(number, lambda: meter.read(epoch))
    return meter.read(epoch)


def fit(
    run: Run,
    step: TrainStep,
    phases: Sequence[Phase],
    teacher: Teacher | None,
    loaders: tuple[TrainLoader, Loader],
) -> None:
    """Train phase by phase and epoch by epoch, from where the run stands to its end, saving after each epoch.

    Args:
        run: the run's folder; knows the epochs that are done and takes the figures.
        step: student and method, of which every phase trains some part.
        phases: in order, the main training last.
        teacher: None when training from labels.
        loaders: of the training set and of what every epoch is measured on, see `Run.split`.

    Raises:
        RunError: a term is not finite, the disk is full.
    """
    train_loader, test_loader = loaders
    logits = inference_for(step.student, step.precision, test_loader)
    for phase in phases:
        for epoch in range(run.done_epochs(phase.name) + 1, phase.epochs + 1):
            start = time.perf_counter()
            rate = phase.schedule.apply(phase.optimizer, epoch)
            train_loader.set_epoch(epoch)
            # whatever a network draws, dropout for instance, a resumed epoch draws it again
            torch.manual_seed(epoch_generator(run.seed, epoch, stream=2).initial_seed() + distributed.rank())
            label = f"{phase.name} epoch {epoch}/{phase.epochs}".strip()
            progress = run.progress(label, (epoch - 1) * len(train_loader), len(train_loader))
            trained = train_epoch(phase, teacher, train_loader, epoch, progress)
            distributed.average_buffers(step.student)
            speed = train_loader.samples / (time.perf_counter() - start)
            row = {"stage": phase.name} if phase.name else {}
            row |= {"epoch": epoch, "lr": rate, "train_loss": trained.pop("loss"), **trained}
            row |= step.method.figures()
            if teacher and teacher.cache:
                row["teacher_cache_hits"] = teacher.cache.hit_rate()
            if not phase.name:
                row |= evaluate(step.student, test_loader, step.precision, step.method.test_figures, run.split, logits)
            row |= {"seconds": time.perf_counter() - start, "images_per_second": speed}
            check_student(step.student, row)
            run.end_epoch(row, {"step": step, "optimizer": phase.optimizer, "scaler": phase.scaler}, label)


def check_student(student: nn.Module, row: Mapping[str, float]) -> None:
    """Refuse to save weights that are not finite, or that make the test loss so.

    Raises:
        RunError: a parameter or the test loss is NaN or infinite.
    """
    epoch = row["epoch"]
    advice = f"after epoch {epoch}; the last checkpoints are kept: lower the learning rate or a loss weight"
    norms = torch.stack([parameter.detach().float().norm() for parameter in student.parameters()])
    if not norms.isfinite().all():
        raise RunError(f"the student's weights are not finite {advice}")
    for split in (split for split in ("test", "val") if not math.isfinite(row.get(f"{split}_loss", 0.0))):
        raise RunError(f"the {split} loss is {row[f'{split}_loss']} {advice}")
