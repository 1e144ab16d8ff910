"""ResNets for ImageNet (He et al., Deep Residual Learning, CVPR 2016), under the names of torchvision's weights.

As in torchvision, and unlike in the paper, the stride of a bottleneck sits in its 3×3 convolution.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork, ResidualStage, Trunk, init_convolutions, run_stages
from .resnet import BasicBlock
from .resnetv2 import Bottleneck


class ImageNetBottleneck(Bottleneck):
    """A `Bottleneck` whose shortcut bears torchvision's name."""

    shortcut_name = "downsample"


def _make_stage(
    block: type[BasicBlock | Bottleneck], c_in: int, width: int, blocks: int, stride: int
) -> tuple[ResidualStage, int]:
    """A stage and its number of output channels."""
    c_out = width * getattr(block, "expansion", 1)
    first = block(c_in, width, stride)
    return ResidualStage(first, *(block(c_out, width) for _ in range(blocks - 1))), c_out


class ImageNetResNet(FeatureNetwork):
    """Four stages behind a 7×7 convolution and a max-pooling.

    Features for 224×224 images, e = 1 for basic blocks and 4 for bottlenecks: stem (B, 64, 112, 112), stages
    (B, 64e, 56, 56), (B, 128e, 28, 28), (B, 256e, 14, 14), (B, 512e, 7, 7), pooled (B, 512e). Other sizes work, too.

    Args:
        block: kind of the blocks.
        blocks: number of blocks of each stage.
        num_classes: number of logits.
    """

    feat_modules = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: tuple[int, int, int, int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, width = _make_stage(block, 64, 64, blocks[0], stride=1)
        self.layer2, width = _make_stage(block, width, 128, blocks[1], stride=2)
        self.layer3, width = _make_stage(block, width, 256, blocks[2], stride=2)
        self.layer4, width = _make_stage(block, width, 512, blocks[3], stride=2)
        self.fc = nn.Linear(width, num_classes)
        init_convolutions(self)

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the stem is taken before its pooling."""
        stem = F.relu(self.bn1(self.conv1(x)))
        pooled = F.max_pool2d(stem, 3, stride=2, padding=1)
        features, preacts, x = run_stages(pooled, (self.layer1, self.layer2, self.layer3, self.layer4))
        return [stem, *features[1:]], [stem, *preacts[1:]], x

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 512e)."""
        return self.fc

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch-norm of the last block of each stage."""
        last = "bn2" if isinstance(self.layer1[-1], BasicBlock) else "bn3"
        return [getattr(stage[-1], last) for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]


def imagenet_ResNet18(num_classes: int = 1000) -> ImageNetResNet:
    """ResNet-18: basic blocks."""
    return ImageNetResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def imagenet_ResNet34(num_classes: int = 1000) -> ImageNetResNet:
    """ResNet-34: basic blocks."""
    return ImageNetResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def imagenet_ResNet50(num_classes: int = 1000) -> ImageNetResNet:
    """ResNet-50: bottlenecks."""
    return ImageNetResNet(ImageNetBottleneck, (3, 4, 6, 3), num_classes)


def imagenet_ResNet101(num_classes: int = 1000) -> ImageNetResNet:
    """ResNet-101: bottlenecks."""
    return ImageNetResNet(ImageNetBottleneck, (3, 4, 23, 3), num_classes)
