"""Networks that want images of another size or normalisation than the loader gives."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork, Trunk


class OwnInput(FeatureNetwork):
    """A network behind what brings images to its own size, bilinearly, and to its own normalisation.

    Its parameters are the network's; size and normalisation are buffers, so that they count where a state dict tells
    one network from another.

    Args:
        network: takes images (B, 3, side, side) and has FeatureNetwork's interface.
        size: side of its images; None for those of the loader.
        scale, shift: per channel; the network sees scale·x + shift of the loader's normalised x.
    """

    def __init__(self, network: nn.Module, size: int | None, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network, self.input_size = network, size
        self.register_buffer("side", torch.tensor(size or 0))
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1))
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1))

    @property
    def deployed(self) -> nn.Module:
        """The network alone, which is what is saved."""
        return getattr(self.network, "deployed", self.network)

    def view(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) of the loader as the network takes them, (B, 3, side, side)."""
        if self.input_size is not None and x.shape[2:] != (self.input_size, self.input_size):
            # reducing averages over all pixels that fall together, as image libraries do
            shrinks = self.input_size < x.shape[2]
            size = (self.input_size, self.input_size)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=shrinks)
        return (x * self.scale + self.shift).to(x.dtype)

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """As the network's, on images of the loader."""
        return self.network(self.view(x), is_feat=is_feat, preact=preact)

    def trunk(self, x: Tensor) -> Trunk:
        """As the network's, on images of the loader."""
        return self.network.trunk(self.view(x))

    def get_classifier(self) -> nn.Linear:
        """The network's."""
        return self.network.get_classifier()

    def get_feat_modules(self) -> nn.ModuleList:
        """The network's."""
        return self.network.get_feat_modules()

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The network's."""
        return self.network.get_bn_before_relu()


def with_own_input(
    network: nn.Module, own: nn.Module, side: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """A network behind what its images need, itself where that is nothing.

    Args:
        network: to be run.
        own: the one inside whose `input_size`, `mean` and `std` count.
        side: (H, W) of the loader's images.
        mean, std: normalisation of the loader's images.
    """
    given_mean, given_std = (torch.as_tensor(v, dtype=torch.float64).cpu() for v in (mean, std))
    own_mean, own_std = torch.as_tensor(own.mean or given_mean), torch.as_tensor(own.std or given_std)
    size = own.input_size
    scale, shift = given_std / own_std, (given_mean - own_mean) / own_std
    same_look = torch.allclose(scale, torch.ones(3).double()) and torch.allclose(
        shift, torch.zeros(3).double(), atol=1e-6
    )
    if same_look and size in (None, *({side[0]} if side[0] == side[1] else ())):
        return network
    return OwnInput(network, size, scale, shift)
