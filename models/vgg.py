"""VGG networks with batch-norm and one linear layer (Simonyan, Zisserman, Very Deep Convolutional Networks, 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork, Trunk, init_classifier, init_convolutions

WIDTHS = (64, 128, 256, 512, 512)


def _make_block(c_in: int, c_out: int, convolutions: int) -> nn.Sequential:
    """Convolution, batch-norm, ReLU in turn; the last ReLU is left to the caller, who needs the value before it."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        c_in = c_out
    return nn.Sequential(*layers[:-1])


class VGG(FeatureNetwork):
    """Five blocks of 3×3 convolutions with max-pooling in between.

    Features for 32×32 images: (B, 64, 32, 32), (B, 128, 16, 16), (B, 256, 8, 8), (B, 512, 4, 4), (B, 512, 4, 4), pooled
    (B, 512). The first block counts as the stem.

    Args:
        convolutions: number of convolutions of each block.
        num_classes: number of logits.
    """

    feat_modules = ("block0", "block1", "block2", "block3", "block4")

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int = 100) -> None:
        super().__init__()
        c_in = 3
        for i, (c_out, n) in enumerate(zip(WIDTHS, convolutions, strict=True)):
            self.add_module(f"block{i}", _make_block(c_in, c_out, n))
            c_in = c_out
        self.classifier = nn.Linear(c_in, num_classes)
        init_convolutions(self)
        init_classifier(self.classifier)

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the pre-activations are the outputs of the last batch-norm of each block."""
        # Images of 32×32 keep their 4×4 map from block 3 on; larger ones are pooled once more.
        pooled_before = (1, 2, 3, 4) if x.shape[2] >= 64 else (1, 2, 3)
        features: list[Tensor] = []
        preacts: list[Tensor] = []
        for i, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            if i in pooled_before:
                x = F.max_pool2d(x, 2, stride=2)
            preact = block(x)
            x = F.relu(preact)
            features.append(x)
            # The stem has no pre-activation version in RepDistiller's list.
            preacts.append(preact if i else x)
        return features, preacts, x

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 512)."""
        return self.classifier

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch-norm of every block but the first."""
        return [block[-1] for block in (self.block1, self.block2, self.block3, self.block4)]


def vgg8(num_classes: int = 100) -> VGG:
    """VGG-8: one convolution per block."""
    return VGG((1, 1, 1, 1, 1), num_classes)


def vgg11(num_classes: int = 100) -> VGG:
    """VGG-11 (configuration A of the paper)."""
    return VGG((1, 1, 2, 2, 2), num_classes)


def vgg13(num_classes: int = 100) -> VGG:
    """VGG-13 (configuration B of the paper)."""
    return VGG((2, 2, 2, 2, 2), num_classes)


def vgg16(num_classes: int = 100) -> VGG:
    """VGG-16 (configuration D of the paper)."""
    return VGG((2, 2, 3, 3, 3), num_classes)


def vgg19(num_classes: int = 100) -> VGG:
    """VGG-19 (configuration E of the paper)."""
    return VGG((2, 2, 4, 4, 4), num_classes)
