"""What a distillation method is: the data it gets, what it declares, and the registry that the scripts read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import kl_divergence
from .ramps import Epoch

# of a constructor's argument: a number of epochs, which a shortened schedule shortens
Epochs = Annotated[int, "epochs"]
FLAG_TYPES = (int, float, bool, str)


@dataclass(frozen=True)
class Output:
    """What a network gives for a batch.

    Attributes:
        logits: (B, C).
        features: RepDistiller's list: the map after the stem, those of the stages (B, C_i, H_i, W_i), the pooled vector
            (B, D); None where the method asked for none, and None in the places that it did not ask for.
        strong_logits: (B, C) of the images' strong views, None where the method did not ask for them.
        distill_logits: (B, C) of a head of its own that learns from the teacher's logits, None where there is none.
    """

    logits: Tensor
    features: list[Tensor | None] | None = None
    strong_logits: Tensor | None = None
    distill_logits: Tensor | None = None

    @property
    def compared(self) -> Tensor:
        """The logits (B, C) that a loss compares with the teacher's."""
        return self.logits if self.distill_logits is None else self.distill_logits

    def float(self) -> Output:
        """The same in float32 (no copy where it is already)."""
        return self.map(Tensor.float)

    def map(self, change: Callable[[Tensor], Tensor]) -> Output:
        """The output whose tensors are what `change` makes of them."""
        features = self.features and [None if f is None else change(f) for f in self.features]
        others = (None if z is None else change(z) for z in (self.strong_logits, self.distill_logits))
        return Output(change(self.logits), features, *others)


@dataclass(frozen=True)
class Needs:
    """What a method asks of the run; the scripts read it and treat every method alike.

    Attributes:
        features: which entries of `Output.features` are filled for both networks: `none`, `mid` (the stages), `last`
            (the pooled vector) or `all`.
        preact: take the features before their last activation, of both networks or of the teacher alone.
        negatives: for how many training images of other classes each sample gets indices (`Step.contrast_index`).
        strong_view: both networks also see a strongly augmented view of every image, see `Output.strong_logits`.
        positives: the image in column 0 of these: `exact`, the sample itself, or `relax`, any one of its class.
    """

    features: Literal["none", "mid", "last", "all"] = "none"
    preact: bool | Literal["teacher"] = False
    negatives: int = 0
    positives: Literal["exact", "relax"] = "exact"
    strong_view: bool = False

    def select(self, features: list[Tensor]) -> list[Tensor | None] | None:
        """Drop the features that were not asked for, so that their memory is freed before the backward pass."""
        if self.features == "none":
            return None
        wanted = {"mid": range(1, len(features) - 1), "last": [len(features) - 1], "all": range(len(features))}
        return [f if i in wanted[self.features] else None for i, f in enumerate(features)]


@dataclass(frozen=True)
class Shapes:
    """Sizes that adapters are built from.

    Attributes:
        student, teacher: shape of every feature, batch dimension first, in the order of `Output.features`.
        classes: number of classes C.
        samples: number of training images N.
    """

    student: list[torch.Size]
    teacher: list[torch.Size]
    classes: int
    samples: int


@dataclass(frozen=True)
class Step:
    """One training step as a method sees it.

    Attributes:
        student, teacher: the networks' outputs in float32; the teacher's carry no gradient. One is None where it was
            not needed.
        target: (B,) labels.
        index: (B,) positions of the images in the training set.
        contrast_index: (B, 1 + negatives) positions of the positive and the negatives, None unless `Needs` asked.
        epoch: current epoch, from 1; within compiled code a 0-d tensor, for which `ramps.py` has functions.
    """

    student: Output | None
    teacher: Output | None
    target: Tensor
    index: Tensor
    contrast_index: Tensor | None = None
    epoch: Epoch = 1

    def map(self, change: Callable[[Tensor], Tensor]) -> Step:
        """The step whose tensors are what `change` makes of them."""
        outputs = [output and output.map(change) for output in (self.student, self.teacher)]
        rows = [part if part is None else change(part) for part in (self.target, self.index, self.contrast_index)]
        return Step(*outputs, *rows, self.epoch)


@dataclass(frozen=True)
class LogitPair:
    """Both networks' logits on their way to a logit loss.

    Attributes:
        student, teacher: (B, C).
        target: (B,) labels.
        temperature: softening temperature T > 0; a 0-d tensor where it is learned.
        epoch: as in `Step`.
    """

    student: Tensor
    teacher: Tensor
    target: Tensor
    temperature: float | Tensor
    epoch: Epoch = 1


@dataclass(frozen=True)
class Stage:
    """A pre-training stage, which the same loop runs over the same data before the main training.

    Attributes:
        name: of the stage and its loss; a flag that `Distiller.weighs` gives this name scales the loss relative to the
            flag's published value.
        epochs: number of epochs, >= 1.
        modules: what is trained, by a fresh SGD at a constant rate; everything else stays in evaluation mode.
        loss: gives the scalar loss of a step, whose `student` is None where no part of it is trained.
        learning_rate: None for the run's.
    """

    name: str
    epochs: int
    modules: Sequence[nn.Module]
    loss: Callable[[Step], Tensor]
    learning_rate: float | None = None


class Transform(nn.Module):
    """A step between the networks' logits and the loss that compares them; it goes with every logit loss.

    Its parameters are trained along with the student, as a method's adapters are.

    Attributes:
        sets_temperature: it replaces the pair's temperature.
        rescales: it changes the scale of the logits.
        reads_temperature: what it makes of logits depends on the pair's temperature.
        per_sample: the temperature that it sets is one for each sample, (B, 1); set it on the instance.
        aliases: what flags of its paper's own code mean here, as words of the command line.
        weighs: flags that weigh the terms that it adds to the loss, by term.
        only_for: options that nothing but such a term depends on, by term.
        weights: their values.

    Args:
        shapes: sizes of both networks and the data set. A subclass adds keyword arguments; they become its flags.

    Raises:
        ValueError: (in subclasses) an option is out of range or the data set does not suit it.
    """

    sets_temperature = False
    rescales = False
    reads_temperature = False
    per_sample = False
    aliases: Mapping[str, str] = {}
    weighs: Mapping[str, str] = {}
    only_for: Mapping[str, Sequence[str]] = {}

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.shapes = shapes
        self.weights: dict[str, float] = {}

    def forward(self, pair: LogitPair) -> LogitPair:
        """The pair as the next transform, or the loss, gets it."""
        raise NotImplementedError

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor | None:
        """What replaces the cross-entropy of the student's logits (B, C) with labels (B,); None for nothing."""
        return None

    def terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """Terms that it adds to the loss, of logits that no transform has touched; unweighted scalars by name."""
        return {}

    def figures(self) -> dict[str, float]:
        """What it has learned, by name, for the epoch's line in metrics.jsonl."""
        return {}

    def test_figures(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What it tells of the student's test logits, see `Distiller.test_figures`."""
        return {}


class Distiller(nn.Module):
    """Base of the methods: classification, the KL term on the logits, and `kd`, which a feature method implements.

    The total loss is r·cls + a·div + b·kd, as in RepDistiller. Adapters are attributes made in `__init__`; they train
    with the student and stay out of its checkpoints.

    Attributes:
        needs: what the method asks of the run; set it on the instance where it depends on an option.
        weighs: which term each of the flags -r, -a and -b weighs; a flag that is not in it has nothing to weigh.
        factors: flags of other code whose values, times -b, are weights here: the weight of each.
        temperature: T of the KL term and of logit losses (`--kd_T`).
        transforms: what logits go through, in order, before `logit_terms` gets them.
        implies: names of transforms that are always on.
        one_temperature: its logit terms need one temperature for the whole batch.

    Args:
        shapes: sizes of both networks and the data set. A subclass adds keyword arguments; they become its flags.

    Raises:
        ValueError: (in subclasses) an option is out of range or the pair of networks does not suit the method.
    """

    needs = Needs()
    weighs: Mapping[str, str] = {"r": "cls", "a": "div", "b": "kd"}
    factors: Mapping[str, str] = {}
    temperature = 4.0
    implies: Sequence[str] = ()
    one_temperature = False

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.shapes = shapes
        self.transforms = nn.ModuleList()

    def add_transform(self, change: Transform) -> None:
        """Let logits go through one more transform, after those that are there.

        Raises:
            ValueError: it does not go with the method.
        """
        if change.per_sample and self.one_temperature:
            raise ValueError("it compares samples with each other, which need one temperature for all of them")
        self.transforms.append(change)

    def classification(self, step: Step) -> Tensor:
        """The term `cls`: cross-entropy of the student's logits, a scalar."""
        return self.cross_entropy(step.student.logits, step.target)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """That of logits (B, C) and labels (B,), or what a transform puts in its place; a scalar."""
        for change in self.transforms:
            replaced = change.cross_entropy(logits, target)
            if replaced is not None:
                return replaced
        return F.cross_entropy(logits, target)

    def logit_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """Terms computed from the logits alone; here KL(teacher ‖ student) at T, times T² (Hinton et al., 2015)."""
        return {"div": kl_divergence(pair.student, pair.teacher, pair.temperature)}

    def kd(self, step: Step) -> Tensor:
        """The method's own term, an unweighted scalar."""
        raise NotImplementedError

    def feature_terms(self, step: Step) -> dict[str, Tensor]:
        """Terms that need more than the logits."""
        return {"kd": self.kd(step)}

    def prepare(self, teacher: nn.Module, images: Iterable) -> None:
        """Take from the frozen teacher what the method needs beyond its outputs; called once, before training.

        Args:
            teacher: the network.
            images: gives batches (with `images` and `target`) of the whole training set in order, unaugmented.

        Raises:
            ValueError: the teacher does not have it.
        """

    def wrap_student(self, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """What is trained and tested as the student; called once, after `prepare`.

        It is also what is saved, but for a module with an attribute `deployed`: then that one is.
        """
        return student

    def wrap_teacher(self, teacher: nn.Module) -> nn.Module:
        """What is run as the teacher; called once, after `prepare`."""
        return teacher

    def stages(self, student: nn.Module) -> list[Stage]:
        """The pre-training stages, in order; `student` is what `wrap_student` returned."""
        return []

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Every term of the loss, unweighted scalars by name."""
        pair = LogitPair(step.student.compared, step.teacher.logits, step.target, self.temperature, step.epoch)
        terms = {**self.logit_terms(self.transformed(pair)), **self.added_terms(pair)}
        return {"cls": self.classification(step), **terms, **self.feature_terms(step)}

    def added_terms(self, pair: LogitPair) -> dict[str, Tensor]:
        """What the transforms add to the loss, of untransformed logits."""
        return {name: term for change in self.transforms for name, term in change.terms(pair).items()}

    def transformed(self, pair: LogitPair, those: Callable[[Transform], bool] = lambda change: True) -> LogitPair:
        """The pair as the transforms leave it, or those of them for which `those` is true."""
        for change in self.transforms:
            if those(change):
                pair = change(pair)
        return pair

    def figures(self) -> dict[str, float]:
        """What is learned besides the networks, by name, for the epoch's line in metrics.jsonl."""
        return {name: value for change in self.transforms for name, value in change.figures().items()}

    def matrices(self) -> dict[str, Tensor]:
        """Constants of the loss that are worth a look, (M, N) by what they are; reports draw them."""
        return {}

    def test_figures(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What is measured on the test set besides accuracy and cross-entropy.

        Args:
            logits: the student's (B, C).
            target: (B,) labels.

        Returns:
            (B,) by name, NaN for samples that do not count; the mean over the test set goes to metrics.jsonl.
        """
        return {
            name: value for change in self.transforms for name, value in change.test_figures(logits, target).items()
        }


class LogitDistiller(Distiller):
    """Base of the methods that read logits only: a subclass implements `logit_terms` and names them in `weighs`."""

    def feature_terms(self, step: Step) -> dict[str, Tensor]:
        """None: all terms come from `logit_terms`."""
        return {}


class Supervised(Distiller):
    """Training from labels alone, as `train_teacher.py` does; a subclass, entered by `label_loss`, has another loss.

    Attributes:
        only_for: options that have an effect only where another one is not 0, by that one.
        weights: of the terms by name.
    """

    weighs: Mapping[str, str] = {"r": "cls"}
    only_for: Mapping[str, Sequence[str]] = {}

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.weights: dict[str, float] = {"cls": 1.0}

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term `cls`."""
        return {"cls": self.classification(step)}


label_losses: dict[str, type[Supervised]] = {"ce": Supervised}


def label_loss(name: str) -> Callable[[type[Supervised]], type[Supervised]]:
    """Class decorator that makes a `Supervised` a value of `train_teacher.py --loss`.

    Raises:
        ValueError: the name is taken.
        TypeError: an argument of the constructor cannot be a flag, see `constructor_options`.
    """

    def add(build: type[Supervised]) -> type[Supervised]:
        """Enter the class."""
        if name in label_losses:
            raise ValueError(f"two losses are called {name}: {label_losses[name].__name__} and {build.__name__}")
        constructor_options(build)
        label_losses[name] = build
        return build

    return add


@dataclass(frozen=True)
class Option:
    """A keyword argument of a method's constructor, as a flag of the command line.

    Attributes:
        name, default: as in the constructor.
        type: one of `FLAG_TYPES`.
        choices: allowed values, None where any.
        help: the argument's line in the class docstring.
        counts_epochs: whether it is annotated as `Epochs`.
    """

    name: str
    default: Any
    type: type
    choices: tuple | None
    help: str
    counts_epochs: bool = False


@dataclass(frozen=True)
class Method:
    """A line of the registry.

    Attributes:
        name: on the command line.
        build: the `Distiller` subclass.
        paper: title or short name and venue.
        weights: default of the flags -r, -a, -b, for those that it weighs.
        recipe: defaults of training options where the paper's differ from the data set's.
    """

    name: str
    build: type[Distiller]
    paper: str
    weights: Mapping[str, float]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """The published one, T > 0."""
        return self.recipe.get("kd_T", Distiller.temperature)

    def options(self) -> list[Option]:
        """The flags that this method takes."""
        return constructor_options(self.build)

    def logit_flags(self) -> list[str]:
        """Those of -r, -a and -b that weigh terms which compare logits."""
        weighs = self.build.weighs
        return [f for f in weighs if f != "r" and (weighs[f] == "div" or issubclass(self.build, LogitDistiller))]


def constructor_options(build: type[Distiller | Transform]) -> list[Option]:
    """The flags that a class takes, from the signature and docstring of its constructor.

    Raises:
        TypeError: an argument has no default, or no type of which a flag can be.
    """
    hints = get_type_hints(build.__init__, include_extras=True)
    lines = _argument_lines(inspect.getdoc(build) or "")
    options = []
    for name, parameter in list(inspect.signature(build.__init__).parameters.items())[2:]:
        hint = hints.get(name)
        choices = get_args(hint) if get_origin(hint) is Literal else None
        counts_epochs = hint == Epochs
        kind = type(choices[0]) if choices else int if counts_epochs else hint
        if kind not in FLAG_TYPES or parameter.default is parameter.empty:
            raise TypeError(
                f"{build.__name__}: the argument {name} of its constructor becomes a flag, and needs a default and a "
                "type: int, float, bool, str, Epochs or Literal[...]"
            )
        options.append(Option(name, parameter.default, kind, choices, lines.get(name, ""), counts_epochs))
    return options


registry: dict[str, Method] = {}
transform_registry: dict[str, type[Transform]] = {}  # in the order in which they are applied
_orders: dict[str, int] = {}


def transform(name: str, order: int) -> Callable[[type[Transform]], type[Transform]]:
    """Class decorator that makes a `Transform` a flag, `--name`; its keyword arguments become further flags.

    Args:
        name: of the flag.
        order: the transforms are applied in increasing order.

    Raises:
        ValueError: the name is taken.
        TypeError: an argument of the constructor cannot be a flag, see `constructor_options`.
    """

    def add(build: type[Transform]) -> type[Transform]:
        """Enter the class."""
        constructor_options(build)
        if name in transform_registry:
            taken = transform_registry[name].__name__
            raise ValueError(f"two transforms are called {name}: {taken} and {build.__name__}")
        _orders[name] = order
        known = sorted([*transform_registry.items(), (name, build)], key=lambda entry: _orders[entry[0]])
        transform_registry.clear()
        transform_registry.update(known)
        return build

    return add


def register(
    name: str, paper: str, r: float = 1.0, a: float = 0.0, b: float = 0.0, **recipe: Any
) -> Callable[[type[Distiller]], type[Distiller]]:
    """Class decorator that makes a `Distiller` a value of `--distill`.

    Args:
        name: the value.
        paper: title or short name and venue.
        r, a, b: the published weights, defaults of the flags of these names.
        recipe: defaults of training options (`warmup_epochs=20`) where the method's differ from the data set's.

    Raises:
        ValueError: the name is taken, or a weight is given that the class does not use.
        TypeError: an argument of the constructor cannot be a flag, see `constructor_options`.
    """

    def add(build: type[Distiller]) -> type[Distiller]:
        """Enter the class into the registry."""
        if name in registry:
            raise ValueError(f"two methods are called {name}: {registry[name].build.__name__} and {build.__name__}")
        given = {"r": r, "a": a, "b": b}
        unused = [flag for flag, value in given.items() if value and flag not in build.weighs]
        if unused:
            raise ValueError(f"{name} has a default for -{unused[0]}, but {build.__name__}.weighs does not name it")
        constructor_options(build)
        registry[name] = Method(name, build, paper, {flag: given[flag] for flag in build.weighs}, recipe)
        return build

    return add


def _argument_lines(docstring: str) -> dict[str, str]:
    """The `name: text` entries of a Google-style docstring's Args section, continuation lines joined."""
    section = docstring.partition("Args:\n")[2].partition("\n\n")[0]
    entries: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        head, colon, text = line.strip().partition(": ")
        if colon and head.isidentifier() and len(line) - len(line.lstrip()) == 4:
            name = head
            entries[name] = text
        elif name:
            entries[name] += " " + line.strip()
    return entries
