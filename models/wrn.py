"""Wide residual networks for CIFAR, without dropout (Zagoruyko, Komodakis, Wide Residual Networks, BMVC 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork, Trunk, conv1x1, conv3x3, init_convolutions


class WideBlock(nn.Module):
    """Batch-norm and ReLU before each of two 3×3 convolutions.

    Maps (B, c_in, H, W) to (B, c_out, H / stride, W / stride).
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv3x3(c_in, c_out, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = conv3x3(c_out, c_out)
        self.convShortcut = None if c_in == c_out else conv1x1(c_in, c_out, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the block's output and the normalised, not yet activated input (B, c_in, H, W)."""
        normalised = self.bn1(x)
        out = F.relu(normalised)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = F.relu(self.bn2(self.conv1(out)))
        return shortcut + self.conv2(out), normalised


class WideStage(nn.Module):
    """Blocks of one width, the first of which changes the shape."""

    def __init__(self, c_in: int, c_out: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(c_in, c_out, stride)
        self.layer = nn.ModuleList([first, *(WideBlock(c_out, c_out) for _ in range(blocks - 1))])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the stage's output and the input (B, c_in, H, W) as normalised by the first block."""
        first, *others = self.layer
        x, normalised = first(x)
        for block in others:
            x, _ = block(x)
        return x, normalised


class WideResNet(FeatureNetwork):
    """Three stages of (depth - 4) / 6 blocks, 16, 32 and 64 channels times the widening factor k.

    Features for 32×32 images: stem (B, 16, 32, 32), stages (B, 16k, 32, 32), (B, 32k, 16, 16), (B, 64k, 8, 8), pooled
    (B, 64k). As the activation comes before the convolutions here, stage features are not rectified.

    Args:
        depth: number of layers, 6n+4.
        widen_factor: k.
        num_classes: number of logits.
    """

    feat_modules = ("conv1", "block1", "block2", "block3")

    def __init__(self, depth: int, widen_factor: int, num_classes: int = 100) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4, got {depth}")
        blocks = (depth - 4) // 6
        widths = [c * widen_factor for c in (16, 32, 64)]
        self.conv1 = conv3x3(3, 16)
        self.block1 = WideStage(16, widths[0], blocks, stride=1)
        self.block2 = WideStage(widths[0], widths[1], blocks, stride=2)
        self.block3 = WideStage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def trunk(self, x: Tensor) -> Trunk:
        """See `FeatureNetwork.trunk`; the pre-activation of a stage is what the next batch-norm makes of its output.

        That batch-norm belongs to the following stage, which hands its result back: computing it a second time would
        update its running statistics twice per step.
        """
        stem = self.conv1(x)
        stage1, _ = self.block1(stem)
        stage2, preact1 = self.block2(stage1)
        stage3, preact2 = self.block3(stage2)
        preact3 = self.bn1(stage3)
        return [stem, stage1, stage2, stage3], [stem, preact1, preact2, preact3], F.relu(preact3)

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the pooled vector (B, 64k)."""
        return self.fc

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch-norm that follows each stage."""
        return [self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1]


def wrn_16_1(num_classes: int = 100) -> WideResNet:
    """WRN-16-1."""
    return WideResNet(16, 1, num_classes)


def wrn_16_2(num_classes: int = 100) -> WideResNet:
    """WRN-16-2."""
    return WideResNet(16, 2, num_classes)


def wrn_40_1(num_classes: int = 100) -> WideResNet:
    """WRN-40-1."""
    return WideResNet(40, 1, num_classes)


def wrn_40_2(num_classes: int = 100) -> WideResNet:
    """WRN-40-2."""
    return WideResNet(40, 2, num_classes)
