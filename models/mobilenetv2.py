"""MobileNetV2 for small images (Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018).

Against the ImageNet network of the paper: ReLU in place of ReLU6, one stride less (the second group keeps the
resolution), no dropout.
"""

from torch import Tensor, nn

from .blocks import FeatureNetwork, Trunk, conv1x1, conv3x3, depthwise3x3, init_classifier, init_convolutions

# Expansion factor (None: the network's), channels at width 1, blocks, stride of the first block; table 2 of the paper.
GROUPS = (
    (1, 16, 1, 1),
    (None, 24, 2, 1),
    (None, 32, 3, 2),
    (None, 64, 4, 2),
    (None, 96, 3, 1),
    (None, 160, 3, 2),
    (None, 320, 1, 1),
)
# The groups after which a feature is taken: the last one at each resolution.
FEATURE_GROUPS = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection; (B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * c_in
        self.has_shortcut = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            conv1x1(c_in, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            depthwise3x3(hidden, stride),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv1x1(hidden, c_out),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the projected map, with the input added where the shapes agree."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNet(FeatureNetwork):
    """Seven groups of inverted residual blocks.

    Features at width 0.5 for 32×32 images: stem (B, 16, 16, 16), groups (B, 12, 16, 16), (B, 16, 8, 8), (B, 48, 4, 4),
    (B, 160, 2, 2), pooled (B, 1280). The blocks end linearly, so that there are no pre-activation versions: preact=True
    returns the same features.

    Args:
        expansion: expansion factor of all groups but the first.
        width: factor on the channels of the paper.
        num_classes: number of logits.
    """

    feat_modules = ("conv1", "blocks")

    def __init__(self, expansion: int, width: float, num_classes: int = 100) -> None:
        super().__init__()
        c_in = int(32 * width)
        self.conv1 = nn.Sequential(conv3x3(3, c_in, stride=2), nn.BatchNorm2d(c_in), nn.ReLU())
        self.blocks = nn.ModuleList()
        for t, c, n, stride in GROUPS:
            c_out = int(c * width)
            strides = [stride] + [1] * (n - 1)
            inputs = [c_in] + [c_out] * (n - 1)
            group = (InvertedResidual(i, c_out, s, t or expansion) for i, s in zip(inputs, strides, strict=True))
            self.blocks.append(nn.Sequential(*group))
            c_in = c_out
        c_last = int(1280 * max(width, 1.0))
        self.conv2 = nn.Sequential(conv1x1(c_in, c_last), nn.BatchNorm2d(c_last), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(c_last, num_classes))
        init_convolutions(self)
        init_classifier(self.classifier[0])

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the two lists are the same."""
        x = self.conv1(x)
        features = [x]
        for i, group in enumerate(self.blocks):
            x = group(x)
            if i in FEATURE_GROUPS:
                features.append(x)
        return features, features, self.conv2(x)

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 1280)."""
        return self.classifier[0]

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch-norm of each group that gives a feature."""
        return [self.blocks[i][-1].conv[-1] for i in FEATURE_GROUPS]


def MobileNetV2(num_classes: int = 100) -> MobileNet:
    """MobileNetV2 with half the channels and expansion 6, RepDistiller's mobile_half."""
    return MobileNet(expansion=6, width=0.5, num_classes=num_classes)
