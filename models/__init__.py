"""The networks: `model_dict` maps the name of a network to its constructor, one file per family holds the code.

`build` makes any of them, and those of other packages, by name.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from .blocks import FeatureNetwork
from .deit import deit_ti, deit_ti_distilled
from .external import PREFIXES, UnknownNetwork, build_external, torchvision_weights
from .imagenet_mobilenet import imagenet_MobileNetV1, imagenet_MobileNetV2
from .imagenet_resnet import imagenet_ResNet18, imagenet_ResNet34, imagenet_ResNet50, imagenet_ResNet101
from .mobilenetv2 import MobileNetV2
from .own_input import OwnInput, with_own_input
from .pit import pit_ti
from .pvt import pvt_ti
from .resnet import resnet8, resnet8x4, resnet14, resnet20, resnet32, resnet32x4, resnet44, resnet56, resnet110
from .resnetv2 import ResNet50
from .ShuffleNetv1 import ShuffleV1
from .ShuffleNetv2 import ShuffleV2
from .t2t import t2t_7
from .vgg import vgg8, vgg11, vgg13, vgg16, vgg19
from .wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "FeatureNetwork",
    "OwnInput",
    "UnknownNetwork",
    "build",
    "build_pretrained",
    "constructor_takes",
    "is_pretrained",
    "model_dict",
    "model_recipe",
    "needs_logit_distillation",
    "project_name",
    "with_own_input",
]

model_dict: dict[str, Callable[..., FeatureNetwork]] = {
    constructor.__name__: constructor
    for constructor in (
        resnet8,
        resnet14,
        resnet20,
        resnet32,
        resnet44,
        resnet56,
        resnet110,
        resnet8x4,
        resnet32x4,
        ResNet50,
        wrn_16_1,
        wrn_16_2,
        wrn_40_1,
        wrn_40_2,
        vgg8,
        vgg11,
        vgg13,
        vgg16,
        vgg19,
        MobileNetV2,
        ShuffleV1,
        ShuffleV2,
        imagenet_ResNet18,
        imagenet_ResNet34,
        imagenet_ResNet50,
        imagenet_ResNet101,
        imagenet_MobileNetV1,
        imagenet_MobileNetV2,
        deit_ti,
        deit_ti_distilled,
        pit_ti,
        pvt_ti,
        t2t_7,
    )
}

# tiny-transformers' recipe for CIFAR-100
TRANSFORMER_RECIPE: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "lr_schedule": "cosine",
    "warmup_epochs": 20,
    "weight_decay": 0.05,
    "batch_size": 128,
    "epochs": 300,
    "rand_augment": 9.0,
    "random_erasing": 0.25,
}

# Where a network as a student wants other options than the rest: RepDistiller trains the light networks at 0.01, and
# transformers have a recipe of their own.
model_recipe: dict[str, dict[str, Any]] = {
    "MobileNetV2": {"learning_rate": 0.01},
    "ShuffleV1": {"learning_rate": 0.01},
    "ShuffleV2": {"learning_rate": 0.01},
    **dict.fromkeys(("deit_ti", "deit_ti_distilled", "pit_ti", "pvt_ti", "t2t_7"), TRANSFORMER_RECIPE),
}

# torchvision's networks that are built here, with the same names of their weights
TORCHVISION = {
    "resnet18": "imagenet_ResNet18",
    "resnet34": "imagenet_ResNet34",
    "resnet50": "imagenet_ResNet50",
    "resnet101": "imagenet_ResNet101",
    "mobilenet_v2": "imagenet_MobileNetV2",
}

# networks with a head that learns from a teacher's logits alone
needs_logit_distillation = ("deit_ti_distilled",)


def project_name(name: str) -> str:
    """The name of a network, that of `model_dict` where it is torchvision's name of one: torchvision:resnet34."""
    source, _, rest = name.partition(":")
    return TORCHVISION.get(rest.partition(".")[0], name) if source == "torchvision" else name


def is_pretrained(path: str) -> bool:
    """Whether what stands in the place of a file names published weights: timm:NAME or torchvision:NAME."""
    return str(path).startswith(PREFIXES)


def constructor_takes(name: str, argument: str) -> bool:
    """Whether the constructor of a network of `model_dict` has an argument."""
    return name in model_dict and argument in inspect.signature(model_dict[name]).parameters


def build(
    name: str,
    num_classes: int,
    size: int | None = None,
    taps: Sequence[str] = (),
    drop_path: float | None = None,
) -> FeatureNetwork:
    """A network with random weights, by name.

    Args:
        name: a key of `model_dict`, timm:NAME, torchvision:NAME or MODULE:FUNCTION, which is called with num_classes.
        num_classes: number of logits.
        size: side of its images, to which they are brought by `with_own_input`; None for its own, or that of the data.
        taps: modules of a network of another package whose outputs are its features.
        drop_path: of transformers; None for theirs.

    Raises:
        UnknownNetwork: there is none of this name.
        ValueError: it cannot be built so.
    """
    name = project_name(name)
    if name not in model_dict:
        if ":" not in name:
            raise UnknownNetwork(name, list(model_dict))
        return build_external(name, num_classes, size, taps)
    if taps:
        raise ValueError(f"{name} has features of its own: modules are named in networks of other packages only")
    options = {"img_size": size, "drop_path": drop_path}
    taken = {key: value for key, value in options.items() if value is not None and constructor_takes(name, key)}
    network = model_dict[name](num_classes=num_classes, **taken)
    network.input_size = size or network.input_size
    return network


def build_pretrained(name: str, size: int | None = None, taps: Sequence[str] = ()) -> FeatureNetwork:
    """A network with the weights that timm or torchvision publish.

    Args:
        name: timm:NAME, torchvision:NAME or torchvision:NAME.WEIGHTS.
        size, taps: see `build`.

    Raises:
        UnknownNetwork: there is none of this name.
        ValueError: the weights are not there and cannot be had.
    """
    source, _, rest = name.partition(":")
    if source == "timm":
        return build_external(name, None, size, taps, pretrained=True)
    state = torchvision_weights(rest)
    classes = [value for value in state.values() if value.dim() == 2][-1].shape[0]
    network = build(name, classes, size, taps)
    getattr(network, "deployed", network).load_state_dict(state)
    return network
