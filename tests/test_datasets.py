"""Data sets of image files and held-out images from the command line: training, distillation, resume, evaluation."""

import json
import re
import shutil

import pytest
import torch
from image_trees import make_folder, make_imagenet, make_tiny

import helper.setup
from dataset import imagenet, tiny_imagenet
from helper.errors import UserError
from helper.options import student_options, teacher_options

COMMON = ("--device", "cpu", "--precision", "fp32", "--num_workers", "1")


def only(folder, pattern="*"):
    (found,) = folder.glob(pattern)
    return found


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "insects", train=8)


@pytest.fixture
def flags(root, tmp_path):
    return ("--dataset", "folder", "--data_folder", root, "--save_folder", tmp_path / "save", *COMMON)


@pytest.mark.parametrize("budget", [(), ("--memory_budget", "0")], ids=["memory", "disk"])
def test_folder_is_trained_distilled_resumed_and_evaluated(call, flags, tmp_path, make_teacher, budget):
    trained = call("train_teacher", "--model", "resnet8", "--epochs", 1, *flags, *budget)
    assert trained.code == 0, trained.err
    place = "read from disk" if budget else "in memory"
    assert f"folder: 3 classes, 24 training, 6 test images of 16×16, {place}" in trained.out
    assert only(tmp_path / "save" / "models").name.startswith("resnet8_folder-insects_lr")

    path_t = only(tmp_path / "save" / "models", "*/resnet8_last.pth")
    student = ("--path_t", path_t, "--model_s", "resnet8", "--distill", "kd", *flags, *budget)
    whole = call("train_student", *student, "--epochs", 2, "--trial", 1)
    assert whole.code == 0, whole.err
    run = only(tmp_path / "save" / "student_model")
    options = json.loads((run / "options.json").read_text())
    assert options["image_size"] == [16, 16]
    assert len(options["mean"]) == len(options["std"]) == 3
    weights = torch.load(run / "resnet8_last.pth", weights_only=True)["model"]

    # the run that was cut off after its first epoch ends with the same weights
    resumed = call("train_student", *student, "--epochs", 2, "--trial", 1, "--resume")
    assert "is finished" in resumed.out
    state = tmp_path / "save" / "student_model"
    cut = stop_after_first_epoch(call, student, tmp_path / "cut")
    assert cut.code == 0, cut.err
    other = torch.load(only(tmp_path / "cut" / "student_model", "*/resnet8_last.pth"), weights_only=True)["model"]
    assert all(torch.equal(weights[key], other[key]) for key in weights)

    out = tmp_path / "figures.json"
    shown = call("evaluate", "--path", run / "resnet8_last.pth", *flags[2:4], *COMMON, *budget, "--out", out,
                 "--parts", "accuracy,corruptions,ood")  # fmt: skip
    assert shown.code == 0, shown.err
    assert json.loads(out.read_text())["accuracy"]["top1"] == pytest.approx(summary_of(only(state))["test_acc"])


def stop_after_first_epoch(call, student, save):
    """Train for two epochs in two calls."""
    from helper.run import Run

    ended = Run.end_epoch

    def end_and_stop(self, row, *rest):
        ended(self, row, *rest)
        raise UserError("stopped")

    words = (*student, "--epochs", 2, "--trial", 1, "--save_folder", save)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "end_epoch", end_and_stop)
        assert call("train_student", *words).code == 2
    return call("train_student", *words, "--resume")


@pytest.mark.parametrize("method", ["crd", "mlkd", "wkd_l"])
def test_methods_that_need_more_than_images_work_from_disk(call, flags, make_teacher, method):
    own = {"crd": ("--nce_k", 4), "wkd_l": ("--decay_epoch", 1, "--decay_end", 2)}.get(method, ())
    words = ("--path_t", make_teacher(classes=3), "--model_s", "resnet8", "--distill", method, *own)
    result = call("train_student", *words, *flags, "--epochs", 1, "--memory_budget", 0, "--quiet")
    assert result.code == 0, result.err


def test_tiny_imagenet_keeps_its_teachers_logits(call, tmp_path, make_teacher):
    make_tiny(tmp_path)
    words = ("--path_t", make_teacher(classes=3), "--model_s", "resnet8", "--distill", "kd", "--epochs", 1)
    data = ("--dataset", "tiny_imagenet", "--data_folder", tmp_path, "--save_folder", tmp_path / "save", *COMMON)
    cached = call("train_student", *words, *data, "--rotation", 0, "--teacher_cache", tmp_path / "cache")
    assert cached.code == 0, cached.err
    assert "12 training, 6 test images of 64×64, in memory" in cached.out
    assert (only(tmp_path / "cache") / "logits.f16").stat().st_size == 12 * 162 * 3 * 2
    for changed in (("--memory_budget", 0), ("--rand_augment", 9), ("--random_erasing", 0.5), ("--rotation", 20)):
        flags = (*data, "--rotation", 0, *changed, "--teacher_cache", tmp_path / "cache")
        refused = call("train_student", *words, *flags)
        assert refused.code == 2
        assert "--teacher_cache: images that are read from disk or changed by" in refused.err


def test_imagenet_is_trained(call, tmp_path):
    make_imagenet(tmp_path, flat=False)
    words = ("--dataset", "imagenet", "--data_folder", tmp_path, "--image_size", 72, "--epochs", 1)
    result = call("train_teacher", "--model", "resnet8", *words, "--save_folder", tmp_path / "save", *COMMON)
    assert result.code == 0, result.err
    assert re.search("batch_size +256\n", result.out)
    assert "9 training, 6 test images of 72×72, read from disk" in result.out


def test_teacher_accuracies_of_two_folders_are_not_mixed_up(call, flags, tmp_path, make_teacher):
    other = make_folder(tmp_path / "others", train=5, val=5)
    words = ("--path_t", make_teacher(classes=3), "--model_s", "resnet8", *flags, "--epochs", 1, "--quiet")
    assert call("train_student", *words).code == 0
    assert call("train_student", *words, "--data_folder", other).code == 0
    assert len(json.loads((tmp_path / "save" / "teacher_accuracy.json").read_text())) == 2


@pytest.mark.parametrize("script", ["train_teacher", "train_student"])
def test_a_last_batch_of_one_image(call, flags, tmp_path, make_teacher, script):
    """The maps of this network are one pixel at its end."""
    network = ("--model", "MobileNetV2")
    if script == "train_student":
        network = ("--path_t", make_teacher(classes=3), "--model_s", "MobileNetV2", "--distill", "mlkd")
    result = call(script, *network, *flags, "--epochs", 1, "--batch_size", 23)
    assert result.code == 0, result.err


# Held-out images


@pytest.mark.parametrize("script", ["train_teacher", "train_student"])
def test_val_split_leaves_the_test_set_for_the_end(call, flags, tmp_path, make_teacher, monkeypatch, script):
    seen, evaluate = [], helper.setup.evaluate
    monkeypatch.setattr(helper.setup, "evaluate", lambda *words: seen.append(words[1].samples) or evaluate(*words))
    words = (*flags, "--epochs", 2, "--val_split", 0.4)
    network = ("--model", "resnet8")
    if script == "train_student":
        network = ("--path_t", make_teacher(classes=3), "--model_s", "resnet8", "--distill", "kd")
    result = call(script, *network, *words)
    assert result.code == 0, result.err
    run = only(tmp_path / "save" / ("models" if script == "train_teacher" else "student_model"))
    assert "val_split-0.4" in run.name
    rows, summary = rows_of(run), summary_of(run)
    assert all({"val_acc", "val_acc_top5", "val_loss"} <= row.keys() for row in rows)
    assert not any("test_acc" in row or "test_loss" in row for row in rows)
    assert summary["best_val_acc"] == max(row["val_acc"] for row in rows)
    assert summary["val_acc"] == rows[-1]["val_acc"]
    assert {"test_acc", "test_acc_top5", "test_loss", "best_acc"} <= summary.keys()
    # teacher on 3 of 8 images of each class, then, at the end, last and best student and teacher on the test set
    assert seen == ([9, 6, 6, 6] if script == "train_student" else [6, 6])
    assert torch.load(run / "resnet8_best.pth", weights_only=True)["best_acc"] == summary["best_val_acc"]
    assert "val acc" in result.out
    assert ("teacher_acc" in summary and "teacher_val_acc" in summary) == (script == "train_student")


def test_the_best_epoch_is_tested_at_the_networks_own_size(call, flags, tmp_path, monkeypatch):
    found, evaluate = [], helper.setup.evaluate
    monkeypatch.setattr(helper.setup, "evaluate", lambda *words: found.append(evaluate(*words)) or found[-1])
    words = ("--model", "resnet8", "--size", 24, "--epochs", 1, "--val_split", 0.4)
    assert call("train_teacher", *words, *flags).code == 0
    best, out = only(tmp_path / "save" / "models", "*/resnet8_best.pth"), tmp_path / "figures.json"
    shown = call("evaluate", "--path", best, *flags[2:4], *COMMON, "--out", out, "--parts", "accuracy")
    assert shown.code == 0, shown.err
    assert found[-1]["test_loss"] == pytest.approx(json.loads(out.read_text())["accuracy"]["nll"], rel=1e-4)


# Command lines and errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--val_split", "0"), "--val_split 0.0 must be above 0"),
        (("--val_split", "0.6"), "at most 0.5"),
        (("--image_size", "64"), "--image_size has no effect on shapes100"),
        (("--skip_bad_images",), "--skip_bad_images has no effect on shapes100"),
        (("--memory_budget", "1"), "--memory_budget has no effect on shapes100"),
        (("--mean", "0.5,0.5"), "'0.5,0.5' is not three numbers"),
        (("--mean", "0.5,0.5,x"), "is not three numbers"),
        (("--mean", "0.5,0.5,128"), "must be between 0 and 1"),
        (("--std", "0.5,0,0.5"), "--std 0.5,0.0,0.5 must be between 0.001 and 1"),
        (("--std", "nan,1,1"), "must be between"),
        (("--num_workers", "-1"), "--num_workers -1 must be at least 0"),
    ],
)
def test_bad_values(call, tmp_path, words, expected, assert_one_line_error):
    result = call("train_teacher", "--model", "resnet8", "--dataset", "shapes100", "--save_folder", tmp_path, *words)
    assert_one_line_error(result, expected, save_folder=tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--image_size", "7"), "--image_size 7,7 must be at least 8"),
        (("--image_size", "1,2,3"), "more than height,width"),
        (("--image_size", "x"), "is not a side"),
        (("--memory_budget", "-1"), "--memory_budget -1.0 must be at least 0"),
        (("--memory_budget", "nan"), "must be at least 0"),
        (("--data_folder", "nowhere"), "nowhere does not exist; --data_folder must hold train/CLASS"),
    ],
)
def test_bad_values_of_a_folder(call, flags, tmp_path, words, expected, assert_one_line_error):
    result = call("train_teacher", "--model", "resnet8", *flags, *words)
    assert_one_line_error(result, expected, save_folder=tmp_path / "save")


def test_a_teacher_of_another_class_count_is_refused_before_images_are_read(
    call, flags, root, tmp_path, teacher, assert_one_line_error
):
    (root / "train" / "ant" / "000.png").write_bytes(b"")
    words = ("--path_t", teacher, "--model_s", "resnet8", *flags)
    assert_one_line_error(call("train_student", *words), "100 classes", "3", save_folder=tmp_path / "save")


def test_bad_images_are_refused_before_anything_is_written(
    call, flags, root, tmp_path, make_teacher, assert_one_line_error
):
    (root / "train" / "ant" / "003.png").write_bytes(b"")
    words = ("--path_t", make_teacher(classes=3), "--model_s", "resnet8", *flags, "--epochs", 1, "--quiet")
    expected = ("1 of 30 images cannot be used", "003.png is empty", "--skip_bad_images")
    assert_one_line_error(call("train_student", *words), *expected, save_folder=tmp_path / "save")
    assert not (root / "kd_dataset.json").exists()
    assert not (tmp_path / "save" / "datasets.json").exists()
    result = call("train_student", *words, "--skip_bad_images")
    assert result.code == 0, result.err
    assert "note: left out are 1 of 30 images" in result.err
    assert "skip_bad_images-on" in only(tmp_path / "save" / "student_model").name


def test_recipes_of_data_sets_can_be_overridden(tmp_path):
    make_tiny(tmp_path)
    make_imagenet(tmp_path / "imagenet")
    words = ["--data_folder", str(tmp_path), "--dataset"]
    for name, recipe in (("tiny_imagenet", tiny_imagenet.RECIPE), ("imagenet", imagenet.RECIPE)):
        opt = teacher_options([*words, name, "--model", "MobileNetV2"])
        assert {key: getattr(opt, key) for key in recipe} == recipe
        assert opt.differs == {}
        opt, _ = student_options([*words, name, "--epochs", "7", "--model_s", "resnet8"])
        assert opt.epochs == 7
        assert opt.differs == {"epochs": 7}
        assert opt.weight_decay == recipe["weight_decay"]


def test_what_changes_the_images_is_in_the_run_name(root):
    words = ["--dataset", "folder", "--data_folder", str(root), "--val_split", "0.1", "--mean", "0.5,0.5,0.5"]
    opt = teacher_options([*words, "--image_size", "24"])
    assert opt.differs == {"val_split": 0.1, "mean": (0.5, 0.5, 0.5), "image_size": (24, 24)}


def test_other_images_are_another_data_set(call, root, flags, tmp_path, assert_one_line_error):
    """The folders have one name, and the same number of images of the same classes."""
    other = make_folder(tmp_path / "other" / "insects", train=8)
    (other / "train" / "bee").rename(other / "train" / "zebra")
    (other / "val" / "bee").rename(other / "val" / "zebra")
    same_look = ("--image_size", 16, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")
    words = ("--model", "resnet8", *flags, *same_look, "--epochs", 1, "--quiet")
    assert call("train_teacher", *words).code == 0
    copy = tmp_path / "copy" / "insects"
    shutil.copytree(root, copy)
    assert call("train_teacher", *words, "--data_folder", copy, "--resume").code == 0
    options = only(tmp_path / "save" / "models") / "options.json"
    words = (*words, "--data_folder", other)
    assert_one_line_error(call("train_teacher", *words, "--resume"), "contents = 24 + 6 images", "are others now")
    before = json.loads(options.read_text())
    assert before["contents"].startswith("24 + 6 images, ")
    assert call("train_teacher", *words, "--trial", 2).code == 0
    report = call("report.py".removesuffix(".py"), "--save_folder", tmp_path / "save", "--dataset", "folder")
    assert report.code == 0, report.err
    assert len(re.findall(r"contents 24 \+ 6 images, \w{8}", report.out)) == 2
    # of a version that did not note it
    del before["contents"]
    options.write_text(json.dumps(before))
    assert call("train_teacher", *words, "--resume").code == 0
