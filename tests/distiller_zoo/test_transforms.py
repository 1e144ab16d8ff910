"""What is done to logits before a loss compares them: properties, and every combination on the command line."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distiller_zoo import (
    CurriculumTemperature,
    DistillKL,
    Shapes,
    registry,
    reversal_strength,
    sort_logits,
    standardise,
    transform_registry,
)
from distiller_zoo.__main__ import transform_table
from distiller_zoo.base import LogitPair, Output, Step
from helper.errors import UserError
from helper.options import student_options

COMBINATIONS = [c for n in range(1, len(transform_registry) + 1) for c in itertools.combinations(transform_registry, n)]


@st.composite
def logits(draw, rounded=True):
    batch, classes = draw(st.integers(1, 5)), draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    z = draw(st.sampled_from([0.1, 1.0, 30.0])) * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    if rounded and draw(st.booleans()):
        z = z.round()
    return z, torch.randint(classes, (batch,), generator=generator)


def literal_sort(row, label):
    """One row, by the words of the paper: the label takes the maximum, the others keep their order."""
    others = sorted((c for c in range(len(row)) if c != label), key=lambda c: -row[c])
    values = sorted(row, reverse=True)
    result = [0.0] * len(row)
    for c, value in zip([label, *others], values, strict=True):
        result[c] = value
    return result


@settings(deadline=None)
@given(logits())
def test_sort_is_the_paper_s(problem):
    z, target = problem
    assert sort_logits(z, target).tolist() == [
        literal_sort(r, y) for r, y in zip(z.tolist(), target.tolist(), strict=True)
    ]


@settings(deadline=None)
@given(logits())
def test_sort_keeps_the_values_puts_the_label_first_and_is_idempotent(problem):
    z, target = problem
    result = sort_logits(z, target)
    assert torch.equal(result.sort(dim=1).values, z.sort(dim=1).values)
    assert torch.equal(result.gather(1, target[:, None])[:, 0], z.amax(1))
    assert torch.equal(sort_logits(result, target), result)


@settings(deadline=None)
@given(logits(rounded=False))
def test_sort_leaves_a_teacher_that_is_right_alone(problem):
    z, _ = problem
    assert torch.equal(sort_logits(z, z.argmax(1)), z)


def test_sort_examples():
    z = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).repeat(3, 1)
    expected = torch.tensor([[4.0, 3.0, 1.0, 2.0], [1.0, 4.0, 2.0, 3.0], [1.0, 3.0, 4.0, 2.0]])
    assert torch.equal(sort_logits(z, torch.tensor([0, 1, 2])), expected)


@settings(deadline=None)
@given(logits(rounded=False), st.floats(0.1, 100), st.floats(-50, 50))
def test_standardising_forgets_scale_and_shift(problem, scale, shift):
    z, target = problem
    assume((z.std(dim=1) > 0.05).all())
    torch.testing.assert_close(standardise(scale * z + shift), standardise(z), rtol=1e-4, atol=1e-5)
    result = standardise(z)
    torch.testing.assert_close(result.mean(1), torch.zeros(len(z), dtype=z.dtype), rtol=0, atol=1e-9)
    torch.testing.assert_close(result.std(1), torch.ones(len(z), dtype=z.dtype), rtol=1e-5, atol=0)
    # both monotone per row, they commute
    torch.testing.assert_close(standardise(sort_logits(z, target)), sort_logits(result, target), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(logits(), st.floats(0.5, 20))
def test_no_kl_is_negative_and_equality_gives_zero(problem, T):
    z, target = problem
    other = sort_logits(z.flip(1), target)
    assert DistillKL(T)(standardise(z), standardise(other)).item() >= -1e-12
    assert DistillKL(T)(z, z.clone()).item() == pytest.approx(0, abs=1e-12)


def test_the_curriculum():
    values = [reversal_strength(epoch, 10) for epoch in range(1, 15)]
    assert values[0] == pytest.approx(-(1 - math.cos(math.pi / 10)) / 2)
    assert values[9:] == [-1.0] * 5
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "wsld", "ldrld"])
def test_the_temperature_s_gradient_is_reversed_and_scaled(name):
    """Against a finite difference of the loss in theta."""
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(6, 12, generator=generator, dtype=torch.float64) for _ in "st")
    target = torch.randint(12, (6,), generator=generator)
    method = registry[name].build(Shapes([], [], 12, 6)).double()
    module = CurriculumTemperature(Shapes([], [], 12, 6), decay_loops=4).double()

    def loss(theta, epoch=3):
        pair = torch.func.functional_call(module, {"theta": theta}, (LogitPair(s, t, target, 4.0, epoch),))
        return sum(method.logit_terms(pair).values())

    theta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(theta), theta)
    slope = (loss(theta.detach() + 1e-5) - loss(theta.detach() - 1e-5)) / 2e-5
    assert found.item() == pytest.approx(reversal_strength(3, 4) * slope.item(), rel=1e-5)
    assert found.item() * slope.item() < 0


PER_SAMPLE = ["kd", "dkd", "wsld", "ldrld", "ekd"]


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_temperature_for_each_sample_is_that_of_batches_of_one(name):
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(5, 12, generator=generator, dtype=torch.float64) for _ in "st")
    target = torch.randint(12, (5,), generator=generator)
    temperatures = 1 + 5 * torch.rand(5, 1, generator=generator, dtype=torch.float64)
    method = registry[name].build(Shapes([], [], 12, 5)).double()
    together = method.logit_terms(LogitPair(s, t, target, temperatures, 3))
    apart = [
        method.logit_terms(LogitPair(s[i : i + 1], t[i : i + 1], target[i : i + 1], temperatures[i].item(), 3))
        for i in range(5)
    ]
    for term, value in together.items():
        assert value.item() == pytest.approx(sum(one[term].item() for one in apart) / 5, rel=1e-10), term


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_the_network_of_temperatures_climbs(name):
    """It begins where the single temperature does, and a step of gradient descent raises the loss."""
    torch.manual_seed(0)
    s, t = (2 * torch.randn(8, 12, dtype=torch.float64) for _ in "st")
    shapes = Shapes([], [], 12, 8)
    method = registry[name].build(shapes).double()
    change = CurriculumTemperature(shapes, curriculum_scope="instance", decay_loops=0).double()
    student = s.clone().requires_grad_()

    def loss():
        pair = change(LogitPair(student, t, torch.arange(8), 4.0, 1))
        return sum(method.logit_terms(pair).values()), pair.temperature

    before, temperature = loss()
    expected = CurriculumTemperature(shapes).double()(LogitPair(s, t, torch.arange(8), 4.0, 1)).temperature
    torch.testing.assert_close(temperature, expected.detach().expand(8, 1))
    before.backward()
    with torch.no_grad():
        for parameter in change.parameters():
            parameter -= 1e-3 * parameter.grad
    after, temperature = loss()
    assert after > before
    assert len(set(temperature.flatten().tolist())) == 8
    # the student's own gradient is that of the loss, not reversed
    alone = s.clone().requires_grad_()
    pair = LogitPair(alone, t, torch.arange(8), temperature.detach(), 1)
    sum(method.logit_terms(pair).values()).backward()
    student.grad = None
    loss()[0].backward()
    torch.testing.assert_close(student.grad, alone.grad)


@pytest.mark.parametrize("name", ["dist", "mlkd"])
def test_methods_that_compare_samples_need_one_temperature(distil, tmp_path, assert_one_line_error, name):
    result = distil("--distill", name, "--curriculum_T", "--curriculum_scope", "instance")
    assert_one_line_error(result, "one temperature for all", save_folder=tmp_path / "save")


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "wsld", "ldrld", "hint", "mlkd", "ekd"])
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_every_subset_goes_with_every_logit_loss(name, combination):
    generator = torch.Generator().manual_seed(1)
    s, t, strong_s, strong_t = (torch.randn(8, 12, generator=generator) for _ in range(4))
    s.requires_grad_(True)
    shapes = Shapes([torch.Size((8, 4, 4, 4))] * 4, [torch.Size((8, 4, 4, 4))] * 4, 12, 8)
    step = Step(Output(s, strong_logits=strong_s), Output(t, strong_logits=strong_t), torch.arange(8), None, epoch=3)
    plain, changed = registry[name].build(shapes), registry[name].build(shapes)
    for flag in transform_registry:
        if flag in plain.implies:
            plain.add_transform(transform_registry[flag](shapes))
        if flag in (*combination, *plain.implies):
            changed.add_transform(transform_registry[flag](shapes))
    for method in (plain, changed):
        method.feature_terms = lambda step: {}
    before, terms = plain(step), changed(step)
    added = {term for change in changed.transforms for term in change.weighs}
    assert terms.keys() == {*before, *added}
    assert all(terms[key].shape == () and terms[key].isfinite() for key in terms)
    new = [flag for flag in combination if flag not in plain.implies]
    changes = any(terms[key].item() != pytest.approx(before[key].item(), rel=1e-4) for key in before)
    assert changes == bool(new)
    sum(terms[key] for key in before).backward()
    assert s.grad.isfinite().all()
    assert s.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in changed.transforms.parameters())


FLAGS = ("--model_s", "resnet8", "--dataset", "shapes100", "--epochs", 2, "--warmup_epochs", 0, "--quiet")


@pytest.fixture
def distil(call, teacher, tmp_path, small_data):
    def run(*arguments, save="save"):
        return call("train_student", *FLAGS, "--path_t", teacher, "--save_folder", tmp_path / save, *arguments)

    return run


def test_a_learned_temperature_is_logged_and_resumed(distil, tmp_path):
    assert distil("--distill", "kd", "--sort", "--curriculum_T", "--t_end", 10, "--decay_loops", 1).code == 0
    (folder,) = (tmp_path / "save" / "student_model").iterdir()
    temperatures = [json.loads(line)["temperature"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(set(temperatures)) == 2
    assert all(1 < T < 11 for T in temperatures)
    assert all(part in folder.name for part in ("_sort-on_", "_curriculum_T-on_", "_t_end-10.0_", "_decay_loops-1_"))
    assert "theta" in "".join(torch.load(folder / "resume.pth", weights_only=True)["step"])
    student = torch.load(folder / "resnet8_last.pth", weights_only=True)["model"]
    assert not any("theta" in key for key in student)


def test_the_papers_own_flags(distil, tmp_path):
    assert distil("--distill", "kd", "--logit-stand", "--base-temp", 2, "--kd-weight", 9, save="paper").code == 0
    assert distil("--distill", "kd", "--logit_stand", "--kd_T", 2, "-a", 9, save="ours").code == 0
    (paper,), (ours,) = ((tmp_path / name / "student_model").iterdir() for name in ("paper", "ours"))
    assert paper.name == ours.name
    assert paper.name.count("kd_T-2.0") == paper.name.count("logit_stand-on") == paper.name.count("a-9.0") == 1
    lines = [(folder / "metrics.jsonl").read_text() for folder in (paper, ours)]
    losses = [[json.loads(line)["train_loss"] for line in text.splitlines()] for text in lines]
    assert losses[0] == losses[1]


def test_the_flags_of_the_curriculum_s_own_code():
    theirs = "--have_mlp 1 --mlp_name instance --cosine_decay=0 --decay_max 0 --decay_min -1 --decay_loops 10"
    ours = "--curriculum_T --curriculum_scope instance --decay_kind linear"
    opt, expected = (student_options(f"-r 0.1 -a 0.9 -b 0 {words}".split())[0] for words in (theirs, ours))
    assert vars(opt) == vars(expected)
    assert not student_options(["--have_mlp", "0"])[0].transforms
    with pytest.raises(UserError, match="--cosine_decay takes 1 or 0, not 'yes'"):
        student_options(["--cosine_decay", "yes"])


def test_a_run_with_a_temperature_for_each_sample(distil, tmp_path):
    assert distil("--distill", "ldrld", "--curriculum_T", "--curriculum_scope", "instance").code == 0
    (folder,) = (tmp_path / "save" / "student_model").iterdir()
    assert "_curriculum_scope-instance_" in folder.name
    temperatures = [json.loads(line)["temperature"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(set(temperatures)) == 2


def test_a_weight_of_several_terms_is_a_factor(distil, tmp_path):
    assert distil("--distill", "dkd", "--logit-stand", "--kd-weight", 9).code == 0
    (folder,) = (tmp_path / "save" / "student_model").iterdir()
    options = json.loads((folder / "options.json").read_text())
    assert (options["r"], options["a"], options["b"]) == (1.0, 9.0, 72.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--distill", "hint", "--sort"), "--sort has no effect while -a is 0"),
        (("--t_end", 5), "--t_end is a flag of --curriculum_T, which is not given"),
        (("--curriculum_T", "--kd_T", 2), "--kd_T 2.0 has no effect with --curriculum_T"),
        (("--curriculum_T", "--t_start", 0), "--t_start"),
        (("--curriculum_T", "--decay_loops", -1), "--decay_loops"),
        (("--kd-weight", 9, "-a", 1), "--kd-weight and -a"),
        (("--kd-weight", -9), "kd_weight"),
    ],
)
def test_what_has_no_meaning_is_refused(distil, tmp_path, assert_one_line_error, arguments, words):
    assert_one_line_error(distil("--distill", "kd", *arguments), words, save_folder=tmp_path / "save")


@pytest.mark.parametrize("name", list(registry))
def test_flags_of_transforms_and_methods_do_not_collide(name):
    opt, method = student_options(["--distill", name])
    assert list(opt.transforms) == list(method.build.implies)
    assert method.name == name


@pytest.mark.parametrize("name", list(registry))
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_the_table_of_what_goes_with_what_is_what_the_command_line_takes(name, combination):
    (line,) = [line for line in transform_table().splitlines() if f"`{name}`" in line]
    cells = dict(zip(transform_registry, line.split(" | ")[1:], strict=False))
    arguments = ["--distill", name, *(f"--{flag}" for flag in combination)]
    if any(cells[flag].startswith("with") for flag in combination):
        with pytest.raises(UserError, match="has no effect while -a"):
            student_options(arguments)
        arguments += ["-a", "1"]
    implied = [flag for flag in transform_registry if cells[flag] == "always"]
    opt, _ = student_options(arguments)
    assert list(opt.transforms) == [flag for flag in transform_registry if flag in (*combination, *implied)]


def test_the_share_of_sorted_rows_is_counted():
    change = transform_registry["sort"](Shapes([], [], 3, 4))
    teacher = torch.tensor([[3.0, 1, 2], [3, 1, 2], [1, 1, 0], [0, 1, 2]])
    for target in ([0, 1, 1, 2], [0, 0, 0, 2]):
        pair = LogitPair(teacher, teacher, torch.tensor(target), 4.0)
        change(pair)
    assert change.figures() == {"sort_changed": 1 / 8}  # ties leave a row as it is
    assert change.figures() == {}
    change(pair)
    assert change.figures() == {"sort_changed": 0.0}
