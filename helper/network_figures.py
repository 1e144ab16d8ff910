"""Figures of trained students: what they make of the test set, beside what their teacher makes of it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dataset import Data, DataError, Loader, look
from distiller_zoo import Needs, Shapes, transform_registry
from distiller_zoo.base import LogitPair, Output
from distiller_zoo.evidence import log_alpha
from models import FeatureNetwork

from .checkpoint import load_network
from .errors import UserError
from .metrics import reliability
from .plots import COLOURS, axes_column, legend_below, one_axes, point_style
from .precision import Precision
from .results import Cell, Record, known_log_prior
from .setup import choose_precision, load_data, with_input_of
from .teacher import Teacher, check_teacher_file

TRAINING_IMAGES = 10_000  # at most, whose teacher's rows are looked at
POINTS_PER_CLASS = 100
PERPLEXITY = 30


class Unusable(UserError):
    """The device or the data cannot be had, so that no network can run."""


@dataclass
class Outputs:
    """What a network gives for the images of a loader, on the CPU.

    Attributes:
        logits: (N, C).
        target: (N,) labels.
        features: the pooled vectors (N, D), None where they were not asked for.
        digest: of the weights.
    """

    logits: Tensor
    target: Tensor
    digest: str
    features: Tensor | None = None


class Laboratory:
    """Loads data and teachers when they are first needed, and keeps them.

    Args:
        opt: with the flags of data sets (`helper.flags.add_data`), `device`, `precision`, `path_t`, `classes` and
            `notes`, which grows.
        best: take the best checkpoints in place of the last.
    """

    def __init__(self, opt: argparse.Namespace, best: bool):
        self.opt, self.kind = opt, "best" if best else "last"
        self._outputs: dict[tuple, Outputs] = {}
        self._data: dict[tuple, Data] = {}

    @cached_property
    def precision(self) -> Precision:
        """Where and how networks run.

        Raises:
            Unusable: not on the device of the options.
        """
        try:
            return choose_precision(self.opt)
        except UserError as error:
            raise Unusable(str(error)) from None

    def data(self, options: Mapping[str, Any]) -> Data:
        """The data set as a run saw it.

        Raises:
            Unusable: it is absent or malformed.
        """
        stored = {name: options.get(name) for name in ("image_size", "mean", "std")}
        as_it_was = {name: tuple(value) for name, value in stored.items() if value is not None}
        key = tuple(as_it_was.items())
        if key not in self._data:
            try:
                self._data[key] = load_data(argparse.Namespace(**{**vars(self.opt), **as_it_was}), self.precision)
            except UserError as error:
                raise Unusable(f"{error}; --draw chooses figures that need no data") from None
        return self._data[key]

    def chosen_classes(self, count: int) -> list[int]:
        """Those of `--classes`, or ten that are spread over all."""
        return self.opt.classes or list(range(0, count, math.ceil(count / 10)))

    def load(self, side: str, path: Path, options: Mapping[str, Any]) -> FeatureNetwork:
        """A checkpoint's network.

        Args:
            side: `s` for a run's student, `t` for its teacher.
            path: the checkpoint.
            options: of the run.

        Raises:
            UserError: it cannot be loaded.
        """
        name = str(options.get(f"model_{side}", options.get("model")))
        size = options.get(f"size_{side}", options.get("size"))
        return load_network(name, path, options.get("classes"), size, options.get(f"taps_{side}", ()))

    def run_network(
        self, network: FeatureNetwork, options: Mapping[str, Any], features: bool, split: str = "test"
    ) -> Outputs:
        """What a network gives for the test images or the first training images, unaugmented.

        Args:
            network: from `load`.
            options: of the run.
            features: whether the pooled vectors are wanted, too.
            split: `test` or `train`.

        Raises:
            Unusable: see `data`.
            UserError: its logits are not finite.
        """
        data = self.data(options)
        loader = data.test if split == "test" else data.train.plain()
        needs = Needs(features="last" if features else "none")
        run = Teacher(with_input_of(network, loader), needs, self.precision)
        logits, target, pooled = _collect(run, loader, TRAINING_IMAGES if split == "train" else loader.samples)
        if not logits.isfinite().all():
            raise UserError("a network gives logits that are not finite: its weights are damaged")
        return Outputs(logits, target, run.digest, pooled)

    def teacher_outputs(self, options: Mapping[str, Any], split: str = "test") -> Outputs:
        """Those of a run's teacher, or of the one that `--path_t` names.

        Raises:
            UserError: its file is missing or cannot be loaded.
        """
        path = self.opt.path_t or str(options["path_t"])
        key = path, split, id(self.data(options))
        if key not in self._outputs:
            check_teacher_file(path)
            self._outputs[key] = self.run_network(self.load("t", Path(path), options), options, False, split)
        found = self._outputs[key]
        if found.digest != options.get("teacher_sha256", found.digest):
            raise UserError(f"{path} is not the teacher that the run had; name that one with --path_t")
        return found


def _collect(run: Teacher, loader: Loader, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, labels and pooled vectors of the first images."""
    outputs: list[Output] = []
    targets: list[Tensor] = []
    for batch in loader:
        outputs.append(run(batch))
        targets.append(batch.target)
        if sum(map(len, targets)) >= count:
            break
    pooled = None
    if outputs[0].features:
        pooled = torch.cat([output.features[-1].flatten(1).cpu() for output in outputs])
    return torch.cat([output.logits.cpu() for output in outputs]), torch.cat(targets).cpu(), pooled


class Subject:
    """A setting's first trial and what its student and its teacher give; each runs when it is first needed.

    Args:
        cell: the setting.
        laboratory: runs the networks.
    """

    def __init__(self, cell: Cell, laboratory: Laboratory):
        self.run: Record = min(cell.runs, key=lambda run: run.trial)
        self.title = f"{cell.label}, trial {self.run.trial}"
        self.student, self.laboratory = cell.student, laboratory

    @cached_property
    def network(self) -> FeatureNetwork:
        """The student.

        Raises:
            UserError: its checkpoint is missing or cannot be loaded.
        """
        path = self.run.folder / f"{self.student}_{self.laboratory.kind}.pth"
        return self.laboratory.load("s", path, self.run.options)

    @cached_property
    def outputs(self) -> Outputs:
        """The student's.

        Raises:
            UserError: as `network`; or its logits are not finite.
        """
        return self.laboratory.run_network(self.network, self.run.options, features=True)

    def teacher(self, split: str = "test") -> Outputs | None:
        """The teacher's; None where the student has none.

        Raises:
            UserError: its file is missing or cannot be loaded.
        """
        options = self.run.options
        return self.laboratory.teacher_outputs(options, split) if "path_t" in options else None


def features(subject: Subject) -> Figure:
    """t-SNE of the student's pooled test features, some classes."""
    from sklearn.manifold import TSNE  # only here: training needs no scikit-learn

    outputs = subject.outputs
    classes = subject.laboratory.chosen_classes(outputs.logits.shape[1])
    members = [(outputs.target == label).nonzero().squeeze(1)[:POINTS_PER_CLASS] for label in classes]
    points = outputs.features[torch.cat(members)].numpy()
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(points)
    figure, axes = one_axes(f"t-SNE of the pooled test features\n{subject.title}", height=2.8)
    ends = np.cumsum([len(each) for each in members])[:-1]
    for number, (label, group) in enumerate(zip(classes, np.split(places, ends), strict=True)):
        axes.scatter(*group.T, s=7, linewidths=0.3, alpha=0.8, label=f"class {label}", **point_style(number))
    axes.set(xticks=[], yticks=[], xlabel="t-SNE dimension 1 (no unit)", ylabel="t-SNE dimension 2 (no unit)")
    legend_below(figure, axes, columns=4)
    return figure


def correlation(subject: Subject) -> Figure | None:
    """How far the correlations between the classes' logits differ between student and teacher (Tian et al., 2020)."""
    teacher = subject.teacher()
    if teacher is None:
        return None
    student, target = (torch.corrcoef(o.logits.double().T) for o in (subject.outputs, teacher))
    difference = (student - target).numpy()
    # two values of a pair in a hundred may be beyond the ends of the scale
    limit = max(np.nanpercentile(np.abs(difference), 99), 1e-6)
    title = f"Correlation of logits, student minus teacher\nmean |difference| {np.nanmean(np.abs(difference)):.3f}"
    figure, axes = one_axes(f"{title}\n{subject.title}", height=2.7)
    image = axes.imshow(difference, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set(xlabel="class", ylabel="class")
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="difference of correlations", extend="both")
    return figure


def class_similarity(subject: Subject) -> Figure:
    """Cosines between the rows of the student's classifier, similar classes side by side."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    rows = subject.network.get_classifier().weight.detach().cpu().double()
    rows = torch.nn.functional.normalize(rows, dim=1)
    cosines = (rows @ rows.T).clamp(-1, 1)
    distances = (1 - cosines).fill_diagonal_(0).clamp(min=0).numpy()
    order = leaves_list(linkage(squareform(distances, checks=False), "average", optimal_ordering=True))
    figure, axes = one_axes(f"Cosine between rows of the classifier\n{subject.title}", height=2.7)
    image = axes.imshow(cosines.numpy()[np.ix_(order, order)], cmap="cividis", interpolation="nearest")
    axes.set(xlabel="class, similar ones side by side", ylabel="class, in the same order", xticks=[], yticks=[])
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="cosine")
    return figure


def dirichlet_strength(subject: Subject) -> Figure | None:
    """The sum of α of right and of wrong answers of a student with evidence; None for one without.

    Evidence and prior as in `distiller_zoo.evidence.uncertainty`.
    """
    log_prior = known_log_prior(subject.run.summary)
    if log_prior is None:
        return None
    logits, target = subject.outputs.logits.double(), subject.outputs.target
    strength = log_alpha(logits, log_prior, "exp").logsumexp(1) / math.log(10)
    right = logits.argmax(1) == target
    figure, axes = one_axes(f"Dirichlet strength of test images\n{subject.title}")
    bins = np.linspace(strength.min().item(), strength.max().item() + 1e-9, 41)
    for group, name, colour, hatch in ((right, "right", COLOURS[0], None), (~right, "wrong", COLOURS[1], "////")):
        values = strength[group].numpy()
        if not len(values):
            continue
        look = {"alpha": 0.45, "color": colour, "hatch": hatch, "edgecolor": colour, "linewidth": 0.6}
        label = f"{name} answers (n = {len(values)}, median {10 ** np.median(values):.3g})"
        axes.hist(10**values, 10**bins, weights=np.full(len(values), 100 / len(values)), label=label, **look)
    axes.set_xscale("log")
    axes.set(xlabel="strength S, the sum of α", ylabel="share of these answers (%)")
    legend_below(figure, axes)
    return figure


def reliability_diagram(subject: Subject) -> Figure:
    """Accuracy against confidence of test images in bins, and how many lie in each (Guo et al., 2017)."""
    found = reliability(subject.outputs.logits, subject.outputs.target)
    edges = np.linspace(0, 100, len(found.count) + 1)
    title = f"Reliability on test images: ECE {100 * found.calibration_error:.1f} %"
    figure, (above, below) = axes_column(f"{title}\n{subject.title}")
    width = edges[1]
    filled = found.count.numpy() > 0
    left, accuracy = edges[:-1][filled], 100 * found.accuracy.numpy()[filled]
    look = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.4}
    above.bar(left, accuracy, color=COLOURS[0], label="accuracy of a bin", **look)
    above.plot([0, 100], [0, 100], color="black", linestyle="--", linewidth=0.8, label="accuracy = confidence")
    above.plot(100 * found.confidence.numpy()[filled], accuracy, color=COLOURS[1], marker="o", markersize=2.5,
               linestyle="none", label="at its mean confidence")  # fmt: skip
    above.set(ylabel="accuracy (%)", ylim=(0, 100))
    below.bar(left, 100 * found.count.numpy()[filled] / len(subject.outputs.target), color=COLOURS[0], **look)
    below.set(xlabel="confidence, the largest probability (%)", ylabel="images (%)", xlim=(0, 100))
    legend_below(figure, above)
    return figure


def _moved_ranks(subject: Subject, teacher: Outputs) -> Tensor | None:
    """By how many ranks a transform that permutes the teacher's logits moved the label up, (N,); None without one."""
    options = subject.run.options
    pair = LogitPair(teacher.logits, teacher.logits, teacher.target, float(options.get("kd_T", 1.0)))
    for name, arguments in options.get("transforms", {}).items():
        change = transform_registry[name](Shapes([], [], classes=teacher.logits.shape[1], samples=0), **arguments)
        with torch.no_grad():
            changed = change(pair)
        before, after = pair.teacher, changed.teacher
        if not before.equal(after) and before.sort(1).values.equal(after.sort(1).values):
            ranks = [(z > z.gather(1, teacher.target[:, None])).sum(1) for z in (before, after)]
            return ranks[0] - ranks[1]
        pair = changed
    return None


def moved_labels(subject: Subject) -> Figure | None:
    """How often and how far a transform that permutes the teacher's logits moved the label; None without one."""
    if not subject.run.options.get("transforms"):
        return None
    teacher = subject.teacher("train")
    moved = _moved_ranks(subject, teacher)
    if moved is None:
        return None
    changed = moved[moved != 0].numpy()
    share = 100 * len(changed) / len(moved)
    title = f"Rank of the label in the teacher's logits: moved in {share:.1f} % of {len(moved)} training images"
    figure, axes = one_axes(f"{title}, by {changed.mean():.1f} ranks on average\n{subject.title}")
    width = max(1, math.ceil(changed.max() / 40))
    bins = np.arange(0.5, changed.max() + width + 0.5, width)
    weights = np.full(len(changed), 100 / len(changed))
    axes.hist(changed, bins, weights=weights, color=COLOURS[0])
    axes.set_yscale("log")
    axes.set(xlabel="ranks that the label moved up", ylabel="share of the moved (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def check_classes(classes: Sequence[int], dataset: str, data_folder: str) -> None:
    """Refuse classes that the data set has not.

    Raises:
        UserError: names the first one, or says that the data set is absent.
    """
    try:
        count = look(dataset, data_folder).classes
    except DataError as error:
        raise UserError(str(error)) from None
    for label in classes:
        if not 0 <= label < count:
            raise UserError(f"--classes {label} is not between 0 and {count - 1}, the classes of {dataset}")
