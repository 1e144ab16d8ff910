"""The training loop of the field's repositories, in its plain form: what the training here is timed against.

    python -m benchmarks.plain --path_t FILE --model_s resnet20 --epochs 3 --lr_decay_epochs 2 --warmup_epochs 0

It does what RepDistiller and LDRLD do, and nothing that would be slower: PIL images and torchvision's transforms in
worker processes, NCHW float32 for both networks, the teacher run on every batch, the loss of `benchmarks.literal`,
torch's SGD with its defaults, and meters that read loss and accuracy after every step. `--distill` is ldrld or kd, with
the flags, defaults and recipe of `train_student.py`; a line an epoch is printed and nothing is saved. images/s are
those of the training alone, as in `train_student.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from dataset import DataError, ImageData, cifar100
from distiller_zoo import registry
from helper.checkpoint import check_model, load_network, new_network
from helper.errors import UserError, run_command
from helper.flags import OneLineParser
from helper.precision import pick_device
from helper.recipe import RECIPE
from helper.schedule import Schedule
from helper.teacher import check_teacher_file, teacher_name
from models import model_recipe

from . import literal

NOISE_IMAGES = 50_000
Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]


class PilImages(Dataset):
    """Images as the usual data sets serve them: an array turned into a PIL image, then transformed, one by one.

    Args:
        data: the split.
        train: crop and flip at random.
    """

    def __init__(self, data: ImageData, train: bool):
        self.images, self.labels = data.images, data.labels.tolist()
        augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
        normalize = transforms.Normalize(cifar100.MEAN, cifar100.STD)
        self.transform = transforms.Compose([*augmentation, transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[position])), self.labels[position]


def train_batches(data: ImageData, batch: int, workers: int) -> DataLoader:
    """Augmented batches of a whole epoch, images (B, 3, 32, 32) float32 and labels (B,), shuffled."""
    return DataLoader(PilImages(data, train=True), batch, shuffle=True, num_workers=workers)


def train_stretch(data: ImageData, batch: int, workers: int, steps: int) -> DataLoader:
    """As `train_batches`, but an iteration ends after `steps` batches, and the next one has the same worker processes.

    Nothing is prefetched when an iteration begins, and nothing is left over at its end.
    """
    images = PilImages(data, train=True)
    some = RandomSampler(images, num_samples=steps * batch)
    return DataLoader(images, batch, sampler=some, num_workers=workers, persistent_workers=workers > 0)


def test_batches(data: ImageData, batch: int, workers: int) -> DataLoader:
    """Batches of half the size, by half as many workers, as RepDistiller tests."""
    half, fewer = max(batch // 2, 1), workers // 2
    return DataLoader(PilImages(data, train=False), half, num_workers=fewer, persistent_workers=fewer > 0)


class AverageMeter:
    """The running mean of a figure."""

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, value: float, n: int) -> None:
        """Take in the mean of n samples."""
        self.sum += value * n
        self.count += n

    @property
    def mean(self) -> float:
        """Of all samples so far."""
        return self.sum / self.count


@torch.no_grad()
def accuracy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Top-1 and top-5 accuracy in percent, scalars, of logits (B, C) and labels (B,)."""
    correct = logits.topk(5, dim=1).indices.t() == target
    return tuple(correct[:k].reshape(-1).float().sum() * (100 / len(target)) for k in (1, 5))


@dataclass(frozen=True)
class Weights:
    """-r, -a and -b, the temperature, and LDRLD's k."""

    r: float
    a: float
    b: float
    T: float = 4.0
    k: int = 7


def ldrld_loss(w: Weights) -> Criterion:
    """The literal LDRLD of student's and teacher's logits (B, C) and labels (B,)."""
    return lambda z_s, z_t, target: literal.ldrld(z_s, z_t, target, w.k, w.T, alpha=w.a, beta=w.b, ce_weight=w.r)


def kd_loss(w: Weights) -> Criterion:
    """Cross-entropy and KL of student's and teacher's logits (B, C) and labels (B,)."""
    return lambda z_s, z_t, target: w.r * F.cross_entropy(z_s, target) + literal.kd(z_s, z_t, w.a, w.T)


LOSSES: dict[str, Callable[[Weights], Criterion]] = {"ldrld": ldrld_loss, "kd": kd_loss}


def published_weights(method: str) -> Weights:
    """The default -r, -a and -b of a method."""
    weights = registry[method].weights
    return Weights(weights["r"], weights["a"], weights.get("b", 0.0))


def sgd(network: nn.Module, rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """The optimizer as RepDistiller makes it."""
    return torch.optim.SGD(network.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay)


@dataclass
class Plain:
    """A student in training.

    Attributes:
        student, teacher: on the device, float32.
        criterion: gives the loss of student's and teacher's logits and labels.
        optimizer: over the student.
        device: where they are.
    """

    student: nn.Module
    teacher: nn.Module
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    device: torch.device

    def train(
        self, batches: Iterable[tuple[Tensor, Tensor]], mark: Callable[[str], None] = lambda part: None
    ) -> tuple[float, float]:
        """Train on each batch, images (B, 3, H, W) and labels (B,).

        Args:
            batches: an epoch, or a part of one.
            mark: is told the name of each part of a step when it is done.

        Returns:
            Mean loss, and top-1 accuracy in percent.
        """
        self.student.train()
        self.teacher.eval()
        losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
        for images, target in batches:
            images, target = images.to(self.device), target.to(self.device)
            mark("data")
            logits_s = self.student(images)
            mark("student")
            with torch.no_grad():
                logits_t = self.teacher(images)
            mark("teacher")
            loss = self.criterion(logits_s, logits_t, target)
            mark("loss")
            acc1, acc5 = accuracy(logits_s, target)
            losses.update(loss.item(), len(target))
            top1.update(acc1.item(), len(target))
            top5.update(acc5.item(), len(target))
            mark("meters")
            self.optimizer.zero_grad()
            loss.backward()
            mark("backward")
            self.optimizer.step()
            mark("optimizer")
        return losses.mean, top1.mean

    @torch.no_grad()
    def test(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """The student's top-1 accuracy in percent."""
        self.student.eval()
        losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
        for images, target in batches:
            images, target = images.to(self.device), target.to(self.device)
            logits = self.student(images)
            loss = F.cross_entropy(logits, target)
            acc1, acc5 = accuracy(logits, target)
            losses.update(loss.item(), len(target))
            top1.update(acc1.item(), len(target))
            top5.update(acc5.item(), len(target))
        return top1.mean


def read_images(opt: argparse.Namespace) -> tuple[ImageData, ImageData]:
    """Training and test split of `--dataset`, `--data_folder` and `--images`.

    Raises:
        UserError: CIFAR-100 is absent or malformed.
    """
    if opt.dataset == "noise":
        size, draw = opt.images or NOISE_IMAGES, np.random.default_rng(0)
        train, test = (
            ImageData(draw.integers(256, size=(n, 32, 32, 3), dtype=np.uint8), draw.integers(100, size=n))
            for n in (size, -(-size // 5))
        )
        return train, test
    try:
        train, test, _ = cifar100.load(Path(opt.data_folder))
    except DataError as error:
        raise UserError(str(error).partition(", or try --dataset")[0] + ", or try --dataset noise") from None
    return ImageData(train.images[: opt.images], train.labels[: opt.images]), test


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 0")
    return int(text)


def positive(text: str) -> int:
    if not count(text):
        raise argparse.ArgumentTypeError("0 is too small")
    return int(text)


def positives(text: str) -> list[int]:
    return [positive(word) for word in text.split(",")]


def names_of(known: Iterable[str], kind: str = "") -> Callable[[str], list[str]]:
    """What reads a list of some of the known names from the command line; `kind` says what they name."""

    def names(text: str) -> list[str]:
        if unknown := [word for word in text.split(",") if word not in known]:
            raise argparse.ArgumentTypeError(f"no {kind} '{unknown[0]}'; there are {', '.join(known)}")
        return text.split(",")

    return names


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Flags of every benchmark that runs a part of the training."""
    group = parser.add_argument_group("data and machine")
    group.add_argument("--dataset", default="cifar100", choices=("cifar100", "noise"), help="noise needs no files")
    group.add_argument("--data_folder", default=os.environ.get("KD_DATA", "./data"), metavar="DIR")
    group.add_argument("--images", type=positive, metavar="N", help=f"training images (all; noise: {NOISE_IMAGES:,})")
    group.add_argument("--threads", type=positive, metavar="N", help="of torch (its default)")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the recipe's values where it names none."""
    parser = OneLineParser(prog="python -m benchmarks.plain", description="Distil with the plain training loop.")
    parser.add_argument("--distill", default="ldrld", choices=list(LOSSES))
    parser.add_argument("--path_t", required=True, metavar="FILE", help="the teacher's checkpoint")
    parser.add_argument("--model_t", metavar="NAME", help="its network, where its folder's name does not begin with it")
    parser.add_argument("--model_s", default=RECIPE["model_s"], metavar="NAME", help="the student's network")
    for flag in "rab":
        parser.add_argument(f"-{flag}", type=float, metavar="X", help="weight, as in train_student.py (published)")
    parser.add_argument("--kd_T", type=float, default=4.0, metavar="T", help="temperature (4)")
    parser.add_argument("--k", type=positive, default=7, metavar="N", help="of ldrld (7)")
    parser.add_argument("--epochs", type=positive, default=RECIPE["epochs"], metavar="N", help="(240)")
    parser.add_argument("--batch_size", type=positive, default=RECIPE["batch_size"], metavar="N", help="(64)")
    parser.add_argument("--learning_rate", type=float, metavar="LR", help="(0.05; 0.01 for mobile networks)")
    decays = RECIPE["lr_decay_epochs"]
    parser.add_argument("--lr_decay_epochs", type=positives, default=decays, metavar="N,N", help="(150,180,210)")
    parser.add_argument("--warmup_epochs", type=count, metavar="N", help="(ldrld: 20, kd: 0)")
    parser.add_argument("--subset", type=positive, metavar="N", help="only the first N training images of each class")
    parser.add_argument("--trial", type=count, default=1, metavar="N", help="seed of weights, order and views (1)")
    parser.add_argument("--num_workers", type=count, default=8, metavar="N", help="loader processes (8)")
    add_machine(parser)
    opt = parser.parse_args(arguments)
    check_model(opt.model_s)
    method = registry[opt.distill]
    recipe = {**RECIPE, **method.recipe, **model_recipe.get(opt.model_s, {}), **method.weights}
    for name in ("learning_rate", "warmup_epochs", *method.weights):
        if getattr(opt, name) is None:
            setattr(opt, name, recipe[name])
    if opt.b is not None and "b" not in method.weights:
        raise UserError(f"-b {opt.b} has nothing to weigh in --distill {opt.distill}")
    return opt


def set_up(opt: argparse.Namespace) -> Plain:
    """Both networks, the loss and the optimizer of the command line."""
    device = pick_device(opt.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    check_teacher_file(opt.path_t)
    teacher = load_network(teacher_name(opt.path_t, opt.model_t), opt.path_t, cifar100.CLASSES).to(device)
    torch.manual_seed(opt.trial)
    student = new_network(opt.model_s, cifar100.CLASSES).to(device)
    criterion = LOSSES[opt.distill](Weights(opt.r, opt.a, opt.b or 0.0, opt.kd_T, opt.k))
    optimizer = sgd(student, opt.learning_rate, RECIPE["momentum"], RECIPE["weight_decay"])
    return Plain(student, teacher, criterion, optimizer, device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says and print a line an epoch."""
    opt = options(arguments)
    if opt.threads:
        torch.set_num_threads(opt.threads)
    plain = set_up(opt)
    train, test = read_images(opt)
    if opt.subset:
        train = train.first_of_each_class(opt.subset)
    train_loader = train_batches(train, opt.batch_size, opt.num_workers)
    test_loader = test_batches(test, opt.batch_size, opt.num_workers)
    schedule = Schedule(opt.learning_rate, opt.lr_decay_epochs, RECIPE["lr_decay_rate"], opt.warmup_epochs)
    for epoch in range(1, opt.epochs + 1):
        rate = schedule.apply(plain.optimizer, epoch)
        start = time.perf_counter()
        loss, train_acc = plain.train(train_loader)
        speed = len(train.labels) / (time.perf_counter() - start)
        test_acc = plain.test(test_loader)
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch}/{opt.epochs}  lr {rate:.4g}  train loss {loss:.4f}  train acc {train_acc:.2f}  "
            f"test acc {test_acc:.2f}  {speed:.0f} images/s  {seconds:.1f} s with the test",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
