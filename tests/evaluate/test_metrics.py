"""helper.metrics against values by hand, torchmetrics and scikit-learn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, roc_curve
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from helper import metrics

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60).map(torch.tensor)


def logs(*rows):
    """Logits whose softmax are the given probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


@st.composite
def answers(draw):
    """Logits (N, C) and labels (N,); small logits, so that mistakes and all confidences occur."""
    seed, count, classes = draw(st.integers(0, 2**31)), draw(st.integers(1, 200)), draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(seed)
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    logits = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=generator)


def test_top_k_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    target = torch.tensor([0, 1, 0, 1])
    assert [metrics.topk_accuracy(logits, target, k) for k in (1, 2, 3, 5)] == [0.5, 0.75, 1.0, 1.0]


def test_classes_and_pairs_by_hand():
    logits = torch.eye(4)[[0, 1, 1, 2, 2, 2, 0]]
    target = torch.tensor([0, 0, 0, 0, 2, 1, 1])
    accuracy = metrics.class_accuracy(logits, target)
    assert accuracy[:3].tolist() == [0.25, 0.0, 1.0]
    assert accuracy[3].isnan()
    assert metrics.confused_pairs(logits, target) == [(0, 1, 2), (0, 2, 1), (1, 0, 1), (1, 2, 1)]
    assert metrics.confused_pairs(logits, target, count=1) == [(0, 1, 2)]
    assert metrics.confused_pairs(logits, logits.argmax(1)) == []


def test_reliability_by_hand():
    # confidences 0.5, 0.75 and 0.55; an edge belongs to the bin below it
    logits = logs([0.5, 0.5], [0.75, 0.25], [0.55, 0.45])
    diagram = metrics.reliability(logits, torch.tensor([0, 0, 1]), bins=2)
    assert diagram.count.tolist() == [1, 2]
    torch.testing.assert_close(diagram.confidence, torch.tensor([0.5, 0.65], dtype=torch.float64))
    assert diagram.accuracy.tolist() == [1.0, 0.5]
    assert diagram.calibration_error == pytest.approx((0.5 + 2 * 0.15) / 3)


def test_empty_bins_do_not_count():
    diagram = metrics.reliability(logs([0.99, 0.01]), torch.tensor([0]))
    assert diagram.confidence[:-1].isnan().all()
    assert diagram.calibration_error == pytest.approx(0.01)


def test_likelihood_and_divergence_by_hand():
    student, teacher = logs([0.25, 0.75]), logs([0.5, 0.5])
    assert metrics.negative_log_likelihood(student, torch.tensor([0])) == pytest.approx(math.log(4))
    assert metrics.mean_kl(student, teacher) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert metrics.mean_kl(student, student + 3) == pytest.approx(0, abs=1e-12)
    assert metrics.agreement(torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]) == 0.5


def test_scores_by_hand():
    logits = torch.tensor([[1.0, 2.0, 2.0]]).log()
    assert metrics.max_softmax(logits).item() == pytest.approx(0.4)
    assert metrics.negative_energy(logits).item() == pytest.approx(math.log(5))


def test_detection_by_hand():
    high, low = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0])
    assert metrics.auroc(high, low) == 0.75
    assert metrics.auroc(torch.ones(3), torch.ones(2)) == 0.5
    assert metrics.aupr(high, low[:1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.fpr_at_tpr(high, low) == 0.5
    # 19 of 20 pass the threshold 2, and so does a negative score that equals it
    inside, outside = torch.arange(1, 21).float(), torch.tensor([0.0, 1.0, 1.9, 2.0, 30.0])
    assert metrics.fpr_at_tpr(inside, outside) == pytest.approx(0.4)
    found = metrics.detection(torch.tensor([5.0, 6.0]), torch.tensor([1.0]))
    assert found == {"auroc": 1.0, "aupr": 1.0, "fpr95": 0.0}


@pytest.mark.parametrize("figure", [metrics.auroc, metrics.aupr, metrics.fpr_at_tpr, metrics.detection])
def test_an_empty_group_is_refused(figure):
    for groups in ((torch.ones(2), torch.ones(0)), (torch.ones(0), torch.ones(2))):
        with pytest.raises(ValueError, match="neither is empty"):
            figure(*groups)


@settings(deadline=None, max_examples=50)
@given(answers())
def test_calibration_is_that_of_torchmetrics(drawn):
    logits, target = drawn
    diagram = metrics.reliability(logits, target)
    expected = MulticlassCalibrationError(logits.shape[1], n_bins=15, norm="l1")(logits.softmax(1), target)
    assert diagram.calibration_error == pytest.approx(expected.item(), abs=1e-6)
    assert diagram.count.sum() == len(target)


@settings(deadline=None, max_examples=50)
@given(answers())
def test_accuracies_are_those_of_torchmetrics_and_scikit_learn(drawn):
    logits, target = drawn
    classes = logits.shape[1]
    expected = MulticlassAccuracy(classes, average=None)(logits, target)
    torch.testing.assert_close(metrics.class_accuracy(logits, target).nan_to_num().float(), expected)
    top = MulticlassAccuracy(classes, average="micro", top_k=2)(logits, target).item()
    assert metrics.topk_accuracy(logits, target, 2) == pytest.approx(top)

    matrix = confusion_matrix(target, logits.argmax(1), labels=range(classes))
    pairs = metrics.confused_pairs(logits, target, classes**2)
    assert all(matrix[label, answer] == count for label, answer, count in pairs)
    assert sum(count for *_, count in pairs) == matrix.sum() - matrix.trace()
    assert [count for *_, count in pairs] == sorted((count for *_, count in pairs), reverse=True)


@settings(deadline=None, max_examples=100)
@given(SCORES, SCORES, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_false_positives_are_those_of_the_roc_curve(inside, outside, rate):
    truth = [1] * len(inside) + [0] * len(outside)
    false, true, _ = roc_curve(truth, torch.cat([inside, outside]).numpy(), drop_intermediate=False)
    assert metrics.fpr_at_tpr(inside, outside, rate) == pytest.approx(false[true >= rate - 1e-12][0])


@settings(deadline=None, max_examples=50)
@given(SCORES, SCORES)
def test_auroc_counts_pairs_and_sees_only_the_order(high, low):
    difference = high[:, None] - low
    pairs = ((difference > 0).double() + 0.5 * (difference == 0)).mean().item()
    assert metrics.auroc(high, low) == pytest.approx(pairs)
    assert metrics.auroc(low, high) == pytest.approx(1 - pairs)
    assert metrics.detection(high.exp(), low.exp()) == pytest.approx(metrics.detection(high, low))
