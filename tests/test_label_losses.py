"""`train_teacher.py --loss`: what teachers are trained with, and what their runs tell."""

import json
import math

import pytest
import torch

from distiller_zoo import Shapes, Step, label_losses
from distiller_zoo.base import Output, Supervised, label_loss
from distiller_zoo.evidence import evidential_cross_entropy, flat_dirichlet_kl, uncertainty

SHAPES = Shapes([], [], 12, 8)
FLAGS = ("--model", "resnet8", "--dataset", "shapes100", "--epochs", 2, "--warmup_epochs", 0, "--quiet")


@pytest.fixture
def learn(call, tmp_path, small_data):
    def run(*arguments):
        return call("train_teacher", *FLAGS, "--save_folder", tmp_path, *arguments)

    return run


def a_step(epoch: int = 3) -> Step:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 12, generator=generator, dtype=torch.float64).requires_grad_()
    return Step(Output(logits), None, torch.arange(8), torch.arange(8), epoch=epoch)


def test_the_evidential_loss():
    loss = label_losses["evidential"](SHAPES, flat_weight=0.5, flat_warmup=10).double()
    step = a_step()
    terms = loss(step)
    assert loss.weights == {"cls": 1.0, "flat": 0.5}
    logits, target = step.student.logits, step.target
    assert terms["cls"].item() == pytest.approx(evidential_cross_entropy(logits, target, 1.0).item())
    assert terms["flat"].item() == pytest.approx(0.3 * flat_dirichlet_kl(logits, target, 1.0).item())
    sum(terms.values()).backward()
    assert loss.log_prior.grad.abs() > 0
    plain = label_losses["evidential"](SHAPES, log_prior=0.5, fix_prior=True)
    assert plain(step).keys() == plain.weights.keys() == {"cls"}
    assert not list(plain.parameters())


def test_two_losses_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two losses are called evidential: EvidentialTraining and Supervised"):
        label_loss("evidential")(Supervised)


def test_uncertainty_is_told_apart_by_answer():
    loss = label_losses["evidential"](SHAPES)
    logits = torch.eye(12) * 3
    target = torch.tensor([0, 1, 2, 3, *[0] * 8])
    figures = loss.test_figures(logits, target)
    expected = uncertainty(logits, 1.0)
    torch.testing.assert_close(figures["uncertainty_right"][:4], expected[:4])
    torch.testing.assert_close(figures["uncertainty_wrong"][4:], expected[4:])
    assert figures["uncertainty_right"][4:].isnan().all()
    assert figures["uncertainty_wrong"][:4].isnan().all()


def test_an_evidential_teacher_is_trained_and_resumed(learn, tmp_path):
    assert learn("--loss", "evidential", "--flat_weight", 0.1).code == 0
    (folder,) = (tmp_path / "models").iterdir()
    assert "_loss-evidential_flat_weight-0.1_" in folder.name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    assert rows[0]["log_prior"] != rows[1]["log_prior"]
    assert rows[1]["flat"] > 0
    found = {key: value for key, value in summary.items() if key.startswith("uncertainty")}
    assert found
    assert all(0 < value < 1 and value == rows[1][key] for key, value in found.items())
    assert summary["log_prior"] == rows[1]["log_prior"]
    assert summary["test_acc"] == rows[1]["test_acc"]
    assert math.isclose(summary["seconds"], sum(row["seconds"] for row in rows))
    network = torch.load(folder / "resnet8_last.pth", weights_only=True)["model"]
    assert not any("prior" in key for key in network)


def test_students_under_ekd_tell_their_uncertainty(call, teacher, tmp_path, small_data):
    flags = (*FLAGS[2:], "--model_s", "resnet8", "--path_t", teacher, "--save_folder", tmp_path, "--distill", "kd")
    assert call("train_student", *flags, "--ekd").code == 0
    (folder,) = (tmp_path / "student_model").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert any(key.startswith("uncertainty") for key in summary)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--loss", "evidental"), "unknown loss evidental; did you mean evidential"),
        (("--flat_weight", 1), "--flat_weight"),
        (("--loss", "evidential", "--flat_weight", -1), "--flat_weight"),
        (("--loss", "evidential", "--flat_weight", "nan"), "--flat_weight"),
        (("--loss", "evidential", "--flat_warmup", 3), "--flat_warmup has no effect without --flat_weight"),
        (("--loss", "evidential", "--log_prior", "nan"), "--log_prior nan"),
        (("--loss", "evidential", "--log_prior", 30), "--log_prior 30"),
    ],
)
def test_bad_options(learn, tmp_path, assert_one_line_error, arguments, words):
    assert_one_line_error(learn(*arguments), words, save_folder=tmp_path)
