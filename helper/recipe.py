"""The recipes that options follow where they are not given, and what of a run differs from them."""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from distiller_zoo import transform_registry
from distiller_zoo.base import Method, Option, constructor_options

from .errors import UserError

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
    "rotation": 0.0,
    "path_t": "save/models/resnet32x4_vanilla/ckpt_epoch_240.pth",
    "model_s": "resnet8x4",
}
# what decides which images a network is trained on, and how they look
READING = ("image_size", "mean", "std", "memory_budget", "skip_bad_images", "val_split", "subset")
COSINE_END = 0.01  # of tiny-transformers


def apply_recipe(opt: argparse.Namespace, *recipes: Mapping[str, Any]) -> dict[str, Any]:
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
        if getattr(opt, name) is not None and getattr(opt, name) is not False:
            raise UserError(f"--{name} has no effect with {chosen}")


def stronger_last(network: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The recipes of a network and a data set in the order of `apply_recipe`.

    The rate of light networks is one of CIFAR-100's; a network with an optimizer of its own has a whole recipe.
    """
    return (data, network) if "optimizer" in network else (network, data)


def scale_epochs(opt: argparse.Namespace, known: Sequence[Option]) -> None:
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


def trial_seed(trial: str) -> int:
    """The seed of a trial: any text may name one, a number is its own seed."""
    return int(trial) if trial.isdecimal() and len(trial) < 19 else zlib.crc32(trial.encode())


def changed_options(given: Mapping[str, Any], known: Sequence[Option]) -> dict[str, Any]:
    """The options that have not their default."""
    return {option.name: given[option.name] for option in known if given[option.name] != option.default}


def differences(opt: argparse.Namespace, defaults: Mapping[str, Any]) -> dict[str, Any]:
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
    if opt.seed != trial_seed(opt.trial):
        differs["seed"] = opt.seed
    if opt.precision != "auto":
        differs["precision"] = "tf32" if opt.tf32 else opt.precision
    return differs


def method_differences(opt: argparse.Namespace, method: Method) -> dict[str, Any]:
    """What differs from the method as published: its options, temperature, logit transforms, optimizer."""
    differs = changed_options(opt.method_options, method.options())
    if opt.kd_T != method.temperature:
        differs["kd_T"] = opt.kd_T
    for name, options in opt.transforms.items():
        differs |= {name: "on"} if name not in method.build.implies else {}
        differs |= changed_options(options, constructor_options(transform_registry[name]))
    return differs | ({"delta": opt.dot_delta} if opt.optimizer == "dot" else {})


def dataset_label(opt: argparse.Namespace) -> str:
    """The data set in a run's name: folders are told apart by theirs."""
    return f"folder-{os.path.basename(os.path.abspath(opt.data_folder))}" if opt.dataset == "folder" else opt.dataset


def name_suffix(opt: argparse.Namespace, *shown: str) -> str:
    """What a run's name tells of the options that are not the recipe's, but for those shown elsewhere in it."""
    texts = {n: "-".join(map(str, v)) if isinstance(v, tuple) else str(v) for n, v in opt.differs.items()}
    return "".join(f"_{name}-{text}" for name, text in texts.items() if name not in shown)
