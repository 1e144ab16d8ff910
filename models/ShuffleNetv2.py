"""ShuffleNetV2 for small images (Ma et al., ShuffleNet V2: Practical Guidelines, ECCV 2018).

Against the ImageNet network of the paper, the stem is a 1×1 convolution without pooling.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    FeatureNetwork,
    ResidualStage,
    Trunk,
    channel_shuffle,
    conv1x1,
    depthwise3x3,
    join_channels,
    run_stages,
)

STEM_WIDTH = 24


class BasicUnit(nn.Module):
    """Passes the first half of the channels on and transforms the second; (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise3x3(half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Returns both halves, neither activated nor shuffled."""
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return join_channels(kept, self.bn3(self.conv3(out)))


class DownUnit(nn.Module):
    """Halves the resolution in two branches of c_out / 2 channels; (B, c_in, H, W) to (B, c_out, H / 2, W / 2)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = c_out // 2
        self.conv1 = depthwise3x3(c_in, stride=2)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2 = conv1x1(c_in, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(c_in, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise3x3(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Returns both branches, neither activated nor shuffled."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return join_channels(left, right)


class ShuffleStage(ResidualStage):
    """One `DownUnit` and several `BasicUnit`s, each followed by ReLU and channel shuffle."""

    def activate(self, preact: Tensor) -> Tensor:
        """Rectifies and shuffles (B, C, H, W); the half that a basic unit passes on is rectified already."""
        return channel_shuffle(F.relu(preact), 2)


def _make_stage(c_in: int, c_out: int, blocks: int) -> ShuffleStage:
    return ShuffleStage(DownUnit(c_in, c_out), *(BasicUnit(c_out) for _ in range(blocks - 1)))


class ShuffleNetV2(FeatureNetwork):
    """Three stages of 4, 8 and 4 units and a last 1×1 convolution.

    Features for widths (116, 232, 464, 1024) and 32×32 images: stem (B, 24, 32, 32), stages (B, 116, 16, 16),
    (B, 232, 8, 8), (B, 464, 4, 4), pooled (B, 1024). As in RepDistiller, the pre-activation versions are taken before
    the channel shuffle, so that their channels are in another order than those of the plain features.

    Args:
        widths: channels of the three stages and of the last convolution.
        num_classes: number of logits.
    """

    feat_modules = ("conv1", "bn1", "layer1", "layer2", "layer3")

    def __init__(self, widths: tuple[int, int, int, int], num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM_WIDTH)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = _make_stage(STEM_WIDTH, widths[0], 4)
        self.layer2 = _make_stage(widths[0], widths[1], 8)
        self.layer3 = _make_stage(widths[1], widths[2], 4)
        self.conv2 = conv1x1(widths[2], widths[3])
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], num_classes)

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`."""
        stem = F.relu(self.bn1(self.conv1(x)))
        features, preacts, x = run_stages(stem, (self.layer1, self.layer2, self.layer3))
        return features, preacts, F.relu(self.bn2(self.conv2(x)))

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 1024)."""
        return self.linear


def ShuffleV2(num_classes: int = 100) -> ShuffleNetV2:
    """ShuffleNetV2 at width 1."""
    return ShuffleNetV2((116, 232, 464, 1024), num_classes)
