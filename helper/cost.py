"""What a network costs: parameters, operations, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .inference import Inference
from .precision import Precision

LATENCY_REPEATS, THROUGHPUT_REPEATS, WARM_UP = 30, 5, 2
THROUGHPUT_BATCH = 256


@torch.no_grad()
def count_flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations of a forward pass over images (B, 3, H, W), a multiply-add counting 2.

    Convolutions and matrix products are counted; norms, activations and pooling are not.
    """
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call in seconds, after a warm-up; waits for the device each time."""

    def timed() -> float:
        """Seconds of one call, until the device is idle."""
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return statistics.median([timed() for _ in range(WARM_UP + repeats)][WARM_UP:])


def hardware(device: torch.device) -> str:
    """The device in words: the GPU's name, or the CPU's instruction set and the threads that are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}), threads: {torch.get_num_threads()}"


def measure(network: nn.Module, inference: Inference, side: tuple[int, int], precision: Precision) -> dict[str, Any]:
    """Size and speed of a network.

    Args:
        network: on the precision's device, in evaluation mode.
        inference: the same, as it runs for its logits.
        side: (H, W) of its images.
        precision: device and number format.

    Returns:
        `params`; `flops` of one image; `latency_ms`, the median time for one image; `images_per_second` from the
        median time for a batch of `throughput_batch`; `hardware` and `precision`, with which these were measured.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(THROUGHPUT_BATCH, 3, *side, generator=generator).to(precision.device)
    images = images.contiguous(memory_format=torch.channels_last)
    one = images[:1]
    latency = median_seconds(lambda: inference(one), precision.device, LATENCY_REPEATS)
    batch = median_seconds(lambda: inference(images), precision.device, THROUGHPUT_REPEATS)
    return {
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "flops": count_flops(network, one),
        "latency_ms": 1000 * latency,
        "throughput_batch": THROUGHPUT_BATCH,
        "images_per_second": THROUGHPUT_BATCH / batch,
        "hardware": hardware(precision.device),
        "precision": precision.name,
    }
