"""Networks seen through their classifier: the map that it pools, and class activation maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PooledMapNetwork(nn.Module):
    """A network whose last map is the one that is pooled for the classifier.

    In most networks that is the last stage's; wide ResNets normalise and rectify it first, mobile networks convolve it.

    Args:
        network: of `models/`, with `trunk` and `get_classifier`.

    Raises:
        ValueError: it has no such map.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not getattr(network, "pools_a_map", True):
            name = type(getattr(network, "deployed", network)).__name__
            raise ValueError(f"{name} does not pool a map for its classifier, which this method builds on")
        self.network = network

    def head(self, pooled_map: Tensor) -> tuple[Tensor, Tensor]:
        """The map (B, D, h, w) as the feature to return, and the logits (B, C)."""
        return pooled_map, self.network.get_classifier()(pooled_map.mean((2, 3)))

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """As the network, but for the last map in the list of features.

        Args:
            x: images (B, 3, H, W).
            is_feat: also return the features.
            preact: return the other features before their activation.

        Returns:
            The logits (B, C), or with is_feat the features and the logits.
        """
        features, preacts, pooled_map = self.network.trunk(x)
        last, logits = self.head(pooled_map)
        if not is_feat:
            return logits
        return [*(preacts if preact else features)[:-1], last, pooled_map.mean((2, 3))], logits


class CamNetwork(PooledMapNetwork):
    """A network whose classifier is applied before the pooling, without its bias (CAT-KD, section 3).

    The last map is that of the class activations (B, C, h, w), and the logits are its means over space. As a student,
    the network inside is an ordinary one whose bias stays zero, and it is what is saved.

    Args:
        network: as for `PooledMapNetwork`.
    """

    @property
    def deployed(self) -> nn.Module:
        """The network to save: alone it gives the same logits, since its bias is zero."""
        return self.network

    def head(self, pooled_map: Tensor) -> tuple[Tensor, Tensor]:
        """Class activation maps (B, C, h, w) of a map (B, D, h, w), and the logits (B, C)."""
        cams = F.conv2d(pooled_map, self.network.get_classifier().weight[:, :, None, None])
        return cams, cams.mean((2, 3))
