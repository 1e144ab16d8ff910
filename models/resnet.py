"""CIFAR ResNets of depth 6n+2 with basic blocks (He et al., Deep Residual Learning, CVPR 2016, section 4.2).

Unlike in the paper, shortcuts that change the shape are 1×1 convolutions, as in RepDistiller, whose checkpoints fit.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork, ResidualStage, Trunk, conv1x1, conv3x3, init_convolutions, run_stages


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; (B, c_in, H, W) to (B, c_out, H / stride, W / stride), not activated."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(c_in, c_out, stride)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = conv3x3(c_out, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(conv1x1(c_in, c_out, stride), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of both branches before its ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


def _make_stage(c_in: int, c_out: int, blocks: int, stride: int) -> ResidualStage:
    first = BasicBlock(c_in, c_out, stride)
    return ResidualStage(first, *(BasicBlock(c_out, c_out) for _ in range(blocks - 1)))


class ResNet(FeatureNetwork):
    """Three stages of (depth - 2) / 6 basic blocks each.

    Features for widths (w0, w1, w2, w3) and 32×32 images: stem (B, w0, 32, 32), stages (B, w1, 32, 32),
    (B, w2, 16, 16), (B, w3, 8, 8), pooled (B, w3).

    Args:
        depth: number of layers, 6n+2.
        widths: channels of the stem and of the three stages.
        num_classes: number of logits.
    """

    feat_modules = ("conv1", "bn1", "layer1", "layer2", "layer3")

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int = 100) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _make_stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _make_stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _make_stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions(self)

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the pre-activations are the residual sums."""
        stem = F.relu(self.bn1(self.conv1(x)))
        return run_stages(stem, (self.layer1, self.layer2, self.layer3))

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, w3)."""
        return self.fc

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The second batch-norm of the last block of each stage."""
        return [stage[-1].bn2 for stage in (self.layer1, self.layer2, self.layer3)]


NARROW = (16, 16, 32, 64)
WIDE_X4 = (32, 64, 128, 256)


def resnet8(num_classes: int = 100) -> ResNet:
    """ResNet-8, 16 to 64 channels."""
    return ResNet(8, NARROW, num_classes)


def resnet14(num_classes: int = 100) -> ResNet:
    """ResNet-14, 16 to 64 channels."""
    return ResNet(14, NARROW, num_classes)


def resnet20(num_classes: int = 100) -> ResNet:
    """ResNet-20, 16 to 64 channels."""
    return ResNet(20, NARROW, num_classes)


def resnet32(num_classes: int = 100) -> ResNet:
    """ResNet-32, 16 to 64 channels."""
    return ResNet(32, NARROW, num_classes)


def resnet44(num_classes: int = 100) -> ResNet:
    """ResNet-44, 16 to 64 channels."""
    return ResNet(44, NARROW, num_classes)


def resnet56(num_classes: int = 100) -> ResNet:
    """ResNet-56, 16 to 64 channels."""
    return ResNet(56, NARROW, num_classes)


def resnet110(num_classes: int = 100) -> ResNet:
    """ResNet-110, 16 to 64 channels."""
    return ResNet(110, NARROW, num_classes)


def resnet8x4(num_classes: int = 100) -> ResNet:
    """ResNet-8 with stages four times as wide (64 to 256 channels) on a stem of 32."""
    return ResNet(8, WIDE_X4, num_classes)


def resnet32x4(num_classes: int = 100) -> ResNet:
    """ResNet-32 with stages four times as wide (64 to 256 channels) on a stem of 32."""
    return ResNet(32, WIDE_X4, num_classes)
