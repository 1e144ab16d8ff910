"""The command lines of train_teacher.py and train_student.py: flags, defaults, and checks that need no data."""

from __future__ import annotations

import argparse
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

from dataset import DataError, dataset_dict, look
from dataset.augment import MAGNITUDES
from distiller_zoo import label_losses, registry, transform_registry
from distiller_zoo.base import Distiller, Method, Option, constructor_options
from models import constructor_takes, model_dict, model_recipe, needs_logit_distillation, project_name

from .checkpoint import check_model, nearest
from .errors import UserError

T = TypeVar("T")
# RepDistiller's recipe for CIFAR-100; data sets, networks and methods override single values
RECIPE: dict[str, Any] = {
    "epochs": 240,
    "batch_size": 64,
    "learning_rate": 0.05,
    "lr_decay_epochs": (150, 180, 210),
    "lr_decay_rate": 0.1,
    "weight_decay": 5e-4,
    "momentum": 0.9,
    "warmup_epochs": 0,
    "optimizer": "sgd",
    "lr_schedule": "step",
    "rand_augment": 0.0,
    "random_erasing": 0.0,
    "path_t": "save/models/resnet32x4_vanilla/ckpt_epoch_240.pth",
    "model_s": "resnet8x4",
}
# what decides which images a network is trained on, and how they look
READING = ("image_size", "mean", "std", "memory_budget", "skip_bad_images", "val_split", "subset")
SIDES = (8, 4096)  # of --image_size
DOT_DELTA = 0.075  # of CIFAR-100 in the paper
COSINE_END = 0.01  # of tiny-transformers
WEIGHT_FLAGS = {"r": "gamma", "a": "alpha", "b": "beta"}


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are a `UserError` of one line."""

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        raise UserError(message)


def _decay_epochs(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of epochs such as 150,180,210") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _three_numbers(text: str) -> tuple[float, ...]:
    try:
        red, green, blue = (float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not three numbers such as 0.5,0.5,0.5") from None
    return red, green, blue


def _size(text: str) -> tuple[int, int]:
    try:
        height, *width = (int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a side such as 224, or height,width") from None
    if len(width) > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is more than height,width")
    return height, *(width or [height])


def add_data(parser: argparse.ArgumentParser) -> None:
    """Flags that tell the data set and how it is read. None stands for the data set's own value."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", metavar="NAME", help=f"one of {', '.join(dataset_dict)} (cifar100)")
    group.add_argument(
        "--data_folder",
        default=os.environ.get("KD_DATA", "./data"),
        metavar="DIR",
        help="where data sets lie; with --dataset folder, the one with train/CLASS and val/CLASS",
    )
    group.add_argument(
        "--image_size", type=_size, metavar="N", help="side, or height,width, that image files get (the data set's)"
    )
    for name in ("mean", "std"):
        text = f"{name} of each channel, in [0, 1], to normalise by (the data set's)"
        group.add_argument(f"--{name}", type=_three_numbers, metavar="R,G,B", help=text)
    group.add_argument(
        "--memory_budget",
        type=float,
        metavar="GIB",
        help="keep decoded images in memory where they take no more, else read them from disk (2; imagenet: 0)",
    )
    # None and not False, as all that is not given
    group.add_argument(
        "--skip_bad_images", action="store_true", default=None, help="leave out image files that cannot be decoded"
    )
    group.add_argument(
        "--num_workers", type=int, metavar="N", help="processes that read and decode image files (8, or all cores)"
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Flags of both scripts. A default of None stands for the recipe's value."""
    group = parser.add_argument_group("training (defaults: the recipe of the data set, network and method)")
    group.add_argument("--epochs", type=int, metavar="N", help="number of epochs (240)")
    group.add_argument(
        "--scale_epochs",
        type=int,
        metavar="N",
        help="shorten all that is counted in epochs, until there are N",
    )
    group.add_argument("--batch_size", type=int, metavar="N", help="training images per step (64)")
    group.add_argument(
        "--learning_rate", type=float, metavar="LR", help="initial rate (0.05; 0.01 for mobile networks)"
    )
    group.add_argument(
        "--lr_decay_epochs", type=_decay_epochs, metavar="N,N", help="epochs after which the rate drops (150,180,210)"
    )
    group.add_argument("--lr_decay_rate", type=float, metavar="X", help="factor of a drop (0.1)")
    group.add_argument(
        "--lr_schedule", choices=("step", "cosine"), help="drops after some epochs, or half a cosine (step)"
    )
    group.add_argument("--lr_end", type=float, metavar="X", help="share of the rate at which the cosine ends (0.01)")
    group.add_argument(
        "--weight_decay", type=float, metavar="X", help="weight decay; adamw spares biases and norms (5e-4)"
    )
    group.add_argument("--momentum", type=float, metavar="X", help="SGD momentum (0.9)")
    group.add_argument(
        "--warmup_epochs", "--wram_up", type=int, metavar="N", help="epochs of linear warm-up, 0 or 1 for none"
    )
    group.add_argument(
        "--rand_augment", type=float, metavar="M", help="magnitude of RandAugment, 0 to 10 (0: none; transformers: 9)"
    )
    group.add_argument(
        "--random_erasing",
        type=float,
        metavar="X",
        help="probability that a part of an image is erased (0; transformers: 0.25)",
    )
    group.add_argument(
        "--drop_path", type=float, metavar="X", help="share of dropped branches in a transformer's last block (0.1)"
    )
    group.add_argument(
        "--official_warmup",
        action="store_true",
        help="stay at the last warm-up rate until the first decay, as LDRLD's published code does",
    )
    group.add_argument(
        "--val_split", type=float, metavar="X", help="hold out this share of the training images, and test at the end"
    )
    group.add_argument("--subset", type=int, metavar="N", help="only the first N training images of each class")
    group.add_argument("--seed", type=int, metavar="N", help="of weights, order and views (default: from --trial)")


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
    group.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="auto: bf16 where the hardware has it",
    )
    group.add_argument("--tf32", action="store_true", help="multiply float32 as TF32, with --precision fp32 on CUDA")
    group.add_argument(
        "--compile", action="store_true", help="let torch.compile fuse student, losses and teacher's logits first"
    )
    group.add_argument(
        "--sync_bn", action="store_true", help="with several processes: batch norms see the whole batch, not a share"
    )
    group.add_argument("--resume", action="store_true", help="go on with this run, or start it if there is none")
    group.add_argument("--save_folder", default="save", metavar="DIR", help="where runs are saved")
    group.add_argument("--save_freq", type=int, default=40, metavar="N", help="epochs between numbered checkpoints")
    group.add_argument("--print_freq", type=int, default=100, metavar="N", help="steps between progress lines")
    group.add_argument("--tb_freq", type=int, default=500, metavar="N", help="steps between TensorBoard events")
    group.add_argument("--quiet", action="store_true", help="print only notes and errors")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("teacher")
    group.add_argument(
        "--teacher_cache", metavar="DIR", help="keep the teacher's logits of every view there, for all runs to share"
    )
    group.add_argument(
        "--teacher_cache_fill", action="store_true", help="first compute the logits of all views of all images"
    )


def _name_argument(parser: argparse.ArgumentParser, *flags: str, help: str) -> None:
    parser.add_argument(*flags, metavar="NAME", help=help)


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

    Returns:
        Its recipe.

    Raises:
        UserError: a value is out of range or without effect, or the data set is absent or malformed.
    """
    opt.dataset = opt.dataset or "cifar100"
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
    try:
        facts = look(opt.dataset, opt.data_folder, opt.image_size)
    except DataError as error:
        raise UserError(str(error)) from None
    opt.classes = facts.classes
    return facts.recipe


def dataset_label(opt: argparse.Namespace) -> str:
    """The data set in a run's name: folders are told apart by theirs."""
    return f"folder-{os.path.basename(os.path.abspath(opt.data_folder))}" if opt.dataset == "folder" else opt.dataset


def _check_ranges(opt: argparse.Namespace) -> None:
    """Ranges of the flags of both scripts.

    Raises:
        UserError: the first value that is out of its range.
    """
    for name in ("epochs", "scale_epochs", "batch_size", "subset", "save_freq", "print_freq", "tb_freq"):
        _check(opt, name, 1)
    for name in ("warmup_epochs", "weight_decay"):
        _check(opt, name, 0)
    for name in ("lr_end", "drop_path", "random_erasing"):
        _check(opt, name, 0, high=1)
    _check(opt, "rand_augment", 0, high=MAGNITUDES)
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


def _apply_recipe(opt: argparse.Namespace, *recipes: Mapping[str, Any]) -> dict[str, Any]:
    """Fill options that were not given from RECIPE and its overrides, of which later ones win; return the defaults.

    Raises:
        UserError: a given option has no effect with the optimizer or the schedule.
    """
    defaults = dict(RECIPE)
    for recipe in recipes:
        defaults.update(recipe)
    schedule, optimizer = opt.lr_schedule or defaults["lr_schedule"], opt.optimizer or defaults["optimizer"]
    if schedule == "cosine":
        _refuse_given(opt, "--lr_schedule cosine", "lr_decay_epochs", "lr_decay_rate", "official_warmup")
        defaults |= {"lr_decay_epochs": (), "lr_end": COSINE_END}
    else:
        _refuse_given(opt, "--lr_schedule step", "lr_end")
    if optimizer == "adamw":
        _refuse_given(opt, "--optimizer adamw", "momentum")
    for name, value in defaults.items():
        if hasattr(opt, name) and getattr(opt, name) is None:
            setattr(opt, name, value)
    return defaults


def _refuse_given(opt: argparse.Namespace, chosen: str, *names: str) -> None:
    """Refuse options that have no effect with what is chosen.

    Raises:
        UserError: one was given.
    """
    for name in names:
        if getattr(opt, name):
            raise UserError(f"--{name} has no effect with {chosen}")


def _stronger_last(network: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The recipes of a network and a data set in the order of `_apply_recipe`.

    The rate of light networks is one of CIFAR-100's; a network with an optimizer of its own has a whole recipe.
    """
    return (data, network) if "optimizer" in network else (network, data)


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


def _scale_epochs(opt: argparse.Namespace, known: Sequence[Option]) -> None:
    """Carry out `--scale_epochs`: the run is then the one whose flags have the shortened numbers.

    Args:
        opt: with the recipe applied; the option itself is dropped.
        known: further options that may count epochs.
    """
    wanted = opt.scale_epochs
    delattr(opt, "scale_epochs")
    if wanted is None:
        return
    factor = wanted / opt.epochs

    def scaled(epochs: int) -> int:
        return max(1, round(epochs * factor)) if epochs else 0

    opt.epochs, opt.lr_decay_epochs = wanted, tuple(sorted({scaled(epochs) for epochs in opt.lr_decay_epochs}))
    opt.warmup_epochs = scaled(opt.warmup_epochs)
    for name in (option.name for option in known if option.counts_epochs):
        setattr(opt, name, scaled(getattr(opt, name)))
    for name, options in getattr(opt, "transforms", {}).items():
        counted = [option.name for option in constructor_options(transform_registry[name]) if option.counts_epochs]
        options.update({option: scaled(options[option]) for option in counted})


def _trial_seed(trial: str) -> int:
    """The seed of a trial: any text may name one, a number is its own seed."""
    return int(trial) if trial.isdecimal() and len(trial) < 19 else zlib.crc32(trial.encode())


def _notes(opt: argparse.Namespace) -> list[str]:
    notes = []
    if opt.num_workers is not None and dataset_dict[opt.dataset].layout is None:
        notes.append("--num_workers has no effect on data sets that are kept in memory")
    if opt.warmup_epochs >= opt.epochs > 1:
        notes.append(f"the warm-up of {opt.warmup_epochs} epochs does not end within {opt.epochs}; see --warmup_epochs")
    if opt.lr_decay_epochs and opt.lr_decay_epochs[0] >= opt.epochs > 1:
        notes.append(f"the learning rate does not drop within {opt.epochs} epochs; see --lr_decay_epochs")
    return notes


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
    _name_argument(parser, "--model", help="the network: of models/, timm:NAME, torchvision:NAME, ... (resnet110)")
    parser.add_argument("--size", type=int, metavar="N", help="side to which its images are brought (its own)")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), help="(sgd; adamw for transformers)")
    parser.add_argument("-t", "--trial", default="0", help="names the run and gives its seed")
    _name_argument(parser, "--loss", help=f"what is minimised (ce): {', '.join(label_losses)}")
    group = parser.add_argument_group(f"--loss {name}", (build.__doc__ or "").partition("\n\n")[0])
    for option in constructor_options(build):
        _add_option(group, option)
    add_data(parser)
    _add_training(parser)
    _add_running(parser)
    opt = parser.parse_args(arguments)
    opt.model = project_name(opt.model or "resnet110")
    recipe = settle_data(opt)
    _check_network(opt, opt.model, "size")
    if opt.model in needs_logit_distillation:
        raise UserError(f"{opt.model} learns from a teacher, with train_student.py; from labels alone train another")
    defaults = _apply_recipe(opt, *_stronger_last(model_recipe.get(opt.model, {}), recipe))
    _check_ranges(opt)
    _scale_epochs(opt, constructor_options(build))
    opt.seed = _trial_seed(opt.trial) if opt.seed is None else opt.seed
    opt.notes = _notes(opt)
    opt.loss = name
    opt.loss_options = {option.name: getattr(opt, option.name) for option in constructor_options(build)}
    chosen = {"loss": name} if name != "ce" else {}
    opt.differs = {**_differences(opt, defaults), **chosen, **_changed(opt.loss_options, constructor_options(build))}
    return opt


def _changed(given: Mapping[str, Any], known: Sequence[Option]) -> dict[str, Any]:
    """The options that have not their default."""
    return {option.name: given[option.name] for option in known if given[option.name] != option.default}


def _differences(opt: argparse.Namespace, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Training options that are not the recipe's: they become part of the run's name."""
    names = [name for name in RECIPE if name not in ("path_t", "model_s")]
    differs = {name: getattr(opt, name) for name in names if getattr(opt, name) != defaults[name]}
    if opt.official_warmup:
        differs["official_warmup"] = "on"
    given = {name: getattr(opt, name) for name in READING if getattr(opt, name) is not None}
    differs |= {name: "on" if value is True else value for name, value in given.items()}
    for name in ("size", "size_s", "size_t", "taps_s", "taps_t", "drop_path", "lr_end"):
        if getattr(opt, name, None) not in (None, (), defaults.get(name)):
            differs[name] = getattr(opt, name)
    if opt.seed != _trial_seed(opt.trial):
        differs["seed"] = opt.seed
    if opt.precision != "auto":
        differs["precision"] = "tf32" if opt.tf32 else opt.precision
    return differs


def _chosen(flag: str, default: str, arguments: Sequence[str], known: Mapping[str, T], what: str) -> tuple[str, T]:
    """Find a flag first that decides which other flags there are; gives its value and what that stands for."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="name", default=default)
    name = parser.parse_known_args(arguments)[0].name
    _known(name, known, what)
    return name, known[name]


def _add_method(parser: argparse.ArgumentParser, method: Method) -> None:
    """The flags of a method: its weights and its constructor's keyword arguments."""
    group = parser.add_argument_group(
        f"--distill {method.name}: {method.paper}", (method.build.__doc__ or "").partition("Args:")[0].strip()
    )
    for flag, long in WEIGHT_FLAGS.items():
        term, default = method.build.weighs.get(flag), method.weights.get(flag)
        text = f"weight of the term {term} ({default})" if term else f"has nothing to weigh in {method.name}"
        group.add_argument(f"-{flag}", f"--{long}", dest=flag, type=float, metavar="X", help=text)
    temperature = _temperature(method)
    group.add_argument(
        *("--kd_T", "--base-temp"), type=float, default=temperature, metavar="T", help=f"temperature ({temperature})"
    )
    group.add_argument(
        "--kd-weight",
        type=float,
        metavar="X",
        help="the weight of all distillation, or a factor where there are several",
    )
    for option in method.options():
        _add_option(group, option)


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """A keyword argument of a method's constructor as a flag."""
    common = {"default": option.default, "help": f"{option.help} ({option.default})"}
    if option.type is bool:
        group.add_argument(f"--{option.name}", action=argparse.BooleanOptionalAction, **common)
    elif option.choices:
        group.add_argument(f"--{option.name}", type=option.type, choices=option.choices, **common)
    else:
        group.add_argument(f"--{option.name}", type=option.type, metavar=option.type.__name__.upper(), **common)


def _add_transforms(parser: argparse.ArgumentParser) -> None:
    """The flags of the logit transforms."""
    names = ", ".join(transform_registry)
    group = parser.add_argument_group("logits", f"Applied before any loss reads the logits, in this order: {names}.")
    for name, build in transform_registry.items():
        dashed = [f"--{name.replace('_', '-')}"] if "_" in name else []
        text = (build.__doc__ or "").partition("\n")[0].rstrip(".")
        group.add_argument(f"--{name}", *dashed, dest=name, action="store_true", help=text)
        for option in constructor_options(build):
            # None: not given, which differs from the default where the transform is off
            kind = {"choices": option.choices} if option.choices else {"metavar": option.type.__name__.upper()}
            text = f"of --{name}: {option.help} ({option.default})"
            if option.type is bool:
                group.add_argument(f"--{option.name}", action="store_true", default=None, help=text)
            else:
                group.add_argument(f"--{option.name}", type=option.type, help=text, **kind)


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
        if is_on and build.sets_temperature and opt.kd_T != _temperature(method):
            raise UserError(f"--kd_T {opt.kd_T} has no effect with --{name}")
    if opt.transforms and not any(getattr(opt, flag) for flag in method.logit_flags()):
        flags = " and ".join(f"-{flag}" for flag in method.logit_flags())
        raise UserError(f"--{next(iter(opt.transforms))} has no effect while {flags} is 0")


def _temperature(method: Method) -> float:
    """Its published temperature."""
    return method.recipe.get("kd_T", Distiller.temperature)


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


def _settle_weights(opt: argparse.Namespace, method: Method) -> None:
    """Fill the published weights; refuse negative ones and any that has nothing to weigh.

    Raises:
        UserError: the first weight that is wrong, or a temperature that no term uses.
    """
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
    temperature = _temperature(method)
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


def _add_networks(parser: argparse.ArgumentParser) -> None:
    """Both networks, how they see the images, and what is seen of networks of other packages."""
    text = "the teacher's checkpoint; timm:NAME or torchvision:NAME for published weights (resnet32x4's in save/models)"
    parser.add_argument("--path_t", metavar="FILE", help=text)
    _name_argument(parser, "--model_t", help="its network, where its folder's name does not begin with it")
    own = "timm:NAME, torchvision:NAME or MODULE:FUNCTION"
    _name_argument(parser, "--model_s", help=f"the student: a network of models/, {own} (resnet8x4)")
    for side, whose in (("s", "student"), ("t", "teacher")):
        text = f"side to which the {whose}'s images are brought (its own, or that of the data)"
        parser.add_argument(f"--size_{side}", type=int, metavar="N", help=text)
        text = f"modules of a {whose} of another package that give its features (the last at each resolution)"
        parser.add_argument(f"--taps_{side}", type=_names, default=(), metavar="NAME,NAME", help=text)


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
    _name_argument(parser, "--distill", help=f"the method (kd): {', '.join(registry)}")
    _add_networks(parser)
    parser.add_argument("--trial", default="1", help="names the run and gives its seed")
    parser.add_argument(
        "--optimizer",
        choices=("sgd", "dot", "adamw"),
        help="dot: separate momentum for KD (sgd; adamw for transformers)",
    )
    parser.add_argument("--dot_delta", type=float, metavar="X", help="difference of the momenta of dot (0.075)")
    _add_method(parser, method)
    _add_transforms(parser)
    add_data(parser)
    _add_training(parser)
    _add_cache(parser)
    _add_running(parser)
    opt, unknown = parser.parse_known_args(arguments)
    _check_unknown(unknown, method)
    opt.distill = method.name
    recipe = settle_data(opt)
    opt.model_s = project_name(opt.model_s or {**RECIPE, **recipe}["model_s"])
    _check_network(opt, opt.model_s, "size_s")
    _check(opt, "size_t", 1)
    defaults = _apply_recipe(opt, method.recipe, *_stronger_last(model_recipe.get(opt.model_s, {}), recipe))
    _check_ranges(opt)
    _settle_optimizer(opt)
    _settle_weights(opt, method)
    _check_heads(opt, method)
    _settle_transforms(opt, method)
    _scale_epochs(opt, method.options())
    if opt.teacher_cache_fill and not opt.teacher_cache:
        raise UserError("--teacher_cache_fill needs --teacher_cache DIR")
    opt.seed = _trial_seed(opt.trial) if opt.seed is None else opt.seed
    opt.notes = _notes(opt)
    for option in method.options():
        if option.type is float:
            _check(opt, option.name, -math.inf)
    opt.method_options = {option.name: getattr(opt, option.name) for option in method.options()}
    opt.differs = {**_differences(opt, defaults), **_method_differences(opt, method)}
    return opt, method


def _method_differences(opt: argparse.Namespace, method: Method) -> dict[str, Any]:
    """What differs from the method as published: its options, temperature, logit transforms, optimizer."""
    differs = _changed(opt.method_options, method.options())
    if opt.kd_T != _temperature(method):
        differs["kd_T"] = opt.kd_T
    for name, options in opt.transforms.items():
        differs |= {name: "on"} if name not in method.build.implies else {}
        differs |= _changed(options, constructor_options(transform_registry[name]))
    return differs | ({"delta": opt.dot_delta} if opt.optimizer == "dot" else {})


def describe(opt: argparse.Namespace) -> dict[str, Any]:
    """The resolved options as plain data, for options.json and the print at the start."""
    hidden = ("notes", "differs", "classes", "method_options", "loss_options")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(vars(opt).items()) if k not in hidden}


def name_suffix(opt: argparse.Namespace, *shown: str) -> str:
    """What a run's name tells of the options that are not the recipe's, but for those shown elsewhere in it."""
    texts = {n: "-".join(map(str, v)) if isinstance(v, tuple) else str(v) for n, v in opt.differs.items()}
    return "".join(f"_{name}-{text}" for name, text in texts.items() if name not in shown)
