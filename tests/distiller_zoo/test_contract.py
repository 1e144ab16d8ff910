"""What holds for every registered method."""

import copy

import pytest
import torch
from device_copies import META, copies_to_meta
from torch import Tensor

from dataset import Batch, ContrastSampler
from distiller_zoo import Shapes, Step, registry, transform_registry
from distiller_zoo.base import LogitDistiller, Output, register
from helper.errors import UserError
from helper.options import student_options
from helper.setup import build_method, feature_shapes
from models import model_dict

BATCH, CLASSES, SAMPLES = 12, 10, 60
LABELS = torch.arange(SAMPLES) % CLASSES
# options that make a method small enough for these tests
SMALL = {"crd": {"nce_k": 20, "feat_dim": 16}}
# neighbouring samples are compared
ORDER_MATTERS = ("correlation",)

every_method = pytest.mark.parametrize("name", list(registry))


def plain_images() -> list[Batch]:
    """The training set, as `prepare` gets it: noise of the right size and labels."""
    images = torch.randn(SAMPLES, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return [Batch(images, LABELS, torch.arange(SAMPLES), *torch.zeros(2, SAMPLES, dtype=torch.int64))]


def build(name: str):
    """A method for a pair of networks, as train_student.py makes it."""
    torch.manual_seed(0)
    networks = [model_dict[network](num_classes=CLASSES) for network in ("resnet8", "resnet14")]
    sizes = [feature_shapes(network, (32, 32)) for network in networks]
    shapes = Shapes(*sizes, CLASSES, SAMPLES)
    method = registry[name].build(shapes, **SMALL.get(name, {})).train()
    method.transforms.extend(transform_registry[flag](shapes) for flag in method.implies)
    with torch.no_grad():
        method.prepare(networks[1].eval(), plain_images())
    # in a tuple, so that the student is no module of the method
    method.networks = tuple(networks)
    return method


def all_terms(method, step: Step) -> dict[str, torch.Tensor]:
    """The terms of the main training and of the pre-training stages."""
    stages = method.stages(method.networks[0])
    return {**method(step), **{stage.name: stage.loss(step) for stage in stages}}


def outputs(method, dtype: torch.dtype = torch.float32, seed: int = 1) -> Step:
    """A step of random outputs of the shapes that the method was built for; the student's receive gradients."""
    generator = torch.Generator().manual_seed(seed)

    def side(shapes: list[torch.Size], trained: bool) -> Output:
        tensors = [torch.randn(BATCH, CLASSES, generator=generator)]
        tensors += [torch.randn(BATCH, *shape[1:], generator=generator) for shape in shapes]
        tensors += [torch.randn(BATCH, CLASSES, generator=generator)]
        logits, *features, strong = (tensor.to(dtype).requires_grad_(trained) for tensor in tensors)
        return Output(logits, method.needs.select(features), strong if method.needs.strong_view else None)

    index = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    contrast = None
    if method.needs.negatives:
        sampler = ContrastSampler(LABELS, method.needs.negatives, method.needs.positives)
        contrast = sampler.draw(index, LABELS[index], generator)
    student, teacher = side(method.shapes.student, True), side(method.shapes.teacher, False)
    return Step(student, teacher, LABELS[index], index, contrast, epoch=25)


def leaves(output: Output) -> list[torch.Tensor]:
    return [output.logits, *(f for f in output.features or [] if f is not None)]


@every_method
def test_says_what_it_is(name):
    method = registry[name]
    assert method.paper
    assert "(B, " in method.build.__doc__, "the docstring tells the shapes"
    for flag, term in method.build.weighs.items():
        assert flag in method.weights
        assert flag == "r" or term == "div" or f"-{flag}" in method.build.__doc__, f"the docstring explains -{flag}"
    for option in method.options():
        assert option.help, f"the docstring explains {option.name}"


@every_method
def test_terms_are_those_that_the_flags_weigh(name):
    method = build(name)
    step = outputs(method)
    terms = all_terms(method, step)
    stages = {stage.name for stage in method.stages(method.networks[0])}
    assert set(terms) - stages == set(method.weighs.values()) - stages
    for term in terms.values():
        assert term.shape == ()


@every_method
def test_every_weight_changes_the_students_gradient(name):
    method = build(name)
    step = outputs(method)
    terms = all_terms(method, step)
    for term in (terms[name] for name in method.weighs.values()):
        grads = torch.autograd.grad(term, leaves(step.student), retain_graph=True, allow_unused=True)
        assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


@every_method
def test_teacher_gets_no_gradient_and_every_adapter_does(name):
    method = build(name)
    step = outputs(method)
    sum(all_terms(method, step).values()).backward()
    assert all(tensor.grad is None for tensor in leaves(step.teacher))
    for key, parameter in method.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@every_method
def test_order_of_the_batch_does_not_matter(name):
    method = build(name).double()
    step = outputs(method, torch.float64)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2))

    def shuffled(output: Output) -> Output:
        features = output.features and [None if f is None else f[order] for f in output.features]
        strong = None if output.strong_logits is None else output.strong_logits[order]
        return Output(output.logits[order], features, strong)

    contrast = None if step.contrast_index is None else step.contrast_index[order]
    permuted = Step(
        shuffled(step.student), shuffled(step.teacher), step.target[order], step.index[order], contrast, step.epoch
    )
    expected, found = (all_terms(copy.deepcopy(method), some) for some in (step, permuted))
    if name in ORDER_MATTERS:
        assert found["kd"].item() != pytest.approx(expected["kd"].item(), rel=1e-6)
        return
    for term, value in expected.items():
        assert found[term].item() == pytest.approx(value.item(), rel=1e-9), term


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_outputs_give_finite_terms(name, dtype):
    method = build(name)
    step = outputs(method, dtype)
    step = Step(step.student.float(), step.teacher.float(), step.target, step.index, step.contrast_index, step.epoch)
    terms = all_terms(method, step)
    sum(terms.values()).backward()
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())


@pytest.mark.parametrize(
    ("name", "transforms"),
    [
        *((name, ()) for name in registry),
        *(("kd", (flag,)) for flag in transform_registry),
        ("mlkd", ("curriculum_T",)),
    ],
    ids=lambda part: part if isinstance(part, str) else "-".join(part),
)
def test_no_loss_makes_the_host_wait_for_the_device(name, transforms):
    method = build(name)
    method.transforms.extend(transform_registry[flag](method.shapes) for flag in transforms)
    step = outputs(method)
    student, teacher = (output.map(lambda z: z.detach().to(META)) for output in (step.student, step.teacher))
    student = student.map(Tensor.requires_grad_)
    labels = [None if part is None else part.to(META) for part in (step.target, step.index, step.contrast_index)]
    method.to(META)
    with copies_to_meta() as copies:
        terms = all_terms(method, Step(student, teacher, *labels, epoch=3))
        sum(terms.values()).backward()
    assert all(copies)


def test_two_methods_of_one_name_are_refused():
    taken = next(iter(registry))
    with pytest.raises(ValueError, match="two methods are called"):
        register(taken, paper="x")(registry[taken].build)


def test_a_weight_that_the_class_does_not_use_is_refused():
    logit_only = registry["kd"].build
    with pytest.raises(ValueError, match="does not name it"):
        register("unheard_of", paper="x", b=1.0)(logit_only)
    assert "unheard_of" not in registry


def method_with(argument: str) -> type[LogitDistiller]:
    """A logit method whose constructor has one more argument."""
    names = {}
    body = f"def __init__(self, shapes, {argument}):\n    LogitDistiller.__init__(self, shapes)"
    exec(body, {"LogitDistiller": LogitDistiller}, names)
    return type("Mine", (LogitDistiller,), names)


@pytest.mark.parametrize("argument", ["power=2.0", "power: float", "power: tuple = (1, 2)", "power: int | None = None"])
def test_an_argument_that_cannot_be_a_flag_is_refused(argument):
    with pytest.raises(TypeError, match="Mine: the argument power of its constructor becomes a flag, and needs"):
        register("mine", paper="x", a=1.0)(method_with(argument))
    assert "mine" not in registry


@pytest.mark.parametrize("name", ["alpha", "momentum", "sort", "r", "notes"])
def test_an_argument_that_is_called_as_another_flag_is_refused(name, monkeypatch):
    register("mine", paper="x", a=1.0)(method_with(f"{name}: float = 1.0"))
    monkeypatch.setitem(registry, "mine", registry.pop("mine"))  # gone after the test
    with pytest.raises(UserError, match=f"^Mine: an argument of its constructor has the name of a flag, --{name}$"):
        student_options(["--distill", "mine"])


def test_a_term_that_no_flag_weighs_is_refused(call, teacher, monkeypatch):
    monkeypatch.setattr(registry["kd"].build, "logit_terms", lambda self, pair: {"mse": pair.student.mean()})
    with pytest.raises(ValueError, match="there are weights of cls, div, but terms cls, mse"):
        call("train_student", "--path_t", teacher, "--dataset", "shapes100", "--epochs", 1, "--model_s", "resnet8")


def test_features_of_own_networks_that_are_no_maps_are_refused():
    vectors = [torch.Size(shape) for shape in ((2, 16, 32, 32), (2, 64), (2, 64))]
    maps = [torch.Size(shape) for shape in ((2, 16, 32, 32), (2, 64, 8, 8), (2, 64))]
    with pytest.raises(UserError, match=r"compares maps, and the student gives a feature of shape \[2, 64\]"):
        build_method(registry["attention"], Shapes(vectors, maps, CLASSES, SAMPLES), {}, 4.0, {})
    build_method(registry["pkt"], Shapes(vectors, maps, CLASSES, SAMPLES), {}, 4.0, {})
