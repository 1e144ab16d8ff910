"""PiT: Heo et al., Rethinking Spatial Dimensions of Vision Transformers, ICCV 2021, arXiv 2103.16302.

Names and structure of tiny-transformers (Li et al., ECCV 2022), whose record the tests compare with.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .transformer import EPS, Attention, Block, TransformerNetwork, as_map, as_tokens, check_size, drop_path_rates
from .transformer import init_transformer as init

PATCH, STRIDE = 16, 8


class PatchEmbedding(nn.Module):
    """Overlapping patches of 16×16 pixels, every 8 pixels, as a map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, dim, PATCH, stride=STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to a map (B, dim, (H - 16) / 8 + 1, (W - 16) / 8 + 1)."""
        return self.conv(x)


class Stage(nn.Module):
    """Blocks over the tokens of one resolution."""

    def __init__(self, dim: int, heads: int, rates: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, Attention(dim, heads), 4, rate) for rate in rates)

    def forward(self, x: Tensor, token: Tensor) -> tuple[list[Tensor], Tensor]:
        """A map (B, dim, h, w) and a class token (B, 1, dim) to the map after each block and the class token."""
        height = x.shape[2]
        tokens = torch.cat([token, as_tokens(x)], dim=1)
        maps = []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(as_map(tokens, height, extra=1))
        return maps, tokens[:, :1]


class Pooling(nn.Module):
    """Halves a map by a strided depthwise convolution that doubles its channels; the class token follows linearly."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, groups=c_in)
        self.fc = nn.Linear(c_in, c_out)

    def forward(self, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, c_in, h, w) and token (B, 1, c_in) to (B, c_out, h / 2, w / 2) and (B, 1, c_out)."""
        return self.conv(x), self.fc(token)


class PiT(TransformerNetwork):
    """Three stages of blocks with poolings in between.

    Features of pit_ti for 224×224 images: stem and the two blocks of the first stage (B, 64, 27, 27), six blocks
    (B, 128, 14, 14), four blocks (B, 256, 7, 7), class token (B, 256).

    Args:
        dims, depths, heads: channels, blocks and attention heads of the stages.
        num_classes: number of logits.
        img_size: side of the images, a multiple of 8 from 24.
        drop_path: rate of the last block; it grows linearly from 0.

    Raises:
        ValueError: img_size is no such number.
    """

    feat_modules = ("patch_embed", "transformers", "pools")

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        num_classes: int = 100,
        img_size: int = 224,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(img_size)
        check_size(img_size, lambda side: side > PATCH and side % STRIDE == 0, f"multiples of {STRIDE} above {PATCH}")
        grid = (img_size - PATCH) // STRIDE + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, dims[0], grid, grid))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[0]))
        self.patch_embed = PatchEmbedding(dims[0])
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        shapes = zip(dims, heads, depths, strict=True)
        self.transformers = nn.ModuleList(
            Stage(dim, n, [next(rates) for _ in range(depth)]) for dim, n, depth in shapes
        )
        self.pools = nn.ModuleList(Pooling(before, after) for before, after in pairwise(dims))
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)
        self.head = nn.Linear(dims[-1], num_classes)
        init(self)

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `TransformerNetwork.encode`; the vector is the class token."""
        stem = self.patch_embed(x)
        x, token = stem + self.pos_embed, self.cls_token.expand(len(stem), -1, -1)
        maps = [stem]
        for i, stage in enumerate(self.transformers):
            if i:
                x, token = self.pools[i - 1](x, token)
            found, token = stage(x, token)
            x = found[-1]
            maps += found
        return maps, self.norm(token[:, 0])


def pit_ti(num_classes: int = 100, img_size: int = 224, drop_path: float = 0.1) -> PiT:
    """PiT-Ti: 2, 6 and 4 blocks of 64, 128 and 256 channels."""
    return PiT((64, 128, 256), (2, 6, 4), (2, 4, 8), num_classes, img_size, drop_path)
