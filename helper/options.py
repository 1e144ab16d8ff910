"""The options of train_teacher.py and train_student.py: defaults filled, and all checked that needs no data."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from dataset import DataError, dataset_dict, look
from dataset.augment import LARGEST_ROTATION, MAGNITUDES
from distiller_zoo import label_losses, registry, transform_registry
from distiller_zoo.base import Method, Transform, constructor_options
from models import constructor_takes, model_dict, model_recipe, needs_logit_distillation, project_name

from . import distributed
from .checkpoint import check_model, nearest
from .errors import UserError
from .flags import (
    WEIGHT_FLAGS,
    OneLineParser,
    add_cache,
    add_data,
    add_method,
    add_networks,
    add_option,
    add_running,
    add_training,
    add_transforms,
    name_argument,
    no_name_twice,
)
from .recipe import (
    RECIPE,
    apply_recipe,
    changed_options,
    differences,
    method_differences,
    scale_epochs,
    stronger_last,
    trial_seed,
)

T = TypeVar("T")
SIDES = (8, 4096)  # of --image_size
DOT_DELTA = 0.075  # of CIFAR-100 in the paper


def _known(name: str, names: Mapping[str, Any], what: str) -> None:
    if name not in names:
        raise UserError(f"unknown {what} {name}; {nearest(name, names)}")


def _check(opt: argparse.Namespace, name: str, low: float, strict: bool = False, high: float = math.inf) -> None:
    value = getattr(opt, name)
    if value is None:
        return
    # compared the other way round, NaN would pass
    if not low <= value <= high or (strict and value == low) or abs(value) == math.inf:
        bound = f"above {low}" if strict else f"at least {low}"
        dashes = "-" if name in WEIGHT_FLAGS else "--"
        raise UserError(f"{dashes}{name} {value} must be {bound}" + (f" and at most {high}" if high < math.inf else ""))


def settle_data(opt: argparse.Namespace) -> Mapping[str, Any]:
    """Check the flags of `add_data` and look at the data set, whose number of classes becomes `opt.classes`.

    `opt.notes` begins with remarks on these flags.

    Returns:
        Its recipe.

    Raises:
        UserError: a value is out of range or without effect, or the data set is absent or malformed.
    """
    opt.dataset = "cifar100" if opt.dataset is None else opt.dataset
    _known(opt.dataset, dataset_dict, "data set")
    if opt.image_size is not None and not all(SIDES[0] <= side <= SIDES[1] for side in opt.image_size):
        given = ",".join(map(str, opt.image_size))
        raise UserError(f"--image_size {given} must be at least {SIDES[0]} and at most {SIDES[1]}")
    _check(opt, "memory_budget", 0)
    _check(opt, "num_workers", 0)
    for low, value in ((0, opt.mean), (1e-3, opt.std)):
        if value is not None and not all(low <= channel <= 1 for channel in value):
            raise UserError(f"--{'std' if low else 'mean'} {','.join(map(str, value))} must be between {low:g} and 1")
    for name in ("image_size", "memory_budget", "skip_bad_images"):
        if getattr(opt, name) is not None and dataset_dict[opt.dataset].layout is None:
            raise UserError(f"--{name} has no effect on {opt.dataset}, which is not made of image files")
    opt.notes = []
    if opt.num_workers is not None and dataset_dict[opt.dataset].layout is None:
        opt.notes.append("--num_workers has no effect on data sets that are kept in memory")
    try:
        facts = look(opt.dataset, opt.data_folder, opt.image_size)
    except DataError as error:
        raise UserError(str(error)) from None
    opt.classes = facts.classes
    return facts.recipe


def _check_ranges(opt: argparse.Namespace) -> None:
    """Ranges of the flags of both scripts.

    Raises:
        UserError: the first value that is out of its range.
    """
    for name in ("epochs", "scale_epochs", "batch_size", "subset", "save_freq", "print_freq", "tb_freq"):
        _check(opt, name, 1)
    for name in ("warmup_epochs", "weight_decay"):
        _check(opt, name, 0)
    for name in ("lr_end", "random_erasing"):
        _check(opt, name, 0, high=1)
    _check(opt, "drop_path", 0, high=0.9)
    _check(opt, "rand_augment", 0, high=MAGNITUDES)
    _check(opt, "rotation", 0, high=LARGEST_ROTATION)
    _check(opt, "seed", 0, high=2**63 - 1)
    if opt.sync_bn and opt.compile:
        raise UserError("--sync_bn does not go with --compile")
    _check(opt, "val_split", 0, strict=True, high=0.5)
    if opt.tf32 and opt.precision != "fp32":
        raise UserError("--tf32 goes with --precision fp32")
    _check(opt, "learning_rate", 0, strict=True)
    _check(opt, "lr_decay_rate", 0, strict=True, high=1)
    _check(opt, "momentum", 0, high=1)
    if opt.official_warmup and opt.warmup_epochs < 2:
        raise UserError("--official_warmup has no effect without --warmup_epochs")
    decays = [0, *opt.lr_decay_epochs]
    if any(late <= early for early, late in pairwise(decays)):
        raise UserError(f"--lr_decay_epochs {','.join(map(str, opt.lr_decay_epochs))} must be positive and increasing")


def _check_network(opt: argparse.Namespace, model: str, size_flag: str) -> None:
    """Check the options of the network that learns.

    Args:
        opt: the options.
        model: its name.
        size_flag: the option that gives the size of its images.

    Raises:
        UserError: the first that does not suit it.
    """
    check_model(model)
    _check(opt, size_flag, 1)
    if opt.drop_path is not None and not constructor_takes(model, "drop_path"):
        takers = ", ".join(name for name in model_dict if constructor_takes(name, "drop_path"))
        raise UserError(f"--drop_path has no effect on {model}; these networks have it: {takers}")


def _notes(opt: argparse.Namespace) -> list[str]:
    notes = []
    if opt.sync_bn and distributed.size() == 1:
        notes.append("--sync_bn has no effect in one process")
    if opt.warmup_epochs >= opt.epochs > 1:
        notes.append(f"the warm-up of {opt.warmup_epochs} epochs does not end within {opt.epochs}; see --warmup_epochs")
    if opt.lr_decay_epochs and opt.lr_decay_epochs[0] >= opt.epochs > 1:
        notes.append(f"the learning rate does not drop within {opt.epochs} epochs; see --lr_decay_epochs")
    return notes


def _chosen(flag: str, default: str, arguments: Sequence[str], known: Mapping[str, T], what: str) -> tuple[str, T]:
    """Find a flag first that decides which other flags there are; gives its value and what that stands for."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="name", default=default)
    name = parser.parse_known_args(arguments)[0].name
    _known(name, known, what)
    return name, known[name]


def teacher_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse and check the command line of train_teacher.py.

    Args:
        arguments: without the script's name.

    Returns:
        The resolved options; `notes` holds remarks for the user, `differs` the options that are not the recipe's.

    Raises:
        UserError: the first thing that is wrong.
    """
    name, build = _chosen("--loss", "ce", arguments, label_losses, "loss")
    parser = OneLineParser(prog="train_teacher.py", description="Train one network from labels.", allow_abbrev=False)
    name_argument(parser, "--model", help="the network: of models/, timm:NAME, torchvision:NAME, ... (resnet110)")
    parser.add_argument("--size", type=int, metavar="N", help="side to which its images are brought (its own)")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), help="(sgd; adamw for transformers)")
    parser.add_argument("-t", "--trial", default="0", help="names the run and gives its seed")
    name_argument(parser, "--loss", help=f"what is minimised (ce): {', '.join(label_losses)}")
    group = parser.add_argument_group(f"--loss {name}", (build.__doc__ or "").partition("\n\n")[0])
    with no_name_twice(build):
        for option in constructor_options(build):
            add_option(group, option)
        add_data(parser)
        add_training(parser)
        add_running(parser)
    opt = parser.parse_args(arguments)
    opt.model = project_name("resnet110" if opt.model is None else opt.model)
    recipe = settle_data(opt)
    _check_network(opt, opt.model, "size")
    if opt.model in needs_logit_distillation:
        raise UserError(f"{opt.model} learns from a teacher, with train_student.py; from labels alone train another")
    defaults = apply_recipe(opt, *stronger_last(model_recipe.get(opt.model, {}), recipe))
    _check_ranges(opt)
    given = changed_options(vars(opt), constructor_options(build))
    for needed, names in build.only_for.items():
        for option in names:
            if option in given and not getattr(opt, needed):
                raise UserError(f"--{option} has no effect without --{needed}")
    scale_epochs(opt, constructor_options(build))
    opt.seed = trial_seed(opt.trial) if opt.seed is None else opt.seed
    opt.notes += _notes(opt)
    opt.loss = name
    opt.loss_options = {option.name: getattr(opt, option.name) for option in constructor_options(build)}
    chosen = {"loss": name} if name != "ce" else {}
    own = changed_options(opt.loss_options, constructor_options(build))
    opt.differs = {**differences(opt, defaults), **chosen, **own}
    return opt


def _spell_out(words: Sequence[str]) -> list[str]:
    """Put what the flags of the papers' own code mean here in their place, `--flag value` and `--flag=value` alike."""
    known = {alias: meant for build in transform_registry.values() for alias, meant in build.aliases.items()}
    flags = {alias.split()[0] for alias in known}
    left, result = list(words), []
    while left:
        flag, equals, value = left.pop(0).partition("=")
        if flag not in flags:
            result.append(flag + equals + value)
            continue
        value = value if equals or not left else left.pop(0)
        if f"{flag} {value}" not in known:
            values = " or ".join(alias.split()[1] for alias in known if alias.split()[0] == flag)
            raise UserError(f"{flag} takes {values}, not '{value}'")
        result += known[f"{flag} {value}"].split()
    return result


def _settle_transforms(opt: argparse.Namespace, method: Method) -> None:
    """Collect the transforms that are on with their options; drop the options of the others.

    Raises:
        UserError: an option of a transform that is off, or a transform that has nothing to act on.
    """
    opt.transforms = {}
    for name, build in transform_registry.items():
        is_on = getattr(opt, name) or name in method.build.implies
        options = {option.name: option.default for option in constructor_options(build)}
        given = {key: getattr(opt, key) for key in options if getattr(opt, key) is not None}
        for key in (name, *options):
            delattr(opt, key)
        if is_on:
            opt.transforms[name] = {**options, **given}
        elif given:
            raise UserError(f"--{next(iter(given))} is a flag of --{name}, which is not given")
        for term, flag in build.weighs.items():
            weighing = [f"-{f}" for f, known in method.build.weighs.items() if known == term]
            if weighing and flag in given:
                raise UserError(f"--{flag} has no effect in --distill {method.name}, where {weighing[0]} weighs {term}")
        if is_on:
            _check_weightless(opt, method, build, given)
        if is_on and build.sets_temperature and opt.kd_T != method.temperature:
            raise UserError(f"--kd_T {opt.kd_T} has no effect with --{name}")
    if opt.transforms and not any(getattr(opt, flag) for flag in method.logit_flags()):
        flags = " and ".join(f"-{flag}" for flag in method.logit_flags())
        raise UserError(f"--{next(iter(opt.transforms))} has no effect while {flags} is 0")


def _check_weightless(
    opt: argparse.Namespace, method: Method, build: type[Transform], given: Mapping[str, Any]
) -> None:
    """Refuse options of a transform that only change terms without weight.

    Raises:
        UserError: one was given.
    """
    for term, names in build.only_for.items():
        weighing = {flag: getattr(opt, flag) for flag, known in method.build.weighs.items() if known == term}
        own = build.weighs[term]
        weights = {f"-{flag}": value for flag, value in weighing.items()} or {f"--{own}": given.get(own)}
        for name in names:
            if name in given and 0 in weights.values():
                raise UserError(f"--{name} has no effect while {next(iter(weights))} is 0")


def _check_unknown(words: Sequence[str], method: Method) -> None:
    """Say which method takes a flag that the chosen one does not."""
    for word in words:
        flag = word.partition("=")[0]
        takers = [m.name for m in registry.values() if flag in {f"--{option.name}" for option in m.options()}]
        if takers:
            raise UserError(f"{flag} is not a flag of --distill {method.name}; it belongs to {', '.join(takers)}")
    if words:
        raise UserError(f"unknown argument {words[0]}; see train_student.py --distill {method.name} --help")


def _spread_kd_weight(opt: argparse.Namespace, method: Method) -> None:
    """Turn `--kd-weight` into the weights that it stands for: the value of a single one, a factor of several.

    Raises:
        UserError: it is negative, or given beside one of these weights.
    """
    _check(opt, "kd_weight", 0)
    value = opt.kd_weight
    delattr(opt, "kd_weight")
    if value is None:
        return
    flags = method.logit_flags()
    for flag in flags:
        if getattr(opt, flag) is not None:
            raise UserError(f"--kd-weight and -{flag} both set a weight; give one of them")
        setattr(opt, flag, value if len(flags) == 1 else value * method.weights[flag])


def _multiply_factors(opt: argparse.Namespace, method: Method) -> None:
    """Turn the weights that other code gives as multiples of its -b into the weights that they stand for.

    Raises:
        UserError: one is missing or negative, or -a is above 0, which there weighs a term that the method has not.
    """
    names = method.build.factors
    given = [name for name in names if getattr(opt, name) is not None]
    for name in names if given else ():
        if name not in given:
            raise UserError(f"--{given[0]} goes with --{name}")
        _check(opt, name, 0)
    if given and opt.a:
        raise UserError(f"-a {opt.a} has nothing to weigh beside --{given[0]}; give -a 0")
    common = 1.0 if opt.b is None else opt.b
    for name, flag in names.items():
        if given:
            setattr(opt, flag, common * getattr(opt, name))
        delattr(opt, name)


def _settle_weights(opt: argparse.Namespace, method: Method) -> None:
    """Fill the published weights; refuse negative ones and any that has nothing to weigh.

    Raises:
        UserError: the first weight that is wrong, or a temperature that no term uses.
    """
    _multiply_factors(opt, method)
    _spread_kd_weight(opt, method)
    for flag, default in ((flag, method.weights.get(flag)) for flag in WEIGHT_FLAGS):
        _check(opt, flag, 0)
        value = getattr(opt, flag)
        if default is None and value:
            weighed = ", ".join(f"-{f} weighs {term}" for f, term in method.build.weighs.items())
            raise UserError(f"-{flag} {value} has nothing to weigh in --distill {method.name} ({weighed})")
        if default is None or value is None:
            setattr(opt, flag, default)
    if not any(getattr(opt, flag) for flag in method.weights):
        raise UserError("all weights are 0: nothing would be learned")
    _check(opt, "kd_T", 0, strict=True)
    temperature = method.temperature
    users = method.logit_flags()
    if opt.kd_T != temperature and not any(getattr(opt, flag) for flag in users):
        raise UserError(f"--kd_T {opt.kd_T} has no effect while {' and '.join(f'-{f}' for f in users)} is 0")


def _settle_optimizer(opt: argparse.Namespace) -> None:
    """Fill and check `--dot_delta`, which only one optimizer takes.

    Raises:
        UserError: it is given for another one, or out of range.
    """
    if opt.optimizer == "dot":
        opt.dot_delta = DOT_DELTA if opt.dot_delta is None else opt.dot_delta
        _check(opt, "dot_delta", 0, high=min(opt.momentum, 1 - opt.momentum))
    elif opt.dot_delta is not None:
        raise UserError(f"--dot_delta {opt.dot_delta} is a flag of --optimizer dot")
    if opt.optimizer == "dot" and opt.compile:
        raise UserError("--optimizer dot takes gradients twice: it does not go with --compile")


def _check_heads(opt: argparse.Namespace, method: Method) -> None:
    """A head that learns from the teacher's logits needs a term that compares them.

    Raises:
        UserError: there is none, or the method has two views, for which these heads have no form.
    """
    if opt.model_s not in needs_logit_distillation:
        return
    flags = method.logit_flags()
    if not any(getattr(opt, flag) for flag in flags):
        wanted = " or ".join(f"-{flag}" for flag in flags)
        raise UserError(f"{opt.model_s} has a head that learns from the teacher's logits: give {wanted} above 0")
    if method.build.needs.strong_view:
        raise UserError(f"{opt.model_s} does not go with --distill {method.name}, which looks at two views")


def student_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, Method]:
    """Parse and check the command line of train_student.py.

    Args:
        arguments: without the script's name.

    Returns:
        The resolved options (as for `teacher_options`, with `method_options`, the method's own) and the method.

    Raises:
        UserError: the first thing that is wrong.
    """
    arguments = _spell_out(arguments)
    _, method = _chosen("--distill", "kd", arguments, registry, "method")
    # without abbreviations, since --k would be taken for --kd_T where a method has no k
    parser = OneLineParser(
        prog="train_student.py", description="Distil a teacher checkpoint into a student.", allow_abbrev=False
    )
    name_argument(parser, "--distill", help=f"the method (kd): {', '.join(registry)}")
    add_networks(parser)
    parser.add_argument("--trial", default="1", help="names the run and gives its seed")
    parser.add_argument(
        "--optimizer",
        choices=("sgd", "dot", "adamw"),
        help="dot: separate momentum for KD (sgd; adamw for transformers)",
    )
    parser.add_argument("--dot_delta", type=float, metavar="X", help="difference of the momenta of dot (0.075)")
    with no_name_twice(method.build):
        add_method(parser, method)
        add_transforms(parser)
        add_data(parser)
        add_training(parser)
        add_cache(parser)
        add_running(parser)
    opt, unknown = parser.parse_known_args(arguments)
    _check_unknown(unknown, method)
    opt.distill = method.name
    recipe = settle_data(opt)
    opt.model_s = project_name({**RECIPE, **recipe}["model_s"] if opt.model_s is None else opt.model_s)
    _check_network(opt, opt.model_s, "size_s")
    _check(opt, "size_t", 1)
    defaults = apply_recipe(opt, method.recipe, *stronger_last(model_recipe.get(opt.model_s, {}), recipe))
    _check_ranges(opt)
    _settle_optimizer(opt)
    _settle_weights(opt, method)
    _check_heads(opt, method)
    _settle_transforms(opt, method)
    scale_epochs(opt, method.options())
    if opt.teacher_cache_fill and not opt.teacher_cache:
        raise UserError("--teacher_cache_fill needs --teacher_cache DIR")
    opt.seed = trial_seed(opt.trial) if opt.seed is None else opt.seed
    opt.notes += _notes(opt)
    for option in method.options():
        if option.type is float:
            _check(opt, option.name, -math.inf)
    opt.method_options = {option.name: getattr(opt, option.name) for option in method.options()}
    opt.differs = {**differences(opt, defaults), **method_differences(opt, method)}
    return opt, method


def describe(opt: argparse.Namespace) -> dict[str, Any]:
    """The resolved options as plain data, for options.json and the print at the start."""
    hidden = ("notes", "differs", "classes", "method_options", "loss_options")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(vars(opt).items()) if k not in hidden}
