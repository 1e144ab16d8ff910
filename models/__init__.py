"""The networks: `model_dict` maps the name of a network to its constructor, one file per family holds the code."""

from collections.abc import Callable
from typing import Any

from .blocks import FeatureNetwork
from .mobilenetv2 import MobileNetV2
from .resnet import resnet8, resnet8x4, resnet14, resnet20, resnet32, resnet32x4, resnet44, resnet56, resnet110
from .resnetv2 import ResNet50
from .ShuffleNetv1 import ShuffleV1
from .ShuffleNetv2 import ShuffleV2
from .vgg import vgg8, vgg11, vgg13, vgg16, vgg19
from .wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = ["FeatureNetwork", "model_dict", "model_recipe"]

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
    )
}

# Where a network as a student wants other options than the rest: RepDistiller trains the light networks at 0.01.
model_recipe: dict[str, dict[str, Any]] = {
    "MobileNetV2": {"learning_rate": 0.01},
    "ShuffleV1": {"learning_rate": 0.01},
    "ShuffleV2": {"learning_rate": 0.01},
}
