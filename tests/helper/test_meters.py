"""Running figures: means, accuracy, and the report of a value that is not finite."""

import pytest
import torch

from helper.errors import RunError
from helper.meters import TestMeter, TrainMeter

CPU = torch.device("cpu")


def test_means_weigh_every_sample_alike():
    meter = TrainMeter(["cls", "loss"], 2, CPU)
    logits = torch.eye(4)
    meter.update(logits, torch.tensor([0, 1, 2, 0]), [torch.tensor(1.0), torch.tensor(2.0)])
    meter.update(logits[:1], torch.tensor([0]), [torch.tensor(6.0), torch.tensor(7.0)])
    figures = meter.read(epoch=1)
    assert figures["cls"] == pytest.approx((4 * 1 + 6) / 5)
    assert figures["loss"] == pytest.approx((4 * 2 + 7) / 5)
    assert figures["train_acc"] == pytest.approx(80.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_bad_value_is_named(value):
    meter = TrainMeter(["cls", "div", "loss"], 4, CPU)
    good, bad = torch.tensor(1.0), torch.tensor(value)
    logits, target = torch.eye(2), torch.tensor([0, 1])
    meter.update(logits, target, [good, good, good])
    meter.read(epoch=3)
    meter.update(logits, target, [good, good, good])
    meter.update(logits, target, [good, bad, bad])
    meter.update(logits, target, [bad, bad, bad])
    with pytest.raises(RunError, match=r"'div' is (nan|inf) in epoch 3, step 3;"):
        meter.read(epoch=3)


def test_top_1_and_top_5():
    meter = TestMeter(CPU)
    logits = torch.arange(10.0).repeat(4, 1)
    target = torch.tensor([9, 5, 4, 0])
    meter.update(logits, target)
    figures = meter.read()
    assert figures["test_acc"] == pytest.approx(25.0)
    assert figures["test_acc_top5"] == pytest.approx(50.0)
    assert figures["test_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item())


def test_fewer_than_five_classes():
    meter = TestMeter(CPU)
    meter.update(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert meter.read()["test_acc_top5"] == 100.0


def test_further_figures_are_means_over_the_samples_that_count():
    meter = TestMeter(CPU)
    nan = float("nan")
    logits, target = torch.eye(3), torch.tensor([0, 1, 2])
    meter.update(logits, target, {"some": torch.tensor([1.0, nan, 3.0]), "none": torch.full((3,), nan)})
    meter.update(logits[:1], target[:1], {"some": torch.tensor([8.0]), "none": torch.tensor([nan])})
    figures = meter.read()
    assert figures["some"] == pytest.approx(4.0)
    assert "none" not in figures
