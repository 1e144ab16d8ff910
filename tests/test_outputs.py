"""What a run leaves behind and prints: files, their keys, names, the help."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from distiller_zoo import registry
from helper.checkpoint import load_network
from helper.options import student_options
from models import model_dict

QUICK = ("--dataset", "shapes100", "--device", "cpu", "--precision", "fp32", "--epochs", "2", "--save_freq", "1")
FIGURES = {"epoch", "lr", "train_loss", "train_acc", "test_acc", "test_acc_top5", "test_loss"}
SPEED = {"seconds", "images_per_second"}
# in any file system: no separators, no blanks, nothing that a shell or Windows gives a meaning
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,230}[A-Za-z0-9_+=-]")


class Finished:
    """A finished run: the result of the command, its save folder and its run folder."""

    def __init__(self, result, save, kind):
        assert result.code == 0, result.err
        self.result, self.save = result, save
        (self.folder,) = (save / kind).iterdir()
        self.options = json.loads((self.folder / "options.json").read_text())
        self.summary = json.loads((self.folder / "summary.json").read_text())
        self.rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def checkpoint(self, name):
        return torch.load(self.folder / name, weights_only=True)


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def finished(call, teacher, kept, tmp_path_factory):
    """A finished run of a method, or of train_teacher.py; each is trained once for all tests."""

    def get(method):
        if method not in kept:
            save = tmp_path_factory.mktemp(f"save_{method}")
            if method == "teacher":
                result = call("train_teacher", "--model", "resnet8", *QUICK, "--save_folder", save)
            else:
                flags = ("--path_t", teacher, "--model_s", "resnet14", "--distill", method)
                result = call("train_student", *flags, *QUICK, "--save_folder", save)
            kept[method] = Finished(result, save, "models" if method == "teacher" else "student_model")
        return kept[method]

    return get


RUNS = {"kd": ("resnet14", {"cls", "div"}), "hint": ("resnet14", {"cls", "div", "kd"}), "teacher": ("resnet8", {"cls"})}


@pytest.mark.parametrize("run", RUNS)
def test_files_of_a_run(finished, run):
    model, _ = RUNS[run]
    names = {path.name for path in finished(run).folder.iterdir()}
    numbered = {"ckpt_epoch_1.pth", "ckpt_epoch_2.pth"}
    expected = {"options.json", "metrics.jsonl", "summary.json", "resume.pth", f"{model}_best.pth", f"{model}_last.pth"}
    assert names == expected | numbered
    assert {path.name for path in finished(run).save.iterdir()} <= {
        *("student_model", "student_tensorboards", "models", "tensorboard", "teacher_accuracy.json")
    }


@pytest.mark.parametrize("run", RUNS)
def test_metrics(finished, run):
    _, terms = RUNS[run]
    rows = finished(run).rows
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert set(row) == FIGURES | SPEED | terms
        assert all(math.isfinite(value) for value in row.values())
        assert 0 <= row["test_acc"] <= row["test_acc_top5"] <= 100
        assert 0 <= row["train_acc"] <= 100
        assert row["seconds"] > 0
        assert row["images_per_second"] > 0


@pytest.mark.parametrize("run", RUNS)
def test_train_loss_is_the_weighted_sum(finished, run):
    weights = {"kd": {"cls": 0.1, "div": 0.9}, "hint": {"cls": 1, "kd": 100}, "teacher": {"cls": 1}}[run]
    for row in finished(run).rows:
        assert row["train_loss"] == pytest.approx(sum(w * row[term] for term, w in weights.items()), rel=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_checkpoints(finished, run):
    model, _ = RUNS[run]
    done = finished(run)
    rows = {row["epoch"]: row for row in done.rows}
    best = done.checkpoint(f"{model}_best.pth")
    assert best.keys() == {"epoch", "model", "best_acc"}
    assert best["best_acc"] == max(row["test_acc"] for row in done.rows) == rows[best["epoch"]]["test_acc"]
    for name, epoch in {f"{model}_last.pth": 2, "ckpt_epoch_1.pth": 1, "ckpt_epoch_2.pth": 2}.items():
        content = done.checkpoint(name)
        assert content.keys() == {"epoch", "model", "accuracy"}
        assert content["epoch"] == epoch
        assert content["accuracy"] == rows[epoch]["test_acc"]
    expected = model_dict[model](num_classes=100).state_dict()
    for name in (f"{model}_best.pth", f"{model}_last.pth", "ckpt_epoch_1.pth", "ckpt_epoch_2.pth"):
        # the network alone: no adapters, no prefixes
        state = done.checkpoint(name)["model"]
        assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in expected.items()}
        assert load_network(model, done.folder / name, 100)
    last, numbered = (done.checkpoint(name)["model"] for name in (f"{model}_last.pth", "ckpt_epoch_2.pth"))
    assert all(torch.equal(last[key], numbered[key]) for key in last)


def test_adapters_are_trained_and_resumed_but_no_part_of_the_student(finished):
    state = finished("hint").checkpoint("resume.pth")["step"]
    adapters = {key for key in state if key.startswith("method.")}
    assert adapters
    assert finished("hint").summary["params"] == sum(p.numel() for p in model_dict["resnet14"]().parameters())


@pytest.mark.parametrize("run", RUNS)
def test_accuracy_of_a_checkpoint_is_what_it_says(finished, small_data, run):
    from dataset import get_dataset
    from helper.precision import Precision
    from helper.teacher import evaluate

    model, _ = RUNS[run]
    precision = Precision(torch.device("cpu"), torch.float32)
    data = get_dataset("shapes100", "", 64, precision.device)
    network = load_network(model, finished(run).folder / f"{model}_last.pth", 100)
    found = evaluate(network, data.test, precision)
    assert found["test_acc"] == pytest.approx(finished(run).rows[-1]["test_acc"])
    assert found["test_loss"] == pytest.approx(finished(run).rows[-1]["test_loss"], rel=1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_summary(finished, teacher, run):
    summary, rows = finished(run).summary, finished(run).rows
    common = {"test_acc", "best_acc", "params", "seconds", "images_per_second", "seed", "versions"}
    assert common <= summary.keys()
    assert ("teacher_acc" in summary) == (run != "teacher")
    assert summary["test_acc"] == rows[-1]["test_acc"]
    assert summary["best_acc"] == max(row["test_acc"] for row in rows)
    assert summary["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert summary["seed"] == (0 if run == "teacher" else 1)
    assert summary["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("run", RUNS)
def test_options(finished, teacher, run):
    options = finished(run).options
    assert options["epochs"] == 2
    assert options["dataset"] == "shapes100"
    assert options["learning_rate"] == 0.05
    if run != "teacher":
        assert options["distill"] == run
        assert options["path_t"] == str(teacher)
        assert options["model_t"] == "resnet8"


@pytest.mark.parametrize("run", RUNS)
def test_tensorboard_events(finished, run):
    pytest.importorskip("tensorboard_logger")
    done = finished(run)
    folder = done.save / ("tensorboard" if run == "teacher" else "student_tensorboards") / done.folder.name
    (events,) = folder.glob("*tfevents*")
    content = events.read_bytes()
    assert all(name in content for name in (b"test_acc", b"train_loss", b"lr", b"cls"))


@pytest.mark.parametrize("run", RUNS)
def test_configuration_is_printed_first(finished, run):
    done = finished(run)
    lines = done.result.out.splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines[: len(done.options)])
    assert shown.keys() == done.options.keys()
    assert all(shown[key] == str(value) for key, value in done.options.items())
    assert any(line.startswith("epoch 2/2") for line in lines[len(done.options) :])
    assert str(done.folder) in done.result.out


def test_weights_are_printed(finished):
    assert "loss = 0.1·cls + 0.9·div" in finished("kd").result.out
    line = r"^teacher resnet8: test acc \d+\.\d\d, hardly better than guessing \(1\.00\): its "
    assert re.search(line, finished("kd").result.out, re.MULTILINE)


# Names


@pytest.mark.parametrize("run", RUNS)
def test_run_folder_has_a_safe_name(finished, run):
    name = finished(run).folder.name
    assert SAFE.fullmatch(name)
    parts = ("resnet8", "shapes100") if run == "teacher" else ("resnet14", "resnet8", "shapes100", run)
    assert all(part in name for part in parts)


@pytest.mark.parametrize(
    "trial", ["a b/c", "../../up", "..", ".", "ä|<>:\"*?\\'", "x" * 400, "-rf", "$HOME", "1\n2", ""]
)
def test_any_trial_gives_a_safe_name(teacher, trial):
    import train_student

    opt, method = student_options(["--path_t", str(teacher), f"--trial={trial}"])
    name = train_student.run_name(opt, method, "resnet8")
    assert SAFE.fullmatch(name)
    assert Path("save", name).name == name


def test_long_names_that_differ_at_the_end_stay_different(teacher):
    import train_student

    def name(trial):
        opt, method = student_options(["--path_t", str(teacher), "--trial", trial])
        return train_student.run_name(opt, method, "resnet8")

    assert name("x" * 400 + "1") != name("x" * 400 + "2")


def test_settings_that_change_the_result_change_the_name(teacher):
    import train_student

    changed = [
        *(("--trial", "2"), ("--epochs", "3"), ("--batch_size", "32"), ("--learning_rate", "0.1"), ("--subset", "5")),
        *(("--lr_decay_epochs", "1,2"), ("--lr_decay_rate", "0.5"), ("--weight_decay", "0.1"), ("--momentum", "0.5")),
        *(
            ("--warmup_epochs", "5"),
            ("--official_warmup", "--warmup_epochs", "6"),
            ("--seed", "7"),
            ("--precision", "bf16"),
        ),
        *(("--dataset", "shapes100"), ("--model_s", "vgg8"), ("--distill", "ldrld"), ("-r", "0.7"), ("-a", "0.7")),
        *(("--kd_T", "2"), ("--distill", "ldrld", "--k", "5"), ("--distill", "hint"), ("--distill", "crd")),
        *(("--distill", "crd", "--nce_k", "64"), ("--distill", "crd", "--mode", "relax")),
    ]
    names = {}
    for arguments in [(), *changed]:
        opt, method = student_options(["--path_t", str(teacher), *arguments])
        names[arguments] = train_student.run_name(opt, method, "resnet8")
    assert len(set(names.values())) == len(names)


# Help


@pytest.mark.parametrize("method", sorted(registry))
def test_help_lists_the_flags_of_the_method(call, method):
    result = call("train_student", "--distill", method, "--help")
    assert result.code == 0
    assert result.err == ""
    shown = set(re.findall(r"(?<![\w-])--\w+", result.out))
    own = {f"--{option.name}" for option in registry[method].options()}
    foreign = {f"--{option.name}" for other in registry.values() for option in other.options()} - own
    assert own <= shown
    assert not foreign & shown
    assert registry[method].paper.split(",")[0][:20] in " ".join(result.out.split())
    common = {"--path_t", "--model_t", "--model_s", "--kd_T", "--trial", "--epochs", "--resume", "--save_folder"}
    assert common <= shown
    for flag in registry[method].weights:
        assert re.search(rf"-{flag}\b.*weight of the term", result.out)


def test_help_of_train_teacher(call):
    result = call("train_teacher", "--help")
    assert result.code == 0
    assert {"--model", "--epochs", "--learning_rate", "--dataset"} <= set(re.findall(r"--\w+", result.out))
    assert "--distill" not in result.out


# A chain of runs


def test_student_becomes_a_teacher(finished, call, tmp_path, assert_one_line_error):
    path = finished("kd").folder / "resnet14_best.pth"
    flags = ("--path_t", path, "--model_s", "resnet8", *QUICK, "--epochs", "1", "--quiet", "--save_folder", tmp_path)
    assert call("train_student", *flags).code == 0  # by the options.json beside it
    (folder,) = (tmp_path / "student_model").iterdir()
    assert json.loads((folder / "options.json").read_text())["model_t"] == "resnet14"
    best = max(row["test_acc"] for row in finished("kd").rows)
    assert json.loads((folder / "summary.json").read_text())["teacher_acc"] == pytest.approx(best)
    assert SAFE.fullmatch(folder.name)
    copied = tmp_path / "elsewhere" / path.name
    copied.parent.mkdir()
    shutil.copy(path, copied)
    flags = ("--path_t", copied, *flags[2:-1], tmp_path / "other")
    assert_one_line_error(call("train_student", *flags), "--model_t", "elsewhere")
    assert call("train_student", *flags, "--model_t", "resnet14").code == 0


def test_trained_teacher_is_found_by_its_folder(finished, call, tmp_path):
    path = finished("teacher").folder / "ckpt_epoch_2.pth"
    flags = ("--path_t", path, "--model_s", "resnet8", *QUICK, "--epochs", "1", "--quiet", "--save_folder", tmp_path)
    assert call("train_student", *flags).code == 0
    (folder,) = (tmp_path / "student_model").iterdir()
    teacher_acc = json.loads((folder / "summary.json").read_text())["teacher_acc"]
    assert teacher_acc == pytest.approx(finished("teacher").summary["test_acc"])


def test_quiet_run_prints_nothing(finished, call, teacher, tmp_path):
    flags = ("--path_t", teacher, "--model_s", "resnet8", *QUICK, "--epochs", "1", "--save_folder", tmp_path)
    result = call("train_student", *flags, "--quiet")
    assert result.code == 0
    assert result.out == result.err == ""


def test_process_of_a_whole_run(launch, teacher, tmp_path):
    flags = ("--path_t", teacher, "--model_s", "resnet8", *QUICK, "--epochs", "1", "--save_folder", tmp_path)
    result = launch("train_student", *flags, small=True)
    assert result.code == 0, result.err
    assert result.err == ""
    assert result.out.splitlines()[-1].startswith("test acc ")
    (folder,) = (tmp_path / "student_model").iterdir()
    assert (folder / "summary.json").exists()
