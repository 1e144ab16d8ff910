"""DeiT: Touvron et al., Training Data-Efficient Image Transformers, ICML 2021, arXiv 2012.12877.

Names and structure of tiny-transformers (Li et al., ECCV 2022), whose records the tests compare with.
"""

import torch
from torch import Tensor, nn

from .transformer import EPS, Attention, Block, TransformerNetwork, as_map, as_tokens, check_size, drop_path_rates
from .transformer import init_transformer as init

PATCH = 16


class PatchEmbedding(nn.Module):
    """Patches of 16×16 pixels as tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, H·W / 256, dim)."""
        return as_tokens(self.projection(x))


class DeiT(TransformerNetwork):
    """Equal blocks on 16×16 patches and a class token.

    Features for 224×224 images: stem and every block (B, dim, 14, 14), class token (B, dim).

    Args:
        dim: length of a token.
        depth: number of blocks.
        heads: number of attention heads.
        num_classes: number of logits.
        img_size: side of the images, a multiple of 16.
        drop_path: rate of the last block; it grows linearly from 0.
        distilled: add a distillation token with a head of its own. In training, the logits are then (B, 2, C), those
            of the class head and those of the distillation head; in evaluation mode they are the mean of both, (B, C).

    Raises:
        ValueError: img_size is no multiple of 16.
    """

    feat_modules = ("patch_embed", "layers")

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        num_classes: int = 100,
        img_size: int = 224,
        drop_path: float = 0.1,
        distilled: bool = False,
    ) -> None:
        super().__init__(img_size)
        check_size(img_size, lambda side: side % PATCH == 0, f"multiples of {PATCH}")
        self.grid, self.extra = img_size // PATCH, 1 + distilled
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + self.extra, dim))
        self.distill_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        self.patch_embed = PatchEmbedding(dim)
        rates = drop_path_rates(drop_path, depth)
        self.layers = nn.ModuleList(Block(dim, Attention(dim, heads), 4, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, num_classes)
        self.distill_head = nn.Linear(dim, num_classes) if distilled else None
        init(self)

    def _tokens(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps, and the normalised tokens that the heads take (B, 1 or 2, dim)."""
        patches = self.patch_embed(x)
        tokens = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.distill_token) if t is not None]
        maps = [as_map(patches, self.grid)]
        x = torch.cat([*tokens, patches], dim=1) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
            maps.append(as_map(x, self.grid, self.extra))
        return maps, self.norm(x[:, : self.extra])

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `TransformerNetwork.encode`; the vector is the class token."""
        maps, tokens = self._tokens(x)
        return maps, tokens[:, 0]

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """As `TransformerNetwork.forward`, but for the logits of two heads, see the class."""
        if self.distill_head is None:
            return super().forward(x, is_feat, preact)
        maps, tokens = self._tokens(x)
        heads = torch.stack([self.head(tokens[:, 0]), self.distill_head(tokens[:, 1])], dim=1)
        logits = heads if self.training else heads.mean(1)
        return ([*maps, tokens[:, 0]], logits) if is_feat else logits


def deit_ti(num_classes: int = 100, img_size: int = 224, drop_path: float = 0.1) -> DeiT:
    """DeiT-Tiny: 12 blocks, 192 channels, 3 heads."""
    return DeiT(192, 12, 3, num_classes, img_size, drop_path)


def deit_ti_distilled(num_classes: int = 100, img_size: int = 224, drop_path: float = 0.1) -> DeiT:
    """DeiT-Tiny with a distillation token, which learns from the teacher's logits."""
    return DeiT(192, 12, 3, num_classes, img_size, drop_path, distilled=True)
