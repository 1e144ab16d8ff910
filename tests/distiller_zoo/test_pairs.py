"""Every method on pairs of networks: a few steps of training, or a refusal with its reason."""

import math
from dataclasses import replace

import pytest
import torch

from dataset import Batch, ContrastSampler
from distiller_zoo import Shapes, registry, transform_registry
from distiller_zoo.base import Output
from helper.loops import StageStep, TrainStep
from helper.precision import Precision
from helper.setup import adapt_networks, feature_shapes
from helper.teacher import run_network
from models import model_dict

CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32)
BATCH, CLASSES, STEPS = 8, 4, 4
SMALL = {"crd": {"nce_k": 4, "feat_dim": 8}, "ldrld": {"k": 2}}
PAIRS = [("resnet14", "resnet8"), ("resnet14", "MobileNetV2"), ("vgg8", "ShuffleV2"), ("ShuffleV1", "resnet8")]
# what cannot work, and words of the reason
REFUSED = {
    "fsp": dict.fromkeys(PAIRS[1:], "equal channels"),
    "kdsvd": dict.fromkeys(PAIRS[1:], "channels"),
    "wkd_f": {("resnet14", "MobileNetV2"): "cannot be brought to the teacher's size"},
    "wkd": {("resnet14", "MobileNetV2"): "cannot be brought to the teacher's size"},
    "ofd": {("ShuffleV1", "resnet8"): "no single batch norm"},
}
# their losses also change with what gets no gradient: a memory that is filling, a weight by the student's error
MOVING = ("crd", "wsld")


class FewImages:
    """A loader of one batch, as far as `adapt_networks` knows a loader."""

    device = CPU

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH, 3, 32, 32, generator=generator)
        index = torch.arange(BATCH)
        self.batch = Batch(images, index % CLASSES, index, *torch.zeros(2, BATCH, dtype=torch.int64))

    def plain(self) -> list[Batch]:
        return [self.batch]


def build(name: str, teacher_name: str, student_name: str):
    torch.manual_seed(0)
    student, teacher = (model_dict[network](num_classes=CLASSES) for network in (student_name, teacher_name))
    shapes = Shapes(*[feature_shapes(network, (32, 32)) for network in (student, teacher)], CLASSES, BATCH)
    method, loader = registry[name].build(shapes, **SMALL.get(name, {})), FewImages()
    method.transforms.extend(transform_registry[flag](shapes) for flag in method.implies)
    student, teacher = adapt_networks(method, student, teacher, loader)
    if method.needs.negatives:
        sampler = ContrastSampler(loader.batch.target, method.needs.negatives)
        draw = (loader.batch.index, loader.batch.target, torch.Generator().manual_seed(0))
        loader.batch.contrast_index = sampler.draw(*draw)
    with torch.no_grad():
        output = run_network(teacher, loader.batch.images, method.needs, preact=bool(method.needs.preact))
        if method.needs.strong_view:
            loader.batch.strong_images = loader.batch.images.flip(3)
            output = replace(output, strong_logits=teacher(loader.batch.strong_images))
    return TrainStep(student, method, FP32), loader.batch, output


def few_steps(module, parameters, batch: Batch, teacher: Output, weights: dict[str, float]) -> list[float]:
    optimizer, losses = torch.optim.SGD(parameters, lr=1e-2), []
    module.train()
    for _ in range(STEPS):
        _, terms = module(batch, teacher, 25)
        loss = sum(weight * terms[name] for name, weight in weights.items())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("pair", PAIRS, ids="->".join)
@pytest.mark.parametrize("name", list(registry))
def test_loss_goes_down(name, pair):
    if pair in REFUSED.get(name, {}):
        with pytest.raises(Exception, match=REFUSED[name][pair]):
            build(name, *pair)
        return
    step, batch, teacher = build(name, *pair)
    method, entry = step.method, registry[name]
    for stage in method.stages(step.student):
        module = StageStep(step, stage)
        losses = few_steps(module, list(module.trained.parameters()), batch, teacher, {stage.name: 1.0})
        assert losses[-1] < losses[0], f"stage {stage.name}"
    stages = {stage.name for stage in method.stages(step.student)}
    weights = {term: entry.weights[flag] for flag, term in method.weighs.items() if term not in stages}
    losses = few_steps(step, [p for p in step.parameters() if p.requires_grad], batch, teacher, weights)
    assert all(math.isfinite(loss) for loss in losses)
    assert name in MOVING or losses[-1] < losses[0]


@pytest.mark.parametrize("name", list(registry))
def test_a_last_image_alone(name):
    step, batch, teacher = build(name, *PAIRS[0])
    rows = {key: value[:1] for key, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    vars(batch).update(rows)
    teacher = teacher.map(lambda rows: rows[:1])
    for module in (*(StageStep(step, stage) for stage in step.method.stages(step.student)), step):
        module.train()
        seen, terms = module(batch, teacher, 25)
        assert len(seen.target) == 1, "it counts once"
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
    gradients = {key: parameter.grad for key, parameter in step.named_parameters() if parameter.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
