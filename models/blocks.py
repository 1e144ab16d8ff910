"""What the network families share: the feature interface, residual stages, channel shuffling, initialisation."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Trunk = tuple[list[Tensor], list[Tensor], Tensor]


class FeatureNetwork(nn.Module):
    """A classifier that can also return its intermediate features.

    The interface is the one of RepDistiller (Tian et al., Contrastive Representation Distillation, ICLR 2020). A family
    implements `trunk`, `get_classifier` and, where it can, `get_bn_before_relu`, and lists `feat_modules`.

    Attributes:
        feat_modules: names of the modules up to the last stage, in the order of the forward pass.
        input_size: side of the square images that it takes; None for any.
        mean, std: normalisation of its images, in units of [0, 1]; None for the data set's. See `OwnInput`.
        pools_a_map: whether the classifier takes the mean of a map over space; only then is there a `trunk`.
    """

    feat_modules: tuple[str, ...] = ()
    input_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    pools_a_map = True

    def trunk(self, x: Tensor) -> Trunk:
        """Runs everything before the global pooling.

        Args:
            x: images (B, 3, H, W).

        Returns:
            The stem and stage features, their pre-activation versions (two lists of equal length, entries
            (B, C_i, H_i, W_i)), and the map (B, D, h, w) that is pooled for the classifier.
        """
        raise NotImplementedError

    def get_classifier(self) -> nn.Linear:
        """The linear layer that maps the pooled vector (B, D) to the logits (B, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """Classifies a batch of images.

        Args:
            x: images (B, 3, H, W).
            is_feat: also return the features.
            preact: return the features before their activation; without effect unless is_feat.

        Returns:
            The logits (B, C), or with is_feat the pair of the list [stem, stage 1, ..., stage K, pooled vector (B, D)]
            and the logits.
        """
        features, preacts, x = self.trunk(x)
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits = self.get_classifier()(pooled)
        if is_feat:
            return [*(preacts if preact else features), pooled], logits
        return logits

    def get_feat_modules(self) -> nn.ModuleList:
        """The modules that compute the features, for methods that first train these alone."""
        return nn.ModuleList(self.get_submodule(name) for name in self.feat_modules)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch-norm before the activation of each stage (margins of OFD, Heo et al., ICCV 2019).

        Raises:
            NotImplementedError: if no single batch-norm normalises a whole stage output.
        """
        raise NotImplementedError(f"{type(self).__name__} has no single batch-norm before the ReLU of a stage")


class ResidualStage(nn.Sequential):
    """Blocks that return pre-activations, each followed by a ReLU."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, H, W) to the stage output (B, C', H', W') and its value before the last activation."""
        preact = x
        for block in self:
            preact = block(x)
            x = self.activate(preact)
        return x, preact

    def activate(self, preact: Tensor) -> Tensor:
        """What turns the output of a block into the input of the next one; shape unchanged."""
        return F.relu(preact)


def run_stages(stem: Tensor, stages: Iterable[nn.Module]) -> Trunk:
    """Chains stages that return (output, pre-activation), starting from the activated stem (B, C, H, W).

    The stem stands in both lists: it has no pre-activation version in RepDistiller.
    """
    x = stem
    features, preacts = [stem], [stem]
    for stage in stages:
        x, preact = stage(x)
        features.append(x)
        preacts.append(preact)
    return features, preacts, x


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution without bias: (B, c_in, H, W) to (B, c_out, ceil(H / stride), ceil(W / stride))."""
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)


def conv1x1(c_in: int, c_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """1×1 convolution without bias: (B, c_in, H, W) to (B, c_out, ceil(H / stride), ceil(W / stride))."""
    return nn.Conv2d(c_in, c_out, 1, stride=stride, groups=groups, bias=False)


def depthwise3x3(channels: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution without bias, each channel (B, channels, H, W) on its own."""
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of the groups of x (B, C, H, W): channel j of group g moves to position j·groups + g.

    The result is in channels-last layout.
    """
    return x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3, 4).permute(0, 3, 1, 2)


class _DenseGradient(torch.autograd.Function):
    """Identity whose gradient is channels-last, without gaps.

    What `torch.cat` sends back to its parts are views into one tensor. For these, and for the channels-first gradients
    that result where they meet others, batch norms take five times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=torch.channels_last)


def join_channels(*parts: Tensor) -> Tensor:
    """The maps (B, C_i, H, W) one after the other, (B, sum of C_i, H, W); their gradients are channels-last."""
    return torch.cat([_DenseGradient.apply(part) for part in parts], dim=1)


@torch.no_grad()
def init_convolutions(model: nn.Module) -> None:
    """Draws convolution weights from N(0, 2 / (k² · c_out)) and zeroes their biases (He et al., ICCV 2015, fan out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def init_classifier(linear: nn.Linear) -> None:
    """Draws the weights from N(0, 0.01²) and zeroes the bias."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
