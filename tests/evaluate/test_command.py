"""evaluate.py as a command: what it measures, writes and prints, and how it refuses bad input."""

import json
import math
import shutil

import pytest
import torch
from PIL import Image

import evaluate
import helper.checkpoint
from dataset import get_dataset
from helper import corruptions, cost
from helper.checkpoint import load_network
from helper.precision import Precision
from helper.teacher import evaluate as evaluate_network
from models import model_dict

CPU = torch.device("cpu")
SHAPES = ("--dataset", "shapes100", "--device", "cpu", "--precision", "fp32")
FIRST = ("accuracy", "ood", "corruptions", "cost")  # of a checkpoint that comes alone


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """Few repeats of what is timed, and two of the corruptions at two severities."""
    monkeypatch.setattr(corruptions, "SEVERITIES", 2)
    monkeypatch.setattr(corruptions, "KINDS", {name: corruptions.KINDS[name] for name in ("impulse_noise", "jpeg")})
    for name, value in {"LATENCY_REPEATS": 1, "THROUGHPUT_REPEATS": 1, "WARM_UP": 0, "THROUGHPUT_BATCH": 8}.items():
        monkeypatch.setattr(cost, name, value)


@pytest.fixture
def checkpoint(teacher, tmp_path):
    """A checkpoint of a resnet8 in a folder of its own, whose name tells the network."""
    path = tmp_path / "resnet8_here" / "ckpt.pth"
    path.parent.mkdir()
    shutil.copy(teacher, path)
    return path


@pytest.fixture
def run(call, checkpoint):
    """Runs evaluate.py on the checkpoint; flags given later win."""

    def evaluate_it(*arguments):
        return call("evaluate", "--path", checkpoint, *SHAPES, *arguments)

    return evaluate_it


@pytest.fixture
def measured(run, tmp_path):
    """Runs evaluate.py and returns its figures."""

    def figures(*arguments):
        result = run("--quiet", "--out", tmp_path / "out.json", *arguments)
        assert result.code == 0, result.err
        assert result.out == ""
        return json.loads((tmp_path / "out.json").read_text(), parse_constant=lambda name: pytest.fail(name))

    return figures


@pytest.fixture
def photos(tmp_path):
    """A folder with train/CLASS/ and val/CLASS/, one image each."""
    for split in ("train", "val"):
        for name, colour in (("dark", 20), ("light", 220)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (20, 10), (colour, 90, 90)).save(folder / "x.png")
    return tmp_path / "photos"


def test_all_parts(measured, make_teacher, checkpoint, photos):
    other = make_teacher(seed=1)
    flags = ("--path_t", other, "--log_prior", 0.5, "--ood", photos, "--probe", photos, "--probe_epochs", 2)
    found = measured(*flags)
    assert [part for part in evaluate.PARTS if part in found] == list(evaluate.PARTS)
    assert [found[fact] for fact in ("model", "model_t", "dataset", "images")] == [
        *("resnet8", "resnet8", "shapes100"),
        100,
    ]
    test = get_dataset("shapes100", "", 1, CPU).test
    plain = Precision(CPU, torch.float32, plain=True)
    for path, top1 in ((checkpoint, found["accuracy"]["top1"]), (other, found["fidelity"]["teacher_top1"])):
        known = evaluate_network(load_network("resnet8", path), test, plain)
        assert top1 == pytest.approx(known["test_acc"])
        if path == checkpoint:
            assert found["accuracy"]["top5"] == pytest.approx(known["test_acc_top5"])
            assert found["accuracy"]["nll"] == pytest.approx(known["test_loss"], rel=1e-5)
    assert sum(found["accuracy"]["reliability"]["count"]) == 100
    assert len(found["accuracy"]["per_class"]) == 100
    assert found["fidelity"]["kl"] > 0
    assert found["uncertainty"]["log_prior"] == 0.5
    assert 0 < found["uncertainty"]["right"] <= 1
    sets = found["ood"]["sets"]
    assert [(outside["name"], outside["count"]) for outside in sets] == [("drawn patterns", 102), (str(photos), 4)]
    for outside in sets:
        scores = outside["scores"]
        assert list(scores) == ["max_softmax", "energy", "vacuity", "mutual_information", "expected_entropy"]
        assert scores["vacuity"] == pytest.approx(scores["energy"])
        assert scores["expected_entropy"] != pytest.approx(scores["energy"])
    rows = list(found["corruptions"]["top1"].values())
    assert [len(row) for row in rows] == [2, 2]
    assert found["corruptions"]["mean"] == pytest.approx(sum(map(sum, rows)) / 4)
    assert found["cost"]["params"] == sum(p.numel() for p in model_dict["resnet8"]().parameters())
    assert (found["probe"]["classes"], found["probe"]["epochs"]) == (2, 2)


def test_training_images_are_run_unaugmented(measured, checkpoint):
    found = measured("--split", "train", "--parts", "accuracy")
    train = get_dataset("shapes100", "", 64, CPU).train.plain()
    known = evaluate_network(load_network("resnet8", checkpoint), train, Precision(CPU, torch.float32, plain=True))
    assert (found["split"], found["images"]) == ("train", train.samples)
    assert found["accuracy"]["top1"] == pytest.approx(known["test_acc"])
    alone = train.batch(torch.tensor([5]), torch.tensor([80])).images
    assert train.normalise(train.pixels()[5:6]).equal(alone)  # the centre of the padded image


def test_only_what_is_asked_for_or_possible(measured, checkpoint):
    found = measured()
    assert [part for part in evaluate.PARTS if part in found] == list(FIRST)
    (drawn,) = found["ood"]["sets"]
    assert set(drawn["scores"]) == {"max_softmax", "energy"}
    found = measured("--parts", "cost, accuracy")
    assert [part for part in evaluate.PARTS if part in found] == ["accuracy", "cost"]
    found = measured("--parts", "fidelity", "--path_t", checkpoint)
    assert [part for part in evaluate.PARTS if part in found] == ["fidelity"]
    assert found["fidelity"]["agreement"] == 100
    assert found["fidelity"]["kl"] == pytest.approx(0, abs=1e-9)


def test_the_seed_decides(measured):
    first, second, other = (measured("--parts", "ood,corruptions", "--seed", seed) for seed in (0, 0, 1))
    assert first == second
    assert all(first[part] != other[part] for part in ("ood", "corruptions"))


def test_lines_on_the_terminal_and_file_beside_the_checkpoint(run, checkpoint):
    result = run("--log_prior", "1", "--path_t", checkpoint)
    assert result.code == 0, result.err
    assert result.err == ""
    assert json.loads((checkpoint.parent / "evaluation.json").read_text())["path"] == str(checkpoint)
    lines = result.out.splitlines()
    assert lines[0] == "resnet8 on shapes100: 100 test images, cpu, fp32"
    assert [line for line in lines if line in evaluate.PARTS] == [p for p in evaluate.PARTS if p != "probe"]
    assert lines[-1] == f"all figures in {checkpoint.parent / 'evaluation.json'}"
    for words in ("top-1", "KL(teacher ‖ student)", "vacuity", "positive class", "mean over all", "counts 2", "fp32"):
        assert words in result.out


def test_network_data_set_and_prior_of_a_run(call, teacher, tmp_path):
    """A student's run: its folder's name begins with another network, its options tell everything."""
    folder = tmp_path / "resnet20_to_resnet8"
    folder.mkdir()
    path = shutil.copy(teacher, folder / "resnet8_last.pth")
    options = {"model_s": "resnet8", "model_t": "resnet20", "dataset": "shapes100"}
    (folder / "options.json").write_text(json.dumps(options))
    (folder / "summary.json").write_text(json.dumps({"log_prior_s": -1.5, "log_prior_t": 0.5}))
    result = call("evaluate", "--path", path, "--parts", "uncertainty", "--device", "cpu")
    assert result.code == 0, result.err
    found = json.loads((folder / "evaluation.json").read_text())
    assert (found["model"], found["dataset"], found["uncertainty"]["log_prior"]) == ("resnet8", "shapes100", -1.5)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({}, None),
        ({"log_prior": 0.3}, 0.3),
        ({"log_prior_s": 0.2, "log_prior_t": 0.4}, 0.2),
        ({"log_prior": "1"}, None),
        ({"log_prior": None}, None),
    ],
)
def test_prior_that_a_run_tells(summary, expected):
    assert evaluate.known_log_prior(summary) == expected


def test_network_that_is_always_wrong_has_no_auroc():
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    parts = (None, None, None, None, logits, torch.tensor([1, 1]), 0)
    found = evaluate.evidence(evaluate.Subject(*parts, log_prior=0.0))
    assert found["right"] is None
    assert found["auroc"] is None
    assert found["wrong"] == pytest.approx((2 / (3 + math.e) + 2 / (3 + math.e**2)) / 2)
    assert "right answers -, wrong answers 0." in evaluate.show_evidence(found)[0]


# Bad input


@pytest.fixture
def refuse(run, tmp_path, files_below, assert_one_line_error):
    """Runs evaluate.py and checks that it refuses its input and writes nothing; returns the error's text."""

    def check(*arguments, words=()):
        before = files_below(tmp_path)
        text = assert_one_line_error(run(*arguments), *words)
        assert files_below(tmp_path) == before
        return text

    return check


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--path", "absent.pth"), ("absent.pth", "does not exist")),
        (("--path", "x" * 300), ("does not exist",)),
        (("--model", "resnet9"), ("resnet9", "--model", "resnet8")),
        (("--dataset", "cifar1000"), ("cifar1000", "cifar100")),
        (("--dataset", "cifar100", "--data_folder", "nowhere"), ("CIFAR-100", "--data_folder")),
        (("--parts", "acuracy"), ("acuracy", "accuracy")),
        (("--parts", ","), ("--parts", "accuracy")),
        (("--parts", "fidelity"), ("fidelity", "--path_t")),
        (("--parts", "uncertainty"), ("uncertainty", "--log_prior")),
        (("--parts", "probe"), ("probe", "--probe")),
        (("--parts", "accuracy", "--ood", "cifar100"), ("--ood", "no effect")),
        (("--parts", "accuracy", "--log_prior", "1"), ("--log_prior", "no effect")),
        (("--parts", "accuracy", "--seed", "1"), ("--seed", "no effect")),
        (("--probe_epochs", "3"), ("--probe_epochs", "no effect")),
        (("--model_t", "resnet8"), ("--model_t", "--path_t")),
        (("--log_prior", "21"), ("--log_prior", "20")),
        (("--log_prior", "nan"), ("--log_prior", "20")),
        (("--log_prior", "x"), ("--log_prior", "x")),
        (("--seed", "-1"), ("--seed",)),
        (("--probe", "shapes100", "--probe_epochs", "0"), ("--probe_epochs",)),
        (("--probe", "shapes100", "--probe_lr", "0"), ("--probe_lr",)),
        (("--probe", "shapes100", "--probe_lr", "nan"), ("--probe_lr",)),
        (("--probe", "nowhere"), ("--probe", "nowhere", "folder")),
        (("--probe", "."), ("train",)),
        (("--ood", "nowhere"), ("--ood", "nowhere", "folder")),
        (("--ood", "."), ("no readable image",)),
        (("--ood", "shapes100"), ("--ood", "shapes100")),
        (("--ood", "cifar100", "--data_folder", "nowhere"), ("CIFAR-100",)),
        (("--out", "."), ("--out", ".json")),
        (("--out", "figures.txt"), ("--out", ".json")),
        (("--out", "nowhere/figures.json"), ("nowhere/figures.json", "folder")),
        (("--device", "tpu"), ("--device", "tpu")),
        (("--colour",), ("--colour",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_bad_flags(refuse, flags, words):
    refuse(*flags, words=words)


def test_workers_that_have_no_files_to_read_are_noted(run):
    result = run("--parts", "accuracy", "--quiet", "--num_workers", 2)
    assert result.err == "note: --num_workers has no effect on data sets that are kept in memory\n"


def test_no_checkpoint_at_all(call, assert_one_line_error):
    assert_one_line_error(call("evaluate"), "--path")


def test_bad_checkpoints(refuse, checkpoint, tmp_path, monkeypatch):
    few = {name: model_dict[name] for name in ("resnet8", "resnet20")}  # comparing with all of them takes a while
    monkeypatch.setattr(helper.checkpoint, "model_dict", few)
    refuse("--path", checkpoint.parent, words=("is a folder", "ckpt.pth"))
    refuse("--model", "resnet20", words=("do not fit resnet20", "resnet8"))
    unnamed = tmp_path / "best" / "x.pth"
    unnamed.parent.mkdir()
    shutil.copy(checkpoint, unnamed)
    refuse("--path", unnamed, words=("'best'", "--model"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    refuse(words=("truncated",))


def test_damaged_weights(refuse, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["fc.bias"][3] = math.nan
    torch.save(content, checkpoint)
    refuse(words=("not finite",))


def test_other_class_counts(refuse, make_teacher):
    ten = make_teacher(classes=10)
    refuse("--path", ten, words=("10 classes", "100"))
    refuse("--path_t", ten, words=("10 classes", "100"))


def test_bad_teachers(refuse, checkpoint, tmp_path):
    refuse("--path_t", tmp_path / "absent.pth", words=("no teacher", "--path_t"))
    unnamed = tmp_path / "best" / "x.pth"
    unnamed.parent.mkdir()
    shutil.copy(checkpoint, unnamed)
    refuse("--path_t", unnamed, words=("'best'", "--model_t"))
    refuse("--path_t", unnamed, "--model_t", "resnet9", words=("resnet9", "--model_t"))


@pytest.mark.parametrize("name", ["options.json", "summary.json"])
@pytest.mark.parametrize("damage", ["", "{", "[]", "3"])
def test_damaged_run_folder(refuse, checkpoint, name, damage):
    (checkpoint.parent / name).write_text(damage)
    refuse(words=(name, "damaged"))


@pytest.mark.parametrize("name", [3, ["resnet8"], "resnet9"])
def test_unknown_network_in_the_run_folder(refuse, checkpoint, name):
    (checkpoint.parent / "options.json").write_text(json.dumps({"model_s": name}))
    refuse(words=(f"unknown model {name}", "--model"))


def test_existing_figures_survive_a_failure(refuse, run, checkpoint):
    (checkpoint.parent / "evaluation.json").write_text("{}")
    refuse("--ood", ".")
    assert run("--parts", "accuracy", "--quiet").code == 0
    assert "accuracy" in json.loads((checkpoint.parent / "evaluation.json").read_text())
