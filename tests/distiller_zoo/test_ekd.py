"""EKD as a method of its own and over other logit losses, against the official numbers' formulas."""

import json

import pytest
import torch

from distiller_zoo import MLKD, Shapes, Step, dkd_terms, registry, transform_registry
from distiller_zoo.base import Output
from distiller_zoo.evidence import evidential_cross_entropy, expected_logits, second_order
from distiller_zoo.functional import kl_divergence

BATCH, CLASSES = 8, 12
SHAPES = Shapes([], [], CLASSES, BATCH)
PRIOR = -0.93


def step(seed=0, epoch=15):
    generator = torch.Generator().manual_seed(seed)
    z = [2 * torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64) for _ in range(4)]
    target = torch.arange(BATCH)
    return Step(Output(z[0], strong_logits=z[1]), Output(z[2], strong_logits=z[3]), target, target, epoch=epoch)


def build(name, **options):
    method = registry[name].build(SHAPES).double()
    method.temperature = registry[name].recipe.get("kd_T", 4.0)
    method.transforms.append(transform_registry["ekd"](SHAPES, ekd_prior=PRIOR, **options).double())
    return method


def test_the_method_is_the_cleaned_release():
    s = step()
    terms = build("ekd")(s)
    z_s, z_t = s.student.logits, s.teacher.logits
    p_s, p_t = ((z.exp() + torch.tensor(PRIOR).double().exp()).log() for z in (z_s, z_t))
    assert terms["cls"].item() == pytest.approx(evidential_cross_entropy(z_s, s.target, PRIOR).item(), rel=1e-6)
    assert terms["first"].item() == pytest.approx(kl_divergence(p_s, p_t).item(), rel=1e-6)
    expected = 15 / 30 * second_order(z_s, z_t, PRIOR, PRIOR, "softplus")
    assert terms["second"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_over_dkd_both_parts_compare_expected_probabilities():
    s = step()
    terms = build("dkd")(s)
    pair = [expected_logits(z, 4.0, PRIOR) for z in (s.student.logits, s.teacher.logits)]
    tckd, nckd = dkd_terms(*pair, s.target, 4.0)
    assert terms["tckd"].item() == pytest.approx(15 / 20 * tckd.item(), rel=1e-6)
    assert terms["nckd"].item() == pytest.approx(15 / 20 * nckd.item(), rel=1e-6)
    assert {"cls", "tckd", "nckd", "second"} == terms.keys()


def test_over_mlkd_every_temperature_has_its_own_expectation():
    s = step()
    terms = build("mlkd")(s)
    assert {"cls", "mlkd", "second"} == terms.keys()
    plain = MLKD(SHAPES)
    values = []
    for prior in (-19.0, PRIOR):
        method = registry["mlkd"].build(SHAPES).double()
        method.transforms.append(transform_registry["ekd"](SHAPES, ekd_prior=prior).double())
        values.append(method(s)["mlkd"].item())
    # without a prior, expected probabilities are softmaxes
    assert values[0] == pytest.approx(plain(s)["mlkd"].item(), rel=1e-5)
    assert values[1] != pytest.approx(values[0], rel=1e-2)


def test_over_mlkd_the_second_order_is_the_mean_of_both_views():
    s = step(epoch=30)
    weak = second_order(s.student.logits, s.teacher.logits, PRIOR, PRIOR)
    strong = second_order(s.student.strong_logits, s.teacher.strong_logits, PRIOR, PRIOR)
    assert build("mlkd")(s)["second"].item() == pytest.approx((weak + strong).item() / 2, rel=1e-6)


def test_softened_logits_of_the_second_order_and_its_scale():
    s = step(epoch=30)
    z_s, z_t = s.student.logits, s.teacher.logits
    expected = 4.0**2 * second_order(z_s / 4.0, z_t / 4.0, PRIOR, PRIOR)
    assert build("kd", ekd_soften=True)(s)["second"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert build("kd")(s)["second"].item() == pytest.approx(second_order(z_s, z_t, PRIOR, PRIOR).item(), rel=1e-6)


def test_learned_priors_get_gradients_and_fixed_ones_are_no_parameters():
    assert not list(build("ekd").parameters())
    method = build("ekd", ekd_learn_prior=True)
    sum(method(step()).values()).backward()
    assert all(parameter.grad.abs() > 0 for parameter in method.parameters())
    assert method.figures() == pytest.approx({"log_prior_s": PRIOR, "log_prior_t": PRIOR}, rel=1e-6)
    assert build("ekd").figures() == method.figures()


def test_evidence_of_the_first_upload():
    s = step()
    terms = build("ekd", ekd_evidence="log_softplus", ekd_warmup=0)(s)
    expected = second_order(s.student.logits, s.teacher.logits, PRIOR, PRIOR, "log_softplus")
    assert terms["second"].item() == pytest.approx(expected.item(), rel=1e-6)


FLAGS = ("--model_s", "resnet8", "--dataset", "shapes100", "--epochs", 2, "--warmup_epochs", 0, "--quiet")


@pytest.fixture
def distil(call, teacher, tmp_path, small_data):
    def run(*arguments):
        return call("train_student", *FLAGS, "--path_t", teacher, "--save_folder", tmp_path / "save", *arguments)

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("--distill", "ekd", "-b", 2, "--ekd_warmup", 1),
        ("--distill", "kd", "--ekd", "--curriculum_T", "--ekd_weight", 1),
        ("--distill", "dkd", "--ekd", "--sort", "--logit_stand"),
        ("--distill", "mlkd", "--ekd", "--ekd_learn_prior", "--logit_stand"),
    ],
    ids=lambda arguments: "-".join(str(word).strip("-") for word in arguments),
)
def test_trains(distil, tmp_path, arguments):
    result = distil(*arguments)
    assert result.code == 0, result.err
    (folder,) = (tmp_path / "save" / "student_model").iterdir()
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["second"] > 0
    assert (row["log_prior_s"] != row["log_prior_t"]) == ("--ekd_learn_prior" in arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--distill", "ekd", "--ekd_weight", 2),
            "--ekd_weight has no effect in --distill ekd, where -b weighs second",
        ),
        (("--distill", "kd", "--ekd_prior", 2), "--ekd_prior is a flag of --ekd"),
        (("--distill", "kd", "--ekd", "--ekd_prior", 200), "--ekd_prior 200.0"),
        (("--distill", "kd", "--ekd", "--ekd_warmup", -1), "--ekd_warmup"),
    ],
)
def test_refused(distil, tmp_path, assert_one_line_error, arguments, words):
    assert_one_line_error(distil(*arguments), words, save_folder=tmp_path / "save")
