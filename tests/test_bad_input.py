"""Bad input is one line on standard error that says what is wrong and what to do, exit code 2, and nothing written."""

import argparse
import dataclasses
import io
import os
import pickle
import re
import shutil
import signal
import struct
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import helper.checkpoint
from dataset import DataError, cifar100
from distiller_zoo import registry
from helper.checkpoint import load_checkpoint, load_network, weights_of
from helper.errors import Interrupted, UserError, run_command
from helper.run import Run
from models import model_dict

SHAPES = ("--dataset", "shapes100", "--model_s", "resnet8", "--device", "cpu", "--quiet")
SHORT = (*SHAPES, "--epochs", "1", "--precision", "fp32")


class Touch:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture
def save(tmp_path):
    return tmp_path / "save"


@pytest.fixture
def student(call, save, teacher):
    """Runs train_student.py on the small data set with the teacher; flags given later win."""

    def run(*arguments):
        return call("train_student", "--save_folder", save, "--path_t", teacher, *SHORT, *arguments)

    return run


@pytest.fixture
def refuse(student, save, assert_one_line_error):
    """Runs train_student.py and checks that it refuses its input; returns the error's text."""

    def run(*arguments, words=()):
        return assert_one_line_error(student(*arguments), *words, save_folder=save)

    return run


@pytest.fixture
def run_folder(student, save, tmp_path_factory):
    """The folder of a finished run; it is trained once for all tests."""
    kept = tmp_path_factory.getbasetemp() / "finished"
    if not kept.exists():
        result = student()
        assert result.code == 0, result.err
        shutil.copytree(save, kept)
    shutil.copytree(kept, save, dirs_exist_ok=True)
    (folder,) = (save / "student_model").iterdir()
    return folder


@pytest.fixture
def unfinished(run_folder):
    """The folder of a run that was stopped just before its end."""
    (run_folder / "summary.json").unlink()
    return run_folder


@pytest.fixture
def few_models(monkeypatch):
    """Fewer networks to compare a checkpoint with, which takes a while."""
    few = {name: model_dict[name] for name in ("resnet8", "resnet20", "vgg8")}
    monkeypatch.setattr(helper.checkpoint, "model_dict", few)


@pytest.fixture
def content(teacher):
    return torch.load(teacher, weights_only=True)


@pytest.fixture
def place(tmp_path):
    """A path for a checkpoint in a folder that tells an architecture."""

    def make(folder="resnet8_vanilla"):
        path = tmp_path / "teachers" / folder / "ckpt.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    return make


# The teacher's checkpoint: where it is


@pytest.mark.parametrize("folder", ["resnet8_vanilla", "elsewhere"])
def test_missing_teacher_names_three_ways(refuse, tmp_path, folder):
    path = tmp_path / folder / "ckpt.pth"
    refuse(
        "--path_t", path, words=(path, "scripts/fetch_pretrained_teachers.sh", "train_teacher.py --model", "--path_t")
    )


def test_missing_teacher_without_any_flag(call, save, assert_one_line_error):
    words = ("resnet32x4_vanilla/ckpt_epoch_240.pth", "fetch_pretrained_teachers.sh", "--model resnet32x4")
    assert_one_line_error(call("train_student", "--save_folder", save), *words, save_folder=save)


@pytest.mark.parametrize("flags", [(), ("--model_t", "resnet8")])
def test_teacher_is_a_folder(refuse, teacher, flags):
    refuse("--path_t", teacher.parent, *flags, words=(teacher.parent, "is a folder", teacher.name))


def test_empty_folder_as_teacher(refuse, tmp_path):
    refuse("--path_t", tmp_path, "--model_t", "resnet8", words=(tmp_path, "is a folder"))


def test_folder_that_tells_no_architecture(refuse, place, content):
    path = place("my_best_one")
    torch.save(content, path)
    refuse("--path_t", path, words=("my_best_one", "--model_t"))


def test_unknown_model_t(refuse):
    refuse("--model_t", "resnet9", words=("resnet9", "--model_t", "did you mean", "resnet8"))


def test_model_t_of_another_network(refuse, few_models):
    refuse("--model_t", "resnet20", words=("do not fit resnet20", "they fit resnet8"))


def test_teacher_name_too_long_for_a_file(refuse, tmp_path):
    refuse("--path_t", tmp_path / ("x" * 300), "--model_t", "resnet8")


def test_path_with_a_line_break(refuse, tmp_path):
    refuse("--path_t", f"{tmp_path}/resnet8_one\ntwo/ckpt.pth", words=("no teacher",))


# The teacher's checkpoint: what it holds


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_truncated_teacher(refuse, place, content, zipped, part):
    path = place()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    refuse("--path_t", path, words=(path, "truncated"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_every_truncation_and_damage_is_a_user_error(tmp_path, zipped):
    path = tmp_path / "x.pth"
    model = {"a.weight": torch.zeros(3, 2), "b": torch.ones(2, dtype=torch.int64)}
    torch.save({"epoch": 1, "model": model, "best_acc": 1.5}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 11 if zipped else 3)]
    rng = np.random.default_rng(0)
    for place, value in zip(rng.integers(0, len(whole), 300), rng.integers(0, 256, 300), strict=True):
        damaged.append(whole[:place] + bytes([value]) + whole[place + 1 :])
    failures = set()
    for data in damaged:
        path.write_bytes(data)
        try:
            weights_of(load_checkpoint(path), path)
        except UserError:
            continue
        except Exception as error:
            failures.add(type(error))
    assert not failures


TEXTS = {
    "note": b"# weights of my teacher\n",
    "web page": b"<!DOCTYPE html><html><body>Not Found</body></html>\n",
    "answer": b"Not Found",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n",
    "picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "code": b"import torch\n",
    "json": b'{"model": 1}\n',
    "zeros": bytes(100),
}


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS)
def test_file_that_is_no_checkpoint(refuse, place, data):
    path = place()
    path.write_bytes(data)
    text = refuse("--path_t", path, words=(path, "not a torch checkpoint"))
    assert "run code" not in text  # there is no code in it, and saving it again would not help


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(2),
        [1],
        None,
        {},
        {"model": torch.zeros(2)},
        {"model": {}},
        {"model": {"a": 1}},
        {"epoch": 1},
        {1: torch.zeros(2)},
        {"model": {1: torch.zeros(2)}},
    ],
    ids=repr,
)
def test_checkpoint_without_weights(refuse, place, content):
    path = place()
    torch.save(content, path)
    refuse("--path_t", path, words=(path,))


def test_teacher_of_another_architecture(refuse, place, content, few_models):
    path = place("resnet20_vanilla")
    torch.save(content, path)
    refuse("--path_t", path, words=(path, "do not fit resnet20", "they fit resnet8"))


def test_teacher_that_fits_nothing(refuse, place, content, few_models):
    path = place()
    del content["model"]["conv1.weight"]
    torch.save(content, path)
    refuse("--path_t", path, words=(path, "do not fit resnet8", "no network"))


def test_teacher_of_another_class_count(refuse, make_teacher):
    path = make_teacher(classes=10)
    refuse("--path_t", path, words=(path, "10 classes", "100"))


def _save_touch(kind, path, canary, content):
    evil = {**content, "opt": Touch(canary)}
    if kind in ("zip", "legacy"):
        torch.save(evil, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                data = pickle.dumps(Touch(canary), protocol=2)
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        path.write_bytes(pickle.dumps(evil, protocol=int(kind[-1])))


@pytest.mark.parametrize("kind", ["zip", "legacy", "tar", "pickle 0", "pickle 2", "pickle 4"])
def test_checkpoint_that_would_run_code(refuse, tmp_path, place, content, kind):
    path, canary = place(), tmp_path / "canary"
    _save_touch(kind, path, canary, {"model": {"a": 1}} if "pickle" in kind else content)
    text = refuse("--path_t", path, words=(path,))
    assert not canary.exists()
    if kind in ("zip", "legacy", "pickle 2"):
        assert "run code" in text


def test_resume_file_that_would_run_code(student, unfinished, tmp_path, assert_one_line_error):
    torch.save({"epoch": 1, "step": Touch(tmp_path / "canary")}, unfinished / "resume.pth")
    assert_one_line_error(student("--resume"), "resume.pth")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"", b"text", {"epoch": 1}, {"step": 1, "optimizer": 2}, "cut"], ids=repr)
def test_damaged_resume_file(student, unfinished, content, files_below, assert_one_line_error):
    if isinstance(content, dict):
        torch.save(content, unfinished / "resume.pth")
    else:
        whole = (unfinished / "resume.pth").read_bytes()
        (unfinished / "resume.pth").write_bytes(whole[:-1000] if content == "cut" else content)
    before = files_below(unfinished)
    assert_one_line_error(student("--resume"), "resume.pth")
    assert files_below(unfinished) == before


# Checkpoints of other repositories load


def test_checkpoint_with_a_namespace(student, place, content, save):
    path = place()
    options = argparse.Namespace(model="resnet8", lr_decay_epochs=[150, 180, 210], learning_rate=0.05, tb=None)
    torch.save({"opt": options, "accuracy": 70.1, **content}, path)
    assert student("--path_t", path).code == 0
    assert len(list((save / "student_model").iterdir())) == 1


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("bare", [True, False])
def test_forms_of_a_checkpoint(tmp_path, content, zipped, prefix, bare):
    state = {prefix + key: value for key, value in content["model"].items()}
    torch.save(state if bare else {"model": state}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    network = load_network("resnet8", tmp_path / "x.pth", 100)
    loaded = network.state_dict()
    assert loaded.keys() == content["model"].keys()
    assert all(torch.equal(loaded[key], value) for key, value in content["model"].items())


# Names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--distill", "ldrl"), ("unknown method ldrl", "did you mean ldrld")),
        (("--distill", "KD"), ("unknown method KD", "did you mean kd")),
        (("--distill", "zzzzz"), ("unknown method zzzzz", *registry)),
        (("--model_s", "resnet8x5"), ("unknown model resnet8x5", "did you mean", "resnet8x4")),
        (("--model_s", "RESNET20"), ("unknown model RESNET20", "resnet20")),
        (("--model_s", "zzzzz"), ("unknown model zzzzz", *model_dict)),
        (("--dataset", "cifar1000"), ("unknown data set cifar1000", "did you mean cifar100")),
        (("--dataset", "shape"), ("unknown data set shape", "shapes100")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_unknown_names_offer_the_nearest(refuse, arguments, words):
    refuse(*arguments, words=words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "resnet8x5"), ("unknown model resnet8x5", "resnet8x4")),
        (("--dataset", "cifar"), ("unknown data set cifar", "cifar10")),
        (("--epochs", "0"), ("--epochs 0", "at least 1")),
        (("--distill", "kd"), ("--distill",)),
        (("--trial",), ("--trial",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_train_teacher_refuses_alike(call, save, arguments, words, assert_one_line_error):
    result = call("train_teacher", "--save_folder", save, "--dataset", "shapes100", *arguments)
    assert_one_line_error(result, *words, save_folder=save)


# Numbers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--kd_T", "0"), ("--kd_T 0", "above 0")),
        (("--kd_T", "-4"), ("--kd_T -4", "above 0")),
        (("--kd_T", "nan"), ("--kd_T nan",)),
        (("--kd_T", "inf"), ("--kd_T inf",)),
        (("--distill", "ldrld", "--k", "1"), ("--k 1", "below 2")),
        (("--distill", "ldrld", "--k", "101"), ("--k 101", "100")),
        (("--distill", "ldrld", "--k", "few"), ("--k", "few")),
        (("--distill", "ldrld", "--form", "book"), ("--form", "book", "paper")),
        (("--distill", "ldrld", "--epsilon", "nan"), ("--epsilon nan",)),
        (("--distill", "ldrld", "--epsilon", "-0.5"), ("--epsilon -0.5", "negative")),
        (("--distill", "ldrld", "--delta", "nan"), ("--delta nan",)),
        (("--distill", "ldrld", "--decay", "inf"), ("--decay inf",)),
        (("--distill", "hint", "--hint_layer", "0"), ("--hint_layer 0", "1 to 3")),
        (("--distill", "hint", "--hint_layer", "4"), ("--hint_layer 4", "1 to 3")),
        (("--distill", "crd", "--nce_k", "0"), ("--nce_k 0",)),
        (("--distill", "crd", "--feat_dim", "0"), ("--feat_dim 0",)),
        (("--distill", "crd", "--nce_t", "0"), ("--nce_t 0",)),
        (("--distill", "crd", "--nce_t", "nan"), ("--nce_t nan",)),
        (("--distill", "crd", "--nce_m", "nan"), ("--nce_m nan",)),
        (("--distill", "crd", "--mode", "some"), ("--mode", "some", "relax")),
        (("--epochs", "0"), ("--epochs 0", "at least 1")),
        (("--epochs", "-1"), ("--epochs -1",)),
        (("--epochs", "2.5"), ("--epochs", "2.5")),
        (("--lr_decay_epochs", "5,3"), ("--lr_decay_epochs 5,3", "increasing")),
        (("--lr_decay_epochs", "3,3"), ("--lr_decay_epochs 3,3", "increasing")),
        (("--lr_decay_epochs", "0,3"), ("--lr_decay_epochs 0,3", "positive")),
        (("--lr_decay_epochs", "-3,3"), ("--lr_decay_epochs",)),
        (("--lr_decay_rate", "0"), ("--lr_decay_rate 0",)),
        (("--lr_decay_rate", "2"), ("--lr_decay_rate 2",)),
        (("--batch_size", "0"), ("--batch_size 0", "at least 1")),
        (("--learning_rate", "0"), ("--learning_rate 0", "above 0")),
        (("--learning_rate", "-0.1"), ("--learning_rate -0.1", "above 0")),
        (("--learning_rate", "nan"), ("--learning_rate nan",)),
        (("--learning_rate", "fast"), ("--learning_rate", "fast")),
        (("--weight_decay", "-1"), ("--weight_decay -1",)),
        (("--momentum", "1.1"), ("--momentum 1.1",)),
        (("--warmup_epochs", "-1"), ("--warmup_epochs -1",)),
        (("--subset", "0"), ("--subset 0", "at least 1")),
        (("--save_freq", "0"), ("--save_freq 0",)),
        (("--print_freq", "0"), ("--print_freq 0",)),
        (("--tb_freq", "0"), ("--tb_freq 0",)),
        (("--seed", "-1"), ("--seed -1",)),
        (("--seed", str(2**64)), ("--seed",)),
        (("--precision", "fp8"), ("--precision", "fp8", "bf16")),
        (("--device", "abacus"), ("--device abacus", "cpu")),
        (("--device", "cuda:99"), ("--device cuda:99", "cpu")),
        (("--device", "meta"), ("--device meta", "cpu")),
        (("-r", "0", "-a", "0"), ("all weights are 0",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_numbers_out_of_range(refuse, arguments, words):
    refuse(*arguments, words=words)


def test_trial_too_long_for_a_seed_is_a_name(student, save):
    result = student("--trial", str(2**64))
    assert result.code == 0, result.err
    assert next(save.glob("student_model/*")).name.endswith(f"_{2**64}")


@pytest.mark.parametrize("value", ["a,b", "5;8", "1.5"])
def test_decay_epochs_that_are_no_numbers(refuse, value):
    text = refuse("--lr_decay_epochs", value, words=("--lr_decay_epochs", value))
    assert "_decay_epochs value" not in text.replace("--lr_decay_epochs", "")  # that is a function's name


@pytest.mark.parametrize("flag", ["-r", "-a", "-b"])
@pytest.mark.parametrize("value", ["-1", "-0.5", "nan", "inf"])
def test_weights_that_are_none(refuse, flag, value):
    text = refuse("--distill", "ldrld", flag, value)
    assert re.search(rf"(?<!-){flag}\b.* {value}", text), text  # `--r` is no flag


# Flags without effect


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--distill", "kd", "--hint_layer", "3"), ("--hint_layer", "kd", "hint")),
        (("--distill=kd", "--hint_layer=3"), ("--hint_layer", "kd", "hint")),
        (("--hint_layer", "3"), ("--hint_layer", "kd", "hint")),
        (("--distill", "kd", "--nce_k", "5"), ("--nce_k", "kd", "crd")),
        (("--distill", "hint", "--k", "5"), ("--k ", "hint", "ldrld")),
        (("-b", "0.5"), ("-b 0.5", "nothing to weigh", "-a weighs div")),
        (("--distill", "hint", "--kd_T", "2"), ("--kd_T 2", "-a")),
        (("--no_such_flag", "3"), ("--no_such_flag", "--help")),
        (("--epoch", "3"), ("--epoch", "--help")),
        (("stray",), ("stray",)),
        (("--distill",), ("--distill",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_flags_that_would_have_no_effect(refuse, arguments, words):
    refuse(*arguments, words=words)


def test_weight_of_zero_for_nothing_is_let_through(student):
    assert student("-b", "0").code == 0


# CIFAR-100


def test_cifar_absent(call, teacher, save, tmp_path, assert_one_line_error):
    words = (tmp_path / "data", "cifar-100-python.tar.gz", "--dataset shapes100", "--data_folder")
    flags = ("--save_folder", save, "--path_t", teacher, "--model_s", "resnet8", "--data_folder", tmp_path / "data")
    assert_one_line_error(call("train_student", *flags), *words, save_folder=save)


def test_cifar_absent_and_torchvision_too(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz"):
        cifar100.load(tmp_path)


class Fetched:
    """Stands for torchvision's class: puts the files of a folder in place one after the other, slowly.

    Args:
        source: the folder.
        stop: end as a process that is killed, before the last file is whole.
    """

    def __init__(self, source, stop=False):
        self.source, self.stop, self.calls = source, stop, 0

    def __call__(self, root, download):
        self.calls += 1
        made = Path(root) / self.source.name
        made.mkdir()
        for name in ("meta", "test", "train"):
            content = (self.source / name).read_bytes()
            (made / name).write_bytes(content[: len(content) // 2])
            time.sleep(0.05)
            if self.stop and name == "train":
                shutil.copytree(root, made.parent.parent / "copy")
                raise Interrupted(signal.SIGTERM)
            (made / name).write_bytes(content)


@pytest.fixture
def fetched(tmp_path, cifar, monkeypatch):
    """`Fetched`, in torchvision's place."""
    cifar()
    (tmp_path / cifar100.LAYOUT.folder / "meta").write_bytes(b"meta")
    fetched = Fetched(tmp_path / cifar100.LAYOUT.folder)
    monkeypatch.setattr("torchvision.datasets.CIFAR100", fetched)
    return fetched


def test_what_is_downloaded_is_found_whole_or_not_at_all(tmp_path, fetched):
    pytest.importorskip("fcntl")
    root, copy = tmp_path / "data", tmp_path / "data" / "copy"
    fetched.stop = True
    with pytest.raises(Interrupted):
        cifar100.load(root)
    assert [path.name for path in root.iterdir()] == ["copy"]
    copy.rename(root / f".{cifar100.LAYOUT.folder}.x.tmp")  # as it is left by a process that is killed
    fetched.stop = False
    train, _, _ = cifar100.load(root)
    assert train.images.shape == (200, 32, 32, 3)
    assert [path.name for path in root.iterdir()] == [cifar100.LAYOUT.folder]
    assert sorted(path.name for path in (root / cifar100.LAYOUT.folder).iterdir()) == ["meta", "test", "train"]


def test_of_runs_that_begin_at_once_one_downloads(tmp_path, fetched):
    pytest.importorskip("fcntl")
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(cifar100.load, [tmp_path / "data"] * 3))
    assert all(train.images.shape == (200, 32, 32, 3) for train, _, _ in loaded)
    assert fetched.calls == 1


def test_an_archive_that_is_there_is_not_downloaded(tmp_path, fetched, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / cifar100.LAYOUT.archive).write_bytes(b"archive")
    seen = []

    def fetch(root, download):
        seen.append((Path(root) / cifar100.LAYOUT.archive).read_bytes())
        fetched(root, download)

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fetch)
    cifar100.load(tmp_path / "data")
    assert seen == [b"archive"] == [(tmp_path / "data" / cifar100.LAYOUT.archive).read_bytes()]


def test_truncated_cifar_stops_a_run(call, teacher, save, tmp_path, cifar, assert_one_line_error):
    whole = cifar()
    (tmp_path / cifar100.LAYOUT.folder / "train").write_bytes(whole[: len(whole) // 2])
    flags = ("--save_folder", save, "--path_t", teacher, "--model_s", "resnet8", "--data_folder", tmp_path)
    words = (tmp_path / cifar100.LAYOUT.folder / "train", "truncated", "again")
    assert_one_line_error(call("train_student", *flags), *words, save_folder=save)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Writes a small `cifar-100-python` below tmp_path with some entries replaced; returns the train file's bytes."""
    counts = {"train": 200, "test": 100}
    monkeypatch.setattr(cifar100, "LAYOUT", dataclasses.replace(cifar100.LAYOUT, images=counts))
    folder = tmp_path / cifar100.LAYOUT.folder
    folder.mkdir()

    def write(**replaced):
        for split, count in counts.items():
            content = {
                "data": np.zeros((count, 3072), np.uint8),
                "fine_labels": [i % 100 for i in range(count)],
                "coarse_labels": [0] * count,
            }
            with open(folder / split, "wb") as file:
                pickle.dump({**content, **(replaced if split == "train" else {})}, file)
        return (folder / "train").read_bytes()

    return write


def test_a_good_cifar_folder_is_read(cifar, tmp_path):
    cifar()
    train, test, notes = cifar100.load(tmp_path)
    assert train.images.shape == (200, 32, 32, 3)
    assert test.labels.shape == (100,)
    assert len(notes) == 2
    assert all("MD5" in note for note in notes)


@pytest.mark.parametrize(
    ("replaced", "word"),
    [
        ({"data": np.zeros((199, 3072), np.uint8)}, "3072"),
        ({"data": np.zeros((200, 3071), np.uint8)}, "3072"),
        ({"data": np.zeros((200, 3, 32, 32), np.uint8)}, "3072"),
        ({"data": np.zeros((200, 3072), np.float32)}, "uint8"),
        ({"data": [[0] * 3072] * 200}, "data"),
        ({"data": None}, "data"),
        ({"fine_labels": None}, "fine_labels"),
        ({"fine_labels": "abc"}, "fine_labels"),
        ({"fine_labels": [0] * 199}, "fine_labels"),
        ({"fine_labels": [[0]] * 200}, "fine_labels"),
        ({"fine_labels": [[0]] * 100 + [[0, 1]] * 100}, "fine_labels"),
        ({"fine_labels": [0.5] * 200}, "fine_labels"),
        ({"fine_labels": [i % 100 for i in range(199)] + [100]}, "fine_labels"),
        ({"fine_labels": [i % 100 for i in range(199)] + [-1]}, "fine_labels"),
        ({"fine_labels": [0] * 200}, "2 images of each class"),
        ({"fine_labels": [i % 100 for i in range(199)] + [0]}, "2 images of each class"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_malformed_cifar(cifar, tmp_path, replaced, word):
    cifar(**replaced)
    with pytest.raises(DataError, match=word) as caught:
        cifar100.load(tmp_path)
    assert str(tmp_path / cifar100.LAYOUT.folder / "train") in str(caught.value)
    assert "again" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"text\n", b"\x80", pickle.dumps([1]), pickle.dumps({}), pickle.dumps({1: 2})], ids=repr
)
def test_cifar_file_that_is_something_else(cifar, tmp_path, data):
    cifar()
    (tmp_path / cifar100.LAYOUT.folder / "train").write_bytes(data)
    with pytest.raises(DataError, match="train"):
        cifar100.load(tmp_path)


def test_every_truncation_of_cifar_is_a_data_error(cifar, tmp_path):
    whole = cifar()
    rng = np.random.default_rng(0)
    for length in [*range(0, 200), *rng.integers(200, len(whole) - 1, 50)]:
        (tmp_path / cifar100.LAYOUT.folder / "train").write_bytes(whole[:length])
        with pytest.raises(DataError):
            cifar100.LAYOUT.read_split(tmp_path / cifar100.LAYOUT.folder, "train")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar_pickle_that_would_run_code(cifar, tmp_path, protocol):
    cifar()
    data = pickle.dumps({"data": Touch(tmp_path / "canary")}, protocol=protocol)
    (tmp_path / cifar100.LAYOUT.folder / "train").write_bytes(data)
    with pytest.raises(DataError, match=r"train is .*system"):
        cifar100.load(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_cifar_error_stays_one_line(cifar, tmp_path, capsys):
    cifar()
    # a class name with a line break ends up in the unpickler's message
    name = b"a\nb"
    data = b"\x80\x04\x8c\x02os" + b"\x8c" + struct.pack("B", len(name)) + name + b"\x93."
    (tmp_path / cifar100.LAYOUT.folder / "train").write_bytes(data)

    def main():
        try:
            cifar100.load(tmp_path)
        except DataError as error:
            raise UserError(str(error)) from None

    assert run_command(main) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_cifar_split_that_is_a_folder(cifar, tmp_path):
    cifar()
    (tmp_path / cifar100.LAYOUT.folder / "train").unlink()
    (tmp_path / cifar100.LAYOUT.folder / "train").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        cifar100.load(tmp_path)


# The save folder


def test_save_folder_below_a_file(student, tmp_path, files_below, assert_one_line_error):
    file = tmp_path / "file"
    file.write_text("mine")
    before = files_below(tmp_path)
    assert_one_line_error(student("--save_folder", file / "save"), "cannot write to", file / "save", "--save_folder")
    assert files_below(tmp_path) == before


def test_save_folder_where_nothing_can_be_made(student, assert_one_line_error):
    assert_one_line_error(student("--save_folder", "/proc/save"), "cannot write to /proc/save", "--save_folder")


def test_save_folder_with_a_name_too_long(student, tmp_path, assert_one_line_error):
    assert_one_line_error(student("--save_folder", tmp_path / ("x" * 300)), "--save_folder")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_where_the_first_write_fails(student, tmp_path, save, monkeypatch, assert_one_line_error):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert_one_line_error(student(), "No space left", save_folder=save)
    assert not save.exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_teacher_run_with_unwritable_save_folder(call, tmp_path, assert_one_line_error):
    (tmp_path / "file").write_text("mine")
    result = call("train_teacher", "--model", "resnet8", *SHORT[:2], "--save_folder", tmp_path / "file", "--quiet")
    assert_one_line_error(result, "cannot write to", "--save_folder")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{", '{"a": 1}'])
def test_damaged_memory_of_teacher_accuracies_is_made_anew(student, save, content):
    save.mkdir()
    (save / "teacher_accuracy.json").write_text(content)
    result = student()
    assert result.code == 0, result.err


# Runs that are already there


def test_finished_run_is_not_overwritten(student, run_folder, save, files_below, assert_one_line_error):
    before = files_below(save)
    assert_one_line_error(student(), run_folder, "holds a finished run", "--resume", "--trial")
    assert files_below(save) == before


def test_unfinished_run_is_not_overwritten(student, unfinished, save, files_below, assert_one_line_error):
    before = files_below(save)
    assert_one_line_error(student(), unfinished, "holds an unfinished run", "--resume", "--trial")
    assert files_below(save) == before


def test_resume_with_another_option_names_it(student, save, files_below, assert_one_line_error):
    # options that the folder's name tells give another folder; these two trials have one in common
    assert student("--seed", "3", "--trial", "a b").code == 0
    next(save.glob("student_model/*/summary.json")).unlink()
    before = files_below(save)
    result = student("--seed", "3", "--trial", "a-b", "--resume")
    assert_one_line_error(result, "--resume", "trial = a b", "a-b")
    assert files_below(save) == before


def test_resume_with_another_teacher_says_so(
    student, unfinished, save, make_teacher, files_below, assert_one_line_error
):
    before = files_below(save)
    assert_one_line_error(student("--path_t", make_teacher(seed=1), "--resume"), "--resume", "teacher_sha256")
    assert files_below(save) == before


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3"])
def test_resume_with_damaged_options(student, unfinished, text, assert_one_line_error):
    if text is None:
        (unfinished / "options.json").unlink()
    else:
        (unfinished / "options.json").write_text(text)
    assert_one_line_error(student("--resume"), "options.json")


def test_a_file_in_place_of_the_run_folder(student, run_folder, assert_one_line_error):
    shutil.rmtree(run_folder)
    run_folder.write_text("mine")
    assert_one_line_error(student(), "cannot write to")
    assert run_folder.read_text() == "mine"


def test_best_checkpoint_is_written_at_an_accuracy_of_zero(tmp_path, capsys):
    run = Run(tmp_path / "run", tmp_path / "events", "resnet8", 1, 0)
    run.open({"save_freq": 40, "quiet": True})
    step = torch.nn.Module()
    step.student = torch.nn.Linear(1, 1)
    run.end_epoch({"epoch": 1, "test_acc": 0.0}, {"step": step}, "epoch 1/1")
    assert (tmp_path / "run" / "resnet8_best.pth").exists()


# As processes of their own


def test_train_teacher_without_data(call, save, tmp_path, assert_one_line_error):
    flags = ("--model", "resnet8", "--save_folder", save, "--data_folder", tmp_path / "data", "--quiet")
    words = (tmp_path / "data", "cifar-100-python.tar.gz", "--dataset shapes100")
    assert_one_line_error(call("train_teacher", *flags), *words, save_folder=save)


def test_train_student_process(launch, save, tmp_path, assert_one_line_error):
    result = launch("train_student", *SHAPES, "--save_folder", save, "--path_t", tmp_path / "resnet8_a" / "x.pth")
    assert_one_line_error(result, "fetch_pretrained_teachers.sh", "train_teacher.py", "--path_t", save_folder=save)


def test_train_teacher_process(launch, save, assert_one_line_error):
    result = launch("train_teacher", "--model", "resnet9", "--save_folder", save)
    assert_one_line_error(result, "unknown model resnet9", "did you mean", "resnet8", save_folder=save)


# What a flag needs to have an effect


def test_official_warmup_without_a_warmup(refuse):
    refuse("--official_warmup", words=("--official_warmup has no effect without --warmup_epochs",))


@pytest.mark.parametrize("flags", [("ldrld", "-a", 0, "-b", 0), ("hint",), ("kd", "-a", 0)])
def test_temperature_that_nothing_uses(refuse, flags):
    refuse("--distill", *flags, "--kd_T", 2, words=("--kd_T 2.0 has no effect",))


def test_a_rate_that_never_drops_is_noted(call, save, teacher):
    flags = ("--path_t", teacher, "--model_s", "resnet8", "--save_folder", save, "--dataset", "shapes100", "--quiet")
    result = call("train_student", *flags, "--epochs", 2)
    assert result.code == 0
    assert "the learning rate does not drop within 2 epochs" in result.err


@pytest.mark.parametrize("method", ["abound", "fsp"])
def test_a_stage_of_weight_zero_is_left_out(call, save, teacher, method):
    flags = ("--path_t", teacher, "--model_s", "resnet8", "--save_folder", save, "--dataset", "shapes100")
    result = call("train_student", *flags, "--epochs", 1, "--distill", method, "-b", 0)
    assert result.code == 0, result.err
    assert "init epoch" not in result.out


@pytest.mark.parametrize("method", ["abound", "fsp"])
def test_only_a_stage_has_a_weight(refuse, method):
    flags = ("--dataset", "shapes100", "--distill", method, "-r", 0, "-a", 0, "-b", 1)
    refuse(*flags, words=("the weights of cls and div are 0",))


@pytest.mark.parametrize("best", [np.float32(1.5), np.float64(72.3), np.array([1.0, 2.0]), np.int64(3)])
@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_figures_in_a_checkpoint_are_plain_data(tmp_path, best, zipped):
    torch.save(
        {"model": {"w": torch.ones(1)}, "best_acc": best}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped
    )
    assert np.array_equal(load_checkpoint(tmp_path / "x.pth")["best_acc"], best)
