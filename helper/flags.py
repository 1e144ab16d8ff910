"""What train_teacher.py and train_student.py take on their command lines: flags and the words that explain them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from dataset import dataset_dict
from distiller_zoo import transform_registry
from distiller_zoo.base import Method, Option, constructor_options

from .errors import UserError

WEIGHT_FLAGS = {"r": "gamma", "a": "alpha", "b": "beta"}
# what else the resolved options hold under names of their own
RESERVED = (*WEIGHT_FLAGS, "classes", "contents", "differs", "loss_options", "method_options", "notes", "transforms")


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


def without_training(parser: argparse.ArgumentParser) -> None:
    """Give a script that does not train what the reading of a data set asks of the flags of those that do."""
    parser.set_defaults(subset=None, val_split=None, rand_augment=0.0, random_erasing=0.0, rotation=0.0)
    parser.set_defaults(batch_size=200, compile=False, tf32=False)


def add_training(parser: argparse.ArgumentParser) -> None:
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
        "--rotation",
        type=float,
        metavar="D",
        help="turn images by up to D degrees, in place of padded crops (0; tiny_imagenet: 20)",
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


def add_running(parser: argparse.ArgumentParser) -> None:
    """Flags of both scripts that change how a run is carried out, and not what it is."""
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
        "--compile",
        action="store_true",
        help="let torch.compile fuse student and losses first, and what gives the teacher's logits if it is not fused",
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


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Flags of the cache of the teacher's logits."""
    group = parser.add_argument_group("teacher")
    group.add_argument(
        "--teacher_cache", metavar="DIR", help="keep the teacher's logits of every view there, for all runs to share"
    )
    group.add_argument(
        "--teacher_cache_fill", action="store_true", help="first compute the logits of all views of all images"
    )


def name_argument(parser: argparse.ArgumentParser, *flags: str, help: str) -> None:
    """A flag that takes the name of something."""
    parser.add_argument(*flags, metavar="NAME", help=help)


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Both networks, how they see the images, and what is seen of networks of other packages."""
    text = "the teacher's checkpoint; timm:NAME or torchvision:NAME for published weights (resnet32x4's in save/models)"
    parser.add_argument("--path_t", metavar="FILE", help=text)
    name_argument(parser, "--model_t", help="its network, where its folder's name does not begin with it")
    own = "timm:NAME, torchvision:NAME or MODULE:FUNCTION"
    name_argument(parser, "--model_s", help=f"the student: a network of models/, {own} (resnet8x4)")
    for side, whose in (("s", "student"), ("t", "teacher")):
        text = f"side to which the {whose}'s images are brought (its own, or that of the data)"
        parser.add_argument(f"--size_{side}", type=int, metavar="N", help=text)
        text = f"modules of a {whose} of another package that give its features (the last at each resolution)"
        parser.add_argument(f"--taps_{side}", type=_names, default=(), metavar="NAME,NAME", help=text)


def add_method(parser: argparse.ArgumentParser, method: Method) -> None:
    """The flags of a method: its weights and its constructor's keyword arguments."""
    group = parser.add_argument_group(
        f"--distill {method.name}: {method.paper}", (method.build.__doc__ or "").partition("Args:")[0].strip()
    )
    for flag, long in WEIGHT_FLAGS.items():
        term, default = method.build.weighs.get(flag), method.weights.get(flag)
        text = f"weight of the term {term} ({default})" if term else f"has nothing to weigh in {method.name}"
        group.add_argument(f"-{flag}", f"--{long}", dest=flag, type=float, metavar="X", help=text)
    temperature = method.temperature
    group.add_argument(
        *("--kd_T", "--base-temp"), type=float, default=temperature, metavar="T", help=f"temperature ({temperature})"
    )
    group.add_argument(
        "--kd-weight",
        type=float,
        metavar="X",
        help="the weight of all distillation, or a factor where there are several",
    )
    for name, flag in method.build.factors.items():
        text = f"for lines of other code: times -b, with -a 0, it is the weight -{flag}"
        group.add_argument(f"--{name}", type=float, metavar="X", help=text)
    for option in method.options():
        add_option(group, option)


@contextmanager
def no_name_twice(build: type) -> Iterator[None]:
    """Say which class has an argument that is called as another flag is.

    Raises:
        UserError: in the block, a flag was added a second time.
    """
    try:
        yield
    except argparse.ArgumentError as error:
        taken = error.message.split()[-1]
        raise UserError(f"{build.__name__}: an argument of its constructor has the name of a flag, {taken}") from None


def add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """A keyword argument of a method's constructor as a flag.

    Raises:
        argparse.ArgumentError: its name is taken.
    """
    if option.name in RESERVED:
        raise argparse.ArgumentError(None, f"taken: --{option.name}")
    common = {"default": option.default, "help": f"{option.help} ({option.default})"}
    if option.type is bool:
        group.add_argument(f"--{option.name}", action=argparse.BooleanOptionalAction, **common)
    elif option.choices:
        group.add_argument(f"--{option.name}", type=option.type, choices=option.choices, **common)
    else:
        group.add_argument(f"--{option.name}", type=option.type, metavar=option.type.__name__.upper(), **common)


def add_transforms(parser: argparse.ArgumentParser) -> None:
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
