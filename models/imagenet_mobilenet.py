"""MobileNets for ImageNet: V1 under mdistiller's names, V2 under those of torchvision's weights.

Howard et al., MobileNets, 2017, arXiv 1704.04861; Sandler et al., MobileNetV2, CVPR 2018. V2 has no dropout here.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork, Trunk, conv1x1, conv3x3, depthwise3x3, init_classifier, init_convolutions
from .mobilenetv2 import FEATURE_GROUPS, GROUPS

# channels and stride of the depthwise-separable blocks of V1; table 1 of the paper
SEPARABLE = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
# the blocks after which a feature is taken, the last one at each resolution; block 0 is the stem
FEATURE_BLOCKS = (3, 5, 11, 13)


def _separable(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """Depthwise and 1×1 convolution, each with batch-norm and ReLU."""
    depthwise = (depthwise3x3(c_in, stride), nn.BatchNorm2d(c_in), nn.ReLU())
    return nn.Sequential(*depthwise, conv1x1(c_in, c_out), nn.BatchNorm2d(c_out), nn.ReLU())


class MobileNetV1(FeatureNetwork):
    """Thirteen depthwise-separable blocks.

    Features for 224×224 images: stem (B, 32, 112, 112), then (B, 128, 56, 56), (B, 256, 28, 28), (B, 512, 14, 14),
    (B, 1024, 7, 7), pooled (B, 1024). mdistiller's list begins with the second.

    Args:
        num_classes: number of logits.
    """

    feat_modules = ("model",)

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        c_in = 32
        self.model = nn.Sequential(nn.Sequential(conv3x3(3, c_in, stride=2), nn.BatchNorm2d(c_in), nn.ReLU()))
        for c_out, stride in SEPARABLE:
            self.model.append(_separable(c_in, c_out, stride))
            c_in = c_out
        self.fc = nn.Linear(c_in, num_classes)
        init_convolutions(self)

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the pre-activations are the outputs of the last batch-norm of a block."""
        features: list[Tensor] = []
        preacts: list[Tensor] = []
        for i, block in enumerate(self.model):
            preact = block[:-1](x)
            x = F.relu(preact)
            if i == 0 or i in FEATURE_BLOCKS:
                features.append(x)
                preacts.append(preact if i else x)
        return features, preacts, x

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 1024)."""
        return self.fc

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch-norm of each block that gives a feature."""
        return [self.model[i][-2] for i in FEATURE_BLOCKS]


def _conv_bn_relu(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6())


class InvertedResidual6(nn.Module):
    """Expansion, depthwise convolution and linear projection; (B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * c_in
        self.has_shortcut = stride == 1 and c_in == c_out
        expand = [_conv_bn_relu(conv1x1(c_in, hidden))] if expansion > 1 else []
        depthwise = _conv_bn_relu(depthwise3x3(hidden, stride))
        self.conv = nn.Sequential(*expand, depthwise, conv1x1(hidden, c_out), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the projected map, with the input added where the shapes agree."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class ImageNetMobileNetV2(FeatureNetwork):
    """Seventeen inverted residual blocks of expansion 6 in seven groups, at width 1.

    Features for 224×224 images: stem (B, 32, 112, 112), then (B, 24, 56, 56), (B, 32, 28, 28), (B, 96, 14, 14),
    (B, 320, 7, 7), pooled (B, 1280). The blocks end linearly: preact=True returns the same features.

    Args:
        num_classes: number of logits.
    """

    feat_modules = ("features",)

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        c_in, c_last = 32, 1280
        self.features = nn.Sequential(_conv_bn_relu(conv3x3(3, c_in, stride=2)))
        self.taken: list[int] = []
        # the second group has stride 2, which it lacks in the network for small images
        for i, (expansion, c_out, blocks, stride) in enumerate(GROUPS):
            for s in [2 if i == 1 else stride] + [1] * (blocks - 1):
                self.features.append(InvertedResidual6(c_in, c_out, s, expansion or 6))
                c_in = c_out
            if i in FEATURE_GROUPS:
                self.taken.append(len(self.features) - 1)
        self.features.append(_conv_bn_relu(conv1x1(c_in, c_last)))
        # torchvision has a dropout in the first place
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(c_last, num_classes))
        init_convolutions(self)
        init_classifier(self.get_classifier())

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the two lists are the same."""
        features: list[Tensor] = []
        for i, block in enumerate(self.features):
            x = block(x)
            if i == 0 or i in self.taken:
                features.append(x)
        return features, features, x

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 1280)."""
        return self.classifier[1]

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch-norm of each group that gives a feature."""
        return [self.features[i].conv[-1] for i in self.taken]


def imagenet_MobileNetV1(num_classes: int = 1000) -> MobileNetV1:
    """MobileNet-V1, the student of the field's ImageNet tables."""
    return MobileNetV1(num_classes)


def imagenet_MobileNetV2(num_classes: int = 1000) -> ImageNetMobileNetV2:
    """MobileNetV2 at width 1."""
    return ImageNetMobileNetV2(num_classes)
