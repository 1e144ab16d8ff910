"""T2T-ViT: Yuan et al., Tokens-to-Token ViT, ICCV 2021, arXiv 2101.11986, with Performer attention in the first stage.

Names and structure of tiny-transformers (Li et al., ECCV 2022), whose record the tests compare with. The record has no
output values: inside the Performer's linear layer, the order of queries, keys and values is a free choice.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import EPS, Attention, Block, Mlp, TransformerNetwork, as_map, check_size, drop_path_rates
from .transformer import init_transformer as init

TOKEN_DIM = 64
UNFOLDS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride and padding of the soft splits


class PerformerAttention(nn.Module):
    """Attention of one head in time linear in the number of tokens (Choromanski et al., Performers, ICLR 2021).

    The softmax kernel is approximated by fixed random features. The values serve as the shortcut.

    Args:
        dim_in: length of the tokens.
        dim: length of queries, keys and values.
    """

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(dim // 2, dim), requires_grad=False)
        nn.init.orthogonal_(self.w).mul_(math.sqrt(dim // 2))
        self.qkv_transform = nn.Linear(dim_in, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def _features(self, x: Tensor) -> Tensor:
        """Positive random features (B, N, dim / 2) of vectors (B, N, dim)."""
        half_norm = x.square().sum(-1, keepdim=True) / 2
        return torch.exp(x @ self.w.T - half_norm) / math.sqrt(len(self.w))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, dim_in) to (B, N, dim)."""
        low = self.qkv_transform(x)
        with torch.autocast(x.device.type, enabled=False):  # exponentials of sums of squares
            queries, keys, values = (low if low.dtype == torch.float64 else low.float()).chunk(3, dim=-1)
            queries, keys = self._features(queries), self._features(keys)
            sums = queries @ keys.sum(1).unsqueeze(2)
            attended = queries @ (keys.transpose(1, 2) @ values) / (sums + 1e-8)
        return values + self.projection(attended.to(low.dtype))


class TokenTransformer(nn.Module):
    """Performer attention and an MLP between two soft splits; (B, N, dim_in) to (B, N, dim)."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim_in, eps=EPS)
        self.attn = PerformerAttention(dim_in, dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the transformed tokens."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Three soft splits, which join neighbouring tokens; images (B, 3, H, W) to tokens (B, H·W / 256, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        first, second, third = (kernel**2 for kernel, _, _ in UNFOLDS)
        sizes = (3 * first, TOKEN_DIM * second)
        self.attention = nn.ModuleList(TokenTransformer(size, TOKEN_DIM) for size in sizes)
        self.projection = nn.Linear(TOKEN_DIM * third, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the tokens."""
        for (kernel, stride, padding), transform in zip(UNFOLDS, (*self.attention, self.projection), strict=True):
            height = (x.shape[2] + 2 * padding - kernel) // stride + 1
            tokens = transform(F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2))
            x = as_map(tokens, height)
        return tokens


def sinusoids(positions: int, dim: int) -> Tensor:
    """Fixed position embedding (1, positions, dim) of sines and cosines (Vaswani et al., 2017)."""
    rates = 10000 ** (-(torch.arange(dim, dtype=torch.float64) // 2 * 2) / dim)
    angles = torch.arange(positions, dtype=torch.float64).unsqueeze(1) * rates
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float().unsqueeze(0)


class T2TViT(TransformerNetwork):
    """Equal blocks on tokens that overlap, and a class token.

    Features for 224×224 images: stem and every block (B, dim, 14, 14), class token (B, dim).

    Args:
        dim: length of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: hidden width of the MLP, in dim.
        num_classes: number of logits.
        img_size: side of the images, a multiple of 16.
        drop_path: rate of the last block; it grows linearly from 0.

    Raises:
        ValueError: img_size is no multiple of 16.
    """

    feat_modules = ("t2t_module", "layers")

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        num_classes: int = 100,
        img_size: int = 224,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(img_size)
        check_size(img_size, lambda side: side % 16 == 0, "multiples of 16")
        self.grid = img_size // 16
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sinusoids(self.grid**2 + 1, dim), requires_grad=False)
        self.t2t_module = TokensToToken(dim)
        rates = drop_path_rates(drop_path, depth)
        self.layers = nn.ModuleList(Block(dim, Attention(dim, heads, bias=False), mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, num_classes)
        init(self)

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `TransformerNetwork.encode`; the vector is the class token."""
        tokens = self.t2t_module(x)
        maps = [as_map(tokens, self.grid)]
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
            maps.append(as_map(x, self.grid, extra=1))
        return maps, self.norm(x[:, 0])


def t2t_7(num_classes: int = 100, img_size: int = 224, drop_path: float = 0.1) -> T2TViT:
    """T2T-ViT-7: 7 blocks, 256 channels, 4 heads."""
    return T2TViT(256, 7, 4, 2, num_classes, img_size, drop_path)
