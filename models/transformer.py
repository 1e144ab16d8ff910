"""What the vision transformers share: attention, blocks, drop path, the feature interface."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeatureNetwork

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EPS = 1e-6  # of layer norms


class TransformerNetwork(FeatureNetwork):
    """A classifier whose features are the outputs of its blocks as maps, without class token.

    A family implements `encode` and has the linear layer `head`. Its list of features is that of the other networks:
    the embedded patches as the stem, each block as a stage, the vector that the head takes.

    Args:
        img_size: side of the square images that it is built for.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    pools_a_map = False

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.input_size = img_size

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Everything before the head: images (B, 3, H, W) to the maps (B, C_i, h_i, w_i) and the vector (B, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """As `FeatureNetwork.forward`; maps have no activation, so that preact changes nothing."""
        maps, vector = self.encode(x)
        logits = self.head(vector)
        return ([*maps, vector], logits) if is_feat else logits

    def get_classifier(self) -> nn.Linear:
        """The linear layer on the class token (B, D)."""
        return self.head


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, drops a residual branch for each sample on its own.

    Args:
        rate: probability, in [0, 1); the branches that stay are scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The branch (B, N, C), as it is or zero."""
        if not self.training or not self.rate:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate:g}"


class Mlp(nn.Module):
    """Two linear layers with a GELU in between, on tokens (B, N, dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, dim).

    Args:
        dim: length of a token, a multiple of heads.
        heads: number of heads.
        bias: of the layer that makes queries, keys and values.
    """

    def __init__(self, dim: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_transform = nn.Linear(dim, 3 * dim, bias=bias)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of the same shape."""
        queries, keys, values = self.qkv_transform(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.projection(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a shortcut.

    Args:
        dim: length of a token.
        attention: of tokens (B, N, dim); further arguments of a call are passed on to it.
        mlp_ratio: hidden width of the MLP, in dim.
        drop_path: rate of both branches.
    """

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *where: int) -> Tensor:
        """Tokens (B, N, dim) to tokens of the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x), *where))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 in the first of `depth` blocks to `rate` in the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def as_map(tokens: Tensor, height: int, extra: int = 0) -> Tensor:
    """The map (B, C, height, N / height) of tokens (B, extra + N, C), of which the first `extra` are left out."""
    return tokens[:, extra:].transpose(1, 2).unflatten(2, (height, -1))


def as_tokens(x: Tensor) -> Tensor:
    """Tokens (B, H·W, C) of a map (B, C, H, W)."""
    return x.flatten(2).transpose(1, 2)


def check_size(img_size: int, fits: Callable[[int], bool], rule: str) -> None:
    """Refuse a size of images that a network cannot be built for.

    Raises:
        ValueError: `fits` is false; the text has the rule.
    """
    if img_size < 1 or not fits(img_size):
        raise ValueError(f"images of side {img_size} do not suit this network, which takes {rule}")


@torch.no_grad()
def init_transformer(model: nn.Module) -> None:
    """Draws linear layers, tokens and position embeddings from N(0, 0.02²) cut at 2, and zeroes biases (DeiT)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("token" in name or "pos_embed" in name):
            nn.init.trunc_normal_(parameter, std=0.02)
