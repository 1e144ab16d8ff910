"""helper.cost: operations by hand, and what is timed."""

import itertools

import torch
from torch import nn

from helper import cost
from helper.inference import Inference
from helper.precision import Precision
from models import model_dict

CPU = torch.device("cpu")


def test_flops_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    dense, grouped, linear = 8 * 64 * 3 * 9, 8 * 64 * 2 * 9, 512 * 10
    assert cost.count_flops(network, torch.zeros(1, 3, 8, 8)) == 2 * (dense + grouped + linear)


def test_median_of_the_calls_after_the_warm_up(monkeypatch):
    """Warm-up calls take 100 s, the others 1, 2 and 9."""
    durations = iter([*[100.0] * cost.WARM_UP, 9.0, 1.0, 2.0])
    ticks = itertools.chain.from_iterable((0.0, duration) for duration in durations)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert cost.median_seconds(lambda: calls.append(1), CPU, repeats=3) == 2.0
    assert len(calls) == cost.WARM_UP + 3


def test_measured_of_a_network(monkeypatch):
    monkeypatch.setattr(cost, "LATENCY_REPEATS", 2)
    monkeypatch.setattr(cost, "THROUGHPUT_REPEATS", 1)
    monkeypatch.setattr(cost, "THROUGHPUT_BATCH", 4)
    network, precision = model_dict["resnet8"]().eval(), Precision(CPU, torch.float32, plain=True)
    found = cost.measure(network, Inference(network, precision), (32, 32), precision)
    assert found["params"] == sum(parameter.numel() for parameter in network.parameters())
    # stem, three stages of a block with two convolutions, two shortcuts of 1 × 1, classifier
    stages = [1024 * 2 * 16 * 16 * 9, 256 * (16 + 32) * 32 * 9 + 256 * 16 * 32, 64 * (32 + 64) * 64 * 9 + 64 * 32 * 64]
    assert found["flops"] == 2 * (1024 * 3 * 16 * 9 + sum(stages) + 64 * 100)
    assert found["latency_ms"] > 0
    assert found["images_per_second"] > 0
    assert found["precision"] == "fp32"
    assert "threads: 1" in found["hardware"]
