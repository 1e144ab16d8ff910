"""Convolutional networks that do not learn, fused on a CPU by oneDNN Graph: convolutions with what follows them.

TorchScript is the way in which torch offers that library. Torch calls TorchScript deprecated in favour of
`torch.compile`, whose code is slower here (`python -m benchmarks.teacher` compares). Where it is missing, networks run
as they do without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LARGEST_DIFFERENCE = 0.1  # relative, of the logits' norm: bfloat16 rounds elsewhere where operations are fused
GROUP = "FusionGroup"  # how a graph in words names what is fused


@contextmanager
def _fusion() -> Iterator[None]:
    before = torch.jit.onednn_fusion_enabled()
    torch.jit.enable_onednn_fusion(True)
    try:
        yield
    finally:
        torch.jit.enable_onednn_fusion(before)


@torch.no_grad()
def fuse(network: nn.Module, images: Tensor, frozen: bool) -> Callable[[Tensor], Tensor] | None:
    """What gives a network's logits for batches like these images, with few passes over memory.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W), in the format and number of all that come later.
        frozen: take the weights as they are now; otherwise those that the network has at each call, a little slower.

    Returns:
        None where torch fuses nothing, or the network's code does not bear it.
    """
    images = _channels_last(images)
    try:
        with _fusion(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecation, and of shapes taken for constants, which they are
            graph = torch.jit.trace(network, images, check_trace=False, strict=False)
            if frozen:
                graph = torch.jit.freeze(graph)
            graph(images)  # its first call is watched, the second one fuses
            logits = graph(images)
            fused = GROUP in str(torch.jit.last_executed_optimized_graph())
    except Exception:  # a network of others may refuse in any way
        return None
    expected = network(images).float()
    same = (logits.float() - expected).norm() <= LARGEST_DIFFERENCE * expected.norm()
    return (lambda images: graph(_channels_last(images))) if fused and same else None


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
