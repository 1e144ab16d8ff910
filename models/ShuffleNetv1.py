"""ShuffleNet for small images (Zhang et al., ShuffleNet: An Extremely Efficient CNN, CVPR 2018).

Against the ImageNet network of the paper: the stem is a 1×1 convolution without pooling, and a ReLU follows the
depthwise convolution.
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


class ShuffleUnit(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1, beside a shortcut.

    At stride 1 the input is added; at stride 2 the average-pooled input is appended instead, so that the convolutions
    make only the c_out - c_in channels that are missing. Maps (B, c_in, H, W) to (B, c_out, H / stride, W / stride),
    not activated.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int) -> None:
        super().__init__()
        c_new = c_out - c_in if stride == 2 else c_out
        c_mid = c_new // 4
        self.stride = stride
        # The paper does not group the first 1×1 convolution: it has too few input channels.
        self.first_groups = 1 if c_in == STEM_WIDTH else groups
        self.conv1 = conv1x1(c_in, c_mid, groups=self.first_groups)
        self.bn1 = nn.BatchNorm2d(c_mid)
        self.conv2 = depthwise3x3(c_mid, stride)
        self.bn2 = nn.BatchNorm2d(c_mid)
        self.conv3 = conv1x1(c_mid, c_new, groups=groups)
        self.bn3 = nn.BatchNorm2d(c_new)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the joined branches before their ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = channel_shuffle(out, self.first_groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return join_channels(out, F.avg_pool2d(x, 3, stride=2, padding=1))


def _make_stage(c_in: int, c_out: int, blocks: int, groups: int) -> ResidualStage:
    first = ShuffleUnit(c_in, c_out, 2, groups)
    return ResidualStage(first, *(ShuffleUnit(c_out, c_out, 1, groups) for _ in range(blocks - 1)))


class ShuffleNet(FeatureNetwork):
    """Three stages of 4, 8 and 4 shuffle units.

    Features for widths (240, 480, 960) and 32×32 images: stem (B, 24, 32, 32), stages (B, 240, 16, 16),
    (B, 480, 8, 8), (B, 960, 4, 4), pooled (B, 960).

    Args:
        widths: channels of the three stages.
        groups: groups of the 1×1 convolutions.
        num_classes: number of logits.
    """

    feat_modules = ("conv1", "bn1", "layer1", "layer2", "layer3")

    def __init__(self, widths: tuple[int, int, int], groups: int, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM_WIDTH)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = _make_stage(STEM_WIDTH, widths[0], 4, groups)
        self.layer2 = _make_stage(widths[0], widths[1], 8, groups)
        self.layer3 = _make_stage(widths[1], widths[2], 4, groups)
        self.linear = nn.Linear(widths[2], num_classes)

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the pre-activations are the joined branches of the last unit of each stage."""
        stem = F.relu(self.bn1(self.conv1(x)))
        return run_stages(stem, (self.layer1, self.layer2, self.layer3))

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 960)."""
        return self.linear


def ShuffleV1(num_classes: int = 100) -> ShuffleNet:
    """ShuffleNet with 3 groups at full width."""
    return ShuffleNet((240, 480, 960), groups=3, num_classes=num_classes)
