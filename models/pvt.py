"""PVT: Wang et al., Pyramid Vision Transformer, ICCV 2021, arXiv 2102.12122.

Names and structure of tiny-transformers (Li et al., ECCV 2022), whose records the tests compare with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import EPS, Block, TransformerNetwork, as_map, as_tokens, check_size, drop_path_rates
from .transformer import init_transformer as init

PATCHES = (4, 2, 2, 2)


class PatchEmbedding(nn.Module):
    """Normalised patches of a map as tokens."""

    def __init__(self, c_in: int, c_out: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(c_in, c_out, patch, stride=patch)
        self.norm = nn.LayerNorm(c_out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, c_in, H, W) to tokens (B, H·W / patch², c_out)."""
        return self.norm(as_tokens(self.proj(x)))


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced by a strided convolution.

    Args:
        dim: length of a token.
        heads: number of heads.
        reduction: stride of that convolution; 1 for none, and then there may be a class token.
    """

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(dim, eps=EPS) if reduction > 1 else None

    def forward(self, x: Tensor, height: int) -> Tensor:
        """Tokens (B, N, dim) of a map of this height to tokens of the same shape."""
        queries = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.sr is not None:
            x = self.norm(as_tokens(self.sr(as_map(x, height))))
        keys, values = self.kv(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class PVT(TransformerNetwork):
    """Four stages of two blocks, each at half the resolution of the one before; the class token joins the last.

    Features of pvt_ti for 224×224 images: stem (B, 64, 56, 56), then two blocks each of (B, 64, 56, 56),
    (B, 128, 28, 28), (B, 320, 14, 14), (B, 512, 7, 7), class token (B, 512).

    Args:
        dims, heads, mlp_ratios, reductions: channels, attention heads, widths of the MLP and `ReducedAttention`'s
            reduction of the stages.
        depth: blocks of each stage.
        num_classes: number of logits.
        img_size: side of the images, a multiple of 32.
        drop_path: rate of the last block; it grows linearly from 0.

    Raises:
        ValueError: img_size is no multiple of 32.
    """

    feat_modules = tuple(f"{part}{i}" for i in (1, 2, 3, 4) for part in ("patch_embed", "block"))

    def __init__(
        self,
        dims: tuple[int, int, int, int],
        heads: tuple[int, int, int, int],
        mlp_ratios: tuple[int, int, int, int],
        reductions: tuple[int, int, int, int],
        depth: int,
        num_classes: int = 100,
        img_size: int = 224,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(img_size)
        check_size(img_size, lambda side: side % 32 == 0, "multiples of 32")
        rates = drop_path_rates(drop_path, 4 * depth)
        side = img_size
        for i, (dim, patch) in enumerate(zip(dims, PATCHES, strict=True)):
            side //= patch
            tokens = side**2 + (i == 3)
            self.register_parameter(f"pos_embed{i + 1}", nn.Parameter(torch.zeros(1, tokens, dim)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[-1]))
        for i, (dim, patch) in enumerate(zip(dims, PATCHES, strict=True)):
            self.add_module(f"patch_embed{i + 1}", PatchEmbedding(dims[i - 1] if i else 3, dim, patch))
            stage = (
                Block(dim, ReducedAttention(dim, heads[i], reductions[i]), mlp_ratios[i], rate)
                for rate in rates[i * depth : (i + 1) * depth]
            )
            self.add_module(f"block{i + 1}", nn.ModuleList(stage))
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)
        self.head = nn.Linear(dims[-1], num_classes)
        init(self)

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `TransformerNetwork.encode`; the vector is the class token."""
        maps: list[Tensor] = []
        for i in range(1, 5):
            height, extra = x.shape[2] // PATCHES[i - 1], int(i == 4)
            tokens = getattr(self, f"patch_embed{i}")(x)
            maps += [as_map(tokens, height)] if i == 1 else []
            if extra:
                tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
            tokens = tokens + getattr(self, f"pos_embed{i}")
            for block in getattr(self, f"block{i}"):
                tokens = block(tokens, height)
                maps.append(as_map(tokens, height, extra))
            x = maps[-1]
        return maps, self.norm(tokens[:, 0])


def pvt_ti(num_classes: int = 100, img_size: int = 224, drop_path: float = 0.1) -> PVT:
    """PVT-Tiny: two blocks each of 64, 128, 320 and 512 channels."""
    return PVT((64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1), 2, num_classes, img_size, drop_path)
