"""The frozen teacher: which file it comes from, how it runs, how good it is."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset import Batch, Loader
from distiller_zoo.base import Needs, Output
from models import is_pretrained, model_dict, project_name

from . import distributed
from .checkpoint import check_model, digest, load_checkpoint
from .errors import UserError
from .inference import Inference
from .memory import recall, remember
from .meters import TestMeter
from .precision import Precision
from .teacher_cache import LogitCache, number_format

# batches that a cache is asked for together: what it lacks of one alone would leave most of a teacher's batch empty
AHEAD = 8
FUSED_FROM = 10  # batches of a test, or of a teacher's answers: fusing takes as long as several


def _folder_name(path: str) -> str | None:
    """The network whose name the checkpoint's folder begins with, the longest one that fits."""
    folder = Path(path).absolute().parent.name
    fitting = [known for known in model_dict if folder == known or folder.startswith(known + "_")]
    return max(fitting, key=len, default=None)


def _noted_name(path: str) -> str | None:
    """The network that options.json beside the checkpoint names, where it is a run's, a student's for instance."""
    try:
        options = json.loads((Path(path).absolute().parent / "options.json").read_text(encoding="utf-8"))
        name = options.get("model_s") or options.get("model")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def check_teacher_file(path: str) -> None:
    """Refuse a path with nothing or a folder at it, before anything is made of its name.

    What names published weights, timm:NAME or torchvision:NAME, is no path.

    Raises:
        UserError: it says how to get a teacher.
    """
    if is_pretrained(path):
        return
    if os.path.isdir(path):
        load_checkpoint(path)
    if not os.path.exists(path):  # unlike Path's, false where the name is too long or its folder closed
        raise UserError(
            f"no teacher at {path}: fetch the published ones with 'sh scripts/fetch_pretrained_teachers.sh', or train "
            f"it with 'python train_teacher.py --model {_folder_name(path) or 'NAME'}' and name its checkpoint, or any "
            "other that you have, with --path_t"
        )


def teacher_name(path: str, name: str | None = None) -> str:
    """The architecture of a teacher checkpoint.

    Args:
        path: by RepDistiller's custom, the folder's name begins with it: `save/models/resnet32x4_vanilla/x.pth`.
            Published weights, timm:NAME or torchvision:NAME, name their network themselves. Where the folder's name
            does not, a run's options.json in it does.
        name: given by the user (`--model_t`), overrides the folder's.

    Raises:
        UserError: it is no name of a network, or the folder tells none.
    """
    if name is not None:
        check_model(name, "--model_t")
        if is_pretrained(path):
            raise UserError(f"--model_t {name} has no effect beside --path_t {path}, which names the network")
        return project_name(name)
    found = project_name(path) if is_pretrained(path) else _folder_name(path) or _noted_name(path)
    if found is None:
        folder = Path(path).absolute().parent.name
        raise UserError(f"the folder '{folder}' does not begin with the teacher's architecture; name it with --model_t")
    return found


def run_network(network: nn.Module, images: Tensor, needs: Needs, preact: bool) -> Output:
    """Forward pass that returns the features that a method needs.

    Args:
        network: of `models/`.
        images: (B, 3, H, W).
        needs: which features to keep.
        preact: whether this network's are taken before their last activation.
    """
    if needs.features == "none":
        features, logits = None, network(images)
    else:
        features, logits = network(images, is_feat=True, preact=preact)
        features = needs.select(features)
    if logits.dim() == 3:  # of two heads, see `models.deit.DeiT`
        return Output(logits[:, 0], features, distill_logits=logits[:, 1])
    return Output(logits, features)


class Teacher:
    """A frozen network in evaluation mode, run without gradients in the run's precision.

    Where a method needs no features, the teacher runs as `Inference` does, and its logits may come from a cache.

    Args:
        network: with its weights.
        needs: what the method asks of it.
        precision: device and number format.
        size: images of a batch, for which what gives the logits may be fused; None: it is not.
        compiled: as in `Inference`.
        cache: logits of earlier batches and runs; only where `needs` has no features.
    """

    def __init__(
        self,
        network: nn.Module,
        needs: Needs,
        precision: Precision,
        size: int | None = None,
        compiled: bool = False,
        cache: LogitCache | None = None,
    ):
        self.network = network.to(precision.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.needs, self.precision, self.cache = needs, precision, cache
        self.digest = digest(network.state_dict())
        self.logits = Inference(self.network, precision, size, compiled, quiet=False)

    def __call__(self, batch: Batch) -> Output:
        """Logits and needed features of a batch, float32."""
        return next(self.answers([batch]))[1]

    def answers(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Output]]:
        """Batches in their order, each with what a call gives.

        With a cache, some batches are drawn ahead, so that the teacher runs on the missing images of all of these.
        """
        rest = iter(batches)
        try:
            while group := list(itertools.islice(rest, AHEAD if self.cache else 1)):
                yield from zip(group, self._outputs(group), strict=True)
        finally:
            if self.cache:
                self.cache.write_pending()

    @torch.no_grad()
    def _outputs(self, batches: list[Batch]) -> list[Output]:
        if self.cache:
            outputs = [Output(logits) for logits in self.cache.serve_together(batches, self.logits)]
        else:
            outputs = [self._plain_view(batch.images) for batch in batches]
        if self.needs.strong_view:
            pairs = zip(batches, outputs, strict=True)
            outputs = [replace(output, strong_logits=self.logits(batch.strong_images)) for batch, output in pairs]
        return outputs

    def _plain_view(self, images: Tensor) -> Output:
        if self.needs.features == "none":
            return Output(self.logits(images))
        with self.precision.autocast():
            return run_network(self.network, images, self.needs, preact=bool(self.needs.preact)).float()


def inference_for(network: nn.Module, precision: Precision, loader: Loader) -> Inference:
    """A network that learns, or one that is tested once, as `evaluate` runs it on the batches of a loader."""
    size = loader.batch_size if len(loader) >= FUSED_FROM else None
    return Inference(network, precision, size, learns=True)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loader: Loader,
    precision: Precision,
    figures: Callable[[Tensor, Tensor], Mapping[str, Tensor]] | None = None,
    split: str = "test",
    logits: Inference | None = None,
) -> dict[str, float]:
    """Accuracy of a network, whose training mode is left as it was.

    Args:
        network: takes images, gives logits.
        loader: of the test set.
        precision: device and number format.
        figures: gives more to measure, from logits (B, C) and labels (B,), see `Distiller.test_figures`.
        split: what the loader's images are, `test` or `val`: the names of the first three results begin with it.
        logits: of this network and loader, from `inference_for`; None makes one for this call.

    Returns:
        `test_acc` and `test_acc_top5` in percent, `test_loss`, the mean cross-entropy, and the means of `figures`.
    """
    meter, training = TestMeter(precision.device), network.training
    network.eval()
    if logits is None:
        logits = inference_for(network, precision, loader)
    logits.refresh()
    for batch in loader:
        found = logits(batch.images)
        meter.update(found, batch.target, figures(found, batch.target) if figures else None)
    network.train(training)
    return {name.replace("test_", f"{split}_", 1): value for name, value in meter.read().items()}


@torch.no_grad()
def _first_answers(teacher: Teacher, loader: Loader) -> str:
    """A digest of how the main process's first images are classified: others have another, and so has other code."""
    classes = teacher.network(next(iter(loader)).images).argmax(1).tolist()
    return distributed.share(hashlib.sha256(str(classes).encode()).hexdigest()[:8])


def measured_accuracy(teacher: Teacher, loader: Loader, dataset: str, memory: Path) -> float:
    """The teacher's test accuracy in percent, measured once per weights, code, data set and precision.

    Args:
        teacher: the teacher.
        loader: of the test set.
        dataset: its name.
        memory: JSON file in which the figures are remembered; an unreadable one is measured anew.
    """
    key = f"{dataset} {number_format(teacher.precision)} {teacher.digest} {_first_answers(teacher, loader)}"
    accuracy = recall(memory, key)
    if not isinstance(accuracy, float):
        accuracy = evaluate(teacher.network, loader, teacher.precision)["test_acc"]
        remember(memory, key, accuracy)
    return accuracy
