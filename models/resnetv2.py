"""ResNet-50 with the stem of the CIFAR networks (He et al., Deep Residual Learning, CVPR 2016).

The four bottleneck stages are those of the ImageNet network; the 7×7 convolution and the max-pooling are replaced by
one 3×3 convolution of stride 1. The stride of a block sits in its 3×3 convolution.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork, ResidualStage, Trunk, conv1x1, conv3x3, init_convolutions, run_stages


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions beside a shortcut.

    Maps (B, c_in, H, W) to (B, 4·width, H / stride, W / stride), not activated.
    """

    expansion = 4
    shortcut_name = "shortcut"  # in checkpoints

    def __init__(self, c_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        c_out = self.expansion * width
        self.conv1 = conv1x1(c_in, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, c_out)
        self.bn3 = nn.BatchNorm2d(c_out)
        changes = stride != 1 or c_in != c_out
        shortcut = (conv1x1(c_in, c_out, stride), nn.BatchNorm2d(c_out)) if changes else ()
        self.add_module(self.shortcut_name, nn.Sequential(*shortcut))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of both branches before its ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + getattr(self, self.shortcut_name)(x)


def _make_stage(c_in: int, width: int, blocks: int, stride: int) -> ResidualStage:
    first = Bottleneck(c_in, width, stride)
    return ResidualStage(first, *(Bottleneck(4 * width, width) for _ in range(blocks - 1)))


class ResNetV2(FeatureNetwork):
    """Four stages of bottleneck blocks.

    Features for 32×32 images: stem (B, 64, 32, 32), stages (B, 256, 32, 32), (B, 512, 16, 16), (B, 1024, 8, 8),
    (B, 2048, 4, 4), pooled (B, 2048).

    Args:
        blocks: number of blocks of each stage.
        num_classes: number of logits.
    """

    feat_modules = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _make_stage(64, 64, blocks[0], stride=1)
        self.layer2 = _make_stage(256, 128, blocks[1], stride=2)
        self.layer3 = _make_stage(512, 256, blocks[2], stride=2)
        self.layer4 = _make_stage(1024, 512, blocks[3], stride=2)
        self.linear = nn.Linear(2048, num_classes)
        init_convolutions(self)

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the pre-activations are the residual sums."""
        stem = F.relu(self.bn1(self.conv1(x)))
        return run_stages(stem, (self.layer1, self.layer2, self.layer3, self.layer4))

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 2048)."""
        return self.linear

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The third batch-norm of the last block of each stage."""
        return [stage[-1].bn3 for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]


def ResNet50(num_classes: int = 100) -> ResNetV2:
    """ResNet-50: stages of 3, 4, 6 and 3 blocks."""
    return ResNetV2((3, 4, 6, 3), num_classes)
