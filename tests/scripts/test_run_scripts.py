"""The lists of runs: every command that they give is one that the two scripts take, with existing teachers and networks
that suit the method.
"""

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from image_trees import make_imagenet, make_tiny
from torch._subclasses import FakeTensorMode

from distiller_zoo import Shapes, registry
from helper.checkpoint import new_network
from helper.options import student_options, teacher_options
from helper.setup import build_method, feature_shapes
from helper.teacher import teacher_name
from models import model_dict
from train_teacher import run_name

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
NAMES = sorted(path.name for pattern in ("run_*.sh", "table_*.sh", "compare_*.sh") for path in SCRIPTS.glob(pattern))
# notes its arguments instead of training
RECORDER = """#!/bin/sh
for word; do printf '%s\\037' "$word"; done >> "$RECORD"
printf '\\n' >> "$RECORD"
"""
FETCHED = ("wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50")


@pytest.fixture
def commands(tmp_path):
    """The commands of a script, lists of words, run with a recorder in the place of Python."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    recorder, record = tmp_path / "recorder", tmp_path / "record"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)

    def run(name: str, *arguments: str, **variables: str) -> list[list[str]]:
        record.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHON": str(recorder), "RECORD": str(record), **variables}
        subprocess.run(["sh", f"scripts/{name}", *arguments], cwd=tmp_path, env=environment, check=True)
        return [line.split("\037")[:-1] for line in record.read_text().splitlines()]

    return run


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with miniatures of the data sets whose options depend on their files."""
    make_tiny(tmp_path)
    make_imagenet(tmp_path / "imagenet", flat=False)
    monkeypatch.setenv("KD_DATA", str(tmp_path))


@cache
def shapes_of(name, side, classes, size):
    """Shapes of a network's features, without computing any."""
    network = new_network(name, classes, size)
    side = network.input_size or side
    with FakeTensorMode(allow_non_fake_inputs=True):
        return feature_shapes(network, (side, side), name, classes)


@cache
def suits(method, options, temperature, transforms, student, teacher, classes):
    """Build a method, its dictionaries in JSON, for networks given by what `shapes_of` takes besides classes."""
    shapes = [shapes_of(name, side, classes, size) for name, side, size in (student, teacher)]
    build_method(
        registry[method], Shapes(*shapes, classes, 500), json.loads(options), temperature, json.loads(transforms)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood_and_its_method_suits_the_networks(commands, data, name):
    """The latter by images of each data set's own size and number of classes, which the miniatures have not."""
    sides = {"cifar100": (32, 100), "tiny_imagenet": (64, 200), "imagenet": (224, 1000)}
    trained, lines = set(), commands(name, "--print_freq", "7", TRIALS="3", EPOCHS="12")
    assert len(set(map(tuple, lines))) == len(lines)  # none is there twice
    for script, *words in lines:
        assert "--resume" in words
        if script == "train_teacher.py":
            opt = teacher_options(words)
            trained.add(f"./save/models/{run_name(opt)}/{opt.model}_last.pth")
            continue
        assert script == "train_student.py"
        opt, method = student_options(words)
        assert (opt.epochs, opt.trial, opt.print_freq) == (12, "3", 7)
        assert opt.model_s in model_dict
        teacher, (side, classes) = teacher_name(opt.path_t), sides[opt.dataset]
        dictionaries = json.dumps(opt.method_options), opt.kd_T, json.dumps(opt.transforms)
        suits(method.name, *dictionaries, (opt.model_s, side, opt.size_s), (teacher, side, opt.size_t), classes)
        if opt.path_t.startswith("torchvision:"):
            assert teacher in ("imagenet_ResNet34", "imagenet_ResNet50")
            continue
        fetched = f"save/models/{teacher}_vanilla/ckpt_epoch_240.pth"
        assert opt.path_t in trained or (opt.path_t.removeprefix("./") == fetched and teacher in FETCHED), opt.path_t


def test_evidential_students_have_their_teachers_published_priors(commands):
    """A second reading of the published table: the prior belongs to the teacher, but for two that had several runs."""
    priors = {}
    for script, *words in commands("run_cifar_ekd.sh"):
        if script == "train_student.py" and "--ekd" not in words:  # those of the first upload are not of a teacher
            opt, _ = student_options(words)
            priors.setdefault(teacher_name(opt.path_t), set()).add(opt.transforms["ekd"]["ekd_prior"])
    assert {name: sorted(values) for name, values in priors.items()} == {
        "resnet56": [-0.93],
        "resnet110": [-0.86],
        "resnet32x4": [-1.22],
        "vgg13": [-1.23, -0.6],
        "wrn_40_2": [-1.21, -1.16],
        "ResNet50": [-1.1],
    }


def test_the_standardised_weights_of_dkd_are_products(commands):
    pairs = {}
    for _, *words in commands("run_cifar_lskd.sh"):
        opt, method = student_options(words)
        if method.name == "dkd":
            pairs[teacher_name(opt.path_t), opt.model_s] = (opt.kd_T, opt.a, opt.b)
    assert len(pairs) == 14
    assert pairs["resnet56", "resnet20"] == (3, 18, 36)
    assert pairs["resnet32x4", "resnet8x4"] == (2, 9, 72)
    assert pairs["vgg13", "MobileNetV2"] == (3, 9, 18)


def test_no_line_of_a_header_is_too_long():
    for path in SCRIPTS.glob("*.sh"):
        comments = re.findall(r"^#.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert max(map(len, comments)) <= 120, path.name


def test_runs_are_selected(commands):
    selection = {"PAIRS": "resnet56:resnet20 vgg13:vgg8", "METHODS": "labels kd+sort dkd", "TRIALS": "1 2"}
    found = [
        (words[words.index("--model" if script == "train_teacher.py" else "--model_s") + 1], "--sort" in words)
        for script, *words in commands("table_sort.sh", **selection)
    ]
    # a list repeats its trials one after the other: from labels, kd+sort, dkd
    expected = [("resnet20", False), ("vgg8", False), ("resnet20", True), ("vgg8", True), ("resnet20", False)]
    assert found == [entry for entry in [*expected, ("vgg8", False)] for _ in "12"]


def test_a_kl_beside_the_published_terms_is_in_the_name(commands):
    for name, weight in (("crd", "0"), ("crd+kd", "1")):
        for words in commands("table_cifar100_same.sh", PAIRS="vgg13:vgg8", METHODS=name):
            assert words[words.index("--distill") :] == ["--distill", "crd", "-a", weight, "-b", "0.8"]


@pytest.fixture
def refused(tmp_path):
    """What a script says of a selection that it does not take, and that it starts nothing and lists nothing."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts")

    def run(name: str, **selection: str) -> str:
        said = set()
        for arguments in ([], ["--list"]):
            words = ["sh", f"scripts/{name}", *arguments]
            environment = {**os.environ, "PYTHON": "false", **selection}
            ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert (ended.returncode, ended.stdout) == (4, "")
            said.add(ended.stderr)
        assert not (tmp_path / "save").exists()
        (line,) = said
        assert line.count("\n") == 1
        return line.removeprefix("no run fits ").removesuffix("; --list alone shows them all\n")

    return run


@pytest.mark.parametrize("name", ["table_cifar100_same.sh", "table_ekd.sh", "table_small.sh"])
@pytest.mark.parametrize("selection", [{"METHODS": "kdd"}, {"PAIRS": "resnet57:resnet21"}])
def test_a_selection_that_fits_nothing_is_an_error(refused, name, selection):
    ((variable, word),) = selection.items()
    assert f"{variable}='{word}'" in refused(name, **selection)


SAME, SORT = "table_cifar100_same.sh", "table_sort.sh"


# script, METHODS, PAIRS -> the words that fit no run
@pytest.mark.parametrize(
    ("name", "methods", "pairs", "unfit"),
    [
        (SAME, "kd ldlrd", "resnet56:resnet20", "METHODS='ldlrd'"),
        (SAME, "labels kdd crd+kd ldlrd", "", "METHODS='kdd ldlrd'"),
        (SORT, "kd+sort kd+logit_stand", "", "METHODS='kd+logit_stand'"),
        (SORT, "", "resnet56:resnet20 resnet56:resnet99", "PAIRS='resnet56:resnet99'"),
        (SAME, "kd ldlrd", "resnet56:resnet20 resnet56:resnet99", "PAIRS='resnet56:resnet99' METHODS='ldlrd'"),
        # a run of the student from labels is none of a pair that the list does not have
        (SORT, "", "resnet56:resnet20 resnet55:resnet20", "PAIRS='resnet55:resnet20'"),
        (SORT, "", "resnet55:resnet20", "PAIRS='resnet55:resnet20'"),
        (SORT, "labels", "resnet55:resnet20", "PAIRS='resnet55:resnet20' METHODS='labels'"),
        # both exist, but not together
        ("table_cifar100_cross.sh", "kd fsp", "resnet32x4:ShuffleV1", "METHODS='fsp'"),
        ("run_cifar_ekd.sh", "dkd+ekd", "resnet32x4:resnet8x4 resnet56:resnet20", "PAIRS='resnet56:resnet20'"),
        # words that only other lists know
        (SAME, "labels teachers", "", "METHODS='teachers'"),
        ("run_cifar_ekd.sh", "labels teachers", "", "METHODS='labels'"),
        ("table_small.sh", "", "resnet56:resnet20 resnet56:resnet8", "PAIRS='resnet56:resnet8'"),
    ],
)
def test_words_that_fit_no_run_are_named_before_any_starts(refused, name, methods, pairs, unfit):
    assert refused(name, METHODS=methods, PAIRS=pairs) == unfit


def test_every_word_of_a_selection_may_be_needed_by_other_runs(commands):
    """The inner list has some of the words, the outer one others; one pair has a method that another lacks."""
    both = commands("table_ekd.sh", METHODS="labels teachers ekd", PAIRS="resnet56:resnet20 vgg13:vgg8")
    assert [words[words.index("--model_s" if "--model_s" in words else "--model") + 1] for words in both] == [
        *("resnet20", "vgg8", "resnet56", "vgg13", "resnet20", "vgg8")
    ]
    pairs = "resnet32x4:ShuffleV1 vgg13:MobileNetV2 ResNet50:vgg8"
    assert len(commands("table_cifar100_cross.sh", METHODS="labels kd crd+kd", PAIRS=pairs)) == 9
    assert len(commands(SAME, METHODS="labels fsp", PAIRS="wrn_40_2:wrn_40_1 vgg13:vgg8")) == 3
    # a list without pairs takes any that has one of its networks
    assert len(commands("run_cifar_vanilla.sh", PAIRS="resnet56:resnet20 resnet56:vgg8")) == 3
    # the name of a method is that of its run, with the arguments of the script
    assert len(commands("run_cifar_ldrld.sh", "--sort", METHODS="ldrld+sort", PAIRS="vgg13:vgg8")) == 1


def test_the_methods_are_checked_whatever_is_selected_of_tables(commands):
    """The script of short runs is none of the lists: METHODS and PAIRS say nothing to it."""
    scripts = [words[0] for words in commands("check_methods.sh", METHODS="kd", PAIRS="vgg13:vgg8")]
    checks = (SCRIPTS / "check_methods.sh").read_text(encoding="utf-8").count("\ncheck ")
    assert scripts == ["train_teacher.py", *["train_student.py"] * checks, "report.py"]


def test_a_selection_may_fit_the_inner_list_alone_or_the_outer_one(commands):
    assert {words[0] for words in commands("table_ekd.sh", METHODS="labels")} == {"train_teacher.py"}
    assert {words[0] for words in commands("table_ekd.sh", METHODS="ekd")} == {"train_student.py"}


# a second reading of the published hyperparameters: script, METHODS, PAIRS -> flags of the one run
PUBLISHED = {
    ("run_cifar_ekd.sh", "ekd", "resnet32x4:resnet8x4"): "-a 4.5 -b 4.5 --ekd_prior -1.22 --ekd_warmup 30",
    ("run_cifar_ekd.sh", "ekd", "resnet56:resnet20"): "-a 3.0 -b 2.0 --ekd_prior -0.93 --ekd_warmup 30",
    ("run_cifar_ekd.sh", "ekd", "resnet110:resnet20"): "-a 4.5 -b 1.0 --ekd_prior -0.86 --ekd_warmup 30",
    ("run_cifar_ekd.sh", "ekd", "resnet110:resnet32"): "-a 2.5 -b 2.5 --ekd_prior -0.86 --ekd_warmup 30",
    ("run_cifar_ekd.sh", "ekd", "wrn_40_2:wrn_16_2"): "-a 2.5 -b 2.5 --ekd_prior -1.16 --ekd_warmup 30",
    ("run_cifar_ekd.sh", "ekd", "wrn_40_2:wrn_40_1"): "-a 4.5 -b 2.0 --ekd_prior -1.21 --ekd_warmup 30",
    ("run_cifar_ekd.sh", "ekd", "ResNet50:MobileNetV2"): "-a 4.5 -b 3.0 --ekd_prior -1.10 --ekd_warmup 150",
    ("run_cifar_ekd.sh", "ekd", "wrn_40_2:resnet8x4"): "-a 6.0 -b 3.0 --ekd_prior -1.16 --ekd_warmup 30",
    ("run_cifar_ekd.sh", "dkd+ekd", ""): "-a 4.5 -b 36 --kd_T 1 --kd_warmup 0 --ekd --ekd_weight 40.5 --ekd_warmup 40",
    ("run_cifar_ekd.sh", "mlkd+ekd", ""): "-a 0.9 --ekd --ekd_prior -1.609 --ekd_evidence log_softplus --epochs 480",
    ("run_cifar_sort.sh", "dkd+sort", "resnet56:resnet20"): "-a 1 -b 2 --sort",
    ("run_cifar_sort.sh", "dkd+sort", "vgg13:vgg8"): "-a 1 -b 6 --sort",
    ("run_cifar_sort.sh", "dkd+sort", "resnet32x4:ShuffleV2"): "-a 1 -b 8 --sort",
    ("run_cifar_lskd.sh", "kd+logit_stand", "resnet110:resnet20"): "--base-temp 4 -r 0.1 -a 12",
    ("run_cifar_lskd.sh", "kd+logit_stand", "ResNet50:MobileNetV2"): "--base-temp 3 -r 0.1 -a 1",
    ("run_cifar_lskd.sh", "mlkd+logit_stand", "resnet32x4:ShuffleV2"): "-a 6 --learning_rate 0.01 --epochs 960",
    ("run_cifar_lskd.sh", "mlkd+logit_stand", "vgg13:vgg8"): "-a 6 --learning_rate 0.01 --epochs 480",
    ("run_cifar_ctkd.sh", "kd+curriculum_T", "vgg13:vgg8"): "-a 0.9 --t_start 1 --t_end 20 --decay_loops 10",
    ("table_cifar100_same.sh", "dkd", "resnet110:resnet32"): "-a 1 -b 2",
    ("table_cifar100_same.sh", "dkd", "wrn_40_2:wrn_40_1"): "-a 1 -b 6",
    ("table_cifar100_same.sh", "ReviewKD", "resnet56:resnet20"): "-b 0.6",
    ("table_cifar100_same.sh", "ReviewKD", "resnet110:resnet32"): "-b 1",
    ("table_cifar100_same.sh", "mlkd", "resnet56:resnet20"): "-r 0.1 -a 0.9 --learning_rate 0.025",
    ("table_cifar100_same.sh", "mlkd", "vgg13:vgg8"): "-r 0.1 -a 0.9 --learning_rate 0.025",
    ("table_cifar100_same.sh", "factor", "vgg13:vgg8"): "-a 0 -b 200 --init_learning_rate 0.05",
    ("table_cifar100_same.sh", "catkd", "resnet110:resnet32"): "-b 1.8",
    ("table_cifar100_same.sh", "catkd", "vgg13:vgg8"): "-b 4.5",
    ("table_cifar100_cross.sh", "ReviewKD", "resnet32x4:ShuffleV2"): "-b 8",
    ("table_cifar100_cross.sh", "catkd", "resnet32x4:ShuffleV1"): "-b 600 --cam_resolution 4 --cam_normalize",
    ("table_cifar100_cross.sh", "catkd", "ResNet50:MobileNetV2"): "-b 40 --cam_normalize",
    ("table_cifar100_cross.sh", "wkd_l", "wrn_40_2:ShuffleV1"): "-a 1 -b 200 --kd_T 6",
    ("table_cifar100_cross.sh", "wkd_f", "wrn_40_2:ShuffleV1"): "-b 0.3 --rho 3 --grid 4",
    ("table_cifar100_cross.sh", "wkd", "wrn_40_2:ShuffleV1"): "-b 0.5 --transport_weight 60 --rho 3 --grid 4 --kd_T 4",
    ("table_cifar100_same.sh", "wkd", "resnet32x4:resnet8x4"): "-b 0.08 --transport_weight 200 --rho 8",
    ("table_cifar100_same.sh", "wkd_l", "resnet32x4:resnet8x4"): "-a 1 -b 600",
    ("table_cifar100_same.sh", "wkd_f", "resnet32x4:resnet8x4"): "-b 0.08",
    ("table_imagenet.sh", "ekd", "imagenet_ResNet34:imagenet_ResNet18"): "-b 0.05 --ekd_prior -1.46 --ekd_warmup 1",
    ("table_imagenet.sh", "mlkd", "imagenet_ResNet34:imagenet_ResNet18"): "-a 0.5 --kd_T 1 --learning_rate 0.1",
    ("table_imagenet.sh", "ReviewKD", "imagenet_ResNet50:imagenet_MobileNetV1"): "-b 8 --kd_warmup 1",
    ("table_imagenet.sh", "dkd", "imagenet_ResNet50:imagenet_MobileNetV1"): "-a 1 -b 2 --kd_T 1 --kd_warmup 1",
    ("table_imagenet.sh", "catkd", "imagenet_ResNet50:imagenet_MobileNetV1"): "-b 10 --cam_resolution 2",
    ("table_vit.sh", "kd+logit_stand", "resnet56:deit_ti_distilled"): "-r 0.5 -a 0.1 --logit_stand --kd_T 3",
    ("table_vit.sh", "ekd", ""): "-r 2 -a 4 -b 2 --ekd_prior -0.14 --ekd_evidence log_softplus --ekd_warmup 0",
}  # fmt: skip


@pytest.mark.parametrize(("script", "method", "pair"), PUBLISHED)
def test_the_published_hyperparameters(commands, script, method, pair):
    (words,) = commands(script, METHODS=method, PAIRS=pair)
    line = f" {' '.join(words)} "
    flags = re.findall(r"(?:^| )(--?[a-zA-Z]\S*(?: -?[\w.]+)*)", PUBLISHED[script, method, pair])
    assert all(f" {flag.strip()} " in line for flag in flags), line


def test_epochs_scale_what_students_learn_by(commands):
    lines = commands("table_ekd.sh", EPOCHS="24", EXTRA="--teacher_cache /tmp/cache", PAIRS="resnet32x4:resnet8x4")
    labels, teacher, student, *_ = lines
    assert teacher_options(labels[1:]).epochs == 24
    assert teacher_options(teacher[1:]).epochs == 240
    opt, _ = student_options(student[1:])
    assert (opt.epochs, opt.lr_decay_epochs, opt.transforms["ekd"]["ekd_warmup"]) == (24, (15, 18, 21), 3)
    assert opt.teacher_cache == "/tmp/cache"


@pytest.mark.parametrize("arguments", [["--list", "--quiet"], ["--quiet", "--list"], ["--tag", "a b", "--list", "-q"]])
def test_a_list_is_what_would_run(commands, tmp_path, arguments):
    selection = {**os.environ, "PYTHON": "python", "PAIRS": "resnet56:resnet20", "METHODS": "kd labels"}
    words = ["sh", "scripts/table_cifar100_same.sh", *arguments]
    done = subprocess.run(words, cwd=tmp_path, env=selection, capture_output=True, text=True, check=True)
    others = [word for word in arguments if word != "--list"]
    ran = commands("table_cifar100_same.sh", *others, PAIRS="resnet56:resnet20", METHODS="kd labels")
    assert done.stdout.splitlines() == [" ".join(["python", *words]) for words in ran]
    assert len(ran) == 2
    assert all(set(others) <= set(words) for words in ran)
    assert "-r 0.1 -a 0.9" in done.stdout
    assert not done.stderr


def test_an_inner_list_is_listed_too(commands, tmp_path):
    words = ["sh", "scripts/table_ekd.sh", "--quiet", "--list"]
    environment = {**os.environ, "PYTHON": "false"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(commands("table_ekd.sh"))


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_which_runs_get_the_arguments(data, name):
    """Where teachers get none, it says so, and how their folder of data is named."""
    listed = subprocess.run(
        ["sh", SCRIPTS / name, "--list", "--print_freq", "7"], capture_output=True, text=True, check=True
    )
    lacking = [line.split()[2:] for line in listed.stdout.splitlines() if "--print_freq" not in line]
    header = " ".join((SCRIPTS / name).read_text(encoding="utf-8").split("set -eu")[0].replace("\n#", "").split())
    assert f"further arguments go to every {'student' if lacking else 'run'}." in header
    for words in lacking:
        assert "KD_DATA names" in header
        assert teacher_options(words).data_folder == os.environ["KD_DATA"]


def test_a_failed_run_does_not_stop_the_others(commands, tmp_path):
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER + """case "$*" in *--sort*) echo went wrong >&2; exit 3 ;; esac\n""")
    environment = {**os.environ, "PYTHON": str(recorder), "RECORD": str(tmp_path / "record")}
    environment |= {"PAIRS": "resnet56:resnet20", "METHODS": "kd kd+sort dkd dkd+sort"}
    arguments = ["sh", "scripts/table_sort.sh"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len((tmp_path / "record").read_text().splitlines()) == 4
    logs = re.findall(r"save/logs/\S+\.log", done.stderr)
    assert [re.sub(r"-resnet56.*", "", Path(log).name) for log in logs] == ["kd+sort", "dkd+sort"]
    assert all((tmp_path / log).read_text() == "went wrong\n" for log in logs)
    assert not list((tmp_path / "save" / "logs").glob("failed*"))


def test_a_line_of_the_array(tmp_path):
    (tmp_path / "runs.txt").write_text("echo one > one\necho two > two\n")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    subprocess.run(["sh", SCRIPTS / "slurm_array.sh", "runs.txt"], cwd=tmp_path, env=environment, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.txt", "two"]
